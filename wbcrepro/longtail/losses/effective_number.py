"""Class weights from the effective number of samples (Cui et al., CVPR 2019; Eq. 2 of the paper `decoupled`)."""

import math
from collections.abc import Sequence

import numpy as np


def effective_number(counts: Sequence[float], beta: float) -> np.ndarray:
    """E_n = (1 - beta^n) / (1 - beta), float64 (C,); n itself for beta = 1.

    ``expm1`` keeps it exact where beta^n is close to 1, the case of every rare class at beta = 0.99999.
    """
    if not 0 <= beta <= 1:
        raise ValueError(f"beta must lie in [0, 1], got {beta}")
    n = np.asarray(counts, dtype=np.float64)
    if (n < 0).any():
        raise ValueError(f"class counts must not be negative, got {counts}")
    if beta == 1:
        return n
    if beta == 0:
        return (n > 0).astype(np.float64)
    return -np.expm1(n * math.log(beta)) / (1 - beta)


def effective_number_weights(counts: Sequence[float], beta: float = 0.9999, normalise: str = "mean") -> np.ndarray:
    """alpha_j = 1 / E_{n_j}, float64 (C,).

    ``normalise``: ``"mean"`` divides by the mean over the classes (the released code, and LDAM-DRW's "sum to C");
    ``"none"`` is Eq. 2 as printed. Hybrid loss is linear in alpha, so the two differ by a constant factor. A class
    without images gets weight 0 and is left out of the mean. The released code counts over training *and* validation
    images; here the counts are whatever the caller passes, and our cells pass the training fold's.
    """
    if normalise not in ("mean", "none"):
        raise ValueError(f"normalise must be 'mean' or 'none', got {normalise!r}")
    number = effective_number(counts, beta)
    present = number > 0
    if not present.any():
        raise ValueError("no class has an image")
    weights = np.divide(1.0, number, out=np.zeros_like(number), where=present)
    return weights / weights[present].mean() if normalise == "mean" else weights
