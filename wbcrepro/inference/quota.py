"""The rare-class quota of the released code of `decoupled` ("smart rare class adjustment"), which the paper omits.

Transductive: it looks at how often each class is predicted in the whole test set. With training prior pi_c and N test
images the floor of class c is max(1, int(fraction * int(N * pi_c))). Classes below their floor, the largest deficit
first, take the images of highest p_c above ``min_probability`` that do not already carry that class; a later class may
take images that an earlier one was given.
"""

import numpy as np


def quota_floors(train_counts: np.ndarray, images: int, fraction: float = 0.2) -> np.ndarray:
    """The least number of predictions of each class, (C,) int64, for a test set of ``images`` images."""
    expected = (images * (train_counts / train_counts.sum())).astype(np.int64)
    return np.maximum(1, (expected * fraction).astype(np.int64))


def rare_class_quota(probabilities: np.ndarray, train_counts: np.ndarray, fraction: float = 0.2,
                     min_probability: float = 0.001) -> np.ndarray:
    """Arg-max predictions (N,) int64 after the quota step.

    probabilities (N,C); train_counts (C,) in the same class order. The released code calls it with 0.2 and 0.001.
    """
    predictions = probabilities.argmax(axis=1)
    deficit = quota_floors(np.asarray(train_counts), len(probabilities), fraction) - np.bincount(
        predictions, minlength=probabilities.shape[1])
    for label in np.argsort(-deficit, kind="stable"):
        if deficit[label] <= 0:
            break
        order = np.argsort(-probabilities[:, label], kind="stable")
        eligible = order[(predictions[order] != label) & (probabilities[order, label] > min_probability)]
        predictions[eligible[: deficit[label]]] = label
    return predictions
