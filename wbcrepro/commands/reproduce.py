"""``wbcrepro reproduce``: run every missing cell of a profile."""

from __future__ import annotations

import argparse

from wbcrepro.commands._options import add_device_option, add_experiment_options, plans
from wbcrepro.errors import UsageError


def register(subparsers: argparse._SubParsersAction) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "reproduce",
        help="run every cell of a profile that is missing",
        description="Run what is missing of a profile, parents first. Stop it at any moment; run again, it goes on. "
        "Several processes, also on several machines that share the store, may run at once.",
    )
    add_experiment_options(parser)
    add_device_option(parser)
    parser.add_argument(
        "--more",
        type=int,
        default=0,
        metavar="N",
        help="1: ablations and sweeps too; 2: further trials too (default 0)",
    )
    parser.add_argument("--shard", default="0/1", metavar="I/N", help="run the I-th of N parts (I from 0)")
    parser.set_defaults(run=run)


def _parse_shard(text: str) -> tuple[int, int]:
    try:
        index, count = (int(part) for part in text.split("/"))
    except ValueError:
        index, count = -1, 0
    if not 0 <= index < count:
        raise UsageError(f"--shard {text}: expected I/N with 0 <= I < N, for example 0/4")
    return index, count


def run(arguments: argparse.Namespace) -> int:
    """Run the plans; 1 when a cell failed."""
    from wbcrepro.experiments.environment import hardware, resolve_device
    from wbcrepro.experiments.plan import save_plan
    from wbcrepro.experiments.run import run_plan
    from wbcrepro.experiments.store import Store

    shard = _parse_shard(arguments.shard)
    store, device = Store(arguments.store), resolve_device(arguments.device)
    failed: list[str] = []
    for plan in plans(arguments, store):
        save_plan(plan, store)
        data = "synthetic smears" if plan.benchmark.synthetic else plan.benchmark.caption
        asked, left = len(plan.tier(arguments.more)), len(plan.cells) - len(plan.tier(arguments.more))
        rest = f" ({left} more with --more 1 or 2)" if left else ""
        print(f"{plan.paper}: profile {plan.profile}, {asked} cells{rest} on {data}, device {hardware(str(device))}")
        failed += run_plan(
            plan, store, device=device, shard=shard, more=arguments.more, progress=not arguments.no_progress
        )
    if failed:
        print(
            f"{len(failed)} cells failed: {', '.join(failed)}. See error.json below {store.path / 'cells'}."
        )
        return 1
    return 0
