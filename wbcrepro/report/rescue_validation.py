"""Cross-validation by image and by patient, and the fall from there to the degraded test set taken apart.

All training images are scored once by each kind of folds. Pooled, they are the same images with every class on both
sides, and one resample (within classes, images of a patient together) serves both kinds: that gap is paired. Folds
hold different images, so the gap of their means is not.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from wbcrepro import metrics
from wbcrepro.report.evaluate import Estimate
from wbcrepro.report.rescue_evaluate import Decided, RescueEvaluator, RescueSpec, paired, units_of
from wbcrepro.report.rescue_predictions import TESTS
from wbcrepro.seeds import derive_seed

POOLED = "pooled"


def out_of_fold(evaluator: RescueEvaluator, folds: str, preset: str = "paper", row: str = "swin",
                views: str = "identity") -> tuple[Decided, np.ndarray] | None:  # fmt: skip
    """Every training image as the network that did not see it labels it, sorted by id, and its fold (N,) int64; None
    while a planned fold is missing. ``folds``: "group" or "image"."""
    members = evaluator.predictions.networks(row, preset, folds=folds)
    if not members or not all(m.done for m in members):
        return None
    parts = [(m.fold, evaluator.predictions.read(m, "val", views)) for m in members]
    parts = [(fold, p) for fold, p in parts if p is not None]
    ids, labels, groups = (np.concatenate([getattr(p, name) for _, p in parts]) for name in ("ids", "labels", "groups"))
    codes = np.concatenate([p.probabilities.argmax(1) for _, p in parts])
    fold = np.concatenate([np.full(len(p.ids), number) for number, p in parts])
    order = np.argsort(ids, kind="stable")
    return Decided(ids[order], labels[order], codes[order], units_of(ids, groups)[order]), fold[order]


def cross_validation(
    evaluator: RescueEvaluator, folds: str, metric: str = "macro_f1", *, pooled: bool = False, **options: object
) -> Estimate | None:
    """One score a fold over the whole class list (0 for a class that a fold lacks), or ``pooled`` over all images.

    The images of each fold are resampled for themselves: over all of them at once a rare class would now and then
    vanish from its fold.
    """
    found = out_of_fold(evaluator, folds, **options)
    if found is None:
        return None
    decided, fold = found
    masks = {POOLED: fold >= 0} if pooled else {int(k): fold == k for k in np.unique(fold)}
    values, draws = {}, {}
    for key, mask in masks.items():
        true, codes, units = decided.labels[mask], decided.codes[mask], decided.units[mask]
        classes, benchmark = len(evaluator.predictions.classes), evaluator.predictions.benchmark
        seed = derive_seed(evaluator.seed, benchmark, "train", *(() if pooled else (folds, key)))
        values[key] = metrics.score(true, codes, metric, classes)
        draws[key] = metrics.bootstrap_draws([codes], true, metric, evaluator.n, seed, n_classes=classes,
                                             stratified=True, groups=units)[:, 0]  # fmt: skip
    return Estimate(values, draws)


def absent_classes(evaluator: RescueEvaluator, folds: str, preset: str = "paper") -> dict[int, int]:
    """``{fold: classes without a validation image}``; empty while a fold is missing."""
    found = out_of_fold(evaluator, folds, preset)
    if found is None:
        return {}
    decided, fold = found
    classes = len(evaluator.predictions.classes)
    return {k: classes - len(np.unique(decided.labels[fold == k])) for k in sorted(set(fold.tolist()))}


def image_folds(evaluator: RescueEvaluator) -> str:
    """Which planned folds are by image: those of that name, or all of them where no patients are known."""
    return "group" if evaluator.predictions.grouped() is False else "image"


def gap(evaluator: RescueEvaluator, metric: str = "macro_f1", preset: str = "paper", *, pooled: bool = False
        ) -> Estimate | None:  # fmt: skip
    """Folds by image minus folds by patient: what cells of one person on both sides are worth. None where one of them
    is missing or no patients are known."""
    if evaluator.predictions.grouped() is not True:
        return None
    sides = [cross_validation(evaluator, f, metric, preset=preset, pooled=pooled) for f in ("image", "group")]
    return paired(*sides) if all(sides) else None


STEPS = (
    ("cross-validation, folds by image", ""),
    ("cross-validation, folds by patient", "no person is on both sides"),
    ("pristine test set, single fold", "other patients and other shares of the classes"),
    ("degraded test set, single fold", "the same images, degraded"),
    ("degraded test set, folds and views averaged", "the networks of all folds, eight views"),
)


def fall_estimates(evaluator: RescueEvaluator, metric: str = "macro_f1", preset: str = "paper"
                   ) -> dict[str, Estimate | None]:  # fmt: skip
    """The stations from cross-validation to the degraded test set (``STEPS``); a station that cannot be had is None."""
    single = RescueSpec(preset=preset, views="identity", folds="each")
    by_patient = evaluator.predictions.grouped() is not False
    found = (
        cross_validation(evaluator, image_folds(evaluator), metric, preset=preset),
        cross_validation(evaluator, "group", metric, preset=preset) if by_patient else None,
        evaluator.estimate(single, "test", metric),
        evaluator.estimate(single, "test_degraded", metric),
        evaluator.estimate(RescueSpec(preset=preset), "test_degraded", metric),
    )
    return dict(zip((words for words, _ in STEPS), found, strict=True))


def fall_frame(evaluator: RescueEvaluator, metric: str = "macro_f1", preset: str = "paper") -> pd.DataFrame:
    """One line a station: score and interval, change from the station before and its interval (points), folds, what
    changed. A station that is not there has no line; the change is then from the last one that is.

    Macro-F1 depends on the shares of the classes, which differ between folds and test set; balanced accuracy does not.
    """
    lines, before = [], None
    changed = dict(STEPS)
    if evaluator.predictions.grouped() is False:
        changed["pristine test set, single fold"] = "other images and other shares of the classes (no patients known)"
    single = RescueSpec(preset=preset, views="identity", folds="each")
    ids = [{i for d in evaluator.decided(single, on).values() for i in d.ids} for on in TESTS]
    if ids[1] - ids[0]:
        changed["degraded test set, single fold"] = "those of the images that were published degraded"
    as_published = evaluator.predictions.as_published()
    for station, estimate in fall_estimates(evaluator, metric, preset).items():
        if estimate is None:
            continue
        low, high = (100 * v for v in estimate.interval())
        words = station.removeprefix("pristine ") if as_published else station
        line = {"station": words, "score": 100 * estimate.mean, "low": low, "high": high}
        change = paired(estimate, before) if before is not None else None
        interval = change.interval() if change else (None, None)
        line |= {"change": 100 * change.mean if change else None}
        line |= {f"change {k}": None if v is None else 100 * v for k, v in zip(("low", "high"), interval, strict=True)}
        lines.append(line | {"folds": estimate.folds, "what changed": changed[station]})
        before = estimate
    return pd.DataFrame(lines)
