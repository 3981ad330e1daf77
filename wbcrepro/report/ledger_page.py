"""The claims ledger as a table of the book: a row a claim, the store's profile and the committed results beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

import pandas as pd

from wbcrepro.papers import load_paper
from wbcrepro.report import verdicts
from wbcrepro.report.ledger import COMMITTED, DIFFER, IN_STORE, NOT_RUN, Evidence, verdict_of
from wbcrepro.report.page import Html, download, hole, source

HEADS = {IN_STORE: "in this profile", COMMITTED: "real images that travel with the repository"}
SHOWN = 2
"""Items that are shown unfolded."""


def ledger_html(
    frame: pd.DataFrame, evidence: Sequence[Evidence], name: str, pages: Mapping[str, str] | None = None
) -> Html:
    """The frame of ``ledger_frame``; below it CSV, cells and commands. ``pages``: ``{paper: its findings page}``."""
    pages, origins = pages or {}, [o for o in HEADS if (frame["from"] == o).any()]
    body = "".join(_paper(paper, rows, origins, pages.get(paper)) for paper, rows in frame.groupby("paper", sort=False))
    heads = "".join(f"<th>{HEADS[origin]}</th>" for origin in origins)
    table = f"<thead><tr><th>claim</th><th>the test</th>{heads}</tr></thead><tbody>{body}</tbody>"
    csv = frame.to_csv(index=False, float_format="%.2f", lineterminator="\n")
    links = [download(name, csv, "CSV (a line for each claim, item and run)")]
    words = "effects are differences in points unless a unit is given; brackets: 95 %"
    return Html(
        f'<div class="wbc-table"><table>{table}</table></div>{source(links=links, words=words)}'
        + "".join(source(e.cells, e.command, words=_named(e)) for e in evidence)
    )


def _named(found: Evidence) -> str:
    data = f"{found.benchmark}, profile {found.profile}" if found.benchmark else f"profile {found.profile}"
    return f"{found.paper}: {data} ({'synthetic' if found.synthetic else 'real images'})" * bool(found.profile)


def _paper(paper: str, rows: pd.DataFrame, origins: list[str], page: str | None) -> str:
    title = f"{paper}: {load_paper(paper)['title']}"
    link = f' <a href="{escape(page)}">findings</a>' if page else ""
    head = f'<tr><th class="wbc-group" colspan="{2 + len(origins)}">{escape(title)}{link}</th></tr>'
    return head + "".join(_claim(items, origins, page) for _, items in rows.groupby("claim", sort=False))


def _claim(rows: pd.DataFrame, origins: list[str], page: str | None) -> str:
    first = rows.iloc[0]
    name = f'<a href="{escape(page)}">{escape(first["claim"])}</a>' if page else escape(first["claim"])
    cells = "".join(_cell(rows[rows["from"] == origin]) for origin in origins)
    wrap = 'style="white-space: normal; min-width: 9em"'
    return (
        f'<tr><th scope="row" {wrap}>{name}. {escape(first["the paper says"])} '
        f"<small>({escape(first['section'])})</small></th>"
        f'<td style="white-space: normal; min-width: 7em"><small>{escape(first["test"])}</small></td>{cells}</tr>'
    )


def _cell(rows: pd.DataFrame) -> str:
    """All runs from one origin: the data, the verdict with what it rests on, then the items."""
    runs = rows.groupby(["benchmark", "profile", "images"], sort=False)
    blocks = "<hr>".join(_run(*key, items) for key, items in runs)
    return f'<td class="wbc-ours" style="white-space: normal; min-width: 11em">{blocks or "–"}</td>'


def _run(benchmark: str, profile: str, images: str, items: pd.DataFrame) -> str:
    real = items[items["item"] != ""]
    words = ["synthetic" if images == "synthetic" else "real images"] if benchmark else []
    data = f"<small>{escape(', '.join(part for part in (benchmark, profile, *words) if part))}</small>"
    if real.empty:
        return f"{hole(items['command'].iloc[0])} <small>{escape(items['note'].iloc[0])}</small><br>{data}"
    alike = real["verdict"].nunique() == 1
    lines = [_item(item, "" if alike else item["verdict"]) for item in real.to_dict("records")]
    listed = "".join(f"<br>{line}" for line in lines)
    if len(lines) > SHOWN:
        inner = "<br>".join(lines)
        listed = f"<details><summary>{_span(real)}</summary>{inner}</details>"
    return f"{_verdict(real)}<br>{data}{listed}"


def _verdict(items: pd.DataFrame) -> str:
    words = verdict_of(items)
    shown = hole(items["command"].iloc[0]) if words == NOT_RUN else f'<b class="wbc-verdict">{words}</b>'
    counts = items["verdict"].value_counts()
    if len(counts) == 1:
        return shown
    order = [w for w in (*verdicts.CLAIMS.values(), NOT_RUN) if w in counts]
    told = ", ".join(f"{counts[w]} {w.removesuffix(' here')}" for w in order)
    lead = shown if words != DIFFER else f'<b class="wbc-verdict">{DIFFER}</b>'
    return f"{lead} <small>({told})</small>"


def _span(items: pd.DataFrame) -> str:
    found = items[items["our effect"].notna()]
    if found.empty:
        return f"{len(items)} items"
    units = found["unit"].unique()
    if len(units) > 1:
        return f"{len(items)} items"
    low, high = found["our effect"].min(), found["our effect"].max()
    return f"{len(items)} items, effects {_number(low, units[0])} to {_number(high, units[0])}"


def _number(value: float, unit: str) -> str:
    if unit == "percent":
        return f"{value:.1f} %"
    return f"{value:+.2f} (ratio)" if unit == "ratio" else f"{value:+.1f}"


def _item(item: dict, verdict: str) -> str:
    """``verdict``: empty where the line above already says it of all items."""
    effect = f"<small>{escape(item['item'])}:</small> "
    if item["our effect"] is None or pd.isna(item["our effect"]):
        left = hole(item["command"]) if item["verdict"] == NOT_RUN else item["verdict"]
        return f'{effect}<small title="{escape(item["note"])}">{left}</small>'
    digits = 2 if item["unit"] == "ratio" else 1
    told = f", {verdict}" if verdict else ""
    return (
        f"{effect}{_number(item['our effect'], item['unit'])} "
        f"<small>[{item['low']:.{digits}f}, {item['high']:.{digits}f}], n = {int(item['folds'])}{told}</small>"
    )
