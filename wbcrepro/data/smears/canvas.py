"""The drawing surface: a grid in micrometres, soft edges, random textures and granules. All maps are float32 (H, W)."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.ndimage import gaussian_filter

_ATLAS = 512  # pixels; textures are random windows of it
_STEP = 1.25  # between two neighbouring grain sizes of the atlas


@dataclass(frozen=True)
class Window:
    """Part of the canvas: slices into it and the coordinates of its pixels in µm, the origin at the image's centre."""

    rows: slice
    columns: slice
    y: np.ndarray  # (h, 1)
    x: np.ndarray  # (1, w)
    pixel: float

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return len(self.y), self.x.shape[1]

    @property
    def at(self) -> tuple[slice, slice]:
        """Rows and columns of the image that the window covers."""
        return self.rows, self.columns


def window(size: int, pixel: float, centre: tuple[float, float], reach: float) -> Window:
    """The square window of half-width ``reach`` µm around ``centre`` (y, x), clipped to the canvas; may be empty."""
    spans = []
    for c in centre:
        low = int(np.floor((c - reach) / pixel + size / 2))
        high = int(np.ceil((c + reach) / pixel + size / 2)) + 1
        spans.append(slice(min(max(low, 0), size), min(max(high, 0), size)))
    axes = [((np.arange(s.start, s.stop, dtype=np.float32) + 0.5 - size / 2) * np.float32(pixel)) for s in spans]
    return Window(spans[0], spans[1], axes[0][:, None], axes[1][None, :], pixel)


def soft(distance: np.ndarray, width: float) -> np.ndarray:
    """Coverage from a signed distance (positive inside): 0 outside, 1 inside, a ramp of ``width`` µm between."""
    return np.clip(distance * np.float32(1 / width) + np.float32(0.5), 0, 1)


@lru_cache(maxsize=64)
def _atlas(step: int) -> np.ndarray:
    """A periodic field of unit variance, white noise smoothed with a Gaussian of ``_STEP ** step`` pixels."""
    noise = np.random.default_rng(1000 + step).standard_normal((_ATLAS, _ATLAS), dtype=np.float32)
    field = gaussian_filter(noise, _STEP**step, mode="wrap", truncate=3)
    return field / field.std()


def texture(rng: np.random.Generator, shape: tuple[int, int], pixel: float, grain: float) -> np.ndarray:
    """A random smooth field, mean 0 and variance 1, with features of about ``grain`` µm."""
    sigma = max(grain / pixel * 0.5, 0.4)
    field = _atlas(int(round(np.log(sigma) / np.log(_STEP))))
    top, left = rng.integers(0, _ATLAS, 2)
    rows = np.arange(top, top + shape[0]) % _ATLAS
    columns = np.arange(left, left + shape[1]) % _ATLAS
    if rng.random() < 0.5:
        field = field.T
    return field[rows[:: 1 if rng.random() < 0.5 else -1, None], columns[None, :]]


def scatter(frame: Window, points: np.ndarray, weights: np.ndarray, radius: float) -> np.ndarray:
    """Round spots of ``radius`` µm at ``points`` (N, 2) (y, x) in µm: a spot is as high as its weight, overlaps add."""
    height, width = frame.shape
    row = np.floor((points[:, 0] - frame.y[0, 0]) / frame.pixel + 0.5).astype(int)
    column = np.floor((points[:, 1] - frame.x[0, 0]) / frame.pixel + 0.5).astype(int)
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    flat = np.bincount(row[inside] * width + column[inside], weights[inside], minlength=height * width)
    sigma = max(radius / frame.pixel * 0.7, 0.45)
    spots = gaussian_filter(flat.reshape(height, width).astype(np.float32), sigma, mode="constant", truncate=3)
    return spots * np.float32(2 * np.pi * sigma**2)


def polar(frame: Window, centre: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
    """Distance (µm) and angle (radians) of every pixel of the window from ``centre`` (y, x)."""
    dy, dx = frame.y - np.float32(centre[0]), frame.x - np.float32(centre[1])
    return np.sqrt(dy * dy + dx * dx), np.arctan2(dy, dx)


ANGLES = np.linspace(-np.pi, np.pi, 512, endpoint=False, dtype=np.float32)


def around(profile: np.ndarray, angle: np.ndarray) -> np.ndarray:
    """``profile`` (512 values over ``ANGLES``) looked up at every angle."""
    index = ((angle + np.float32(np.pi)) * np.float32(512 / (2 * np.pi)) + np.float32(0.5)).astype(np.int32)
    return profile[index & 511]


def waves(rng: np.random.Generator, orders: np.ndarray, amplitude: float) -> np.ndarray:
    """A smooth random function of the angle (512 values), about ``amplitude`` high, less in the higher orders."""
    size = rng.normal(0, 1, len(orders)) * amplitude * orders[0] / orders
    phase = rng.uniform(0, 2 * np.pi, len(orders))
    return (size[:, None] * np.cos(orders[:, None] * ANGLES + phase[:, None])).sum(0).astype(np.float32)
