"""Tables of ``design: rescue`` as HTML for the book and as text for the terminal."""

from __future__ import annotations

from html import escape

from wbcrepro.report import verdicts
from wbcrepro.report.page import Html, banner, download, hole, marked, provenance_words, source
from wbcrepro.report.rescue_layout import RescueColumn
from wbcrepro.report.rescue_rows import RescueEntry, RescueRow
from wbcrepro.report.rescue_tables import RescueTable, step_numbers

WIDTH = 3
"""Columns of ours that fit a page beside their paper's."""


def rescue_table_html(table: RescueTable, name: str | None = None) -> Html:
    """The paper's values in their own columns, ours with interval, difference and verdict. Best bold, second
    underlined.

    Wide tables are cut into blocks; the CSV below holds all columns.
    """
    name = name or f"{table.name}-{table.preset}.csv"
    p = table.predictions
    blocks = [table.columns[i : i + WIDTH] for i in range(0, len(table.columns), WIDTH)]
    cells = [i for row in table.rows for i in row.cells]
    holes = "".join(
        f'<p class="wbc-source">{escape(words)}{f": <code>{escape(command)}</code>" if command else ""}</p>'
        for words, command in table.holes()
    )
    notes = "".join(f'<p class="wbc-source">{escape(note)}</p>' for note in p.notes)
    return Html(
        f"{banner(p.synthetic, p.caption)}<p>{escape(table.caption())}</p>"
        f"{''.join(_block(table, block) for block in blocks)}"
        f"{source(cells, p.make_command(), [download(name, table.to_csv(), 'CSV')], provenance_words(table))}"
        f"{notes}{holes}"
    )


def _printed(table: RescueTable, columns: tuple[RescueColumn, ...]) -> list[tuple[RescueColumn, ...]]:
    """Columns that share a printed value, each group once: the waterfall's sets have one leaderboard."""
    groups: dict[tuple, list[RescueColumn]] = {}
    for column in columns:
        values = tuple(row.entries[column.key].paper for row in table.rows)
        if any(values):
            groups.setdefault((column.metric, values), []).append(column)
    return [tuple(group) for group in groups.values()]


def _block(table: RescueTable, columns: tuple[RescueColumn, ...]) -> str:
    printed, ranks = _printed(table, columns), table.ranks()
    paper = "".join(f"<th>{escape('' if len(group) > 1 else group[0].words)}</th>" for group in printed)
    ours = "".join(f"<th>{escape(c.words)}</th>" for c in columns)
    top = f'<th class="wbc-group" colspan="{len(printed)}">Paper</th>' if printed else ""
    top += f'<th class="wbc-group" colspan="{len(columns)}">Ours: {escape(table.predictions.benchmark)}</th>'
    body = ""
    for row in table.rows:
        line = f'<th scope="row">{escape(row.label)}</th>'
        line += "".join(f'<td class="wbc-paper">{paper_text(row.entries[g[0].key])}</td>' for g in printed)
        line += "".join(
            f'<td class="wbc-ours">{_ours_html(row, c, ranks.get((row.label, c.key)))}</td>' for c in columns
        )
        body += f"<tr>{line}</tr>"
    head = f'<tr><th rowspan="2">Row</th>{top}</tr><tr>{paper}{ours}</tr>'
    return f'<div class="wbc-table"><table><thead>{head}</thead><tbody>{body}</tbody></table></div>'


def _ours_html(row: RescueRow, column: RescueColumn, rank: str | None) -> str:
    entry = row.entries[column.key]
    if entry.ours is None and entry.number is None:
        return hole(row.command) if entry.planned and row.command else "–"
    text = marked(ours_text(entry, column, row.difference), rank)
    if entry.interval is not None:
        text += "<br><small>[{}, {}]</small>".format(*(number_text(v, column) for v in entry.interval))
    if entry.ours is not None:
        low, high = (100 * v for v in entry.ours.interval())
        text += f"<br><small>[{low:.1f}, {high:.1f}]</small>"
    if entry.step is not None:
        text += f"<br><small>Δ {step_text(entry)}<br>to {escape(entry.reference)}</small>"
    if entry.verdict:
        folds = "" if entry.change is None else f"folds alone: Δ {100 * entry.change.mean:+.1f}, "
        text += f'<br><small class="wbc-verdict">{folds}{verdicts.VALUES[entry.verdict]}</small>'
    return text


def ours_text(entry: RescueEntry, column: RescueColumn, difference: bool = False) -> str:
    """``45.1 ± 1.2`` in percent, a signed difference in points, or a number in the column's unit; else ``–``."""
    if entry.number is not None:
        return number_text(entry.number, column)
    if entry.ours is None:
        return "not run" if entry.planned else "–"
    text = f"{100 * entry.ours.mean:{'+' if difference else ''}.1f}"
    return text if entry.ours.std is None else f"{text} ± {100 * entry.ours.std:.1f}"


def number_text(value: float, column: RescueColumn) -> str:
    """A value in the column's unit: decibels with two digits, an index in [0, 1] with three."""
    return f"{value:.2f}" if column.unit == "dB" else f"{value:.3f}"


def step_text(entry: RescueEntry) -> str:
    """``+5.1 [1.0, 9.2]`` in points; empty without a row to compare with."""
    if entry.step is None:
        return ""
    n = step_numbers(entry)
    return f"{n['step']:+.1f} [{n['step_low']:.1f}, {n['step_high']:.1f}]"


def paper_text(entry: RescueEntry) -> str:
    """``73.5 ± 2.4``, without a spread where the paper prints none; ``–`` for a row of ours."""
    if entry.paper is None:
        return "–"
    mean, std = entry.paper
    return f"{mean:.2f} ± {std:.2f}" if std is not None else f"{mean:.2f}"


def rescue_table_text(table: RescueTable) -> str:
    """Caption, a block of lines per few columns (``*`` best, ``_`` second), then the commands that fill the holes."""
    ranks, mark = table.ranks(), {"best": "*", "second": "_", None: " "}
    width = max(len(row.label) for row in table.rows)
    lines = [table.caption()]
    for start in range(0, len(table.columns), 2):
        columns = table.columns[start : start + 2]
        printed = _printed(table, columns)
        stepped = {c.key for c in columns if any(row.entries[c.key].step is not None for row in table.rows)}
        heads = [f"  {c.words[:24]:>24} " + f"  {'Δ [95 %]':>20}" * (c.key in stepped) for c in columns]
        lines += ["", (" " * width + "".join(f"  {'paper':>13}" for _ in printed) + "".join(heads)).rstrip()]
        for row in table.rows:
            line = f"{row.label:{width}}"
            line += "".join(f"  {paper_text(row.entries[g[0].key]):>13}" for g in printed)
            for c in columns:
                entry = row.entries[c.key]
                line += f"  {ours_text(entry, c, row.difference):>24}" + mark[ranks.get((row.label, c.key))]
                line += f"  {step_text(entry):>20}" * (c.key in stepped)
            lines.append(line.rstrip())
    lines.append("ours: * best, _ second; intervals, references and verdicts are in --csv and --json")
    if table.predictions.synthetic:
        lines.append("SYNTHETIC IMAGES: these numbers show a mechanism and are no evidence about blood.")
    return "\n".join(lines + [": ".join(filter(None, pair)) for pair in table.holes()])
