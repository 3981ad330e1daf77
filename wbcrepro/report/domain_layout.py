"""What a table of ``design: domains`` consists of, read from the paper's YAML: rows, columns, reported values.

Its ``kind`` says what a column is: ``lodo`` (a laboratory held out, and their average), ``external`` (a private
laboratory of the paper, with the named one that stands in for it), ``validation`` (the validation rows of the sources),
``ablation`` and ``sweep`` (the average over the held-out laboratories).
"""

from __future__ import annotations

from dataclasses import dataclass

from wbcrepro.errors import UsageError
from wbcrepro.report.domain_predictions import DomainPredictions

KINDS = ("lodo", "external", "validation", "ablation", "sweep")
"""The kinds of definition that are tables of scores."""

PRIVATE = ("SYSU3H", "INT_20")
"""Laboratories whose images were never published."""


@dataclass(frozen=True)
class Column:
    """One column: the paper's label, and which held-out laboratories of this profile are averaged for ours."""

    label: str
    laboratories: tuple[str, ...]

    @property
    def ours(self) -> str:
        """What ours is measured on, in a word."""
        if not self.laboratories:
            return "not held out here"
        if self.label == "Sources":
            return "validation rows"
        return self.laboratories[0] if len(self.laboratories) == 1 else f"mean of {len(self.laboratories)}"


def definition_of(paper: dict, name: str) -> dict:
    """A table's definition; ``UsageError`` names the tables that the paper has."""
    tables = {key: value for key, value in paper["tables"].items() if value.get("kind") in KINDS}
    if name not in tables:
        raise UsageError(f"the paper {paper['name']} has no table {name!r}; it has: {', '.join(tables)}")
    return tables[name]


def rows_of(definition: dict) -> list[dict]:
    """Rows with ``label`` and ``method``; those of a sweep also say ``parameter`` and ``value``."""
    if definition["kind"] != "sweep":
        return definition["rows"]
    return [
        {"label": f"{parameter} = {point['value']:g}", "parameter": parameter, **point}
        for parameter, points in definition["sweeps"].items()
        for point in points
    ]


def columns_of(predictions: DomainPredictions, definition: dict, preset: str = "paper") -> tuple[Column, ...]:
    """The table's columns with our laboratories, then those of ours that the paper has not, then the average."""
    kind, there = definition["kind"], predictions.held_out(preset=preset)
    profile = predictions.paper["profiles"].get(predictions.profile, {})
    if kind == "external":
        stand_ins = definition.get("substitutes", {})
        found = {label: stand_ins.get(predictions.profile) for label in definition["columns"]}
        return tuple(Column(label, (lab,) if lab in there else ()) for label, lab in found.items())
    if kind != "lodo":
        return (Column(definition.get("columns", ["Average"])[0], there),)
    known = profile.get("columns", {})
    labels = dict.fromkeys([*definition["columns"], *known])
    columns = [Column(label, (known[label],) if known.get(label) in there else ()) for label in labels]
    columns += [Column(lab, (lab,)) for lab in there if lab not in known.values()]
    return (*columns, Column("Average", there))


def profiles_with(paper: dict, definition: dict, preset: str, method: str) -> dict[str, bool]:
    """``{profile: whether only --more 1 runs it}`` of a table's profiles, in its order, that plan a row."""
    found = {}
    for name in definition["profiles"]:
        profile = paper["profiles"][name]
        if method in profile["presets"].get(preset, ()):
            found[name] = False
        elif method in (profile.get("more") or {}).get(preset, ()):
            found[name] = True
    return found


def profiles_holding_out(paper: dict, definition: dict, column: str) -> list[str]:
    """The profiles of a table in which a laboratory of ours stands for one of the paper's columns."""
    if definition["kind"] == "external":
        stand_ins = definition.get("substitutes", {})
        return [n for n in definition["profiles"] if stand_ins.get(n) in paper["profiles"][n]["held_out"]]
    profiles = {name: paper["profiles"][name] for name in definition["profiles"]}
    return [name for name, p in profiles.items() if p.get("columns", {}).get(column) in p["held_out"]]


def same_cells(predictions: DomainPredictions, definition: dict, column: Column, preset: str) -> tuple[str, str] | None:
    """Title and column of the table of laboratories that scores the same cells as an ``external`` column; or None."""
    if definition["kind"] != "external" or not column.laboratories:
        return None
    for other in predictions.paper["tables"].values():
        if other.get("kind") == "lodo" and other["selection"] == definition["selection"]:
            for there in columns_of(predictions, other, preset):
                if there.label != "Average" and there.laboratories == column.laboratories:
                    return other["title"], there.label
    return None


def reported_value(definition: dict, line: dict, column: str, metric: str) -> tuple[float, float | None] | None:
    """The paper's mean and standard deviation in one cell, percent; a sweep prints its best point only, without sd."""
    reported = definition.get("reported", {})
    if definition["kind"] == "sweep":
        return (float(reported[metric]), None) if reported.get(line["parameter"]) == line["value"] else None
    found = reported.get(line["label"], {}).get(column, {}).get(metric)
    return None if found is None else (float(found[0]), float(found[1]))
