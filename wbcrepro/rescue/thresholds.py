"""Thresholds of suppress-and-rescue, fitted on out-of-fold predictions of the training side and on nothing else.

The paper `rescue` prints no threshold and the release derives none. Here every one has a criterion that a reader can
check, chosen to hold with a handful of rare cells:

| threshold | criterion |
|---|---|
| boost B_c | smallest factor with which a stated share of the out-of-fold rare cells beats every common class |
| tau | highest out-of-fold F1 of the class after phase 2, over mid-points of scores; ties to the stricter |
| tau_S | a quantile of the spikiness of the class that it is confused with ("statistical outlier"); or highest F1 |
| tau_M | square root of a chi-square quantile, F degrees of freedom; or highest F1. Gaussians: `cue_fitting` |

A number that the template already has is kept, so `RESCUE_CODE` gets only what its missing file would have held.
Effects on cells that a Gaussian was fitted on are counted with their patient (or they themselves) left out. A rule
that cannot be fitted, or for which no tau raises the out-of-fold F1 of its class, is disabled and says why. Where tau
is judged after phase 2, a cue whose limit is not fitted by F1 may take that gain back: the rule stays, and its effect
tells.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from wbcrepro.errors import UsageError
from wbcrepro.rescue.cue_fitting import (
    CannotFit,
    Cells,
    chi_square_limit,
    fit_groups,
    held_out_cue,
    outlier_spikiness,
)
from wbcrepro.rescue.morphology import Morphology
from wbcrepro.rescue.rules import Fitted, RareClass, Rules, inverse_log_frequency
from wbcrepro.rescue.suppress_rescue import checked, sensitivity_boosting
from wbcrepro.rescue.suppress_rescue_code import label_allows, suppress, surface


@dataclass(frozen=True)
class FitSettings:
    """What to ask of the thresholds.

    ``surface``: share of rare cells that the boost must surface, at a boost of at most ``max_boost``. ``judge``: the F1
    for tau is counted after "phase2", or after phase 3 ("final"; needs cues that are not fitted by F1). ``spikiness``:
    "quantile" (``outlier``) or "f1". ``mahalanobis``: "chi2" (``coverage``) or "f1". ``min_group``: a standing label
    with fewer rare cells uses the pooled Gaussian. Raises UsageError for a value out of range.
    """

    surface: float = 0.9
    max_boost: float = 1e4
    judge: str = "phase2"
    spikiness: str = "quantile"
    outlier: float = 0.95
    mahalanobis: str = "chi2"
    coverage: float = 0.95
    min_group: int = 5

    def __post_init__(self):
        options = {"judge": ("phase2", "final"), "spikiness": ("quantile", "f1"), "mahalanobis": ("chi2", "f1")}
        for name, known in options.items():
            if getattr(self, name) not in known:
                raise UsageError(f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}")
        if not all(0 < share < 1 for share in (self.outlier, self.coverage)) or not 0 < self.surface <= 1:
            raise UsageError("surface, outlier and coverage are shares between 0 and 1")
        if self.max_boost < 1 or self.min_group < 2:
            raise UsageError("max_boost is at least 1, min_group at least 2")

    def by_f1(self, cue: str | None) -> bool:
        """Whether the threshold of this cue is the one with the highest F1."""
        return cue is not None and getattr(self, cue) == "f1"


@dataclass(frozen=True)
class Folds:
    """All that may be looked at: out-of-fold predictions (N, C) of both models and the training ``cells`` (N).

    ``rival`` (N,): the probability that a boosted rare class must beat.
    """

    swin: np.ndarray
    semantic: np.ndarray
    cells: Cells
    rival: np.ndarray


def _folds(swin, semantic, morphology, labels, template: Rules, classes: list[str], groups) -> Folds:
    swin, semantic = checked(swin, semantic, morphology, classes)
    n, labels = len(swin), np.asarray(labels)
    if labels.shape != (n,) or (n and not 0 <= labels.min() <= labels.max() < len(classes)):
        raise ValueError(f"labels {labels.shape}: expected {n} codes in 0..{len(classes) - 1}, one an image")
    parts = np.arange(n) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1].ravel()
    if len(parts) != n:
        raise ValueError(f"{len(parts)} groups for {n} images")
    if template.mode == "code":
        _, standing, rival = suppress(swin, template, classes)
    else:
        common = ~np.isin(classes, [rule.name for rule in template.rare])
        standing, rival = swin.argmax(1), swin[:, common].astype(np.float64).max(1, initial=0)
    return Folds(swin, semantic, Cells(morphology, standing, labels, parts, classes, template.accept), rival)


def fit_thresholds(
    oof_swin, oof_semantic, morphology: Morphology, labels, template: Rules, classes: Sequence[str],
    *, settings: FitSettings | None = None, groups=None,
) -> Rules:
    """``template`` with every missing threshold fitted, and a `Fitted` note on each; deterministic.

    ``oof_swin``, ``oof_semantic`` (N, C): predictions for training images by models that did not see them (a semantic
    row with a NaN = none). ``morphology``: N rows. ``labels`` (N,): codes. ``groups`` (N,): patients, if known. Raises
    ValueError for what does not fit together, UsageError for a template that names other classes.
    """
    settings, classes = settings or FitSettings(), list(classes)
    unknown = {name for rule in template.rare for name in (rule.name, *rule.against)} - set(classes)
    if unknown:
        raise UsageError(f"the template names {', '.join(sorted(unknown))}; classes: {', '.join(classes)}")
    folds = _folds(oof_swin, oof_semantic, morphology, labels, template, classes, groups)
    boosted = template
    for rule in template.rare:
        boosted = _fitted(boosted, rule, fit_boost, folds, settings)
    while True:  # all boosts first: one class can take the candidates of another, and leaves them when it is disabled
        rules = boosted
        for rule in boosted.rare:
            rules = _fitted(rules, rule, fit_filters, boosted, folds, settings)
        given_up = [new for old, new in zip(boosted.rare, rules.rare, strict=True) if new.disabled != old.disabled]
        if not given_up:
            return rules
        for rule in given_up:
            boosted = boosted.replace(rule.name, disabled=rule.disabled)


def _fitted(rules: Rules, rule: RareClass, fit, *arguments) -> Rules:
    if rule.disabled:
        return rules
    try:
        changed = fit(rule, *arguments)
    except CannotFit as reason:
        changed = replace(rule, disabled=str(reason))
    return replace(rules, rare=tuple(changed if old.name == rule.name else old for old in rules.rare))


def fit_boost(rule: RareClass, folds: Folds, settings: FitSettings) -> RareClass:
    """The rule with B_c as a number. Raises CannotFit if the class is absent or no factor surfaces any of its cells."""
    code = folds.cells.classes.index(rule.name)
    rare = folds.cells.labels == code
    n = int(rare.sum())
    if n == 0:
        raise CannotFit(f"no {rule.name} among the {len(rare)} out-of-fold images")
    p = folds.swin[rare, code].astype(np.float64)
    needed = np.sort(np.divide(folds.rival[rare], p, out=np.full(n, np.inf), where=p > 0))
    if isinstance(rule.boost, str):
        counts = np.bincount(folds.cells.labels, minlength=len(folds.cells.classes)).tolist()
        boost, criterion = inverse_log_frequency(counts, code, rule.boost), f"{rule.boost} of the training counts"
    elif rule.boost is not None:
        boost, criterion = float(rule.boost), "given"
    else:
        within = needed[needed < settings.max_boost]
        if len(within) == 0:
            raise CannotFit(f"no boost below {settings.max_boost:g} surfaces one of {n} out-of-fold {rule.name}")
        wanted = math.ceil(settings.surface * n - 1e-9)
        # A hair more than needed: the boosted probability must exceed its rival, not equal it.
        boost = max(1.0, float(within[min(wanted, len(within)) - 1]) * (1 + 1e-6))
        criterion = f"smallest factor that surfaces {settings.surface:.0%} of the out-of-fold {rule.name}"
        if wanted > len(within):
            criterion += f"; below {settings.max_boost:g} only {len(within)} of {n} can"
    effect = {"rare": n, "rare_surfaced_alone": int((needed < boost).sum())}
    return replace(rule, boost=boost, fitted=(*rule.fitted, Fitted("boost", boost, criterion, n, effect)))


def surfaced_by(rule: RareClass, rules: Rules, folds: Folds) -> np.ndarray:
    """Bool (N,): the images that phase 1 offers to a rule, the boosts of all classes being known."""
    code = folds.cells.classes.index(rule.name)
    if rules.mode == "code":
        return surface(rule, folds.swin[:, code], folds.rival).passed
    return sensitivity_boosting(folds.swin, rules, folds.cells.classes)[0] == code


def best_f1(scores: np.ndarray, positive: np.ndarray, hits: int, predicted: int, total: int):
    """Threshold on ``scores`` (n,) with the highest F1 of a class, and that F1; (None, F1) if taking none is best.

    ``positive`` (n,) bool: which are of the class. Of ``predicted`` images that have its label anyway ``hits`` are
    right; ``total`` images are of the class. The threshold is the mid-point below the last score taken; of equals the
    stricter.
    """
    distinct, inverse = np.unique(-scores, return_inverse=True)  # strictest first
    taken = np.cumsum(np.bincount(inverse, minlength=len(distinct)))
    true = np.cumsum(np.bincount(inverse, weights=positive, minlength=len(distinct)))
    f1 = 2 * (hits + np.r_[0, true]) / np.maximum(total + predicted + np.r_[0, taken], 1)
    best = int(f1.argmax())
    if best == 0:
        return None, float(f1[0])
    above = -distinct[best - 1]
    below = -distinct[best] if best < len(distinct) else above - 1e-6
    return float((above + below) / 2), float(f1[best])


class Run:
    """Images that a rule would relabel so far (``passed``), beside those that have its label anyway (``kept``)."""

    def __init__(self, rule: RareClass, surfaced: np.ndarray, cells: Cells):
        code = cells.classes.index(rule.name)
        self.rare = cells.labels == code
        self.kept = cells.standing == code
        self.passed = surfaced & ~self.kept

    def best(self, scores: np.ndarray, rows: np.ndarray):
        """`best_f1` among the images that passed so far and are in ``rows`` (N,) bool."""
        rows = rows & self.passed
        kept = int((self.kept & self.rare).sum()), int(self.kept.sum())
        return best_f1(scores[rows], self.rare[rows], *kept, int(self.rare.sum()))

    def effect(self) -> dict:
        """How many passed so far, and the F1 of the class before any was relabelled and if all of them are."""
        def f1(predicted):
            return float(2 * (predicted & self.rare).sum() / max(1, predicted.sum() + self.rare.sum()))

        return {"rare_passed": int((self.passed & self.rare).sum()),
                "others_passed": int((self.passed & ~self.rare).sum()),
                "f1_base": f1(self.kept), "f1": f1(self.kept | self.passed)}


def fit_filters(rule: RareClass, rules: Rules, folds: Folds, settings: FitSettings) -> RareClass:
    """The rule with its Gaussians, tau and tau_S or tau_M. Raises CannotFit with the reason."""
    cells, run = folds.cells, Run(rule, surfaced_by(rule, rules, folds), folds.cells)
    boost = replace(rule.fitted[-1], effect=rule.fitted[-1].effect | run.effect())
    value, allowed, refit = np.full(len(run.rare), np.nan), np.ones(len(run.rare), dtype=bool), False
    if rule.cue is not None:
        if refit := rule.cue == "mahalanobis" and not rule.gaussians:
            rule = fit_groups(rule, cells, run.rare, settings.min_group)
        value, allowed = held_out_cue(rule, cells, settings.min_group, refit=refit)
    if rules.mode == "code":
        allowed = allowed & np.logical_and(*label_allows(rule, cells.standing, folds.rival, cells.classes))
    cue_note = None
    if rule.cue is not None and (rule.cue_threshold is not None or not settings.by_f1(rule.cue)):
        rule, cue_note = fixed_cue(rule, cells, value, settings)
    end = allowed & cue_side(rule, value) if cue_note else None
    rule, semantic_note = fit_semantic(rule, rules, run, folds, end, settings)
    if rule.cue is not None and cue_note is None:
        rule, cue_note = cue_by_f1(rule, run, value, allowed)
    if cue_note:
        run.passed &= allowed & cue_side(rule, value)
        cue_note = replace(cue_note, effect=run.effect())
    notes = [note for note in (boost, semantic_note, cue_note) if note]
    return replace(rule, fitted=(*rule.fitted[:-1], *notes))


def cue_side(rule: RareClass, value: np.ndarray) -> np.ndarray:
    """Bool (N,): on the side of the cue's threshold that passes; True without a cue, False for a NaN."""
    if rule.cue is None:
        return np.ones(len(value), dtype=bool)
    return value > rule.cue_threshold if rule.cue == "spikiness" else value <= rule.cue_threshold


def fixed_cue(rule: RareClass, cells: Cells, value, settings: FitSettings) -> tuple[RareClass, Fitted]:
    """tau_S or tau_M by a criterion that does not look at the candidates."""
    if rule.cue_threshold is not None:
        limit, criterion = float(rule.cue_threshold), "given"
        n = int((cells.labels == cells.classes.index(rule.name)).sum())
    elif rule.cue == "spikiness":
        limit, criterion, n = outlier_spikiness(rule, cells, value, settings.outlier)
    else:
        limit, criterion, n = chi_square_limit(rule, settings.coverage)
    return replace(rule, cue_threshold=limit), Fitted("cue_threshold", limit, criterion, n)


def cue_by_f1(rule: RareClass, run: Run, value, allowed) -> tuple[RareClass, Fitted]:
    """tau_S or tau_M with the highest F1 among the cells that passed phase 2 and can be measured."""
    sign = 1 if rule.cue == "spikiness" else -1
    limit, f1 = run.best(sign * value, allowed & np.isfinite(value))
    if limit is None:
        raise CannotFit(f"no {rule.cue} threshold raises the out-of-fold F1 of {rule.name} above {f1:.3f}")
    limit = sign * limit
    words = "highest out-of-fold F1 after phase 3, ties to the stricter"
    n = int((run.rare & run.passed & np.isfinite(value)).sum())
    return replace(rule, cue_threshold=limit), Fitted("cue_threshold", limit, words, n)


def fit_semantic(rule, rules, run: Run, folds: Folds, end, settings: FitSettings) -> tuple[RareClass, Fitted]:
    """The rule with tau; leaves in ``run`` what passes it. ``end`` (N,) bool: passes phase 3; None = not known yet."""
    p_med = folds.semantic[:, folds.cells.classes.index(rule.name)]
    criterion = "given"
    if rule.semantic is None:
        final = settings.judge == "final"
        if final and end is None:
            raise UsageError(f"{rule.name}: tau cannot be judged at the end while its cue is fitted by F1 behind it")
        tau, f1 = run.best(p_med, ~np.isnan(p_med) & (end if final else True))
        if tau is None:
            right, changed = int((run.passed & run.rare).sum()), int(run.passed.sum())
            raise CannotFit(f"no semantic threshold raises the out-of-fold F1 of {rule.name} above {f1:.3f}, that of "
                            f"the base labels ({changed} images would change to {rule.name} in phase 1, {right} of "
                            "them rightly)")
        criterion = f"highest out-of-fold F1 after phase {3 if final else 2}, ties to the stricter"
        rule = replace(rule, semantic=max(tau, 0.0))
    run.passed &= p_med > rule.semantic if rules.mode == "code" else p_med >= rule.semantic
    return rule, Fitted("semantic", rule.semantic, criterion, int(run.rare.sum()), run.effect())
