"""Macenko stain normalisation, batched, on any device, with a status for every image.

Source: Macenko et al., ISBI 2009; the conventions (``+ 1``, ``Io`` 240, percentiles of angles over masked pixels,
maxima over all pixels, truncation) are those of torchstain, which `decoupled` uses. ``percentile="linear"`` gives its
NumPy backend (float64, interpolated), ``"nearest"`` its torch backend (float32, nearest rank).

Differs from torchstain in: images that it fails on or damages (blank, constant, one stain, too few stained pixels) come
back unchanged with a status; eigenvectors have a stated sign; eigenvectors and least squares are closed forms.
Differs from the released code of `decoupled` in: the normalised image is really used (there, an axis error makes every
image fall back to the raw one), and the pre-check counts the pixels that the estimate uses.

Nothing on the way reads a value back from the device: no ``.item()``, no branch on data.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from wbcrepro.stain.closed_forms import least_squares_inverse, symmetric_eigenvectors
from wbcrepro.stain.optical_density import check_images, optical_density, quantisation_variance, stained, transmitted
from wbcrepro.stain.percentiles import precision, ranks, value_at
from wbcrepro.stain.reference import StainReference, default_reference

STATUSES = ("normalised", "too_few_pixels", "degenerate", "non_finite")
NORMALISED, TOO_FEW_PIXELS, DEGENERATE, NON_FINITE = range(4)
MIN_PIXELS = 50  # with fewer, a 1st percentile is the minimum; also the number in the released code of `decoupled`
CHUNK_PIXELS = {"cpu": 2**19, "cuda": 2**24}  # a CPU is fastest while a chunk stays in its cache


@dataclass(frozen=True)
class StainEstimate:
    """Of N images: ``matrix`` (N,3,2), its ``inverse`` (N,2,3), ``maxima`` (N,2), ``codes`` (N,), ``pixels`` (N,).

    ``inverse`` maps OD to densities (least squares), ``codes`` index ``STATUSES``, ``pixels`` counts the stained ones.
    """

    matrix: torch.Tensor
    inverse: torch.Tensor
    maxima: torch.Tensor
    codes: torch.Tensor
    pixels: torch.Tensor


def status_names(codes: torch.Tensor) -> list[str]:
    """Status codes (N,) as words: the one place where they travel to the host."""
    return [STATUSES[code] for code in codes.tolist()]


def point_along(vectors: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
    """Eigenvectors (N,3,K) with the sign that makes them point the way the mean OD (N,3) does.

    A library may return either sign. With this one the first component of stained pixels is positive on real smears,
    so that their angles stay within (0, pi) and no percentile is taken across the cut of the arc tangent.
    """
    return torch.where((vectors * mean[:, :, None]).sum(1, keepdim=True) < 0, -vectors, vectors)


RED_TIE = 1e-6
"""Unit vectors whose red entries differ by less are equally red."""


def order_by_red(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Two directions (N,3) as columns (N,3,2); the one that absorbs more red (haematoxylin-like) becomes column 0.

    A tie within ``RED_TIE`` (an image without red) counts as equal, so that rounding does not decide the order.
    """
    keep = first[:, :1] > second[:, :1] + RED_TIE
    return torch.stack([torch.where(keep, first, second), torch.where(keep, second, first)], 2)


def weighted_covariance(od: torch.Tensor, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Covariance (N,3,3) and mean (N,3), float64, of OD (N,3,P) where ``weights`` (N,1,P) is 1, and the count (N,)."""
    pixels = weights.sum((1, 2)).double()
    mean = torch.bmm(od, weights.mT) / pixels.to(od.dtype).clamp_min(1)[:, None, None]
    centred = (od - mean).mul_(weights)  # centre first: nothing cancels in float32
    covariance = torch.bmm(centred, centred.mT).double() / (pixels - 1).clamp_min(1)[:, None, None]
    return covariance, mean[:, :, 0].double(), pixels


def extreme_directions(od, weights, plane, pixels, *, alpha, percentile) -> tuple[torch.Tensor, torch.Tensor]:
    """Unit directions (N,3) at the ``alpha``-th lowest and highest percentile of the angle within ``plane`` (N,3,2)."""
    # The angle runs from the second eigenvector towards the first, as in torchstain.
    first, second = torch.bmm(plane.mT.to(od.dtype), od).unbind(1)
    angles = torch.atan2(first, second)
    k = min(od.shape[2], math.ceil(alpha / 100 * od.shape[2]) + 2)
    from_top = (pixels - 1).clamp_min(0) - ranks(0.01 * (100 - alpha), pixels, percentile)
    excluded = weights[:, 0].reciprocal().sub_(1)  # 0 or inf; adding it is several times faster than torch.where
    lowest = value_at(angles + excluded, ranks(0.01 * alpha, pixels, percentile), k)
    highest = -value_at(excluded - angles, from_top, k)
    return tuple(plane[:, :, 1] * a.cos() + plane[:, :, 0] * a.sin() for a in (lowest[:, None], highest[:, None]))


def maximal_densities(od: torch.Tensor, inverse: torch.Tensor, percentile: str) -> torch.Tensor:
    """99th percentile (N,2) of the densities ``inverse`` (N,2,3) @ OD (N,3,P) over all pixels, background included."""
    n, _, p = od.shape
    negated = torch.bmm(-inverse.to(od.dtype), od).reshape(2 * n, p)
    counts = torch.full((2 * n,), p, device=od.device)
    from_top = p - 1 - ranks(0.01 * 99, counts, percentile)
    return -value_at(negated, from_top, min(p, math.ceil(0.01 * p) + 2)).reshape(n, 2)


def estimate_from_od(
    od: torch.Tensor,
    mask: torch.Tensor,
    *,
    io: float = 240,
    alpha: float = 1,
    percentile: str = "nearest",
    order: Callable = order_by_red,
    min_pixels: int = MIN_PIXELS,
) -> StainEstimate:
    """Both stains of each OD (N,3,P), directions from the masked (N,P) pixels, maxima from all; float64."""
    weights = mask[:, None].to(od.dtype)
    covariance, mean, pixels = weighted_covariance(od, weights)
    values, vectors = symmetric_eigenvectors(covariance)
    plane = point_along(vectors[:, :, :2], mean)
    matrix = order(*extreme_directions(od, weights, plane, pixels, alpha=alpha, percentile=percentile))
    inverse, determinant = least_squares_inverse(matrix)
    maxima = maximal_densities(od, inverse, percentile)
    # One stain stored in whole grey levels still scatters across its line; less than that is no second stain.
    one_stain = values[:, 1] <= 4 * quantisation_variance(mean.mean(1), io)
    codes = torch.zeros_like(pixels, dtype=torch.int64)
    codes = codes.masked_fill(one_stain | (determinant < 1e-6) | (maxima < 1e-6).any(1), DEGENERATE)
    codes = codes.masked_fill(~(matrix.isfinite().all(2).all(1) & maxima.isfinite().all(1)), NON_FINITE)
    codes = codes.masked_fill(pixels < min_pixels, TOO_FEW_PIXELS)
    return StainEstimate(matrix, inverse, maxima, codes, pixels.long())


def estimate_stains(
    images: torch.Tensor, *, io=240, alpha=1, beta=0.15, percentile="nearest", subsample=None, min_pixels=MIN_PIXELS
) -> StainEstimate:
    """Stain matrices and maxima of uint8 images (N,3,H,W); ``subsample=s`` looks at every s-th row and column only."""
    check_images(images)
    dtype = precision(percentile)
    step = subsample or 1
    seen = images[:, :, ::step, ::step]
    od = optical_density(seen, io, dtype)
    mask = stained(seen, io, beta, dtype)
    return estimate_from_od(od, mask, io=io, alpha=alpha, percentile=percentile, min_pixels=min_pixels)


def recolour(images, od, estimate: StainEstimate, reference: StainReference, io: float = 240) -> torch.Tensor:
    """Images (N,3,H,W) with the reference's stains in place of their own; unchanged where the estimate failed.

    Un-mixing, scaling and mixing again are linear, hence one 3x3 matrix an image. Overwrites nothing.
    """
    ok = (estimate.codes == NORMALISED)[:, None, None]
    like = {"dtype": torch.float64, "device": images.device}
    target, peak = torch.tensor(reference.matrix, **like), torch.tensor(reference.maxima, **like)
    scale = peak / estimate.maxima
    change = torch.where(ok, target @ (scale[:, :, None] * estimate.inverse), 0).to(od.dtype)
    out = transmitted(change, od, io).reshape(images.shape)
    chosen = (ok[..., None] * 255).to(torch.uint8)  # three bit operations: several times faster than torch.where
    return out.bitwise_xor_(images).bitwise_and_(chosen).bitwise_xor_(images)


def in_chunks(step: Callable, images: torch.Tensor, chunk: int | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Run ``step(part) -> (images, codes)`` over parts of (N,3,H,W) into one pair of outputs on the same device."""
    check_images(images)
    budget = CHUNK_PIXELS.get(images.device.type, CHUNK_PIXELS["cpu"])
    size = chunk or max(1, budget // max(1, images.shape[2] * images.shape[3]))
    # glibc gives freed blocks back to the kernel, to be faulted in again at the next step, until it has seen a larger
    # one come and go. On a CPU that is half of the time; this untouched one costs microseconds.
    torch.empty(31 * 2**20, dtype=torch.uint8)
    out = torch.empty_like(images)
    codes = torch.empty(len(images), dtype=torch.int64, device=images.device)
    for start in range(0, len(images), size):
        part = slice(start, start + size)
        out[part], codes[part] = step(images[part])
    return out, codes


def macenko_codes(
    images: torch.Tensor,
    reference: StainReference | None = None,
    *,
    io: float = 240,
    alpha: float = 1,
    beta: float = 0.15,
    percentile: str = "nearest",
    subsample: int | None = None,
    min_pixels: int = MIN_PIXELS,
    chunk: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """As :func:`macenko_normalise`, with the status as an int64 tensor (N,) of indices into ``STATUSES``."""
    reference = reference or default_reference("macenko")

    def step(part):
        od = optical_density(part, io, precision(percentile))
        if subsample and subsample > 1:
            options = {"io": io, "alpha": alpha, "beta": beta, "percentile": percentile}
            estimate = estimate_stains(part, subsample=subsample, min_pixels=min_pixels, **options)
        else:
            mask = stained(part, io, beta, od.dtype)
            estimate = estimate_from_od(od, mask, io=io, alpha=alpha, percentile=percentile, min_pixels=min_pixels)
        return recolour(part, od, estimate, reference, io), estimate.codes

    return in_chunks(step, images, chunk)


def macenko_normalise(images, reference=None, **options) -> tuple[torch.Tensor, list[str]]:
    """Normalise uint8 images (N,3,H,W) to ``reference``; returns images on the same device and a status for each.

    Options: ``io`` 240, ``alpha`` 1 (percent), ``beta`` 0.15, ``percentile`` "nearest" or "linear", ``subsample``
    (every s-th row and column for the estimate; the result still covers every pixel), ``min_pixels`` 50, ``chunk``.
    Status: "normalised", or unchanged with "too_few_pixels" (fewer than ``min_pixels`` stained), "degenerate" (one
    stain or none: constant, rank-one) or "non_finite". Raises ``ValueError`` only for a wrong shape, dtype or option.
    """
    out, codes = macenko_codes(images, reference, **options)
    return out, status_names(codes)


def fit_macenko(images: torch.Tensor, *, provenance: str = "", **options) -> StainReference:
    """The reference of a target image, uint8 (3,H,W), or the mean over (N,3,H,W) of those that can be estimated."""
    estimate = estimate_stains(images if images.ndim == 4 else images[None], **options)
    return reference_from(estimate, provenance)


def reference_from(estimate: StainEstimate, provenance: str = "") -> StainReference:
    """Mean stain matrix (columns of unit length again) and mean maxima of the usable images; ``ValueError`` if none."""
    usable = estimate.codes == NORMALISED
    if not bool(usable.any()):
        raise ValueError(f"no target image has two stains: {status_names(estimate.codes)}; choose another target")
    matrix = estimate.matrix[usable].mean(0)
    return StainReference(matrix / matrix.norm(dim=0), estimate.maxima[usable].mean(0), provenance)
