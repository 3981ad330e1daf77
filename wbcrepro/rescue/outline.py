"""The outline of one cell: a closed ring by dynamic programming in polar coordinates, refined by a threshold.

From an origin inside the cell, K rays are sampled at R radii. The ring is the radius of each ray that maximises

    sum over rays k of [ gain(k, r_k) - bend ((r_k - r_{k-1}) / r_{k-1})^2 ],      r_K = r_0,

where ``gain(k, r)`` sums the evidence for "cell" over the samples below r and adds the edge at r. The maximum over
chains is exact (Viterbi); the ring is closed by going round twice and a half and keeping the middle. A red cell that
touches moves the outline only as far as the bend allows, however dark it is. Evidence of a sample:

* density relative to the threshold, from -1 (background) to 1; always 1 in the nucleus, -1 beyond the first
  background behind it;
* less where the colour is that of red cells (`red_cells`), and where the radius exceeds the typical one, a quantile of
  the first background over the rays, which red cells beside less than half of the cell do not change.

Three rounds: the origin moves from the nucleus to the cell's middle, colours are known from the second on. At last, a
narrow band around the ring follows the threshold, so that fine spikes of the membrane are kept.
"""

from dataclasses import dataclass

import cv2
import numpy as np

from wbcrepro.rescue import red_cells

RAYS, RADII = 72, 64
_ROUNDS = 3
_NOT_OUTSIDE_NUCLEUS = -5.0  # gain of a ring that would cut the nucleus


@dataclass(frozen=True)
class OutlineSettings:
    """``level``: threshold as a share of the density beside the nucleus; ``noise``: at least so often the background's.

    ``edge``, ``bend``: weights of edge and bend. ``large``: weight of the excess over ``free`` times the typical
    radius, the ``typical`` quantile. ``band``: half-width of the band, of the radius. ``reach``: longest ray, in radii
    of the nucleus.
    """

    level: float = 0.3
    noise: float = 3.0
    edge: float = 3.0
    bend: float = 800.0
    large: float = 8.0
    free: float = 1.05
    typical: float = 0.4
    band: float = 0.1
    reach: float = 3.6


def cell_mask(density: np.ndarray, noise: float, nucleus: np.ndarray, settings: OutlineSettings) -> np.ndarray:
    """Mask bool (H, W) of the cell around ``nucleus`` bool (H, W), one component without holes.

    ``density``: optical density float32 (H, W, 3) relative to the background, ``noise`` the background's scatter.
    """
    strength = np.linalg.norm(density, axis=2)
    threshold = _threshold(strength, noise, nucleus, settings)
    ring, red = _ring_mask(density, strength, threshold, nucleus, settings)
    radius = np.sqrt(ring.sum() / np.pi)
    depth = _distance(ring) - _distance(~ring)
    sure, possible = depth > settings.band * radius, depth > -settings.band * radius
    stained = strength > threshold
    if red is not None:
        stained &= (red > -0.25) | (depth > 0)
    found = _opened((possible & (stained | nucleus)) | sure)
    number, labels = cv2.connectedComponents(found)
    if number == 1:
        return ring
    votes = np.bincount(labels.ravel(), (sure | (nucleus & possible)).ravel(), number)
    return _filled_holes(labels == 1 + votes[1:].argmax())


def best_ring(gain: np.ndarray, bend: float, reachable: int = 5) -> np.ndarray:
    """Index of the radius of each ray, int (K,), of the closed chain with the largest sum; ``gain`` is (K, R).

    Neighbouring rays differ by at most ``reachable`` samples.
    """
    rays, radii = gain.shape
    steps = np.arange(-reachable, reachable + 1)
    # relative to the radius, so that a large ring and a small one of the same shape cost the same
    cost = bend * (steps[:, None] / (np.arange(radii) + 1.0)) ** 2
    order = np.arange(2 * rays + rays // 2) % rays
    best = gain[0].astype(np.float64)
    choice = np.zeros((len(order), radii), np.int64)
    padded = np.full(radii + 2 * reachable, -np.inf)
    before = np.lib.stride_tricks.sliding_window_view(padded, radii)  # row s: the value at r + steps[s]
    columns = np.arange(radii)
    for place, ray in enumerate(order[1:], start=1):
        padded[reachable : reachable + radii] = best
        score = before - cost
        arg = score.argmax(axis=0)
        choice[place] = columns + steps[arg]
        best = score[arg, columns] + gain[ray]
    ring = np.empty(len(order), np.int64)
    ring[-1] = best.argmax()
    for place in range(len(order) - 1, 0, -1):
        ring[place - 1] = choice[place, ring[place]]
    start = rays // 2  # far from both ends of the chain
    return np.roll(ring[start : start + rays], start)


def _threshold(strength: np.ndarray, noise: float, nucleus: np.ndarray, settings: OutlineSettings) -> float:
    grown = [cv2.dilate(nucleus.astype(np.uint8), np.ones((n, n), np.uint8)) > 0 for n in (3, 7)]
    beside = strength[grown[1] & ~grown[0]]
    level = min(np.median(beside) if len(beside) else np.inf, 0.6 * np.median(strength[nucleus]))
    return float(max(settings.level * level, settings.noise * noise, 0.03))


def _ring_mask(density, strength, threshold, nucleus, settings) -> tuple[np.ndarray, np.ndarray | None]:
    """Mask (H, W) of the ring after all rounds, and the evidence against red cells (H, W) or None."""
    shape = strength.shape
    rows, columns = np.nonzero(nucleus)
    origin = float(columns.mean()), float(rows.mean())
    reach = min(settings.reach * np.sqrt(len(rows) / np.pi) + 4, 0.55 * np.hypot(*shape))
    step, number = reach / RADII, np.arange(RADII)
    inside_nucleus = nucleus.astype(np.float32)
    red, radius, mask = None, None, nucleus
    for turn in range(_ROUNDS):
        grid = _polar_grid(origin, reach)
        along, in_nucleus = _sampled(strength, grid), _sampled(inside_nucleus, grid) > 0.5
        last = np.where(in_nucleus.any(axis=1), RADII - 1 - in_nucleus[:, ::-1].argmax(axis=1), -1)
        support = np.clip(along / threshold - 1, -1, 1)
        if red is not None:
            support = np.clip(support + 2 * np.minimum(_sampled(red, grid), 0), -1, 1)
        behind = number > last[:, None]
        if radius is None or red is not None:
            outside = (support < 0) & behind
            first = np.where(outside.any(axis=1), outside.argmax(axis=1), RADII)
            typical = np.quantile(first, settings.typical) * step
        else:
            typical = np.median(radius)
        typical = max(typical, step)
        gain = _gain(along / threshold, support, in_nucleus, behind, (number + 0.5) * step / typical, settings)
        radius = (best_ring(gain, settings.bend) + 1.0) * step
        if turn == 0:
            inner = np.minimum(radius, 1.05 * typical)
            near = _between(density, grid, last, inner / step, threshold)
            away = ~_polygon(1.3 * np.minimum(radius, 1.1 * typical) + 2, origin, shape) & (strength > threshold)
            red = red_cells.evidence(density, near, density[away])
        mask = _polygon(radius, origin, shape)
        if not mask.any():
            return nucleus, red
        if turn < _ROUNDS - 1:
            rows, columns = np.nonzero(mask)
            origin = float(columns.mean()), float(rows.mean())
    return mask, red


def _gain(along, support, in_nucleus, behind, relative, settings: OutlineSettings) -> np.ndarray:
    """Gain (K, R) of a ring at each sample; ``along``, ``support``, ``in_nucleus``, ``behind`` are (K, R)."""
    gone = np.maximum.accumulate((support < -0.3) & behind, axis=1)
    support = np.where(gone, -1, support) - settings.large * np.maximum(relative - settings.free, 0)
    support = np.where(in_nucleus, 1, support)
    fall = np.zeros_like(along)
    fall[:, 1:-1] = np.clip(along[:, :-2] - along[:, 2:], 0, 2)
    gain = np.cumsum(support, axis=1) + settings.edge * fall
    at_least_nucleus = behind | np.roll(behind, -1, axis=1)
    at_least_nucleus[:, -1] = True
    return np.where(at_least_nucleus, gain, gain + _NOT_OUTSIDE_NUCLEUS)


def _between(density, grid, last, limit, threshold) -> np.ndarray:
    """Samples (n, 3) of ``density`` (H, W, 3) in the inner part between nucleus and ring, background left out."""
    number = np.arange(RADII)
    until = np.minimum(last + np.maximum(3, 0.6 * (limit - last)), limit)
    chosen = (number >= np.maximum(last, -1)[:, None] + 2) & (number < until[:, None])
    values = _sampled(density, grid)[chosen]
    return values[np.linalg.norm(values, axis=1) > 0.7 * threshold]


def _polar_grid(origin: tuple[float, float], reach: float) -> tuple[np.ndarray, np.ndarray]:
    """Columns and rows, float32 (K, R) each, of samples up to ``reach`` pixels from ``origin`` (x, y)."""
    angle = np.arange(RAYS, dtype=np.float32)[:, None] * np.float32(2 * np.pi / RAYS)
    radius = (np.arange(RADII, dtype=np.float32) + 0.5) * np.float32(reach / RADII)
    return np.float32(origin[0]) + np.cos(angle) * radius, np.float32(origin[1]) + np.sin(angle) * radius


def _sampled(plane: np.ndarray, grid: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """``plane`` (H, W) or (H, W, C) float32 at the samples, linear; 0 (background) beyond the image."""
    return cv2.remap(plane, *grid, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)


def _polygon(radius: np.ndarray, origin: tuple[float, float], shape: tuple[int, int]) -> np.ndarray:
    """Mask bool (H, W) of the star-shaped polygon with ``radius`` (K,) in pixels around ``origin`` (x, y)."""
    angle = np.arange(len(radius)) * (2 * np.pi / len(radius))
    points = np.stack([origin[0] + radius * np.cos(angle), origin[1] + radius * np.sin(angle)], axis=1)
    canvas = np.zeros(shape, np.uint8)
    cv2.fillPoly(canvas, [np.round(points * 16).astype(np.int32)], 1, shift=4)
    return canvas.astype(bool)


def _distance(mask: np.ndarray) -> np.ndarray:
    """Distance (H, W) of every pixel of the mask from the outside, 0 outside."""
    return cv2.distanceTransform(mask.astype(np.uint8), cv2.DIST_L2, 3)


def _opened(mask: np.ndarray) -> np.ndarray:
    return cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_OPEN, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (3, 3)))


def _filled_holes(mask: np.ndarray) -> np.ndarray:
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    return cv2.drawContours(np.zeros(mask.shape, np.uint8), contours, -1, 1, cv2.FILLED) > 0
