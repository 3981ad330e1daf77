"""Macenko normalisation compiled for one CPU core (extra ``fast``: numba), image by image, in float64.

Same method, options, statuses and contract as :mod:`wbcrepro.stain.macenko`. What makes it fast:

* OD has 256 values, so that every linear map of OD (projection, density) is a sum of three table entries;
* re-mixing is a product of three, ``exp(-M od) = prod_j exp(-M[i,j] od[j])``: no exponential at any pixel;
* a 99th percentile needs the tail only, and every 16th pixel says where the tail begins (where it misleads, all pixels
  are looked at: the result is exact).
"""

import math

import numpy as np
import torch

from wbcrepro.errors import UsageError
from wbcrepro.stain.macenko import (
    DEGENERATE,
    MIN_PIXELS,
    NON_FINITE,
    NORMALISED,
    RED_TIE,
    TOO_FEW_PIXELS,
    status_names,
)
from wbcrepro.stain.optical_density import check_images, darkest_kept_value
from wbcrepro.stain.percentiles import precision
from wbcrepro.stain.reference import StainReference, default_reference

try:
    from numba import njit
except ImportError as error:
    raise UsageError(
        'macenko_fast needs numba, which is not installed; run: pip install "wbcrepro[fast]", or use '
        "wbcrepro.stain.macenko, which needs torch only"
    ) from error


@njit(cache=True, nogil=True)
def _stained(red, green, blue, limit, out):
    """Write the stained pixels (3,n) to the front of ``out``; return n."""
    n = 0
    for i in range(red.size):
        out[0, n], out[1, n], out[2, n] = red[i], green[i], blue[i]
        n += (red[i] <= limit) & (green[i] <= limit) & (blue[i] <= limit)
    return n


@njit(cache=True, nogil=True)
def _moments(red, green, blue, level):
    """Sums (3,) and second moments (6,) of ``level`` (256,)."""
    a1, b1, c1 = 0.0, 0.0, 0.0
    aa, ab, ac, bb, bc, cc = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
    for i in range(red.size):
        a, b, c = level[red[i]], level[green[i]], level[blue[i]]
        a1, b1, c1 = a1 + a, b1 + b, c1 + c
        aa, ab, ac = aa + a * a, ab + a * b, ac + a * c
        bb, bc, cc = bb + b * b, bc + b * c, cc + c * c
    return np.array([a1, b1, c1]), np.array([aa, ab, ac, bb, bc, cc])


@njit(cache=True, nogil=True)
def _pseudo_angles(red, green, blue, table, out):
    """Write pseudo-angles, which grow with atan2 and need one division; ``table`` (2,3,256) gives both components."""
    y0, y1, y2, x0, x1, x2 = table[0, 0], table[0, 1], table[0, 2], table[1, 0], table[1, 1], table[1, 2]
    for i in range(red.size):
        y = y0[red[i]] + y1[green[i]] + y2[blue[i]]
        x = x0[red[i]] + x1[green[i]] + x2[blue[i]]
        length = abs(x) + abs(y)
        turn = 1.0 - x / length if length > 0.0 else 0.0
        out[i] = turn if y >= 0.0 else -turn


@njit(cache=True, nogil=True)
def _densities_above(red, green, blue, table, bound, out):
    """Write the densities that reach ``bound``; return how many. ``table`` (3,256)."""
    t0, t1, t2 = table[0], table[1], table[2]
    n = 0
    for i in range(red.size):
        density = t0[red[i]] + t1[green[i]] + t2[blue[i]]
        if density >= bound:
            out[n] = density
            n += 1
    return n


@njit(cache=True, nogil=True)
def _remix(red, green, blue, table, out):
    """Write the grey levels (3,P) of ``table`` (3,3,256: output, input, level), below 2^31; clipped and truncated."""
    for k in range(3):
        t0, t1, t2, channel = table[k, 0], table[k, 1], table[k, 2], out[k]
        for i in range(red.size):
            value = np.int32(t0[red[i]] * t1[green[i]] * t2[blue[i]])
            channel[i] = np.uint8(value if value < 255 else 255)


def _recolour(seen: np.ndarray, table: np.ndarray) -> np.ndarray:
    out = np.empty_like(seen)
    ends = [np.maximum(table[:, c, seen[c].min()], table[:, c, seen[c].max()]) for c in range(3)]  # tables are monotone
    if (ends[0] * ends[1] * ends[2] < 2**31).all():
        _remix(*seen, table, out)
    else:  # a nearly absent stain scaled up beyond all bounds
        for k in range(3):
            light = table[k, 0][seen[0]] * table[k, 1][seen[1]] * table[k, 2][seen[2]]
            out[k] = np.minimum(light, 255).astype(np.uint8)
    return out


def _rank(quantile: float, count: int, percentile: str) -> float:
    rank = quantile * (count - 1)
    return round(rank) if percentile == "nearest" else rank


def _value(values: np.ndarray, from_top: float, true=float) -> float:
    """The value at a real rank from the top, interpolated after ``true``."""
    below = int(from_top)
    k = min(below + 2, values.size)
    top = np.sort(np.partition(values, values.size - k)[-k:])[::-1]
    near, far = true(top[below]), true(top[min(below + 1, k - 1)])
    return near + (far - near) * (from_top - below)


def _true_angle(pseudo: float) -> float:
    x = 1 - abs(pseudo)
    return math.atan2(math.copysign(1 - abs(x), pseudo), x)


def _directions(stained, od, plane, alpha, percentile, spare) -> np.ndarray:
    """Columns (3,2): the extreme directions within ``plane`` (3,2: second and first eigenvector)."""
    n = stained.shape[1]
    angles = spare[:n]
    _pseudo_angles(*stained, plane.T[::-1, :, None] * od, angles)
    high = _value(angles, n - 1 - _rank(0.01 * (100 - alpha), n, percentile), _true_angle)
    low = -_value(np.negative(angles, out=angles), _rank(0.01 * alpha, n, percentile), _true_angle)
    return plane @ np.array([[math.cos(low), math.cos(high)], [math.sin(low), math.sin(high)]])


def _maximum(seen, table, percentile, spare) -> float:
    """99th percentile of the density that ``table`` (3,256) gives, over all pixels."""
    p = seen.shape[1]
    from_top = p - 1 - _rank(0.01 * 99, p, percentile)
    sample = np.ascontiguousarray(seen[:, ::16])
    n = _densities_above(*sample, table, -math.inf, spare)
    guess = min(n, 2 * (int(from_top) // 16 + 8))  # twice the expected number: holds but for odd images
    bound = np.partition(spare[:n], n - guess)[n - guess]
    n = _densities_above(*seen, table, bound, spare)
    if n < int(from_top) + 2:
        n = _densities_above(*seen, table, -math.inf, spare)
    return _value(spare[:n], from_top)


def _estimate(seen, io, alpha, beta, percentile, min_pixels, od, limit):
    """(status code, maxima (2,), inverse (2,3)) of one image (3,P) of uint8; the last two None where it failed."""
    stained, spare = np.empty((3, seen.shape[1] + 1), np.uint8), np.empty(seen.shape[1])
    n = _stained(*seen, limit, stained)
    if n < max(min_pixels, 2):
        return TOO_FEW_PIXELS, None, None
    stained = stained[:, :n]
    shift = od[128]  # moments about a typical value, so that little cancels
    first, second = _moments(*stained, od - shift)
    mean = first / n
    covariance = (second[[0, 1, 2, 1, 3, 4, 2, 4, 5]].reshape(3, 3) - n * np.outer(mean, mean)) / (n - 1)
    values, vectors = np.linalg.eigh(covariance)
    if values[1] <= 4 * math.exp(2 * (mean.mean() + shift)) / (12 * io * io):
        return DEGENERATE, None, None
    plane = vectors[:, 1:] * np.where((mean + shift) @ vectors[:, 1:] < 0, -1, 1)
    matrix = _directions(stained, od, plane, alpha, percentile, spare)
    if not matrix[0, 0] > matrix[0, 1] + RED_TIE:
        matrix = matrix[:, ::-1]
    (a, b), (_, c) = matrix.T @ matrix
    if a * c - b * b < 1e-6:
        return DEGENERATE, None, None
    inverse = np.array([[c, -b], [-b, a]]) / (a * c - b * b) @ matrix.T
    maxima = np.array([_maximum(seen, row[:, None] * od, percentile, spare) for row in inverse])
    if not (np.isfinite(inverse).all() and np.isfinite(maxima).all()):
        return NON_FINITE, None, None
    return (NORMALISED, maxima, inverse) if (maxima >= 1e-6).all() else (DEGENERATE, None, None)


def macenko_fast_codes(
    images: torch.Tensor,
    reference: StainReference | None = None,
    *,
    io: float = 240,
    alpha: float = 1,
    beta: float = 0.15,
    percentile: str = "nearest",
    subsample: int | None = None,
    min_pixels: int = MIN_PIXELS,
) -> tuple[torch.Tensor, torch.Tensor]:
    """As :func:`wbcrepro.stain.macenko.macenko_codes`, for images on the CPU."""
    check_images(images)
    precision(percentile)
    if images.device.type != "cpu":
        raise UsageError(f"macenko_fast runs on a CPU, got images on {images.device}; use wbcrepro.stain.macenko there")
    reference = reference or default_reference("macenko")
    target, peak = np.asarray(reference.matrix), np.asarray(reference.maxima)
    od, limit = -np.log((np.arange(256) + 1) / io), darkest_kept_value(io, beta, torch.float64)
    step, codes, out = subsample or 1, [], torch.empty_like(images, memory_format=torch.contiguous_format)
    for image, result in zip(images.numpy(), out.numpy(), strict=True):
        whole = np.ascontiguousarray(image).reshape(3, -1)
        seen = whole if step == 1 else np.ascontiguousarray(image[:, ::step, ::step]).reshape(3, -1)
        code, maxima, inverse = _estimate(seen, io, alpha, beta, percentile, min_pixels, od, limit)
        codes.append(code)
        if code == NORMALISED:
            table = np.exp(-(target @ (inverse * (peak / maxima)[:, None]))[:, :, None] * od)
            table[:, 0] *= io
            whole = _recolour(whole, table)
        result[...] = whole.reshape(image.shape)
    return out, torch.tensor(codes, dtype=torch.int64)


def macenko_fast(images, reference=None, **options) -> tuple[torch.Tensor, list[str]]:
    """As :func:`wbcrepro.stain.macenko.macenko_normalise`, on one CPU core, several times faster."""
    out, codes = macenko_fast_codes(images, reference, **options)
    return out, status_names(codes)
