"""The manifest's identity, its file, duplicates and conflicts; the scan's cache, and Ctrl-C and SIGKILL in a scan."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from wbcrepro.data import scan as scanning
from wbcrepro.data.manifest import COLUMNS, Manifest, write_atomically
from wbcrepro.errors import DataMissing, UsageError


def frame(rows, **extra):
    base = dict.fromkeys(COLUMNS, "") | {"width": 8, "height": 8, "status": "ok", "mode": "RGB"}
    return pd.DataFrame([base | {"path": row["id"]} | row | extra for row in rows])


ROWS = [
    {"id": "b/2.png", "source_label": "b", "label": "b", "sha256": "22", "group": "p1"},
    {"id": "a/1.png", "source_label": "a", "label": "a", "sha256": "11", "group": "p1"},
    {"id": "a/3.png", "source_label": "a", "label": "a", "sha256": "22", "group": "p2"},
    {"id": "x/4.png", "source_label": "", "label": "", "sha256": "11", "group": ""},
    {"id": "b/5.png", "source_label": "b", "label": "b", "sha256": "", "status": "quarantined", "reason": "empty file"},
]


def test_rows_are_sorted_by_id_with_a_plain_index():
    manifest = Manifest("demo", ("a", "b"), frame(ROWS))
    assert list(manifest.frame["id"]) == sorted(row["id"] for row in ROWS)
    assert isinstance(manifest.frame.index, pd.RangeIndex) and tuple(manifest.frame.columns) == COLUMNS
    assert manifest.counts() == {"a": 2, "b": 1}


def test_digest_has_no_order_path_size_or_name_but_every_fact_that_a_result_depends_on():
    manifest = Manifest("demo", ("a", "b"), frame(ROWS))
    same = Manifest("other", ("a", "b"), frame(ROWS[::-1], path="elsewhere.png", width=9))
    assert manifest.digest == same.digest
    for column in ("label", "domain", "group", "split", "sha256", "status"):
        changed = frame(ROWS)
        changed.loc[0, column] = "a"
        assert Manifest("demo", ("a", "b"), changed).digest != manifest.digest, column
    assert Manifest("demo", ("b", "a"), frame(ROWS)).digest != manifest.digest, "the order of the classes is their code"


def test_duplicates_and_conflicts():
    manifest = Manifest("demo", ("a", "b"), frame(ROWS))
    assert list(manifest.duplicates()["id"]) == ["a/1.png", "x/4.png", "a/3.png", "b/2.png"]
    assert list(manifest.conflicts()["id"]) == ["a/3.png", "b/2.png"], "an unlabelled copy is no conflict"
    assert list(manifest.quarantined()["id"]) == ["b/5.png"]


def test_save_and_load_keep_everything(tmp_path):
    rows = [row | {"reason": 'a "quoted", reason', "group": "NA", "label": ""} for row in ROWS]
    manifest = Manifest("demo", ("a", "b"), frame(rows, severity="2"))
    manifest.save(tmp_path / "deep" / "m.csv")
    loaded = Manifest.load(tmp_path / "deep" / "m.csv")
    pd.testing.assert_frame_equal(loaded.frame, manifest.frame)
    assert (loaded.name, loaded.classes, loaded.digest) == ("demo", ("a", "b"), manifest.digest)
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["m.csv"]


@pytest.mark.parametrize("spoil", [lambda text: text.replace("p2", "p1"), lambda text: text[: len(text) // 2],
                                   lambda text: "", lambda text: text.partition("\n")[2]])  # fmt: skip
def test_a_changed_or_cut_manifest_is_refused(tmp_path, spoil):
    path = tmp_path / "m.csv"
    Manifest("demo", ("a", "b"), frame(ROWS)).save(path)
    path.write_text(spoil(path.read_text()))
    with pytest.raises(DataMissing, match="m.csv"):
        Manifest.load(path)


def test_a_missing_manifest_names_the_next_step(tmp_path):
    with pytest.raises(DataMissing, match="wbcrepro data verify"):
        Manifest.load(tmp_path / "none.csv")


def test_impossible_manifests_are_refused():
    with pytest.raises(UsageError, match="ids repeat"):
        Manifest("demo", ("a", "b"), frame([ROWS[0], ROWS[0]]))
    with pytest.raises(UsageError, match="not among"):
        Manifest("demo", ("a",), frame(ROWS))
    with pytest.raises(UsageError, match="group"):
        Manifest("demo", ("a", "b"), frame(ROWS).drop(columns="group"))


def test_a_failed_write_leaves_the_old_file_and_no_part(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomically(path, b"old")
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


@pytest.fixture
def images(tmp_path):
    generator = np.random.default_rng(0)
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(100):
        Image.fromarray(generator.integers(0, 256, (6, 9, 3), dtype=np.uint8)).save(folder / f"{number:03d}.png")
    (folder / "bad.png").write_bytes(b"")
    return folder


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def counting(monkeypatch):
    opened, original = [], scanning.inspect
    monkeypatch.setattr(scanning, "inspect", lambda root, path: opened.append(path) or original(root, path))
    return opened


def test_scan_does_not_depend_on_workers_and_opens_only_what_changed(images, tmp_path, monkeypatch):
    first = scanning.scan(images, names(images), tmp_path / "one.csv", workers=1, progress=False)
    cache = tmp_path / "cache.csv"
    assert scanning.scan(images, names(images), cache, workers=4, progress=False) == first
    assert list(first) == names(images) and first["bad.png"].reason == "empty file" and first["007.png"].width == 9
    opened = counting(monkeypatch)
    assert scanning.scan(images, names(images), cache, progress=False) == first and not opened
    time.sleep(0.01)
    Image.new("RGB", (5, 5)).save(images / "007.png")
    (images / "008.png").unlink()
    second = scanning.scan(images, names(images), cache, progress=False)
    assert opened == ["007.png"] and second["007.png"].width == 5 and "008.png" not in second


def test_a_spoiled_or_outdated_cache_is_looked_at_anew(images, tmp_path, monkeypatch):
    cache = tmp_path / "cache.csv"
    first = scanning.scan(images, names(images), cache, progress=False)
    text = cache.read_text()
    for spoiled in (text[: len(text) // 2], text.replace("decode-", "decode-0"), "\0\0\0", ""):
        cache.write_text(spoiled)
        assert scanning.scan(images, names(images), cache, progress=False) == first


def test_a_file_that_could_not_be_read_is_tried_again(images, tmp_path):
    cache = tmp_path / "cache.csv"
    gone = scanning.scan(images, ["later.png"], cache, progress=False)["later.png"]
    assert gone.status == "quarantined" and "cannot be read" in gone.reason
    Image.new("RGB", (5, 5)).save(images / "later.png")
    assert scanning.scan(images, ["later.png"], cache, progress=False)["later.png"].status == "ok"


def test_interruption_keeps_what_was_learnt(images, tmp_path, monkeypatch):
    cache, original = tmp_path / "cache.csv", scanning.inspect

    def interrupted(root, path):
        if path == "070.png":
            raise KeyboardInterrupt
        return original(root, path)

    monkeypatch.setattr(scanning, "inspect", interrupted)
    with pytest.raises(KeyboardInterrupt):
        scanning.scan(images, names(images), cache, workers=1, progress=False)
    monkeypatch.setattr(scanning, "inspect", original)
    opened = counting(monkeypatch)
    scanning.scan(images, names(images), cache, progress=False)
    assert 0 < len(opened) < 101 and "070.png" in opened


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_killed_scan_goes_on_where_it_was(images, tmp_path, monkeypatch, how):
    program = (
        "import signal, sys, time; from pathlib import Path; from wbcrepro.data import scan\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job inherits it ignored\n"
        "scan._CHUNK, scan._SAVE_EVERY_SECONDS, first = 4, 0.0, scan.inspect\n"
        "def slow(root, path): time.sleep(0.02); print(path, flush=True); return first(root, path)\n"
        "scan.inspect = slow; root = Path(sys.argv[1])\n"
        "scan.scan(root, sorted(p.name for p in root.iterdir()), Path(sys.argv[2]), workers=1, progress=False)\n"
    )
    cache = tmp_path / "cache.csv"
    process = subprocess.Popen([sys.executable, "-c", program, images, cache], stdout=-1, stderr=-3, text=True)
    for _ in range(40):
        process.stdout.readline()
    process.send_signal(how)
    try:
        process.communicate(timeout=0.3)
    except subprocess.TimeoutExpired:  # an interrupt that lands in a destructor is lost: press Ctrl-C again
        process.send_signal(how)
        process.communicate(timeout=60)
    assert process.returncode != 0
    opened = counting(monkeypatch)
    facts = scanning.scan(images, names(images), cache, progress=False)
    assert 0 < len(opened) < 80
    fresh = scanning.scan(images, names(images), tmp_path / "fresh.csv", progress=False)
    assert facts == fresh
