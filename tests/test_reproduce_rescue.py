"""The paper `rescue` through the command line, in the tiniest profile: run, kill, read, and what may not see what."""

import json
import shutil
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from test_reproduce import command, environment, wbcrepro

from wbcrepro.experiments.plan import make_plan
from wbcrepro.experiments.run import run_cell
from wbcrepro.experiments.store import Store
from wbcrepro.rescue.rules import Rules
from wbcrepro.rescue.trace import Trace, explain

RESCUE = ("--paper", "rescue", "--profile", "tiny")


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """As the commands that fill the store run: sums of floats depend on the number of threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    """A store in which the paper has run without interruption."""
    folder = tmp_path_factory.mktemp("store")
    wbcrepro("reproduce", *RESCUE, "--store", folder, "--device", "cpu", "--no-progress")
    return folder


@pytest.fixture(scope="module")
def plan(store):
    return make_plan("rescue", "tiny", store=Store(store), progress=False)


def of(plan, kind, **labels):
    return [cell for cell in plan.find(**labels) if cell.kind == kind]


def folder_of(store: Path, cell) -> Path:
    return store / "cells" / cell.id


def test_every_cell_ran(store, plan):
    assert plan.cells and all(Store(store).done(cell.id) for cell in plan.cells)


def test_the_time_of_inference_is_stored(store, plan):
    for cell in of(plan, "tta"):
        spent = Store(store).require(cell.id).env["inference"]
        with np.load(folder_of(store, cell) / "predictions.npz") as found:
            assert spent["images"] == sum(len(found[n]) for n in found.files if n.endswith("_ids"))
        assert spent["seconds"] > 0


def test_every_image_is_isolated_or_says_why_not(store, plan):
    for cell in of(plan, "cells"):
        with np.load(folder_of(store, cell) / "cells.npz") as found:
            inside = np.unpackbits(found["cell"], axis=-1, count=cell.config["window"]).any((1, 2))
            assert len(found["status"]) == len(plan.benchmark_of(cell).table)
            assert inside[found["status"] == "ok"].all()
        truth = Store(store).require(cell.id).metrics["truth"]["test"]
        assert truth["cell_iou_mean"] > 0.85 and truth["nucleus_iou_mean"] > 0.8


def test_the_restorer_saw_training_images_only(store, plan):
    """The generator does not change when every image of the test sets does."""
    cell = of(plan, "restorer", benchmark=plan.benchmark.name)[0]
    isolated = folder_of(store, plan.cell(cell.parents[0]))
    assert set(plan.benchmark.table["set"]) == {"train", "test", "test_degraded"}
    other = store.parent / "restorer"
    for name in (plan.cell(cell.parents[0]).id,):
        shutil.copytree(store / "cells" / name, other / "cells" / name)
    images = np.load(other / "cells" / isolated.name / "pixels" / "images.npy")
    images[(plan.benchmark.table["set"] != "train").to_numpy()] = 7
    np.save(other / "cells" / isolated.name / "pixels" / "images.npy", images)
    run_cell(cell, plan, Store(other), device=torch.device("cpu"), progress=False)
    name = "generator.safetensors"
    assert (other / "cells" / cell.id / name).read_bytes() == (folder_of(store, cell) / name).read_bytes()


def shuffled_copy(store: Path, plan, cell, target: Path, sets: tuple[str, ...]) -> Store:
    """A store with the rescue's parents, in which labels and probabilities of ``sets`` are in another order."""
    rng = np.random.default_rng(0)
    for parent in cell.parents:
        shutil.copytree(store / "cells" / parent, target / "cells" / parent)
        file = target / "cells" / parent / "predictions.npz"
        if not file.is_file():
            continue
        with np.load(file) as found:
            arrays = dict(found)
        for name in sets:
            if f"{name}_labels" in arrays:
                order = rng.permutation(len(arrays[f"{name}_labels"]))
                arrays[f"{name}_labels"] = arrays[f"{name}_labels"][order]
                arrays[f"{name}_probabilities"] = np.flip(arrays[f"{name}_probabilities"][order], -1)
        np.savez(file, **arrays)
    return Store(target)


@pytest.mark.parametrize("rules", ["paper", "fitted", "code"])
def test_thresholds_do_not_see_the_evaluation_split(store, plan, tmp_path, rules):
    cell = of(plan, "rescue", rules=rules, benchmark=plan.benchmark.name)[0]
    fitted = (folder_of(store, cell) / "rules.json").read_bytes()
    other = shuffled_copy(store, plan, cell, tmp_path / "tests", ("test", "test_degraded"))
    run_cell(cell, plan, other, device=torch.device("cpu"), progress=False)
    assert (tmp_path / "tests" / "cells" / cell.id / "rules.json").read_bytes() == fitted
    other = shuffled_copy(store, plan, cell, tmp_path / "training", ("val",))
    run_cell(cell, plan, other, device=torch.device("cpu"), progress=False)
    assert (tmp_path / "training" / "cells" / cell.id / "rules.json").read_bytes() != fitted, "this test cannot fail"


def test_out_of_fold_covers_every_training_image_once(store, plan):
    cell = of(plan, "rescue", rules="paper", benchmark=plan.benchmark.name)[0]
    table = plan.benchmark.table
    with np.load(folder_of(store, cell) / "trace.npz") as found:
        assert sorted(found["oof_ids"]) == sorted(table["id"][table["set"] == "train"])
        assert sorted(found["test_ids"]) == sorted(table["id"][table["set"] == "test"])


def test_a_stored_trace_explains_every_image(store, plan):
    for cell in of(plan, "rescue"):
        folder = folder_of(store, cell)
        rules = Rules.from_json(json.loads((folder / "rules.json").read_text()))
        classes = plan.benchmark_of(cell).classes
        with np.load(folder / "trace.npz") as found:
            trace = Trace.from_arrays(found, rules, classes, "oof_")
            assert len(trace) == len(found["oof_ids"]) and sum(trace.counts().values()) == len(trace)
        assert all(explain(trace, i) for i in range(len(trace)))


def test_the_head_trained_on_everything_scores_what_it_saw_and_never_enters_the_rescue(store, plan, tmp_path):
    cell = of(plan, "rescue", rules="paper", benchmark=plan.benchmark.name)[0]
    everything = next(p for p in cell.parents if p.startswith("semantic") and plan.cell(p).config["fold"] == -1)
    with np.load(store / "cells" / everything / "predictions.npz") as found:
        assert "train_ids" in found and "val_ids" not in found
    for parent in cell.parents:
        shutil.copytree(store / "cells" / parent, tmp_path / "cells" / parent)
    (tmp_path / "cells" / everything / "predictions.npz").unlink()
    run_cell(cell, plan, Store(tmp_path), device=torch.device("cpu"), progress=False)
    name = "trace.npz"
    ours, theirs = (np.load(root / "cells" / cell.id / name) for root in (tmp_path, store))
    assert all(np.array_equal(ours[key], theirs[key], equal_nan=ours[key].dtype.kind == "f") for key in ours.files)


def test_images_without_an_embedding_are_counted_and_never_rescued(store, plan, tmp_path):
    cell = of(plan, "rescue", rules="fitted", benchmark=plan.benchmark.name)[0]
    for parent in cell.parents:
        shutil.copytree(store / "cells" / parent, tmp_path / "cells" / parent)
        if parent.startswith("semantic"):
            file = tmp_path / "cells" / parent / "predictions.npz"
            with np.load(file) as found:
                arrays = dict(found)
            for name in ("test", "test_degraded"):
                arrays[f"{name}_missing"] = np.ones_like(arrays[f"{name}_missing"])
            np.savez(file, **arrays)
    run_cell(cell, plan, Store(tmp_path), device=torch.device("cpu"), progress=False)
    with np.load(tmp_path / "cells" / cell.id / "trace.npz") as found:
        assert np.array_equal(found["test_final"], found["test_base"])
        stopped = found["test_candidate"] >= 0
        assert (found["test_reason"][stopped] == "no_embedding").all()


@pytest.mark.parametrize("kind", ["restorer", "cells"])
def test_killed_and_resumed_is_the_same(store, plan, tmp_path, kind):
    cell = of(plan, kind)[0]
    other = tmp_path / "store"
    for parent in cell.parents:
        shutil.copytree(store / "cells" / parent, other / "cells" / parent)
    arguments = command("run-cell", cell.id, *RESCUE, "--store", other, "--device", "cpu", "--no-progress")
    folder = other / "cells" / cell.id
    process = subprocess.Popen(arguments, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    marks = ("checkpoint.pt", "part-00000.npz")
    while process.poll() is None and not any((folder / mark).exists() for mark in marks):
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (folder / "metrics.json").exists(), "it finished before it could be killed"
    wbcrepro("run-cell", cell.id, *RESCUE, "--store", other, "--device", "cpu", "--no-progress")
    name = {"restorer": "generator.safetensors", "cells": "pixels/images.npy"}[kind]
    assert (folder / name).read_bytes() == (folder_of(store, cell) / name).read_bytes()


def test_published_embeddings_beside_the_data_replace_the_embedder(tmp_path):
    data, root = tmp_path / "data", Store(tmp_path / "store")
    before = make_plan("rescue", "tiny", store=root, progress=False)
    table = before.benchmark.table
    names = table["id"] + np.where(table["set"] == "test_degraded", "#degraded", "")
    rows = np.random.default_rng(0).normal(size=(len(table), 8)).astype(np.float32)
    (data / "embeddings").mkdir(parents=True)
    np.savez(data / "embeddings" / "rescue-tiny.npz", ids=names.to_numpy(str), embeddings=rows)
    plan = make_plan("rescue", "tiny", store=root, data=data, progress=False)
    ours = of(plan, "embeddings", benchmark="rescue-tiny")[0]
    assert set(ours.config["embedder"]) == {"file"} and str(tmp_path) not in json.dumps(ours.to_json())
    assert of(plan, "embeddings", benchmark="rescue-tiny-control")[0].config["embedder"]["backbone"]


def test_nothing_stored_names_this_machine(store):
    for path in (store / "cells").rglob("*.json"):
        assert str(store) not in path.read_text() and str(Path.home()) not in path.read_text(), path
