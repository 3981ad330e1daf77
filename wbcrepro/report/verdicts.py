"""The only words in which this project judges a number or a claim.

"Reproduced" is not among them. A value obtained on other data or with other networks is never compared as a value; what
can be compared is the direction of a difference between two rows that were computed in the same way.

A direction must hold against both sources of chance. The bootstrap interval asks whether other images of the same kind
would turn it; the t-interval over folds or trials asks whether training anew would. The latter takes folds as
independent although their training sets overlap, so it is rather too narrow; below three there is none, and nothing is
decided.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from scipy import stats

from wbcrepro.report.evaluate import Estimate

VALUES = {
    "within": "same data: within two standard deviations",
    "above": "same data: above the paper",
    "below": "same data: below the paper",
    "not comparable": "other data: value not comparable",
    "same": "same direction",
    "same, unsure": "same direction, unsure",
    "opposite": "opposite direction",
    "opposite, unsure": "opposite direction, unsure",
    "flat": "no difference in the paper",
    "none": "no difference here",
    "missing": "not run",
}
"""Verdicts on one value of a table. Directions are against the row that ``reference`` names; unsure: other images or
other trainings might turn them, or there are fewer than three trainings to tell."""

CLAIMS = {
    "supported": "supported here",
    "contradicted": "contradicted here",
    "undecided": "undecided here",
    "not testable": "cannot be tested here",
}
"""Verdicts on a claim. "Here" is the data set, the networks and the folds that the caption names."""


def direction(ours: Estimate, paper: float) -> str:
    """A key of ``VALUES`` for our paired difference beside the paper's (same sign convention, any unit)."""
    if paper == 0 or ours.mean == 0:
        return "flat" if paper == 0 else "none"
    word = "same" if ours.mean * paper > 0 else "opposite"
    return word if _above(ours) or _below(ours) else f"{word}, unsure"


def same_data(ours: Estimate, mean: float, std: float) -> str:
    """A key of ``VALUES`` where data and protocol are the paper's: our mean against the paper's, +- 2 sd.

    ``mean`` and ``std`` in the unit of ``ours``. The two spreads are added in squares; one fold has none of its own.
    """
    tolerance = 2 * ((ours.std or 0.0) ** 2 + std**2) ** 0.5
    difference = ours.mean - mean
    return "within" if abs(difference) <= tolerance else "above" if difference > 0 else "below"


def judge(difference: Estimate | None, *, margin: float = 0.0) -> str:
    """A key of ``CLAIMS`` for "the difference exceeds ``-margin``".

    Supported: the bootstrap interval over images, the t-interval over folds or trials (three at least) and every single
    fold lie above the bound. Contradicted: all of them lie below it.
    """
    if difference is None:
        return "not testable"
    if _above(difference, -margin):
        return "supported"
    return "contradicted" if _below(difference, -margin) else "undecided"


def corrected(rivals: int, confidence: float = 0.95) -> float:
    """The confidence of each of several intervals that hold together at ``confidence`` (Bonferroni)."""
    return 1 - (1 - confidence) / max(rivals, 1)


def judge_best(differences: Sequence[Estimate]) -> str:
    """A key of ``CLAIMS`` for "better than every rival", from our paired difference to each of them.

    Supported: every difference is above zero, with intervals over images corrected for the number of rivals. As all of
    them have to be, the 95 % intervals over trials need no correction. Contradicted: one and the same rival is ahead in
    all trials and resamples, both intervals corrected, since each rival is another chance to be ahead by luck. The
    best rival of each trial or resample is not asked: among equals, the maximum is ahead of any one of them.
    """
    if not differences:
        return "not testable"
    level = corrected(len(differences))
    if all(_above(d, images=level) for d in differences):
        return "supported"
    return "contradicted" if any(_below(d, images=level, trials=level) for d in differences) else "undecided"


def too_few(estimate: Estimate) -> str:
    """Why nothing is decided from so few trials, in words; empty from three on."""
    return {1: "one trial decides nothing", 2: "two trials decide nothing"}.get(estimate.folds, "")


def trial_interval(values: Iterable[float], confidence: float = 0.95) -> tuple[float, float]:
    """Student's t-interval of the mean over folds or trials; the whole line for fewer than three."""
    found = np.array(list(values), float)
    if len(found) < 3:
        return -np.inf, np.inf
    half = stats.t.ppf(0.5 + confidence / 2, len(found) - 1) * found.std(ddof=1) / len(found) ** 0.5
    return float(found.mean() - half), float(found.mean() + half)


def _above(estimate: Estimate, bound: float = 0.0, images: float = 0.95, trials: float = 0.95) -> bool:
    values = list(estimate.values.values())
    return min(estimate.interval(images)[0], trial_interval(values, trials)[0], *values) > bound


def _below(estimate: Estimate, bound: float = 0.0, images: float = 0.95, trials: float = 0.95) -> bool:
    values = list(estimate.values.values())
    return max(estimate.interval(images)[1], trial_interval(values, trials)[1], *values) < bound
