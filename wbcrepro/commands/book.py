"""``wbcrepro book``: execute the notebooks that are due and render the book."""

from __future__ import annotations

import argparse
from pathlib import Path


def register(subparsers: argparse._SubParsersAction) -> None:
    """Add the command."""
    from wbcrepro.commands._options import add_experiment_options

    parser = subparsers.add_parser(
        "book",
        help="execute the notebooks that changed and render the book",
        description="Execute the notebooks whose source, package, parameters or cells changed (they only read the "
        "store; what is missing shows as a marked hole), then build the pages, offline and with warnings as errors.",
    )
    add_experiment_options(parser)
    parser.add_argument("--results", type=Path, help="folder of committed real results (default: results)")
    parser.add_argument("--only", metavar="NOTEBOOK", help="execute this notebook only; the others stay as they are")
    parser.add_argument("--force", action="store_true", help="execute the notebooks even when nothing changed")
    parser.add_argument(
        "--pair", action="store_true", help="only write notebooks/*.ipynb (for Colab) from notebooks/*.py"
    )
    parser.add_argument("--workers", type=int, default=2, help="notebooks executed at a time (default: 2)")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Execute, stage, build, and say where the book is."""
    from wbcrepro.book.build import build, stage
    from wbcrepro.book.execute import execute_due, jobs
    from wbcrepro.book.generated import generated
    from wbcrepro.book.layout import Inputs, Layout
    from wbcrepro.book.pair import write_pairs
    from wbcrepro.commands._options import chosen_papers

    layout = Layout.find()
    if arguments.pair:
        changed = write_pairs(layout)
        print("\n".join(f"wrote {path.relative_to(layout.root)}" for path in changed) or "the pairs agree already")
        return 0
    chosen_papers(arguments)
    inputs = Inputs(
        arguments.profile, arguments.store, arguments.data, arguments.dataset, arguments.results, arguments.weights,
        arguments.accumulate,
    )  # fmt: skip
    done = execute_due(jobs(layout, inputs, arguments.only), force=arguments.force, workers=arguments.workers)
    print(f"{len(done)} notebooks executed, {len(layout.sources) - len(done)} as they were; building the pages")
    absent = stage(layout, generated(layout, arguments.store))
    for name in absent:
        print(f"chapter {name}: no executed notebook; its page says so")
    print(f"The book: {build(layout)}")
    return 0
