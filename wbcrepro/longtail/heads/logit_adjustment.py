"""Post-hoc logit adjustment (Menon et al., ICLR 2021, Eq. 9): subtract tau log pi_c from the logits of class c.

With tau = 1 and calibrated logits this is the Bayes rule for the balanced error; nothing is trained.
"""

from copy import deepcopy

import torch
from torch import Tensor, nn


class AdjustedHead(nn.Module):
    """head(x) - tau log pi, pi (C,) the training prior. A class without images counts as one image."""

    def __init__(self, head: nn.Module, counts, tau: float = 1.0):
        super().__init__()
        self.head = deepcopy(head)
        n = torch.as_tensor(counts, dtype=torch.float64).clamp_min(1)
        self.register_buffer("offset", (tau * torch.log(n / n.sum())).float())

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x) - self.offset


def logit_adjust(head: nn.Module, counts, tau: float = 1.0) -> AdjustedHead:
    """A copy of ``head`` with adjusted logits, in eval mode on the head's device; counts (C,) of the training fold."""
    adjusted = AdjustedHead(head, counts, tau)
    parameter = next(head.parameters(), None)
    return adjusted.to(parameter.device if parameter is not None else "cpu").eval()
