"""Small frames beside the tables of unseen laboratories: gains over ERM, scoring choices, sweeps, stain shift, classes.

All values in percent or points, NaN where a cell is missing; intervals are the paired ones of ``domain_evaluate``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from wbcrepro.metrics import confusion
from wbcrepro.report.domain_claims import source_counts
from wbcrepro.report.domain_evaluate import DomainEvaluator, DomainSpec
from wbcrepro.report.domain_layout import columns_of, definition_of, rows_of
from wbcrepro.report.domain_predictions import DomainPredictions
from wbcrepro.report.domain_tables import DomainTable, build_domain_table
from wbcrepro.report.evaluate import Estimate

SCORING = {
    "the paper's way": {},
    "weights of the last step": {"selection": "last"},
    "weights best on the sources": {"selection": "best"},
    "averaged weights (SWAD)": {"selection": "swad"},
    "four fifths of the target (released code)": {"rows": "in_split"},
    "classes in truth or prediction": {"classes": "occurring"},
    "the whole class list": {"classes": "list"},
    "without classes of one image": {"without_lone": True},
}
"""Choices of scoring that leave the trainings as they are, as arguments of `build_domain_table`."""


def _numbers(estimate: Estimate | None) -> dict[str, float | int | None]:
    if estimate is None:
        return {"mean": None, "low": None, "high": None, "trials": 0}
    low, high = estimate.interval()
    return {"mean": 100 * estimate.mean, "low": 100 * low, "high": 100 * high, "trials": estimate.folds}


def gains_frame(table: DomainTable, metric: str = "macro", reference: str = "ERM") -> pd.DataFrame:
    """Each row minus ``reference`` per column of ours: row, column, step (both), paper, change, low, high, trials.

    Missing cells have no line. The columns suit `wbcrepro.report.figures.effects_figure`.
    """
    rows = {row.label: row for row in table.rows}
    lines = []
    for column in (c for c in table.columns if c.laboratories):
        base = rows[reference].entries[column.label, metric]
        for label in (name for name in rows if name != reference):
            entry = rows[label].entries[column.label, metric]
            change = entry.ours.minus(base.ours) if entry.ours and base.ours else None
            if change is not None:
                found = _numbers(change)
                paper = entry.paper[0] - base.paper[0] if entry.paper and base.paper else None
                lines.append({"row": label, "column": column.label, "step": f"{label}: {column.label}",
                              "paper": paper, "change": found.pop("mean"), **found})  # fmt: skip
    return pd.DataFrame(lines)


def scoring_frame(
    predictions: DomainPredictions, name: str = "table_1", *, preset: str = "paper", metric: str = "macro",
    column: str = "Average", evaluator: DomainEvaluator | None = None,
) -> pd.DataFrame:  # fmt: skip
    """One column of a table under every choice of scoring: row, scoring, mean, low, high, trials, and the place of the
    row among all rows (1 is best)."""
    evaluator = evaluator or DomainEvaluator(predictions)
    lines = []
    for words, options in SCORING.items():
        table = build_domain_table(predictions, name, preset=preset, evaluator=evaluator, **options)
        found = {row.label: row.entries[column, metric].ours for row in table.rows}
        order = sorted((e.mean for e in found.values() if e), reverse=True)
        for label, estimate in found.items():
            place = order.index(estimate.mean) + 1 if estimate else None
            lines.append({"row": label, "scoring": words, **_numbers(estimate), "place": place})
    return pd.DataFrame(lines)


def choices_frame(
    predictions: DomainPredictions, choices: Mapping[str, dict], name: str = "table_1", *, preset: str = "paper",
    metric: str = "macro", evaluator: DomainEvaluator | None = None,
) -> pd.DataFrame:  # fmt: skip
    """A table of laboratories under a few choices of scoring, side by side: row, column, then the mean of each choice
    and, of each after the first, the paired change against the first with low and high; and trials.

    ``choices``: ``{words: fields of DomainSpec}``; ``selection`` is the table's unless given. Lines without any value
    are left out.
    """
    evaluator, definition = evaluator or DomainEvaluator(predictions), definition_of(predictions.paper, name)
    score, lines = definition["metrics"][metric], []
    for entry in rows_of(definition):
        for column in (c for c in columns_of(predictions, definition, preset) if c.laboratories):
            found = {}
            for words, options in choices.items():
                options = {"selection": definition["selection"], **options}
                spec = DomainSpec(entry["method"], preset, **options)
                found[words] = evaluator.estimate(spec, column.laboratories, score)
            if not any(found.values()):
                continue
            line: dict = {"row": entry["label"], "column": column.label}
            line |= {words: _numbers(estimate)["mean"] for words, estimate in found.items()}
            base, *others = found
            for words in others:
                change = found[words].minus(found[base]) if found[words] and found[base] else None
                low, high = (_numbers(change)[key] for key in ("low", "high"))
                line |= {f"{words}: change": _numbers(change)["mean"], f"{words}: low": low, f"{words}: high": high}
            lines.append(line | {"trials": max(e.folds for e in found.values() if e)})
    return pd.DataFrame(lines)


def sweep_frame(table: DomainTable) -> pd.DataFrame:
    """The points of a sweep: parameter, value, metric, paper (its best point only), mean, std, low, high, folds."""
    lines = []
    for line, row in zip(rows_of(definition_of(table.predictions.paper, table.name)), table.rows, strict=True):
        for (_, metric), entry in row.entries.items():
            paper = entry.paper[0] if entry.paper else None
            point = {"parameter": line["parameter"], "value": line["value"], "metric": metric, "paper": paper}
            lines.append(point | entry.numbers())
    return pd.DataFrame(lines)


def shift_frame(
    predictions: DomainPredictions, methods: Sequence[str], *, preset: str = "paper", selection: str = "swad",
    metric: str = "accuracy", evaluator: DomainEvaluator | None = None,
) -> pd.DataFrame:  # fmt: skip
    """Scores on the variants of the held-out laboratories: laboratory, method, shift, mean, low, high, trials.

    A variant is named ``<laboratory>@<stain shift>``; the laboratory itself has shift 1. Empty without variants.
    """
    evaluator = evaluator or DomainEvaluator(predictions)
    lines = []
    for laboratory in predictions.held_out(preset=preset):
        targets = predictions.targets(laboratory)
        for method in methods if len(targets) > 1 else ():
            for target in targets:
                spec = DomainSpec(method, preset, selection, target=target)
                shift = float(target.rpartition("@")[2]) if "@" in target else 1.0
                found = _numbers(evaluator.estimate(spec, (laboratory,), metric))
                label = predictions.paper["methods"][method]["label"]
                lines.append({"laboratory": laboratory, "method": label, "shift": shift, **found})
    frame = pd.DataFrame(lines)
    return frame.sort_values(["laboratory", "method", "shift"], kind="stable", ignore_index=True) if lines else frame


def confusion_of(
    predictions: DomainPredictions, spec: DomainSpec, laboratory: str, evaluator: DomainEvaluator | None = None
) -> np.ndarray | None:
    """Confusion matrix float64 (C, C), rows = truth, mean over trials; None where no trial has run."""
    decided = (evaluator or DomainEvaluator(predictions)).decided(spec, laboratory)
    matrices = [confusion(d.labels[d.rows], d.codes[d.rows], len(predictions.classes)) for d in decided.values()]
    return np.mean(matrices, axis=0) if matrices else None


def recall_frame(
    predictions: DomainPredictions, specs: dict[str, DomainSpec], laboratory: str,
    evaluator: DomainEvaluator | None = None,
) -> pd.DataFrame:  # fmt: skip
    """Per class: training images in each source, sources that have it, images scored, and recall of each row, percent.

    One line a class that is trained on or scored; recall is NaN where the laboratory has no image of the class.
    """
    first = next(iter(specs.values()))
    sources, counts = source_counts(predictions, preset=first.preset, held_out=laboratory) or ((), None)
    matrices = {name: confusion_of(predictions, spec, laboratory, evaluator) for name, spec in specs.items()}
    lines = []
    for code, name in enumerate(predictions.classes):
        line: dict = {"class": name}
        if counts is not None:
            line |= {source: int(counts[d, code]) for d, source in enumerate(sources)}
            line["sources with it"] = int((counts[:, code] > 0).sum())
        scored = {row: m for row, m in matrices.items() if m is not None}
        line["images scored"] = int(next(iter(scored.values()))[code].sum()) if scored else 0
        for row in specs:
            m = scored.get(row)
            line[f"recall {row}"] = 100 * m[code, code] / m[code].sum() if m is not None and m[code].sum() else np.nan
        if line["images scored"] or line.get("sources with it"):
            lines.append(line)
    return pd.DataFrame(lines)
