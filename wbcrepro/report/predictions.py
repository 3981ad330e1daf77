"""Stored probabilities as tables need them: by preset, method, backbone, fold, test set and view average.

Two origins give the same object: the cells of a store (`from_plan`) and the committed files below ``results/``
(`wbcrepro.report.results.open_results`). Nothing after this module knows which one it reads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from wbcrepro.inference.ensemble import mean_probabilities
from wbcrepro.inference.tta import CODE_WEIGHTS, EQUAL_WEIGHTS, IDENTITY_WEIGHTS

if TYPE_CHECKING:
    from wbcrepro.experiments.plan import Plan
    from wbcrepro.experiments.store import Store

VIEWS = {"none": IDENTITY_WEIGHTS, "code": CODE_WEIGHTS, "dihedral": EQUAL_WEIGHTS}
"""Test-time augmentation: no views, the released code's average (6 distinct views), all 8 views alike."""

TEST_SETS = ("test", "test_degraded")


@dataclass(frozen=True)
class Member:
    """One planned classifier: a `head` cell. ``backbone`` is the paper's role (r50), ``network`` what ran for it."""

    id: str
    preset: str
    method: str
    backbone: str
    network: str
    fold: int
    done: bool
    train_counts: tuple[int, ...] = ()
    facts: dict = field(default_factory=dict, compare=False)
    """Seed, commit, hardware, date and versions of the run; empty while it is missing."""


@dataclass(frozen=True)
class Scored:
    """Probabilities (N, C) float64 of one classifier on one set, with ids (N,) and label codes (N,) int64."""

    ids: np.ndarray
    labels: np.ndarray
    probabilities: np.ndarray


Reader = Callable[[str, str, str], Scored | None]
"""(member id, set, view average) -> its probabilities, or None where nothing is stored."""


@dataclass(frozen=True)
class StoredRun:
    """All classifiers of one paper in one profile on one benchmark, of either design."""

    paper: dict
    profile: str
    benchmark: str
    caption: str
    synthetic: bool
    data_digest: str
    classes: tuple[str, ...]
    members: tuple
    reader: Callable
    options: str = ""
    """Options that make ``wbcrepro`` see the same plan (``--profile demo --store runs``)."""

    def find(self, **where: object) -> list:
        """Members with these values of their fields (preset, method, done ...), in the order of the plan."""
        return [m for m in self.members if all(getattr(m, key) == value for key, value in where.items())]

    def run_command(self, member: object) -> str:
        """The command that fills the hole of a missing member."""
        return f"wbcrepro run-cell {member.id} --paper {self.paper['name']} {self.options}".strip()

    def make_command(self, more: int = 0) -> str:
        """The command behind every table of this paper and profile; ``more`` as for ``wbcrepro reproduce``."""
        words = f"wbcrepro reproduce --paper {self.paper['name']} {self.options}".strip()
        return f"{words} --more {more}" if more else words

    def facts(self, name: str) -> list[str]:
        """Distinct values of one provenance fact over finished members, sorted (commits, hardware, dates)."""
        return sorted({str(m.facts[name]) for m in self.members if m.done and m.facts.get(name)})


@dataclass(frozen=True)
class Predictions(StoredRun):
    """A paper of two stages: members are `Member`, read by a `Reader`."""

    _cache: dict = field(default_factory=dict, repr=False, compare=False)

    def folds(self, preset: str) -> tuple[int, ...]:
        """The folds that a preset plans."""
        return tuple(sorted({m.fold for m in self.members if m.preset == preset}))

    def read(self, member: Member, on: str = "test", view: str = "none") -> Scored | None:
        """Probabilities of a member on a set, averaged over views; None where it has not run or lacks the set."""
        if view not in VIEWS:
            raise ValueError(f"unknown view average {view!r}, expected one of {', '.join(VIEWS)}")
        key = (member.id, on, view)
        if key not in self._cache:
            self._cache[key] = self.reader(*key) if member.done else None
        return self._cache[key]

    def sets(self) -> tuple[str, ...]:
        """The test sets that at least one finished member has."""
        done = [m for m in self.members if m.done][:1]
        return tuple(s for s in TEST_SETS if any(self.read(m, s) is not None for m in done))

    def scored_set(self, on: str = "test") -> str:
        """The set to score where ``on`` is asked for: of a benchmark without a test set, the validation fold."""
        done = next((m for m in self.members if m.done), None)
        if on != "test" or done is None or self.read(done, "test") is not None:
            return on
        return "val" if self.read(done, "val") is not None else "test"

    def networks(self) -> dict[str, str]:
        """``{role: network}`` of this profile: what stands for ResNet-50, ResNet-152 and Swin-T."""
        return {m.backbone: m.network for m in self.members}


def from_plan(plan: Plan, store: Store) -> Predictions:
    """The classifiers of a plan, read from a store on demand."""
    from wbcrepro.papers import load_paper

    stored = {cell.id: store.get(cell.id) for cell in plan.cells if cell.kind == "head"}
    members = tuple(_member(cell, stored[cell.id]) for cell in plan.cells if cell.kind == "head")
    arrays: dict[str, dict] = {}

    def reader(member_id: str, on: str, view: str) -> Scored | None:
        if member_id not in arrays:
            arrays[member_id] = stored[member_id].predictions()
        found = arrays[member_id]
        if f"{on}_ids" not in found:
            return None
        probabilities = mean_probabilities([found[f"{on}_probabilities"]], VIEWS[view])
        return Scored(found[f"{on}_ids"], found[f"{on}_labels"].astype(np.int64), probabilities)

    benchmark = plan.benchmark
    return Predictions(
        load_paper(plan.paper), plan.profile, benchmark.name, benchmark.caption, benchmark.synthetic, benchmark.digest,
        tuple(benchmark.classes), members, reader, plan.options,
    )  # fmt: skip


def _member(cell: object, stored: object | None) -> Member:
    labels, config = cell.labels, cell.config
    facts: dict = {}
    counts: Iterable[int] = ()
    if stored is not None:
        env = stored.env
        facts = {key: env.get(key) for key in ("commit", "hardware", "device", "versions", "seconds")}
        facts |= {"date": str(env.get("started", ""))[:10], "seed": config.get("seed")}
        counts = stored.metrics.get("train_counts", ())
    return Member(
        cell.id, labels["preset"], labels["method"], labels["backbone"], config["backbone"], labels["fold"],
        stored is not None, tuple(counts), facts,
    )  # fmt: skip
