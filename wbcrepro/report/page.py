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
from wbcrepro.report.claims import Finding, findings_frame, load_part
from wbcrepro.report.predictions import Predictions
from wbcrepro.report.tables import Entry, Row, Table, ranked, sentence


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


def figure_source(drawn_from: str, command: str = "", cells: Iterable[str] = ()) -> Html:
    """The line under a figure that its page computes itself: from what, and the command that makes the page again."""
    return source(cells, command, words=drawn_words(drawn_from))


def drawn_words(drawn_from: str) -> str:
    """What `figure_source` says, for the line under a table (``words`` of `frame_html`)."""
    return f"drawn by this page from {drawn_from}"


def hole(command: str) -> str:
    """A missing value, with the command that fills it."""
    return f'<span class="wbc-hole" title="{escape(command)}">not run</span>'


def table_html(table: Table, name: str | None = None) -> Html:
    """A table in three groups of columns: paper, released code, ours with verdicts. Best bold, second underlined.

    Metrics are shown two at a time, so that the groups fit a page side by side; the CSV below holds all of them.
    """
    name = name or f"{table.name}-{table.on}-{table.preset}.csv"
    metrics = list(table.metrics)
    halves = "".join(_half_html(table, metrics[i : i + 2]) for i in range(0, len(metrics), 2))
    cells = [i for row in table.rows for i in row.cells]
    holes = "".join(
        f'<p class="wbc-source">{escape(words)}{f": <code>{escape(command)}</code>" if command else ""}</p>'
        for words, command in table.holes()
    )
    links = [download(name, table.to_csv(), "CSV")]
    return Html(
        f"{banner(table.predictions.synthetic, table.predictions.caption)}<p>{escape(table.caption())}</p>{halves}"
        f"{source(cells, table.predictions.make_command(), links, provenance_words(table))}{holes}"
    )


def _half_html(table: Table, metrics: list[str]) -> str:
    logged = [m for m in metrics if any(r.entries[m].code_log is not None for r in table.rows)]
    groups = {"Paper": metrics, "Released code’s log": logged, f"Ours: {table.predictions.benchmark}": metrics}
    groups = {words: columns for words, columns in groups.items() if columns}
    top = "".join(f'<th class="wbc-group" colspan="{len(c)}">{escape(words)}</th>' for words, c in groups.items())
    names = "".join(f"<th>{metric}</th>" for columns in groups.values() for metric in columns)
    ranks, best = table.ranks(), _paper_ranks(table)
    body = "".join(_row_html(row, table, metrics, logged, ranks, best) for row in table.rows)
    head = f'<tr><th rowspan="2">Method</th>{top}</tr><tr>{names}</tr>'
    return f'<div class="wbc-table"><table><thead>{head}</thead><tbody>{body}</tbody></table></div>'


def claims_html(predictions: Predictions, findings: list[Finding], name: str) -> Html:
    """Claims with the paper's effect, ours with its interval, and the verdict; all columns are in the CSV."""
    claims = {c["id"]: c for c in load_part(predictions.paper["name"], "claims")}
    body, last = "", ""
    for f in findings:
        claim = claims[f.claim]
        if f.claim != last:
            words = (
                f"{f.claim}. {escape(claim['words'])} <small>“{escape(claim['passage'])}” ({claim['section']})</small>"
            )
            body += f'<tr><th colspan="5">{words}</th></tr>'
        last = f.claim
        unit = {"percent": " %", "ratio": " (ratio)"}.get(f.unit, "")
        digits = 2 if f.unit == "ratio" else 1
        sign = "" if f.unit == "percent" else "+"
        paper = "–" if f.paper is None else f"{f.paper:{sign}.{digits}f}{unit}"
        ours = '<span class="wbc-hole">–</span>' if "missing" in f.note else "–"
        if f.effect is not None:
            ours = f"{f.effect:{sign}.{digits}f}{unit}<br><small>[{f.low:.{digits}f}, {f.high:.{digits}f}]</small>"
        body += (
            f'<tr><td>{escape(f.item)}</td><td class="wbc-paper">{paper}</td><td class="wbc-ours">{ours}</td>'
            f'<td class="wbc-verdict">{verdicts.CLAIMS[f.verdict]}</td><td><small>{escape(f.note)}</small></td></tr>'
        )
    csv = findings_frame(predictions, findings).to_csv(index=False, float_format="%.2f", lineterminator="\n")
    head = "<tr><th>claim, item</th><th>paper</th><th>ours [95 %]</th><th>verdict</th><th>note</th></tr>"
    caption = (
        f"Claims on {predictions.benchmark}, profile {predictions.profile}, preset paper. "
        f"{sentence(predictions.caption)} "
        "Effects are differences in points unless a unit is given."
    )
    cells = [m.id for m in predictions.members if m.done]
    return Html(
        f"{banner(predictions.synthetic, predictions.caption)}<p>{escape(caption)}</p>"
        f'<div class="wbc-table"><table><thead>{head}</thead><tbody>{body}</tbody></table></div>'
        f"{source(cells, predictions.make_command(), [download(name, csv, 'CSV')])}"
    )


def discrepancies_html(paper: str, name: str) -> Html:
    """Where a paper's text and its released code differ: one block each, with how we know and what is done here."""
    entries = load_part(paper, "discrepancies")
    body = "".join(
        f'<tr><th colspan="3">{e["id"]}. {escape(e["topic"])} <small>({e["known"]})</small></th></tr>'
        f'<tr><td class="wbc-paper" style="white-space: normal">{escape(e["paper"])}</td>'
        f'<td class="wbc-code" style="white-space: normal">{escape(e["code"])}</td>'
        f'<td class="wbc-ours" style="white-space: normal">{escape(e["here"])}</td></tr>'
        for e in entries
    )
    head = "<tr><th>the paper says</th><th>the released code does</th><th>here</th></tr>"
    columns = ["id", "topic", "paper", "code", "known", "here"]
    csv = pd.DataFrame(entries, columns=columns).to_csv(index=False, lineterminator="\n")
    table = f'<div class="wbc-table"><table><thead>{head}</thead><tbody>{body}</tbody></table></div>'
    return Html(table + source(links=[download(name, csv, "CSV")], words=drawn_words(f"{paper}.discrepancies.yml")))


def provenance_words(table: Table) -> str:
    """Commit, hardware and date of the cells behind a table, in words; from their ``env.json``."""
    p = table.predictions
    parts = {"commit": p.facts("commit"), "on": p.facts("hardware"), "dated": p.facts("date")}
    return "; ".join(f"{word} {', '.join(found)}" for word, found in parts.items() if found)


def _paper_ranks(table: Table) -> dict[tuple[str, str], str]:
    found = {}
    for metric in table.metrics:
        shown = {r.label: r.entries[metric].paper[0] for r in table.rows if r.entries[metric].paper}
        found |= {(label, metric): rank for label, rank in ranked(shown).items()}
    return found


def marked(text: str, rank: str | None) -> str:
    """Best bold, second underlined, as the papers print it."""
    return {"best": f'<b class="wbc-best">{text}</b>', "second": f'<u class="wbc-second">{text}</u>'}.get(
        rank or "", text
    )


def _row_html(row: Row, table: Table, metrics: list[str], logged: list[str], ranks: dict, paper_ranks: dict) -> str:
    cells = [f'<th scope="row">{escape(row.label)}</th>']
    for metric in metrics:
        paper = row.entries[metric].paper
        text = (
            "–" if paper is None else marked(f"{paper[0]:.1f} ± {paper[1]:.1f}", paper_ranks.get((row.label, metric)))
        )
        cells.append(f'<td class="wbc-paper">{text}</td>')
    for metric in logged:
        value = row.entries[metric].code_log
        cells.append(f'<td class="wbc-code">{"–" if value is None else f"{value:.2f}"}</td>')
    for metric in metrics:
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
        f"{marked(text, rank)}<br><small>[{low:.1f}, {high:.1f}]</small>"
        f'<br><small class="wbc-verdict"{against}>{verdicts.VALUES[entry.verdict]}</small>'
    )


def ours_text(entry: Entry, planned: int, unit: str = "fold") -> str:
    """``45.1 ± 1.2`` in percent; where not all planned folds (trials) entered, or one has no spread, their number."""
    if entry.ours is None:
        return "not run"
    text = f"{100 * entry.ours.mean:.1f}"
    if entry.ours.std is not None:
        text += f" ± {100 * entry.ours.std:.1f}"
    if entry.ours.folds < planned:
        return f"{text} ({entry.ours.folds}/{planned} {unit}s)"
    return text if entry.ours.std is not None else f"{text} (1 {unit})"


def frame_html(
    frame: pd.DataFrame, name: str, *, caption: str = "", synthetic: str = "", command: str = "",
    cells: Iterable[str] = (), decimals: int = 1, words: str = "",
) -> Html:  # fmt: skip
    """Any small frame as a book table; below it its CSV, ``words`` on where it comes from, command and cells.

    ``synthetic`` is the banner's text, empty for real data. A missing value is drawn as a hole, but as a plain dash on
    a line whose column "images scored" is 0: where there is no image of a class, nothing is missing.
    """
    heads = "".join(f"<th>{escape(str(c))}</th>" for c in frame.columns)
    body = "".join(
        "<tr>" + "".join(f"<td>{_cell(v, decimals, nothing)}</td>" for v in line) + "</tr>"
        for line, nothing in zip(frame.itertuples(index=False), _without_images(frame), strict=True)
    )
    title = f"<p>{escape(caption)}</p>" if caption else ""
    csv = frame.to_csv(index=False, float_format="%.4f", lineterminator="\n")
    return Html(
        f"{banner(bool(synthetic), synthetic)}"
        f'{title}<div class="wbc-table"><table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></div>'
        f"{source(cells, command, [download(name, csv, 'CSV')], words)}"
    )


def _without_images(frame: pd.DataFrame) -> list[bool]:
    return (frame["images scored"] == 0).tolist() if "images scored" in frame else [False] * len(frame)


def _cell(value: object, decimals: int, absent: bool = False) -> str:
    if value is None or (isinstance(value, float) and pd.isna(value)):
        return "–" if absent else '<span class="wbc-hole">–</span>'
    if isinstance(value, float):
        return f"{value:.{decimals}f}"
    return str(value) if isinstance(value, Html) else escape(str(value))
