"""What lies around the white cell: red cells, platelets, stain deposit, each drawn on a canvas of its own."""

import numpy as np

from wbcrepro.data.smears.canvas import ANGLES, scatter, soft, texture, waves, window

_RED_RADIUS = 3.6  # µm
_OVERLAP = 0.88  # red cells may lie a little over each other


def _places(
    rng: np.random.Generator, number: int, half: float, radius: float, hole: tuple[float, float, float]
) -> np.ndarray:
    """Up to ``number`` centres (y, x) in µm at least most of a diameter apart and outside ``hole`` (y, x, radius)."""
    tries = rng.uniform(-half, half, (4 * number + 8, 2))
    free = np.hypot(tries[:, 0] - hole[0], tries[:, 1] - hole[1]) > hole[2] + radius * rng.uniform(
        0.75, 1.1, len(tries)
    )
    tries = tries[free]
    kept = np.empty((0, 2))
    for point in tries:
        if len(kept) == number:
            break
        if not len(kept) or np.hypot(*(kept - point).T).min() > 2 * radius * rng.uniform(_OVERLAP - 0.2, 1.05):
            kept = np.vstack([kept, point])
    return kept


def red_cells(
    rng: np.random.Generator,
    size: int,
    pixel: float,
    *,
    number: int,
    scale: float,
    pallor: float,
    crenated: float,
    hole,
) -> np.ndarray:
    """Thickness (size, size) of the red cells, about 1 in a cell's ring: biconcave discs, some of them crenated."""
    canvas = np.zeros((size, size), np.float32)
    radius = _RED_RADIUS * scale
    half = size * pixel / 2 + radius
    for place in _places(rng, number, half, radius, hole):
        own = radius * rng.normal(1, 0.06)
        frame = window(size, pixel, tuple(place), 1.35 * own)
        if 0 in frame.shape:
            continue
        profile = 1 + waves(rng, np.arange(2, 6), 0.05)
        if rng.random() < crenated:
            profile = profile + rng.uniform(0.04, 0.10) * np.cos(rng.integers(9, 14) * ANGLES + rng.uniform(0, 6.28))
        dy, dx = frame.y - np.float32(place[0]), frame.x - np.float32(place[1])
        distance = np.sqrt(dy * dy + dx * dx)
        index = ((np.arctan2(dy, dx) + np.float32(np.pi)) * np.float32(512 / (2 * np.pi))).astype(np.int32) & 511
        edge = profile.astype(np.float32)[index] * np.float32(own)
        r = distance / edge
        centre = np.float32(min(pallor * rng.uniform(0.5, 1.3), 0.88)) * np.exp(
            -(np.square(r / np.float32(rng.uniform(0.34, 0.5))) ** 1.5)
        )
        rim = 0.16 * np.exp(-np.square((r - 0.82) / 0.14))
        canvas[frame.at] += (
            soft(edge - distance, max(pixel, 0.3)) * (0.92 + rim - centre) * np.float32(rng.normal(1, 0.05))
        )
    return canvas


def platelets(rng: np.random.Generator, size: int, pixel: float, number: int) -> np.ndarray:
    """Small granular purple bodies of 2-3 µm."""
    canvas = np.zeros((2, size, size), np.float32)
    half = size * pixel / 2
    for _ in range(number):
        place, radius = rng.uniform(-half, half, 2), rng.uniform(0.8, 1.6)
        frame = window(size, pixel, tuple(place), 2 * radius)
        if 0 in frame.shape:
            continue
        distance = np.sqrt(np.square(frame.y - np.float32(place[0])) + np.square(frame.x - np.float32(place[1])))
        distance = np.float32(radius) - distance + texture(rng, frame.shape, pixel, 0.9) * np.float32(0.25)
        grains = np.clip(texture(rng, frame.shape, pixel, 0.5) * 0.5 + 0.6, 0, 2)
        body = soft(distance, 0.4) * np.float32(0.55)
        canvas[0][frame.at] += body * (0.6 + 0.9 * grains)
        canvas[1][frame.at] += body * (0.4 + 0.6 * grains)
    return canvas


def deposit(rng: np.random.Generator, size: int, pixel: float, number: int) -> np.ndarray:
    """Tiny dark specks of precipitated stain, (size, size), anywhere on the slide."""
    half = size * pixel / 2
    whole = window(size, pixel, (0.0, 0.0), 2 * half)
    points = rng.uniform(-half, half, (number, 2))
    return scatter(whole, points, rng.uniform(0.3, 1.2, number), rng.uniform(0.15, 0.35))
