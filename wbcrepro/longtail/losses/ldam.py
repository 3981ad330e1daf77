"""Label-distribution-aware margin loss with deferred re-weighting (Cao et al., NeurIPS 2019, Eq. 10-13 and Alg. 1).

The logits must be cosines (`make_head("cosine", ...)`); margins and scale mean nothing on free logits. The paper
`rescue` reports an LDAM row without code, so whether it used a cosine head or the deferred weights is unknown.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wbcrepro.longtail.losses.effective_number import effective_number_weights


def ldam_margins(counts: Sequence[float], max_margin: float = 0.5) -> np.ndarray:
    """Delta_c proportional to n_c^(-1/4), the largest scaled to ``max_margin``; float64 (C,). No image counts as 1."""
    margins = np.maximum(np.asarray(counts, dtype=np.float64), 1) ** -0.25
    return margins * (max_margin / margins.max())


def drw_weights(counts: Sequence[float], epoch: int, start: int | None, beta: float = 0.9999) -> np.ndarray:
    """Deferred re-weighting: ones before epoch ``start`` (0-based; None = never), effective-number weights after it."""
    if start is None or epoch < start:
        return np.ones(len(counts))
    return effective_number_weights(counts, beta)


class LDAMLoss(nn.Module):
    """Cross-entropy of s (cos - Delta_y at the true class), a *weighted mean* over the batch once DRW is on.

    Call ``set_epoch(e)`` at the start of each epoch; ``drw_start`` is the first re-weighted one (the reference: 160 of
    200). cos (N, C) in [-1, 1], targets (N,) integers.
    """

    def __init__(self, counts: Sequence[float], max_margin: float = 0.5, scale: float = 30.0,
                 drw_start: int | None = None, beta: float = 0.9999):
        super().__init__()
        self.counts, self.scale, self.drw_start, self.beta = list(counts), scale, drw_start, beta
        self.register_buffer("margins", torch.as_tensor(ldam_margins(counts, max_margin)))
        self.register_buffer("weights", torch.ones(len(self.counts), dtype=torch.float64))
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Tell the loss which epoch begins: from ``drw_start`` on the classes are re-weighted."""
        self.weights.copy_(torch.as_tensor(drw_weights(self.counts, epoch, self.drw_start, self.beta)))

    def forward(self, cosine: Tensor, targets: Tensor) -> Tensor:
        cosine = cosine if cosine.dtype == torch.float64 else cosine.float()
        margin = F.one_hot(targets, cosine.shape[1]) * self.margins.to(cosine.dtype)
        return F.cross_entropy(self.scale * (cosine - margin), targets, weight=self.weights.to(cosine.dtype))
