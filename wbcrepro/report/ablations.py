"""What the paper's table confounds, taken apart: decoupling, ensembling and views, each with the rest fixed.

Also: the classifiers of the long-tail literature on the same features, and the preset `paper` beside `code`.
"""

from __future__ import annotations

import pandas as pd

from wbcrepro.report.evaluate import Estimate, Evaluator, Spec, average
from wbcrepro.report.predictions import VIEWS

METHODS = ("supervised", "decoupled")
MODELS = ("single", "folds", "backbones", "both")
MODEL_WORDS = {
    "single": "one model (mean over backbones)",
    "folds": "one backbone, folds averaged (mean over backbones)",
    "backbones": "backbones averaged within a fold",
    "both": "all backbones and folds averaged",
}


def factorial(evaluator: Evaluator, metric: str, preset: str = "paper") -> dict[tuple[str, str, str], Estimate]:
    """``{(method, view, models): estimate}`` for every combination whose cells are there."""
    roles = tuple(evaluator.predictions.networks())
    found = {}
    for method in METHODS:
        for view in VIEWS:
            for models in MODELS:
                folds = "averaged" if models in ("folds", "both") else "each"
                if models in ("single", "folds"):
                    estimate = evaluator.single(method, roles, metric, preset=preset, view=view, folds=folds)
                else:
                    estimate = evaluator.estimate(Spec(method, roles, preset, view, folds), metric)
                if estimate is not None:
                    found[method, view, models] = estimate
    return found


def factorial_frame(evaluator: Evaluator, metrics: dict[str, str], preset: str = "paper") -> pd.DataFrame:
    """The factorial as a table: mean and standard deviation over folds and interval, percent, for each metric."""
    found = {name: factorial(evaluator, score, preset) for name, score in metrics.items()}
    lines = []
    for key in next(iter(found.values()), {}):
        line = {"classifier": key[0], "views": key[1], "models": MODEL_WORDS[key[2]]}
        for name in metrics:
            estimate = found[name][key]
            low, high = estimate.interval()
            line |= {name: 100 * estimate.mean, f"{name} sd": None if estimate.std is None else 100 * estimate.std}
            line |= {f"{name} low": 100 * low, f"{name} high": 100 * high, "folds": estimate.folds}
        lines.append(line)
    return pd.DataFrame(lines)


def _step(words: str, cells: dict, after: tuple, before: tuple) -> dict | None:
    if after not in cells or before not in cells:
        return None
    change = cells[after].minus(cells[before])
    if change is None:  # averaged folds give one score: compare with the mean over folds
        change = cells[after].pooled().minus(cells[before].pooled())
    return effect_line(words, change, cells[before], cells[after])


def effect_line(words: str, change: Estimate, before: Estimate, after: Estimate) -> dict:
    """One line of an effects table, in points: paired difference, interval, spread over folds before and after."""
    low, high = change.interval()
    return {
        "step": words,
        "change": 100 * change.mean,
        "low": 100 * low,
        "high": 100 * high,
        "sd before": None if before.std is None else 100 * before.std,
        "sd after": None if after.std is None else 100 * after.std,
        "folds": max(before.folds, after.folds),
    }


STEPS = (
    # what changes, (classifier, views, models) before, and after
    ("decoupling: one model, no views", ("supervised", "none", "single"), ("decoupled", "none", "single")),
    ("decoupling: one model, code's views", ("supervised", "code", "single"), ("decoupled", "code", "single")),
    ("decoupling: ensemble, code's views", ("supervised", "code", "backbones"), ("decoupled", "code", "backbones")),
    ("code's views: one supervised model", ("supervised", "none", "single"), ("supervised", "code", "single")),
    ("code's views: one decoupled model", ("decoupled", "none", "single"), ("decoupled", "code", "single")),
    ("all 8 views: one decoupled model", ("decoupled", "none", "single"), ("decoupled", "dihedral", "single")),
    ("backbones: supervised, no views", ("supervised", "none", "single"), ("supervised", "none", "backbones")),
    ("backbones: decoupled, no views", ("decoupled", "none", "single"), ("decoupled", "none", "backbones")),
    ("backbones: decoupled, code's views", ("decoupled", "code", "single"), ("decoupled", "code", "backbones")),
    ("folds: decoupled, no views", ("decoupled", "none", "single"), ("decoupled", "none", "folds")),
    ("views and backbones, supervised", ("supervised", "none", "single"), ("supervised", "code", "backbones")),
    ("all three", ("supervised", "none", "single"), ("decoupled", "code", "backbones")),
)


def effects_frame(evaluator: Evaluator, metric: str, preset: str = "paper") -> pd.DataFrame:
    """Each step alone, with the others fixed, and all together: what the paper's last row mixes."""
    cells = factorial(evaluator, metric, preset)
    lines = [line for words, before, after in STEPS if (line := _step(words, cells, after, before))]
    return pd.DataFrame(lines)


def methods_frame(
    evaluator: Evaluator, metrics: dict[str, str], preset: str = "paper", view: str = "none"
) -> pd.DataFrame:
    """Every classifier on the same features: mean over backbones, and its paired change against the supervised row."""
    predictions, lines = evaluator.predictions, []
    roles = tuple(dict.fromkeys(m.backbone for m in predictions.members if m.preset == preset))
    for method, words in predictions.paper["methods"].items():
        line: dict = {"classifier": method, "what it does": words["words"]}
        for name, score in metrics.items():
            ours = evaluator.single(method, roles, score, preset=preset, view=view)
            base = evaluator.single("supervised", roles, score, preset=preset, view=view)
            change = ours.minus(base) if ours and base and method != "supervised" else None
            low, high = change.interval() if change else (None, None)
            line |= {
                name: 100 * ours.mean if ours else None,
                f"{name} sd": 100 * ours.std if ours and ours.std is not None else None,
            }
            line |= {f"Δ{name}": 100 * change.mean if change else None}
            line |= {f"Δ{name} low": 100 * low if change else None, f"Δ{name} high": 100 * high if change else None}
        lines.append(line)
    return pd.DataFrame(lines)


def presets_frame(evaluator: Evaluator, metrics: dict[str, str]) -> pd.DataFrame:
    """Preset `paper` beside `code` on the folds and backbones that both ran, with and without the code's quota step."""
    predictions = evaluator.predictions
    plans = {p: {(m.backbone, m.fold) for m in predictions.find(preset=p)} for p in ("paper", "code")}
    shared = sorted(plans["paper"] & plans["code"])
    roles = [r for r in predictions.networks() if r in {role for role, _ in shared}]
    lines = []
    for method in METHODS:
        for preset, quota in (("paper", False), ("code", False), ("code", True)):
            line: dict = {"classifier": method, "preset": preset, "rare-class quota": "yes" if quota else "no"}
            for name, score in metrics.items():
                parts = [evaluator.estimate(Spec(method, (r,), preset, "code", quota=quota), score) for r in roles]
                parts = [_only(p, {f for role, f in shared if role == r}) for p, r in zip(parts, roles, strict=True)]
                ours = average(parts) if parts and all(parts) else None
                low, high = ours.interval() if ours else (None, None)
                line |= {name: 100 * ours.mean if ours else None, f"{name} low": 100 * low if ours else None}
                line |= {f"{name} high": 100 * high if ours else None, "folds": ours.folds if ours else 0}
            lines.append(line)
    return pd.DataFrame(lines)


def _only(estimate: Estimate | None, folds: set) -> Estimate | None:
    if estimate is None or not folds & set(estimate.values):
        return None
    keep = [fold for fold in estimate.values if fold in folds]
    return Estimate({f: estimate.values[f] for f in keep}, {f: estimate.draws[f] for f in keep})
