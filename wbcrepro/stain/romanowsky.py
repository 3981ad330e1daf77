"""A variant of Macenko normalisation for Romanowsky-stained blood (May Grünwald-Giemsa, Wright, Giemsa, rapid stains).

Ours, not published: it changes three steps of :mod:`wbcrepro.stain.macenko` that assume haematoxylin and eosin on a
white slide, and keeps the rest. Whether it separates nuclei better is measured on masks by
:func:`wbcrepro.stain.evaluation.nucleus_auc`.

1. *Light.* ``Io`` is the image's own background, the 95th percentile of each channel, instead of 240: blood is
   photographed on yellow, pink or grey grounds.
2. *Mask.* A pixel is stained where its **mean** OD reaches ``beta``. "Every channel must reach ``beta``" throws away
   nuclei, which let blue light through.
3. *Order.* The nuclear stain is the one with more density in the darkest tenth of the image. "The redder absorber
   first" is a rule for haematoxylin; azure and eosin swap places under it.
"""

import math

import torch

from wbcrepro.stain.closed_forms import least_squares_inverse
from wbcrepro.stain.macenko import (
    MIN_PIXELS,
    StainEstimate,
    estimate_from_od,
    in_chunks,
    recolour,
    reference_from,
    status_names,
)
from wbcrepro.stain.optical_density import check_images, optical_density
from wbcrepro.stain.percentiles import precision, ranks, value_at
from wbcrepro.stain.reference import StainReference, default_reference

BACKGROUND_QUANTILE = 0.95
DARKEST = 0.10


def _upper_value(values: torch.Tensor, share: float) -> torch.Tensor:
    """The value (N,) that the highest ``share`` of each row of (N,P) reaches (nearest rank)."""
    n, p = values.shape
    rank = p - 1 - ranks(1 - share, torch.full((n,), p, device=values.device), "nearest")
    return -value_at(-values, rank, min(p, math.ceil(share * p) + 2))


def background_light(images: torch.Tensor) -> torch.Tensor:
    """Grey level (N,3) of the empty slide: the 95th percentile of each channel of uint8 images (N,3,H,W)."""
    n = len(images)
    light = _upper_value(images.reshape(3 * n, -1).float(), 1 - BACKGROUND_QUANTILE)
    return light.reshape(n, 3).float()


def darkest_od(od: torch.Tensor) -> torch.Tensor:
    """Mean OD (N,3), float64, of the tenth of the pixels of OD (N,3,P) whose mean over the channels is highest."""
    darkness = od.mean(1)
    chosen = (darkness >= _upper_value(darkness, DARKEST)[:, None].to(od.dtype))[:, None].to(od.dtype)
    return (torch.bmm(od, chosen.mT) / chosen.sum(2, keepdim=True).clamp_min(1))[:, :, 0].double()


def order_by_darkest(od: torch.Tensor):
    """An ``order`` for :func:`estimate_from_od`: first the stain with more density in the darkest tenth of ``od``."""
    dark = darkest_od(od)

    def order(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        matrix = torch.stack([first, second], 2)
        inverse, _ = least_squares_inverse(matrix)
        density = (inverse @ dark[:, :, None])[:, :, 0]
        return torch.where((density[:, :1] >= density[:, 1:])[..., None], matrix, matrix.flip(2))

    return order


def romanowsky_od(images: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """OD (N,3,P) against the image's own background; 0 where a pixel is as bright as the slide."""
    return optical_density(images, background_light(images).to(dtype)[:, :, None] + 1, dtype)


def estimate_romanowsky(
    images: torch.Tensor, *, alpha=1, beta=0.15, percentile="nearest", min_pixels=MIN_PIXELS
) -> tuple[StainEstimate, torch.Tensor]:
    """Estimates of uint8 images (N,3,H,W), and the OD (N,3,P) they rest on; the nuclear stain is column 0."""
    check_images(images)
    od = romanowsky_od(images, precision(percentile))
    options = {"alpha": alpha, "percentile": percentile, "min_pixels": min_pixels}
    return estimate_from_od(od, od.mean(1) >= beta, order=order_by_darkest(od), **options), od


def romanowsky_codes(images, reference=None, *, io=240, chunk=None, **options) -> tuple[torch.Tensor, torch.Tensor]:
    """As :func:`romanowsky_normalise`, with the status as an int64 tensor (N,) of indices into ``STATUSES``."""
    reference = reference or default_reference("romanowsky")

    def step(part):
        estimate, od = estimate_romanowsky(part, **options)
        return recolour(part, od, estimate, reference, io), estimate.codes

    return in_chunks(step, images, chunk)


def romanowsky_normalise(images, reference=None, **options) -> tuple[torch.Tensor, list[str]]:
    """Normalise uint8 images (N,3,H,W) to ``reference`` on a ground of grey level ``io`` (240); see the module.

    Same contract, options (less ``subsample``) and statuses as :func:`wbcrepro.stain.macenko.macenko_normalise`.
    """
    out, codes = romanowsky_codes(images, reference, **options)
    return out, status_names(codes)


def fit_romanowsky(images: torch.Tensor, *, provenance: str = "", **options) -> StainReference:
    """The reference of a target image, uint8 (3,H,W), or the mean over (N,3,H,W) of those that can be estimated."""
    estimate, _ = estimate_romanowsky(images if images.ndim == 4 else images[None], **options)
    return reference_from(estimate, provenance)
