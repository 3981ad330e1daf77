"""The fast separation compiled for one CPU core (extra ``fast``: numba), image by image, in float32.

Same steps, start, statuses and contract as ``method="fast"`` of :mod:`wbcrepro.stain.snmf`; results agree to rounding.
What makes it fast: an image stays in the cache; densities are formed and summed in one pass and never stored before the
last; a quantile near an end looks only at the values beyond a bound that every 16th value suggests (where that
misleads, at all of them: the result is exact).
"""

import math

import numpy as np
import torch

from wbcrepro.errors import UsageError
from wbcrepro.stain.macenko import RED_TIE
from wbcrepro.stain.snmf import (
    BACKGROUND,
    DARK,
    DEGENERATE,
    EPSILON,
    EXTREMES,
    LEFT_OUT,
    NON_FINITE,
    SEPARATED,
    STAINED,
    TOO_FEW_PIXELS,
    Separation,
    sampling_step,
)
from wbcrepro.stain.stain_order import DARKEST

try:
    from numba import njit
except ImportError as error:
    raise UsageError(
        'method="compiled" needs numba, which is not installed; run: pip install "wbcrepro[fast]", or use '
        'method="fast", which needs torch only'
    ) from error

FAST = {"reassoc", "contract", "arcp", "nsz", "nnan"}  # sums may be reordered, and nothing is NaN after _clean
LEAST = np.float32(EPSILON)


@njit(cache=True, nogil=True, fastmath=FAST)
def _clean(image, out):
    """Write light (3,P) of at least 1e-6, with dark pixels white."""
    dark, white, black = np.float32(DARK), np.float32(1), np.float32(0)
    for i in range(image.shape[1]):
        r, g, b = image[0, i], image[1, i], image[2, i]
        least = max(white if max(r, max(g, b)) < dark else black, LEAST)
        out[0, i], out[1, i], out[2, i] = max(r, least), max(g, least), max(b, least)


@njit(cache=True, nogil=True, fastmath=FAST)
def _above(values, bound, out):
    """Write the values that reach ``bound``; return how many."""
    n = 0
    for i in range(values.size):
        out[n] = values[i]
        n += values[i] >= bound
    return n


def _upper(values: np.ndarray, share: float, spare: np.ndarray) -> tuple[float, float, float]:
    """The two values around the interpolated quantile ``1 - share``, the upper first, and the weight of the lower."""
    size = values.size
    from_top = share * (size - 1)
    k = min(int(from_top) + 2, size)
    sample = values[::16]
    guess = min(sample.size, 2 * (k // 16 + 8))  # twice the expected number: holds but for odd images
    n = _above(values, np.partition(sample, sample.size - guess)[sample.size - guess], spare)
    if n < k:
        n = _above(values, np.float32(-np.inf), spare)
    top = np.sort(np.partition(spare[:n], n - k)[n - k :])[::-1]
    below = int(from_top)
    return top[below], top[min(below + 1, k - 1)], from_top - below


@njit(cache=True, nogil=True, fastmath=FAST)
def _centre(od, b, out):
    """V = max(-log light, 1e-6) - B from the logarithm ``od`` (3,P); sums (3,), moments (6,), stained pixels."""
    s, m = np.zeros(3), np.zeros(6)
    size = od.shape[1]
    count = 0
    limit = np.float32(3 * STAINED)
    for start in range(0, size, 1024):  # short sums in float32, their totals in float64
        a0 = a1 = a2 = q0 = q1 = q2 = q3 = q4 = q5 = np.float32(0)
        for i in range(start, min(start + 1024, size)):
            x = max(-od[0, i], LEAST) - b[0]
            y = max(-od[1, i], LEAST) - b[1]
            z = max(-od[2, i], LEAST) - b[2]
            out[0, i], out[1, i], out[2, i] = x, y, z
            a0, a1, a2 = a0 + x, a1 + y, a2 + z
            q0, q1, q2 = q0 + x * x, q1 + x * y, q2 + x * z
            q3, q4, q5 = q3 + y * y, q4 + y * z, q5 + z * z
            count += x + y + z >= limit
        s += np.array([a0, a1, a2])
        m += np.array([q0, q1, q2, q3, q4, q5])
    return s, m, count


@njit(cache=True, nogil=True, fastmath=FAST)
def _beyond(v, bound, at):
    """Write the indices of the pixels of V (3,P) with a channel above ``bound``, few; return how many."""
    n = 0
    for start in range(0, v.shape[1], 256):
        stop = min(start + 256, v.shape[1])
        largest = bound
        for i in range(start, stop):
            largest = max(largest, max(v[0, i], max(v[1, i], v[2, i])))
        if largest > bound:
            for i in range(start, stop):
                if max(v[0, i], max(v[1, i], v[2, i])) > bound:
                    at[n] = i
                    n += 1
    return n


def _settling_pixels(v: np.ndarray, grid: np.ndarray, step: int) -> np.ndarray:
    """As ``snmf.settling_pixels``, for one image."""
    if step == 1:
        return grid
    on_grid, at, k = grid.max(0), np.empty(v.shape[1], np.int64), min(EXTREMES, v.shape[1])
    guess = min(on_grid.size, 2 * (k // step**2 + 4))  # twice the expected number: holds but for odd images
    n = _beyond(v, np.partition(on_grid, on_grid.size - guess)[on_grid.size - guess], at)
    if n < k:
        n = _beyond(v, np.float32(-np.inf), at)
    extremes = v[:, at[:n]]
    largest = extremes.max(0)
    limit = np.partition(largest, n - k)[n - k]
    grid = np.where(on_grid > limit, np.float32(0), grid)
    return np.concatenate([grid, extremes[:, largest > limit] / np.float32(step)], 1)


@njit(cache=True, nogil=True)
def _projections(w, sparsity):
    """Rows (4,3) and offsets (4,) that give both free and both lone densities of V; see ``snmf.best_densities``."""
    g = (w[:, 0] * w[:, 1]).sum()
    apart = 1 - g * g
    rows, offsets = np.empty((4, 3), np.float32), np.empty(4, np.float32)
    for c in range(3):
        for s in range(2):
            rows[s, c] = (w[c, s] - g * w[c, 1 - s]) / apart if apart > 1e-6 else w[c, s] / 2
            rows[2 + s, c] = w[c, s]
    offsets[:2], offsets[2:] = sparsity / (1 + g), sparsity
    return rows, offsets


@njit(cache=True, nogil=True, fastmath=FAST)
def _sums(v, w, sparsity):
    """gram (2,2) and cross (3,2) of the best densities of V (3,P), none of them stored."""
    r, o = _projections(w, sparsity)
    total = np.zeros(9)
    zero = np.float32(0)
    for start in range(0, v.shape[1], 1024):
        g0 = g1 = g2 = c0 = c1 = c2 = d0 = d1 = d2 = zero
        for i in range(start, min(start + 1024, v.shape[1])):
            x, y, z = v[0, i], v[1, i], v[2, i]
            free = r[0, 0] * x + r[0, 1] * y + r[0, 2] * z - o[0]
            lone = r[2, 0] * x + r[2, 1] * y + r[2, 2] * z - o[2]
            h = max(min(free, lone), zero)
            free = r[1, 0] * x + r[1, 1] * y + r[1, 2] * z - o[1]
            lone = r[3, 0] * x + r[3, 1] * y + r[3, 2] * z - o[3]
            k = max(min(free, lone), zero)
            g0, g1, g2 = g0 + h * h, g1 + h * k, g2 + k * k
            c0, c1, c2 = c0 + h * x, c1 + h * y, c2 + h * z
            d0, d1, d2 = d0 + k * x, d1 + k * y, d2 + k * z
        total += np.array([g0, g1, g2, c0, c1, c2, d0, d1, d2])
    return total


@njit(cache=True, nogil=True)
def _step(v, w, iterations, sparsity):
    """W (3,2), float64, after alternating exact minimisations, as ``snmf.exact_updates``; changes ``w``."""
    for _ in range(iterations):
        t = _sums(v, w, sparsity)
        for s in range(2):
            direction = np.maximum(t[3 + 3 * s : 6 + 3 * s] - t[1] * w[:, 1 - s], 0.0)
            norm = math.sqrt((direction * direction).sum())
            if norm > 1e-12:
                w[:, s] = direction / norm
    return w


@njit(cache=True, nogil=True, fastmath=FAST)
def _density(x, y, z, free, lone, free_offset, lone_offset, out):
    """Write one row of H (P,)."""
    f0, f1, f2, l0, l1, l2 = free[0], free[1], free[2], lone[0], lone[1], lone[2]
    for i in range(x.size):
        least = min(f0 * x[i] + f1 * y[i] + f2 * z[i] - free_offset, l0 * x[i] + l1 * y[i] + l2 * z[i] - lone_offset)
        out[i] = max(least, np.float32(0))


@njit(cache=True, nogil=True, fastmath=FAST)
def _residual(v, h, w):
    """Squared norms of V - W H and of V."""
    a, b, c, d, e, f = w[0, 0], w[0, 1], w[1, 0], w[1, 1], w[2, 0], w[2, 1]
    error, size = 0.0, 0.0
    for start in range(0, v.shape[1], 1024):
        q = t = np.float32(0)
        for i in range(start, min(start + 1024, v.shape[1])):
            x, y, z, j, k = v[0, i], v[1, i], v[2, i], h[0, i], h[1, i]
            t += x * x + y * y + z * z
            x, y, z = x - a * j - b * k, y - c * j - d * k, z - e * j - f * k
            q += x * x + y * y + z * z
        error, size = error + q, size + t
    return error, size


@njit(cache=True, nogil=True)
def _densities(v, w, sparsity, out):
    """Write H (2,P); return the squared norms of V - W H and of V."""
    r, o = _projections(w, sparsity)
    for s in range(2):
        _density(v[0], v[1], v[2], r[s], r[2 + s], o[s], o[2 + s], out[s])
    return _residual(v, out, w.astype(np.float32))


@njit(cache=True, nogil=True, fastmath=FAST)
def _mix(h, w, b, out):
    """Write -(W H + B) (3,P)."""
    for c in range(3):
        p, q, r = -w[c, 0], -w[c, 1], -b[c]
        for i in range(h.shape[1]):
            out[c, i] = p * h[0, i] + q * h[1, i] + r


@njit(cache=True, nogil=True)
def _edges(slopes, order, x, along, across):
    """The slopes of both stains: the ends of the energy, moved inwards where a stain would absorb less than nothing."""
    total = 0.0
    for i in range(x.size):
        total += max(x[i], 0.0) ** 2
    lowest, highest = -np.inf, np.inf
    for c in range(3):
        limit = -along[c] / (across[c] if across[c] != 0 else EPSILON)
        if across[c] > 0:
            lowest = max(lowest, limit)
        elif across[c] < 0:
            highest = min(highest, limit)
    passed, low, high = 0.0, slopes[order[0]], slopes[order[-1]]
    for at in order:
        before = passed
        passed += max(x[at], 0.0) ** 2
        if before < total * LEFT_OUT <= passed:
            low = slopes[at]
        if before < total * (1 - LEFT_OUT) <= passed:
            high = slopes[at]
            break
    return min(max(low, lowest), highest), min(max(high, lowest), highest)


def _start(plane: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """Two stains (3,2), as ``snmf.cone_stains``."""
    x, y = plane.T.astype(np.float32) @ seen
    slopes = y / np.maximum(x, LEAST)
    edges = _edges(slopes, np.argsort(slopes), x, plane[:, 0], plane[:, 1])
    stains = np.maximum(np.nan_to_num(plane[:, :1] + plane[:, 1:] * np.array(edges)), 0)
    norm = np.sqrt((stains * stains).sum(0))
    stains = stains / norm if (norm > 1e-12).all() else np.full((3, 2), 3**-0.5)
    return stains if stains[0, 0] > stains[0, 1] + RED_TIE else stains[:, ::-1].copy()


def _second_is_nuclear(od: np.ndarray, densities: np.ndarray) -> bool:
    """As ``stain_order.second_is_nuclear``, of OD (3,P) and densities (2,P)."""
    darkness = od.sum(0)
    rank = round((1 - DARKEST) * (darkness.size - 1))
    dark = darkness >= np.partition(darkness, rank)[rank]
    first, second = (row[dark].sum() / max(row.sum(), EPSILON) for row in densities)
    return second > first


def _one(image, h, spare, step, iterations, sparsity, order, background, min_pixels):
    """W, B, relative error and status of one image float32 (3,H,W); writes H (2,P)."""
    light, v, tail = spare
    flat = image.reshape(3, -1)
    finite = math.isfinite(flat.sum())
    _clean(flat if finite else np.where(np.isfinite(flat), flat, np.float32(1)), light)
    b = np.zeros(3, np.float32)
    if background:
        ends = [_upper(channel, BACKGROUND, tail) for channel in light]
        od = [(*np.maximum(-np.log(end[:2]), EPSILON), end[2]) for end in ends]  # the brightest has the least OD
        b = np.array([_interpolated(end) for end in od], np.float32)
    np.log(light, out=light)
    sums, m, stained = _centre(light, b, v)
    p = v.shape[1]
    values, vectors = np.linalg.eigh(m[[0, 1, 2, 1, 3, 4, 2, 4, 5]].reshape(3, 3) / p)
    plane = vectors[:, [2, 1]] * np.where(sums @ vectors[:, [2, 1]] < 0, -1, 1)
    grid = np.ascontiguousarray(v.reshape(image.shape)[:, ::step, ::step].reshape(3, -1))
    seen = _settling_pixels(v, grid, step)
    w = _step(seen, _start(plane, seen), iterations, sparsity)
    error, size = _densities(v, w, sparsity, h)
    if order == "dark_nucleus":
        if _second_is_nuclear(grid, h.reshape(2, *image.shape[1:])[:, ::step, ::step].reshape(2, -1)):
            w, h[:] = w[:, ::-1], h[::-1].copy()
    noise = 4 * math.exp(2 * (sums / p + b).mean()) / (12 * 255**2)
    code = DEGENERATE if values[1] <= noise else SEPARATED
    code = TOO_FEW_PIXELS if stained < min_pixels else code
    return w, b, math.sqrt(error / size) if size > 0 else 0.0, code if finite else NON_FINITE


def separate_compiled(images, iterations, sparsity, subsample, order, background, min_pixels) -> Separation:
    """:func:`wbcrepro.stain.snmf.separate` for images float32 (N,3,H,W) on the CPU."""
    if images.device.type != "cpu" or images.dtype != torch.float32:
        raise UsageError(
            f'method="compiled" is for float32 on a CPU, got {images.dtype} on {images.device}; use "fast"'
        )
    n, _, height, width = images.shape
    p, step = height * width, sampling_step(height, width, subsample)
    found = [torch.empty(n, 3, 2), torch.empty(n, 2, p), torch.empty(n, 3, 1), torch.empty(n)]
    codes = torch.empty(n, dtype=torch.int64)
    spare = tuple(np.empty(shape, np.float32) for shape in ((3, p), (3, p), p + 1))
    w, h, b, error = (values.numpy() for values in found)
    options = (step, iterations, sparsity, order, background, min_pixels)
    for i, image in enumerate(images.contiguous().numpy()):
        w[i], b[i, :, 0], error[i], codes[i] = _one(image, h[i], spare, *options)
    return Separation(*found, codes)


def transfer_compiled(found: Separation, donors: torch.Tensor, out: torch.Tensor) -> None:
    """Write all views (N,K,3,H,W) of ``donors`` int64 (N,K), as ``augmentation.restain`` makes them; float32, CPU."""
    densities, stains, background = found.H.numpy(), found.W.numpy(), found.B.numpy()[:, :, 0]
    spare = np.empty(densities.shape[2] + 1, np.float32)
    mixed = np.empty((3, densities.shape[2]), np.float32)
    peaks = np.array([[_interpolated(_upper(row, 0.01, spare)) for row in h] for h in densities]) + EPSILON
    for row, chosen in enumerate(donors.tolist()):
        for view, donor in enumerate(chosen):
            scaled = (stains[donor] * (peaks[donor] / peaks[row])).astype(np.float32)
            _mix(densities[row], scaled, background[donor], mixed)  # stays in the cache; ``out`` is written once
            np.exp(mixed, out=out[row, view].numpy().reshape(3, -1))


def _interpolated(ends: tuple[float, float, float]) -> float:
    upper, lower, part = ends
    return upper + (lower - upper) * part
