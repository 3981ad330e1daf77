"""Focal loss (Lin et al., ICCV 2017), the lambda = 1 end of the hybrid loss."""

import torch
from torch import Tensor

from wbcrepro.longtail.losses.hybrid import HybridLoss


class FocalLoss(HybridLoss):
    """mean_i alpha_y (1 - p_y)^gamma (-log p_y), plain mean over the batch.

    ``variant="p_alpha"`` takes p_y^alpha in the factor, as the released code of LDAM-DRW (gamma 1 there), `decoupled`
    and `rescue` do; without class weights (alpha = 1) the two variants are one.
    """

    def __init__(self, alpha: Tensor, gamma: float = 2.0, variant: str = "p"):
        super().__init__(alpha, gamma=gamma, lam=1.0, variant=variant)


def log_weights(counts: Tensor) -> Tensor:
    """The class weights of `rescue`: 1 / (log(1 + n) + 1e-5), scaled to mean 1; float64 (C,).

    A class without images has weight 0 and is not in the mean: the formula would give it 1e5 and every other one
    nothing. Raises ValueError where no class has an image.
    """
    counts = torch.as_tensor(counts, dtype=torch.float64)
    present = counts > 0
    if not present.any():
        raise ValueError("no class has an image")
    weights = torch.where(present, 1 / (torch.log1p(counts) + 1e-5), 0)
    return weights / weights[present].mean()
