"""``wbcrepro data``: list, fetch, verify and preview the datasets."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from wbcrepro.commands._options import add_store_option

if TYPE_CHECKING:
    import pandas as pd

    from wbcrepro.data.sources import FileSource

_NAME = "a dataset of `wbcrepro data list`, folder:PATH (a folder of images for each class) or csv:PATH (path,label)"
_EXAMPLES = """examples:
  wbcrepro data list                                 what there is, its licence and how to get it
  wbcrepro data fetch acevedo20 --data data          download, where the licence allows it
  wbcrepro data verify acevedo20 --data data         check every file: counts, checksums, damage, duplicates
  wbcrepro data preview acevedo20 --data data        a picture with some cells of each class
  wbcrepro data preview folder:my/images             the same for your own images
"""
_CODES = "Exit codes: 0 done and sound, 2 wrong usage, 3 data missing, damaged or incomplete, 5 another one downloads."


def register(subparsers: argparse._SubParsersAction) -> None:
    """Add the command with its four actions."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = subparsers.add_parser(
        "data", help="list, fetch, verify and preview datasets", description="Datasets of blood cell images.",
        epilog=f"{_EXAMPLES}\n{_CODES}", formatter_class=raw,
    )  # fmt: skip
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    for name, run, summary in (
        ("list", run_list, "every dataset: access, licence, number of images, and whether it is there"),
        ("fetch", run_fetch, "download a dataset, or print the exact steps to do so by hand"),
        ("verify", run_verify, "look at every file: counts, checksums, damage, duplicates, conflicting labels"),
        ("preview", run_preview, "a summary, and a PNG with some images of each class"),
    ):
        action = actions.add_parser(name, help=summary, description=summary, epilog=_CODES, formatter_class=raw)
        if name != "list":
            action.add_argument("name", metavar="NAME", help=_NAME)
        action.add_argument(
            "--data", type=Path, default=Path("data"), metavar="PATH", help="folder of datasets (default: data)"
        )
        if name in ("verify", "preview"):
            add_store_option(action)
            action.add_argument("--mapping", help="class list: wbcbench, five or thirteen (default: the dataset's own)")
        if name != "list":
            action.add_argument("--no-progress", action="store_true", help="no progress bar")
        action.set_defaults(run=run)
    actions.choices["list"].add_argument("--json", action="store_true", help="print everything known as JSON")
    actions.choices["verify"].add_argument(
        "--partial", action="store_true", help="accept a part of the dataset (exit code 0 although images are missing)"
    )
    preview = actions.choices["preview"]
    preview.add_argument("-o", "--output", type=Path, help="where to write the PNG (default: below the store)")
    preview.add_argument("--per-class", type=int, default=8, metavar="N", help="images of each class (default: 8)")


def run_list(arguments: argparse.Namespace) -> int:
    """Print the catalogue and which datasets are found."""
    from dataclasses import asdict

    from wbcrepro.data import catalog
    from wbcrepro.data.sources import find_layout

    found = {name: find_layout(entry, arguments.data) for name, entry in catalog.datasets().items()}
    if arguments.json:
        rows = [asdict(entry) | {"found": found[name] is not None} for name, entry in catalog.datasets().items()]
        print(json.dumps({"schema": 1, "datasets": rows}, indent=1))
        return 0
    print(f"{'name':13} {'access':8} {'images':>7}  {'found':5}  licence\n{'':13} title")
    for name, entry in catalog.datasets().items():
        images = entry.images["total"] if entry.images["total"] is not None else "?"
        there = "yes" if found[name] else "no"
        print(f"{name:13} {entry.access:8} {images:>7}  {there:5}  {entry.licence['name']}\n{'':13} {entry.title}")
    print("\naccess: " + "; ".join(f"{key} = {text}" for key, text in catalog.ACCESS.items()))
    print(f"looked in: {arguments.data}; get one with: wbcrepro data fetch NAME --data {arguments.data}")
    return 0


def run_fetch(arguments: argparse.Namespace) -> int:
    """Download or explain."""
    from wbcrepro.data import catalog
    from wbcrepro.data.fetch import fetch

    fetch(catalog.dataset(arguments.name), arguments.data, progress=not arguments.no_progress)
    return 0


def run_verify(arguments: argparse.Namespace) -> int:
    """Check every file and say what was found."""
    from wbcrepro.data.verify import check

    source = _open(arguments)
    report = check(arguments.name, source, arguments.data)
    path = arguments.store / "cache" / "manifests" / f"{source.manifest.name}.csv"
    source.manifest.save(path)
    _summary(source)
    for title, rows in (
        ("quarantined, never used", report.quarantined[["path", "reason"]]),
        ("identical files", report.duplicates[["sha256", "path", "source_label"]]),
        ("identical files with different labels", report.conflicts[["sha256", "path", "source_label"]]),
    ):
        _print_rows(title, rows)
    for problem in (*report.wrong, *report.missing):
        print(f"  ! {problem}")
    print(f"checksums compared: {report.sums_checked}; manifest written to {path}")
    meaning = {
        "complete": "everything that was published is there and sound",
        "readable": "every image can be read; how many were published is not known",
        "incomplete": "what is there is sound, but images are missing: results will not be those of the whole dataset",
        "wrong": "see the lines above; quarantined images are left out everywhere",
    }[report.verdict]
    print(f"{arguments.name}: {report.verdict} ({meaning})")
    return 0 if report.verdict in ("complete", "readable", *(["incomplete"] if arguments.partial else [])) else 3


def run_preview(arguments: argparse.Namespace) -> int:
    """Summary and contact sheet."""
    from wbcrepro.data.preview import contact_sheet, save_sheet

    source = _open(arguments)
    _summary(source)
    sheet = contact_sheet(source, per_class=max(1, arguments.per_class))
    path = arguments.output or arguments.store / "cache" / f"preview-{source.manifest.name}.png"
    print(f"contact sheet: {save_sheet(sheet, path)}")
    return 0


def _open(arguments: argparse.Namespace) -> FileSource:
    from wbcrepro.data.sources import open_dataset

    return open_dataset(
        arguments.name, arguments.data, arguments.store / "cache", progress=not arguments.no_progress,
        mapping=arguments.mapping,
    )  # fmt: skip


def _summary(source: FileSource) -> None:
    frame = source.manifest.frame
    usable = frame[frame["status"] == "ok"]
    print(f"{source.manifest.name}: {len(usable)} usable images of {len(frame)}, digest {source.manifest.digest[:16]}")
    for name, count in source.manifest.counts().items():
        print(f"  {name:22} {count:6}")
    without = usable["source_label"][usable["label"] == ""].replace("", "(no label)").value_counts()
    for name, count in without.items():
        print(f"  {name:22} {count:6}   no class in this mapping")
    groups = usable["group"][usable["group"] != ""].nunique()
    sizes = usable.groupby(["width", "height"]).size().sort_values(ascending=False)
    shown = ", ".join(f"{width}x{height} ({count})" for (width, height), count in sizes.head(3).items())
    print(f"  groups: {groups or 'none named, so splits are by image'}; splits: {_values(usable['split'])}")
    print(f"  domains: {_values(usable['domain'])}; sizes: {shown}{' ...' if len(sizes) > 3 else ''}")


def _values(column: pd.Series) -> str:
    return ", ".join(f"{key} ({count})" for key, count in column[column != ""].value_counts().items()) or "none"


def _print_rows(title: str, rows: pd.DataFrame, limit: int = 20) -> None:
    if len(rows):
        print(f"{title}: {len(rows)}")
        for row in rows.head(limit).itertuples(index=False):
            print("  " + "  ".join(value[:12] if len(value) == 64 else value for value in row))
        if len(rows) > limit:
            print(f"  ... and {len(rows) - limit} more; the manifest lists all")
