"""The papers about unseen laboratories through the command line, in the tiniest profile: run, kill, read, report."""

import json
import shutil
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from test_reproduce import command, environment, wbcrepro

SADA, BODA = (("--paper", name, "--profile", "tiny") for name in ("sada", "boda"))


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    """A store in which both papers have run without interruption."""
    folder = tmp_path_factory.mktemp("store")
    for paper in (SADA, BODA):
        wbcrepro("reproduce", *paper, "--store", folder, "--device", "cpu", "--no-progress")
    return folder


def planned(store: Path, paper: tuple[str, ...]) -> list[dict]:
    return json.loads(wbcrepro("plan", *paper, "--store", store, "--json").stdout)["plans"][0]["cells"]


@pytest.mark.parametrize("paper", [SADA, BODA])
def test_every_cell_ran_and_predicts_the_unseen_laboratory(store, paper):
    cells = planned(store, paper)
    assert cells and all(cell["done"] for cell in cells)
    for cell in cells:
        if cell["kind"] not in {"domain_train", "domain_head"}:
            continue
        with np.load(store / "cells" / cell["id"] / "predictions.npz") as found:
            views = tuple(found["views"])
            assert views == (("last", "best", "swad") if cell["kind"] == "domain_train" else ("retrained",))
            for name in ("val", "test"):
                probabilities, shape = found[f"{name}_probabilities"], (len(views), len(found["classes"]))
                assert probabilities.dtype == np.float16 and probabilities.shape[1:] == shape
                assert np.allclose(probabilities.astype(float).sum(-1), 1, atol=0.01)
                assert len(found[f"{name}_domains"]) == len(found[f"{name}_folds"]) == len(probabilities)
            sources = set(cell["config"]["sources"])
            assert set(found["val_domains"]) == sources and set(found["val_folds"]) == {cell["config"]["trial"]}
            assert cell["config"]["held_out"] in found["test_domains"] and not sources & set(found["test_domains"])


def test_the_variants_of_a_laboratory_show_the_same_cells(store):
    cell = next(c for c in planned(store, SADA) if c["kind"] == "domain_train" and len(c["config"]["targets"]) > 1)
    with np.load(store / "cells" / cell["id"] / "predictions.npz") as found:
        domains, labels = found["test_domains"], found["test_labels"]
        held_out, *variants = cell["config"]["targets"]
        for name in variants:
            assert np.array_equal(np.sort(labels[domains == name]), np.sort(labels[domains == held_out]))


def test_figures_are_stored_as_arrays(store):
    kinds = {c["kind"]: store / "cells" / c["id"] for c in planned(store, SADA)}
    with np.load(kinds["domain_embeddings"] / "embeddings.npz") as found:
        assert len(found["features"]) == len(found["ids"]) == len(found["labels"]) == len(found["domains"])
        assert len(set(found["domains"])) == 4 and np.isfinite(found["features"]).all()
    with np.load(kinds["domain_gradcam"] / "gradcam.npz") as found:
        assert found["maps"].shape == (len(found["ids"]), 32, 32) and len(set(found["labels"])) == len(found["labels"])
        assert (found["maps"] >= 0).all() and (found["maps"] <= 1).all()


@pytest.mark.parametrize("method", ["sada", "boda"])
def test_killed_and_resumed_is_bit_identical(store, tmp_path, method):
    cells = {cell["id"]: cell for cell in planned(store, SADA)}
    training = next(c for c in cells.values() if c["kind"] == "domain_train" and c["labels"]["method"] == method)
    other = tmp_path / "store"
    (other / "cells").mkdir(parents=True)
    pixels = training["parents"][0]
    shutil.copytree(store / "cells" / pixels, other / "cells" / pixels)
    arguments = command("run-cell", training["id"], *SADA, "--store", other, "--device", "cpu", "--no-progress")
    folder = other / "cells" / training["id"]
    process = subprocess.Popen(arguments, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not (folder / "checkpoint.pt").exists():
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (folder / "checkpoint.pt").exists(), "it failed, or finished before it could be killed"
    assert not (folder / "metrics.json").exists()
    wbcrepro("run-cell", training["id"], *SADA, "--store", other, "--device", "cpu", "--no-progress")
    name = "predictions.npz"
    assert (folder / name).read_bytes() == (store / "cells" / training["id"] / name).read_bytes()


def test_the_report_prints_every_table_of_both_papers(store):
    for paper in (SADA, BODA):
        text = wbcrepro("report", *paper, "--store", store).stdout
        assert "SADA" in text or "BoDA+" in text
        assert "synthetic" in text.lower() and "missing" not in text.lower().split("ours")[0]


def test_nothing_stored_names_this_machine(store):
    for path in (store / "cells").rglob("*.json"):
        assert str(store) not in path.read_text() and str(Path.home()) not in path.read_text(), path
