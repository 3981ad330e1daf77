"""The hybrid class-balanced loss of the paper `decoupled`, stage 2 (Eq. 3-5), in its two readings.

    CE_i    = -alpha_y log p_y                               (Eq. 3)
    focal_i = (1 - q_i)^gamma CE_i                           (Eq. 4)
    loss    = mean_i [ (1 - lambda) CE_i + lambda focal_i ]  (Eq. 5; the text states no reduction, both use the mean)

``variant="p"`` (the text): q = p_y. ``variant="p_alpha"`` (the released code): q = exp(-CE_i) = p_y^alpha, because the
focal factor is computed from the *weighted* cross-entropy; LDAM-DRW's focal loss and the paper `rescue`'s share this.
With small alpha (head classes) q is close to 1 and the focal term vanishes; with large alpha it is the plain CE.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

VARIANTS = ("p", "p_alpha")


def focal_factor(q_log: Tensor, gamma: float) -> Tensor:
    """(1 - q)^gamma from log q <= 0. ``expm1`` is exact near q = 1, and the floor keeps the gradient of a fractional
    power finite at q = 1, where the limit of factor x CE is 0 anyway."""
    return (-torch.expm1(q_log)).clamp_min(torch.finfo(q_log.dtype).tiny ** 0.5) ** gamma


def hybrid_terms(logits: Tensor, targets: Tensor, alpha: Tensor, gamma: float, variant: str) -> tuple[Tensor, Tensor]:
    """Per-sample (CE, focal), each (N,), from logits (N, C), integer targets (N,) and class weights (C,).

    Half precision is raised to float32: the log-softmax of float16 overflows long before its inputs do.
    """
    if variant not in VARIANTS:
        raise ValueError(f"variant must be one of {VARIANTS}, got {variant!r}")
    logits = logits if logits.dtype == torch.float64 else logits.float()
    log_p = F.log_softmax(logits, dim=1).gather(1, targets[:, None]).squeeze(1)
    ce = -alpha.to(logits.dtype)[targets] * log_p
    return ce, focal_factor(log_p if variant == "p" else -ce, gamma) * ce


class HybridLoss(nn.Module):
    """Scalar loss; ``alpha`` (C,) float64 moves with ``.to(device)`` and is cast to the dtype of the logits."""

    def __init__(self, alpha: Tensor, gamma: float = 2.0, lam: float = 0.5, variant: str = "p"):
        super().__init__()
        if not 0 <= lam <= 1 or gamma < 0:
            raise ValueError(f"need 0 <= lambda <= 1 and gamma >= 0, got lambda={lam}, gamma={gamma}")
        if variant not in VARIANTS:
            raise ValueError(f"variant must be one of {VARIANTS}, got {variant!r}")
        self.gamma, self.lam, self.variant = gamma, lam, variant
        self.register_buffer("alpha", torch.as_tensor(alpha))

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        ce, focal = hybrid_terms(logits, targets, self.alpha, self.gamma, self.variant)
        return ((1 - self.lam) * ce + self.lam * focal).mean()
