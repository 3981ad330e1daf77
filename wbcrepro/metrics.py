"""Scores over a fixed class list, Wilson intervals and bootstrap intervals.

Libraries disagree on classes that are absent from the truth or from the predictions, so the list is always given:
class codes are 0..C-1 and every macro average divides by C, with 0 where a ratio is 0/0. One exception is kept because
the field means it by the name: ``balanced_accuracy`` averages recall over the classes that occur in the truth
(scikit-learn's definition). All scores are fractions in [0, 1].
"""

from collections.abc import Sequence

import numpy as np
from scipy import sparse, stats

MACRO = ("macro_f1", "balanced_accuracy", "macro_precision", "macro_specificity", "macro_recall", "accuracy",
         "macro_f1_present", "weighted_f1", "micro_f1")


def confusion(true: np.ndarray, pred: np.ndarray, n_classes: int) -> np.ndarray:
    """Confusion matrix (C, C) int64, rows = truth. Raises ValueError for codes outside 0..C-1 or unequal lengths."""
    true, pred = np.asarray(true, dtype=np.int64).ravel(), np.asarray(pred, dtype=np.int64).ravel()
    if true.shape != pred.shape:
        raise ValueError(f"{len(true)} labels but {len(pred)} predictions")
    for name, codes in (("true", true), ("predicted", pred)):
        if len(codes) and (codes.min() < 0 or codes.max() >= n_classes):
            raise ValueError(f"{name} codes span {codes.min()}..{codes.max()}, expected 0..{n_classes - 1}")
    return np.bincount(true * n_classes + pred, minlength=n_classes**2).reshape(n_classes, n_classes)


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    numerator, denominator = np.broadcast_arrays(np.asarray(numerator, float), np.asarray(denominator, float))
    return np.divide(numerator, denominator, out=np.zeros(numerator.shape), where=denominator != 0)


def _from_margins(hit: np.ndarray, support: np.ndarray, predicted: np.ndarray, metric: str) -> np.ndarray:
    """One score from diagonal, row sums and column sums of confusion matrices, each (..., C) -> (...)."""
    total = support.sum(-1, keepdims=True)
    if metric in ("macro_f1", "macro_f1_present", "weighted_f1"):
        f1 = _ratio(2 * hit, support + predicted)
        if metric == "macro_f1":
            return f1.mean(-1)
        if metric == "weighted_f1":
            return _ratio((f1 * support).sum(-1), total[..., 0])
        return _ratio(f1.sum(-1), ((support + predicted) > 0).sum(-1))
    if metric == "balanced_accuracy":
        return _ratio(_ratio(hit, support).sum(-1), (support > 0).sum(-1))
    if metric == "macro_recall":
        return _ratio(hit, support).mean(-1)
    if metric == "macro_precision":
        return _ratio(hit, predicted).mean(-1)
    if metric == "macro_specificity":
        return _ratio(total - support - predicted + hit, total - support).mean(-1)
    if metric in ("accuracy", "micro_f1"):  # one label an image: every false positive is another class's miss
        return _ratio(hit.sum(-1), total[..., 0])
    raise ValueError(f"unknown metric {metric!r}, expected one of {', '.join(MACRO)}")


def scores(true: np.ndarray, pred: np.ndarray, n_classes: int) -> dict:
    """All scores of one prediction set, JSON-able: the names in ``MACRO``, ``n`` and ``per_class`` (lists of length C).

    ``macro_f1_present`` averages over labels that occur in truth or prediction (scikit-learn's default and what the
    `sada` code reports); specificity is TN / (TN + FP).
    """
    matrix = confusion(true, pred, n_classes)
    hit, support, predicted = np.diag(matrix), matrix.sum(1), matrix.sum(0)
    result = {name: float(_from_margins(hit, support, predicted, name)) for name in MACRO}
    total = matrix.sum()
    result["n"] = int(total)
    result["per_class"] = {
        "f1": _ratio(2 * hit, support + predicted).tolist(),
        "precision": _ratio(hit, predicted).tolist(),
        "recall": _ratio(hit, support).tolist(),
        "specificity": _ratio(total - support - predicted + hit, total - support).tolist(),
        "support": support.tolist(),
    }
    return result


def score(
    true: np.ndarray, pred: np.ndarray, metric: str, n_classes: int, *, average_over: np.ndarray | None = None
) -> float:
    """One score; ``average_over`` (codes that hold every true label) limits the macro average to these classes.

    A prediction outside ``average_over`` stays an error: it is missing from the recall of its image's class.
    """
    matrix = confusion(true, pred, n_classes)
    margins = np.diag(matrix), matrix.sum(1), matrix.sum(0)
    return float(_from_margins(*_only(margins, average_over), metric))


def _only(margins: Sequence[np.ndarray], classes: np.ndarray | None) -> list[np.ndarray]:
    """The margins (..., C) of some classes; ValueError where a left-out class has images."""
    if classes is None:
        return list(margins)
    if np.delete(margins[1], classes, axis=-1).any():
        raise ValueError("average_over leaves out a class that has images; leave its images out too")
    return [values[..., classes] for values in margins]


def wilson_interval(successes, total, confidence: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    """Wilson score interval (low, high) of a proportion; element-wise, (0, 1) where ``total`` is 0.

    Unlike the usual p +- 1.96 s it stays inside [0, 1] and does not collapse at 0 of n or n of n. (Wilson, 1927)
    """
    k, n = np.asarray(successes, float), np.asarray(total, float)
    z = stats.norm.ppf(0.5 + confidence / 2)
    safe = np.where(n > 0, n, 1)
    p, shrink = k / safe, 1 + z**2 / safe
    centre = (p + z**2 / (2 * safe)) / shrink
    half = z * np.sqrt(p * (1 - p) / safe + z**2 / (4 * safe**2)) / shrink
    low = np.where(n > 0, np.where(k == 0, 0.0, centre - half), 0.0)
    high = np.where(n > 0, np.where(k == n, 1.0, centre + half), 1.0)
    return low, high


def _draw_weights(labels, groups, stratified: bool, n: int, rng: np.random.Generator) -> np.ndarray:
    """How often each item is in each resample: (N, n) float64.

    A stratum whose items all share one group would be the same in every resample, as if it were known without error:
    its items are resampled one by one. That knows nothing of the spread between groups and is still too narrow.
    """
    strata = labels if stratified else np.zeros_like(labels)
    weights = np.empty((len(labels), n))
    for stratum in np.unique(strata):
        rows = np.flatnonzero(strata == stratum)
        units = rows if groups is None else np.asarray(groups)[rows]
        _, code = np.unique(units, return_inverse=True)
        if not code.any():
            code = np.arange(len(rows))
        size = code.max() + 1
        weights[rows] = rng.multinomial(size, np.full(size, 1 / size), size=n).T[code]
    return weights


def bootstrap_draws(
    predictions: Sequence[np.ndarray], labels: np.ndarray, metric: str = "macro_f1", n: int = 2000, seed: int = 0, *,
    n_classes: int, stratified: bool = False, groups: np.ndarray | None = None,
    rows: Sequence[np.ndarray] | None = None, average_over: Sequence[np.ndarray] | None = None,
) -> np.ndarray:
    """Bootstrap replicates (n, K) of ``metric`` for K prediction sets over the same N items.

    One resample of items serves all K sets, so differences between columns are paired. ``stratified`` keeps the class
    counts of the test set; ``groups`` resamples whole groups (patients) instead of images, with ``stratified`` the
    images of a group in one class together (one by one where a class has one group only). The same seed, labels and
    options give the same resamples, so two calls can be subtracted as well. ``rows`` (K masks (N,)) limits each set to
    some of the resampled items, ``average_over`` (K arrays of codes) its macro average to some classes (see `score`).
    """
    labels = np.asarray(labels, dtype=np.int64)
    sets = [np.asarray(p, dtype=np.int64) for p in predictions]
    if not len(labels) or not sets:
        raise ValueError("a bootstrap needs at least one item and one prediction set")
    for pred in sets:
        confusion(labels, pred, n_classes)  # refuses wrong codes and lengths
    rng, out = np.random.default_rng(seed), np.empty((n, len(sets)))
    chunk = max(1, min(n, 20_000_000 // len(labels)))  # at most 160 MB of weights at a time
    for start in range(0, n, chunk):
        size = min(chunk, n - start)
        weights = _draw_weights(labels, groups, stratified, size, rng)
        support = _class_sums(labels, None, weights, n_classes)
        for k, pred in enumerate(sets):
            keep = None if rows is None else rows[k]
            right = labels == pred if keep is None else (labels == pred) & keep
            there = support if keep is None else _class_sums(labels, keep, weights, n_classes)
            margins = [_class_sums(labels, right, weights, n_classes), there,
                       _class_sums(pred, keep, weights, n_classes)]
            out[start:start + size, k] = _from_margins(*_only(margins, average_over and average_over[k]), metric)
    return out


def _class_sums(codes: np.ndarray, keep: np.ndarray | None, weights: np.ndarray, n_classes: int) -> np.ndarray:
    """Summed weights (n, C) of the items of each class, of those to ``keep`` only."""
    ones = np.ones(len(codes)) if keep is None else keep.astype(float)
    onehot = sparse.csr_matrix((ones, (codes, np.arange(len(codes)))), shape=(n_classes, len(codes)))
    return (onehot @ weights).T


def bootstrap(
    predictions: Sequence[np.ndarray], labels: np.ndarray, metric: str = "macro_f1", n: int = 2000, seed: int = 0, *,
    n_classes: int, stratified: bool = False, groups: np.ndarray | None = None, confidence: float = 0.95,
) -> tuple[float, float]:
    """Percentile interval of ``metric`` averaged over the prediction sets (folds); see `bootstrap_draws`.

    It speaks of the test images that were drawn; the spread between trainings is the standard deviation over folds.
    """
    options = {"n_classes": n_classes, "stratified": stratified, "groups": groups}
    draws = bootstrap_draws(predictions, labels, metric, n, seed, **options)
    low, high = np.quantile(draws.mean(1), [0.5 - confidence / 2, 0.5 + confidence / 2])
    return float(low), float(high)
