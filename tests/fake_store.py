"""A store of made-up predictions for one plan, so that tables and claims can be tested without training anything."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from wbcrepro.experiments.cell import Cell
from wbcrepro.experiments.store import Store, write_json
from wbcrepro.inference.tta import DIHEDRAL
from wbcrepro.papers import load_paper, profile_of

VIEW_COUNT = len(DIHEDRAL)


@dataclass
class FakeBenchmark:
    """What the report reads of a benchmark."""

    name: str
    classes: tuple[str, ...]
    synthetic: bool = True
    caption: str = "Synthetic smears: a mechanism, not evidence."
    digest: str = "0" * 64
    table: pd.DataFrame | None = None


@dataclass
class FakePlan:
    """What the report reads of a plan."""

    paper: str
    profile: str
    benchmark: FakeBenchmark
    cells: tuple[Cell, ...]
    options: str = "--profile demo"

    def find(self, **labels):
        return [c for c in self.cells if all(c.labels.get(k) == v for k, v in labels.items())]


def fake_plan(profile="demo", benchmark="smears-demo", classes=("A", "B", "C", "D"), folds=None) -> FakePlan:
    """One head cell per preset, role, fold and method of the paper `decoupled`."""
    paper = load_paper("decoupled")
    settings, cells = profile_of(paper, profile), []
    for preset, roles in settings["presets"].items():
        single = paper["presets"][preset]["protocol"] == "single"
        for role in roles:
            for fold in (folds or settings["folds"])[: 1 if single else None]:
                for method in settings["methods"][preset]:
                    labels = {"profile": profile, "preset": preset, "backbone": role, "fold": fold, "method": method}
                    config = {**labels, "backbone": settings["backbones"][role], "paper": "decoupled", "seed": 7}
                    config |= {"benchmark": benchmark}
                    cells.append(Cell("head", config, ("features-000000000000",), {}, labels))
    return FakePlan("decoupled", profile, FakeBenchmark(benchmark, tuple(classes)), tuple(cells))


def random_probabilities(labels, classes, skill, rng, views=VIEW_COUNT):
    """Softmax outputs (N, V, C) float16 whose arg-max is right more often the higher ``skill`` is."""
    logits = rng.normal(size=(len(labels), views, classes)) * 0.4 + rng.normal(size=(len(labels), 1, classes))
    logits[np.arange(len(labels)), :, labels] += skill
    odds = np.exp(logits)
    return (odds / odds.sum(-1, keepdims=True)).astype(np.float16)


def fill_store(
    path: Path, plan: FakePlan, *, per_class=12, skip=(), skills=None, probabilities=None, seed=0,
    sets=("test", "test_degraded"),
) -> Store:  # fmt: skip
    """Write every cell of a plan except ``skip``; ``probabilities(cell, set, labels)`` replaces the random ones."""
    store, classes = Store(path), len(plan.benchmark.classes)
    labels = np.repeat(np.arange(classes), per_class)
    counts = [200 // 4**k + 2 for k in range(classes)]
    for index, cell in enumerate(plan.cells):
        if cell.id in skip:
            continue
        rng = np.random.default_rng([seed, index])
        arrays = {"classes": np.array(plan.benchmark.classes), "views": np.array(DIHEDRAL)}
        for on in sets:
            skill = (skills or {}).get(cell.labels["method"], 1.5) - 0.7 * (on == "test_degraded")
            made = (
                probabilities(cell, on, labels) if probabilities else random_probabilities(labels, classes, skill, rng)
            )
            arrays[f"{on}_ids"] = np.array([f"image-{i:04d}" for i in range(len(labels))])
            arrays[f"{on}_labels"] = labels.astype(np.int16)
            arrays[f"{on}_probabilities"] = made
        folder = store.folder(cell.id)
        folder.mkdir(parents=True)
        write_json(folder / "cell.json", cell.to_json())
        np.savez_compressed(folder / "predictions.npz", **arrays)
        environment = {"commit": "abc", "hardware": "a machine", "started": "2026-02-03T04:05:06+00:00", "seconds": 1.5}
        write_json(folder / "env.json", environment)
        write_json(folder / "metrics.json", {"schema": 1, "train_counts": counts})
    return store
