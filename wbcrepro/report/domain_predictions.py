"""Stored probabilities of papers about unseen laboratories: by method, held-out laboratory, trial and selection rule.

Two origins give the same object: the cells of a store (`from_domain_plan`) and the committed files below ``results/``
(`wbcrepro.report.domain_results`). Nothing after this module knows which one it reads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from wbcrepro.report.predictions import StoredRun

if TYPE_CHECKING:
    from wbcrepro.experiments.plan import Plan
    from wbcrepro.experiments.store import Store, StoredCell

SELECTIONS = ("swad", "last", "best")
"""Which weights of a training are scored: SWAD's average, those of the last step, those best on the sources."""

KINDS = ("domain_train", "domain_head")
SETS = ("test", "val")


@dataclass(frozen=True)
class DomainMember:
    """One planned classifier. Its `held_out` laboratory was never seen; trial t validates on fold t of each source."""

    id: str
    preset: str
    method: str
    held_out: str
    trial: int
    network: str
    scale: str
    settings: dict = field(compare=False)
    """Settings of the algorithm (k, beta, weight ...)."""
    done: bool = False
    train_counts: tuple[tuple[int, ...], ...] = ()
    """Training images by (source, class), sources in the order of ``sources``."""
    sources: tuple[str, ...] = ()
    facts: dict = field(default_factory=dict, compare=False)
    """Seed, commit, hardware, date and versions of the run; empty while it is missing."""
    tier: int = 0
    """What ``--more`` must be for the plan to run it: 1 for ablations and sweeps, 2 for further trials."""


@dataclass(frozen=True)
class DomainScored:
    """Probabilities (N, C) float64 of one classifier, with ids, laboratories and groups (N,) text ("" where nothing
    groups an image), label codes (N,) int64 and folds (N,) int64 within the laboratory."""

    ids: np.ndarray
    labels: np.ndarray
    probabilities: np.ndarray
    domains: np.ndarray
    folds: np.ndarray
    groups: np.ndarray

    def of(self, domain: str) -> DomainScored:
        """The rows of one laboratory."""
        rows = self.domains == domain
        return DomainScored(
            *(getattr(self, name)[rows] for name in ("ids", "labels", "probabilities", "domains", "folds", "groups"))
        )


DomainReader = Callable[[str, str, str], DomainScored | None]
"""(member id, set, selection) -> its probabilities, or None where nothing is stored."""


@dataclass(frozen=True)
class DomainPredictions(StoredRun):
    """A paper about unseen laboratories: members are `DomainMember`, read by a `DomainReader`."""

    notes: tuple[str, ...] = ()
    """Caveats of the benchmark that belong beside its numbers."""
    _cache: dict = field(default_factory=dict, repr=False, compare=False)

    def held_out(self, **where: object) -> tuple[str, ...]:
        """The laboratories that are held out in turn, in the order of the plan."""
        return tuple(dict.fromkeys(m.held_out for m in self.find(**where)))

    def trials(self, **where: object) -> tuple[int, ...]:
        """The planned trials."""
        return tuple(sorted({m.trial for m in self.find(**where)}))

    def read(
        self, member: DomainMember, on: str = "test", selection: str = "swad", target: str | None = None
    ) -> DomainScored | None:
        """Probabilities of a member on its unseen laboratory ("test") or its sources' validation rows ("val").

        ``target``: a variant of the held-out laboratory (the same cells under another stain) instead of itself. None
        where it has not run or lacks the rows. A classifier retrained on frozen features stores one set of weights
        only, which is given for every selection.
        """
        if selection not in SELECTIONS or on not in SETS:
            raise ValueError(f"({on!r}, {selection!r}): expected one of {', '.join(SETS)} and {', '.join(SELECTIONS)}")
        key = (member.id, on, selection)
        if key not in self._cache:
            self._cache[key] = self.reader(*key) if member.done else None
        found = self._cache[key]
        if found is None or on != "test":
            return found
        chosen = found.of(target or member.held_out)
        return chosen if len(chosen.ids) else None

    def targets(self, laboratory: str) -> tuple[str, ...]:
        """A held-out laboratory and the variants of it that finished members were tested on, in stored order."""
        for member in self.find(held_out=laboratory, done=True):
            found = self.stored(member)
            if found is not None:
                return tuple(dict.fromkeys(found.domains.tolist()))
        return (laboratory,)

    def stored(self, member: DomainMember, on: str = "test", selection: str = "swad") -> DomainScored | None:
        """All stored rows of a set, those of a laboratory's variants included; None where it has not run."""
        self.read(member, on, selection)
        return self._cache[member.id, on, selection]

    def sets(self) -> tuple[str, ...]:
        """The sets that at least one finished member has."""
        done = [m for m in self.members if m.done][:1]
        return tuple(s for s in SETS if any(self.read(m, s) is not None for m in done))

    def networks(self) -> tuple[str, ...]:
        """What stands for the paper's ResNet-50 in this profile."""
        return tuple(dict.fromkeys(m.network for m in self.members if m.network))


def from_domain_plan(plan: Plan, store: Store) -> DomainPredictions:
    """The classifiers of a plan of ``design: domains``, read from a store on demand."""
    from wbcrepro.papers import load_paper

    cells = [cell for cell in plan.cells if cell.kind in KINDS]
    stored = {cell.id: store.get(cell.id) for cell in cells}
    arrays: dict[str, dict] = {}

    def reader(member_id: str, on: str, selection: str) -> DomainScored | None:
        if member_id not in arrays:
            arrays[member_id] = stored[member_id].predictions()
        return scored_of(arrays[member_id], on, selection)

    benchmark = plan.benchmark
    return DomainPredictions(
        load_paper(plan.paper), plan.profile, benchmark.name, benchmark.caption, benchmark.synthetic, benchmark.digest,
        tuple(benchmark.classes), tuple(_member(cell, stored[cell.id]) for cell in cells), reader, plan.options,
        tuple(getattr(benchmark, "notes", ())),
    )  # fmt: skip


def scored_of(arrays: dict[str, np.ndarray], on: str, selection: str) -> DomainScored | None:
    """One set and selection of a cell's ``predictions.npz``; None where the cell lacks them."""
    views = [str(v) for v in arrays["views"]]
    if f"{on}_ids" not in arrays or (selection not in views and len(views) > 1):
        return None
    probabilities = arrays[f"{on}_probabilities"][:, views.index(selection) if selection in views else 0]
    return DomainScored(
        arrays[f"{on}_ids"].astype(str), arrays[f"{on}_labels"].astype(np.int64), probabilities.astype(np.float64),
        arrays[f"{on}_domains"].astype(str), arrays[f"{on}_folds"].astype(np.int64),
        arrays[f"{on}_groups"].astype(str),
    )  # fmt: skip


def _member(cell: object, stored: StoredCell | None) -> DomainMember:
    labels, config = cell.labels, cell.config
    facts: dict = {}
    counts: list = []
    sources: list = []
    if stored is not None:
        env = stored.env
        facts = {key: env.get(key) for key in ("commit", "hardware", "device", "versions", "seconds")}
        facts |= {"date": str(env.get("started", ""))[:10], "seed": config.get("seed")}
        counts, sources = stored.metrics.get("train_counts", []), stored.metrics.get("sources", [])
    return DomainMember(
        cell.id, labels["preset"], labels["method"], labels["held_out"], int(labels["trial"]),
        config.get("backbone", ""), labels.get("scale", "common"), dict(config.get("settings") or {}),
        stored is not None, tuple(map(tuple, counts)), tuple(sources), facts, int(labels.get("tier", 0)),
    )  # fmt: skip
