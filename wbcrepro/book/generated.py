"""The parts of the prose that are made when the book is staged: the table of datasets and the status of every page."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import wbcrepro
from wbcrepro.book.layout import Layout
from wbcrepro.report.page import source as source_line


def _cell(value: object) -> str:
    """Text for a cell of a Markdown table."""
    return str(value).replace("|", "\\|").replace("\n", " ").strip()


def _table(header: list[str], rows: list[list[str]], layout: Layout, name: str, made_from: str) -> str:
    """A Markdown table that scrolls inside its own box on a narrow screen, with its CSV and its source below it."""
    lines = [header, ["---"] * len(header), *rows]
    body = "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)
    path = layout.executed / "files" / "generated" / f"{name}.csv"  # `build` brings it beside the pages
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([_plain(cell) for cell in line] for line in (header, *rows))
    link = f'<a href="../_static/pages/generated/{name}.csv" download>CSV</a>'
    line = source_line(links=[link], words=f"made from {made_from}", command="wbcrepro book")
    return f":::{{div}} wbc-table\n{body}\n:::\n\n{line}"


def _plain(cell: object) -> str:
    """The text of a cell without Markdown's links and quotes."""
    return re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", str(cell)).replace("`", "")


def datasets_table(layout: Layout) -> str:
    """One row a dataset of the catalogue: what it is, size, access, licence."""
    from wbcrepro.data.catalog import ACCESS, datasets

    rows = []
    for name, entry in datasets().items():
        title = f"[{entry.title}]({entry.source})" if entry.source else entry.title
        licence = entry.licence["name"]
        licence = f"[{licence}]({entry.licence['url']})" if "url" in entry.licence else licence
        total = entry.images.get("total")
        papers = ", ".join(f"`{paper}`" for paper in entry.papers) or "ours, for tests"
        rows.append(
            [
                f"`{name}`",
                title,
                papers,
                f"{total:,}" if total else "not known",
                entry.access,
                licence,
                entry.licence["redistribution"],
            ]
        )
    words = "; ".join(f"*{name}*: {meaning}" for name, meaning in ACCESS.items())
    header = ["name", "dataset", "used by", "images", "access", "licence", "redistribution"]
    return f"{_table(header, rows, layout, 'datasets', 'wbcrepro/data/catalog.yml')}\n\nAccess: {words}."


def datasets_notes() -> str:
    """What to know before using each dataset: its notes, and the steps to get it, folded."""
    from wbcrepro.data.catalog import datasets

    blocks = []
    for name, entry in datasets().items():
        notes = "\n".join(f"- {note}" for note in entry.notes) or "- Nothing to add."
        steps = entry.instructions("DATA").strip()
        blocks.append(
            f"### {entry.title}\n\n`{name}`. {entry.citation}. Stain and instrument: {entry.stain}.\n\n{notes}\n\n"
            f"````{{dropdown}} How to get it\n```text\n{steps}\n```\n````"
        )
    return "\n\n".join(blocks)


def _read(path: Path) -> dict:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def status_pages(layout: Layout) -> str:
    """One row a notebook: profile, time, when, and what the cells behind it cost."""
    rows = []
    for source in layout.sources:
        record = _read(layout.executed / f"{source.stem}.json")
        page = f"[{source.stem}](../notebooks/{source.stem})"
        if not record:
            rows.append([page, "not executed", "", "", "", ""])
            continue
        cells = [entry for entry in record["reads"] if "*" not in entry]
        rows.append(
            [
                page,
                record["profile"],
                f"{record['seconds']:.0f} s",
                record["finished"].replace("T", " ").removesuffix("+00:00") + " UTC",
                record["hardware"],
                str(len(cells)),
            ]
        )
    header = ["page", "profile", "execution", "finished", "hardware", "cells asked for"]
    return _table(header, rows, layout, "status-pages", "the records of the executed notebooks")


def status_cells(layout: Layout, store: Path) -> str:
    """What the cells that the pages read cost, by kind and hardware; from their ``env.json``."""
    read = {
        entry for source in layout.sources for entry in _read(layout.executed / f"{source.stem}.json").get("reads", [])
    }
    groups: dict[tuple[str, str, str], list[float]] = {}
    missing = 0
    for entry in sorted(entry for entry in read if "*" not in entry):
        folder = store / "cells" / entry
        if not (folder / "metrics.json").is_file():
            missing += 1
            continue
        env = _read(folder / "env.json")
        key = (entry.rsplit("-", 1)[0], env.get("hardware", "not recorded"), env.get("commit", "not recorded"))
        groups.setdefault(key, []).append(float(env.get("seconds", 0.0)))
    if not groups and not missing:
        return "No page of this build read a cell."
    rows = [
        [kind, str(len(times)), f"{sum(times) / 60:.1f} min", hardware, f"`{commit}`"]
        for (kind, hardware, commit), times in sorted(groups.items())
    ]
    header = ["kind of cell", "cells", "time in all", "hardware", "code (commit)"]
    table = _table(header, rows, layout, "status-cells", "env.json of the cells") if rows else ""
    hole = (
        f"\n\n{missing} of the cells that the pages asked for have not been run: the pages mark the holes."
        if missing
        else ""
    )
    return table + hole


def status_versions(layout: Layout) -> str:
    """The versions of Python and libraries that the pages were executed with, each set once."""
    sets: dict[str, list[str]] = {}
    for source in layout.sources:
        record = _read(layout.executed / f"{source.stem}.json")
        if record:
            sets.setdefault(json.dumps(record["versions"], sort_keys=True), []).append(source.stem)
    names = sorted({name for versions in sets for name in json.loads(versions)})
    if not sets:
        return "No page of this build has been executed."
    header = ["library", *(", ".join(pages) for pages in sets.values())] if len(sets) > 1 else ["library", "all pages"]
    rows = [[name, *(json.loads(versions).get(name, "") for versions in sets)] for name in names]
    return _table(header, rows, layout, "status-versions", "the records of the executed notebooks")


def generated(layout: Layout, store: Path) -> dict[str, str]:
    """Everything that a prose page may ask for with ``% generated: NAME``."""
    clone = f"git clone {wbcrepro.REPOSITORY}\ncd {wbcrepro.REPOSITORY.rsplit('/', 1)[-1]}\n"
    return {
        "clone": f"```bash\n{clone}make reproduce PAPER=decoupled   # environment, experiments, notebooks, book\n```",
        "datasets-table": datasets_table(layout),
        "datasets-notes": datasets_notes(),
        "status-pages": status_pages(layout),
        "status-cells": status_cells(layout, store),
        "status-versions": status_versions(layout),
    }
