"""A paper's table from stored predictions: the paper's value, the released code's logged value and ours, never mixed.

The table's definition is data (``tables:`` in the paper's YAML). Everything is in percent, as papers print it.
"""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from wbcrepro.errors import UsageError
from wbcrepro.report import verdicts
from wbcrepro.report.evaluate import Estimate, Evaluator, Spec, average, members_of
from wbcrepro.report.predictions import VIEWS, Member, Predictions

SCHEMA = 1
"""Version of a table's JSON and CSV; the fields are described in `Table.to_json`."""

SET_WORDS = {
    "test": "test set",
    "test_degraded": "degraded test set",
    "val": "validation fold, which also stopped the training,",
}


def ranked(shown: dict[str, float]) -> dict[str, str]:
    """``{row: "best"|"second"}`` of the two highest values. Two rows may share a rank, as in the papers; one that more
    than two share says nothing and is not given, nor any below it."""
    found: dict[str, str] = {}
    for rank, value in zip(("best", "second"), sorted(set(shown.values()), reverse=True), strict=False):
        rows = [row for row, v in shown.items() if v == value]
        if len(rows) > 2:
            break
        found |= dict.fromkeys(rows, rank)
    return found


@dataclass(frozen=True)
class Entry:
    """One value: what was reported, what we got (percent), and the verdict (a key of ``verdicts.VALUES``)."""

    paper: tuple[float, float] | None
    code_log: float | None
    ours: Estimate | None
    verdict: str
    reference: str = ""

    def numbers(self) -> dict[str, float | int | None]:
        """``mean, std, low, high`` of ours in percent and ``folds``; None where there is nothing."""
        if self.ours is None:
            return {"mean": None, "std": None, "low": None, "high": None, "folds": 0}
        low, high = self.ours.interval()
        std = None if self.ours.std is None else 100 * self.ours.std
        return {
            "mean": 100 * self.ours.mean,
            "std": std,
            "low": 100 * low,
            "high": 100 * high,
            "folds": self.ours.folds,
        }


@dataclass(frozen=True)
class Row:
    """One row: its label, spec, entries by metric, and the ids of the cells that it has and lacks."""

    label: str
    spec: Spec
    entries: dict[str, Entry]
    cells: tuple[str, ...]
    missing: tuple[str, ...]
    command: str
    """What fills the hole; empty when there is none."""
    left_out: bool = False
    """Whether the profile does not plan the row. Then ``command`` makes it in a profile that does, if there is one."""


@dataclass(frozen=True)
class Table:
    """A computed table with everything that its caption must say."""

    name: str
    title: str
    metrics: dict[str, str]
    rows: tuple[Row, ...]
    on: str
    preset: str
    predictions: Predictions
    bootstrap: int

    @property
    def any_result(self) -> bool:
        """Whether at least one row has a value."""
        return any(entry.ours is not None for row in self.rows for entry in row.entries.values())

    def holes(self) -> list[tuple[str, str]]:
        """Pairs of which rows have holes, in words, and the command that fills them (empty where nothing does)."""
        groups: dict[tuple[str, bool], list[str]] = {}
        for row in self.rows:
            if row.command or row.left_out:
                groups.setdefault((row.command, row.left_out), []).append(row.label)
        return [
            (f"{hole_words(command, left_out)} {', '.join(labels)}", command)
            for (command, left_out), labels in groups.items()
        ]

    @property
    def folds(self) -> int:
        """How many folds are planned."""
        return len(self.predictions.folds(self.preset))

    def ranks(self) -> dict[tuple[str, str], str]:
        """``{(row, metric): "best"|"second"}`` of ours, at the printed precision: ties share, as in the paper."""
        found: dict[tuple[str, str], str] = {}
        for metric in self.metrics:
            shown = {
                r.label: round(100 * e.ours.mean, 1) for r in self.rows if (e := r.entries[metric]).ours is not None
            }
            found |= {(label, metric): rank for label, rank in ranked(shown).items()}
        return found

    def filled_by(self) -> str:
        """Which profiles run the rows of this table under its preset: all of them, or some."""
        paper = self.predictions.paper
        definition = paper["tables"][self.name]
        runs = [set(profiles_with(paper, definition, row.spec)) for row in self.rows]
        everything, something = set.intersection(*runs), set.union(*runs)
        whole = [name for name in definition["profiles"] if name in everything]
        part = [name for name in definition["profiles"] if name in something - everything]
        some = f" (some rows: {', '.join(part)})" if part else ""
        return f"Profiles that fill this table: {', '.join(whole) or 'none'}{some}."

    def caption(self) -> str:
        """What the numbers are, in sentences."""
        p = self.predictions
        networks = ", ".join(
            f"{p.paper['backbone_roles'].get(role, role)} is {name}" for role, name in p.networks().items()
        )
        return (
            f"{self.title}, preset {self.preset!r}, profile {p.profile!r}, "
            f"{SET_WORDS.get(self.on, self.on)} of {p.benchmark}. "
            f"{sentence(p.caption)} In this profile {networks}. "
            f"Ours: mean ± standard deviation over folds ({self.folds} planned), "
            f"in brackets the 95 % bootstrap interval over {'its' if self.on == 'val' else 'test'} images "
            f"({self.bootstrap} resamples within classes). "
            f"{self.filled_by()}"
        )

    def frame(self) -> pd.DataFrame:
        """One line per row and metric (the CSV); percent."""
        ranks, lines = self.ranks(), []
        for row in self.rows:
            for metric, entry in row.entries.items():
                paper = entry.paper or (None, None)
                lines.append(
                    {"row": row.label, "metric": metric, "set": self.on, "preset": self.preset, "view": row.spec.view,
                     "paper_mean": paper[0], "paper_std": paper[1], "code_log": entry.code_log, **entry.numbers(),
                     "rank": ranks.get((row.label, metric), ""), "verdict": verdicts.VALUES[entry.verdict],
                     "reference": entry.reference, "missing_cells": len(row.missing)}
                )  # fmt: skip
        return pd.DataFrame(lines).astype({"folds": int})

    def to_csv(self) -> str:
        """The frame as CSV: two decimals, empty where there is no value; the same bytes for the same predictions."""
        return self.frame().to_csv(index=False, float_format="%.2f", lineterminator="\n")

    def to_json(self) -> dict:
        """The JSON of ``wbcrepro report``: ``schema, table, title, paper, profile, benchmark, data_digest,
        synthetic, set, preset, caption, provenance`` and ``rows``.

        A row has ``label, cells, missing, command, left_out, entries``; an entry ``paper_mean, paper_std, code_log,
        mean, std, low, high, folds, verdict, reference``. Values in percent, null where there is none.
        """
        p = self.predictions
        return {
            "schema": SCHEMA, "table": self.name, "title": self.title, "paper": p.paper["name"], "profile": p.profile,
            "benchmark": p.benchmark, "data_digest": p.data_digest, "synthetic": p.synthetic, "set": self.on,
            "preset": self.preset, "caption": self.caption(),
            "provenance": {name: p.facts(name) for name in ("commit", "hardware", "date", "seed")},
            "rows": [
                {"label": row.label, "cells": list(row.cells), "missing": list(row.missing), "command": row.command,
                 "left_out": row.left_out,
                 "entries": {metric: entry_json(entry) for metric, entry in row.entries.items()}}
                for row in self.rows
            ],
        }  # fmt: skip


def sentence(words: str) -> str:
    """Words with a capital at their start and a full stop at their end."""
    return words[:1].upper() + words[1:].rstrip(".") + "." if words else ""


def entry_json(entry: Entry) -> dict:
    """An entry's fields in a table's JSON."""
    paper = entry.paper or (None, None)
    rounded = {k: round(v, 4) if isinstance(v, float) else v for k, v in entry.numbers().items()}
    return {
        "paper_mean": paper[0], "paper_std": paper[1], "code_log": entry.code_log, **rounded,
        "verdict": verdicts.VALUES[entry.verdict], "reference": entry.reference,
    }  # fmt: skip


def build_table(
    predictions: Predictions, name: str = "table_1", *, on: str = "test", preset: str = "paper",
    evaluator: Evaluator | None = None,
) -> Table:  # fmt: skip
    """Compute a table. Missing cells leave holes; ``UsageError`` for a table or preset that the paper does not have."""
    paper = predictions.paper
    if name not in paper["tables"] or "rows" not in paper["tables"][name]:
        raise UsageError(f"the paper {paper['name']} has no table {name!r}; it has: {', '.join(paper['tables'])}")
    if preset not in paper["presets"]:
        raise UsageError(f"the paper {paper['name']} has no preset {preset!r}; it has: {', '.join(paper['presets'])}")
    definition = paper["tables"][name]
    evaluator = evaluator or Evaluator(predictions, on)
    on = evaluator.on
    specs = {row["label"]: row_spec(paper, name, row["label"], preset) for row in definition["rows"]}
    rows = []
    for label, spec in specs.items():
        entries = {m: _entry(evaluator, definition, specs, label, m) for m in definition["metrics"]}
        planned = members_of(predictions, spec)
        missing = tuple(m.id for m in planned if not m.done)
        left_out = {m.backbone for m in planned} < set(spec.backbones)
        command = _elsewhere(paper, definition, spec) if left_out else _command(predictions, planned)
        there = tuple(m.id for m in planned if m.done)
        rows.append(Row(label, spec, entries, there, missing, command, left_out))
    return Table(name, definition["title"], definition["metrics"], tuple(rows), on, preset, predictions, evaluator.n)


def row_spec(paper: dict, table: str, label: str, preset: str) -> Spec:
    """The spec of a table's row under a preset: its view average, and the quota step where the preset has it."""
    definition = paper["tables"][table]
    row = next(r for r in definition["rows"] if r["label"] == label)
    view = definition["views"][preset]
    if view not in VIEWS:
        raise UsageError(f"{paper['name']}: {table} asks for the views {view!r}; known are {', '.join(VIEWS)}")
    return Spec(row["method"], tuple(row["backbones"]), preset, view, quota=bool(paper["presets"][preset].get("quota")))


def _command(predictions: Predictions, planned: list[Member]) -> str:
    lacking = [m for m in planned if not m.done]
    return predictions.run_command(lacking[0]) if len(lacking) == 1 else predictions.make_command() if lacking else ""


def hole_words(command: str, left_out: bool) -> str:
    """Why rows have holes; the rows' names follow."""
    if not left_out:
        return "holes in"
    return "left out by this profile, run by another:" if command else "run by no profile in this preset:"


def profiles_with(paper: dict, definition: dict, spec: Spec) -> list[str]:
    """The profiles of a table, in its order, that plan a row: its preset with its method and all of its backbones."""
    profiles = {name: paper["profiles"][name] for name in definition["profiles"]}
    return [
        name
        for name, p in profiles.items()
        if set(spec.backbones) <= set(p["presets"].get(spec.preset, ()))
        and spec.method in p["methods"].get(spec.preset, ())
    ]


def _elsewhere(paper: dict, definition: dict, spec: Spec) -> str:
    found = profiles_with(paper, definition, spec)
    return f"wbcrepro reproduce --paper {paper['name']} --profile {found[-1]}" if found else ""


def _entry(evaluator: Evaluator, definition: dict, specs: dict[str, Spec], label: str, metric: str) -> Entry:
    reported = definition["reported"].get(label, {}).get(metric)
    logged = definition.get("code_log", {}).get(label, {}).get(metric)
    score = definition["metrics"][metric]
    ours = evaluator.estimate(specs[label], score)
    paper = None if reported is None else (float(reported[0]), float(reported[1]))
    if ours is None or paper is None:
        return Entry(paper, logged, ours, "missing" if ours is None else "not comparable")
    where = {"benchmark": evaluator.predictions.benchmark, "profile": evaluator.predictions.profile}
    if where == definition.get("comparable"):
        scaled = (paper[0] / 100, paper[1] / 100)
        return Entry(paper, logged, ours, verdicts.same_data(ours, *scaled))
    others = reference_rows(specs, label)
    base = [evaluator.estimate(specs[name], score) for name in others]
    if not others or any(e is None for e in base) or not all(name in definition["reported"] for name in others):
        return Entry(paper, logged, ours, "not comparable")
    change = ours.minus(average(base))
    printed = round(paper[0] - sum(definition["reported"][name][metric][0] for name in others) / len(others), 6)
    verdict = "not comparable" if change is None else verdicts.direction(change, printed)
    return Entry(paper, logged, ours, verdict, "mean of " * (len(others) > 1) + ", ".join(others))


def reference_rows(specs: dict[str, Spec], label: str) -> list[str]:
    """What a row's direction is measured against: an ensemble against its single models, a retrained classifier against
    the supervised row of the same backbone; a supervised row against nothing."""
    spec = specs[label]
    if len(spec.backbones) > 1:
        return [
            n
            for n, s in specs.items()
            if s.method == spec.method and len(s.backbones) == 1 and s.backbones[0] in spec.backbones
        ]
    if spec.method == "supervised":
        return []
    return [n for n, s in specs.items() if s.method == "supervised" and s.backbones == spec.backbones]
