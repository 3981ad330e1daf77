"""``wbcrepro results``: export, check and list the small results that travel with the repository."""

from __future__ import annotations

import argparse
from pathlib import Path

from wbcrepro.commands._options import add_experiment_options, plans


def register(subparsers: argparse._SubParsersAction) -> None:
    """Add the command."""
    parser = subparsers.add_parser("results", help="export, check or list the committed results below results/")
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    export = actions.add_parser("export", help="write the finished cells' probabilities and tables below results/")
    add_experiment_options(export)
    export.add_argument(
        "--views", help="what to keep of each cell: none,code,dihedral (view averages) or swad,last,best (default: all)"
    )
    export.set_defaults(run=run_export)
    rebuild = actions.add_parser("rebuild", help="recompute every committed table and compare it byte for byte")
    rebuild.add_argument(
        "--write", action="store_true", help="replace tables that differ (after a change of the tables' code)"
    )
    rebuild.set_defaults(run=run_rebuild)
    listing = actions.add_parser("list", help="list committed results with date, hardware and commit")
    listing.set_defaults(run=run_list)
    for action in (export, rebuild, listing):
        action.add_argument(
            "--results", type=Path, default=Path("results"), help="folder of results (default: results)"
        )


def run_export(arguments: argparse.Namespace) -> int:
    """Export one folder per plan."""
    from wbcrepro.experiments.store import Store
    from wbcrepro.report.designs import design_of
    from wbcrepro.report.results import export_results

    views = None if arguments.views is None else [v.strip() for v in arguments.views.split(",") if v.strip()]
    store = Store(arguments.store)
    for plan in plans(arguments, store):
        folder = export_results(design_of(plan.paper).read(plan, store), arguments.results, views=views)
        size = sum(path.stat().st_size for path in folder.iterdir())
        print(f"{folder}: {len(list(folder.iterdir()))} files, {size / 1e6:.2f} MB")
    return 0


def run_rebuild(arguments: argparse.Namespace) -> int:
    """Compare, or with ``--write`` replace; 1 when something differs."""
    from wbcrepro.report.results import check_results, list_results, rebuild_tables

    wrong = []
    for folder in list_results(arguments.results):
        if arguments.write:
            for old in folder.glob("*.csv"):
                old.unlink()
            for name, text in rebuild_tables(folder).items():
                (folder / name).write_text(text, encoding="utf-8")
        found = check_results(folder)
        print(f"{folder}: {'agrees' if not found else 'DIFFERS'}")
        wrong += found
    print("\n".join(wrong), end="\n" if wrong else "")
    return 1 if wrong else 0


def run_list(arguments: argparse.Namespace) -> int:
    """One line per folder."""
    from wbcrepro.report.results import list_results, open_results

    for folder in list_results(arguments.results):
        found = open_results(folder)
        facts = "; ".join(", ".join(found.facts(name)) for name in ("date", "hardware", "commit"))
        kind = "synthetic" if found.synthetic else "real images"
        done = sum(member.done for member in found.members)
        print(f"{folder}: {done} of {len(found.members)} cells, {kind}; {facts}")
    return 0
