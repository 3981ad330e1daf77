"""Tables of unseen laboratories as HTML for the book and as text for the terminal."""

from __future__ import annotations

from html import escape

from wbcrepro.report import verdicts
from wbcrepro.report.domain_layout import PRIVATE, Column
from wbcrepro.report.domain_tables import DomainRow, DomainTable
from wbcrepro.report.page import Html, banner, download, hole, marked, ours_text, provenance_words, source
from wbcrepro.report.tables import Entry

METRIC_WORDS = {"micro": "F1-micro", "macro": "F1-macro"}
WIDTH = 3
"""Columns of paper and ours side by side that fit a page."""


def domain_table_html(table: DomainTable, name: str | None = None) -> Html:
    """A table with the paper's value and ours side by side in each column; ours with interval and verdict.

    Wide tables are cut into blocks of three columns; the CSV below holds all of them. Best bold, second underlined.
    """
    name = name or f"{csv_name(table)}.csv"
    pairs = [(column, metric) for metric in table.metrics for column in table.columns]
    size = len(table.columns) if len(table.columns) > 1 else len(pairs)
    groups = [pairs[i : i + size] for i in range(0, len(pairs), size)]
    blocks = [group[i : i + WIDTH] for group in groups for i in range(0, len(group), WIDTH)]
    body = "".join(_block(table, block) for block in blocks)
    p = table.predictions
    cells = [i for row in table.rows for i in row.cells]
    links = [download(name, table.to_csv(), "CSV")]
    holes = "".join(
        f'<p class="wbc-source">{escape(words)}{f": <code>{escape(command)}</code>" if command else ""}</p>'
        for words, command in table.holes()
    )
    notes = "".join(f'<p class="wbc-source">{escape(note)}</p>' for note in p.notes)
    return Html(
        f"{banner(p.synthetic, p.caption)}<p>{escape(table.caption())}</p>{body}"
        f"{source(cells, p.make_command(), links, provenance_words(table))}{notes}{holes}"
    )


def csv_name(table: DomainTable) -> str:
    """The file name of a table without its ending; switches that differ from the paper's YAML are in it."""
    spec = table.spec
    parts = [table.name, spec.on, spec.preset, spec.selection, spec.rows, spec.classes]
    return "-".join([*parts, *(["without_lone"] if spec.without_lone else [])])


def _block(table: DomainTable, pairs: list[tuple[Column, str]]) -> str:
    printed = {key for row in table.rows for key, entry in row.entries.items() if entry.paper}
    top = "".join(
        f'<th class="wbc-group" colspan="{1 + ((column.label, metric) in printed)}">'
        f"{METRIC_WORDS.get(metric, metric)}: {escape(column.label)}</th>"
        for column, metric in pairs
    )
    names = "".join(
        f"{'<th>paper</th>' * ((column.label, metric) in printed)}<th>ours: {escape(column.ours)}</th>"
        for column, metric in pairs
    )
    ours, paper = table.ranks(), table.ranks(paper=True)
    body = "".join(_row(row, table, pairs, ours, paper, printed) for row in table.rows)
    head = f'<tr><th rowspan="2">Method</th>{top}</tr><tr>{names}</tr>'
    return f'<div class="wbc-table"><table><thead>{head}</thead><tbody>{body}</tbody></table></div>'


def _row(row: DomainRow, table: DomainTable, pairs: list, ours: dict, paper: dict, printed: set) -> str:
    cells = [f'<th scope="row">{escape(row.label)}</th>']
    for column, metric in pairs:
        key = (column.label, metric)
        entry = row.entries[key]
        if key in printed:
            cells.append(f'<td class="wbc-paper">{marked(paper_text(entry), paper.get((row.label, *key)))}</td>')
        cells.append(f'<td class="wbc-ours">{_ours(entry, row, column, table, ours.get((row.label, *key)))}</td>')
    return f"<tr>{''.join(cells)}</tr>"


def _ours(entry: Entry, row: DomainRow, column: Column, table: DomainTable, rank: str | None) -> str:
    if entry.ours is None:
        if column.laboratories:
            return hole(row.command or "run by no profile in this preset")
        return f'<span class="wbc-hole" title="{escape(absent(table, column))}">no data</span>'
    low, high = (100 * v for v in entry.ours.interval())
    against = f' title="against {escape(entry.reference)}"' if entry.reference else ""
    verdict = f'<br><small class="wbc-verdict"{against}>{verdicts.VALUES[entry.verdict]}</small>'
    return (
        f"{marked(ours_text(entry, table.trials, 'trial'), rank)}<br><small>[{low:.1f}, {high:.1f}]</small>"
        f"{verdict if entry.paper else ''}"
    )


def absent(table: DomainTable, column: Column) -> str:
    """Why a column has no laboratory of ours in this profile."""
    if column.label in PRIVATE:
        return "the laboratory's images are private"
    return f"not held out in profile {table.predictions.profile}"


def paper_text(entry: Entry) -> str:
    """``70.0 ± 5.0``; without a spread where the paper prints none."""
    if entry.paper is None:
        return "–"
    mean, std = entry.paper
    return f"{mean:.1f} ± {std:.1f}" if std is not None else f"{mean:.2f}"


def _parts(table: DomainTable) -> list[tuple[str, tuple[Column, ...]]]:
    """Each metric with at most ``WIDTH`` columns at a time."""
    places = range(0, len(table.columns), WIDTH)
    return [(metric, table.columns[i : i + WIDTH]) for metric in table.metrics for i in places]


def domain_table_text(table: DomainTable) -> str:
    """Paper and ours, a block per metric (``*`` best, ``_`` second), then the commands that fill the holes."""
    ranks, mark = table.ranks(), {"best": "*", "second": "_", None: " "}
    width = max(len(row.label) for row in table.rows)
    lines = [table.caption()]
    for metric, columns in _parts(table):
        lines += ["", METRIC_WORDS.get(metric, metric)]
        lines.append(" " * width + "".join(f"  {c.label + ' paper':>16}  {c.ours[:18]:>18} " for c in columns))
        for row in table.rows:
            line = f"{row.label:{width}}"
            for column in columns:
                key = (column.label, metric)
                ours = ours_text(row.entries[key], table.trials, "trial") if column.laboratories else "no data"
                line += f"  {paper_text(row.entries[key]):>16}  {ours:>18}{mark[ranks.get((row.label, *key))]}"
            lines.append(line)
    lines.append("ours: * best, _ second; intervals and verdicts are in --csv and --json")
    if table.predictions.synthetic:
        lines.append("SYNTHETIC IMAGES: these numbers show a mechanism and are no evidence about blood.")
    return "\n".join(lines + [": ".join(filter(None, pair)) for pair in table.holes()])
