"""Nearest class mean (Kang et al., ICLR 2020, section 4.2); no training, one mean embedding a class.

``kind``: "cl2n" (the reference's default) subtracts the training mean and L2-normalises every embedding first, "l2n"
only normalises, "un" does neither. The class means are not normalised again. The reference takes the means over
training images with the *test* transform; here over whatever features are passed.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wbcrepro.errors import UsageError
from wbcrepro.longtail.heads.crt import as_passes

KINDS = ("cl2n", "l2n", "un")


class NearestMean(nn.Module):
    """logits (..., C) = negative squared Euclidean distance to each class mean; -inf for a class without images."""

    def __init__(self, kind: str, mean: Tensor, centroids: Tensor, present: Tensor):
        super().__init__()
        self.kind = kind
        for name, value in (("mean", mean), ("centroids", centroids), ("present", present)):
            self.register_buffer(name, value)

    def transform(self, x: Tensor) -> Tensor:
        """Centre and normalise embeddings (..., D) as ``kind`` says."""
        if self.kind == "un":
            return x
        return F.normalize(x - self.mean if self.kind == "cl2n" else x, dim=-1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.transform(x)
        distance = x.square().sum(-1, keepdim=True) - 2 * x @ self.centroids.T + self.centroids.square().sum(-1)
        return (-distance).masked_fill(~self.present, float("-inf"))


def fit_ncm(features, labels, *, classes: int, kind: str = "cl2n", device="cpu") -> NearestMean:
    """Features (N, D) or (N, P, D) (all passes enter the means), labels (N,)."""
    if kind not in KINDS:
        raise UsageError(f"unknown kind {kind!r} of nearest class mean; known: {', '.join(KINDS)}")
    passes = as_passes(features).to(device)
    labels = torch.as_tensor(labels, device=device).long().repeat_interleave(passes.shape[1])
    flat = passes.reshape(-1, passes.shape[-1]).float()
    zeros, counts = flat.new_zeros(classes, flat.shape[1]), torch.bincount(labels, minlength=classes)
    head = NearestMean(kind, flat.mean(0), zeros.clone(), counts > 0)
    sums = zeros.index_add_(0, labels, head.transform(flat))
    head.centroids.copy_(sums / counts.clamp_min(1)[:, None])
    return head.eval()
