"""Kinds of cells of `rescue` on made-up stores: images without an embedding are kept, marked and counted."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from fake_rescue_store import CLASSES, fake_rescue_plan, write_json

from wbcrepro.errors import UsageError
from wbcrepro.experiments import kinds_rescue
from wbcrepro.experiments.plan import digest_of_file
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


def published(plan, path, ids, rows):
    """The context of an ``embeddings`` cell that reads a file with these ids."""
    file = path / "data" / "embeddings" / f"{plan.benchmark.name}.npz"
    file.parent.mkdir(parents=True)
    np.savez(file, ids=ids, embeddings=rows)
    plan = replace(plan)
    plan.asked = {"data": path / "data"}
    cell = of(plan, "embeddings")
    cell = replace(cell, config=cell.config | {"embedder": {"file": digest_of_file(file)}})
    return context_of(cell, plan, path / "store")


def ids_of(plan):
    table = plan.benchmark.table
    return (table["id"] + np.where(table["set"] == "test_degraded", "#degraded", "")).to_numpy(str)


def test_published_embeddings_with_faults_are_used_and_the_faults_counted(plan, tmp_path, capsys):
    ids, rows = ids_of(plan), embedded(plan)
    rows[4] = np.nan
    kept = np.delete(np.arange(len(ids)), [0, 1])  # two missing; one twice, one that nobody knows
    context = published(plan, tmp_path, [*ids[kept], ids[2], "stranger"], rows[[*kept, 2, 3]])
    report = kinds_rescue.run_embeddings(context)
    found = np.load(context.folder / "embeddings.npy")
    assert np.flatnonzero(np.isnan(found).any(1)).tolist() == [0, 1, 2, 4] and report["missing"] == 4
    np.testing.assert_allclose(found[3], rows[3], atol=1e-6)
    assert report["problems"] == {"missing from the file": 2, "twice in the file": 1, "with NaN or infinite values": 1,
                                  "in the file but not in the dataset": 1}  # fmt: skip
    said = capsys.readouterr().out
    assert f"1 twice in the file ({ids[2]})" in said and "(stranger)" in said and "The run goes on" in said


def test_a_faultless_file_says_nothing(plan, tmp_path, capsys):
    report = kinds_rescue.run_embeddings(published(plan, tmp_path, ids_of(plan), embedded(plan)))
    assert report["problems"] == {} and report["missing"] == 0 and not capsys.readouterr().out


def test_a_file_of_other_images_stops_with_words(plan, tmp_path):
    ids = [f"{name}.jpg" for name in ids_of(plan)]
    with pytest.raises(UsageError, match=r"none of the training images .* train-000 .* not in the dataset"):
        kinds_rescue.run_embeddings(published(plan, tmp_path, ids, embedded(plan)))


def test_a_fold_without_any_embedding_to_train_on_stops_with_words(plan, tmp_path):
    rows, table = embedded(plan), plan.benchmark.table
    rows[((table["set"] == "train") & (table["fold"] != 0)).to_numpy()] = np.nan
    finished(of(plan, "embeddings"), tmp_path, embeddings=rows)
    with pytest.raises(UsageError, match="no training image outside fold 0 has an embedding"):
        kinds_rescue.run_semantic(context_of(of(plan, "semantic", preset="paper", fold=0), plan, tmp_path))
