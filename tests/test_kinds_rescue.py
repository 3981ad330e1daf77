"""Kinds of cells of `rescue` on made-up stores: images without an embedding are kept, marked and counted."""

import numpy as np
import pytest
import torch
from fake_rescue_store import CLASSES, fake_rescue_plan, write_json

from wbcrepro.experiments import kinds_rescue
from wbcrepro.experiments.run import Context
from wbcrepro.experiments.store import Store

DIM = 6


@pytest.fixture(scope="module")
def plan():
    return fake_rescue_plan("tiny", folds=2)


def of(plan, kind, **labels):
    return next(c for c in plan.find(benchmark=plan.benchmark.name, **labels) if c.kind == kind)


def context_of(cell, plan, path):
    """The context of a cell whose folder is there."""
    store = Store(path)
    store.folder(cell.id).mkdir(parents=True, exist_ok=True)
    return Context(cell, store, plan, torch.device("cpu"), progress=False)


def finished(cell, path, **arrays):
    """A finished parent with these files."""
    folder = Store(path).folder(cell.id)
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    for name in ("cell", "env", "metrics"):
        write_json(folder / f"{name}.json", cell.to_json() if name == "cell" else {})


def embedded(plan, seed=0):
    """One row of unit length an image of the table."""
    rows = np.random.default_rng(seed).normal(size=(len(plan.benchmark.table), DIM))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def test_the_head_trained_on_everything_lists_training_images_without_an_embedding_too(plan, tmp_path):
    cell, rows = of(plan, "semantic", preset="paper", fold=-1), embedded(plan)
    train = plan.benchmark.table["set"] == "train"
    gone = int(np.flatnonzero(train)[3])
    rows[gone] = np.nan
    finished(of(plan, "embeddings"), tmp_path, embeddings=rows)
    context = context_of(cell, plan, tmp_path)
    report = kinds_rescue.run_semantic(context)
    with np.load(context.folder / "predictions.npz") as found:
        assert found["train_ids"].tolist() == plan.benchmark.table["id"][train].tolist()
        assert np.flatnonzero(found["train_missing"]).tolist() == [3]
        assert not found["train_probabilities"][3].any() and found["classes"].tolist() == list(CLASSES)
    assert report["train"] == train.sum() - 1
