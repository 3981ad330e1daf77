"""Test-time augmentation: the eight views of a square image that flips and quarter turns can make.

`decoupled` says K = 8 views (Eq. 6). Its released code lists identity, identity, h-flip, v-flip, h+v flip and
rotations by 90, 180, 270 degrees; h+v flip is the rotation by 180, so six are distinct. ``CODE_WEIGHTS`` gives that
average over ``DIHEDRAL``, the eight distinct views that are stored; ``EQUAL_WEIGHTS`` is the plain mean of all eight.
`rescue` says TTA without a number; its released code lists eight views: identity, h-flip, v-flip, h+v flip, the three
rotations and the transpose, so seven are distinct and the antitranspose is missing: ``RESCUE_WEIGHTS``.
Rotations are counter-clockwise, as in PIL.
"""

import numpy as np
import torch

DIHEDRAL = ("identity", "hflip", "vflip", "rot90", "rot180", "rot270", "transpose", "antitranspose")
EQUAL_WEIGHTS = tuple([1 / 8] * 8)
CODE_WEIGHTS = (2 / 8, 1 / 8, 1 / 8, 1 / 8, 2 / 8, 1 / 8, 0.0, 0.0)
RESCUE_WEIGHTS = (1 / 8, 1 / 8, 1 / 8, 1 / 8, 2 / 8, 1 / 8, 1 / 8, 0.0)
IDENTITY_WEIGHTS = (1.0, *[0.0] * 7)

_VIEWS = {
    "identity": lambda x: x,
    "hflip": lambda x: x.flip(-1),
    "vflip": lambda x: x.flip(-2),
    "rot90": lambda x: x.transpose(-2, -1).flip(-2),
    "rot180": lambda x: x.flip((-2, -1)),
    "rot270": lambda x: x.transpose(-2, -1).flip(-1),
    "transpose": lambda x: x.transpose(-2, -1),
    "antitranspose": lambda x: x.transpose(-2, -1).flip((-2, -1)),
}


def view(images: torch.Tensor, name: str) -> torch.Tensor:
    """One named view of images (..., H, W); any dtype. Raises KeyError for a name that is not in ``DIHEDRAL``."""
    return _VIEWS[name](images)


def combine_views(probabilities: np.ndarray, weights=EQUAL_WEIGHTS) -> np.ndarray:
    """Weighted mean over views of probabilities (N,V,C): (N,C) float64. Averaged after the softmax, as in Eq. 6."""
    weights = np.asarray(weights, dtype=np.float64)
    if probabilities.ndim != 3 or probabilities.shape[1] != len(weights):
        raise ValueError(f"expected probabilities (N, {len(weights)}, C), got {probabilities.shape}")
    return np.einsum("nvc,v->nc", probabilities.astype(np.float64), weights / weights.sum())
