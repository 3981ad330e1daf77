"""``wbcrepro run-cell``: run one cell of a plan."""

from __future__ import annotations

import argparse
import json

from wbcrepro.commands._options import add_device_option, add_experiment_options, plans
from wbcrepro.errors import UsageError


def register(subparsers: argparse._SubParsersAction) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "run-cell",
        help="run one cell (its parents must be done)",
        description="Run one cell of the plan that the other options describe. A cell that is done is not run again; "
        "one that was interrupted goes on where it stopped.",
    )
    parser.add_argument("id", help="the cell's id, from: wbcrepro plan")
    add_experiment_options(parser)
    add_device_option(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the cell and print its metrics."""
    from wbcrepro.experiments.environment import resolve_device
    from wbcrepro.experiments.run import run_cell
    from wbcrepro.experiments.store import Store

    store = Store(arguments.store)
    for plan in plans(arguments, store):
        if any(cell.id == arguments.id for cell in plan.cells):
            device = resolve_device(arguments.device)
            stored = run_cell(plan.cell(arguments.id), plan, store, device=device, progress=not arguments.no_progress)
            print(json.dumps(stored.metrics, indent=1, sort_keys=True))
            return 0
    raise UsageError(
        f"no plan has the cell {arguments.id}: profile {arguments.profile}, data {arguments.data}. "
        "A cell belongs to the paper, profile and data it was planned with; list ids with: wbcrepro plan"
    )
