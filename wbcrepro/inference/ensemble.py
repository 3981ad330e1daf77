"""Probability averaging over models, folds and views: `decoupled`, Eq. 6 (the mean) and Eq. 7 (the arg-max)."""

from collections.abc import Sequence

import numpy as np

from wbcrepro.inference.tta import EQUAL_WEIGHTS, combine_views


def mean_probabilities(members: Sequence[np.ndarray], view_weights: Sequence[float] = EQUAL_WEIGHTS,
                       member_weights: Sequence[float] | None = None) -> np.ndarray:
    """The mean over members (models or folds) of the weighted mean over views: (N,C) float64.

    ``members``: arrays (N,V,C) of softmax outputs of the same images in the same order, any float type.
    ``member_weights``: default equal (Eq. 6); they are divided by their sum, as the released code does.
    """
    if not members:
        raise ValueError("an ensemble needs at least one member")
    shapes = {member.shape for member in members}
    if len(shapes) > 1:
        raise ValueError(f"members predict different images, views or classes: shapes {sorted(shapes)}")
    weights = np.ones(len(members)) if member_weights is None else np.asarray(member_weights, dtype=np.float64)
    if len(weights) != len(members):
        raise ValueError(f"{len(members)} members but {len(weights)} weights")
    weights = weights / weights.sum()
    return sum(weight * combine_views(member, view_weights) for weight, member in zip(weights, members, strict=True))


def predict_classes(probabilities: np.ndarray) -> np.ndarray:
    """Eq. 7: the class of the highest probability; probabilities (N,C), result (N,) int64, ties to the lower index."""
    return probabilities.argmax(axis=1)
