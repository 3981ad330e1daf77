"""Tables of ``design: rescue``: cross-validation by image and by patient, the waterfall, and restoration.

The paper's value and ours stand in separate columns, never mixed; scores in percent, PSNR in dB. What the rows are is
data (``tables:`` in the paper's YAML, read by ``rescue_layout``); how they are filled is in ``rescue_rows``.
"""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from wbcrepro.errors import UsageError
from wbcrepro.report import verdicts
from wbcrepro.report.rescue_captions import caption
from wbcrepro.report.rescue_evaluate import RescueEvaluator
from wbcrepro.report.rescue_layout import RescueColumn, definition_of
from wbcrepro.report.rescue_predictions import TESTS, RescuePredictions
from wbcrepro.report.rescue_rows import BUILDERS, RescueEntry, RescueRow
from wbcrepro.report.tables import Entry, entry_json, hole_words, ranked

SCHEMA = 1


@dataclass(frozen=True)
class RescueTable:
    """A computed table with everything that its caption must say."""

    name: str
    title: str
    kind: str
    columns: tuple[RescueColumn, ...]
    rows: tuple[RescueRow, ...]
    preset: str
    predictions: RescuePredictions
    bootstrap: int
    words: tuple[str, ...] = ()
    """Sentences of the caption that depend on what was computed."""

    @property
    def on(self) -> str:
        """The sets of its columns, in words."""
        return ", ".join(dict.fromkeys(c.on for c in self.columns))

    @property
    def any_result(self) -> bool:
        """Whether at least one entry has a value."""
        return any(e.ours is not None or e.number is not None for row in self.rows for e in row.entries.values())

    def ranks(self) -> dict[tuple[str, str], str]:
        """``{(row, column): "best"|"second"}`` of our scores at the printed precision; differences have no rank."""
        found: dict[tuple[str, str], str] = {}
        for column in self.columns:
            shown = {row.label: round(100 * entry.ours.mean, 1) for row in self.rows
                     if not row.difference and (entry := row.entries[column.key]).ours is not None}  # fmt: skip
            found |= {(row, column.key): rank for row, rank in ranked(shown).items()} if len(shown) > 2 else {}
        return found

    def holes(self) -> list[tuple[str, str]]:
        """Pairs of what is missing, in words, and the command that fills it (empty where nothing does)."""
        groups: dict[tuple[str, str], list[str]] = {}
        for row in self.rows:
            if row.command or row.left_out:
                words = row.why or hole_words(row.command, row.left_out)
                groups.setdefault((words, row.command), []).append(row.label)
        return [(f"{words} {', '.join(labels)}", command) for (words, command), labels in groups.items()]

    def caption(self) -> str:
        """What the numbers are, in sentences."""
        return caption(self)

    def frame(self) -> pd.DataFrame:
        """One line per row and column (the CSV): percent, points and dB."""
        ranks = self.ranks()
        return pd.DataFrame(
            [_line(self, row, column) | {"rank": ranks.get((row.label, column.key), "")}
             for row in self.rows for column in self.columns]
        )  # fmt: skip

    def to_csv(self) -> str:
        """The frame as CSV: two decimals, empty where there is no value; the same bytes for the same predictions."""
        return self.frame().to_csv(index=False, float_format="%.2f", lineterminator="\n")

    def to_json(self) -> dict:
        """The JSON of ``wbcrepro report``: ``schema, table, kind, title, paper, profile, benchmark, data_digest,
        synthetic, set, preset, caption, provenance, columns`` and ``rows``.

        A row has ``label, cells, missing, command, left_out, difference, entries``; an entry ``column, paper_mean,
        paper_std, mean, std, low, high, folds, number, step, step_low, step_high, reference, verdict``. Percent,
        points or the column's unit; null where there is none.
        """
        p = self.predictions
        return {
            "schema": SCHEMA, "table": self.name, "kind": self.kind, "title": self.title, "paper": p.paper["name"],
            "profile": p.profile, "benchmark": p.benchmark, "data_digest": p.data_digest, "synthetic": p.synthetic,
            "set": self.on, "preset": self.preset, "caption": self.caption(),
            "provenance": {name: p.facts(name) for name in ("commit", "hardware", "date", "seed")},
            "columns": [{"key": c.key, "words": c.words, "metric": c.metric, "set": c.on, "unit": c.unit,
                         "benchmark": c.benchmark or p.benchmark} for c in self.columns],
            "rows": [
                {"label": row.label, "cells": list(row.cells), "missing": list(row.missing), "command": row.command,
                 "left_out": row.left_out, "difference": row.difference,
                 "entries": [_json(key, entry) for key, entry in row.entries.items()]}
                for row in self.rows
            ],
        }  # fmt: skip


def step_numbers(entry: RescueEntry) -> dict[str, float | None]:
    """``step, step_low, step_high`` in points; None where there is no row to compare with."""
    if entry.step is None:
        return dict.fromkeys(("step", "step_low", "step_high"))
    low, high = entry.step.interval()
    return {"step": 100 * entry.step.mean, "step_low": 100 * low, "step_high": 100 * high}


def _line(table: RescueTable, row: RescueRow, column: RescueColumn) -> dict:
    entry = row.entries[column.key]
    paper = entry.paper or (None, None)
    return {
        "row": row.label, "column": column.words, "benchmark": column.benchmark or table.predictions.benchmark,
        "set": column.on, "metric": column.metric, "unit": "points" if row.difference else column.unit,
        "preset": table.preset, "paper_mean": paper[0], "paper_std": paper[1], **entry.numbers(),
        "number": entry.number, **_between(entry), **step_numbers(entry), "reference": entry.reference,
        "verdict": verdicts.VALUES.get(entry.verdict, ""), "missing_cells": len(row.missing),
    }  # fmt: skip


def _json(key: str, entry: RescueEntry) -> dict:
    steps = {k: None if v is None else round(v, 4) for k, v in step_numbers(entry).items()}
    value = entry_json(Entry(entry.paper, None, entry.ours, entry.verdict or "missing", entry.reference))
    value = {k: v for k, v in value.items() if k != "code_log"} | {"verdict": verdicts.VALUES.get(entry.verdict, "")}
    return {"column": key, **value, "number": entry.number, **_between(entry), **steps}


def _between(entry: RescueEntry) -> dict[str, float | None]:
    low, high = entry.interval or (None, None)
    return {"number_low": low, "number_high": high}


def build_rescue_table(
    predictions: RescuePredictions, name: str = "table_1", *, preset: str = "paper", on: str | None = None,
    evaluator: RescueEvaluator | None = None,
) -> RescueTable:  # fmt: skip
    """Compute a table; ``on`` limits the waterfall to one test set. Missing cells leave holes.

    ``UsageError`` for a table, preset or set that there is not.
    """
    paper = predictions.paper
    definition = definition_of(paper, name)
    if preset not in paper["presets"]:
        raise UsageError(f"the paper {paper['name']} has no preset {preset!r}; it has: {', '.join(paper['presets'])}")
    known = {"cross_validation": ("val",), "waterfall": TESTS, "restoration": TESTS}[definition["kind"]]
    if on is not None and on not in known:
        raise UsageError(f"{name} is scored on {' and '.join(known)}; it has no set {on!r}")
    evaluator = evaluator or RescueEvaluator(predictions)
    columns, rows, words = BUILDERS[definition["kind"]](evaluator, definition, preset, on)
    return RescueTable(
        name, definition["title"], definition["kind"], columns, tuple(rows), preset, predictions, evaluator.n, words
    )
