"""Real results that travel with the repository: small files of probabilities from which every table is rebuilt.

``results/<paper>/<benchmark>-<profile>/`` holds ``items-<set>.npz`` (ids, labels), one
``probabilities-<set>-<preset>-<method>.npz`` for each group of cells, ``provenance.json``, and the tables as CSV. In
a probabilities file each cell has arrays ``<id>/<view>`` (N, C) float16: for papers of ``design: two_stage`` the
identity view and the two view averages, for ``domains`` (``domain_results``) the three rules that select weights. What
``rescue`` keeps is in ``rescue_results``.
Weights and images are never written, and no label of a data set whose licence forbids passing labels on.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from wbcrepro.data.benchmarks import datasets_of
from wbcrepro.data.catalog import dataset
from wbcrepro.errors import CellsMissing, DataMissing, UsageError
from wbcrepro.papers import load_paper
from wbcrepro.report import domain_results, rescue_results
from wbcrepro.report.archive import Arrays, write_npz
from wbcrepro.report.claims import evaluate_claims, findings_frame
from wbcrepro.report.domain_predictions import SELECTIONS, DomainPredictions
from wbcrepro.report.evaluate import BOOTSTRAP_SEED, Evaluator
from wbcrepro.report.predictions import TEST_SETS, VIEWS, Member, Predictions, Scored
from wbcrepro.report.rescue_predictions import VIEWS as RESCUE_VIEWS
from wbcrepro.report.tables import build_table

SCHEMA = 1
FILE_LIMIT, TOTAL_LIMIT = 1_000_000, 10_000_000
LABELS_MAY_TRAVEL = ("with attribution", "under its terms", "not by this project")
"""What ``licence.redistribution`` in the catalogue may say of datasets whose labels are exported. The last is said of
images from repositories under MIT: we copy no image, but their licence allows names and labels to be passed on."""


def export_results(
    predictions: Predictions | DomainPredictions, root: Path, *, views: Iterable[str] | None = None
) -> Path:
    """Write the finished cells of one paper, profile and benchmark below ``root`` and return the folder.

    ``views``: which of the stored averages or selections to keep (default: all of the paper's design). Raises
    ``CellsMissing`` when no cell has finished, ``UsageError`` for unknown views, where labels may not be passed on or
    where a file would exceed the limits (then nothing is left behind).
    """
    if not predictions.synthetic:
        _check_licences(predictions.benchmark)
    done = [m for m in predictions.members if m.done]
    if not done:
        raise CellsMissing(f"no finished cell to export. Make them with: {predictions.make_command()}")
    form = FORMATS[predictions.paper["design"]]
    views = tuple(form.views if views is None else views)
    if not views or set(views) - set(form.views):
        raise UsageError(f"views {', '.join(views)}: expected some of {', '.join(form.views)}")
    folder = root / predictions.paper["name"] / f"{predictions.benchmark}-{predictions.profile}"
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    provenance = _provenance(predictions, done, form.write(predictions, done, folder, views), views)
    (folder / "provenance.json").write_text(json.dumps(provenance, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    for name, text in rebuild_tables(folder).items():
        (folder / name).write_text(text, encoding="utf-8")
    _check_sizes(folder)
    return folder


def _write_arrays(predictions: Predictions, done: list[Member], folder: Path, views: tuple[str, ...]) -> dict[str, str]:
    files: dict[str, str] = {}
    for on in (s for s in TEST_SETS if predictions.read(done[0], s) is not None):
        first = predictions.read(done[0], on)
        items = {"ids": first.ids.astype(str), "labels": first.labels.astype(np.int16)}
        files[f"items-{on}.npz"] = write_npz(folder / f"items-{on}.npz", items)
        for preset, method in dict.fromkeys((m.preset, m.method) for m in done):
            arrays = {}
            for member in (m for m in done if (m.preset, m.method) == (preset, method)):
                for view in views:
                    found = predictions.read(member, on, view)
                    if not np.array_equal(found.ids, first.ids):
                        raise ValueError(f"{member.id} predicts other images of {on} than {done[0].id}")
                    arrays[f"{member.id}/{view}"] = found.probabilities.astype(np.float16)
            name = f"probabilities-{on}-{preset}-{method}.npz"
            files[name] = write_npz(folder / name, arrays)
    return files


def _provenance(predictions: Predictions | DomainPredictions, done: list, files: dict, views: tuple[str, ...]) -> dict:
    bootstrap = predictions.paper["profiles"].get(predictions.profile, {}).get("bootstrap", 1000)
    return {
        "schema": SCHEMA,
        "paper": predictions.paper["name"],
        "profile": predictions.profile,
        "benchmark": predictions.benchmark,
        "caption": predictions.caption,
        "synthetic": predictions.synthetic,
        "data_digest": predictions.data_digest,
        "classes": list(predictions.classes),
        "views": list(views),
        "notes": list(getattr(predictions, "notes", ())),
        **({"controls": list(predictions.controls)} if hasattr(predictions, "controls") else {}),
        "bootstrap": {"n": bootstrap, "seed": BOOTSTRAP_SEED},
        "cells_done": len(done),
        "command": f"make reproduce PAPER={predictions.paper['name']} PROFILE={predictions.profile} "
        f"DATASET={predictions.benchmark} DATA=<folder of the images>",
        "commit": predictions.facts("commit"),
        "hardware": predictions.facts("hardware"),
        "date": predictions.facts("date"),
        "seconds": round(sum(float(m.facts.get("seconds") or 0) for m in done)),
        "cells": [asdict(m) for m in predictions.members],
        "files": files,
    }


def _check_licences(benchmark: str) -> None:
    """:raises UsageError: the labels of a dataset of this benchmark may not be passed on, or nobody knows"""
    said = {name: dataset(name).licence["redistribution"] for name in datasets_of(benchmark)}
    refused = [f'{name} ("{words}")' for name, words in said.items() if words not in LABELS_MAY_TRAVEL]
    if refused or not said:
        why = f"the licence forbids passing labels on: {', '.join(refused)}" if said else "it is not in the catalogue"
        raise UsageError(
            f"the results of {benchmark} are not exported, because {why}. Keep the store; share the tables with: "
            "wbcrepro report --csv"
        )


def _check_sizes(folder: Path) -> None:
    sizes = {path.name: path.stat().st_size for path in folder.iterdir()}
    total = sum(path.stat().st_size for path in folder.parents[1].rglob("*") if path.is_file())
    large = [f"{name} has {size:,} bytes" for name, size in sizes.items() if size > FILE_LIMIT]
    if total > TOTAL_LIMIT:
        large.append(f"all results together have {total:,} bytes")
    if large:
        for name in sizes:
            (folder / name).unlink()
        raise UsageError(
            f"results are limited to {FILE_LIMIT:,} bytes a file and {TOTAL_LIMIT:,} in all, but {'; '.join(large)}. "
            "Nothing was kept. Export fewer view averages (--views code)."
        )


def list_results(root: Path, paper: str | None = None) -> list[Path]:
    """Folders below ``root`` that hold results, sorted."""
    return sorted(p.parent for p in Path(root).glob(f"{paper or '*'}/*/provenance.json"))


def open_results(folder: Path) -> Predictions | DomainPredictions:
    """Committed results as the predictions of their paper's design. ``DataMissing`` when the folder holds none."""
    value = _read_provenance(folder)
    return FORMATS[load_paper(value["paper"])["design"]].open(folder, value)


def _read_provenance(folder: Path) -> dict:
    path = folder / "provenance.json"
    if not path.is_file():
        raise DataMissing(f"{folder} holds no results (no provenance.json). List them with: wbcrepro results list")
    return json.loads(path.read_text(encoding="utf-8"))


def _open_arrays(folder: Path, value: dict) -> Predictions:
    members = tuple(Member(**{**cell, "train_counts": tuple(cell["train_counts"])}) for cell in value["cells"])
    groups = {m.id: (m.preset, m.method) for m in members}
    arrays = Arrays(folder)

    def reader(member_id: str, on: str, view: str) -> Scored | None:
        items = arrays.get(f"items-{on}.npz")
        preset, method = groups[member_id]
        found = arrays.get(f"probabilities-{on}-{preset}-{method}.npz").get(f"{member_id}/{view}")
        if not items or found is None:
            return None
        return Scored(items["ids"], items["labels"].astype(np.int64), found.astype(np.float64))

    options = f"--profile {value['profile']} --dataset {value['benchmark']}"
    options += "" if value["synthetic"] else " --data FOLDER_OF_THE_IMAGES"
    return Predictions(
        load_paper(value["paper"]), value["profile"], value["benchmark"], value["caption"], value["synthetic"],
        value["data_digest"], tuple(value["classes"]), members, reader, options,
    )  # fmt: skip


def rebuild_tables(folder: Path) -> dict[str, str]:
    """``{file name: CSV text}`` of every table of a results folder, computed from its probabilities."""
    predictions, n = open_results(folder), _read_provenance(folder)["bootstrap"]["n"]
    return FORMATS[predictions.paper["design"]].tables(predictions, n)


def _tables(predictions: Predictions, n: int) -> dict[str, str]:
    found: dict[str, str] = {}
    presets = dict.fromkeys(m.preset for m in predictions.members)
    for name, definition in predictions.paper["tables"].items():
        if "rows" not in definition:
            continue
        for on in predictions.sets():
            evaluator = Evaluator(predictions, on, n)
            for preset in presets:
                table = build_table(predictions, name, on=on, preset=preset, evaluator=evaluator)
                if table.any_result:
                    found[f"{name}-{on}-{preset}.csv"] = table.to_csv()
    findings = findings_frame(predictions, evaluate_claims(predictions, n=n))
    found["claims.csv"] = findings.to_csv(index=False, float_format="%.2f", lineterminator="\n")
    return found


def check_results(folder: Path) -> list[str]:
    """What differs between the committed tables and those rebuilt from the probabilities; empty when nothing does."""
    wrong = []
    for name, digest in _read_provenance(folder)["files"].items():
        path = folder / name
        if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != digest:
            wrong.append(f"{path} is missing or differs from the digest in provenance.json")
    if wrong:
        return wrong
    rebuilt = rebuild_tables(folder)
    for name, text in rebuilt.items():
        path = folder / name
        if not path.is_file() or path.read_bytes() != text.encode():
            wrong.append(f"{path} differs from the table that its probabilities give")
    stray = {p.name for p in folder.glob("*.csv")} - set(rebuilt)
    return wrong + [f"{folder / name} is rebuilt by nothing" for name in sorted(stray)]


@dataclass(frozen=True)
class Format:
    """How the results of one design are written, opened and turned into tables."""

    views: tuple[str, ...]
    write: Callable
    open: Callable
    tables: Callable


FORMATS = {
    "two_stage": Format(tuple(VIEWS), _write_arrays, _open_arrays, _tables),
    "domains": Format(
        SELECTIONS,
        domain_results.write_domain_arrays,
        domain_results.open_domain_results,
        domain_results.rebuild_domain_tables,
    ),
    "rescue": Format(
        RESCUE_VIEWS,
        rescue_results.write_rescue_arrays,
        rescue_results.open_rescue_results,
        rescue_results.rebuild_rescue_tables,
    ),
}
