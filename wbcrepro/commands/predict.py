"""``wbcrepro predict``: labels for new images, in WBCBench's submission format."""

from __future__ import annotations

import argparse
import csv
import os
import sys
from pathlib import Path

from wbcrepro.commands._options import add_device_option, add_store_option
from wbcrepro.errors import UsageError


def register(subparsers: argparse._SubParsersAction) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "predict",
        help="label new images with finished classifiers (not for diagnosis)",
        description="Label images with one or more finished head cells (several are averaged). Writes ID,labels, the "
        "schema of WBCBench 2026. Not for diagnosis.",
    )
    parser.add_argument("images", nargs="+", type=Path, help="image files or folders of images")
    parser.add_argument("--run", dest="runs", action="append", required=True, metavar="ID", help="head cell (repeat)")
    parser.add_argument("-o", "--output", type=Path, default=Path("submission.csv"), help="default: submission.csv")
    add_store_option(parser)
    add_device_option(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Predict every image; damaged images are named, left out of the file, and make the exit code 3."""
    from tqdm.auto import tqdm

    from wbcrepro.data.decode import DecodeError
    from wbcrepro.experiments.environment import resolve_device
    from wbcrepro.experiments.predict import image_files, load_predictor, predict_files
    from wbcrepro.experiments.store import Store

    if not arguments.output.parent.is_dir() or arguments.output.is_dir():
        raise UsageError(f"--output {arguments.output}: expected a file in a folder that exists")
    store, device = Store(arguments.store), resolve_device(arguments.device)
    files = image_files(arguments.images)
    names = [path.name for path in files]
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UsageError(f"two images are called {twice}; the submission format tells images apart by file name only")
    predictors = [load_predictor(store, run, device) for run in arguments.runs]
    if len({p.classes for p in predictors}) > 1:
        raise UsageError("the runs were trained on different class lists and cannot be averaged")
    for predictor in predictors:
        print(f"{predictor.cell.id}: {predictor.words}", file=sys.stderr)
    rows, damaged = [], []
    found = predict_files(predictors, files)
    for path, probabilities in tqdm(found, total=len(files), unit="image", disable=arguments.no_progress):
        if isinstance(probabilities, DecodeError):
            damaged.append(f"{path}: {probabilities}")
        else:
            rows.append((path.name, predictors[0].classes[int(probabilities.argmax())]))
    temporary = arguments.output.with_name(f".{arguments.output.name}.part")
    with temporary.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("ID", "labels"), *rows])
    os.replace(temporary, arguments.output)
    print(f"{len(rows)} images labelled in {arguments.output}. Not for diagnosis.")
    for line in damaged:
        print(f"left out: {line}", file=sys.stderr)
    return 3 if damaged else 0
