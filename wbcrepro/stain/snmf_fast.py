"""The fast separation compiled for one CPU core (extra ``fast``: numba), image by image, in float32.

Same steps, start, statuses and contract as ``method="fast"`` of :mod:`wbcrepro.stain.snmf`; results agree to rounding.
What makes it fast: few passes over the pixels (:mod:`wbcrepro.stain.snmf_kernels`); the optical density V = -log - B is
never stored, only the logarithm; a quantile near an end looks only at the values beyond a bound that a sample suggests
(where that misleads, at all of them: the result is exact); and which stain is the nucleus's is decided on the pixels
that settled W, before there are densities to swap.
"""

import math

import numpy as np
import torch

from wbcrepro.errors import UsageError
from wbcrepro.stain import snmf_kernels as kernels
from wbcrepro.stain.macenko import RED_TIE
from wbcrepro.stain.snmf import (
    BACKGROUND,
    DEGENERATE,
    EPSILON,
    EXTREMES,
    NON_FINITE,
    SEPARATED,
    TOO_FEW_PIXELS,
    Separation,
    sampling_step,
)
from wbcrepro.stain.stain_order import DARKEST

SAMPLED = 61  # every so many values of a channel say where its tail begins; odd, or it may see one column only


def _upper_quantile(values: np.ndarray, share: float) -> float:
    """The interpolated quantile ``1 - share``, ``share`` small."""
    from_top = share * (values.size - 1)
    below = int(from_top)
    sample = values[::SAMPLED]
    expected = from_top / SAMPLED
    guess = min(sample.size, int(expected + 4 * math.sqrt(expected)) + 4)  # holds but for odd images
    tail = values[values >= np.partition(sample, sample.size - guess)[sample.size - guess]]
    tail = tail if tail.size >= below + 2 else values
    at = tail.size - 1 - below
    ends = np.partition(tail, (max(at - 1, 0), at))
    upper, lower = float(ends[at]), float(ends[max(at - 1, 0)])
    return upper + (lower - upper) * (from_top - below)


def _settling_pixels(log, b, grid, on_grid, step: int) -> np.ndarray:
    """As ``snmf.settling_pixels``, for one image; ``on_grid`` (G,) is the largest channel of ``grid`` (3,G)."""
    if step == 1:
        return grid
    k = min(EXTREMES, log.shape[1])
    guess = min(on_grid.size, 2 * (k // step**2 + 4))  # twice the expected number: holds but for odd images
    extremes = kernels.above(log, b, np.partition(on_grid, on_grid.size - guess)[on_grid.size - guess])
    if extremes.shape[1] < k:
        extremes = kernels.above(log, b, np.float32(-np.inf))
    largest = extremes.max(0)
    limit = np.partition(largest, largest.size - k)[largest.size - k]
    grid = np.where(on_grid > limit, np.float32(0), grid)
    return np.concatenate([grid, extremes[:, largest > limit] / np.float32(step)], 1)


def _start(plane: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """Two stains (3,2), as ``snmf.cone_stains``."""
    keys = kernels.weighted_slopes(plane.astype(np.float32), seen)
    keys.sort()
    slopes = np.array(kernels.edges(keys, plane[:, 0], plane[:, 1]))
    stains = np.maximum(np.nan_to_num(plane[:, :1] + plane[:, 1:] * slopes), 0)
    norm = np.sqrt((stains * stains).sum(0))
    stains = stains / norm if (norm > 1e-12).all() else np.full((3, 2), 3**-0.5)
    return stains if stains[0, 0] > stains[0, 1] + RED_TIE else stains[:, ::-1].copy()


def _second_is_nuclear(v: np.ndarray, w: np.ndarray, sparsity: float) -> bool:
    """As ``stain_order.second_is_nuclear``, of the best densities of V (3,G)."""
    darkness = v[0] + v[1] + v[2]
    rank = round((1 - DARKEST) * (darkness.size - 1))
    first_dark, second_dark, first, second = kernels.dark_densities(v, np.partition(darkness, rank)[rank], w, sparsity)
    return second_dark / max(second, EPSILON) > first_dark / max(first, EPSILON)


def _one(image, h, log, step, iterations, sparsity, order, background, min_pixels):
    """W, B, relative error and status of one image float32 (3,H,W); writes H (2,P), and ``log`` (3,P) for itself."""
    flat = image.reshape(3, -1)
    sums, finite = kernels.logarithm(flat, log)
    if not finite:
        flat = np.where(np.isfinite(flat), flat, np.float32(1))
        sums, _ = kernels.logarithm(flat, log)
    b = np.zeros(3, np.float32)
    if background:
        b = np.array([-_upper_quantile(channel, BACKGROUND) for channel in log], np.float32)
    mean, moments = sums[:3] / log.shape[1], sums[[3, 4, 5, 4, 6, 7, 5, 7, 8]].reshape(3, 3) / log.shape[1]
    values, vectors = np.linalg.eigh(moments + np.outer(mean, b) + np.outer(b, mean) + np.outer(b, b))  # of V V'
    plane = vectors[:, [2, 1]] * np.where((mean + b) @ vectors[:, [2, 1]] > 0, -1, 1)  # the way that V = -log - B is
    grid, on_grid = kernels.every(log.reshape(image.shape), b, step)
    seen = _settling_pixels(log, b, grid, on_grid, step)
    w = _start(plane, seen)
    kernels.exact_updates(seen, w, iterations, sparsity)
    if order == "dark_nucleus" and _second_is_nuclear(grid, w, sparsity):
        w = w[:, ::-1].copy()
    error, size, stained = kernels.densities(log, b, w, sparsity, h)
    noise = 4 * math.exp(-2 * mean.mean()) / (12 * 255**2)
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
    log = np.empty((3, p), np.float32)
    w, h, b, error = (values.numpy() for values in found)
    options = (step, iterations, sparsity, order, background, min_pixels)
    for i, image in enumerate(images.contiguous().numpy()):
        w[i], b[i, :, 0], error[i], codes[i] = _one(image, h[i], log, *options)
    return Separation(*found, codes)


def transfer_compiled(found: Separation, donors: torch.Tensor, out: torch.Tensor) -> None:
    """Write all views (N,K,3,H,W) of ``donors`` int64 (N,K), as ``augmentation.restain`` makes them; float32, CPU."""
    densities, stains, background = found.H.numpy(), found.W.numpy(), found.B.numpy()[:, :, 0]
    peaks = np.array([[_upper_quantile(row, 0.01) for row in h] for h in densities]) + EPSILON
    views = out.numpy()
    for row, chosen in enumerate(donors.tolist()):
        for view, donor in enumerate(chosen):
            scaled = (stains[donor] * (peaks[donor] / peaks[row])).astype(np.float32)
            kernels.light(densities[row], scaled, background[donor], views[row, view].reshape(3, -1))
