"""What suppress-and-rescue did to each image: which phase let it pass or stopped it, and by how much."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import pandas as pd

from wbcrepro.rescue.phases import Phase, reasons
from wbcrepro.rescue.rules import Rules

REASONS = {
    "no_candidate": "no rare class with a rule in force surfaced",
    "no_embedding": "surfaced, but there is no embedding to ask the second model about",
    "semantic": "the second model gives the class too little",
    "not_confused": "the standing label is not one that the class is confused with (released code)",
    "too_sure": "the standing label is too sure of itself (released code)",
    "no_parameters": "the rule has no Gaussian",
    "unmeasurable": "the cell could not be measured",
    "box": "a feature lies outside the box of the training cells (released code)",
    "cue": "the cell does not look like the class",
    "rescued": "all phases passed; the label changes",
    "confirmed": "all phases passed; the image had this label anyway",
}
CUE_NAMES = {"spikiness": "spikiness", "mahalanobis": "Mahalanobis distance", None: "no cue"}


@dataclass(frozen=True)
class Trace:
    """One run over N images. Class codes are int16, flags bool, numbers float32.

    ``base`` (N,): arg-max of the first model. ``standing`` (N,): label of an image that is not rescued; ``base`` in
    mode "paper", after the demotion of rare labels in mode "code". ``final`` (N,): the result. ``phase1`` and
    ``phase2`` (N,): labels if the algorithm stopped after that phase and took its candidates as they are. ``candidate``
    (N,): the rare class that surfaced, -1 = none. ``nearest`` and ``rival`` (N,): rare class that phase 1 looked at and
    the class it had to beat. ``passed``, ``value``, ``limit``, ``margin`` (N, 3): per phase; ``margin`` is signed,
    positive = passed, NaN = not reached or not measurable. ``reason`` (N,): a key of `REASONS`.
    """

    base: np.ndarray
    standing: np.ndarray
    final: np.ndarray
    phase1: np.ndarray
    phase2: np.ndarray
    candidate: np.ndarray
    nearest: np.ndarray
    rival: np.ndarray
    passed: np.ndarray
    value: np.ndarray
    limit: np.ndarray
    margin: np.ndarray
    reason: np.ndarray
    rules: Rules
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.final)

    @property
    def after_phase(self) -> dict[str, np.ndarray]:
        """Labels (N,) by stage: "base", "phase1", "phase2", "phase3" (= final); the rows of a waterfall."""
        return {"base": self.base, "phase1": self.phase1, "phase2": self.phase2, "phase3": self.final}

    def counts(self) -> dict[str, int]:
        """Number of images by reason, in the order of `REASONS`; they add up to N."""
        found = Counter(self.reason.tolist())
        return {reason: found[reason] for reason in REASONS if found[reason]}

    def to_arrays(self, prefix: str = "") -> dict[str, np.ndarray]:
        """Everything but rules and classes, for ``np.savez``; `from_arrays` is the inverse."""
        return {prefix + name: getattr(self, name) for name in ARRAYS}

    @classmethod
    def from_arrays(cls, arrays, rules: Rules, classes: Sequence[str], prefix: str = "") -> "Trace":
        """The trace whose arrays (a dict or an open npz) were stored under ``prefix``."""
        return cls(**{name: arrays[prefix + name] for name in ARRAYS}, rules=rules, classes=tuple(classes))

    def to_frame(self, ids: Sequence[str]) -> pd.DataFrame:
        """One row an image: id, labels by name, flag and margin of each phase, reason."""
        names = np.array([*self.classes, ""])  # code -1 picks the empty name
        frame = {"id": list(ids), "base": names[self.base], "candidate": names[self.candidate],
                 "final": names[self.final]}
        for k in range(3):
            frame |= {f"passed_{k + 1}": self.passed[:, k], f"margin_{k + 1}": self.margin[:, k]}
        return pd.DataFrame(frame | {"reason": self.reason})


ARRAYS = tuple(field.name for field in fields(Trace) if field.name not in ("rules", "classes"))


def assemble(*, base, standing, phase1, phase2, candidate, nearest, rival, phases: Sequence[Phase], rules, classes):
    """The `Trace` of N images from what the three phases said of each image's candidate (class codes, -1 = none).

    A phase behind the first that failed was not reached: its flag is False and its numbers are NaN.
    """
    passed = np.logical_and.accumulate(np.stack([phase.passed for phase in phases], 1), axis=1)
    reached = np.concatenate([np.ones((len(base), 1), dtype=bool), passed[:, :-1]], axis=1)
    numbers = {name: np.where(reached, np.stack([getattr(phase, name) for phase in phases], 1), np.nan)
               for name in ("value", "limit", "margin")}
    final = np.where(passed[:, 2], candidate, standing)
    stopped = [(reached[:, k] & ~passed[:, k] & (phase.reason == word), word)
               for k, phase in enumerate(phases) for word in np.unique(phase.reason) if word]
    reason = reasons(len(base), *stopped, (final == standing, "confirmed"), (passed[:, 2], "rescued"))
    codes = {"base": base, "standing": standing, "final": final, "phase1": phase1, "phase2": phase2,
             "candidate": candidate, "nearest": nearest, "rival": rival}
    return Trace(**{name: np.asarray(value, dtype=np.int16) for name, value in codes.items()}, passed=passed,
                 **{name: value.astype(np.float32) for name, value in numbers.items()},
                 reason=reason, rules=rules, classes=tuple(classes))


def _verdict(trace: Trace, i: int, k: int) -> str:
    margin = float(trace.margin[i, k])
    if trace.passed[i, k]:
        return "passed" if np.isnan(margin) else f"passed by {margin:.2g}"
    why = trace.reason[i]
    if why in ("no_candidate", "semantic", "cue"):
        return f"stopped, {-margin:.2g} short" if margin < 0 else "stopped, at the limit"
    return f"stopped: {REASONS[why]}"


def explain(trace: Trace, i: int) -> list[str]:
    """One short sentence for the base label, for each phase that image ``i`` reached, and for the result."""
    name = trace.classes
    lines = [f"base label: {name[trace.base[i]]}"]
    if trace.standing[i] != trace.base[i]:
        lines.append(f"demoted to {name[trace.standing[i]]}, the runner-up")
    if trace.nearest[i] < 0:
        return [*lines, "no rule is in force", f"final label: {name[trace.final[i]]}"]
    rare, value, limit = name[trace.nearest[i]], trace.value[i], trace.limit[i]
    lines.append(f"phase 1: boosted P[{rare}] {value[0]:.4g} against {limit[0]:.4g} of {name[trace.rival[i]]}: "
                 + _verdict(trace, i, 0))
    if trace.passed[i, 0]:
        seen = "no embedding" if np.isnan(value[1]) else f"semantic P[{rare}] {value[1]:.4g} against {limit[1]:.4g}"
        lines.append(f"phase 2: {seen}: {_verdict(trace, i, 1)}")
    if trace.passed[i, 1]:
        cue = CUE_NAMES[trace.rules.of(rare).cue]
        numbers = "" if np.isnan(value[2]) else f" {value[2]:.4g} against {limit[2]:.4g}"
        lines.append(f"phase 3: {cue}{numbers}: {_verdict(trace, i, 2)}")
    return [*lines, f"final label: {name[trace.final[i]]}"]
