"""The only words in which this project judges a number or a claim.

"Reproduced" is not among them. A value obtained on other data or with other networks is never compared as a value; what
can be compared is the direction of a difference between two rows that were computed in the same way.
"""

from __future__ import annotations

from wbcrepro.report.evaluate import Estimate

VALUES = {
    "within": "same data: within two standard deviations",
    "above": "same data: above the paper",
    "below": "same data: below the paper",
    "not comparable": "other data: value not comparable",
    "same": "same direction",
    "same, unsure": "same direction, within noise",
    "opposite": "opposite direction",
    "opposite, unsure": "opposite direction, within noise",
    "flat": "no difference in the paper",
    "none": "no difference here",
    "missing": "not run",
}
"""Verdicts on one value of a table. Directions are against the row that ``reference`` names."""

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
    low, high = ours.interval()
    word = "same" if ours.mean * paper > 0 else "opposite"
    sure = (low > 0 or high < 0) and _one_sign(ours)
    return word if sure else f"{word}, unsure"


def same_data(ours: Estimate, mean: float, std: float) -> str:
    """A key of ``VALUES`` where data and protocol are the paper's: our mean against the paper's, +- 2 sd.

    ``mean`` and ``std`` in the unit of ``ours``. The two spreads are added in squares; one fold has none of its own.
    """
    tolerance = 2 * ((ours.std or 0.0) ** 2 + std**2) ** 0.5
    difference = ours.mean - mean
    return "within" if abs(difference) <= tolerance else "above" if difference > 0 else "below"


def judge(difference: Estimate | None, *, margin: float = 0.0) -> str:
    """A key of ``CLAIMS`` for "the difference exceeds ``-margin``".

    Supported: the bootstrap interval lies above the bound and so does every fold. Contradicted: both lie below it.
    """
    if difference is None:
        return "not testable"
    low, high = difference.interval()
    values = list(difference.values.values())
    if low > -margin and min(values) > -margin:
        return "supported"
    if high < -margin and max(values) < -margin:
        return "contradicted"
    return "undecided"


def _one_sign(estimate: Estimate) -> bool:
    values = list(estimate.values.values())
    return min(values) > 0 or max(values) < 0
