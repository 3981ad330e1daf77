"""Options that several commands share, and the plan that they describe."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from wbcrepro.errors import UsageError

if TYPE_CHECKING:
    from wbcrepro.experiments.plan import Plan
    from wbcrepro.experiments.store import Store


def add_experiment_options(parser: argparse.ArgumentParser) -> None:
    """``--paper --profile --data --dataset --weights --store``."""
    parser.add_argument("--paper", default="all", help="short name (boda, decoupled, rescue, sada), or all (default)")
    parser.add_argument("--profile", default="demo", help="tiny, demo (default), mini or paper")
    parser.add_argument("--data", type=Path, help="folder that holds datasets in their published layouts")
    parser.add_argument("--dataset", help="benchmark to use instead of the one that the profile names, or folder:PATH")
    parser.add_argument("--weights", help="package, hub, random, or a file (one network; default: the profile's)")
    parser.add_argument(
        "--accumulate", type=int, metavar="N", help="split each optimiser batch into N passes (256 on small cards: 4)"
    )
    add_store_option(parser)


def add_store_option(parser: argparse.ArgumentParser) -> None:
    """``--store``."""
    parser.add_argument("--store", type=Path, default=Path("runs"), help="folder of results (default: runs)")


def add_device_option(parser: argparse.ArgumentParser) -> None:
    """``--device`` and ``--no-progress``."""
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda, cuda:1, mps")
    parser.add_argument("--no-progress", action="store_true", help="no progress bars")


def chosen_papers(arguments: argparse.Namespace) -> tuple[str, ...]:
    """The papers that ``--paper`` names; ``UsageError`` for an unknown one."""
    from wbcrepro.papers import load_paper, paper_names

    if arguments.paper == "all":
        return paper_names()
    load_paper(arguments.paper)
    return (arguments.paper,)


def plans(arguments: argparse.Namespace, store: Store) -> list[Plan]:
    """One plan per chosen paper."""
    from wbcrepro.experiments.plan import make_plan

    if arguments.data is not None and not arguments.data.is_dir():
        raise UsageError(f"--data {arguments.data} is not a folder; give the folder that holds the datasets' folders")
    return [
        make_plan(
            paper,
            arguments.profile,
            store=store,
            data=arguments.data,
            dataset=arguments.dataset,
            weights=arguments.weights,
            accumulate=arguments.accumulate,
        )
        for paper in chosen_papers(arguments)
    ]
