"""Cells, store and lock: identities, what counts as done, and that two processes run one cell once."""

import json
import multiprocessing
import os
import socket
import time
from pathlib import Path

import pytest

from wbcrepro import domains
from wbcrepro.data.smears import SmearSource, SmearSpec, source
from wbcrepro.errors import CellsMissing, Locked, WbcreproError
from wbcrepro.experiments import versions
from wbcrepro.experiments.cell import Cell, canonical_json
from wbcrepro.experiments.lock import CellLock
from wbcrepro.experiments.store import Store, write_json
from wbcrepro.experiments.versions import PACKAGE, digests, versions_of


def make_cell(**changes) -> Cell:
    values = {"kind": "train", "config": {"a": 1, "b": [1, 2]}, "parents": ("pixels-1",), "versions": {"training": 1}}
    return Cell(**{**values, **changes})


def test_identity_depends_on_content_and_not_on_labels_or_key_order():
    cell = make_cell()
    assert cell.id.startswith("train-") and len(cell.id) == len("train-") + 12
    assert make_cell(config={"b": [1, 2], "a": 1}).id == cell.id
    assert make_cell(labels={"row": "anything"}).id == cell.id
    for changed in (
        {"config": {"a": 2, "b": [1, 2]}},
        {"parents": ()},
        {"versions": {"training": 2}},
        {"kind": "head"},
    ):
        assert make_cell(**changed).id != cell.id


def test_cell_json_round_trip_and_tampering():
    cell = make_cell(labels={"fold": 0})
    assert Cell.from_json(json.loads(json.dumps(cell.to_json()))).id == cell.id
    tampered = cell.to_json() | {"config": {"a": 3}}
    with pytest.raises(ValueError, match="hashes to"):
        Cell.from_json(tampered)


def test_canonical_json_refuses_nan():
    with pytest.raises(ValueError):
        canonical_json({"x": float("nan")})


def test_a_cell_is_done_when_metrics_exist(tmp_path):
    store = Store(tmp_path)
    folder = store.folder("train-1")
    folder.mkdir(parents=True)
    write_json(folder / "cell.json", make_cell().to_json())
    assert store.get("train-1") is None and store.cells("train") == []
    with pytest.raises(CellsMissing, match="train-1 is not in the store.*wbcrepro plan"):
        store.require("train-1")
    write_json(folder / "metrics.json", {"x": 1})
    assert store.get("train-1").metrics == {"x": 1}
    assert [c.id for c in store.cells("train", a=1)] == ["train-1"] and store.cells("train", a=2) == []
    assert "train-1" in store.reads


def test_damaged_json_is_named(tmp_path):
    store = Store(tmp_path)
    folder = store.folder("head-1")
    folder.mkdir(parents=True)
    (folder / "metrics.json").write_text("{")
    with pytest.raises(WbcreproError, match="metrics.json should hold JSON"):
        _ = store.get("head-1").metrics


def test_second_lock_is_refused_and_names_the_owner(tmp_path):
    with CellLock(tmp_path):
        with pytest.raises(Locked, match=str(os.getpid())):
            CellLock(tmp_path).__enter__()
    with CellLock(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_lock_of_a_dead_process_is_reclaimed(tmp_path):
    child = multiprocessing.get_context("fork").Process(target=_take_and_die, args=(tmp_path,))
    child.start()
    child.join()
    assert (tmp_path / "lock").exists()
    with CellLock(tmp_path):
        pass


def _take_and_die(folder: Path) -> None:
    CellLock(folder).__enter__()
    os._exit(9)


def test_lock_of_a_container_with_our_host_name_is_not_taken_for_that_of_a_dead_process(tmp_path):
    gone = multiprocessing.get_context("fork").Process(target=int)
    gone.start()
    gone.join()
    owner = {"pid": gone.pid, "host": socket.gethostname(), "here": "another namespace", "token": "t"}
    (tmp_path / "lock").write_text(json.dumps(owner))
    with pytest.raises(Locked, match=str(gone.pid)):
        CellLock(tmp_path).__enter__()
    assert (tmp_path / "lock").exists()


def _no_hard_links(*paths: Path) -> None:
    raise PermissionError(1, "Operation not permitted")


def test_lock_on_a_drive_without_hard_links(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "link", _no_hard_links)
    with CellLock(tmp_path):
        with pytest.raises(Locked, match=str(os.getpid())):
            CellLock(tmp_path).__enter__()
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "lock").touch()  # seen before its owner wrote into it
    with pytest.raises(Locked):
        CellLock(tmp_path).__enter__()


def test_silent_lock_of_another_host_is_reclaimed_and_a_beating_one_is_not(tmp_path):
    lock = tmp_path / "lock"
    lock.write_text(json.dumps({"pid": 1, "host": "elsewhere", "token": "t"}))
    with pytest.raises(Locked, match="elsewhere"):
        CellLock(tmp_path, stale=60).__enter__()
    os.utime(lock, (time.time() - 100,) * 2)
    with CellLock(tmp_path, stale=60):
        pass


def test_heartbeat_keeps_the_lock_fresh(tmp_path):
    with CellLock(tmp_path, beat=0.02):
        os.utime(tmp_path / "lock", (0, 0))
        deadline = time.time() + 5
        while (tmp_path / "lock").stat().st_mtime == 0 and time.time() < deadline:
            time.sleep(0.02)
        assert (tmp_path / "lock").stat().st_mtime > 0


def _work_once(folder: Path, barrier, log: Path) -> None:
    barrier.wait()
    while not (folder / "done").exists():
        try:
            with CellLock(folder):
                if not (folder / "done").exists():
                    with log.open("a") as file:
                        file.write("ran\n")
                    time.sleep(0.2)
                    (folder / "done").touch()
        except Locked:
            time.sleep(0.01)


@pytest.mark.parametrize("hard_links", [True, False])
@pytest.mark.parametrize("stale_lock", [False, True])
def test_processes_that_race_for_one_lock_do_the_work_once(tmp_path, stale_lock, hard_links, monkeypatch):
    if not hard_links:
        monkeypatch.setattr(os, "link", _no_hard_links)
    folder = tmp_path / "cell"
    folder.mkdir()
    if stale_lock:
        (folder / "lock").write_text(json.dumps({"pid": 1, "host": "elsewhere", "token": "t"}))
        os.utime(folder / "lock", (0, 0))
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(4)
    workers = [context.Process(target=_work_once, args=(folder, barrier, tmp_path / "log")) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(30)
    assert (tmp_path / "log").read_text() == "ran\n"


def test_algorithm_versions_are_raised_with_their_code():
    """See ``wbcrepro/experiments/versions.py`` for the two answers to a failure."""
    committed = json.loads((PACKAGE.parent / "tests" / "algorithm_digests.json").read_text())
    changed = {name: now for name, now in digests().items() if committed.get(name) != now}
    assert not changed, (
        f"the code of {sorted(changed)} changed. If results can change, raise the version in "
        "wbcrepro/experiments/versions.py; then: python -m wbcrepro.experiments.versions > tests/algorithm_digests.json"
    )


def test_an_algorithm_watched_late_enters_identities_when_its_version_is_raised(monkeypatch):
    before = versions_of("train")
    assert "metrics" not in before and "metrics" in digests()
    monkeypatch.setitem(versions.ALGORITHMS, "metrics", (1, versions.ALGORITHMS["metrics"][1]))
    assert versions_of("train") == before | {"metrics": 1}


def test_every_watched_algorithm_reaches_an_identity(monkeypatch):
    """Through a kind of cell (Cellpose: where it is asked for) or, for the smears, through the digest of the data."""
    used = {name for names in versions.USED_BY.values() for name in names}
    assert set(versions.ALGORITHMS) - used - set(domains.ALGORITHMS) == {"smears", "cellpose"}
    for name in domains.ALGORITHMS:  # each enters the identity of its own trainings
        assert name in versions.versions_of("domain_train", name)
    before = SmearSource(SmearSpec.balanced(1, size=32)).manifest.digest
    assert versions.ALGORITHMS["smears"][0] == source.DRAWING
    monkeypatch.setattr(source, "DRAWING", source.DRAWING + 1)
    assert SmearSource(SmearSpec.balanced(1, size=32)).manifest.digest != before


def test_a_checkout_without_the_program_git_still_names_its_version(tmp_path, monkeypatch):
    import wbcrepro
    from wbcrepro.experiments import environment

    (tmp_path / ".git").mkdir()
    monkeypatch.setattr(wbcrepro, "__file__", str(tmp_path / "wbcrepro" / "__init__.py"))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert environment.commit.__wrapped__() == f"wbcrepro {wbcrepro.__version__}"
