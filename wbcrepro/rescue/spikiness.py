"""Spikiness of a cell: largest over median distance of its outline from its centroid (S(X) of Algorithm 1 of `rescue`).

    S = max_i |v_i - c| / median_i |v_i - c|        v_i: vertices of the outer contour, c: its centroid

A disc has 1, a cell with processes more. The paper defines S in words only; the arithmetic is that of the released
code: foreground = grey level <= 250 on a white canvas, 3x3 closing repeated twice, largest outer contour, centroid
truncated to whole pixels, median over the vertices of the *compressed* contour. A compressed contour leaves out the
inside of straight runs, so the median is one of corners: every boundary pixel (``vertices="all"``) gives 2 % to 11 %
less or more.

Differs from the released code in: a cell without a contour is NaN (there: 0, which passes as a very smooth cell).
"""

import cv2
import numpy as np

BACKGROUND = 250
"""Grey levels above it are background, as in the released code."""
MIN_AREA = 50
"""Contours that enclose fewer square pixels are dirt."""
VERTICES = {"compressed": cv2.CHAIN_APPROX_SIMPLE, "all": cv2.CHAIN_APPROX_NONE}


def spikiness(foreground: np.ndarray, *, vertices: str = "compressed") -> float:
    """S >= 1 of the largest object of a bool mask (H, W); NaN if no contour encloses ``MIN_AREA`` square pixels.

    ``vertices``: "compressed" (the released code) or "all" boundary pixels. Raises ValueError for another shape, dtype
    or option.
    """
    if foreground.ndim != 2 or foreground.dtype != bool:
        raise ValueError(f"expected a bool mask (H, W), got {foreground.dtype} {foreground.shape}")
    if vertices not in VERTICES:
        raise ValueError(f"vertices must be one of {', '.join(VERTICES)}, got {vertices!r}")
    closed = cv2.morphologyEx(foreground.astype(np.uint8), cv2.MORPH_CLOSE, np.ones((3, 3), np.uint8), iterations=2)
    contours, _ = cv2.findContours(closed, cv2.RETR_EXTERNAL, VERTICES[vertices])
    outline = max(contours, key=cv2.contourArea, default=None)
    if outline is None or cv2.contourArea(outline) < MIN_AREA:
        return float("nan")
    moments = cv2.moments(outline)
    centre = np.array([int(moments["m10"] / moments["m00"]), int(moments["m01"] / moments["m00"])])
    radii = np.linalg.norm(outline[:, 0] - centre, axis=1)
    return float(radii.max() / np.median(radii))


def released_foreground(gray: np.ndarray) -> np.ndarray:
    """The cell on a white canvas as the released code sees it: bool (H, W) of grey levels uint8 (H, W)."""
    return gray <= BACKGROUND
