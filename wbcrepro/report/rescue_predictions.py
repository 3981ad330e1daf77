"""Stored runs of ``design: rescue``: networks, second branch, measurements, rules and traces, on their benchmarks.

Two origins give the same object: the cells of a store (`from_rescue_plan`) and the committed files below ``results/``
(`wbcrepro.report.rescue_results`). Nothing after this module knows which one it reads. A plan may hold a second
benchmark, the control without cues; members name theirs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from wbcrepro.inference.tta import RESCUE_WEIGHTS, combine_views
from wbcrepro.report.predictions import StoredRun
from wbcrepro.rescue.morphology import Morphology
from wbcrepro.rescue.rules import Rules
from wbcrepro.rescue.trace import Trace

if TYPE_CHECKING:
    from wbcrepro.data.benchmarks import Benchmark
    from wbcrepro.experiments.cell import Cell
    from wbcrepro.experiments.plan import Plan
    from wbcrepro.experiments.store import Store, StoredCell

NETWORKS = ("tta", "head")
MEASURED = ("released_morphology", "morphology")
"""Kinds of cells that measure, the one first that a preset's rules ask for if it is planned."""
KINDS = (*NETWORKS, "rescored", "semantic", *MEASURED, "rescue", "cells", "restored")
TESTS = ("test", "test_degraded")
VIEWS = ("identity", "tta")
"""The image as it is, and the average over the eight views of the released code (seven are distinct)."""


@dataclass(frozen=True)
class RescueMember:
    """One planned cell. ``presets``: those that use it; networks are shared where the presets' networks are equal."""

    id: str
    kind: str
    benchmark: str
    presets: tuple[str, ...] = ()
    row: str = ""
    fold: int = -1
    folds: str = ""
    """What the folds keep apart: ``group`` (patients, where they are known) or ``image``."""
    method: str = ""
    rules: str = ""
    """Of a rescue: which of the paper's ``rules``."""
    noise: str = ""
    """Of restored images: the noise of the pairs that their network was trained on."""
    network: str = ""
    done: bool = False
    train_counts: tuple[int, ...] = ()
    metrics: dict = field(default_factory=dict, compare=False)
    """``metrics.json`` of cells that isolate or restore; empty for others."""
    facts: dict = field(default_factory=dict, compare=False)
    """Seed, commit, hardware, date and versions of the run; empty while it is missing."""


@dataclass(frozen=True)
class RescueScored:
    """Probabilities (N, C) float64 with ids and groups (N,) text ("" where unknown) and label codes (N,) int64."""

    ids: np.ndarray
    labels: np.ndarray
    groups: np.ndarray
    probabilities: np.ndarray


RescueReader = Callable[[str, str], dict | None]
"""(member id, part) -> arrays of ``predictions``, ``trace`` or ``morphology``, or the JSON of ``rules``, or None.

``morphology`` is given by set: ``columns``, ``<s>_ids``, ``<s>_features``, ``<s>_status`` for s of train and the tests.
"""


@dataclass(frozen=True)
class RescuePredictions(StoredRun):
    """A paper of suppress-and-rescue: members are `RescueMember`, read by a `RescueReader`."""

    controls: tuple[tuple[str, str], ...] = ()
    """(name, caption) of further benchmarks in the plan, with the same classes."""
    notes: tuple[str, ...] = ()
    """Caveats of the benchmark that belong beside its numbers."""
    _cache: dict = field(default_factory=dict, repr=False, compare=False)

    def select(self, kind: str, preset: str = "", benchmark: str = "", **where: object) -> list[RescueMember]:
        """Members of a kind that a preset uses (any, if empty) on a benchmark (the run's own, if empty)."""
        found = self.find(kind=kind, benchmark=benchmark or self.benchmark, **where)
        return [m for m in found if not preset or preset in m.presets]

    def networks(self, row: str, preset: str, benchmark: str = "", folds: str = "group") -> list[RescueMember]:
        """The planned networks of one row of Table 2, one a fold."""
        return [m for kind in NETWORKS for m in self.select(kind, preset, benchmark, row=row, folds=folds)]

    def part(self, member: RescueMember, name: str) -> dict | None:
        """One file of a finished member, read once; None where it has not run."""
        key = (member.id, name)
        if key not in self._cache:
            self._cache[key] = self.reader(*key) if member.done else None
        return self._cache[key]

    def read(self, member: RescueMember, on: str = "test", views: str = "identity") -> RescueScored | None:
        """A network's or head's probabilities on a set; None where it has not run or lacks the set.

        ``views`` "tta" averages eight views; a member that stores one view gives that.
        """
        if views not in VIEWS:
            raise ValueError(f"unknown views {views!r}, expected one of {', '.join(VIEWS)}")
        found = self.part(member, "predictions")
        if found is None or f"{on}_ids" not in found:
            return None
        ids = found[f"{on}_ids"].astype(str)
        groups = found[f"{on}_groups"].astype(str) if f"{on}_groups" in found else self._groups(member.benchmark, ids)
        stored = found[f"{on}_probabilities"]
        names = [str(v) for v in found["views"]]
        if views in names:  # committed results keep averages
            p = stored[:, names.index(views)].astype(np.float64)
        elif "identity" in names:
            p = combine_views(stored, RESCUE_WEIGHTS) if len(names) > 1 else stored[:, 0].astype(np.float64)
        else:
            return None  # of some rows only the average is kept
        if f"{on}_missing" in found:
            p[found[f"{on}_missing"].astype(bool)] = np.nan
        return RescueScored(ids, found[f"{on}_labels"].astype(np.int64), groups, p)

    def _groups(self, benchmark: str, ids: np.ndarray) -> np.ndarray:
        """Groups of images whose own file has none: as another member of the benchmark names them."""
        key = ("groups", benchmark)
        if key not in self._cache:
            known: dict[str, str] = {}
            for member in (m for kind in ("tta", "semantic") for m in self.select(kind, "", benchmark, done=True)):
                found = self.part(member, "predictions")
                for name in (k.removesuffix("_groups") for k in found if k.endswith("_groups")):
                    known |= dict(zip(found[f"{name}_ids"].tolist(), found[f"{name}_groups"].tolist(), strict=True))
            self._cache[key] = known
        return np.array([self._cache[key].get(i, "") for i in ids.tolist()], dtype=str)

    def rescue_of(self, rules: str, benchmark: str = "") -> RescueMember | None:
        """The finished rescue under these rules (a key of the paper's ``rules``), if there is one."""
        return next(iter(self.select("rescue", "", benchmark, rules=rules, done=True)), None)

    def rules(self, rules: str, benchmark: str = "") -> Rules | None:
        """The rules with their fitted thresholds; None where the rescue has not run."""
        member = self.rescue_of(rules, benchmark)
        return Rules.from_json(self.part(member, "rules")) if member else None

    def trace(self, rules: str, on: str, benchmark: str = "") -> tuple[RescueScored, Trace] | None:
        """The stored trace of the averaged branches on ``oof`` or a test set, with ids, labels and groups beside it
        (``probabilities`` are those of the first branch, NaN where they are not kept); None where it has not run."""
        member = self.rescue_of(rules, benchmark)
        arrays = self.part(member, "trace") if member else None
        if arrays is None or f"{on}_ids" not in arrays:
            return None
        ids = arrays[f"{on}_ids"].astype(str)
        p = (self.part(member, "predictions") or {}).get(f"{on}_probabilities")
        p = np.full((len(ids), len(self.classes)), np.nan) if p is None else p[:, 0].astype(np.float64)
        scored = RescueScored(ids, arrays[f"{on}_labels"].astype(np.int64), arrays[f"{on}_groups"].astype(str), p)
        return scored, Trace.from_arrays(arrays, self.rules(rules, benchmark), self.classes, f"{on}_")

    def measured(self, preset: str, on: str, ids: np.ndarray, benchmark: str = "") -> Morphology | None:
        """What a preset's rules are asked about: measurements of images of a set (``train`` or a test set), in their
        order; None where there are none."""
        planned = next(filter(None, (self.select(kind, preset, benchmark) for kind in MEASURED)), [])
        member = next((m for m in planned if m.done), None)
        arrays = self.part(member, "morphology") if member else None
        if arrays is None or f"{on}_ids" not in arrays:
            return None
        place = {name: i for i, name in enumerate(arrays[f"{on}_ids"].tolist())}
        rows = np.array([place[name] for name in ids.tolist()], dtype=int)
        columns = tuple(str(c) for c in arrays["columns"])
        return Morphology(arrays[f"{on}_features"], columns, arrays[f"{on}_status"].astype(str)).take(rows)

    def sets(self) -> tuple[str, ...]:
        """The test sets that finished networks have."""
        done = self.select("tta", done=True, folds="group")[:1]
        return tuple(s for s in TESTS if any(self.read(m, s) is not None for m in done))

    def as_published(self) -> bool:
        """Whether the only test set is scored as it was published: pristine or not, or some of each."""
        return self.sets() == ("test",)

    def hardest(self) -> str:
        """The last of `sets`: the degraded test set where there is one (and while nothing has run)."""
        return (self.sets() or TESTS)[-1]

    def presets(self) -> tuple[str, ...]:
        """The presets that are planned, ``paper`` first."""
        return tuple(dict.fromkeys(p for m in self.members for p in m.presets))

    def grouped(self, benchmark: str = "") -> bool | None:
        """Whether patients or slides are known; None while nothing has run."""
        for member in self.select("tta", "", benchmark, done=True):
            scored = self.read(member, "val")
            if scored is not None:
                return bool((scored.groups != "").any())
        return None


def from_rescue_plan(plan: Plan, store: Store) -> RescuePredictions:
    """The cells of a plan of ``design: rescue``, read from a store on demand."""
    from wbcrepro.papers import load_paper

    cells = [cell for cell in plan.cells if cell.kind in KINDS]
    stored = {cell.id: store.get(cell.id) for cell in cells}
    users = _users(plan)
    backbones = _backbones(plan)
    members = tuple(_member(cell, stored[cell.id], users[cell.id], backbones) for cell in cells)
    benchmarks = {b.name: b for b in (plan.benchmark, *getattr(plan, "also", ()))}
    of = {cell.id: benchmarks[cell.labels["benchmark"]] for cell in cells}

    def reader(member_id: str, part: str) -> dict | None:
        return _read_part(stored[member_id].folder, part, of[member_id])

    main = plan.benchmark
    others = tuple((b.name, b.caption) for b in benchmarks.values() if b is not main)
    return RescuePredictions(
        load_paper(plan.paper), plan.profile, main.name, main.caption, main.synthetic, main.digest,
        tuple(main.classes), members, reader, plan.options, others, tuple(getattr(main, "notes", ())),
    )  # fmt: skip


def _users(plan: Plan) -> dict[str, tuple[str, ...]]:
    """``{cell id: presets that use it}``: its own, and those of every rescue that descends from it."""
    by_id = {cell.id: cell for cell in plan.cells}
    found: dict[str, dict[str, None]] = {
        c.id: {c.labels["preset"]: None} if "preset" in c.labels else {} for c in plan.cells
    }
    for rescue in (c for c in plan.cells if c.kind == "rescue"):
        todo = [rescue]
        while todo:
            cell = todo.pop()
            found[cell.id][rescue.labels["preset"]] = None
            todo += [by_id[p] for p in cell.parents if p in by_id]
    return {cell_id: tuple(sorted(presets, key=lambda p: (p != "paper", p))) for cell_id, presets in found.items()}


def _backbones(plan: Plan) -> dict[str, str]:
    """``{cell id: network}`` of every cell that descends from a training."""
    found: dict[str, str] = {}
    for cell in plan.cells:  # parents come before children
        inherited = next((found[p] for p in cell.parents if p in found), "")
        name = cell.config["backbone"] if cell.kind == "train" else inherited
        if name:
            found[cell.id] = name
    return found


def _read_part(folder: object, part: str, benchmark: Benchmark) -> dict | None:
    from wbcrepro.experiments.store import read_json

    if part == "rules":
        return read_json(folder / "rules.json")
    if not (folder / f"{part}.npz").is_file():
        return None
    with np.load(folder / f"{part}.npz", allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    if part != "morphology":
        return arrays
    sets = benchmark.table["set"].to_numpy()
    found = {"columns": arrays["columns"]}
    for name in dict.fromkeys(sets.tolist()):
        found |= {f"{name}_{key}": arrays[key][sets == name] for key in ("ids", "features", "status")}
    return found


def _member(cell: Cell, stored: StoredCell | None, presets: tuple[str, ...], backbones: dict) -> RescueMember:
    labels = cell.labels
    facts: dict = {}
    counts: list = []
    about: dict = {}
    if stored is not None:
        env = stored.env
        facts = {key: env.get(key) for key in ("commit", "hardware", "device", "versions", "seconds")}
        facts |= {"date": str(env.get("started", ""))[:10], "seed": cell.config.get("seed")}
        counts = stored.metrics.get("train_counts", [])
        about = stored.metrics if cell.kind in ("cells", "restored") else {}
    return RescueMember(
        cell.id, cell.kind, labels["benchmark"], presets, labels.get("row", ""), int(labels.get("fold", -1)),
        labels.get("folds", ""), labels.get("method", ""), labels.get("rules", ""), labels.get("noise", ""),
        backbones.get(cell.id, ""), stored is not None, tuple(counts), about, facts,
    )  # fmt: skip
