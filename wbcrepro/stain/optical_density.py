"""Beer-Lambert: from transmitted light to optical density (OD), where stains add up.

A layer that holds stain k at density ``c_k`` transmits ``I = Io exp(-sum_k w_k c_k)``, so
``OD = -ln((I + 1) / Io) = W c`` is linear in the densities (Ruifrok & Johnston 2001; Macenko et al. 2009, eq. 1).
The ``+ 1`` keeps black pixels finite; it is torchstain's convention and every module here shares it.
"""

import math
from functools import lru_cache

import numpy as np
import torch


def check_images(images: torch.Tensor) -> None:
    """Raise ``ValueError`` unless ``images`` is uint8 of shape (N, 3, H, W)."""
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(
            f"expected uint8 images of shape (N, 3, H, W), got {images.dtype} of shape {tuple(images.shape)}; "
            "permute an (H, W, 3) array and add the batch axis first"
        )


def _log_(values: torch.Tensor) -> torch.Tensor:
    return (
        torch.from_numpy(np.log(values.numpy(), out=values.numpy())) if values.device.type == "cpu" else values.log_()
    )


def _exp_(values: torch.Tensor) -> torch.Tensor:  # in place; on a CPU NumPy's log and exp are 2 to 6 times faster
    return (
        torch.from_numpy(np.exp(values.numpy(), out=values.numpy())) if values.device.type == "cpu" else values.exp_()
    )


def optical_density(
    images: torch.Tensor, io: float | torch.Tensor = 240, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """OD of uint8 images (N, 3, H, W) as (N, 3, H*W); natural logarithm; negative where a pixel outshines ``io``.

    ``io`` is a number, or a tensor that broadcasts over the result.
    """
    return _log_(images.flatten(2).to(dtype).add_(1).div_(io)).neg_()


@lru_cache
def darkest_kept_value(io: float, beta: float, dtype: torch.dtype = torch.float32) -> int:
    """Largest grey level whose OD still reaches ``beta`` (-1 if none does).

    Comparing bytes with this one number selects the same pixels as comparing float ODs, at an eighth of the cost.
    """
    levels = _log_(torch.arange(256).to(dtype).add_(1).div_(io)).neg_()
    return int((levels >= beta).sum()) - 1


def stained(images: torch.Tensor, io: float = 240, beta: float = 0.15, dtype: torch.dtype = torch.float32):
    """Macenko's mask (N, H*W): True where *every* channel's OD reaches ``beta``, that is, where the brightest does."""
    brightest = images.flatten(2).amax(1)
    limit = darkest_kept_value(io, beta, dtype)
    return brightest <= limit if limit >= 0 else torch.zeros_like(brightest, dtype=torch.bool)


def precheck_count(images: torch.Tensor, beta: float = 0.15) -> torch.Tensor:
    """The pre-check of the released code of `decoupled`: pixels (N,) whose *summed* OD (divisor 255) exceeds ``beta``.

    That code leaves an image alone below 50 such pixels. It is no guard: it looks at a different OD and a different
    rule than the estimate that follows, and accepts nearly every picture that has a grey background.
    """
    return (optical_density(images, 255, torch.float64).sum(1) > beta).sum(1)


def transmitted(mixing: torch.Tensor, densities: torch.Tensor, io: float = 240) -> torch.Tensor:
    """uint8 light (N,3,P) behind ``mixing`` (N,3,K) @ ``densities`` (N,K,P): ``io exp(-mixing densities)``.

    Clipped at 255 and truncated, not rounded, as in torchstain.
    """
    with np.errstate(over="ignore"):  # an overflow is brighter than white, which the clip says anyway
        light = _exp_(torch.bmm(-mixing, densities)).mul_(io).clamp_(max=255)
    if light.device.type == "cpu":
        return torch.from_numpy(light.numpy().astype(np.uint8))  # four times faster than torch's cast
    return light.to(torch.uint8)


def quantisation_variance(mean_od: torch.Tensor, io: float = 240) -> torch.Tensor:
    """Variance of OD that comes from storing a pixel of density ``mean_od`` in whole grey levels: (1/(I+1))^2 / 12."""
    return torch.exp(2 * mean_od) / (12 * math.pow(io, 2))
