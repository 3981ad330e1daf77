"""Claims of papers about unseen laboratories, evaluated on stored predictions: effect, interval, verdict.

The claims are data (``wbcrepro/papers/<name>.claims.yml``); a paper's own effect is computed from the values that its
YAML reports. A verdict holds for the laboratories, the network and the trials that were run. One or two trials decide
nothing: how far a training done anew would move the effect is then unknown.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from wbcrepro import metrics
from wbcrepro.metrics import wilson_interval
from wbcrepro.report import verdicts
from wbcrepro.report.claims import Finding, best_finding, load_part
from wbcrepro.report.domain_evaluate import DomainEvaluator, DomainSpec
from wbcrepro.report.domain_layout import reported_value, same_cells
from wbcrepro.report.domain_predictions import DomainPredictions
from wbcrepro.report.domain_tables import DomainTable, build_domain_table
from wbcrepro.report.evaluate import Estimate
from wbcrepro.seeds import derive_seed

METRIC_WORDS = {"micro": "F1-micro", "macro": "F1-macro"}


@dataclass(frozen=True)
class Case:
    """What a claim is evaluated with; tables are built once."""

    predictions: DomainPredictions
    evaluator: DomainEvaluator
    preset: str
    tables: dict[str, DomainTable] = field(default_factory=dict)

    def table(self, name: str) -> DomainTable:
        """One table of the paper under the case's preset."""
        if name not in self.tables:
            self.tables[name] = build_domain_table(self.predictions, name, preset=self.preset, evaluator=self.evaluator)
        return self.tables[name]

    def ours(self, table: str, row: str, column: str, metric: str) -> Estimate | None:
        """Our estimate in one cell."""
        return next(r for r in self.table(table).rows if r.label == row).entries[column, metric].ours

    def printed(self, table: str, row: str, column: str, metric: str) -> float | None:
        """The paper's mean, percent; None where it prints none."""
        found = reported_value(self.predictions.paper["tables"][table], {"label": row}, column, metric)
        return None if found is None else found[0]

    def counted(self, table: str, column: str) -> str:
        """Why a column is no further evidence: it scores cells that another table judges already. Empty if it is."""
        definition = self.predictions.paper["tables"][table]
        ours = next(c for c in self.table(table).columns if c.label == column)
        same = same_cells(self.predictions, definition, ours, self.preset)
        return f"ours is the column {same[1]} of {same[0]!r}; one result is not counted twice" if same else ""

    def where(self, table: str, column: str) -> str:
        """The column in words: its label, and the laboratory that stands for it where it is another."""
        ours = next(c for c in self.table(table).columns if c.label == column).ours
        return column if column in ("Average", "Sources") else f"{column} ({ours})"


def _skipped(claim: dict, item: str, paper: float | None, why: str) -> Finding:
    return Finding(claim["id"], item, "points", paper, None, None, None, 0, "not testable", why)


def evaluate_domain_claims(
    predictions: DomainPredictions, *, preset: str = "paper", n: int | None = None,
    evaluator: DomainEvaluator | None = None,
) -> list[Finding]:  # fmt: skip
    """Every claim of the paper, in order."""
    case = Case(predictions, evaluator or DomainEvaluator(predictions, n), preset)
    claims = load_part(predictions.paper["name"], "claims")
    return [finding for claim in claims for finding in KINDS[claim["kind"]](claim, case)]


def _finding(
    claim: dict, item: str, paper: float | None, ours: Estimate | None, *, sign: int = 1, note: str = ""
) -> Finding:
    """A finding from a paired difference of fractions; ``sign=-1`` turns "above zero" into "below zero"."""
    notes = [note] if note else []
    if paper is not None and paper * sign <= 0:
        notes.append("the paper's own table does not say so")
    if ours is None:
        notes += [] if note else ["cells missing"]
        return Finding(claim["id"], item, "points", paper, None, None, None, 0, "not testable", "; ".join(notes))
    low, high = ours.interval()
    turned = Estimate({k: sign * v for k, v in ours.values.items()}, {k: sign * v for k, v in ours.draws.items()})
    notes += [verdicts.too_few(ours)] if verdicts.too_few(ours) else []
    return Finding(
        claim["id"], item, "points", paper, 100 * ours.mean, 100 * low, 100 * high, ours.folds, verdicts.judge(turned),
        "; ".join(notes),
    )  # fmt: skip


def _minus(left: float | None, right: float | None) -> float | None:
    return None if left is None or right is None else round(left - right, 6)


def _columns(claim: dict, case: Case) -> list[str]:
    """The claim's columns, or all; those of neither the paper nor ours are left out."""
    wanted = claim.get("columns") or [c.label for c in case.table(claim["table"]).columns]
    return [c for c in wanted if c in {column.label for column in case.table(claim["table"]).columns}]


def _difference(claim: dict, case: Case) -> list[Finding]:
    """Row minus row per column and metric; with ``against`` the change of that other metric is taken off again."""
    table, found, other = claim["table"], [], claim.get("against")
    for pair in claim["pairs"]:
        for column in _columns(claim, case):
            for metric in claim["metrics"]:
                change = _change(case, table, pair, column, metric)
                paper = _printed(case, table, pair, column, metric)
                words = f"{METRIC_WORDS[metric]}, {case.where(table, column)}"
                if other:
                    rest = _change(case, table, pair, column, other)
                    change = change.minus(rest) if change and rest else None
                    paper = _minus(paper, _printed(case, table, pair, column, other))
                    words = f"gain in {METRIC_WORDS[metric]} minus gain in {METRIC_WORDS[other]}, {column}"
                item = f"{pair['left']} - {pair['right']}: {words}"
                if case.counted(table, column):
                    found.append(_skipped(claim, item, paper, case.counted(table, column)))
                    continue
                found.append(_finding(claim, item, paper, change, sign=claim.get("sign", 1)))
    return found


def _change(case: Case, table: str, pair: dict, column: str, metric: str) -> Estimate | None:
    left, right = (case.ours(table, pair[side], column, metric) for side in ("left", "right"))
    return left.minus(right) if left and right else None


def _printed(case: Case, table: str, pair: dict, column: str, metric: str) -> float | None:
    return _minus(*(case.printed(table, pair[side], column, metric) for side in ("left", "right")))


def _best(claim: dict, case: Case) -> list[Finding]:
    """Our row against each of the paper's other rows; shown is the difference to the closest, or to the one ahead."""
    table, row, found = claim["table"], claim["row"], []
    reported = case.predictions.paper["tables"][table]["reported"]
    rivals = [label for label in reported if label != row]
    for column in _columns(claim, case):
        for metric in claim["metrics"]:
            printed = [case.printed(table, label, column, metric) for label in rivals]
            top = max((p for p in printed if p is not None), default=None)
            changes = {r: _change(case, table, {"left": row, "right": r}, column, metric) for r in rivals}
            item = f"{row} against the best other row: {METRIC_WORDS[metric]}, {case.where(table, column)}"
            paper = _minus(case.printed(table, row, column, metric), top)
            if case.counted(table, column):
                found.append(_skipped(claim, item, paper, case.counted(table, column)))
                continue
            notes = ["the paper's own table does not say so"] if paper is not None and paper <= 0 else []
            found.append(best_finding(claim, item, paper, changes, notes))
    return found


def _sweep_best(claim: dict, case: Case) -> list[Finding]:
    """The paper's choice against each other point of the sweep."""
    table, found = claim["table"], []
    points = [r.label for r in case.table(table).rows if r.label.startswith(f"{claim['parameter']} = ")]
    chosen = f"{claim['parameter']} = {claim['value']:g}"
    for metric in claim["metrics"]:
        parts = {p: case.ours(table, p, "Average", metric) for p in points}
        missing = [p for p, v in parts.items() if v is None]
        ours = parts.pop(chosen)
        changes = {p: ours.minus(v) for p, v in parts.items() if v is not None} if ours else {}
        notes = [f"not run: {', '.join(missing)}"] if missing and changes else []
        item = f"{chosen} against the best other value: {METRIC_WORDS[metric]}, Average"
        found.append(best_finding(claim, item, None, changes, notes))
    return found


def source_counts(predictions: DomainPredictions, **where: object) -> tuple[tuple[str, ...], np.ndarray] | None:
    """Sources and their training images per class, int64 (D, C), of the first finished member; None without one."""
    found = next((m for m in predictions.find(**where) if m.done and m.train_counts), None)
    return None if found is None else (found.sources, np.array(found.train_counts, dtype=np.int64))


def class_recall(
    evaluator: DomainEvaluator, spec: DomainSpec, laboratory: str, codes: np.ndarray
) -> tuple[Estimate | None, float, float]:
    """Mean recall over classes that occur, as an estimate paired with other methods; and hits and images, mean of the
    trials. ``(None, 0, 0)`` where nothing has run or no image of these classes is there."""
    values, draws, hits, images = {}, {}, [], []
    for trial, found in evaluator.decided(spec, laboratory).items():
        over = np.intersect1d(codes, found.labels)
        if not len(over):
            continue
        rows = np.isin(found.labels, over)
        size = len(evaluator.predictions.classes)
        seed = derive_seed(evaluator.seed, laboratory, *([trial] if spec.on == "val" else []))
        draws[trial] = metrics.bootstrap_draws(
            [found.codes], found.labels, "macro_recall", evaluator.n, seed, n_classes=size, stratified=True,
            groups=found.groups, rows=[rows], average_over=[over],
        )[:, 0]  # fmt: skip
        values[trial] = metrics.score(found.labels[rows], found.codes[rows], "macro_recall", size, average_over=over)
        hits.append((found.codes == found.labels)[rows].sum())
        images.append(rows.sum())
    if not values:
        return None, 0.0, 0.0
    return Estimate(values, draws), float(np.mean(hits)), float(np.mean(images))


def rarest_class(predictions: DomainPredictions, evaluator: DomainEvaluator, spec: DomainSpec, laboratory: str) -> int:
    """Code of the class with the fewest source training images among those trained on and scored; -1 without one."""
    counts = source_counts(predictions, preset=spec.preset, held_out=laboratory)
    decided = evaluator.decided(spec, laboratory)
    if counts is None or not decided:
        return -1
    there = set(np.concatenate([d.labels for d in decided.values()]))
    total = counts[1].sum(0)
    order = [int(c) for c in np.argsort(total, kind="stable") if total[c] > 0 and int(c) in there]
    return order[0] if order else -1


def _tail_recall(claim: dict, case: Case) -> list[Finding]:
    """Recall of the tail class, row minus row, on the sources' validation rows and on the unseen laboratory."""
    found, classes = [], case.predictions.classes
    for table in claim["tables"]:
        specs = {r.label: r.spec for r in case.table(table).rows}
        laboratories = case.table(table).columns[0].laboratories
        where = "validation rows of the sources" if case.table(table).on == "val" else "unseen laboratory"
        for laboratory in laboratories:
            rarest = rarest_class(case.predictions, case.evaluator, specs[claim["right"]], laboratory)
            named = [classes[rarest]] if rarest >= 0 else []
            for name in dict.fromkeys([claim["class"], *named]):
                codes = np.array([classes.index(name)] if name in classes else [], dtype=int)
                left, right = (
                    class_recall(case.evaluator, specs[claim[s]], laboratory, codes) for s in ("left", "right")
                )
                change = left[0].minus(right[0]) if left[0] and right[0] else None
                item = f"recall of {name}, {claim['left']} - {claim['right']}: {where} ({laboratory})"
                note = "the class does not occur here" if named and change is None else ""
                if change is not None:
                    note = "; ".join(f"{claim[s]} {_wilson(*v[1:])}" for s, v in (("right", right), ("left", left)))
                    note += " (Wilson, at the size of one trial)"
                found.append(_finding(claim, item, None, change, note=note))
    return found


def _wilson(hits: float, images: float) -> str:
    low, high = (100 * float(v) for v in wilson_interval(hits, images))
    return f"{hits:.1f} of {images:.0f} = {100 * hits / images:.0f} % [{low:.0f}, {high:.0f}]"


def _single_source(claim: dict, case: Case) -> list[Finding]:
    """Mean recall over the classes that live in one source only, row minus row, on the unseen laboratory."""
    found, table = [], claim["table"]
    specs = {r.label: r.spec for r in case.table(table).rows}
    for laboratory in case.table(table).columns[0].laboratories:
        counts = source_counts(case.predictions, preset=case.preset, held_out=laboratory)
        codes = np.flatnonzero((counts[1] > 0).sum(0) == 1) if counts else np.empty(0, int)
        left, right = (class_recall(case.evaluator, specs[claim[s]], laboratory, codes) for s in ("left", "right"))
        change = left[0].minus(right[0]) if left[0] and right[0] else None
        pair = f"{claim['left']} - {claim['right']}"
        item = f"recall of classes of one source only, {pair}: unseen laboratory ({laboratory})"
        names = ", ".join(case.predictions.classes[c] for c in codes)
        note = f"classes: {names}" if names else "no class lives in one source only"
        if names and change is None:
            note += "; the unseen laboratory has none of them"
        if change is not None:
            note += "; " + "; ".join(f"{claim[s]} {_wilson(*v[1:])}" for s, v in (("right", right), ("left", left)))
        found.append(_finding(claim, item, None, change, note=note))
    return found


def _untestable(claim: dict, case: Case) -> list[Finding]:
    """A claim that stored predictions cannot decide; the note says why and where to look instead."""
    return [Finding(claim["id"], claim["item"], "points", None, None, None, None, 0, "not testable", claim["why"])]


KINDS: dict[str, Callable[[dict, Case], list[Finding]]] = {
    "difference": _difference, "best": _best, "sweep_best": _sweep_best, "tail_recall": _tail_recall,
    "single_source": _single_source, "untestable": _untestable,
}  # fmt: skip
