"""What phase 3 of suppress-and-rescue needs from the training cells: Gaussians and boxes of a rare class, outlier
quantiles.

`rescue` parameterises the Mahalanobis filter "by group-specific covariance matrices"; the release holds one mean,
inverse covariance and box for each label that an image stands at (LY, VLY). So the cells of the rare class are grouped
by their own standing label out of fold. A group with too few cells uses the Gaussian of all of them.
"""

from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

from wbcrepro.rescue.mahalanobis import fit_gaussian
from wbcrepro.rescue.morphology import Morphology
from wbcrepro.rescue.phases import cue_values, in_box
from wbcrepro.rescue.rules import POOLED, Box, RareClass

MANY = 200
"""With more parts than this, ten folds stand for leaving out one after the other."""


class CannotFit(Exception):
    """Why a rule is disabled."""


@dataclass(frozen=True)
class Cells:
    """Training cells (N): measurements, label that each stands at out of fold, true class, and parts (patients)."""

    morphology: Morphology
    standing: np.ndarray
    labels: np.ndarray
    parts: np.ndarray
    classes: list[str]
    accept: tuple[str, ...]

    def measurable(self, columns) -> np.ndarray:
        """Bool (N,): accepted status and every column a number."""
        return np.isin(self.morphology.status, self.accept) & np.isfinite(self.morphology.select(columns)).all(1)


def fit_groups(rule: RareClass, cells: Cells, rows: np.ndarray, min_group: int) -> RareClass:
    """The rule with a Gaussian (and a box, if it names columns for one) of the cells ``rows`` (N,) bool, by standing
    label.

    Raises CannotFit with fewer than two measurable cells.
    """
    rows = rows & cells.measurable((*rule.columns, *rule.box_columns))
    if rows.sum() < 2:
        raise CannotFit(f"{int(rows.sum())} measurable {rule.name} among the training cells; a covariance needs two")
    groups = {name: rows & (cells.standing == cells.classes.index(name)) for name in rule.against}
    groups = {name: group for name, group in groups.items() if group.sum() >= min_group} | {POOLED: rows}
    features, boxed = cells.morphology.select(rule.columns), cells.morphology.select(rule.box_columns)
    gaussians = {name: fit_gaussian(features[group], rule.columns) for name, group in groups.items()}
    boxes = {name: Box(rule.box_columns, tuple(boxed[group].min(0).tolist()), tuple(boxed[group].max(0).tolist()))
             for name, group in groups.items()} if rule.box_columns else {}
    return replace(rule, gaussians=gaussians, boxes=boxes)


def parts_of(cells: Cells, rows: np.ndarray) -> np.ndarray:
    """Parts (N,) to leave out one by one for ``rows``: patients where there are two or more, else each cell by
    itself."""
    parts = cells.parts if len(np.unique(cells.parts[rows])) > 1 else np.arange(len(rows))
    found, rank = np.unique(parts[rows], return_inverse=True)
    result = np.full(len(rows), -1)
    result[rows] = rank.ravel() % 10 if len(found) > MANY else rank.ravel()
    return result


def held_out_cue(rule: RareClass, cells: Cells, min_group: int, *, refit: bool) -> tuple[np.ndarray, np.ndarray]:
    """``value`` float64 (N,), NaN where not measurable, and ``boxed`` bool (N,) of phase 3, for every training cell.

    With ``refit`` the cells that the Gaussians were fitted on are measured against those of the other parts: to their
    own they are too close, and always inside their own box.
    """
    morphology, standing, classes = cells.morphology, cells.standing, cells.classes
    value = cue_values(rule, morphology, standing, classes)
    boxed = in_box(rule, morphology, standing, classes)
    rare = cells.labels == classes.index(rule.name)
    parts = parts_of(cells, rare)
    for part in np.unique(parts[rare]) if refit else ():
        rows = np.flatnonzero(rare & (parts == part))
        try:
            others = fit_groups(rule, cells, rare & (parts != part), min_group)
        except CannotFit:
            value[rows], boxed[rows] = np.nan, False
            continue
        value[rows] = cue_values(others, morphology.take(rows), standing[rows], classes)
        boxed[rows] = in_box(others, morphology.take(rows), standing[rows], classes)
    value[~np.isin(morphology.status, cells.accept)] = np.nan
    return value, boxed


def outlier_spikiness(rule: RareClass, cells: Cells, value: np.ndarray, quantile: float) -> tuple[float, str, int]:
    """tau_S, its criterion in words and the number of cells behind it: a quantile of ``value`` (N,) of the ``against``
    cells."""
    confused = np.isin(cells.labels, [cells.classes.index(name) for name in rule.against]) & np.isfinite(value)
    if not confused.any():
        raise CannotFit(f"no measurable {' or '.join(rule.against)} to tell {rule.name} from")
    words = f"{quantile:.0%} quantile of the spikiness of the training {' and '.join(rule.against)}"
    return float(np.quantile(value[confused], quantile)), words, int(confused.sum())


def chi_square_limit(rule: RareClass, coverage: float) -> tuple[float, str, int]:
    """tau_M, its criterion in words and the number of cells behind the largest Gaussian."""
    features = len(rule.columns)
    words = f"square root of the {coverage:.0%} quantile of chi-square with {features} degrees of freedom"
    cells = max(gaussian.n for gaussian in rule.gaussians.values())
    return float(np.sqrt(stats.chi2.ppf(coverage, features))), words, cells
