"""What a result cost: the cells that led to it, with their time, their budget and the images they were trained on.

Everything is read from the plan and from ``env.json`` and ``metrics.json`` of finished cells. Seconds are wall time of
whole cells, the scoring of images included, on whatever the machine was doing besides; a training that was resumed
counts from its last start. The pixel cache is shared by all and left out.

The time of inference is that of the networks alone. Where cells are found, restored and measured before or after,
none of this is in it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from wbcrepro.inference.tta import DIHEDRAL

if TYPE_CHECKING:
    from wbcrepro.experiments.cell import Cell
    from wbcrepro.experiments.plan import Plan
    from wbcrepro.experiments.store import Store, StoredCell

SHARED = ("pixels",)
"""Kinds of cells that are no part of a method's cost."""
VIEWS = {"features": len(DIHEDRAL), "tta": len(DIHEDRAL)}
"""Views of an image that kinds of cells score; one where nothing is said."""


@dataclass(frozen=True)
class Step:
    """One cell of a chain. ``seconds``, ``drawn`` and ``inference`` are None where the cell is missing or does not say.

    ``drawn``: images that a training drew, views not counted. ``inference``: milliseconds per scored image, all its
    ``views`` included, from ``inference: {images, seconds}`` of its ``env.json``.
    """

    id: str
    kind: str
    budget: str = ""
    seconds: float | None = None
    drawn: float | None = None
    inference: float | None = None
    hardware: str = ""
    views: int = 1


@dataclass(frozen=True)
class Chain:
    """The cells behind one classifier, first to last, and the side of the images that its network reads in pixels."""

    steps: tuple[Step, ...]
    side: int | None


@dataclass(frozen=True)
class Cost:
    """Of one repetition (fold or trial), the mean over those that ran; None where nothing is stored.

    ``inference``: milliseconds per scored image in the networks that the repetition asks, in the views that it
    averages.
    """

    seconds: float | None
    total_seconds: float | None
    drawn: float | None
    inference: float | None
    budget: str
    side: int | None
    hardware: tuple[str, ...]


def chains(plan: Plan, store: Store) -> dict[str, Chain]:
    """``{cell id: Chain}`` of every cell of a plan but the shared ones, finished or not."""
    cells = {cell.id: cell for cell in plan.cells}
    steps = {i: _step(cell, store.get(i)) for i, cell in cells.items() if cell.kind not in SHARED}
    return {i: _chain(cells[i], cells, steps) for i in steps}


def _chain(cell: Cell, cells: dict[str, Cell], steps: dict[str, Step]) -> Chain:
    order, sides, pending = {}, {}, [cell]
    while pending:
        current = pending.pop(0)
        sides |= {key: current.config[key] for key in ("input", "crop") if key in current.config}
        if current.kind not in SHARED and current.id not in order:
            order[current.id] = steps[current.id]
        pending += [cells[i] for i in current.parents if i in cells]
    # Where cells are isolated and restored, the networks read those images and not the pixel cache.
    return Chain(tuple(reversed(order.values())), sides.get("input", sides.get("crop")))


def _step(cell: Cell, stored: StoredCell | None) -> Step:
    if stored is None:
        return Step(cell.id, cell.kind, budget_words(cell))
    env, metrics = stored.env, stored.metrics
    timed = env.get("inference") or {}
    per_image = 1000 * timed["seconds"] / timed["images"] if timed.get("images") else None
    seconds = env.get("seconds")
    return Step(
        cell.id, cell.kind, budget_words(cell), None if seconds is None else float(seconds), _drawn(cell, metrics),
        per_image, str(env.get("hardware", "")), VIEWS.get(cell.kind, 1),
    )  # fmt: skip


def budget_words(cell: Cell) -> str:
    """The planned budget of a cell that trains: steps or epochs times the batch; empty for one that does not."""
    config = cell.config
    schedule, optimisation = config.get("schedule"), config.get("optimisation")
    if schedule:
        return f"{schedule['steps']} steps x {len(config['sources'])} x {schedule['batch_per_domain']}"
    if not optimisation or "epochs" not in optimisation:
        return ""
    early = "up to " if optimisation.get("patience") and optimisation["patience"] < optimisation["epochs"] else ""
    words = f"{early}{optimisation['epochs']} epochs x {optimisation.get('batch_size', '?')}"
    return words if "weights" in config else f"{cell.kind.replace('domain_', '')} {words}"


def _drawn(cell: Cell, metrics: dict) -> float | None:
    """Images drawn by a training of a whole network, from what it wrote; None for everything else."""
    schedule = cell.config.get("schedule")
    if schedule and "steps_run" in metrics:
        return float(metrics["steps_run"] * schedule["batch_per_domain"] * len(cell.config["sources"]))
    if "weights" in cell.config and "epochs_run" in metrics and "train_images" in metrics:
        return float(metrics["epochs_run"] * metrics["train_images"])
    return None


def cost_of(found: Iterable[Chain], repetitions: int) -> Cost:
    """The cost of what several chains make together: a cell that they share counts once.

    More chains than ``repetitions`` are averages of networks, and of the views that their cells scored. Otherwise each
    is a network alone, whose score is that of the image as it is: the other views are no part of its inference.
    """
    found = list(found)
    steps = list({step.id: step for chain in found for step in chain.steps}.values())
    budget = "; ".join(dict.fromkeys(step.budget for step in steps if step.budget))
    sides = {chain.side for chain in found if chain.side}
    total = _sum(step.seconds for step in steps)
    drawn = [step.drawn for step in steps if step.drawn is not None]
    timed = all(any(step.inference is not None for step in chain.steps) for chain in found)
    done = max(repetitions, 1)
    alone = len(found) <= done
    spent = [step.inference / (step.views if alone else 1) for step in steps if step.inference is not None]
    inference = _sum(spent) if timed else None
    return Cost(
        _per(total, done), total, _per(_sum(drawn), done), _per(inference, done), budget,
        sides.pop() if len(sides) == 1 else None, tuple(sorted({s.hardware for s in steps if s.hardware})),
    )  # fmt: skip


def _sum(values: Iterable[float | None]) -> float | None:
    """The sum; None where a part is not known."""
    listed = list(values)
    return None if not listed or None in listed else float(sum(listed))


def _per(value: float | None, repetitions: int) -> float | None:
    return None if value is None else value / repetitions
