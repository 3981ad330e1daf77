"""``wbcrepro report``: a paper's tables from what the store holds."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from wbcrepro.commands._options import add_experiment_options, chosen_papers, plans

SWITCHES = {
    "selection": "weights swad, last or best",
    "rows": "score all rows, or in_split (the four fifths of the released code)",
    "classes": "macro average over classes of the target, of the list, or occurring in truth or prediction",
}


def register(subparsers: argparse._SubParsersAction) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "report",
        help="print a paper's tables from the cells that are done",
        description="Print a paper's tables, computed from stored predictions. Missing cells are holes, with the "
        "command that fills them. Exit code 4 when no cell of a table has been run.",
    )
    add_experiment_options(parser)
    parser.add_argument("--results", type=Path, help="read a folder of committed results instead of the store")
    parser.add_argument("--table", default="table_1", help="which table (default: table_1)")
    parser.add_argument(
        "--preset", default="paper", help="paper (what the text says, default) or code (what was released)"
    )
    parser.add_argument("--set", dest="on", help="test (default), test_degraded or val; unseen laboratories: test")
    for name, words in SWITCHES.items():
        parser.add_argument(f"--{name}", help=f"unseen laboratories: {words} (default: as the paper's table)")
    parser.add_argument(
        "--without-lone", action="store_true", help="unseen laboratories: leave out classes of a single image"
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="as JSON (schema in the book, page Reproduce)")
    form.add_argument("--csv", action="store_true", help="as CSV, one line per row and metric")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the tables; 4 when one of them has no value at all."""
    from wbcrepro.errors import CellsMissing
    from wbcrepro.report.designs import design_of

    tables = []
    for found in _predictions(arguments):
        options = _options(arguments, found.paper)
        tables.append(design_of(found.paper["name"]).build(found, arguments.table, preset=arguments.preset, **options))
    if arguments.json:
        print(json.dumps({"schema": 1, "tables": [table.to_json() for table in tables]}, indent=1))
    for table in tables:
        if arguments.csv:
            print(table.to_csv(), end="")
        elif not arguments.json:
            print(design_of(table.predictions.paper["name"]).text(table))
    empty = [table for table in tables if not table.any_result]
    if empty:
        words = ", ".join(f"{t.name} on {t.on} (preset {t.preset})" for t in empty)
        raise CellsMissing(f"no cell of {words} has been run. Run them with: {empty[0].predictions.make_command()}")
    return 0


def _options(arguments: argparse.Namespace, paper: dict) -> dict:
    """The options that the paper's design knows; ``UsageError`` for one that it would ignore."""
    from wbcrepro.errors import UsageError

    options = {"on": arguments.on} if arguments.on else {}
    switches = {name: value for name in SWITCHES if (value := getattr(arguments, name)) is not None}
    switches |= {"without_lone": True} if arguments.without_lone else {}
    if switches and paper["design"] != "domains":
        raise UsageError(f"{paper['name']} has no unseen laboratories, so --{next(iter(switches))} means nothing there")
    return options | switches


def _predictions(arguments: argparse.Namespace) -> list:
    from wbcrepro.experiments.store import Store
    from wbcrepro.report.designs import design_of
    from wbcrepro.report.results import open_results

    if arguments.results:
        return [open_results(arguments.results)]
    chosen_papers(arguments)  # an unknown paper is reported before any data is opened
    store = Store(arguments.store)
    return [design_of(plan.paper).read(plan, store) for plan in plans(arguments, store)]
