"""Tables of methods by held-out laboratory: the paper's value and ours in separate columns, never mixed.

The definition is data (``tables:`` in the paper's YAML, read by ``domain_layout``). All in percent.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import pandas as pd

from wbcrepro.errors import UsageError
from wbcrepro.report import verdicts
from wbcrepro.report.domain_captions import caption, few_groups
from wbcrepro.report.domain_evaluate import CLASSES, ROWS, DomainEvaluator, DomainSpec
from wbcrepro.report.domain_layout import (
    Column,
    columns_of,
    definition_of,
    profiles_holding_out,
    profiles_with,
    reported_value,
    rows_of,
)
from wbcrepro.report.domain_predictions import SELECTIONS, DomainPredictions
from wbcrepro.report.tables import Entry, entry_json, hole_words, ranked

SCHEMA = 1


@dataclass(frozen=True)
class DomainRow:
    """One method: entries by (column, metric), the ids of the cells that it has and lacks, what fills its holes."""

    label: str
    spec: DomainSpec
    entries: dict[tuple[str, str], Entry]
    cells: tuple[str, ...]
    missing: tuple[str, ...]
    command: str
    left_out: bool
    """Whether the profile does not plan the row. Then ``command`` makes it in a profile that does, if there is one."""


@dataclass(frozen=True)
class DomainTable:
    """A computed table with everything that its caption must say."""

    name: str
    title: str
    kind: str
    metrics: dict[str, str]
    columns: tuple[Column, ...]
    rows: tuple[DomainRow, ...]
    spec: DomainSpec
    """The switches that all rows share (its method means nothing)."""
    predictions: DomainPredictions
    bootstrap: int
    scored: dict[str, tuple[int, int]]
    """``{column: (images scored in the first trial, classes averaged over)}``; a column without values is left out."""
    few: dict[str, dict[str, tuple[int, int]]]
    """``{laboratory: {class: (images, groups)}}`` of classes whose many images come from few slides."""

    @property
    def on(self) -> str:
        """The set: "test" (the unseen laboratory) or "val" (the sources' validation rows)."""
        return self.spec.on

    @property
    def preset(self) -> str:
        """The preset of all rows."""
        return self.spec.preset

    @property
    def trials(self) -> int:
        """How many trials are planned."""
        return len(self.predictions.trials(preset=self.spec.preset))

    @property
    def any_result(self) -> bool:
        """Whether at least one row has a value."""
        return any(entry.ours is not None for row in self.rows for entry in row.entries.values())

    def ranks(self, paper: bool = False) -> dict[tuple[str, str, str], str]:
        """``{(row, column, metric): "best"|"second"}`` at the printed precision, of ours or of the paper's values.

        Two may share a rank. A rank that more than two share says nothing and is not given, nor any below it.
        """
        found: dict[tuple[str, str, str], str] = {}
        for key in [(c.label, m) for c in self.columns for m in self.metrics]:
            shown = {row.label: value for row in self.rows if (value := _shown(row.entries[key], paper)) is not None}
            found |= {(row, *key): rank for row, rank in ranked(shown).items()} if len(shown) > 1 else {}
        return found

    def holes(self) -> list[tuple[str, str]]:
        """Pairs of what is missing, in words, and the command that fills it (empty where nothing does)."""
        groups: dict[tuple[str, bool], list[str]] = {}
        for row in self.rows:
            if row.command or row.left_out:
                groups.setdefault((row.command, row.left_out), []).append(row.label)
        found = [(f"{hole_words(*key)} {', '.join(labels)}", key[0]) for key, labels in groups.items()]
        paper = self.predictions.paper
        for column in (c.label for c in self.columns if not c.laboratories):
            profiles = profiles_holding_out(paper, paper["tables"][self.name], column)
            command = f"wbcrepro reproduce --paper {paper['name']} --profile {profiles[0]}" if profiles else ""
            words = "another profile does" if profiles else "no profile does"
            found.append((f"no laboratory of this profile stands for {column}, {words}", command))
        return found

    def caption(self) -> str:
        """What the numbers are, in sentences."""
        return caption(self)

    def frame(self) -> pd.DataFrame:
        """One line per row, column and metric (the CSV); percent."""
        ranks, lines, spec = self.ranks(), [], self.spec
        for row in self.rows:
            for (label, metric), entry in row.entries.items():
                column = next(c for c in self.columns if c.label == label)
                paper, numbers = entry.paper or (None, None), entry.numbers()
                images, classes = self.scored.get(label, (0, 0))
                lines.append(
                    {"row": row.label, "column": label, "laboratory": "+".join(column.laboratories), "metric": metric,
                     "set": spec.on, "preset": spec.preset, "selection": spec.selection, "rows": spec.rows,
                     "classes": spec.classes, "without_lone": spec.without_lone, "images": images,
                     "classes_averaged": classes, "paper_mean": paper[0], "paper_std": paper[1],
                     **{k: numbers[k] for k in ("mean", "std", "low", "high")}, "trials": numbers["folds"],
                     "rank": ranks.get((row.label, label, metric), ""), "verdict": verdicts.VALUES[entry.verdict],
                     "reference": entry.reference, "missing_cells": len(row.missing)}
                )  # fmt: skip
        return pd.DataFrame(lines)

    def to_csv(self) -> str:
        """The frame as CSV: two decimals, empty where there is no value; the same bytes for the same predictions."""
        return self.frame().to_csv(index=False, float_format="%.2f", lineterminator="\n")

    def to_json(self) -> dict:
        """The JSON of ``wbcrepro report``: ``schema, table, kind, title, paper, profile, benchmark, data_digest,
        synthetic, set, preset, selection, scored_rows, classes, caption, provenance, columns`` and ``rows``.

        A row has ``label, cells, missing, command, left_out, entries``; an entry ``column, metric, paper_mean,
        paper_std, mean, std, low, high, trials, verdict, reference``. Values in percent, null where there is none.
        """
        p, spec = self.predictions, self.spec
        return {
            "schema": SCHEMA, "table": self.name, "kind": self.kind, "title": self.title, "paper": p.paper["name"],
            "profile": p.profile, "benchmark": p.benchmark, "data_digest": p.data_digest, "synthetic": p.synthetic,
            "set": spec.on, "preset": spec.preset, "selection": spec.selection, "scored_rows": spec.rows,
            "classes": spec.classes, "without_lone": spec.without_lone, "caption": self.caption(),
            "provenance": {name: p.facts(name) for name in ("commit", "hardware", "date", "seed")},
            "columns": [{"label": c.label, "laboratories": list(c.laboratories)} for c in self.columns],
            "rows": [
                {"label": row.label, "cells": list(row.cells), "missing": list(row.missing), "command": row.command,
                 "left_out": row.left_out,
                 "entries": [_json(column, metric, entry) for (column, metric), entry in row.entries.items()]}
                for row in self.rows
            ],
        }  # fmt: skip


def _json(column: str, metric: str, entry: Entry) -> dict:
    value = entry_json(entry)
    return {"column": column, "metric": metric, **{k: v for k, v in value.items() if k not in ("code_log", "folds")},
            "trials": value["folds"]}  # fmt: skip


def _shown(entry: Entry, paper: bool) -> float | None:
    if paper:
        return entry.paper[0] if entry.paper else None
    return round(100 * entry.ours.mean, 1) if entry.ours else None


def build_domain_table(
    predictions: DomainPredictions, name: str = "table_1", *, preset: str = "paper", on: str | None = None,
    selection: str | None = None, rows: str | None = None, classes: str | None = None, without_lone: bool = False,
    evaluator: DomainEvaluator | None = None,
) -> DomainTable:  # fmt: skip
    """Compute a table; arguments that are None follow the paper's YAML (``rows`` the preset's ``scored``).

    Missing cells leave holes. ``UsageError`` for a table, preset or switch that there is not.
    """
    paper = predictions.paper
    definition = definition_of(paper, name)
    if preset not in paper["presets"]:
        raise UsageError(f"the paper {paper['name']} has no preset {preset!r}; it has: {', '.join(paper['presets'])}")
    if selection not in (None, *SELECTIONS) or rows not in (None, *ROWS) or classes not in (None, *CLASSES):
        raise UsageError(f"selection: {', '.join(SELECTIONS)}; rows: {', '.join(ROWS)}; classes: {', '.join(CLASSES)}")
    if (on or "test") != "test" and definition["kind"] != "validation":
        raise UsageError(f"{name} is scored on the unseen laboratory; it has no set {on!r}")
    evaluator = evaluator or DomainEvaluator(predictions)
    shared = DomainSpec(
        "", preset, selection or definition["selection"],
        "val" if definition["kind"] == "validation" else "test", rows or paper["presets"][preset].get("scored", "all"),
        classes or definition.get("classes", "target"), without_lone,
    )  # fmt: skip
    columns, lines = columns_of(predictions, definition, preset), rows_of(definition)
    specs = {line["label"]: replace(shared, method=line["method"]) for line in lines}
    built = tuple(_row(evaluator, definition, columns, specs, line) for line in lines)
    scored = {c.label: _scored(evaluator, specs, c) for c in columns}
    return DomainTable(
        name, definition["title"], definition["kind"], definition["metrics"], columns, built, shared, predictions,
        evaluator.n, {label: counts for label, counts in scored.items() if counts},
        few_groups(evaluator, specs, columns),
    )  # fmt: skip


def _row(
    evaluator: DomainEvaluator, definition: dict, columns: tuple[Column, ...], specs: dict, line: dict
) -> DomainRow:
    spec = specs[line["label"]]
    entries = {
        (column.label, metric): _entry(evaluator, definition, column, specs, line, metric)
        for metric in definition["metrics"]
        for column in columns
    }
    laboratories = dict.fromkeys(name for column in columns for name in column.laboratories)
    planned = [member for name in laboratories for member in evaluator.members(spec, name)]
    done, missing = (tuple(m.id for m in planned if m.done is state) for state in (True, False))
    paper = evaluator.predictions.paper
    command = _command(evaluator.predictions, planned) if planned else _elsewhere(paper, definition, spec)
    return DomainRow(line["label"], spec, entries, done, missing, command, not planned)


def _command(predictions: DomainPredictions, planned: list) -> str:
    lacking = [m for m in planned if not m.done]
    if len(lacking) == 1:
        return predictions.run_command(lacking[0])
    return predictions.make_command(max(m.tier for m in lacking)) if lacking else ""


def _elsewhere(paper: dict, definition: dict, spec: DomainSpec) -> str:
    found = profiles_with(paper, definition, spec.preset, spec.method)
    if not found:
        return ""
    profile = next((name for name, more in found.items() if not more), next(iter(found)))
    return f"wbcrepro reproduce --paper {paper['name']} --profile {profile}{' --more 1' * found[profile]}"


def reference_label(specs: dict[str, DomainSpec], label: str) -> str:
    """The row that a row's direction is measured against: ERM; empty for ERM itself and where there is none."""
    erm = next((name for name, spec in specs.items() if spec.method == "erm"), "")
    return "" if erm == label else erm


def _entry(
    evaluator: DomainEvaluator, definition: dict, column: Column, specs: dict[str, DomainSpec], line: dict, metric: str
) -> Entry:
    label, score = line["label"], definition["metrics"][metric]
    paper = reported_value(definition, line, column.label, metric)
    ours = evaluator.estimate(specs[label], column.laboratories, score)
    if ours is None or paper is None:
        return Entry(paper, None, ours, "missing" if ours is None else "not comparable")
    p = evaluator.predictions
    if {"benchmark": p.benchmark, "profile": p.profile} == definition.get("comparable") and paper[1] is not None:
        return Entry(paper, None, ours, verdicts.same_data(ours, paper[0] / 100, paper[1] / 100))
    reference = reference_label(specs, label)
    base = reported_value(definition, {"label": reference}, column.label, metric) if reference else None
    if metric in definition.get("reported", {}).get(reference, {}).get(column.label, {}).get("doubtful", ()):
        base = None  # probably a misprint: no direction is measured against it
    change = evaluator.difference(specs[label], specs[reference], column.laboratories, score) if reference else None
    if base is None or change is None:
        return Entry(paper, None, ours, "not comparable")
    return Entry(paper, None, ours, verdicts.direction(change, round(paper[0] - base[0], 6)), reference)


def _scored(evaluator: DomainEvaluator, specs: dict[str, DomainSpec], column: Column) -> tuple[int, int] | None:
    """Images scored in the first finished trial, summed over the column's laboratories, and the classes (the most)."""
    images, classes = 0, 0
    for laboratory in column.laboratories:
        found = next((f for s in specs.values() for f in evaluator.decided(s, laboratory).values()), None)
        if found is None:
            return None
        images += int(found.rows.sum())
        over = found.average_over
        classes = max(classes, len(evaluator.predictions.classes) if over is None else len(over))
    return (images, classes) if column.laboratories else None
