"""Passes over the pixels of one image, compiled by numba (extra ``fast``), of which :mod:`wbcrepro.stain.snmf_fast` is
made.

An image of 224 px does not fit into the cache of a core, so that a pass costs its traffic and what matters is to have
few: one turns light into its logarithm and sums all that is wanted of it, one turns that into densities and measures
what they leave, one turns densities into a re-stained image. LLVM vectorises such a loop, with a logarithm or an
exponential in it too (:mod:`wbcrepro.stain.float32_math`), where it runs from zero over contiguous rows and its
constants are numbers, not elements of an array. Hence the pairs of an inner function for ``SHORT`` pixels, which sums
in float32, and an outer one, which adds up in float64: that is worth a factor of ten.
"""

import math

import numpy as np

from wbcrepro.stain.float32_math import FAST, INFINITE, MAGNITUDE, ONE, ZERO, exp, magnitude, natural_log, njit
from wbcrepro.stain.snmf import DARK, EPSILON, LEFT_OUT, STAINED

LEAST, DARKEST_KEPT, STAINED_SUM = np.float32(EPSILON), np.float32(DARK), np.float32(3 * STAINED)
SHORT = 1024  # terms of a sum in float32


@njit(cache=True, nogil=True)
def _rows(array, start, stop):
    """Contiguous parts of the three rows; those of ``array[:, start:stop]`` may have gaps, for all numba knows."""
    return array[0, start:stop], array[1, start:stop], array[2, start:stop]


@njit(cache=True, nogil=True, fastmath=FAST)
def _logarithm(red, green, blue, out_red, out_green, out_blue):
    largest = np.int32(0)
    a0 = a1 = a2 = q0 = q1 = q2 = q3 = q4 = q5 = ZERO
    for i in range(red.size):
        x, y, z = red[i], green[i], blue[i]
        largest = max(largest, magnitude(x), magnitude(y), magnitude(z))
        least = ONE if max(x, y, z) < DARKEST_KEPT else LEAST
        x, y, z = natural_log(max(x, least)), natural_log(max(y, least)), natural_log(max(z, least))
        x, y, z = min(x, -LEAST), min(y, -LEAST), min(z, -LEAST)
        out_red[i], out_green[i], out_blue[i] = x, y, z
        a0, a1, a2 = a0 + x, a1 + y, a2 + z
        q0, q1, q2 = q0 + x * x, q1 + x * y, q2 + x * z
        q3, q4, q5 = q3 + y * y, q4 + y * z, q5 + z * z
    return (a0, a1, a2, q0, q1, q2, q3, q4, q5), largest < INFINITE


@njit(cache=True, nogil=True)
def logarithm(image, out):
    """Write the logarithm (3,P), at most -1e-6, of ``image`` float32 (3,P) with dark pixels white.

    Returns its sums and second moments (9,), and whether all of the image is finite; if not, nothing else means
    anything.
    """
    total, finite = np.zeros(9), True
    for start in range(0, image.shape[1], SHORT):
        stop = start + SHORT
        sums, fine = _logarithm(*_rows(image, start, stop), *_rows(out, start, stop))
        total += np.array(sums)
        finite &= fine
    return total, finite


@njit(cache=True, nogil=True)
def every(log, b, step):
    """V = -log - B (3,G) of every ``step``-th row and column of log (3,H,W), and its largest channel (G,)."""
    height, width = (log.shape[1] + step - 1) // step, (log.shape[2] + step - 1) // step
    v, largest = np.empty((3, height * width), np.float32), np.empty(height * width, np.float32)
    for c in range(3):
        for row in range(height):
            for column in range(width):
                v[c, row * width + column] = -log[c, row * step, column * step] - b[c]
    for i in range(largest.size):
        largest[i] = max(v[0, i], v[1, i], v[2, i])
    return v, largest


@njit(cache=True, nogil=True, fastmath=FAST)
def _largest(x, y, z, b0, b1, b2):
    """The largest channel of V, at least 0."""
    largest = np.int32(0)
    for i in range(x.size):  # as bits: of floats, numba's maximum minds NaN, and LLVM sees no reduction
        largest = max(largest, magnitude(max(-x[i] - b0, -y[i] - b1, -z[i] - b2, ZERO)))
    return np.int32(largest).view(np.float32)


@njit(cache=True, nogil=True)
def above(log, b, bound):
    """V = -log - B (3,n) of the pixels of log (3,P) with a channel above ``bound``, few."""
    at, n = np.empty(log.shape[1], np.int64), 0
    for start in range(0, log.shape[1], 128):
        x, y, z = _rows(log, start, start + 128)
        if _largest(x, y, z, b[0], b[1], b[2]) > bound:
            for i in range(x.size):
                at[n] = start + i
                n += max(-x[i] - b[0], -y[i] - b[1], -z[i] - b[2]) > bound
    v = np.empty((3, n), np.float32)
    for c in range(3):
        for i in range(n):
            v[c, i] = -log[c, at[i]] - b[c]
    return v


@njit(cache=True, nogil=True)
def weighted_slopes(plane, v):
    """Keys int64 (Q,) that sort as the slope y/x of the pixels of V (3,Q) in ``plane`` (3,2); the low half is x^2."""
    keys = np.empty(v.shape[1], np.int64)
    a, b, c, d, e, f = plane[0, 0], plane[1, 0], plane[2, 0], plane[0, 1], plane[1, 1], plane[2, 1]
    for i in range(v.shape[1]):
        x, y = a * v[0, i] + b * v[1, i] + c * v[2, i], d * v[0, i] + e * v[1, i] + f * v[2, i]
        bits = np.float32(y / max(x, LEAST)).view(np.int32)
        energy = np.float32(max(x, ZERO) * max(x, ZERO)).view(np.int32)
        rank = bits if bits >= 0 else bits ^ MAGNITUDE  # negative floats sort backwards
        keys[i] = (np.int64(rank) << 32) | np.int64(energy)
    return keys


@njit(cache=True, nogil=True)
def _slope(key):
    rank = np.int32(key >> 32)
    return np.int32(rank if rank >= 0 else rank ^ MAGNITUDE).view(np.float32)


@njit(cache=True, nogil=True)
def edges(keys, along, across):
    """The slopes of both stains of sorted ``keys``: the ends of the energy, moved inwards where one would emit light.

    ``along`` and ``across`` (3,) span the plane: a stain of slope s is ``along + s across``.
    """
    total = 0.0
    for key in keys:
        total += np.int32(key & MAGNITUDE).view(np.float32)
    passed, low, high = 0.0, _slope(keys[0]), _slope(keys[-1])
    for key in keys:
        before = passed
        passed += np.int32(key & MAGNITUDE).view(np.float32)
        if before < total * LEFT_OUT <= passed:
            low = _slope(key)
        if before < total * (1 - LEFT_OUT) <= passed:
            high = _slope(key)
            break
    lowest, highest = -np.inf, np.inf
    for c in range(3):
        limit = -along[c] / (across[c] if across[c] != 0 else EPSILON)
        if across[c] > 0:
            lowest = max(lowest, limit)
        elif across[c] < 0:
            highest = min(highest, limit)
    return min(max(low, lowest), highest), min(max(high, lowest), highest)


@njit(cache=True, nogil=True)
def _projections(w, sparsity):
    """Of stain 0 and 1 the free and the lone density, as three factors of V and an offset to take off, all float32.

    See ``snmf.best_densities``. In tuples, since an array might be what a loop writes to, for all that LLVM knows.
    """
    g = (w[:, 0] * w[:, 1]).sum()
    apart = 1 - g * g
    free = np.empty((3, 2))
    for s in range(2):
        free[:, s] = (w[:, s] - g * w[:, 1 - s]) / apart if apart > 1e-6 else w[:, s] / 2
    one, two = sparsity / (1 + g), sparsity
    return _row(free[:, 0], one), _row(w[:, 0], two), _row(free[:, 1], one), _row(w[:, 1], two)


@njit(cache=True, nogil=True)
def _six(w):
    first, second = (np.float32(w[0, 0]), np.float32(w[0, 1])), (np.float32(w[1, 0]), np.float32(w[1, 1]))
    return (*first, *second, np.float32(w[2, 0]), np.float32(w[2, 1]))


@njit(cache=True, nogil=True)
def _row(factors, offset):
    return np.float32(factors[0]), np.float32(factors[1]), np.float32(factors[2]), np.float32(offset)


@njit(cache=True, nogil=True, fastmath=FAST)
def _density(x, y, z, free, lone):
    """One density of one pixel of V."""
    least = min(free[0] * x + free[1] * y + free[2] * z - free[3], lone[0] * x + lone[1] * y + lone[2] * z - lone[3])
    return max(least, ZERO)


@njit(cache=True, nogil=True, fastmath=FAST)
def _sums(red, green, blue, free_h, lone_h, free_k, lone_k):
    g0 = g1 = g2 = c0 = c1 = c2 = d0 = d1 = d2 = ZERO
    for i in range(red.size):
        x, y, z = red[i], green[i], blue[i]
        h, k = _density(x, y, z, free_h, lone_h), _density(x, y, z, free_k, lone_k)
        g0, g1, g2 = g0 + h * h, g1 + h * k, g2 + k * k
        c0, c1, c2 = c0 + h * x, c1 + h * y, c2 + h * z
        d0, d1, d2 = d0 + k * x, d1 + k * y, d2 + k * z
    return g0, g1, g2, c0, c1, c2, d0, d1, d2


@njit(cache=True, nogil=True)
def exact_updates(v, w, iterations, sparsity):
    """As ``snmf.exact_updates``, for one image: V float32 (3,Q); changes W float64 (3,2)."""
    for _ in range(iterations):
        free_h, lone_h, free_k, lone_k = _projections(w, sparsity)
        t = np.zeros(9)  # gram: 3; cross: 3 of the first stain, 3 of the second
        for start in range(0, v.shape[1], SHORT):
            t += np.array(_sums(*_rows(v, start, start + SHORT), free_h, lone_h, free_k, lone_k))
        for s in range(2):
            direction = np.maximum(t[3 + 3 * s : 6 + 3 * s] - t[1] * w[:, 1 - s], 0.0)
            norm = math.sqrt((direction * direction).sum())
            if norm > 1e-12:
                w[:, s] = direction / norm


@njit(cache=True, nogil=True, fastmath=FAST)
def _dark(red, green, blue, limit, free_h, lone_h, free_k, lone_k):
    h_dark = k_dark = h_all = k_all = ZERO
    for i in range(red.size):
        x, y, z = red[i], green[i], blue[i]
        h, k = _density(x, y, z, free_h, lone_h), _density(x, y, z, free_k, lone_k)
        dark = ONE if x + y + z >= limit else ZERO
        h_dark, k_dark, h_all, k_all = h_dark + dark * h, k_dark + dark * k, h_all + h, k_all + k
    return h_dark, k_dark, h_all, k_all


@njit(cache=True, nogil=True)
def dark_densities(v, limit, w, sparsity):
    """Sums of both densities of V (3,G) where the channels of V add up to ``limit`` or more, then everywhere."""
    free_h, lone_h, free_k, lone_k = _projections(w, sparsity)
    return _dark(v[0], v[1], v[2], limit, free_h, lone_h, free_k, lone_k)


@njit(cache=True, nogil=True, fastmath=FAST)
def _separate(red, green, blue, b, free_h, lone_h, free_k, lone_k, w, out_h, out_k):
    error = size = stained = ZERO
    for i in range(red.size):
        x, y, z = -red[i] - b[0], -green[i] - b[1], -blue[i] - b[2]
        h, k = _density(x, y, z, free_h, lone_h), _density(x, y, z, free_k, lone_k)
        out_h[i], out_k[i] = h, k
        size += x * x + y * y + z * z
        stained += ONE if x + y + z >= STAINED_SUM else ZERO
        x, y, z = x - w[0] * h - w[1] * k, y - w[2] * h - w[3] * k, z - w[4] * h - w[5] * k
        error += x * x + y * y + z * z
    return error, size, stained


@njit(cache=True, nogil=True)
def densities(log, b, w, sparsity, out):
    """Write H (2,P) of V = -log - B; return the squared norms of V - W H and of V, and how many pixels are stained."""
    free_h, lone_h, free_k, lone_k = _projections(w, sparsity)
    background, stains = (b[0], b[1], b[2]), _six(w)
    total = np.zeros(3)
    for start in range(0, log.shape[1], SHORT):
        stop = start + SHORT
        x, y, z = _rows(log, start, stop)
        h, k = out[0, start:stop], out[1, start:stop]
        total += np.array(_separate(x, y, z, background, free_h, lone_h, free_k, lone_k, stains, h, k))
    return total


@njit(cache=True, nogil=True, fastmath=FAST)
def light(h, w, b, out):
    """Write exp(-(W H + B)) (3,P) of H (2,P), W (3,2) and B (3,), all float32."""
    w00, w01, w10, w11, w20, w21 = w[0, 0], w[0, 1], w[1, 0], w[1, 1], w[2, 0], w[2, 1]
    b0, b1, b2 = b[0], b[1], b[2]
    for i in range(h.shape[1]):
        p, q = -h[0, i], -h[1, i]
        out[0, i] = exp(w00 * p + w01 * q - b0)
        out[1, i] = exp(w10 * p + w11 * q - b1)
        out[2, i] = exp(w20 * p + w21 * q - b2)
