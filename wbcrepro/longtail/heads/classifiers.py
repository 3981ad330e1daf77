"""Classifier heads that map embeddings (N, D) to logits (N, C)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wbcrepro.errors import UsageError


class CosineHead(nn.Module):
    """scale x cosine of embedding and class vector. LDAM brings its own scale, so the default is 1.

    For probabilities multiply the cosines by the loss's scale first: the softmax of bare cosines is nearly uniform.
    """

    def __init__(self, dim: int, classes: int, scale: float = 1.0):
        super().__init__()
        self.scale = scale
        self.weight = nn.Parameter(torch.empty(classes, dim).uniform_(-1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * F.linear(F.normalize(x, dim=-1), F.normalize(self.weight, dim=-1))


def _mlp512bn(dim: int, classes: int) -> nn.Sequential:
    """The released code's head: Linear(D, 512) - BatchNorm - ReLU - Dropout(0) - Linear(512, C); the text has one
    linear layer. Linear weights Kaiming-normal, biases zero."""
    head = nn.Sequential(nn.Linear(dim, 512), nn.BatchNorm1d(512), nn.ReLU(), nn.Dropout(0.0), nn.Linear(512, classes))
    for layer in (head[0], head[4]):
        nn.init.kaiming_normal_(layer.weight)
        nn.init.zeros_(layer.bias)
    return head


HEADS = {"linear": nn.Linear, "mlp512bn": _mlp512bn, "cosine": CosineHead}


def make_head(kind: str, dim: int, classes: int, seed: int | None = None) -> nn.Module:
    """A freshly initialised head. With a ``seed`` its weights depend on that alone, and torch's global generator is
    left as it was. Raises UsageError for an unknown kind."""
    if kind not in HEADS:
        raise UsageError(f"unknown head {kind!r}; known: {', '.join(HEADS)}")
    with torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            torch.random.default_generator.manual_seed(seed)  # the CPU one only: heads are initialised there
        return HEADS[kind](dim, classes)
