"""From a paper's YAML to the cells that a profile needs, parents before children.

``design: two_stage`` (the paper `decoupled`): one pixel cache per stain setting; per backbone and fold one stage-1
network; its features; per method one classifier. Supervised and retrained rows share their stage-1 network.
"""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from wbcrepro.data.benchmarks import Benchmark, load_benchmark
from wbcrepro.errors import DataMissing, UsageError
from wbcrepro.experiments.cell import SCHEMA, Cell
from wbcrepro.experiments.plan_domains import plan_domains
from wbcrepro.experiments.plan_rescue import plan_rescue
from wbcrepro.experiments.store import Store, write_json
from wbcrepro.experiments.versions import versions_of
from wbcrepro.papers import load_paper, profile_of
from wbcrepro.seeds import derive_seed

BASE_SEED = 42
WEIGHTS = ("auto", "package", "hub", "random")
"""Policies for a network's first weights (``wbcrepro.backbones``); anything else is a file."""


@dataclass(frozen=True)
class Plan:
    """The cells of one paper in one profile on one benchmark, in an order in which they can be run."""

    paper: str
    profile: str
    benchmark: Benchmark
    cells: tuple[Cell, ...]
    weights_file: Path | None = None
    """Where the weights lie that the cells know as ``file:<digest>``; None where the file is not at hand."""
    also: tuple[Benchmark, ...] = ()
    """Further benchmarks that the profile runs part of itself on (a control), known to cells by their name."""
    asked: dict = field(default_factory=dict, compare=False)
    """What the command line was asked for, by option: profile, data, dataset, weights, accumulate, store."""

    @property
    def options(self) -> str:
        """The options that make ``wbcrepro`` see the same plan: to be printed, not stored, for they hold paths."""
        return option_words(self.asked)

    def run_command(self, cell_id: str) -> str:
        """The command that runs one cell."""
        return f"wbcrepro run-cell {cell_id} --paper {self.paper} {self.options}".rstrip()

    def make_command(self) -> str:
        """The command that runs every cell that is missing."""
        return f"wbcrepro reproduce --paper {self.paper} {self.options}".rstrip()

    def benchmark_of(self, cell: Cell) -> Benchmark:
        """The benchmark that a cell's configuration names; the plan's own where it names none."""
        return {b.name: b for b in self.also}.get(cell.config.get("benchmark"), self.benchmark)

    def cell(self, cell_id: str) -> Cell:
        """The cell with this id; ``UsageError`` when the plan has none."""
        for cell in self.cells:
            if cell.id == cell_id:
                return cell
        raise UsageError(
            f"{cell_id} is not a cell of {self.paper} in profile {self.profile} on {self.benchmark.name}. "
            f"List the cells with: wbcrepro plan --paper {self.paper} {self.options or f'--profile {self.profile}'}"
        )

    def find(self, **labels: object) -> list[Cell]:
        """Cells whose labels (preset, method, backbone, fold, ...) have these values."""
        return [c for c in self.cells if all(c.labels.get(key) == value for key, value in labels.items())]

    def tier(self, more: int) -> list[Cell]:
        """The cells that a run with ``--more`` of this value is about; cells without the label are in tier 0."""
        return [cell for cell in self.cells if cell.labels.get("tier", 0) <= more]

    def to_json(self, store: Store | None = None) -> dict:
        """The plan as ``wbcrepro plan --json`` prints it (schema in the book, page *Reproduce*)."""
        cells = []
        for cell in self.cells:
            row = cell.to_json()
            if store is not None:
                row["done"] = store.done(cell.id)
            cells.append(row)
        return {
            "schema": SCHEMA,
            "paper": self.paper,
            "profile": self.profile,
            "benchmark": self.benchmark.name,
            "data_digest": self.benchmark.digest,
            "options": option_words(_without_paths(self.asked)),
            "cells": cells,
        }


def make_plan(
    paper: str,
    profile: str,
    *,
    store: Store,
    data: Path | None = None,
    dataset: str | None = None,
    weights: str | None = None,
    accumulate: int | None = None,
    progress: bool = True,
) -> Plan:
    """Plan a paper. ``dataset`` overrides the benchmark that the profile names; ``weights`` its weights.

    ``accumulate`` splits every optimiser batch into that many passes, for cards that cannot hold it whole; batch
    normalisation then sees the smaller passes, so the cells get other identities. Raises ``UsageError`` for unknown
    names and ``DataMissing`` when the benchmark's images are not below ``data`` or the file of weights is not there.
    """
    document = load_paper(paper)
    settings = profile_of(document, profile)
    if accumulate is not None:
        if accumulate < 1:
            raise UsageError(f"--accumulate {accumulate}: expected 1 or more passes for each optimiser step")
        for key in ("stage1", "optimisation"):  # designs of many small minibatches have no batch to split
            if "accumulate" in settings.get(key, {}):
                settings = settings | {key: settings[key] | {"accumulate": accumulate}}
    name = dataset or settings["benchmark"]
    benchmark = load_benchmark(name, data_root=data, cache=store.cache, progress=progress)
    planner = PLANNERS[document["design"]]
    named, file = named_weights(weights or settings["weights"])
    cells = planner(document, profile, _with_embeddings(settings, data, name), benchmark, named)
    also = []
    for other, changes in (settings.get("also") or {}).items() if dataset is None else ():
        also.append(load_benchmark(other, data_root=data, cache=store.cache, progress=progress))
        cells += planner(document, profile, _with_embeddings(settings | changes, data, other), also[-1], named)
    networks = sorted({cell.config["backbone"] for cell in cells if "weights" in cell.config})
    if named not in WEIGHTS and len(networks) > 1:
        raise UsageError(
            f"--weights {weights}: a file fits one network, and profile {profile} of {paper} trains "
            f"{', '.join(networks)}. Use package, hub or random; on a machine without internet, put the published "
            "files into the folder checkpoints/ of torch's hub cache, where hub finds them"
        )
    unique: dict[str, Cell] = {}
    for cell in cells:
        unique.setdefault(cell.id, cell)  # the first place where a shared cell is needed gives its labels
    asked = {"profile": profile, "data": data, "dataset": dataset, "weights": weights, "accumulate": accumulate}
    return Plan(paper, profile, benchmark, tuple(unique.values()), file, tuple(also), asked | {"store": store.path})


def embeddings_file(data: Path | None, benchmark: str) -> Path | None:
    """Embeddings of a benchmark's images that somebody extracted before: ``DATA/embeddings/<benchmark>.npz`` or
    ``.parquet``; None where there is no such file."""
    found = [data / "embeddings" / f"{benchmark}{suffix}" for suffix in (".npz", ".parquet")] if data else []
    return next((path for path in found if path.is_file()), None)


def _with_embeddings(settings: dict, data: Path | None, benchmark: str) -> dict:
    """The profile's settings, its embedder replaced by the file of embeddings beside the data, if there is one."""
    file = embeddings_file(data, benchmark) if "embedder" in settings else None
    return settings if file is None else settings | {"embedder": {"file": digest_of_file(file)}}


def digest_of_file(path: Path) -> str:
    """The first 12 digits of a file's sha256."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:12]


def option_words(asked: dict) -> str:
    """Options as a shell reads them; those that were not given are left out."""
    return " ".join(f"--{name} {shlex.quote(str(value))}" for name, value in asked.items() if value is not None)


def _without_paths(asked: dict) -> dict:
    """Options fit to be stored: a file of weights by its digest, a word for the folders."""
    told = {name: value for name, value in asked.items() if name != "store"}
    if told.get("data"):
        told["data"] = "FOLDER_OF_THE_DATASETS"
    if told.get("weights"):
        told["weights"] = named_weights(told["weights"])[0]
    if ":" in str(told.get("dataset")):
        told["dataset"] = told["dataset"].partition(":")[0] + ":PATH"
    return told


def named_weights(weights: str) -> tuple[str, Path | None]:
    """What cells call weights, a policy or ``file:<digest>``, and the path of the file.

    ``file:<digest>`` itself may be given where the file is gone: its cells can then be read, not run. Raises
    ``DataMissing`` for a file that is not there.
    """
    if weights in WEIGHTS or re.fullmatch("file:[0-9a-f]{12}", weights):
        return weights, None
    path = Path(weights)
    if not path.is_file():
        raise DataMissing(f"--weights {weights}: expected {', '.join(WEIGHTS)}, or a file, and there is no such file")
    return f"file:{digest_of_file(path)}", path


def save_plan(plan: Plan, store: Store) -> Path:
    """Write ``STORE/plan.json``; plans of other papers and options that are there stay."""
    path = store.path / "plan.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        plans = {(p["paper"], p["options"]): p for p in json.loads(path.read_text())["plans"]}
    except (OSError, ValueError, KeyError):
        plans = {}
    value = plan.to_json()
    plans[value["paper"], value["options"]] = value
    write_json(path, {"schema": SCHEMA, "plans": [plans[key] for key in sorted(plans)]})
    return path


def _two_stage(paper: dict, profile: str, settings: dict, benchmark: Benchmark, weights: str) -> list[Cell]:
    cells: list[Cell] = []
    for preset, roles in settings["presets"].items():
        switches = paper["presets"][preset]
        pixels = Cell(
            "pixels",
            {
                "benchmark": benchmark.name,
                "data_digest": benchmark.digest,
                "stain": switches["stain"],
                **settings["pixels"],
            },
            versions=versions_of("pixels"),
            labels={"profile": profile, "preset": preset},
        )
        cells.append(pixels)
        folds = _folds(settings, benchmark)[: None if switches["protocol"] == "folds" else 1]
        for role in roles:
            for fold in folds:
                labels = {"profile": profile, "preset": preset, "backbone": role, "fold": fold}
                cells += _chain(paper, settings, benchmark, weights, switches, pixels, labels)
    return cells


def _folds(settings: dict, benchmark: Benchmark) -> list[int]:
    """The profile's folds that the benchmark has: a benchmark with one split has fold 0 only."""
    table = benchmark.table
    there = set(table.loc[table["set"] == "train", "fold"])
    folds = [fold for fold in settings["folds"] if fold in there]
    if not folds:
        raise UsageError(
            f"{benchmark.name} has the folds {sorted(map(int, there))} and the profile runs {settings['folds']}: "
            "none in common. Choose another DATASET"
        )
    return folds


def _chain(
    paper: dict, settings: dict, benchmark: Benchmark, weights: str, switches: dict, pixels: Cell, labels: dict
) -> list[Cell]:
    """Stage 1, its features, and the classifiers of one backbone and fold."""
    fold, role = labels["fold"], labels["backbone"]
    backbone = settings["backbones"][role]
    train = Cell(
        "train",
        {
            "benchmark": benchmark.name,
            "fold": fold,
            "backbone": backbone,
            "weights": weights,
            "head": switches["head"],
            "optimisation": {**paper["stage1"], **settings["stage1"]},
            "seed": derive_seed(BASE_SEED, paper["name"], "stage1", backbone, fold),
        },
        (pixels.id,),
        versions_of("train"),
        labels,
    )
    cells = [train]
    features: dict[str, Cell] = {}
    for method in settings["methods"][labels["preset"]]:
        head = paper["methods"][method]["head"]
        online = head == "crt" and switches["bn_stage2"] == "train"
        checkpoint = "best" if head == "as_trained" else switches["handover"]
        if not online and checkpoint not in features:
            config = {"benchmark": benchmark.name, "fold": fold, "checkpoint": checkpoint, "passes": settings["passes"],
                      "augment": paper["stage1"]["augment"]}  # fmt: skip
            features[checkpoint] = Cell("features", config, (train.id,), versions_of("features"), labels)
            cells.append(features[checkpoint])
        config = {
            "paper": paper["name"],
            "profile": labels["profile"],
            "preset": labels["preset"],
            "benchmark": benchmark.name,
            "fold": fold,
            "backbone": backbone,
            "method": method,
            "head": head,
            "seed": derive_seed(BASE_SEED, paper["name"], "stage2", backbone, fold, method),
        }
        if head == "crt":
            config |= {
                "classifier": switches["head"],
                "online": online,
                "select": "best" if switches["handover"] == "best" else "last",
                "optimisation": {**paper["stage2"], **settings["stage2"], "variant": switches["focal_variant"]},
            }
        if online:
            config |= {"checkpoint": checkpoint}
            if settings["stage1"]["accumulate"] > 1:
                config["optimisation"]["accumulate"] = settings["stage1"]["accumulate"]
        parent = train if online else features[checkpoint]
        versions = versions_of("online_head" if online else "head")
        cells.append(Cell("head", config, (parent.id,), versions, {**labels, "method": method}))
    return cells


PLANNERS: dict[str, Callable[..., list[Cell]]] = {
    "two_stage": _two_stage,
    "domains": plan_domains,
    "rescue": plan_rescue,
}
