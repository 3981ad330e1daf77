"""From predictions on held-out laboratories to estimates: scores per trial, their spread, paired intervals.

A value is the mean over trials. Its standard deviation is over trials (other folds, seeds and initial weights); its
interval resamples the images of the held-out laboratory within classes (images of one slide, patient or cell
together, where that is known), with one resample for all methods and trials, so differences between
rows are paired. An average over laboratories resamples each of them on its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from wbcrepro import metrics
from wbcrepro.report.domain_predictions import DomainMember, DomainPredictions, DomainScored
from wbcrepro.report.evaluate import BOOTSTRAP_SEED, Estimate, average
from wbcrepro.seeds import derive_seed

ROWS = {
    "all": "all images of the held-out laboratory",
    "in_split": "the four fifths of the held-out laboratory that the released code scores (they change with the trial)",
}
CLASSES = {
    "target": "the classes that occur in the scored laboratory",
    "list": "the whole class list, 0 for a class that does not occur",
    "occurring": "the classes that occur in truth or prediction (scikit-learn's default)",
}


@dataclass(frozen=True)
class DomainSpec:
    """What to score: one method under one preset, which weights, which rows, and what the macro average runs over.

    ``without_lone`` leaves out the images of classes of which the laboratory has exactly one image.
    """

    method: str
    preset: str = "paper"
    selection: str = "swad"
    on: str = "test"
    rows: str = "all"
    classes: str = "target"
    without_lone: bool = False
    target: str | None = None
    """A variant of the held-out laboratory to score instead of itself."""

    def __post_init__(self) -> None:
        """Refuse unknown switches."""
        if self.rows not in ROWS or self.classes not in CLASSES:
            raise ValueError(f"({self.rows!r}, {self.classes!r}): expected one of {list(ROWS)} and {list(CLASSES)}")


@dataclass(frozen=True)
class Decided:
    """One trial: images with label and predicted codes (N,) int64, which of them are scored (N,) bool, the codes that
    a macro average runs over (None: the whole list), and what is resampled together (N,) text."""

    ids: np.ndarray
    labels: np.ndarray
    codes: np.ndarray
    rows: np.ndarray
    average_over: np.ndarray | None
    groups: np.ndarray


def lone_classes(labels: np.ndarray) -> np.ndarray:
    """Codes of the classes with exactly one image: one image decides their F1."""
    codes, counts = np.unique(labels, return_counts=True)
    return codes[counts == 1]


def decide(scored: DomainScored, spec: DomainSpec, trial: int, n_classes: int) -> Decided:
    """Arg-max over the classes, and what of it is scored."""
    rows = np.ones(len(scored.labels), bool)
    if spec.rows == "in_split" and spec.on == "test":
        rows &= scored.folds != trial
    left_out = lone_classes(scored.labels) if spec.without_lone else np.empty(0, int)
    rows &= ~np.isin(scored.labels, left_out)
    over = None
    if spec.classes == "target":
        over = np.unique(scored.labels[rows])
    elif spec.classes == "list" and len(left_out):
        over = np.setdiff1d(np.arange(n_classes), left_out)
    groups = np.where(scored.groups == "", scored.ids, scored.groups)
    return Decided(scored.ids, scored.labels, scored.probabilities.argmax(1), rows, over, groups)


class DomainEvaluator:
    """Scores specs and remembers them; all replicates of one evaluator are paired."""

    def __init__(self, predictions: DomainPredictions, n: int | None = None, seed: int = BOOTSTRAP_SEED):
        self.predictions, self.seed = predictions, seed
        self.n = n or predictions.paper["profiles"].get(predictions.profile, {}).get("bootstrap", 1000)
        self._decided: dict[tuple[DomainSpec, str], dict[int, Decided]] = {}
        self._estimates: dict[tuple[DomainSpec, str, str], Estimate | None] = {}

    def members(self, spec: DomainSpec, laboratory: str) -> list[DomainMember]:
        """The planned trials of a spec on one held-out laboratory, finished or not."""
        return self.predictions.find(preset=spec.preset, method=spec.method, held_out=laboratory)

    def decided(self, spec: DomainSpec, laboratory: str) -> dict[int, Decided]:
        """``{trial: Decided}`` of the finished trials."""
        key = (spec, laboratory)
        if key not in self._decided:
            found = {
                m.trial: self.predictions.read(m, spec.on, spec.selection, spec.target) for m in self.members(*key)
            }
            size = len(self.predictions.classes)
            self._decided[key] = {t: decide(s, spec, t, size) for t, s in sorted(found.items()) if s is not None}
        return self._decided[key]

    def estimate(self, spec: DomainSpec, laboratories: Sequence[str], metric: str) -> Estimate | None:
        """The estimate of one metric, averaged over laboratories trial by trial; None unless each has a trial."""
        parts = [self._one(spec, laboratory, metric) for laboratory in laboratories]
        return average(parts) if parts and all(part is not None for part in parts) else None

    def difference(
        self, left: DomainSpec, right: DomainSpec, laboratories: Sequence[str], metric: str
    ) -> Estimate | None:
        """The paired difference left minus right over the trials that both have."""
        one, other = (self.estimate(spec, laboratories, metric) for spec in (left, right))
        return one.minus(other) if one and other else None

    def _one(self, spec: DomainSpec, laboratory: str, metric: str) -> Estimate | None:
        if (spec, laboratory, metric) not in self._estimates:
            planned = self.predictions.find(preset=spec.preset, held_out=laboratory)
            methods = dict.fromkeys([spec.method, *(m.method for m in planned)])
            specs = [replace(spec, method=method) for method in methods]  # one resample serves all of them
            self._score(specs, laboratory, metric)
        return self._estimates[spec, laboratory, metric]

    def _score(self, specs: list[DomainSpec], laboratory: str, metric: str) -> None:
        classes, groups = len(self.predictions.classes), {}
        name = "macro_f1_present" if metric == "macro_f1" and specs[0].classes == "occurring" else metric
        for spec in specs:
            for trial, found in self.decided(spec, laboratory).items():
                groups.setdefault(found.ids.tobytes(), []).append((spec, trial, found))
        values: dict[DomainSpec, dict] = {spec: {} for spec in specs}
        draws: dict[DomainSpec, dict] = {spec: {} for spec in specs}
        for group in groups.values():
            first = group[0][2]
            seed = derive_seed(self.seed, laboratory, *([group[0][1]] if group[0][0].on == "val" else []))
            replicates = metrics.bootstrap_draws(
                [found.codes for *_, found in group], first.labels, name, self.n, seed, n_classes=classes,
                stratified=True, groups=first.groups, rows=[found.rows for *_, found in group],
                average_over=[found.average_over for *_, found in group],
            )  # fmt: skip
            for column, (spec, trial, found) in enumerate(group):
                true, pred = found.labels[found.rows], found.codes[found.rows]
                value = metrics.score(true, pred, name, classes, average_over=found.average_over)
                values[spec][trial], draws[spec][trial] = value, replicates[:, column]
        for spec in specs:
            order = sorted(values[spec])
            self._estimates[spec, laboratory, metric] = (
                Estimate({t: values[spec][t] for t in order}, {t: draws[spec][t] for t in order}) if order else None
            )
