"""What the caption of a table of unseen laboratories says: which numbers, measured where, and what they do not show."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from wbcrepro.report.domain_evaluate import CLASSES, ROWS, DomainEvaluator, DomainSpec
from wbcrepro.report.domain_layout import PRIVATE, Column, profiles_holding_out, profiles_with, same_cells
from wbcrepro.report.tables import sentence

if TYPE_CHECKING:
    from wbcrepro.report.domain_tables import DomainTable

SELECTION_WORDS = {
    "swad": "weights averaged by SWAD",
    "last": "weights of the last step",
    "best": "weights with the best accuracy on the sources' validation rows",
}
FEW_GROUPS, MANY_IMAGES = 4, 10
"""A class with at least so many images from at most so few slides has an interval that is too narrow."""


def caption(table: DomainTable) -> str:
    """All sentences, in the order: what, where, over which classes, on whose images, with which uncertainty."""
    p, spec = table.predictions, table.spec
    where = "validation rows of the source laboratories" if spec.on == "val" else ROWS[spec.rows]
    counts = ", ".join(f"{c}: {images} images, {n} classes" for c, (images, n) in table.scored.items())
    lone = " Classes of which a laboratory has one image are left out." * spec.without_lone
    chosen = (
        " These rows also chose the weights, so the values are too high for unseen images of the same laboratories."
        * (spec.on == "val" and spec.selection == "best")
    )
    trials = f"{table.trials} trial{'s' * (table.trials != 1)}"
    return (
        f"{table.title}, preset {spec.preset!r}, profile {p.profile!r} on {p.benchmark}, "
        f"network {', '.join(p.networks())}, {SELECTION_WORDS[spec.selection]}. {sentence(p.caption)} "
        f"Scored on {where}; macro-F1 over {CLASSES[spec.classes]}{f' ({counts})' if counts else ''}.{lone}{chosen} "
        f"{_substitution(table)}Ours: mean ± standard deviation over trials ({trials} planned), in brackets "
        f"the 95 % bootstrap interval over images ({table.bootstrap} resamples within classes; images of one slide, "
        f"filmed cell or patient are drawn together where they are known). {_few(table.few)}{filled_by(table)}"
    )


def few_groups(
    evaluator: DomainEvaluator, specs: dict[str, DomainSpec], columns: tuple[Column, ...]
) -> dict[str, dict[str, tuple[int, int]]]:
    """``{laboratory: {class: (images, groups)}}`` of classes with many images from few groups, of the first trial."""
    found: dict[str, dict[str, tuple[int, int]]] = {}
    for laboratory in dict.fromkeys(name for column in columns for name in column.laboratories):
        first = next((f for s in specs.values() for f in evaluator.decided(s, laboratory).values()), None)
        for code in np.unique(first.labels[first.rows]) if first else ():
            groups = first.groups[first.rows & (first.labels == code)]
            size = (len(groups), len(np.unique(groups)))
            if size[0] >= MANY_IMAGES and size[1] <= FEW_GROUPS:
                found.setdefault(laboratory, {})[evaluator.predictions.classes[code]] = size
    return found


def _few(few: dict[str, dict[str, tuple[int, int]]]) -> str:
    parts = [
        f"in {laboratory} class {name} comes from {groups} slide(s) or group(s) ({images} images)"
        for laboratory, classes in few.items()
        for name, (images, groups) in classes.items()
    ]
    return f"Where a class comes from so few the interval is too narrow: {'; '.join(parts)}. " if parts else ""


def filled_by(table: DomainTable) -> str:
    """Which profiles run the rows of a table under its preset, and hold out its laboratory: all of them, or some."""
    paper = table.predictions.paper
    definition = paper["tables"][table.name]
    runs = [set(profiles_with(paper, definition, table.preset, row.spec.method)) for row in table.rows]
    everything, something = set.intersection(*runs), set.union(*runs)
    there = definition["profiles"]
    if definition["kind"] == "external":
        there = profiles_holding_out(paper, definition, table.columns[0].label)
    whole = [name for name in there if name in everything]
    part = [name for name in there if name in something - everything]
    some = f" (some rows: {', '.join(part)})" if part else ""
    return f"Profiles that fill this table: {', '.join(whole) or 'none'}{some}."


def _substitution(table: DomainTable) -> str:
    words = [
        f"{c.label} is private: ours is measured on {c.laboratories[0]} instead. "
        for c in table.columns
        if c.label in PRIVATE and c.laboratories
    ]
    definition = table.predictions.paper["tables"][table.name]
    for column in table.columns:
        same = same_cells(table.predictions, definition, column, table.preset)
        if same:
            words.append(
                f"Ours is no further result: it scores the same cells as the column {same[1]} of {same[0]!r}. "
            )
    average = next((c.laboratories for c in table.columns if c.label == "Average"), ())
    if average:
        words.append(f"Our average is over {', '.join(average)}, the paper's over its own laboratories. ")
    return "".join(words)
