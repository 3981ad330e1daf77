"""Losses for long-tailed classification: one algorithm a file, chosen by `make_loss`."""

from collections.abc import Sequence

import torch
from torch import nn

from wbcrepro.errors import UsageError
from wbcrepro.longtail.losses.balanced_softmax import BalancedSoftmaxLoss
from wbcrepro.longtail.losses.class_balanced import ClassBalancedLoss
from wbcrepro.longtail.losses.effective_number import effective_number_weights
from wbcrepro.longtail.losses.focal import FocalLoss, log_weights
from wbcrepro.longtail.losses.hybrid import HybridLoss
from wbcrepro.longtail.losses.ldam import LDAMLoss


def _alpha(counts, beta, normalise):
    """beta None: no class weights at all."""
    weights = [1.0] * len(counts) if beta is None else effective_number_weights(counts, beta, normalise)
    return torch.as_tensor(weights, dtype=torch.float64)


def _hybrid(counts, *, beta=0.9999, gamma=2.0, lam=0.5, variant="p", normalise="mean"):
    return HybridLoss(_alpha(counts, beta, normalise), gamma, lam, variant)


def _focal(counts, *, beta=None, gamma=2.0, variant="p", normalise="mean", weights=None):
    if weights not in (None, "log") or (weights and beta is not None):
        raise UsageError(f"focal takes weights='log' or a beta, not both; got weights={weights!r}, beta={beta!r}")
    return FocalLoss(log_weights(counts) if weights else _alpha(counts, beta, normalise), gamma, variant)


def _class_balanced(counts, *, beta=0.9999, normalise="mean"):
    return ClassBalancedLoss(_alpha(counts, beta, normalise))


LOSSES = {
    "cross_entropy": lambda counts: nn.CrossEntropyLoss(),
    "class_balanced": _class_balanced,
    "focal": _focal,
    "hybrid": _hybrid,
    "balanced_softmax": BalancedSoftmaxLoss,
    "ldam": LDAMLoss,
}


def make_loss(name: str, counts: Sequence[float], **options) -> nn.Module:
    """The loss ``name`` for training ``counts`` (C,): a module that maps logits (N, C) and targets (N,) to a scalar.

    Options by name: class_balanced beta, normalise · focal beta (None: unweighted), gamma, variant, normalise,
    or weights="log" in place of beta (inverse log frequency, `rescue`) · hybrid beta, gamma, lam, variant ("p" |
    "p_alpha"), normalise · ldam max_margin, scale, drw_start, beta. A loss with a
    schedule has ``set_epoch(epoch)`` (only ldam). Raises UsageError for an unknown name or option.
    """
    if name not in LOSSES:
        raise UsageError(f"unknown loss {name!r}; known: {', '.join(LOSSES)}")
    try:
        return LOSSES[name](counts, **options)
    except TypeError as error:
        raise UsageError(f"loss {name!r} was given options {sorted(options)}: {error}") from error
