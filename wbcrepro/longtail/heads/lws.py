"""Learnable weight scaling (LWS; Kang et al., ICLR 2020, section 4.2): one factor a class on a frozen linear head.

As in the reference code the factor multiplies the whole logit, bias included. It is trained on class-balanced samples
with plain cross-entropy. The reference uses SGD at 0.2 for 5 epochs of ImageNet-LT (over 1,000 steps); ours is AdamW at
a tenfold cRT rate with early stopping, since at 1e-3 thirteen scales hardly move in the few steps of a small data set.
"""

from copy import deepcopy
from dataclasses import replace

import torch
from torch import Tensor, nn

from wbcrepro.longtail.heads.crt import CRTConfig, retrain

LWS_CONFIG = CRTConfig(loss="cross_entropy", lr=1e-2, batch_size=64)


class ScaledHead(nn.Module):
    """scale_c (w_c . x + b_c); only the scales (C,), initially 1, require gradients."""

    def __init__(self, linear: nn.Module, classes: int):
        super().__init__()
        self.linear = deepcopy(linear).requires_grad_(False)
        self.scales = nn.Parameter(torch.ones(classes))

    def train(self, mode: bool = True) -> "ScaledHead":
        """As usual, but the frozen head below stays in eval mode."""
        super().train(mode)
        self.linear.eval()  # frozen means its buffers too, should the head below hold a BatchNorm
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) * self.scales


def fit_lws(linear: nn.Module, features, labels, val_features, val_labels, cfg: CRTConfig = LWS_CONFIG, *,
            classes: int, seed: int, device="cpu", log=None) -> ScaledHead:
    """Features (N, P, D) or (N, D); see `fit_crt`. The loss of ``cfg`` is replaced by cross-entropy; ``linear`` is
    copied, never changed."""
    cfg = replace(cfg, loss="cross_entropy", loss_options={})
    return retrain(ScaledHead(linear, classes), features, labels, val_features, val_labels, cfg, classes=classes,
                   seed=seed, device=device, log=log)
