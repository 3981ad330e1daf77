"""The spine through the command line, in the tiniest profile: run, read, kill, race, predict, and the exit codes."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
BASE = ("--paper", "decoupled", "--profile", "tiny")


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "wbcrepro.cli", *map(str, arguments)]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def wbcrepro(*arguments: str, expect: int = 0) -> subprocess.CompletedProcess:
    done = subprocess.run(command(*arguments), capture_output=True, text=True, env=environment())
    assert done.returncode == expect, done.stdout + done.stderr
    return done


def planned(store: Path) -> list[dict]:
    text = wbcrepro("plan", *BASE, "--store", store, "--json").stdout
    return json.loads(text)["plans"][0]["cells"]


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    """A store in which every cell of the tiny profile has run without interruption."""
    folder = tmp_path_factory.mktemp("store")
    wbcrepro("reproduce", *BASE, "--store", folder, "--device", "cpu", "--no-progress")
    return folder


def chain(cells: list[dict], **labels) -> dict[str, dict]:
    """The cells of one backbone and fold by kind (one head)."""
    by_id = {cell["id"]: cell for cell in cells}
    head = next(c for c in cells if c["kind"] == "head" and all(c["labels"].get(k) == v for k, v in labels.items()))
    found, cell = {}, head
    while cell:
        found[cell["kind"]] = cell
        cell = by_id[cell["parents"][0]] if cell["parents"] else None
    return found


def test_everything_is_done_and_a_second_run_does_nothing(store):
    cells = planned(store)
    assert cells and all(cell["done"] for cell in cells)
    assert json.loads((store / "plan.json").read_text())["plans"][0]["cells"]
    before = {p: p.stat().st_mtime_ns for p in (store / "cells").rglob("*") if p.is_file()}
    wbcrepro("reproduce", *BASE, "--store", store, "--no-progress")
    assert before == {p: p.stat().st_mtime_ns for p in (store / "cells").rglob("*") if p.is_file()}


def test_predictions_are_probabilities_of_the_whole_test_set(store):
    heads = [c for c in planned(store) if c["kind"] == "head"]
    assert {c["config"]["preset"] for c in heads} == {"paper", "code"}
    for cell in heads:
        with np.load(store / "cells" / cell["id"] / "predictions.npz") as found:
            for name in ("val", "test", "test_degraded"):
                probabilities = found[f"{name}_probabilities"]
                assert probabilities.dtype == np.float16 and probabilities.shape[1:] == (8, len(found["classes"]))
                assert np.allclose(probabilities.astype(float).sum(-1), 1, atol=0.01)
                assert len(found[f"{name}_ids"]) == len(found[f"{name}_labels"]) == len(probabilities)
            assert np.array_equal(found["test_ids"], found["test_degraded_ids"])


def test_nothing_stored_names_this_machine(store):
    home, host = str(Path.home()), os.uname().nodename
    for path in (store / "cells").rglob("*.json*"):
        text = path.read_text()
        assert str(store) not in text and str(ROOT) not in text, path
        assert f"{home}/" not in text and f'"{host}"' not in text, path


def test_identities_do_not_depend_on_the_store(store, tmp_path):
    assert [c["id"] for c in planned(store)] == [c["id"] for c in planned(tmp_path)]


def copy_parents(store: Path, target: Path, cell: dict, cells: list[dict]) -> None:
    by_id = {c["id"]: c for c in cells}
    for parent in cell["parents"]:
        shutil.copytree(store / "cells" / parent, target / "cells" / parent)
        copy_parents(store, target, by_id[parent], cells)


@pytest.mark.parametrize("kind", ["pixels", "train", "features", "head"])
def test_killed_and_resumed_is_bit_identical(store, tmp_path, kind):
    cells = planned(store)
    cell = chain(cells, preset="paper", method="decoupled", backbone="r50", fold=0)[kind]
    copy_parents(store, tmp_path, cell, cells)
    folder = tmp_path / "cells" / cell["id"]
    arguments = command("run-cell", cell["id"], *BASE, "--store", tmp_path, "--device", "cpu", "--no-progress")
    process = subprocess.Popen(arguments, env=environment(), stdout=subprocess.DEVNULL)
    marker = {"train": "checkpoint.pt", "pixels": "pixels/progress.jsonl"}.get(kind, "cell.json")
    while process.poll() is None and not (folder / marker).exists():
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (folder / "metrics.json").exists(), "the cell finished before it could be killed"
    wbcrepro(*arguments[3:])
    for path in (store / "cells" / cell["id"]).rglob("*"):
        if path.suffix in {".npz", ".npy", ".safetensors"} or path.name == "metrics.json":
            twin = folder / path.relative_to(store / "cells" / cell["id"])
            assert twin.read_bytes() == path.read_bytes(), path.name


def test_two_processes_on_one_cell_run_it_once(store, tmp_path):
    cells = planned(store)
    cell = chain(cells, preset="paper", method="decoupled", backbone="r50", fold=0)["train"]
    copy_parents(store, tmp_path, cell, cells)
    arguments = command("run-cell", cell["id"], *BASE, "--store", tmp_path, "--device", "cpu", "--no-progress")
    streams = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    both = [subprocess.Popen(arguments, env=environment(), **streams) for _ in "ab"]
    errors = [process.communicate()[1].decode() for process in both]
    codes = sorted(process.returncode for process in both)
    assert codes in ([0, 5], [0, 0]), errors
    log = (tmp_path / "cells" / cell["id"] / "log.jsonl").read_text().splitlines()
    assert len(log) == len((store / "cells" / cell["id"] / "log.jsonl").read_text().splitlines())


def test_exit_codes_and_messages(store, tmp_path):
    wbcrepro("plan", "--paper", "nonesuch", "--store", tmp_path, expect=2)
    assert "decoupled" in wbcrepro("plan", "--paper", "nonesuch", "--store", tmp_path, expect=2).stderr
    wbcrepro("reproduce", *BASE, "--store", tmp_path, "--shard", "2/2", expect=2)
    missing = wbcrepro("plan", "--profile", "mini", "--data", tmp_path, "--store", tmp_path / "s", expect=3).stderr
    assert "acevedo20" in missing.lower() and "Traceback" not in missing
    train = chain(planned(store), preset="paper", method="supervised")["train"]["id"]
    orphan = wbcrepro("run-cell", train, *BASE, "--store", tmp_path, expect=4).stderr
    assert "run-cell pixels-" in orphan
    wbcrepro("run-cell", "train-000000000000", *BASE, "--store", tmp_path, expect=2)
    lock = tmp_path / "cells" / chain(planned(store), preset="paper")["pixels"]["id"] / "lock"
    lock.parent.mkdir(parents=True)
    lock.write_text(json.dumps({"pid": 1, "host": "elsewhere", "token": "t"}))
    assert "elsewhere" in wbcrepro("run-cell", lock.parent.name, *BASE, "--store", tmp_path, expect=5).stderr


def test_a_cell_that_fails_is_reported_and_the_others_run(store, tmp_path):
    """A damaged stage-1 network fails its own descendants, with a message; the rest of the plan is finished."""
    shutil.copytree(store, tmp_path / "s")
    cells = planned(store)
    broken = chain(cells, preset="paper", method="decoupled", backbone="r50", fold=0)
    (tmp_path / "s/cells" / broken["train"]["id"] / "best.safetensors").write_bytes(b"truncated")
    other = chain(cells, preset="paper", method="decoupled", backbone="r50", fold=1)["head"]["id"]
    for cell_id in (broken["features"]["id"], broken["head"]["id"], other):
        (tmp_path / "s/cells" / cell_id / "metrics.json").unlink()
    done = wbcrepro("reproduce", *BASE, "--store", tmp_path / "s", "--no-progress", expect=1)
    assert broken["features"]["id"] in done.stdout
    assert (tmp_path / "s/cells" / other / "metrics.json").exists()
    assert (tmp_path / "s/cells" / broken["features"]["id"] / "error.json").exists()


def test_shards_cover_the_plan_once():
    from wbcrepro.experiments.plan import make_plan
    from wbcrepro.experiments.run import shard_of
    from wbcrepro.experiments.store import Store

    plan = make_plan("decoupled", "tiny", store=Store("unused"), progress=False)
    shards = [shard_of(cell, plan, 3) for cell in plan.cells]
    assert set(shards) <= {None, 0, 1, 2} and len(set(shards) - {None}) > 1
    for cell, shard in zip(plan.cells, shards, strict=True):
        parents = {shard_of(plan.cell(p), plan, 3) for p in cell.parents}
        assert parents <= {None, shard}


def test_predict_writes_the_submission_schema_and_names_damaged_files(store, tmp_path):
    head = chain(planned(store), preset="paper", method="decoupled", backbone="r50", fold=0)["head"]["id"]
    online = chain(planned(store), preset="code", method="decoupled", backbone="r50", fold=0)["head"]["id"]
    images = tmp_path / "images"
    images.mkdir()
    rng = np.random.default_rng(0)
    for index in range(3):
        Image.fromarray(rng.integers(0, 255, (40, 40, 3), np.uint8)).save(images / f"{index:08d}.jpg")
    arguments = ("predict", images, "--run", head, "--store", store, "-o", tmp_path / "out.csv", "--no-progress")
    done = wbcrepro(*arguments)
    assert "profile tiny" in done.stderr and "Not for diagnosis" in done.stdout
    lines = (tmp_path / "out.csv").read_text().split()
    assert lines[0] == "ID,labels" and [line.split(",")[0] for line in lines[1:]] == [f"{i:08d}.jpg" for i in range(3)]
    wbcrepro(*arguments, "--run", online)
    (images / "broken.jpg").write_bytes((images / "00000000.jpg").read_bytes()[:200])
    assert "broken.jpg" in wbcrepro(*arguments, expect=3).stderr


def test_predict_agrees_with_the_stored_predictions(store, tmp_path):
    """An image of the test set, predicted from its file, gets the stored probabilities."""
    import torch

    from wbcrepro.data.benchmarks import load_benchmark
    from wbcrepro.experiments.predict import load_predictor
    from wbcrepro.experiments.store import Store

    for preset in ("paper", "code"):
        head = chain(planned(store), preset=preset, method="decoupled", backbone="r50", fold=0)["head"]["id"]
        benchmark = load_benchmark("smears-tiny", data_root=None, cache=tmp_path)
        item = int(np.flatnonzero(benchmark.table["set"].to_numpy() == "test")[0])
        predictor = load_predictor(Store(store), head, torch.device("cpu"))
        found = predictor.probabilities([benchmark.read(item)])[0]
        with np.load(store / "cells" / head / "predictions.npz") as stored:
            assert stored["test_ids"][0] == benchmark.table["id"][item]
            assert np.abs(stored["test_probabilities"][0].astype(float) - found).max() < 5e-3


def test_accumulation_is_part_of_the_identity_of_what_it_changes(tmp_path):
    plain = planned(tmp_path)
    text = wbcrepro("plan", *BASE, "--store", tmp_path, "--accumulate", "4", "--json").stdout
    split = json.loads(text)["plans"][0]["cells"]
    same = {c["id"] for c in plain} & {c["id"] for c in split}
    assert {cell_id.split("-")[0] for cell_id in same} == {"pixels"} and len(split) == len(plain)
    wbcrepro("plan", *BASE, "--store", tmp_path, "--accumulate", "0", expect=2)
