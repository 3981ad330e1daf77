"""Running cells: one at a time under its lock, results written last, everything resumable.

A cell that was interrupted, at any moment and by any signal, is run again by the same command: its kind decides what
can be resumed (a training continues from its last checkpoint), and ``metrics.json`` appears when all else is there.
"""

from __future__ import annotations

import json
import time
import traceback
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from tqdm.auto import tqdm

from wbcrepro.data.benchmarks import Benchmark
from wbcrepro.errors import CellsMissing, DataMissing, Locked
from wbcrepro.experiments.cell import Cell
from wbcrepro.experiments.environment import describe
from wbcrepro.experiments.lock import CellLock
from wbcrepro.experiments.plan import Plan, named_weights
from wbcrepro.experiments.store import Store, StoredCell, write_json
from wbcrepro.memory import keep_freed_memory

POLL_SECONDS = 2.0
SHOWN_LABELS = ("preset", "backbone", "row", "folds", "fold", "held_out", "trial", "method")


@dataclass
class Context:
    """What a kind's runner gets: the cell, its folder, its finished parents, the data and the device."""

    cell: Cell
    store: Store
    plan: Plan
    device: torch.device
    progress: bool = True
    notes: dict = field(default_factory=dict)
    """What a runner wants in ``env.json`` (weights used, ...)."""

    @property
    def folder(self) -> Path:
        """The cell's own folder."""
        return self.store.folder(self.cell.id)

    @property
    def benchmark(self) -> Benchmark:
        """The benchmark that the cell is about: the plan's, or one of its further ones."""
        return self.plan.benchmark_of(self.cell)

    @property
    def weights(self) -> str:
        """What ``build_backbone`` takes for this cell: a policy, or the path of the file that its configuration names.

        Raises ``DataMissing`` when that file is not at hand, or is not the one that was planned with.
        """
        named, file = self.cell.config["weights"], self.plan.weights_file
        if not named.startswith("file:"):
            return named
        if file is None or named_weights(str(file))[0] != named:
            raise DataMissing(f"{self.cell.id} starts from the weights {named}. Give the file itself: --weights FILE")
        return str(file)

    @contextmanager
    def inference(self, images: int) -> Iterator[None]:
        """Time what runs ``images`` through a network, all their views included; the sum goes into ``env.json``."""
        start = time.perf_counter()
        yield
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        known = self.notes.get("inference", {"images": 0, "seconds": 0.0})
        seconds = known["seconds"] + time.perf_counter() - start
        self.notes["inference"] = {"images": known["images"] + images, "seconds": round(seconds, 3)}

    def parent(self, *kinds: str) -> StoredCell:
        """The nearest finished ancestor of one of these kinds. ``CellsMissing`` names the command that makes it."""
        pending = list(self.cell.parents)
        while pending:
            cell_id = pending.pop(0)
            if cell_id.rpartition("-")[0] in kinds:
                _require(cell_id, self.cell, self.plan, self.store)
                return self.store.require(cell_id)
            pending += self.plan.cell(cell_id).parents
        raise LookupError(f"{self.cell.id} has no ancestor of kind {' or '.join(kinds)}")


Runner = Callable[[Context], dict]


def run_cell(cell: Cell, plan: Plan, store: Store, *, device: torch.device, progress: bool = True) -> StoredCell:
    """Run one cell unless it is done. ``Locked`` when another process runs it, ``CellsMissing`` without parents."""
    from wbcrepro.experiments.kinds import RUNNERS

    if store.done(cell.id):
        return store.require(cell.id)
    for parent in cell.parents:
        _require(parent, cell, plan, store)
    keep_freed_memory()
    folder = store.folder(cell.id)
    with CellLock(folder):
        if store.done(cell.id):  # another process finished it while we waited for the lock
            return store.require(cell.id)
        write_json(folder / "cell.json", cell.to_json())
        environment, started = describe(device), time.monotonic()
        context = Context(cell, store, plan, device, progress)
        torch.manual_seed(cell.config.get("seed", 0))  # whatever ran before in this process
        metrics = RUNNERS[cell.kind](context)
        environment |= {"seconds": round(time.monotonic() - started, 2), "data_digest": context.benchmark.digest}
        environment |= context.notes
        write_json(folder / "env.json", environment)
        write_json(folder / "metrics.json", {"schema": 1, **metrics})
        for leftover in (*folder.glob("checkpoint*.pt"), folder / "error.json"):
            leftover.unlink(missing_ok=True)
    return store.require(cell.id)


def _require(needed: str, cell: Cell, plan: Plan, store: Store) -> None:
    if not store.done(needed):
        raise CellsMissing(
            f"{cell.id} builds on {needed}, which is not in the store {store.path}. "
            f"Make it with: {plan.run_command(needed)}"
        )


def shard_of(cell: Cell, plan: Plan, count: int) -> int | None:
    """Which of ``count`` shards runs a cell: whole chains stay together. None: any shard may (shared ancestors)."""
    key = cell
    while key.kind not in {"train", "domain_train"} and key.parents:
        key = plan.cell(key.parents[0])
    return zlib.crc32(key.id.encode()) % count if key.kind in {"train", "domain_train"} else None


def run_plan(
    plan: Plan, store: Store, *, device: torch.device, shard: tuple[int, int] = (0, 1), more: int = 0,
    progress: bool = True,
) -> list[str]:  # fmt: skip
    """Run what is missing of a plan. Returns the ids that failed (their traceback is in ``error.json``).

    ``more``: cells whose label ``tier`` is above it wait for another run (ablations 1, further trials 2).
    """
    mine = [c for c in plan.tier(more) if shard_of(c, plan, shard[1]) in {None, shard[0]}]
    waiting = [c for c in mine if not store.done(c.id)]
    failed: dict[str, str] = {}
    bar = tqdm(total=len(mine), initial=len(mine) - len(waiting), unit="cell", desc=plan.paper, disable=not progress)
    while waiting:
        moved = False
        for cell in list(waiting):
            blocked = [p for p in cell.parents if p in failed]
            if blocked:
                failed[cell.id] = f"its parent {blocked[0]} failed"
            elif not store.done(cell.id):
                if not all(store.done(p) for p in cell.parents):
                    continue
                bar.set_postfix_str(_words(cell))
                try:
                    run_cell(cell, plan, store, device=device, progress=progress)
                except Locked:
                    continue
                except Exception as error:  # one broken cell must not stop the others; its trace is kept
                    failed[cell.id] = f"{type(error).__name__}: {error}"
                    _write_error(store, cell, error)
                    tqdm.write(f"{cell.id} failed: {failed[cell.id]}")
            waiting.remove(cell)
            bar.update()
            moved = True
        if waiting and not moved:
            time.sleep(POLL_SECONDS)  # another process works on what we wait for
    bar.close()
    return list(failed)


def _words(cell: Cell) -> str:
    shown = [str(cell.labels[key]) for key in SHOWN_LABELS if key in cell.labels]
    return " ".join([*shown, cell.kind])


def _write_error(store: Store, cell: Cell, error: BaseException) -> None:
    folder = store.folder(cell.id)
    folder.mkdir(parents=True, exist_ok=True)
    trace = "".join(traceback.format_exception(error))
    (folder / "error.json").write_text(
        json.dumps({"error": str(error), "traceback": trace}, indent=1), encoding="utf-8"
    )
