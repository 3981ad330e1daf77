"""``wbcrepro plan``: which cells a profile needs and which are done."""

from __future__ import annotations

import argparse
import json

from wbcrepro.commands._options import add_experiment_options, plans


def register(subparsers: argparse._SubParsersAction) -> None:
    """Add the command."""
    parser = subparsers.add_parser("plan", help="list the cells (steps) that a profile needs, and which are done")
    add_experiment_options(parser)
    parser.add_argument("--json", action="store_true", help="print the plans as JSON")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the plan and write it to ``STORE/plan.json``."""
    from wbcrepro.experiments.plan import save_plan
    from wbcrepro.experiments.run import SHOWN_LABELS
    from wbcrepro.experiments.store import Store

    store = Store(arguments.store)
    found = plans(arguments, store)
    for plan in found:
        path = save_plan(plan, store)
    if arguments.json:
        print(json.dumps({"schema": 1, "plans": [plan.to_json(store) for plan in found]}, indent=1, sort_keys=True))
        return 0
    for plan in found:
        done = sum(store.done(cell.id) for cell in plan.cells)
        print(f"{plan.paper}, profile {plan.profile}, {plan.benchmark.name}: {len(plan.cells)} cells, {done} done")
        for cell in plan.cells:
            shown = (*SHOWN_LABELS, "scale", "tier", "without")
            words = [f"{key}={cell.labels[key]}" for key in shown if key in cell.labels]
            print(f"  {'done' if store.done(cell.id) else '    '}  {cell.id:22}  {' '.join(words)}")
    print(f"written to {path}; run one with: wbcrepro run-cell ID, all with: wbcrepro reproduce")
    return 0
