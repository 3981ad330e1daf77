"""Frames behind the figures of ``design: rescue``: branches compared, thresholds and their sensitivity, class counts,
and the images of the gallery."""

from __future__ import annotations

import numpy as np
import pandas as pd

from wbcrepro.metrics import confusion
from wbcrepro.report.evaluate import Estimate
from wbcrepro.report.predictions import Scored
from wbcrepro.report.rescue_evaluate import AVERAGED, Decided, RescueEvaluator, RescueSpec, units_of
from wbcrepro.report.rescue_predictions import TESTS, RescuePredictions
from wbcrepro.rescue.rules import RareClass, Rules
from wbcrepro.rescue.sensitivity import sensitivity
from wbcrepro.rescue.trace import explain

ALL = "all classes"
SHARES = ("both right", "only first branch", "only second branch", "both wrong")


def overlap_frame(evaluator: RescueEvaluator, on: str = "", preset: str = "paper") -> pd.DataFrame:
    """Where the two branches are right: per class, and the mean over classes (``ALL``), percent of the images.

    Columns: class, images, `SHARES`, ``oracle gain`` = images that only the second branch gets right: what a perfect
    choice between the branches would add to the first one's recall. Empty while something is missing. Branches are
    the averages over folds. Here and below, ``on`` is by default the last test set that there is.
    """
    both = evaluator.branches(RescueSpec(preset=preset), on or evaluator.predictions.hardest())
    if both is None:
        return pd.DataFrame()
    labels, classes = both.scored.labels, evaluator.predictions.classes
    first = both.scored.probabilities.argmax(1) == labels
    second = (np.nan_to_num(both.semantic, nan=-1).argmax(1) == labels) & ~np.isnan(both.semantic).any(1)
    parts = dict(zip(SHARES, (first & second, first & ~second, ~first & second, ~first & ~second), strict=True))
    lines = []
    for code in np.unique(labels):
        rows = labels == code
        line = {"class": classes[code], "images": int(rows.sum())}
        lines.append(line | {name: 100 * float(part[rows].mean()) for name, part in parts.items()})
    whole = {name: float(np.mean([line[name] for line in lines])) for name in SHARES}
    lines.append({"class": ALL, "images": len(labels)} | whole)
    return pd.DataFrame(lines).assign(**{"oracle gain": lambda f: f["only second branch"]})


def oracle_gain(evaluator: RescueEvaluator, partner: str, on: str, preset: str = "paper") -> Estimate | None:
    """Macro-recall that a perfect choice between a fold's network and a partner adds to it, fold by fold.

    ``partner``: "semantic" (the second branch of the same fold) or "network" (the next fold's network: a second
    training of the same kind). A partner pays only if it pays more than that. None while something is missing.
    """
    spec = RescueSpec(preset=preset, folds="each")
    found, gains, plain = evaluator.folds(spec, on), {}, {}
    if len(found) < 2 or not evaluator.complete(spec):
        return None
    order = list(found)
    for place, fold in enumerate(order):
        scored = found[fold]
        other = found[order[(place + 1) % len(order)]].probabilities
        if partner == "semantic":
            other = evaluator.semantic(preset, on, fold)
        if other is None:
            return None
        codes = scored.probabilities.argmax(1)
        partners = np.where(np.isnan(other).any(1), codes, np.nan_to_num(other).argmax(1))
        either = np.where(partners == scored.labels, scored.labels, codes)
        units = units_of(scored.ids, scored.groups)
        gains[fold] = Decided(scored.ids, scored.labels, either, units)
        plain[fold] = Decided(scored.ids, scored.labels, codes, units)
    one, other = (evaluator.score(d, "macro_recall") for d in (gains, plain))
    return one.minus(other)


def second_branch(
    evaluator: RescueEvaluator, on: str, preset: str = "paper", metric: str = "macro_f1"
) -> Estimate | None:
    """The second branch alone, fold by fold, over the images that have an embedding. None while one is missing."""
    found = {}
    for fold, scored, second in _branches_by_fold(evaluator, on, preset):
        seen = ~np.isnan(second).any(1)
        units = units_of(scored.ids[seen], scored.groups[seen])
        found[fold] = Decided(scored.ids[seen], scored.labels[seen], second[seen].argmax(1), units)
    return evaluator.score(found, metric)


def mixture(evaluator: RescueEvaluator, on: str, preset: str = "paper", metric: str = "macro_f1") -> Estimate | None:
    """The plain mean of both branches' probabilities, fold by fold: what the second one is worth without any rule."""
    found = {}
    for fold, scored, second in _branches_by_fold(evaluator, on, preset):
        mean = np.where(np.isnan(second), scored.probabilities, (scored.probabilities + second) / 2)
        units = units_of(scored.ids, scored.groups)
        found[fold] = Decided(scored.ids, scored.labels, mean.argmax(1), units)
    return evaluator.score(found, metric)


def _branches_by_fold(evaluator: RescueEvaluator, on: str, preset: str) -> list[tuple[int, Scored, np.ndarray]]:
    """(fold, what its network scored, the second branch's probabilities (N, C)); empty while one is missing."""
    folds = evaluator.folds(RescueSpec(preset=preset, folds="each"), on)
    found = [(fold, scored, evaluator.semantic(preset, on, fold)) for fold, scored in folds.items()]
    return [] if any(second is None for _, _, second in found) else found


def thresholds_frame(predictions: RescuePredictions, rules: str = "paper", benchmark: str = "") -> pd.DataFrame:
    """Every threshold in force: class, threshold, value, criterion, rare cells behind it, what it does out of fold, and
    why a rule is not in force. Empty while the rescue has not run."""
    found = predictions.rules(rules, benchmark)
    lines = []
    for rare in found.rare if found else ():
        about = {"class": rare.name, "confused with": ", ".join(rare.against)}
        for fitted in rare.fitted:
            effect = ", ".join(f"{k.replace('_', ' ')} {v:.3g}" for k, v in fitted.effect.items())
            lines.append(about | {"threshold": fitted.threshold, "value": fitted.value, "criterion": fitted.criterion,
                                  "rare cells": fitted.n, "out of fold": effect})  # fmt: skip
        if rare.disabled or not rare.fitted:
            why = f"not in force: {rare.disabled}" if rare.disabled else "given"
            lines.append(about | {"threshold": "rule", "value": None, "criterion": why})
    return pd.DataFrame(lines)


def phases_frame(predictions: RescuePredictions, rules: str = "paper", benchmark: str = "") -> pd.DataFrame:
    """What became of the images: set, reason (`wbcrepro.rescue.trace.REASONS`), images, and how many of them end with
    their true label; one line each."""
    lines = []
    for on in ("oof", *TESTS):
        found = predictions.trace(rules, on, benchmark)
        if found is None:
            continue
        scored, trace = found
        for reason, images in trace.counts().items():
            rows = trace.reason == reason
            right = int((trace.final[rows] == scored.labels[rows]).sum())
            lines.append({"set": on, "reason": reason, "images": images, "right at the end": right})
    return pd.DataFrame(lines)


def threshold_values(value: float, threshold: str) -> np.ndarray:
    """Values of one threshold around the fitted one, ascending and with it: probabilities in 0..1, boosts and cues by
    factors."""
    if threshold == "semantic":
        return np.unique(np.r_[np.linspace(0, 1, 41), value])
    factors = 2.0 ** np.linspace(-5, 5, 41) if threshold == "boost" else np.linspace(0.5, 2, 46)
    return np.unique(np.r_[value * factors, value])


def sensitivity_frame(
    evaluator: RescueEvaluator, rules: str = "paper", on: str = "", preset: str = "paper"
) -> pd.DataFrame:
    """Final macro-F1 (percent) as each threshold moves and the others stay: class, threshold, fitted, value, macro_f1,
    f1, rescued, rescued_right. Empty while something is missing; a rule that is not in force has no line."""
    fitted, on = evaluator.predictions.rules(rules), on or evaluator.predictions.hardest()
    both = evaluator.branches(RescueSpec(preset=preset), on)
    if fitted is None or both is None:
        return pd.DataFrame()
    cells = evaluator.predictions.measured(preset, on, both.scored.ids)
    if cells is None:
        return pd.DataFrame()
    parts = []
    for rare in (r for r in fitted.rare if not r.disabled):
        for threshold in ("boost", "semantic", "cue_threshold"):
            value = getattr(rare, threshold)
            if not isinstance(value, int | float):
                continue
            found = sensitivity(
                both.scored.probabilities, both.semantic, cells, both.scored.labels, fitted,
                evaluator.predictions.classes, name=rare.name, threshold=threshold,
                values=threshold_values(value, threshold),
            )  # fmt: skip
            parts.append(found.assign(**{"class": rare.name, "threshold": threshold, "fitted": value}))
    frame = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()
    return frame.assign(macro_f1=100 * frame["macro_f1"], f1=100 * frame["f1"]) if len(frame) else frame


def targets_of(predictions: RescuePredictions, rules: str = "paper", benchmark: str = "") -> list[RareClass]:
    """The rare classes of the rules, those not in force included; empty while the rescue has not run."""
    found: Rules | None = predictions.rules(rules, benchmark)
    return list(found.rare) if found else []


def target_confusions(
    evaluator: RescueEvaluator, on: str = "", rules: str = "paper", preset: str = "paper"
) -> tuple[list[str], dict[str, np.ndarray]]:
    """Names (K,) of the targets, the classes that they are confused with and "other"; and ``{stage: (K, K) images}``
    of the averaged networks, rows = truth, before and after the phases. ``([], {})`` while something is missing."""
    rare, classes = targets_of(evaluator.predictions, rules), evaluator.predictions.classes
    on = on or evaluator.predictions.hardest()
    names = list(dict.fromkeys([*(r.name for r in rare), *(a for r in rare for a in r.against)]))
    matrices = {}
    for words, stage in (("networks alone", "base"), ("after phase 2", "phase2"), ("after phase 3", "final")):
        found = evaluator.decided(RescueSpec(stage=stage, rules=rules, preset=preset), on).get(AVERAGED)
        if found is None or not names:
            return [], {}
        place = np.full(len(classes), len(names))
        place[[classes.index(name) for name in names]] = np.arange(len(names))
        matrices[words] = confusion(place[found.labels], place[found.codes], len(names) + 1)
    return [*names, "other"], matrices


def counts_frame(predictions: RescuePredictions) -> pd.DataFrame:
    """Images of each class: the paper's (Fig. 1) and ours (training and test sets). Classes of either; None where a
    side does not have one."""
    paper = predictions.paper["tables"]["figure_1"]["reported"]
    ours: dict[str, dict[str, int]] = {}
    for words, on in (("ours, training", "oof"), ("ours, test", "test")):
        found = predictions.trace("paper", on)
        if found is not None:
            counts = np.bincount(found[0].labels, minlength=len(predictions.classes))
            ours[words] = dict(zip(predictions.classes, counts.tolist(), strict=True))
    names = dict.fromkeys([*paper, *predictions.classes])
    return pd.DataFrame(
        [{"class": name, "paper": paper.get(name), **{k: v.get(name) for k, v in ours.items()}} for name in names]
    )


GALLERY = {
    "rescued": "a rare cell that the phases gave its label back",
    "wrongly rescued": "another cell that the phases made rare",
    "missed": "a rare cell that is not recognised at the end",
}


def gallery_frame(predictions: RescuePredictions, on: str = "", rules: str = "paper", each: int = 4) -> pd.DataFrame:
    """Up to ``each`` images of every kind of `GALLERY` and rare class: kind, class, id, truth, base, final, reason, and
    the sentences of their trace, in the order of their ids. Empty while the rescue has not run."""
    on = on or predictions.hardest()
    found = predictions.trace(rules, on)
    if found is None:
        return pd.DataFrame()
    scored, trace = found
    names, lines = predictions.classes, []
    for rare in trace.rules.rare:
        code = names.index(rare.name)
        true, final = scored.labels == code, trace.final == code
        moved = final & (trace.base != code)
        for kind, rows in (("rescued", true & moved), ("wrongly rescued", ~true & moved), ("missed", true & ~final)):
            chosen = np.flatnonzero(rows)
            for i in chosen[np.argsort(scored.ids[chosen], kind="stable")][:each]:
                lines.append(
                    {"kind": kind, "class": rare.name, "id": str(scored.ids[i]), "set": on,
                     "truth": names[scored.labels[i]], "base": names[trace.base[i]], "final": names[trace.final[i]],
                     "reason": str(trace.reason[i]), "of": len(chosen), "sentences": explain(trace, int(i))}
                )  # fmt: skip
    return pd.DataFrame(lines)


def optimism(evaluator: RescueEvaluator, preset: str = "paper", metric: str = "macro_f1") -> dict[str, Estimate | int]:
    """The second branch on the training images: scored by the head that was trained on all of them ("seen"), and by
    those that did not see them ("out of fold"), pooled; and their paired difference ("optimism"). Images that one of
    them has no probabilities for (no embedding) are in neither: "left out" counts them. Empty while something is
    missing."""
    p = evaluator.predictions
    heads = p.select("semantic", preset)
    if not heads or not all(m.done for m in heads):
        return {}
    parts = [p.read(m, "val") for m in heads if m.fold >= 0]
    seen = [p.read(m, "train") for m in heads if m.fold < 0]
    if not seen or any(part is None for part in (*parts, *seen)):
        return {}
    found = {}
    for words, group in (("seen", seen), ("out of fold", parts)):
        columns = [np.concatenate([getattr(f, n) for f in group]) for n in ("ids", "labels", "groups", "probabilities")]
        order = np.argsort(columns[0], kind="stable")
        found[words] = [column[order] for column in columns]
    names = np.unique(np.concatenate([ids for ids, *_ in found.values()]))
    embedded = [ids[~np.isnan(q).any(1)] for ids, _, _, q in found.values()]
    common = np.intersect1d(*embedded)
    if not len(common):
        return {}
    known = {}
    for words, (ids, labels, groups, q) in found.items():
        rows = np.isin(ids, common)
        known[words] = Decided(ids[rows], labels[rows], q[rows].argmax(1), units_of(ids[rows], groups[rows]))
    scores = {words: evaluator.score({"pooled": d}, metric, f"{p.benchmark}, training") for words, d in known.items()}
    paired = scores["seen"].minus(scores["out of fold"])
    return {**scores, "optimism": paired, "left out": len(names) - len(common)}


def everything_head(
    evaluator: RescueEvaluator, on: str, preset: str = "paper", *, averaged: bool = False
) -> Estimate | None:
    """On test images: macro-F1 of the head trained on everything minus that of each head of a fold, or (``averaged``)
    of the mean of their probabilities, which is what the phases ask. None while one is missing."""
    p = evaluator.predictions
    heads = {m.fold: p.read(m, on) for m in p.select("semantic", preset)}
    if -1 not in heads or len(heads) < 2 or any(scored is None for scored in heads.values()):
        return None
    scored = heads[-1]
    found = {fold: np.nan_to_num(head.probabilities) for fold, head in heads.items()}
    if averaged:
        found = {-1: found.pop(-1), 0: np.mean(list(found.values()), 0)}
    units = units_of(scored.ids, scored.groups)
    estimate = evaluator.score(
        {fold: Decided(scored.ids, scored.labels, q.argmax(1), units) for fold, q in found.items()}, "macro_f1"
    )
    folds = [fold for fold in estimate.values if fold != -1]
    return Estimate({f: estimate.values[-1] - estimate.values[f] for f in folds},
                    {f: estimate.draws[-1] - estimate.draws[f] for f in folds})  # fmt: skip
