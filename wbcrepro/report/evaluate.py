"""From predictions to estimates: scores per fold, their spread, and intervals of values and of paired differences.

A table value is the mean over folds. Two different uncertainties belong to it and are never mixed: the standard
deviation over folds (training sets and seeds differ, the test images do not), and the bootstrap interval over test
images (resampled within classes, one resample for all rows and folds, so differences between rows are paired).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from wbcrepro import metrics
from wbcrepro.inference.quota import rare_class_quota
from wbcrepro.report.predictions import Member, Predictions, Scored

BOOTSTRAP_SEED = 20260214


@dataclass(frozen=True)
class Spec:
    """What to score: one method, one or more backbones averaged within a fold, one view average.

    ``folds="each"`` scores every fold's models alone; ``"averaged"`` averages the probabilities of all folds first and
    gives one score. ``quota`` applies the released code's rare-class step to the predictions.
    """

    method: str
    backbones: tuple[str, ...]
    preset: str = "paper"
    view: str = "code"
    folds: str = "each"
    quota: bool = False


@dataclass(frozen=True)
class Estimate:
    """Scores of one metric: ``{fold: score}`` and ``{fold: bootstrap replicates (n,)}``, fractions in [0, 1]."""

    values: dict[object, float]
    draws: dict[object, np.ndarray]

    @property
    def mean(self) -> float:
        """Mean over folds."""
        return float(np.mean(list(self.values.values())))

    @property
    def std(self) -> float | None:
        """Sample standard deviation over folds (n - 1); None for a single fold."""
        found = list(self.values.values())
        return float(np.std(found, ddof=1)) if len(found) > 1 else None

    @property
    def folds(self) -> int:
        """How many folds entered."""
        return len(self.values)

    @property
    def replicates(self) -> np.ndarray:
        """Bootstrap replicates (n,) of the mean over folds."""
        return np.mean(list(self.draws.values()), axis=0)

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """Percentile bootstrap interval of the mean over folds."""
        low, high = np.quantile(self.replicates, [0.5 - confidence / 2, 0.5 + confidence / 2])
        return float(low), float(high)

    def pooled(self) -> Estimate:
        """The mean over folds as one value, comparable with a score of averaged folds."""
        return Estimate({"averaged": self.mean}, {"averaged": self.replicates})

    def minus(self, other: Estimate) -> Estimate | None:
        """Paired difference over the folds that both have; None when they share none."""
        return _combine([self, other], lambda a, b: a - b)


def _combine(estimates: Sequence[Estimate], function: Callable) -> Estimate | None:
    shared = [fold for fold in estimates[0].values if all(fold in e.values for e in estimates)]
    if not shared:
        return None
    return Estimate(
        {fold: function(*(e.values[fold] for e in estimates)) for fold in shared},
        {fold: function(*(e.draws[fold] for e in estimates)) for fold in shared},
    )


def average(estimates: Sequence[Estimate]) -> Estimate | None:
    """The mean of several estimates, fold by fold (for example over single backbones)."""
    return _combine(estimates, lambda *found: sum(found) / len(found)) if estimates else None


def members_of(predictions: Predictions, spec: Spec) -> list[Member]:
    """The planned members that a spec averages, finished or not."""
    return [m for b in spec.backbones for m in predictions.find(preset=spec.preset, method=spec.method, backbone=b)]


def scored(predictions: Predictions, spec: Spec, on: str = "test") -> dict[object, Scored]:
    """``{fold: Scored}``: Eq. 6 within each fold whose members are all there (``{"averaged": ...}`` over folds).

    Validation folds hold different images, so there is no average over them.
    """
    on = predictions.scored_set(on)
    found: dict[object, Scored] = {}
    for fold in predictions.folds(spec.preset):
        members = [m for m in members_of(predictions, spec) if m.fold == fold]
        parts = [predictions.read(m, on, spec.view) for m in members]
        if len(parts) == len(spec.backbones) and all(part is not None for part in parts):
            found[fold] = _mean_of(parts)
    if spec.folds == "each" or not found:
        return found
    complete = on != "val" and len(found) == len(predictions.folds(spec.preset)) > 1
    return {"averaged": _mean_of(list(found.values()))} if complete else {}


def _mean_of(parts: Sequence[Scored]) -> Scored:
    for part in parts[1:]:
        if not np.array_equal(part.ids, parts[0].ids):
            raise ValueError("members predict different images, or in a different order; they cannot be averaged")
    return Scored(parts[0].ids, parts[0].labels, np.mean([part.probabilities for part in parts], axis=0))


def decide(predictions: Predictions, spec: Spec, found: dict[object, Scored]) -> dict[object, np.ndarray]:
    """``{fold: predicted codes (N,)}``: arg-max (Eq. 7), or with the quota step of the released code."""
    if not spec.quota:
        return {fold: part.probabilities.argmax(1) for fold, part in found.items()}
    counts = {m.fold: np.array(m.train_counts) for m in members_of(predictions, spec) if m.done}
    first = next(iter(counts.values()), None)
    return {fold: rare_class_quota(part.probabilities, counts.get(fold, first)) for fold, part in found.items()}


class Evaluator:
    """Scores specs on one set and remembers them; all replicates of one evaluator are paired.

    Where a benchmark has no test set, ``test`` is the validation fold: ``on`` says which was scored.
    """

    def __init__(self, predictions: Predictions, on: str = "test", n: int | None = None, seed: int = BOOTSTRAP_SEED):
        self.predictions, self.on, self.seed = predictions, predictions.scored_set(on), seed
        profiles = predictions.paper["profiles"]
        self.n = n or profiles.get(predictions.profile, {}).get("bootstrap", 1000)
        self._decided: dict[Spec, dict] = {}
        self._estimates: dict[tuple[Spec, str], Estimate | None] = {}

    def decided(self, spec: Spec) -> dict[object, tuple[np.ndarray, np.ndarray]]:
        """``{fold: (labels, predicted codes)}``; empty when no fold is complete."""
        if spec not in self._decided:
            found = scored(self.predictions, spec, self.on)
            codes = decide(self.predictions, spec, found)
            self._decided[spec] = {fold: (found[fold].labels, codes[fold]) for fold in found}
        return self._decided[spec]

    def estimate(self, spec: Spec, metric: str) -> Estimate | None:
        """The estimate of one metric; None when no fold is complete."""
        key = (spec, metric)
        if key not in self._estimates:
            found = self.decided(spec)
            self._estimates[key] = self._score(found, metric) if found else None
        return self._estimates[key]

    def single(self, method: str, backbones: Sequence[str], metric: str, **options: object) -> Estimate | None:
        """The mean over single backbones: what one model gives on average. None unless every backbone is there."""
        parts = [self.estimate(Spec(method, (b,), **options), metric) for b in backbones]
        return average(parts) if parts and all(part is not None for part in parts) else None

    def _score(self, found: dict, metric: str) -> Estimate:
        classes = len(self.predictions.classes)
        values = {fold: metrics.scores(true, codes, classes)[metric] for fold, (true, codes) in found.items()}
        groups: dict[bytes, list] = {}
        for fold, (true, _) in found.items():
            groups.setdefault(true.tobytes(), []).append(fold)  # folds that share a test set share the resamples
        draws = {}
        for folds in groups.values():
            replicates = metrics.bootstrap_draws(
                [found[fold][1] for fold in folds], found[folds[0]][0], metric, self.n, self.seed,
                n_classes=classes, stratified=True,
            )  # fmt: skip
            draws |= {fold: replicates[:, k] for k, fold in enumerate(folds)}
        return Estimate(values, draws)
