"""Rows and columns of the tables of ``design: rescue`` from the paper's YAML: what each row scores, against which row.

The YAML gives the paper's rows. Beside its two rows of phases stand ours under the other ``rules`` (fitted boosts, the
released behaviour), named after them.
"""

from __future__ import annotations

from dataclasses import dataclass

from wbcrepro.errors import UsageError
from wbcrepro.report.rescue_evaluate import RescueSpec
from wbcrepro.report.rescue_predictions import TESTS, RescuePredictions

KINDS = ("cross_validation", "waterfall", "restoration")


@dataclass(frozen=True)
class RescueColumn:
    """One column: what is measured, on which set of which benchmark (empty: the run's own). ``unit``: "%", "dB", ""."""

    key: str
    words: str
    metric: str
    on: str
    benchmark: str = ""
    unit: str = "%"

    @property
    def control(self) -> bool:
        """Whether it is measured on another benchmark than the run's own."""
        return bool(self.benchmark)


@dataclass(frozen=True)
class Line:
    """One row of the waterfall: what it scores, the row that it is compared with, and the YAML's label of it."""

    label: str
    spec: RescueSpec
    reference: str
    printed: str
    """The label under which the paper prints a value; empty for rows of ours."""


def definition_of(paper: dict, name: str) -> dict:
    """A table's definition; ``UsageError`` names those that the paper has."""
    tables = {key: t for key, t in paper["tables"].items() if t.get("kind") in KINDS}
    if name not in tables:
        raise UsageError(f"the paper {paper['name']} has no table {name!r}; it has: {', '.join(tables)}")
    return tables[name]


def rules_of(paper: dict, preset: str) -> list[str]:
    """The paper's ``rules`` under a preset, the one that is named like it first."""
    found = [name for name, rules in paper["rules"].items() if rules["preset"] == preset]
    return sorted(found, key=lambda name: name != preset)


BEFORE = {"single": "", "base": "single", "phase2": "base", "final": "phase2"}
"""The row that a row is compared with. Whatever is not named (over-sampling ...) stands beside the plain average."""


def waterfall_lines(predictions: RescuePredictions, definition: dict, preset: str) -> list[Line]:
    """The rows of Table 2 under a preset, then its phases under further rules; with preset ``paper`` also those of the
    release, after the average of its own networks where they are others."""
    paper, rows = predictions.paper, definition["rows"]
    rules, *others = rules_of(paper, preset)
    labels = {_role(row): row["label"] for row in rows}
    found = [
        Line(row["label"], _spec(row, preset, rules), labels.get(BEFORE.get(_role(row), "base"), ""), row["label"])
        for row in rows
    ]
    for other in others:
        found += _phases(rows, preset, other, labels["base"])
    if preset == "paper" and "code" in predictions.presets():
        base = labels["base"]
        ours, theirs = ({m.id for m in predictions.networks("swin", p)} for p in ("paper", "code"))
        if ours != theirs:
            base = f"{base} (code)"
            found.append(Line(base, RescueSpec(preset="code", rules="code"), "", ""))
        for other in rules_of(paper, "code"):
            found += _phases(rows, "code", other, base)
    return found


def _role(row: dict) -> str:
    if "stage" in row:
        return row["stage"]
    if row.get("folds") == "first":
        return "single"
    return "base" if row["row"] == "swin" else row["row"]


def _spec(row: dict, preset: str, rules: str) -> RescueSpec:
    """The paper's single fold is any of ours: every fold alone, and their mean."""
    folds = "each" if _role(row) == "single" else "averaged"
    return RescueSpec(row["row"], row.get("stage", "base"), rules, preset, row.get("views", "tta"), folds)


def _phases(rows: list[dict], preset: str, rules: str, base: str) -> list[Line]:
    found, before = [], base
    for row in (r for r in rows if "stage" in r):
        label = f"{row['label']} ({rules})"
        found.append(Line(label, _spec(row, preset, rules), before, ""))
        before = label
    return found


def waterfall_columns(
    predictions: RescuePredictions, definition: dict, on: str | None, preset: str
) -> tuple[RescueColumn, ...]:
    """Every metric on the test sets of the run's own benchmark, then on those of the controls that the preset runs."""
    sets = (on,) if on else predictions.sets() or TESTS
    words = {"test": "test" if predictions.as_published() else "pristine test", "test_degraded": "degraded test"}
    controls = [name for name, _ in predictions.controls if predictions.networks("swin", preset, name)]
    places = [("", "")] + [(name, "control, ") for name in controls]
    several = len(definition["metrics"]) > 1
    return tuple(
        RescueColumn(f"{benchmark}:{s}:{metric}", f"{before}{words[s]}{f': {name}' * several}", metric, s, benchmark)
        for benchmark, before in places
        for name, metric in definition["metrics"].items()
        for s in sets
    )


def profiles_with(paper: dict, definition: dict, row: str) -> list[str]:
    """The profiles of a table, in its order, that train a row's networks."""
    return [name for name in definition["profiles"] if row in paper["profiles"][name]["rows"]]
