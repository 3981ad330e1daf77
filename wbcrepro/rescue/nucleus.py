"""Nuclei of white cells by colour: which dark body in the middle of an image is one, and where its edge runs.

Densities are optical densities float32 (H, W, 3) of red, green and blue relative to the background. In Romanowsky
stains azure B absorbs red and green, eosin green and blue: a nucleus is dark in green and not equally so in blue.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from skimage.filters import threshold_otsu

AZURE = (0.75, 0.75, -0.75)
"""Weights of (red, green, blue) density that nearly cancel for eosin, so for red cells."""

_CHANNELS = np.array([AZURE, (0, 1, -0.5), (-0.5, 1.5, -0.75)], np.float32)  # blue, purple and magenta nuclei
_EXACT = np.array((0.25, 0.75, -0.5), np.float32)
_CENTRAL, _WEIGHT = 0.4, 0.25  # radius of the middle, width of the weight for nearness; of the shorter side
_LOBE_AREA, _LOBE_DARKNESS, _LOBE_GAP = 0.05, 0.75, 0.5  # relative to the main lobe: area, density, root of its area
_OTHER_AREA, _OTHER_DARKNESS = 0.3, 0.7  # of another cell's nucleus relative to this one


@dataclass(frozen=True)
class Nucleus:
    """Masks bool (H, W): ``mask`` of the central nucleus, ``dark`` of all that is as dark in its channel ``shade``.

    strength: length of the median density vector. azure: that vector's density weighted by ``AZURE``, times its share
    of the strength. at_edge: pixels on the image's edge per root of the area.
    """

    mask: np.ndarray
    dark: np.ndarray
    shade: np.ndarray
    strength: float
    azure: float
    at_edge: float


def central_nucleus(density: np.ndarray) -> Nucleus | None:
    """The body in the middle that stands out best in one of three channels, by Otsu's threshold in the middle disc.

    Best is the largest product of the threshold's share of explained variance, the share of the body within the
    middle disc and the root of its solidity (red cells that were taken along lower the last two). None where no
    channel varies in the middle.
    """
    radius = _radius(density.shape[:2])
    middle = radius < _CENTRAL
    best, best_score = None, -1.0
    for weights in _CHANNELS:
        shade = density @ weights
        values = shade[middle]
        if np.ptp(values) < 0.05:
            continue
        threshold = threshold_otsu(values)
        dark = _opened(shade > threshold, 3)
        mask = _central_lobes(dark, shade, radius)
        if mask is None:
            continue
        score = _explained(values, threshold) * mask[middle].sum() / mask.sum() * np.sqrt(_solidity(mask))
        if score > best_score:
            best, best_score = (mask, dark, shade), score
    if best is None:
        return None
    mask = best[0]
    edge = mask[0].sum() + mask[-1].sum() + mask[:, 0].sum() + mask[:, -1].sum()
    typical = np.median(density[mask], axis=0)
    strength, azure = float(np.linalg.norm(typical)), float(typical @ np.float32(AZURE))
    return Nucleus(*best, strength, azure * max(azure, 0) / max(strength, 1e-6), float(edge / np.sqrt(mask.sum())))


def nucleus_within(density: np.ndarray, cell: np.ndarray) -> np.ndarray:
    """Nucleus bool (H, W) within the mask ``cell`` (H, W): Otsu's threshold on the transmitted light of its pixels.

    Light, not density: there the two classes scatter more equally, dark nuclei being saturated.
    """
    light = np.exp(-(density @ _EXACT))
    dark = cell & (light < threshold_otsu(light[cell]))
    return _opened(dark, 5) & cell


def nuclei_outside(nucleus: Nucleus, cell: np.ndarray) -> int:
    """Number of bodies outside the mask ``cell`` (H, W) that are nearly as large and dark as its nucleus."""
    around = cv2.dilate(cell.astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
    number, labels, stats, _ = cv2.connectedComponentsWithStats((nucleus.dark & ~around).astype(np.uint8))
    enough = _OTHER_DARKNESS * np.median(nucleus.shade[nucleus.mask])
    large = [k for k in range(1, number) if stats[k, cv2.CC_STAT_AREA] >= _OTHER_AREA * nucleus.mask.sum()]
    return sum(bool(np.median(nucleus.shade[labels == k]) >= enough) for k in large)


def _central_lobes(dark: np.ndarray, shade: np.ndarray, radius: np.ndarray) -> np.ndarray | None:
    """The component of ``dark`` with the most weight near the centre, and those beside it that may be its lobes."""
    number, labels, stats, _ = cv2.connectedComponentsWithStats(dark.astype(np.uint8), connectivity=4)
    if number == 1:
        return None
    areas = stats[:, cv2.CC_STAT_AREA]
    weight = np.bincount(labels.ravel(), np.exp(-((radius / _WEIGHT) ** 2)).ravel(), number)
    main = 1 + int(weight[1:].argmax())
    mean = np.bincount(labels.ravel(), shade.ravel(), number) / np.maximum(areas, 1)
    mask = labels == main
    gap = cv2.distanceTransform((~mask).astype(np.uint8), cv2.DIST_L2, 3)
    for k in range(1, number):
        alike = areas[k] > _LOBE_AREA * areas[main] and mean[k] > _LOBE_DARKNESS * mean[main]
        if k != main and alike and gap[labels == k].min() <= _LOBE_GAP * np.sqrt(areas[main]):
            mask |= labels == k
    return mask


def _radius(shape: tuple[int, int]) -> np.ndarray:
    """Distance (H, W) from the image's centre as a fraction of the shorter side."""
    y, x = (np.arange(n) - (n - 1) / 2 for n in shape)
    return np.hypot(y[:, None], x[None, :]) / min(shape)


def _explained(values: np.ndarray, threshold: float) -> float:
    """Share of the variance of ``values`` that lies between the two sides of the threshold."""
    high = values > threshold
    share = high.mean()
    return float(share * (1 - share) * (values[high].mean() - values[~high].mean()) ** 2 / values.var())


def _solidity(mask: np.ndarray) -> float:
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    return float(mask.sum() / max(cv2.contourArea(cv2.convexHull(np.concatenate(contours))), mask.sum()))


def _opened(mask: np.ndarray, size: int) -> np.ndarray:
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (size, size))
    return cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_OPEN, kernel) > 0
