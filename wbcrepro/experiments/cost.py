"""What a plan will cost: cells, images through networks, disk, and time extrapolated from a few steps on this device.

A forecast, not a measurement: it assumes that no training stops early, and leaves out classifiers on stored features
(seconds each). Networks are calibrated with random weights and random images, which cost what real ones do.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from wbcrepro.augment import augment
from wbcrepro.backbones import Classifier, build_backbone
from wbcrepro.experiments.cell import Cell
from wbcrepro.experiments.plan import Plan
from wbcrepro.experiments.store import Store
from wbcrepro.inference.tta import DIHEDRAL
from wbcrepro.training import autocast

TRAININGS = ("train", "domain_train")
MOMENTS = 3  # a checkpoint holds each parameter and AdamW's two moments of it


@dataclass(frozen=True)
class Speed:
    """Seconds per image of one backbone on one device, its parameters and its feature size."""

    train: float
    forward: float
    parameters: int
    dim: int


@dataclass(frozen=True)
class Cost:
    """``images``: images through a network, by kind of cell; ``seconds`` by kind; ``disk``: bytes to be written."""

    cells: dict[str, int]
    done: int
    images: dict[str, int]
    seconds: dict[str, float]
    disk: int

    @property
    def total_seconds(self) -> float:
        """The whole plan, one cell after another."""
        return sum(self.seconds.values())


def forecast(plan: Plan, store: Store, device: torch.device, *, calibrate: Callable[..., Speed] | None = None) -> Cost:
    """The cost of the cells of ``plan`` that are not in ``store`` yet. ``calibrate`` replaces ``measure`` in tests."""
    calibrate = calibrate or measure
    missing = [cell for cell in plan.tier(0) if not store.done(cell.id)]
    images, seconds, disk = Counter(), Counter(), 0
    speeds: dict[tuple, Speed] = {}
    for cell in missing:
        if cell.kind == "pixels":
            count, side = len(plan.benchmark_of(cell).table), cell.config["crop"]
            images["pixels"] += count
            seconds["pixels"] += count * read_seconds(plan)  # images of a further benchmark cost what its own do
            disk += count * 3 * side**2
            continue
        train = cell if cell.kind in TRAININGS else _ancestor(plan, cell, *TRAININGS)
        if train is None:
            continue  # cells that are isolated, restored, embedded or measured: no training behind them
        cache = _ancestor(plan, train, "restored", "pixels")
        side = cache.config["input"] if cache.kind == "restored" else cache.config["crop"]
        key = (train.config["backbone"], side, _batch(train))
        if key not in speeds:
            speeds[key] = calibrate(*key, device)
        work, written = (_work if train.kind == "train" else _domain_work)(plan, cell, speeds[key])
        images[cell.kind] += sum(work.values())
        seconds[cell.kind] += work["train"] * speeds[key].train + work["forward"] * speeds[key].forward
        disk += written
    kinds = Counter(cell.kind for cell in plan.tier(0))
    return Cost(dict(kinds), len(plan.tier(0)) - len(missing), dict(images), dict(seconds), disk)


def _work(plan: Plan, cell: Cell, speed: Speed) -> tuple[Counter, int]:
    """Images to train on and to run forward in a cell, and the bytes it writes."""
    table = plan.benchmark_of(cell).table
    sets, folds = table["set"].to_numpy(), table["fold"].to_numpy()
    val = int(((sets == "train") & (folds == cell.config["fold"])).sum())
    train, test = int((sets == "train").sum()) - val, int((sets != "train").sum())
    weights = 4 * speed.parameters
    if cell.kind == "train":
        epochs = cell.config["optimisation"]["epochs"]
        return Counter(train=epochs * train, forward=(epochs + 1) * val), weights * (2 + 2 * MOMENTS)
    if cell.kind == "features":
        forward = (cell.config["passes"] + 1) * train + len(DIHEDRAL) * (val + test)
        return Counter(forward=forward), 2 * speed.dim * forward
    if cell.kind == "head" and cell.config.get("online"):
        epochs = cell.config["optimisation"]["epochs"]
        return Counter(forward=epochs * (train + val) + len(DIHEDRAL) * (val + test)), weights * (2 + 2 * MOMENTS)
    if cell.kind == "tta":
        return Counter(forward=len(DIHEDRAL) * (val + (test if cell.config["sets"] == "all" else 0))), 0
    return Counter(forward=test if cell.kind == "rescored" else 0), 0


def _batch(train: Cell) -> int:
    """Images in one pass of a training."""
    config = train.config
    if train.kind == "train":
        return config["optimisation"]["batch_size"]
    return config["schedule"]["batch_per_domain"] * len(config["sources"])


def _domain_work(plan: Plan, cell: Cell, speed: Speed) -> tuple[Counter, int]:
    """As ``_work``, for a training with a laboratory held out (or what is made from one)."""
    train = cell if cell.kind == "domain_train" else _ancestor(plan, cell, "domain_train")
    domains, folds = (plan.benchmark.table[name].to_numpy() for name in ("domain", "fold"))
    source = np.isin(domains, train.config["sources"])
    val = int((source & (folds == train.config["trial"])).sum())
    rest, target = int(source.sum()) - val, int(np.isin(domains, train.config["targets"]).sum())
    if cell.kind != "domain_train":
        return Counter(forward=rest + val + target), 0
    schedule, settings, batch = train.config["schedule"], train.config["settings"], _batch(train)
    views = settings.get("k", 3) - 1 if train.config["algorithm"] == "sada" else 0
    work = Counter(train=batch * (schedule["steps"] + views * settings.get("stage1_steps", 0)))
    work["forward"] = val * (schedule["steps"] // schedule["checkpoint_every"]) + 3 * (val + target)
    if "refresh" in settings:
        work["forward"] += rest * max(schedule["steps"] - settings["start"], 0) // settings["refresh"]
    return work, 4 * speed.parameters * (3 + 2 * MOMENTS)


def _ancestor(plan: Plan, cell: Cell, *kinds: str) -> Cell | None:
    """The nearest ancestor of one of these kinds; None without one."""
    pending = list(cell.parents)
    while pending:
        found = plan.cell(pending.pop(0))
        if found.kind in kinds:
            return found
        pending += found.parents
    return None


def read_seconds(plan: Plan, count: int = 12) -> float:
    """Seconds to read (decode or draw) one image of the benchmark, over ``count`` images spread over it."""
    items = np.linspace(0, len(plan.benchmark.table) - 1, count).astype(int)
    plan.benchmark.read(int(items[0]))
    start = time.perf_counter()
    for item in items:
        plan.benchmark.read(int(item))
    return (time.perf_counter() - start) / count


def measure(name: str, side: int, batch: int, device: torch.device, *, steps: int = 3, budget: float = 10.0) -> Speed:
    """Time up to ``steps`` training and forward steps of a backbone (fewer once ``budget`` seconds are spent)."""
    batch = batch if device.type == "cuda" else min(batch, 16)
    backbone, info = build_backbone(name, "random")
    model = Classifier(backbone, nn.Linear(info.dim, 10), info).to(device, memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4)
    pixels = torch.randint(0, 256, (batch, 3, side, side), dtype=torch.uint8, device=device)
    labels = torch.arange(batch, device=device) % 10
    amp = device.type == "cuda"

    def train_step() -> None:
        inputs = augment(pixels, "randaugment", seed=0, epoch=0, index=np.arange(batch))
        with autocast(device, amp):
            loss = nn.functional.cross_entropy(model(inputs), labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()

    @torch.inference_mode()
    def forward_step() -> None:
        with autocast(device, amp):
            model(pixels)

    model.train()
    train = _seconds(train_step, device, steps, budget)
    model.eval()
    forward = _seconds(forward_step, device, steps, budget)
    return Speed(train / batch, forward / batch, sum(p.numel() for p in model.parameters()), info.dim)


def _seconds(step: Callable[[], None], device: torch.device, steps: int, budget: float) -> float:
    """The fastest of ``steps`` calls after one that does not count (unless that one alone spent the budget)."""
    best, spent = float("inf"), 0.0
    for number in range(steps + 1):
        start = time.perf_counter()
        step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        took = time.perf_counter() - start
        spent += took
        if number > 0 or took > budget:
            best = min(best, took)
        if spent > budget:
            break
    return best if best < float("inf") else took
