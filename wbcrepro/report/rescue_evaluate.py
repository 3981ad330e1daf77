"""From stored probabilities of both branches to estimates: scores, their spread over folds, paired differences.

Test images are resampled within classes, images of one patient or slide together where they are known; one resample
serves all rows and folds of a benchmark, and both copies of a degraded image, so differences are paired. A row that
averages folds is one number; what training anew would change is asked of the folds alone: each fold's network and
second branch go through the same phases with the same rules (`RescueEvaluator.change`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from wbcrepro import metrics
from wbcrepro.report.evaluate import BOOTSTRAP_SEED, Estimate
from wbcrepro.report.rescue_predictions import RescuePredictions, RescueScored
from wbcrepro.rescue.rules import Rules
from wbcrepro.rescue.suppress_rescue import suppress_and_rescue
from wbcrepro.rescue.trace import Trace
from wbcrepro.seeds import derive_seed

STAGES = {"base": "base", "phase1": "phase1", "phase2": "phase2", "final": "phase3"}
"""What a row of Table 2 calls a stage, and its key in `Trace.after_phase`."""
AVERAGED = "averaged"


@dataclass(frozen=True)
class RescueSpec:
    """What to score: networks of one row, and how far the rescue goes. ``rules`` matters from phase 1 on.

    ``folds``: "averaged" (probabilities of all folds averaged, one score) or "each" (every fold alone).
    """

    row: str = "swin"
    stage: str = "base"
    rules: str = "paper"
    preset: str = "paper"
    views: str = "tta"
    folds: str = AVERAGED
    benchmark: str = ""

    def __post_init__(self) -> None:
        """Refuse unknown switches."""
        if self.stage not in STAGES or self.folds not in (AVERAGED, "each"):
            raise ValueError(f"({self.stage!r}, {self.folds!r}): expected one of {list(STAGES)} and averaged, each")


@dataclass(frozen=True)
class Decided:
    """Images (N,) with ids, label and predicted codes, and what is resampled together (text)."""

    ids: np.ndarray
    labels: np.ndarray
    codes: np.ndarray
    units: np.ndarray


@dataclass(frozen=True)
class Branches:
    """Both branches on the same images: probabilities (N, C) of the networks, and of the second branch (NaN = none)."""

    scored: RescueScored
    semantic: np.ndarray


def units_of(ids: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """What is resampled together, text (N,): the group, or the image alone where none is known."""
    return np.where(groups == "", ids, groups)


def paired(left: Estimate, right: Estimate) -> Estimate:
    """Left minus right, fold by fold; an average over folds stands beside each single fold of the other.

    Raises ValueError where neither is an average and they share no fold.
    """
    found = left.minus(right)
    if found is not None:
        return found
    if AVERAGED in left.values:
        whole = (left.values[AVERAGED], left.draws[AVERAGED])
        return Estimate({f: whole[0] - v for f, v in right.values.items()},
                        {f: whole[1] - d for f, d in right.draws.items()})  # fmt: skip
    if AVERAGED in right.values:
        turned = paired(right, left)
        return Estimate({f: -v for f, v in turned.values.items()}, {f: -d for f, d in turned.draws.items()})
    raise ValueError(f"no fold in common: {list(left.values)} and {list(right.values)}")


class RescueEvaluator:
    """Scores specs and remembers them; all replicates on the images of one benchmark are paired."""

    def __init__(self, predictions: RescuePredictions, n: int | None = None, seed: int = BOOTSTRAP_SEED):
        self.predictions, self.seed = predictions, seed
        self.n = n or predictions.paper["profiles"].get(predictions.profile, {}).get("bootstrap", 1000)
        self._known: dict[tuple, object] = {}

    def _remember(self, key: tuple, make: object) -> object:
        if key not in self._known:
            self._known[key] = make()
        return self._known[key]

    def folds(self, spec: RescueSpec, on: str) -> dict[int, RescueScored]:
        """``{fold: probabilities}`` of the finished networks of a row; empty unless they saw the same test images."""
        members = self.predictions.networks(spec.row, spec.preset, spec.benchmark)
        found = {m.fold: self.predictions.read(m, on, spec.views) for m in members if m.done}
        return {fold: scored for fold, scored in sorted(found.items()) if scored is not None}

    def complete(self, spec: RescueSpec) -> bool:
        """Whether every planned fold of a row has run."""
        members = self.predictions.networks(spec.row, spec.preset, spec.benchmark)
        return bool(members) and all(m.done for m in members)

    def averaged(self, spec: RescueSpec, on: str) -> RescueScored | None:
        """Probabilities averaged over all planned folds; None while one of them is missing."""
        found = list(self.folds(spec, on).values())
        if not found or not self.complete(spec):
            return None
        if any(not np.array_equal(part.ids, found[0].ids) for part in found):
            raise ValueError(f"folds of {spec.row} scored different images of {on}; they cannot be averaged")
        return replace(found[0], probabilities=np.mean([part.probabilities for part in found], axis=0))

    def semantic(self, preset: str, on: str, fold: int | None, benchmark: str = "") -> np.ndarray | None:
        """Second branch, (N, C) float64, NaN rows without an embedding: of one fold, or averaged over folds (None)."""
        members = [m for m in self.predictions.select("semantic", preset, benchmark) if m.fold >= 0]
        members = [m for m in members if fold is None or m.fold == fold]
        if not members or not all(m.done for m in members):
            return None
        parts = [self.predictions.read(m, on) for m in members]
        return None if any(p is None for p in parts) else np.mean([p.probabilities for p in parts], axis=0)

    def branches(self, spec: RescueSpec, on: str, fold: int | None = None) -> Branches | None:
        """Both branches, of one fold or averaged; None while something is missing."""
        scored = self.averaged(spec, on) if fold is None else self.folds(spec, on).get(fold)
        semantic = self.semantic(spec.preset, on, fold, spec.benchmark)
        return None if scored is None or semantic is None else Branches(scored, semantic)

    def rescued(self, spec: RescueSpec, on: str, fold: int | None = None, rules: Rules | None = None) -> Trace | None:
        """Suppress-and-rescue anew, of one fold or of the average; ``rules`` replaces the fitted ones."""
        rules = rules or self.predictions.rules(spec.rules, spec.benchmark)
        both = self.branches(spec, on, fold)
        if rules is None or both is None:
            return None
        cells = self.predictions.measured(spec.preset, on, both.scored.ids, spec.benchmark)
        if cells is None:
            return None
        return suppress_and_rescue(both.scored.probabilities, both.semantic, cells, rules, self.predictions.classes)

    def decided(self, spec: RescueSpec, on: str) -> dict[object, Decided]:
        """``{fold or "averaged": Decided}``; empty while something is missing (an average needs every fold)."""
        return self._remember(("decided", spec, on), lambda: self._decide(spec, on))

    def _decide(self, spec: RescueSpec, on: str) -> dict[object, Decided]:
        if spec.stage != "base" and spec.folds == AVERAGED:
            found = self.predictions.trace(spec.rules, on, spec.benchmark)
            codes = {} if found is None else {AVERAGED: (found[0], found[1].after_phase[STAGES[spec.stage]])}
        elif spec.folds == AVERAGED:
            scored = self.averaged(spec, on)
            codes = {} if scored is None else {AVERAGED: (scored, scored.probabilities.argmax(1))}
        else:
            codes = {fold: (s, self._codes_of(spec, on, fold, s)) for fold, s in self.folds(spec, on).items()}
        return {
            fold: Decided(s.ids, s.labels, np.asarray(chosen, np.int64), units_of(s.ids, s.groups))
            for fold, (s, chosen) in codes.items()
            if chosen is not None
        }

    def _codes_of(self, spec: RescueSpec, on: str, fold: int, scored: RescueScored) -> np.ndarray | None:
        if spec.stage == "base":
            return scored.probabilities.argmax(1)
        key = ("trace", replace(spec, stage="base"), on, fold)
        trace = self._remember(key, lambda: self.rescued(spec, on, fold))
        return None if trace is None else trace.after_phase[STAGES[spec.stage]]

    def estimate(
        self, spec: RescueSpec, on: str, metric: str = "macro_f1", target: str = ""
    ) -> Estimate | None:
        """One metric on a test set; ``target`` limits ``macro_recall`` to one class. None where nothing is decided."""
        key = ("estimate", spec, on, metric, target)
        return self._remember(key, lambda: self.score(self.decided(spec, on), metric, spec.benchmark, target))

    def score(
        self, found: dict[object, Decided], metric: str, benchmark: str = "", target: str = ""
    ) -> Estimate | None:
        """The estimate of decisions on the same images; None where there are none, or none of the target class."""
        if not found:
            return None
        first = next(iter(found.values()))
        options: dict = {}
        if target:
            code = self.predictions.classes.index(target)
            if not (first.labels == code).any():
                return None
            options = {"rows": [first.labels == code] * len(found), "average_over": [np.array([code])] * len(found)}
        classes = len(self.predictions.classes)
        replicates = metrics.bootstrap_draws(
            [d.codes for d in found.values()], first.labels, metric, self.n,
            derive_seed(self.seed, benchmark or self.predictions.benchmark), n_classes=classes, stratified=True,
            groups=first.units, **options,
        )  # fmt: skip
        values = {}
        for fold, d in found.items():
            rows = d.labels == code if target else slice(None)
            over = np.array([code]) if target else None
            values[fold] = metrics.score(d.labels[rows], d.codes[rows], metric, classes, average_over=over)
        return Estimate(values, {fold: replicates[:, k] for k, fold in enumerate(found)})

    def change(self, left: RescueSpec, right: RescueSpec, on: str, metric: str = "macro_f1", target: str = ""
               ) -> Estimate | None:  # fmt: skip
        """Left minus right with what training anew would change: over folds, each through its own row.

        A single network (``views`` identity) on one side is compared with the average on the other.
        """
        if "identity" not in (left.views, right.views):
            left, right = (replace(spec, folds="each") for spec in (left, right))
        one, other = (self.estimate(spec, on, metric, target) for spec in (left, right))
        return paired(one, other) if one and other else None
