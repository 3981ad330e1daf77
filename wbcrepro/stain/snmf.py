"""Sparse non-negative matrix factorisation (SNMF) of optical density into two stains, batched, on any device.

Source: Vahadane et al., IEEE TMI 2016, as `sada` uses it (Li et al., Eq. 1: ``X = X0 exp(-W H)``). With X the image in
[0, 1] (3 x P pixels), X0 = 1 and V = -ln X, it looks for W >= 0 (3 x 2, unit columns) and H >= 0 (2 x P) that minimise

    1/2 ||V - W H||^2 + sparsity * sum(H).

``method="released"`` is the algorithm of the released code, step by step: OD floored at 1e-6 and nearly black pixels
turned white first; the background B (1 % quantile of each channel) taken off; W from the median and the maximum of OD,
H from ones; then ``iterations`` times a multiplicative update of W, unit columns, a multiplicative update of H and a
soft threshold. Ten iterations are far from a minimum.

``method="fast"`` minimises the same with exact steps. It starts from the narrowest pair of stains in the best plane
through the OD that leaves out no more than a 2,000th of its energy on either side (:func:`cone_stains`; Macenko's idea
with energy in place of pixel counts, so that faint pixels do not decide). Then, for fixed W, the best two densities of
a pixel have a closed form (:func:`best_densities`), and for fixed H the best unit column is a normalised positive part.
Twenty such steps on every ``subsample``-th row and column and on the few most extreme pixels (the zeros of a channel,
whose OD is enormous; see :func:`settling_pixels`), then H once for all pixels.

Differs from the paper in: the background B (``background=False`` leaves it out), nearly black pixels.
Differs from the released code in: images without two stains get a status and finite numbers, the size is free, the
caller's images are not altered; ``order="dark_nucleus"`` sorts the columns (:mod:`wbcrepro.stain.stain_order`).
"""

import math
from dataclasses import dataclass, fields

import torch

from wbcrepro.errors import UsageError
from wbcrepro.stain.closed_forms import symmetric_eigenvectors
from wbcrepro.stain.macenko import CHUNK_PIXELS, MIN_PIXELS, order_by_red, point_along
from wbcrepro.stain.optical_density import _log_, quantisation_variance
from wbcrepro.stain.percentiles import ranks, value_at
from wbcrepro.stain.stain_order import second_is_nuclear

STATUSES = ("separated", "too_few_pixels", "degenerate", "non_finite")
SEPARATED, TOO_FEW_PIXELS, DEGENERATE, NON_FINITE = range(4)
EPSILON = 1e-6
DARK = 0.05  # a pixel with every channel below is a hole in the image, not stain
BACKGROUND = 0.01
STAINED = 0.05  # mean OD above the background
ITERATIONS = {"released": 10, "fast": 20, "compiled": 20}
SUBSAMPLED = 2500  # pixels that settle the six numbers of W
EXTREMES = 64  # fewer pixels than that, the most extreme ones, join those
LEFT_OUT = 5e-4  # energy outside the starting pair of stains, on either side


@dataclass(frozen=True)
class Separation:
    """Of N images with P pixels: OD = W H + B.

    W (N,3,2) non-negative with unit columns; H (N,2,P) non-negative; B (N,3,1); relative_error (N,), the Frobenius norm
    of ``V - W H`` over that of ``V = OD - B`` (0 where V is 0); codes (N,) index ``STATUSES``. All are finite whatever
    the image; only those of a "separated" one mean something.
    """

    W: torch.Tensor
    H: torch.Tensor
    B: torch.Tensor
    relative_error: torch.Tensor
    codes: torch.Tensor

    @property
    def status(self) -> list[str]:
        """The codes as words (waits for the device)."""
        return [STATUSES[code] for code in self.codes.tolist()]


def whiten_dark(images: torch.Tensor) -> torch.Tensor:
    """Images (N,3,H,W) in [0,1] whose pixels with all channels below 0.05 are white, as the released code makes them.

    (There it happens in place, so the raw view of the augmentation changes too.)
    """
    return images.masked_fill((images.amax(1, keepdim=True) < DARK), 1)


def snmf_od(images: torch.Tensor) -> torch.Tensor:
    """OD (N,3,P) = max(-ln x, 1e-6) of images (N,3,H,W) in [0,1]; values that are not finite count as white."""
    light = torch.nan_to_num(whiten_dark(images), 1, 1, 1).flatten(2)  # a copy from here on
    return _log_(light.clamp_min_(EPSILON)).neg_().clamp_min_(EPSILON)


def row_quantile(values: torch.Tensor, share: float) -> torch.Tensor:
    """Interpolated quantile (...) over the last axis of (...,P), sorting only the nearer end; ``values`` is kept."""
    rows = values.reshape(-1, values.shape[-1])
    p = rows.shape[1]
    rank = ranks(share, torch.full((len(rows),), p, device=rows.device), "linear")
    if share <= 0.5:
        found = value_at(rows.clone(), rank, min(p, math.ceil(share * p) + 2))
    else:
        found = -value_at(-rows, p - 1 - rank, min(p, math.ceil((1 - share) * p) + 2))
    return found.reshape(values.shape[:-1]).to(values.dtype)


def _unit(columns: torch.Tensor) -> torch.Tensor:
    norm = columns.norm(dim=1, keepdim=True)
    return torch.where(norm > 1e-12, columns / norm.clamp_min(1e-12), 3**-0.5)  # no direction at all: grey


def initial_stains(od: torch.Tensor) -> torch.Tensor:
    """The start W (N,3,2): median and maximum of each channel of OD (N,3,P), as unit columns."""
    return _unit(torch.stack([row_quantile(od, 0.5), od.amax(2)], 2))


def released_updates(v: torch.Tensor, w: torch.Tensor, iterations: int, sparsity: float):
    """W (N,3,2) and H (N,2,P) after the released code's iterations on V (N,3,P) from W and H = 1."""
    h = torch.ones(len(v), 2, v.shape[2], dtype=v.dtype, device=v.device)
    for _ in range(iterations):
        w = _unit(w * torch.bmm(v, h.mT) / (torch.bmm(w, torch.bmm(h, h.mT)) + EPSILON))
        denominator = torch.bmm(torch.bmm(w.mT, w), h) + EPSILON
        step = h / denominator  # of the threshold: from the old H
        h = (h * torch.bmm(w.mT, v) / denominator).sub_(step, alpha=sparsity).clamp_min_(0)
    return w, h


def best_densities(v: torch.Tensor, w: torch.Tensor, sparsity: float = 0.0) -> torch.Tensor:
    """The H >= 0 (N,2,P) that minimises ``1/2 ||V - W H||^2 + sparsity * sum(H)`` for unit columns W >= 0, exactly.

    With two stains the bounds settle themselves. Let c = W'v - sparsity and g = w1'w2 >= 0. The free solution is
    ``(c1 - g c2) / (1 - g^2)``; that of stain 1 alone is c1, and it is the smaller of the two just where stain 2
    vanishes. So h1 = max(0, min(free, alone)), and the same for stain 2.
    """
    g = (w[:, :, 0] * w[:, :, 1]).sum(1)[:, None, None]
    apart = 1 - g * g
    free = torch.where(apart > 1e-6, (w - g * w.flip(2)) / apart.clamp_min(1e-6), w / 2)  # one direction: share it
    free, alone = torch.bmm(torch.cat([free, w], 2).mT, v).split(2, 1)
    if sparsity:
        free, alone = free.sub_(sparsity / (1 + g)), alone.sub_(sparsity)
    return torch.minimum(free, alone).clamp_min_(0)


def settling_pixels(v: torch.Tensor, grid: torch.Tensor, step: int) -> torch.Tensor:
    """The pixels (N,3,Q) of V (N,3,P) that settle W: ``grid`` (N,3,G), one for every ``step``^2 pixels, and extremes.

    A single pixel with a zero in one channel may hold more energy than the noise of the whole image, and the grid
    misses it or counts it ``step``^2 times. So the pixels with a larger channel than the ``EXTREMES``-th have (fewer,
    if that one is shared) are taken off the grid and appended, divided by ``step``: since densities scale with their
    pixel, that gives them their due weight in every sum of squares. Columns that do not count are zero.
    """
    if step == 1:
        return grid
    largest = v.amax(1).topk(min(EXTREMES, v.shape[2]), dim=1)
    limit = largest.values[:, -1:]
    weight = (largest.values > limit).to(v.dtype) / step
    extremes = v.gather(2, largest.indices[:, None].expand(-1, 3, -1)) * weight[:, None]
    return torch.cat([grid.masked_fill((grid.amax(1) > limit)[:, None], 0), extremes], 2)


def cone_stains(plane: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
    """Two stains (N,3,2) in a ``plane`` (N,3,2) through V, about as far apart as the pixels ``seen`` (N,3,Q) of V.

    The plane is spanned by the first two eigenvectors of V V', in the columns, pointing the way the mean does. A pixel
    at first and second coordinate (x, y) has the slope y/x. Of the slopes, weighted by x^2, the two at ``LEFT_OUT`` and
    1 - ``LEFT_OUT`` are taken, and moved inwards where a stain would absorb less than nothing. The redder absorber is
    column 0.
    """
    plane = plane.to(seen.dtype)
    x, y = torch.bmm(plane.mT, seen).unbind(1)
    slopes, order = (y / x.clamp_min(EPSILON)).sort(1)
    energy = x.clamp_min(0).square_().gather(1, order).cumsum(1)
    ends = energy[:, -1:] * torch.tensor([LEFT_OUT, 1 - LEFT_OUT], dtype=seen.dtype, device=seen.device)
    at = torch.searchsorted(energy, ends).clamp_max(slopes.shape[1] - 1)
    along, across = plane.unbind(2)
    limit = -along / torch.where(across == 0, EPSILON, across)
    lowest = torch.where(across > 0, limit, -torch.inf).amax(1, keepdim=True)
    highest = torch.where(across < 0, limit, torch.inf).amin(1, keepdim=True)
    chosen = torch.minimum(torch.maximum(slopes.gather(1, at), lowest), highest)
    stains = _unit(torch.nan_to_num(along[:, :, None] + across[:, :, None] * chosen[:, None]).clamp_min_(0))
    return order_by_red(stains[:, :, 0], stains[:, :, 1])


def exact_updates(v: torch.Tensor, w: torch.Tensor, iterations: int, sparsity: float) -> torch.Tensor:
    """W (N,3,2) after alternating exact minimisations over H and over each unit column, on V (N,3,P) from W."""
    for _ in range(iterations):
        h = best_densities(v, w, sparsity)
        gram, cross = torch.bmm(h, h.mT), torch.bmm(v, h.mT)
        first, second = w.unbind(2)
        first = _column(cross[:, :, 0] - gram[:, 0, 1, None] * second, first)
        second = _column(cross[:, :, 1] - gram[:, 0, 1, None] * first, second)
        w = torch.stack([first, second], 2)
    return w


def _column(direction: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
    positive = direction.clamp_min(0)
    norm = positive.norm(dim=1, keepdim=True)
    return torch.where(norm > 1e-12, positive / norm.clamp_min(1e-12), before)  # a stain that no pixel holds stays


def sampling_step(height: int, width: int, subsample: int | None = None) -> int:
    """``subsample``, or the step that leaves about ``SUBSAMPLED`` pixels."""
    return subsample or max(1, math.isqrt(height * width // SUBSAMPLED))


def _codes(images: torch.Tensor, od: torch.Tensor, v: torch.Tensor, second: torch.Tensor, min_pixels: int):
    # One stain stored in whole grey levels still scatters across its line; less than that is no second stain.
    codes = torch.where(second <= 4 * quantisation_variance(od.mean((1, 2)).double(), 255), DEGENERATE, SEPARATED)
    codes = codes.masked_fill((v.sum(1) >= 3 * STAINED).sum(1) < min_pixels, TOO_FEW_PIXELS)
    return codes.masked_fill(~images.isfinite().flatten(1).all(1), NON_FINITE)


def _separate(images, method, iterations, sparsity, subsample, order, background, min_pixels) -> Separation:
    n, _, height, width = images.shape
    step = 1 if method == "released" else sampling_step(height, width, subsample)
    od = snmf_od(images)
    b = row_quantile(od, BACKGROUND)[:, :, None] if background else od.new_zeros(n, 3, 1)
    v = od - b
    grid = v.reshape(n, 3, height, width)[:, :, ::step, ::step].flatten(2)
    values, vectors = symmetric_eigenvectors(torch.bmm(v, v.mT).double() / v.shape[2])
    if method == "released":
        w, h = released_updates(v, initial_stains(od), iterations, sparsity)
    else:
        plane = point_along(vectors[:, :, :2], v.mean(2).double())
        seen = settling_pixels(v, grid, step)
        w = exact_updates(seen, cone_stains(plane, seen), iterations, sparsity)
        h = best_densities(v, w, sparsity)
    size = v.norm(dim=(1, 2))
    error = (v - torch.bmm(w, h)).norm(dim=(1, 2)) / torch.where(size > 0, size, 1)
    if order == "dark_nucleus":
        part = h.reshape(n, 2, height, width)[:, :, ::step, ::step].flatten(2)
        swap = second_is_nuclear(grid, part)[:, None, None]
        w, h = torch.where(swap, w.flip(2), w), torch.where(swap, h.flip(1), h)
    return Separation(w, h, b, error, _codes(images, od, v, values[:, 1], min_pixels))


@torch.no_grad()
def separate(
    images: torch.Tensor,
    *,
    method: str = "fast",
    iterations: int | None = None,
    sparsity: float = 1e-4,
    subsample: int | None = None,
    order: str = "as_fitted",
    background: bool = True,
    min_pixels: int = MIN_PIXELS,
    chunk: int | None = None,
) -> Separation:
    """Separate images, float (N,3,H,W) in [0,1], into two stains and a background; see the module and `Separation`.

    ``method``: "released", "fast", or "compiled", which is "fast" on one CPU core, several times faster (extra `fast`).
    ``iterations``: 10 of "released" and 20 of "fast" unless given. ``subsample``: "fast" looks at every s-th row and
    column first; by default at about 2,500 pixels. ``order``: "as_fitted" ("released": column 0 grew from the median of
    OD, column 1 from its maximum; "fast": the redder absorber first) or "dark_nucleus" (the nucleus's stain first).
    ``min_pixels``: with fewer pixels whose mean OD is 0.05 above the background the status is "too_few_pixels";
    "degenerate" is one stain or none, "non_finite" an image with such values. ``chunk``: images at a time; the result
    does not depend on it. Raises ``ValueError`` for a wrong shape or dtype, :class:`UsageError` for an unknown option.
    """
    if not images.is_floating_point() or images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(
            f"expected float images of shape (N, 3, H, W) in [0, 1], got {images.dtype} of shape {tuple(images.shape)}"
        )
    if method not in ITERATIONS or order not in ("as_fitted", "dark_nucleus"):
        known = 'method is "released", "fast" or "compiled", order "as_fitted" or "dark_nucleus"'
        raise UsageError(f"{known}; got {method!r}, {order!r}")
    if method == "released" and subsample:
        raise UsageError("the released algorithm looks at every pixel: subsample goes with method='fast'")
    iterations = ITERATIONS[method] if iterations is None else iterations
    if method == "compiled" and images.numel():
        from wbcrepro.stain.snmf_fast import separate_compiled

        return separate_compiled(images, iterations, sparsity, subsample, order, background, min_pixels)
    pixels = max(1, images.shape[2] * images.shape[3])
    chunk = chunk or max(1, CHUNK_PIXELS.get(images.device.type, CHUNK_PIXELS["cuda"]) // pixels)
    parts = [
        _separate(part, method, iterations, sparsity, subsample, order, background, min_pixels)
        for part in images.split(chunk)
    ]
    if len(parts) == 1:
        return parts[0]
    return Separation(*(torch.cat([getattr(part, f.name) for part in parts]) for f in fields(Separation)))
