"""A paper's claims, evaluated on stored predictions: effect size, interval and a verdict from a fixed vocabulary.

The claims are data (``wbcrepro/papers/<name>.claims.yml``). A verdict holds for the data set, networks and folds
that were run; see ``verdicts.judge`` for what "supported here" takes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from importlib import resources

import numpy as np
import pandas as pd
import yaml

from wbcrepro.metrics import wilson_interval
from wbcrepro.report import verdicts
from wbcrepro.report.evaluate import Estimate, Evaluator, Spec, average, scored
from wbcrepro.report.predictions import Predictions, Scored
from wbcrepro.report.tables import reference_rows, row_spec

TABLE = "table_1"


@dataclass(frozen=True)
class Finding:
    """One claim for one item. Effects in percentage points unless ``unit`` says otherwise; None where there is none."""

    claim: str
    item: str
    unit: str
    paper: float | None
    effect: float | None
    low: float | None
    high: float | None
    folds: int
    verdict: str
    """A key of ``verdicts.CLAIMS``."""
    note: str = ""


@cache
def load_part(paper: str, part: str) -> list[dict]:
    """``papers/<paper>.<part>.yml`` (claims, discrepancies); an empty list for a paper that has none."""
    path = resources.files("wbcrepro.papers") / f"{paper}.{part}.yml"
    return yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else []


@dataclass(frozen=True)
class Case:
    """What a claim is evaluated with."""

    predictions: Predictions
    evaluator: Evaluator
    specs: dict[str, Spec]
    definition: dict

    def difference(self, left: str, right: str, metric: str) -> Estimate | None:
        """Our paired difference between two rows."""
        a, b = (self.evaluator.estimate(self.specs[name], self.score(metric)) for name in (left, right))
        return a.minus(b) if a and b else None

    def score(self, metric: str) -> str:
        """The metric's name in ``wbcrepro.metrics``."""
        return self.definition["metrics"][metric]

    def printed(self, row: str, metric: str) -> float:
        """The paper's mean, percent."""
        return float(self.definition["reported"][row][metric][0])


def evaluate_claims(predictions: Predictions, *, preset: str = "paper", n: int | None = None) -> list[Finding]:
    """Every claim of the paper on the clean test set (and the degraded one where a claim needs it)."""
    definition = predictions.paper["tables"][TABLE]
    labels = [row["label"] for row in definition["rows"]]
    specs = {label: row_spec(predictions.paper, TABLE, label, preset) for label in labels}
    case = Case(predictions, Evaluator(predictions, "test", n), specs, definition)
    claims = load_part(predictions.paper["name"], "claims")
    return [finding for claim in claims for finding in KINDS[claim["kind"]](claim, case)]


def findings_frame(predictions: Predictions, findings: list[Finding]) -> pd.DataFrame:
    """One line per claim and item, with the claim's words and the verdict in words."""
    claims = {c["id"]: c for c in load_part(predictions.paper["name"], "claims")}
    return pd.DataFrame(
        {
            "claim": [f.claim for f in findings],
            "the paper says": [claims[f.claim]["words"] for f in findings],
            "section": [claims[f.claim]["section"] for f in findings],
            "item": [f.item for f in findings],
            "unit": [f.unit for f in findings],
            "paper's effect": [f.paper for f in findings],
            "our effect": [f.effect for f in findings],
            "low": [f.low for f in findings],
            "high": [f.high for f in findings],
            "folds": [f.folds for f in findings],
            "verdict": [verdicts.CLAIMS[f.verdict] for f in findings],
            "note": [f.note for f in findings],
        }
    )


def _finding(claim: dict, item: str, paper: float | None, ours: Estimate | None, **options: object) -> Finding:
    """A finding from a paired difference of fractions; ``sign=-1`` turns "above zero" into "below zero"."""
    sign, margin = options.pop("sign", 1), options.pop("margin", 0.0)
    note, unit = options.pop("note", ""), options.pop("unit", "points")
    scale = 100 if unit == "points" else 1
    if ours is None:
        note = "; ".join(filter(None, [note, "cells missing"]))
        return Finding(claim["id"], item, unit, paper, None, None, None, 0, "not testable", note)
    low, high = ours.interval()
    turned = Estimate({k: sign * v for k, v in ours.values.items()}, {k: sign * v for k, v in ours.draws.items()})
    verdict = verdicts.judge(turned, margin=margin)
    return Finding(
        claim["id"], item, unit, paper, scale * ours.mean, scale * low, scale * high, ours.folds, verdict, note
    )


def _difference(claim: dict, case: Case) -> list[Finding]:
    """Row minus row in one metric; with ``against`` the change of that other metric is taken off again."""
    found, sign, other = [], claim.get("sign", 1), claim.get("against")
    for pair in claim["pairs"]:
        left, right = pair["left"], pair["right"]
        paper = case.printed(left, claim["metric"]) - case.printed(right, claim["metric"])
        ours = case.difference(left, right, claim["metric"])
        if other:
            paper -= case.printed(left, other) - case.printed(right, other)
            ours = ours.minus(case.difference(left, right, other)) if ours else None
        note = "" if paper * sign > 0 else "the paper's own table says the opposite"
        found.append(_finding(claim, pair["item"], round(paper, 6), ours, sign=sign, note=note))
    return found


def _best(claim: dict, case: Case) -> list[Finding]:
    """Our row against each of the others; shown is the difference to the rival that is closest or ahead."""
    row, metric = claim["row"], claim["metric"]
    others = [label for label in case.specs if label != row]
    paper = case.printed(row, metric) - max(case.printed(label, metric) for label in others)
    ours = case.evaluator.estimate(case.specs[row], case.score(metric))
    rivals = [case.evaluator.estimate(case.specs[label], case.score(metric)) for label in others]
    changes = {label: ours.minus(e) for label, e in zip(others, rivals, strict=True)} if ours and all(rivals) else {}
    return [best_finding(claim, f"{row} against the best other row", round(paper, 6), changes)]


def best_finding(
    claim: dict, item: str, paper: float | None, changes: dict[str, Estimate | None], notes: Iterable[str] = ()
) -> Finding:
    """A finding on "better than every rival" from the paired difference to each; see ``verdicts.judge_best``."""
    found = {label: change for label, change in changes.items() if change is not None}
    if not found or len(found) < len(changes):
        words = [*notes] or ["cells missing"]
        return Finding(claim["id"], item, "points", paper, None, None, None, 0, "not testable", "; ".join(words))
    rival = min(found, key=lambda label: found[label].mean)
    shown = found[rival]
    low, high = shown.interval(verdicts.corrected(len(found)))
    words = [*notes, f"closest or ahead: {rival}; interval corrected for {len(found)} rivals"]
    words += [verdicts.too_few(shown)] if verdicts.too_few(shown) else []
    return Finding(
        claim["id"], item, "points", paper, 100 * shown.mean, 100 * low, 100 * high, shown.folds,
        verdicts.judge_best(list(found.values())), "; ".join(words),
    )  # fmt: skip


def _over_members(claim: dict, case: Case) -> list[Finding]:
    found = []
    for row in claim["rows"]:
        singles, metric = reference_rows(case.specs, row), claim["metric"]
        paper = case.printed(row, metric) - np.mean([case.printed(s, metric) for s in singles])
        parts = [case.evaluator.estimate(case.specs[s], case.score(metric)) for s in singles]
        ours = case.evaluator.estimate(case.specs[row], case.score(metric))
        change = ours.minus(average(parts)) if ours and all(parts) else None
        found.append(_finding(claim, row, round(float(paper), 6), change))
    return found


def _train_counts(case: Case) -> np.ndarray | None:
    return next((np.array(m.train_counts) for m in case.predictions.members if m.train_counts), None)


def _recall(claim: dict, case: Case) -> list[Finding]:
    """Recall of rare classes against chance (1 / classes); Wilson interval at the size of the test set of one fold."""
    classes, counts = case.predictions.classes, _train_counts(case)
    rarest = [] if counts is None else [classes[i] for i in np.argsort(counts, kind="stable")[: claim["rarest"]]]
    decided = case.evaluator.decided(case.specs[claim["row"]])
    reported = case.predictions.paper["tables"]["figure_2"]["reported"]
    found = []
    for name in dict.fromkeys([*claim["classes"], *rarest]):
        paper = 100 * reported[name][0] / reported[name][1] if name in reported else None
        code = classes.index(name) if name in classes else -1
        per_fold = [
            (int(((true == code) & (pred == code)).sum()), int((true == code).sum())) for true, pred in decided.values()
        ]
        if code < 0 or not per_fold or not per_fold[0][1]:
            note = "the class does not occur in this data" if decided else "cells missing"
            found.append(
                Finding(claim["id"], f"recall of {name}", "percent", paper, None, None, None, 0, "not testable", note)
            )
            continue
        hits, size = np.mean([k for k, _ in per_fold]), np.mean([n for _, n in per_fold])
        low, high = (float(v) for v in wilson_interval(hits, size))
        chance = 1 / len(classes)
        over_folds = verdicts.trial_interval(k / n for k, n in per_fold)
        verdict = "undecided"
        if min(low, over_folds[0]) > chance or max(high, over_folds[1]) < chance:
            verdict = "supported" if low > chance else "contradicted"
        note = f"{size:.0f} test images; chance {100 * chance:.1f} %"
        if counts is not None:
            note += f"; {counts[code]} training images in the first fold"
        found.append(
            Finding(
                claim["id"],
                f"recall of {name}",
                "percent",
                paper,
                100 * hits / size,
                100 * low,
                100 * high,
                len(per_fold),
                verdict,
                note,
            )
        )
    return found


def majority_classes(counts: np.ndarray, share: float) -> np.ndarray:
    """Codes of the largest classes that together hold at least ``share`` of the training images."""
    order = np.argsort(-counts, kind="stable")
    held = np.cumsum(counts[order]) / counts.sum()
    return order[: int(np.searchsorted(held, share) + 1)]


def _majority(claim: dict, case: Case) -> list[Finding]:
    counts = _train_counts(case)
    if counts is None:
        return [_finding(claim, pair["item"], None, None) for pair in claim["pairs"]]
    codes = majority_classes(counts, claim["share"])
    names = ", ".join(case.predictions.classes[c] for c in codes)
    note = f"mean recall of {names}; margin {100 * claim['margin']:.0f} points"
    found = []
    for pair in claim["pairs"]:
        left, right = (case.evaluator.decided(case.specs[pair[side]]) for side in ("left", "right"))
        change = _image_means({f: (left[f], right[f]) for f in left if f in right}, codes, case.evaluator)
        found.append(_finding(claim, pair["item"], None, change, margin=claim["margin"], note=note))
    return found


def _image_means(pairs: dict, codes: np.ndarray, evaluator: Evaluator) -> Estimate | None:
    """Paired difference of mean recall over a few classes, with replicates resampled within each class."""
    if not pairs:
        return None
    values, draws = {}, {}
    for fold, ((true, left), (_, right)) in pairs.items():
        rng, parts = np.random.default_rng(evaluator.seed), []
        gains = [((left == true).astype(float) - (right == true))[true == code] for code in codes]
        gains = [gain for gain in gains if len(gain)]
        for gain in gains:
            parts.append(gain[rng.integers(len(gain), size=(evaluator.n, len(gain)))].mean(1))
        values[fold], draws[fold] = float(np.mean([g.mean() for g in gains])), np.mean(parts, axis=0)
    return Estimate(values, draws)


def _variances(parts: list[dict[object, Scored]], folds: list) -> tuple[np.ndarray, np.ndarray]:
    """Per image (N,): variance over folds of the class probabilities, summed over classes; of the first spec, and the
    mean of that of the others."""
    found = [np.var([part[f].probabilities for f in folds], axis=0, ddof=1).sum(1) for part in parts]
    return found[0], np.mean(found[1:], axis=0)


def _variance(claim: dict, case: Case) -> list[Finding]:
    """Variance of the ensemble with views relative to one model without, minus 1; below zero: averaging lowers it.

    A variance between trainings has no value per training. The pseudo-values of the jackknife over folds stand for them
    (Tukey, 1958): n times the ratio of all folds minus n - 1 times that without the fold.
    """
    whole = case.specs[claim["row"]]
    singles = [Spec(whole.method, (b,), whole.preset, "none") for b in whole.backbones]
    parts = [scored(case.predictions, spec) for spec in (whole, *singles)]
    folds = [fold for fold in parts[0] if all(fold in part for part in parts)]
    if len(folds) < 2:
        return [_finding(claim, claim["row"], None, None, unit="ratio")]
    after, single = _variances(parts, folds)
    index = np.random.default_rng(case.evaluator.seed).integers(len(after), size=(case.evaluator.n, len(after)))
    draws = after[index].mean(1) / single[index].mean(1) - 1
    change, values = after.mean() / single.mean() - 1, {"all folds": after.mean() / single.mean() - 1}
    if len(folds) > 2:
        without = [_variances(parts, [f for f in folds if f != fold]) for fold in folds]
        ratios = [a.mean() / s.mean() - 1 for a, s in without]
        values = {f: len(folds) * change - (len(folds) - 1) * r for f, r in zip(folds, ratios, strict=True)}
    ratio = Estimate(values, dict.fromkeys(values, draws))
    note = f"change of the variance relative to one model without views, over {len(folds)} folds (jackknife)"
    return [_finding(claim, claim["row"], None, ratio, unit="ratio", sign=-1, note=note)]


def _robustness(claim: dict, case: Case) -> list[Finding]:
    """How much less the ensemble loses from clean to degraded images than its single models do on average."""
    hurt = Evaluator(case.predictions, "test_degraded", case.evaluator.n, case.evaluator.seed)
    score = case.score(claim["metric"])

    def loss(label: str) -> Estimate | None:
        clean, degraded = (e.estimate(case.specs[label], score) for e in (case.evaluator, hurt))
        return clean.minus(degraded) if clean and degraded else None

    parts = [loss(label) for label in reference_rows(case.specs, claim["row"])]
    ours = loss(claim["row"])
    change = average(parts).minus(ours) if ours and all(parts) else None
    return [
        _finding(claim, claim["row"], None, change, note="degradations are ours, after the challenge's description")
    ]


KINDS: dict[str, Callable[[dict, Case], list[Finding]]] = {
    "difference": _difference, "best": _best, "over_members": _over_members, "recall": _recall,
    "majority": _majority, "variance": _variance, "robustness": _robustness,
}  # fmt: skip
