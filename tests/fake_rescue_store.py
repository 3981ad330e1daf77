"""A store of made-up predictions for a plan of ``design: rescue``, so that reports can be tested without training.

The plan is the real planner's; classes are five, of which PLY and PC are rare and confused with LY (and VLY).
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from fake_store import FakeBenchmark, FakePlan

from wbcrepro.experiments.plan_rescue import plan_rescue
from wbcrepro.experiments.store import Store
from wbcrepro.inference.tta import DIHEDRAL, RESCUE_WEIGHTS, combine_views
from wbcrepro.papers import load_paper, profile_of
from wbcrepro.report.rescue_predictions import MEASURED
from wbcrepro.rescue.mahalanobis import fit_gaussian
from wbcrepro.rescue.morphology import BOX_COLUMNS, CODE_COLUMNS, COLUMNS, PAPER_COLUMNS, Morphology
from wbcrepro.rescue.rules import POOLED, Box, RareClass, Rules
from wbcrepro.rescue.suppress_rescue import suppress_and_rescue

CLASSES = ("SNE", "LY", "VLY", "PC", "PLY")
TRAIN, TEST = (60, 50, 24, 12, 9), (12, 12, 12, 12, 12)
TESTS = ("test", "test_degraded")


@dataclass
class FakeRescuePlan(FakePlan):
    """With the control beside it."""

    also: tuple = field(default_factory=tuple)

    def cell(self, cell_id):
        return next(c for c in self.cells if c.id == cell_id)

    def benchmark_of(self, cell):
        return {b.name: b for b in self.also}.get(cell.config["benchmark"], self.benchmark)


def fake_table(folds=3, groups=True, test=TEST) -> pd.DataFrame:
    """The benchmark's rows: training images in folds by patient, a test set of other patients, its degraded copy."""
    parts = []
    for name, counts in (("train", TRAIN), ("test", test)):
        labels = np.repeat(np.arange(len(counts)), counts)
        patient = np.arange(len(labels)) % (6 if name == "train" else 5)
        fold = patient % folds if name == "train" else np.full(len(labels), -1)
        ids = [f"{name}-{i:03d}" for i in range(len(labels))]
        group = [f"{name} patient {i}" for i in patient] if groups else [""] * len(labels)
        parts.append(pd.DataFrame({"id": ids, "label": labels, "set": name, "fold": fold, "group": group}))
    parts.append(parts[1].assign(set="test_degraded"))
    return pd.concat(parts, ignore_index=True).rename_axis("item").reset_index()


def fake_rescue_plan(profile="demo", *, groups=True, synthetic=True, folds=3) -> FakeRescuePlan:
    """Every cell that the profile plans, on the benchmark and its control."""
    paper = load_paper("rescue")
    settings = profile_of(paper, profile)
    benchmarks, cells = [], {}
    for name, changes in ((settings["benchmark"], {}), *settings.get("also", {}).items()):
        caption = f"Synthetic smears, {name}."
        benchmarks.append(FakeBenchmark(name, CLASSES, synthetic, caption, "0" * 64, fake_table(folds, groups)))
        for cell in plan_rescue(paper, profile, settings | {"targets": "wbcbench"} | changes, benchmarks[-1], "random"):
            cells.setdefault(cell.id, cell)
    options = f"--profile {profile}"
    return FakeRescuePlan("rescue", profile, benchmarks[0], tuple(cells.values()), options, tuple(benchmarks[1:]))


def random_probabilities(labels, skill, rng, views):
    """Softmax outputs (N, V, C) float16. Rare cells look like LY to every network; ``skill`` (C,) lifts the truth."""
    logits = rng.normal(size=(len(labels), 1, len(CLASSES))) + 0.3 * rng.normal(size=(len(labels), views, len(CLASSES)))
    logits[np.arange(len(labels)), :, labels] += np.asarray(skill)[labels][:, None]
    logits[labels >= 3, :, 1] += 2.0
    odds = np.exp(logits)
    return (odds / odds.sum(-1, keepdims=True)).astype(np.float16)


def fake_morphology(labels, cues, rng) -> Morphology:
    """PLY are spiky and the nuclei of PC off centre, unless the cues are off."""
    features = rng.normal(1.0, 0.05, size=(len(labels), len(COLUMNS)))
    if cues:
        features[labels == 4, COLUMNS.index("spikiness")] += 0.4
        features[labels == 3, COLUMNS.index("Offset")] += 0.5
    return Morphology(features.astype(np.float32), COLUMNS, np.full(len(labels), "ok", dtype="U16"))


def fake_rules(name: str, labels, morphology: Morphology) -> Rules:
    """Rules as if fitted on the training side. ``fitted`` has no rule for PLY in force."""
    mode = load_paper("rescue")["rules"][name]["mode"]
    columns = PAPER_COLUMNS if mode == "paper" else CODE_COLUMNS
    pc = morphology.take(labels == 3)
    box = Box(BOX_COLUMNS, (0.0,) * len(BOX_COLUMNS), (9.0,) * len(BOX_COLUMNS))
    code = {"max_prob": 0.99} if mode == "code" else {}
    return Rules(mode, (
        RareClass("PLY", ("LY",), 6.0, 0.3, "spikiness", 1.2, **code,
                  disabled="no threshold raises the out-of-fold F1" if name == "fitted" else ""),
        RareClass("PC", ("LY", "VLY"), 6.0, 0.3, "mahalanobis", 3.5, columns,
                  {POOLED: fit_gaussian(pc.select(columns), columns)}, **code,
                  boxes={POOLED: box} if mode == "code" else {}),
    ))  # fmt: skip


def _sets(cell, table) -> dict[str, np.ndarray]:
    """Rows of the sets that a cell stores."""
    fold, sets = cell.config["fold"], table["set"].to_numpy()
    tests = {name: np.flatnonzero(sets == name) for name in TESTS if (sets == name).any()}
    if cell.kind == "rescored":
        return tests
    if cell.kind == "semantic" and fold < 0:
        return {"train": np.flatnonzero(sets == "train"), **tests}
    column = table["fold"].to_numpy()
    if cell.config.get("folds") == "image":  # neighbours in the list go to different folds, whatever their patient
        column = np.where(sets == "train", (np.arange(len(table)) // 6) % (column.max() + 1), -1)
        return {"val": np.flatnonzero((sets == "train") & (column == fold))}
    return {"val": np.flatnonzero((sets == "train") & (column == fold)), **tests}


def _skill(cell, on, skills):
    chosen = (skills or {}).get(cell.labels.get("row", cell.kind), {"semantic": 2.5}.get(cell.kind, 3.0))
    chosen = chosen + 0.8 * (cell.config.get("folds") == "image") + 2.0 * (cell.kind == "semantic" and on == "train")
    if cell.kind == "rescored":
        chosen -= {"none": 1.2}.get(cell.config["method"], 0.2)
    return np.full(len(CLASSES), chosen - 0.8 * (on == "test_degraded"))


def fill_rescue_store(path: Path, plan: FakeRescuePlan, *, skip=(), skills=None, probabilities=None, seed=0) -> Store:
    """Write every cell of a plan except ``skip``. ``probabilities(cell, set, labels)`` replaces the random ones."""
    store = Store(path)
    for index, cell in enumerate(plan.cells):
        if cell.id in skip:
            continue
        folder, rng = store.folder(cell.id), np.random.default_rng([seed, index])
        folder.mkdir(parents=True)
        write_json(folder / "cell.json", cell.to_json())
        environment = {"commit": "abc", "hardware": "a machine", "started": "2026-02-03T04:05:06+00:00", "seconds": 1.5}
        write_json(folder / "env.json", environment)
        benchmark = plan.benchmark_of(cell)
        about = WRITERS.get(cell.kind, _nothing)(store, plan, cell, benchmark, rng, skills, probabilities) or {}
        write_json(folder / "metrics.json", {"schema": 1, **about})
    return store


def write_json(path: Path, value: dict) -> None:
    """As the store does, without waiting for the disk."""
    path.write_text(json.dumps(value, allow_nan=False), encoding="utf-8")


def _nothing(*_) -> None:
    return None


def _predict(store, plan, cell, benchmark, rng, skills, probabilities) -> dict:
    views = DIHEDRAL if cell.kind in ("tta", "head") else ("identity",)
    table, arrays = benchmark.table, {"classes": np.array(CLASSES), "views": np.array(views)}
    for on, rows in _sets(cell, table).items():
        labels = table["label"].to_numpy()[rows]
        made = probabilities(cell, on, labels) if probabilities else None
        made = random_probabilities(labels, _skill(cell, on, skills), rng, len(views)) if made is None else made
        arrays |= {f"{on}_ids": table["id"].to_numpy(str)[rows], f"{on}_labels": labels.astype(np.int16)}
        arrays[f"{on}_probabilities"] = made[:, : len(views)]
        if cell.kind != "head":
            arrays[f"{on}_groups"] = table["group"].to_numpy(str)[rows]
        if cell.kind == "semantic":
            arrays[f"{on}_missing"] = np.zeros(len(rows), bool)
    np.savez(store.folder(cell.id) / "predictions.npz", **arrays)
    return {"train_counts": list(TRAIN)}


def _measure(store, plan, cell, benchmark, rng, *_) -> dict:
    table = benchmark.table
    found = fake_morphology(table["label"].to_numpy(), not benchmark.name.endswith("control"), rng)
    np.savez(store.folder(cell.id) / "morphology.npz", ids=table["id"].to_numpy(str),
             features=found.features, columns=np.array(found.columns), status=found.status)  # fmt: skip
    return {}


def _restore(store, plan, cell, *_) -> dict:
    better = {"none": 0, "median_3x3": 4, "nl_means": 3, "total_variation": 2, "pix2pix": 5}[cell.config["method"]]
    quality = {"psnr": 20.0 + better, "ssim": 0.6 + better / 50, "cell_psnr": 15.0 + better, "cell_ssim": 0.5}
    before = {"psnr_before": 20.0, "ssim_before": 0.6, "cell_psnr_before": 15.0, "cell_ssim_before": 0.45}
    noisy = {"train": 0.01, "test": 0.02, "test_degraded": 0.75}
    quality["intervals"] = {name: [value - 0.5, value + 0.5] for name, value in quality.items()}
    return {"threshold": 9.0, "noisy": noisy, "restoration": {**quality, **before, "images": 60, "identical": 0}}


def _segment(store, plan, cell, benchmark, *_) -> dict:
    sets = benchmark.table["set"]
    truth = {"images": 60, "cell_iou_mean": 0.95, "cell_iou_p10": 0.9, "nucleus_iou_mean": 0.9, "nucleus_iou_p10": 0.8}
    status = {name: {"ok": int((sets == name).sum()) - 1, "no_cell": 1} for name in sets.unique()}
    return {"status": status, "truth": {"test": truth}}


def _rescue(store, plan, cell, benchmark, *_) -> dict:
    """What `run_rescue` stores, with rules that are given instead of fitted."""
    parents = [p for p in plan.cells if p.id in cell.parents]
    branch = {kind: [p for p in parents if p.kind == kind and p.config["fold"] >= 0] for kind in ("tta", "semantic")}
    arrays = {kind: [store.get(p.id).predictions() for p in sorted(cells, key=lambda p: p.config["fold"])]
              for kind, cells in branch.items()}  # fmt: skip
    table = benchmark.table
    with np.load(store.folder(next(p.id for p in parents if p.kind in MEASURED)) / "morphology.npz") as file:
        cells = Morphology(file["features"], tuple(file["columns"].tolist()), file["status"])
    train = (table["set"] == "train").to_numpy()
    rules = fake_rules(cell.labels["rules"], table["label"].to_numpy()[train], cells.take(train))
    write_json(store.folder(cell.id) / "rules.json", rules.to_json())
    stored, predictions = {}, {"classes": np.array(CLASSES), "views": np.array(["swin", "semantic"])}
    for on in ("oof", *(name for name in TESTS if (table["set"] == name).any())):
        name, join = ("val", np.concatenate) if on == "oof" else (on, lambda parts: np.mean(parts, axis=0))
        swin = join([combine_views(a[f"{name}_probabilities"], RESCUE_WEIGHTS) for a in arrays["tta"]])
        semantic = join([a[f"{name}_probabilities"][:, 0].astype(np.float64) for a in arrays["semantic"]])
        parts = arrays["tta"] if on == "oof" else arrays["tta"][:1]
        columns = {c: np.concatenate([a[f"{name}_{c}"] for a in parts]) for c in ("ids", "labels", "groups")}
        place = {i: row for row, (i, s) in enumerate(zip(table["id"], table["set"], strict=True))
                 if s == ("train" if on == "oof" else on)}  # fmt: skip
        rows = np.array([place[i] for i in columns["ids"]])
        trace = suppress_and_rescue(swin, semantic, cells.take(rows), rules, CLASSES)
        stored |= {f"{on}_{c}": v for c, v in columns.items()} | trace.to_arrays(f"{on}_")
        predictions |= {f"{on}_{c}": v for c, v in columns.items()}
        predictions[f"{on}_probabilities"] = np.stack([swin, semantic], 1).astype(np.float16)
    np.savez(store.folder(cell.id) / "trace.npz", **stored)
    np.savez(store.folder(cell.id) / "predictions.npz", **predictions)
    return {}


WRITERS = {
    "tta": _predict, "head": _predict, "rescored": _predict, "semantic": _predict, "morphology": _measure,
    "released_morphology": _measure,
    "restored": _restore, "cells": _segment, "rescue": _rescue,
}  # fmt: skip
