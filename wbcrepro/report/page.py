"""HTML for the book: tables, banners, holes, and the line under each that says where it comes from.

The CSS classes and the two environment variables for files to download are described in ``wbcrepro.book``.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from html import escape
from pathlib import Path

import pandas as pd

from wbcrepro.report import verdicts
from wbcrepro.report.tables import Entry, Row, Table, sentence


class Html(str):
    """A string that notebooks show as HTML."""

    def _repr_html_(self) -> str:
        return str(self)


def banner(synthetic: bool, caption: str = "") -> Html:
    """The banner over synthetic numbers; empty for real data."""
    if not synthetic:
        return Html("")
    words = sentence(caption) or "Drawn by a program, not photographed."
    return Html(f'<div class="wbc-synthetic">{escape(words)} A mechanism, not evidence about blood.</div>')


def download(name: str, content: str | bytes, words: str | None = None) -> Html:
    """Offer a file beside the page and return its link; where no page is being made, write and return nothing."""
    folder, address = os.environ.get("WBCREPRO_PAGE_FILES"), os.environ.get("WBCREPRO_PAGE_URL")
    if not folder or not address:
        return Html("")
    (Path(folder) / name).write_bytes(content.encode() if isinstance(content, str) else content)
    return Html(f'<a href="{escape(address)}/{escape(name)}" download>{escape(words or name)}</a>')


def source(cells: Iterable[str] = (), command: str = "", links: Iterable[str] = (), words: str = "") -> Html:
    """The line under a table or figure: files, cells (folded when many) and the command that makes them."""
    ids, parts = sorted(set(cells)), [link for link in links if link]
    if words:
        parts.append(escape(words))
    if command:
        parts.append(f"command: <code>{escape(command)}</code>")
    if ids:
        listed = " ".join(f"<code>{escape(i)}</code>" for i in ids)
        parts.append(f"<details><summary>{len(ids)} cell{'s' * (len(ids) > 1)}</summary>{listed}</details>")
    return Html(f'<div class="wbc-source">{" · ".join(parts)}</div>')


def hole(command: str) -> str:
    """A missing value, with the command that fills it."""
    return f'<span class="wbc-hole" title="{escape(command)}">not run</span>'


def table_html(table: Table, name: str | None = None) -> Html:
    """A table in three groups of columns: paper, released code, ours with verdicts. Best bold, second underlined."""
    name = name or f"{table.name}-{table.on}-{table.preset}.csv"
    logged = [m for m in table.metrics if any(r.entries[m].code_log is not None for r in table.rows)]
    head = (
        f'<tr><th rowspan="2">Method</th><th class="wbc-group" colspan="{len(table.metrics)}">Paper</th>'
        + (f'<th class="wbc-group" colspan="{len(logged)}">Released code’s log</th>' if logged else "")
        + f'<th class="wbc-group" colspan="{len(table.metrics)}">Ours: {escape(table.predictions.benchmark)}</th>'
        + "</tr><tr>"
        + "".join(f"<th>{m}</th>" for m in [*table.metrics, *logged, *table.metrics])
        + "</tr>"
    )
    ranks, best = table.ranks(), _paper_ranks(table)
    body = "".join(_row_html(row, table, logged, ranks, best) for row in table.rows)
    cells = [i for row in table.rows for i in row.cells]
    commands = sorted({row.command for row in table.rows if row.command})
    holes = "".join(f'<p class="wbc-source">Holes are filled by: <code>{escape(c)}</code></p>' for c in commands)
    links = [download(name, table.to_csv(), "CSV")]
    return Html(
        f"{banner(table.predictions.synthetic, table.predictions.caption)}"
        f'<div class="wbc-table"><table><caption>{escape(table.caption())}</caption>'
        f"<thead>{head}</thead><tbody>{body}</tbody></table></div>"
        f"{source(cells, table.predictions.make_command(), links, provenance_words(table))}{holes}"
    )


def provenance_words(table: Table) -> str:
    """Commit, hardware and date of the cells behind a table, in words; from their ``env.json``."""
    p = table.predictions
    parts = {"commit": p.facts("commit"), "on": p.facts("hardware"), "dated": p.facts("date")}
    return "; ".join(f"{word} {', '.join(found)}" for word, found in parts.items() if found)


def _paper_ranks(table: Table) -> dict[tuple[str, str], str]:
    found = {}
    for metric in table.metrics:
        shown = {r.label: r.entries[metric].paper[0] for r in table.rows if r.entries[metric].paper}
        order = sorted(set(shown.values()), reverse=True)[:2]
        found |= {(k, metric): "best" if v == order[0] else "second" for k, v in shown.items() if v in order}
    return found


def _marked(text: str, rank: str | None) -> str:
    return {"best": f'<b class="wbc-best">{text}</b>', "second": f'<u class="wbc-second">{text}</u>'}.get(
        rank or "", text
    )


def _row_html(row: Row, table: Table, logged: list[str], ranks: dict, paper_ranks: dict) -> str:
    cells = [f'<th scope="row">{escape(row.label)}</th>']
    for metric in table.metrics:
        paper = row.entries[metric].paper
        text = (
            "–" if paper is None else _marked(f"{paper[0]:.1f} ± {paper[1]:.1f}", paper_ranks.get((row.label, metric)))
        )
        cells.append(f'<td class="wbc-paper">{text}</td>')
    for metric in logged:
        value = row.entries[metric].code_log
        cells.append(f'<td class="wbc-code">{"–" if value is None else f"{value:.2f}"}</td>')
    for metric in table.metrics:
        cells.append(
            f'<td class="wbc-ours">{_ours_html(row.entries[metric], row, table, ranks.get((row.label, metric)))}</td>'
        )
    return f"<tr>{''.join(cells)}</tr>"


def _ours_html(entry: Entry, row: Row, table: Table, rank: str | None) -> str:
    if entry.ours is None:
        return hole(row.command)
    text = ours_text(entry, table.folds)
    low, high = (100 * v for v in entry.ours.interval())
    against = f' title="against {escape(entry.reference)}"' if entry.reference else ""
    return (
        f"{_marked(text, rank)}<br><small>[{low:.1f}, {high:.1f}]</small>"
        f'<br><small class="wbc-verdict"{against}>{verdicts.VALUES[entry.verdict]}</small>'
    )


def ours_text(entry: Entry, planned: int) -> str:
    """``45.1 ± 1.2`` in percent; where not all planned folds entered, or one has no spread, their number."""
    if entry.ours is None:
        return "not run"
    text = f"{100 * entry.ours.mean:.1f}"
    if entry.ours.std is not None:
        text += f" ± {100 * entry.ours.std:.1f}"
    if entry.ours.folds < planned:
        return f"{text} ({entry.ours.folds}/{planned} folds)"
    return text if entry.ours.std is not None else f"{text} (1 fold)"


def frame_html(
    frame: pd.DataFrame, name: str, *, caption: str = "", synthetic: str = "", command: str = "",
    cells: Iterable[str] = (), decimals: int = 1,
) -> Html:  # fmt: skip
    """Any small frame as a book table with a CSV below it. ``synthetic`` is the banner's text, empty for real data."""
    heads = "".join(f"<th>{escape(str(c))}</th>" for c in frame.columns)
    body = "".join(
        "<tr>" + "".join(f"<td>{_cell(v, decimals)}</td>" for v in line) + "</tr>"
        for line in frame.itertuples(index=False)
    )
    title = f"<caption>{escape(caption)}</caption>" if caption else ""
    csv = frame.to_csv(index=False, float_format="%.4f", lineterminator="\n")
    return Html(
        f"{banner(bool(synthetic), synthetic)}"
        f'<div class="wbc-table"><table>{title}<thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></div>'
        f"{source(cells, command, [download(name, csv, 'CSV')])}"
    )


def _cell(value: object, decimals: int) -> str:
    if value is None or (isinstance(value, float) and pd.isna(value)):
        return '<span class="wbc-hole">–</span>'
    if isinstance(value, float):
        return f"{value:.{decimals}f}"
    return str(value) if isinstance(value, Html) else escape(str(value))
