"""The page of one benchmark: the matrix of methods and test sets, one table a data set with its costs, and a figure."""

from __future__ import annotations

from html import escape

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from wbcrepro.papers import load_paper
from wbcrepro.report.figures import PALETTE, WIDTH
from wbcrepro.report.one_benchmark import Column, Entry, OneBenchmark
from wbcrepro.report.page import Html, banner, download, hole, source
from wbcrepro.report.tables import sentence

UNPLANNED = "nothing of this row is planned on these images: no test set of the paper, or it has not been run there"
UNKNOWN = '<span title="this run kept no record of it">not stored</span>'
MARKERS = "osD^v<>"
LEGEND = 2
"""Columns of a panel's legend."""


def matrix_html(bench: OneBenchmark, name: str) -> Html:
    """Methods by test sets: macro-F1 with its interval, one block a protocol. A dash: nothing is planned there."""
    groups, blocks = bench.groups(), ""
    for protocol in dict.fromkeys(columns[0].protocol for columns in groups.values()):
        chosen = [columns for columns in groups.values() if columns[0].protocol == protocol]
        blocks += f"<p>{escape(sentence(protocol))}</p>{_block(bench, chosen)}"
    csv = bench.frame().to_csv(index=False, float_format="%.2f", lineterminator="\n")
    links = [download(name, csv, "CSV (with costs and budgets)")]
    return Html(f"{blocks}{source(_cells(bench), links=links)}")


def _block(bench: OneBenchmark, groups: list[list[Column]]) -> str:
    """The data sets of one protocol side by side, with the rows that have an entry in one of them."""
    columns = [column for found in groups for column in found]
    top = "".join(
        f'<th class="wbc-group" colspan="{len(found)}">{escape(found[0].benchmark)}'
        f"<br><small>{_kind(found[0])}</small></th>"
        for found in groups
    )
    names = "".join(f"<th>{escape(column.words)}</th>" for column in columns)
    body, last = "", ""
    for row in bench.rows(columns):
        if row[0] != last:
            body += f'<tr><th class="wbc-group" colspan="{1 + len(columns)}">{escape(row[0])}</th></tr>'
        last = row[0]
        values = "".join(_value(bench.entry(row, column)) for column in columns)
        body += f'<tr><th scope="row">{escape(_short(row))}</th>{values}</tr>'
    head = f'<tr><th rowspan="2">macro-F1 (%)</th>{top}</tr><tr>{names}</tr>'
    return f'<div class="wbc-table"><table><thead>{head}</thead><tbody>{body}</tbody></table></div>'


def _kind(column: Column) -> str:
    return f"{'synthetic' if column.synthetic else 'real images'}, profile {escape(column.profile)}"


def _short(row: tuple) -> str:
    return row[2] + (f" ({row[1]})" if row[1] != "paper" else "")


def _cells(bench: OneBenchmark) -> list[str]:
    return [cell for entry in bench.entries for cell in entry.cells]


def _value(entry: Entry | None) -> str:
    if entry is None:
        return f'<td title="{UNPLANNED}">–</td>'
    if entry.estimate is None:
        return f'<td class="wbc-ours">{hole(entry.command) if entry.command else entry.state}</td>'
    low, high = (100 * v for v in entry.estimate.interval())
    sd = f" ± {100 * entry.estimate.std:.1f}" if entry.estimate.std is not None else ""
    return (
        f'<td class="wbc-ours">{100 * entry.estimate.mean:.1f}{sd}'
        f"<br><small>[{low:.1f}, {high:.1f}], n = {entry.estimate.folds}</small></td>"
    )


def data_html(bench: OneBenchmark, columns: list[Column], name: str) -> Html:
    """One data set: every method with a value on it, with trainings, seconds, inference, network and budget; below,
    those without and the command that fills each hole. ``columns``: its parts (a value of `OneBenchmark.groups`)."""
    budget, others = bench.differing(columns)
    rows = _scored(bench, columns)
    shared = " + ".join(rows[0][3]) if len({row[3] for row in rows}) == 1 else ""
    papers = len({row[0] for row in rows})
    body = "".join(_data_row(bench, row, columns, bool(shared), papers > 1) for row in rows)
    parts = "".join(f"<th>{escape(column.words)}</th>" for column in columns)
    head = (
        f"<tr><th>method</th>{parts}<th>seconds of one training</th><th>inference of the networks, ms an image</th>"
        "<th>images drawn</th><th>budget</th></tr>"
    )
    here = OneBenchmark(tuple(e for e in bench.entries if e.column in columns), tuple(columns))
    csv = here.frame().to_csv(index=False, float_format="%.2f", lineterminator="\n")
    first = columns[0]
    caption = f"{_named(rows)}{first.benchmark}, profile {first.profile}. {sentence(first.caption)} "
    caption += f"Macro-F1 in percent. Network: {shared}." if shared else "Macro-F1 in percent."
    hardware = sorted({h for e in here.entries for h in e.cost.hardware})
    said = budget_words(budget, others)
    return Html(
        f"{banner(first.synthetic, first.caption)}<p>{escape(caption)}</p>{_pipelines(rows, first.profile)}"
        f'<div class="wbc-table"><table><thead>{head}</thead><tbody>{body}</tbody></table></div>'
        f'<p class="wbc-source">{escape(said)}</p>'
        f"{source(_cells(here), links=[download(name, csv, 'CSV')], words='; '.join(hardware))}"
        + "".join(source(command=command, words=f"holes in {words}") for words, command in here.holes())
    )


def _named(rows: list[tuple]) -> str:
    """The paper of all rows, where it is one."""
    papers = {row[0] for row in rows}
    return f"Methods of {papers.pop()} on " if len(papers) == 1 else ""


def _pipelines(rows: list[tuple], profile: str) -> str:
    """What the networks of each paper read, where papers differ in it; else empty."""
    reads = {row[0]: reading_words(row[0], profile) for row in rows}
    if len(set(reads.values())) < 2:
        return ""
    said = "; ".join(f"<code>{escape(paper)}</code> reads {escape(words)}" for paper, words in reads.items())
    return f"<p>Rows of different papers compare pipelines here, not methods alone: {said}.</p>"


def reading_words(paper: str, profile: str) -> str:
    """What the networks of a paper read of an image in a profile."""
    settings = load_paper(paper)["profiles"][profile]
    pixels = settings["pixels"]
    resize, crop, scale = pixels["resize"], pixels["crop"], pixels.get("scale")
    seen = f"the whole image, resized to {crop} px" if resize == crop else f"the middle {crop} px of {resize}"
    if "window" in settings:
        seen = f"the cell alone, segmented in {seen}, restored where noisy and brought to {settings['input']} px"
    return f"{seen} ({scale} scale)" if scale else seen


def budget_words(budget: str, others: list[str]) -> str:
    """Which rows had another budget than most, in a sentence."""
    if not budget:
        return "The budgets of these trainings are not stored here, so nothing says that rows had the same."
    if not others:
        return f"All rows had the same budget: {budget}."
    return f"Most rows had the budget {budget}. Another one: {', '.join(dict.fromkeys(others))}."


def _data_row(bench: OneBenchmark, row: tuple, columns: list[Column], shared: bool, several: bool) -> str:
    """``shared``: all rows have one network, which is then said above them. ``several``: papers, to be named."""
    entries = [bench.entry(row, column) for column in columns]
    known = [e for e in entries if e is not None]
    ran = [e for e in known if e.estimate is not None]
    values = "".join(_value(entry) for entry in entries)
    label = escape(known[0].label if several else _short(row))
    label += "" if shared else f"<br><small>{escape(' + '.join(row[3]))}</small>"
    costs = [e.cost for e in ran]
    seconds = _mean([c.seconds for c in costs])
    drawn, inference = _mean([c.drawn for c in costs]), _mean([c.inference for c in costs])
    words = "; ".join(part for part in dict.fromkeys(c.budget for c in costs) if part) or UNKNOWN
    return (
        f'<tr><th scope="row" style="white-space: normal">{label}</th>{values}<td>{_shown(seconds, 0)}</td>'
        f"<td>{_shown(inference, 2)}</td><td>{_shown(drawn, 0)}</td>"
        f'<td style="white-space: normal; min-width: 8em"><small>{words}</small></td></tr>'
    )


def _mean(values: list[float | None]) -> float | None:
    """The mean over parts of a data set; one part for designs whose parts share their trainings. None if unknown."""
    return None if None in values else float(np.mean(values))


def _shown(value: float | None, decimals: int) -> str:
    return UNKNOWN if value is None else f"{value:,.{decimals}f}"


def benchmark_figure(bench: OneBenchmark) -> Figure:
    """One panel a data set, one line a method: macro-F1 with its interval over images, a marker for each part.

    Hollow markers are single trainings. Panels share no scale of difficulty: compare within a panel only.
    """
    groups = {key: columns for key, columns in bench.groups().items() if _scored(bench, columns)}
    sizes = [len(_scored(bench, columns)) for columns in groups.values()]
    height = sum(0.23 * size * _spread(columns) + 1.0 for size, columns in zip(sizes, groups.values(), strict=True))
    ratios = [size * _spread(columns) + 2.2 for size, columns in zip(sizes, groups.values(), strict=True)]
    figure, axes = plt.subplots(
        max(len(groups), 1), 1, figsize=(WIDTH, max(height, 1.5)), squeeze=False, height_ratios=ratios or [1]
    )
    for axis, ((benchmark, _, profile), columns) in zip(axes[:, 0], groups.items(), strict=False):
        _panel(axis, bench, columns)
        kind = "synthetic" if columns[0].synthetic else "real images"
        axis.set_title(f"{benchmark} ({kind}, profile {profile})", loc="left", pad=12 + 15 * -(-len(columns) // LEGEND))
    axes[-1, 0].set_xlabel("macro-F1 (%), 95 % interval over images; hollow: one training")
    return figure


def _spread(columns: list[Column]) -> float:
    """Lines with several markers need more room."""
    return 1 + 0.28 * (len(columns) - 1)


def _scored(bench: OneBenchmark, columns: list[Column]) -> list[tuple]:
    there = {e.row for e in bench.entries if e.column in columns and e.estimate is not None}
    return [row for row in bench.rows(columns) if row in there]


def _panel(axis: Axes, bench: OneBenchmark, columns: list[Column]) -> None:
    rows = _scored(bench, columns)
    offsets = np.linspace(-0.25, 0.25, len(columns)) if len(columns) > 1 else [0.0]
    for index, (column, offset) in enumerate(zip(columns, offsets, strict=True)):
        colour, marker = PALETTE[index % len(PALETTE)], MARKERS[index % len(MARKERS)]
        axis.plot([], [], marker, color=colour, label=column.words)
        for y, row in enumerate(rows):
            entry = bench.entry(row, column)
            if entry is None or entry.estimate is None:
                continue
            low, high = (100 * v for v in entry.estimate.interval())
            axis.hlines(y + offset, low, high, color=colour, linewidth=1.4)
            fill = colour if entry.estimate.folds > 1 else "white"
            axis.plot(100 * entry.estimate.mean, y + offset, marker, color=colour, markerfacecolor=fill, markersize=5)
    labels = [next(e.label for e in bench.entries if e.row == row) for row in rows]
    axis.set_yticks(range(len(rows)), labels)
    axis.set_ylim(len(rows) - 0.4, -0.6)
    words = {"loc": "lower left", "bbox_to_anchor": (0.0, 1.0), "borderaxespad": 0.2, "handletextpad": 0.2}
    axis.legend(ncols=LEGEND, **words).set_in_layout(False)  # a wide one would shrink the axes
