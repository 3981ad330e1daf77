"""Balanced softmax (Ren et al., NeurIPS 2020, Eq. 3): cross-entropy of the logits plus the log class counts."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class BalancedSoftmaxLoss(nn.Module):
    """mean_i -log( n_y exp(z_y) / sum_c n_c exp(z_c) ) for logits (N, C) and targets (N,).

    At test time the plain logits are used. A class without training images counts as one image, so that a validation
    image of it still has a finite loss.
    """

    def __init__(self, counts: Tensor):
        super().__init__()
        self.register_buffer("log_counts", torch.as_tensor(counts, dtype=torch.float64).clamp_min(1).log())

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        logits = logits if logits.dtype == torch.float64 else logits.float()
        return F.cross_entropy(logits + self.log_counts.to(logits.dtype), targets)
