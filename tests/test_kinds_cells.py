"""Isolated and measured cells: chunks with two writers, as after a kill whose workers live on; Cellpose; the released
features."""

import os
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from fake_rescue_store import fake_rescue_plan, write_json
from test_cells import fake_cellpose

from wbcrepro.data.pixels import PixelCache, Preprocessing, build_pixels
from wbcrepro.errors import DataMissing, UsageError
from wbcrepro.experiments import kinds_cells, plan_rescue
from wbcrepro.experiments.run import Context
from wbcrepro.experiments.store import Store
from wbcrepro.papers import load_paper, profile_of
from wbcrepro.rescue.cells import segment
from wbcrepro.rescue.isolate import border_crop
from wbcrepro.rescue.morphology import COLUMNS, released_morphology

SIDE, WINDOW = 64, 48


def test_two_writers_of_one_chunk_do_not_take_each_others_file(tmp_path, monkeypatch):
    images = np.full((3, 3, 32, 32), 255, np.uint8)
    chunks = kinds_cells._Segmentation(images, 32, tmp_path)
    save, rivals = np.savez, []

    def save_beside_a_rival(path, **arrays):
        save(path, **arrays)
        if not rivals:  # another process starts and ends the same chunk before this one publishes its own
            rivals.append(os.getpid() + 1)
            with monkeypatch.context() as other:
                other.setattr(os, "getpid", lambda: rivals[0])
                chunks[0]

    monkeypatch.setattr(np, "savez", save_beside_a_rival)
    chunks[0]
    assert [path.name for path in tmp_path.iterdir()] == ["part-00000.npz"]
    with np.load(tmp_path / "part-00000.npz") as part:
        assert part["status"].tolist() == ["blank"] * 3


def drawn(row=0, radius=14):
    """A violet cell with a dark nucleus in the middle of a bright field, uint8 (SIDE, SIDE, 3)."""
    y, x = np.mgrid[:SIDE, :SIDE] - SIDE / 2
    image = np.full((SIDE, SIDE, 3), 235, np.uint8)
    image[np.hypot(y, x) < radius] = 190, 170, 215
    image[np.hypot(y, x) < radius / 2] = 90, 50, 140
    return image + np.uint8(row % 3)


@pytest.fixture(scope="module")
def plan():
    found = fake_rescue_plan("tiny", folds=2)
    found.benchmark.source = None  # nothing was drawn here that masks could be compared with
    return found


def cells_of(plan, path, segmentation="default", radius=14):
    """The context of the ``cells`` cell that a profile with this segmentation plans; its pixels are drawn."""
    paper, benchmark = load_paper("rescue"), plan.benchmark
    settings = profile_of(paper, "tiny") | {"segmentation": segmentation, "window": WINDOW}
    pixels, cell = plan_rescue.plan_rescue(paper, "tiny", settings, benchmark, "random")[:2]
    store = Store(path)
    store.folder(cell.id).mkdir(parents=True)
    count = len(benchmark.table)
    build_pixels(lambda row: drawn(row, radius), count, Preprocessing("none", SIDE, SIDE),
                 store.folder(pixels.id) / "pixels", progress=False, workers=0)  # fmt: skip
    for name in ("cell", "env", "metrics"):
        write_json(store.folder(pixels.id) / f"{name}.json", pixels.to_json() if name == "cell" else {})
    return Context(cell, store, plan, torch.device("cpu"), progress=False)


@pytest.mark.parametrize("version", [3, 4])
def test_a_profile_may_ask_for_cellpose(plan, tmp_path, monkeypatch, version):
    labels = np.zeros((SIDE, SIDE), np.int32)
    labels[20:44, 20:40] = 7  # no outline of ours is a rectangle
    calls = fake_cellpose(monkeypatch, version, labels)
    context = cells_of(plan, tmp_path, "cellpose")
    report = kinds_cells.run_cells(context)
    with np.load(context.folder / "cells.npz") as found:
        masks = np.unpackbits(found["cell"], axis=-1, count=WINDOW).astype(bool)
        assert (found["status"] == "ok").all() and (masks.sum((1, 2)) == 24 * 20).all()
    evaluated = [call for call in calls if call[0] == f"eval{version}"]
    assert len(evaluated) == report["images"] == len(plan.benchmark.table)
    assert context.notes == {"segmentation": f"Cellpose {version}"}
    images = PixelCache.open(context.folder / "pixels").images
    assert (images[0].min(0) < 255).sum() == 24 * 20


def test_the_default_segmentation_asks_for_no_cellpose(plan, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "cellpose", None)
    context = cells_of(plan, tmp_path)
    kinds_cells.run_cells(context)
    with np.load(context.folder / "cells.npz") as found:
        cell = np.unpackbits(found["cell"][0], axis=-1, count=WINDOW).astype(bool)
    assert cell.sum() == segment(drawn()).cell.sum() and not context.notes


def test_cellpose_that_is_not_installed_says_how_to_get_it(plan, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "cellpose", None)
    with pytest.raises(DataMissing, match=r"pip install 'wbcrepro\[cells\]'"):
        kinds_cells.run_cells(cells_of(plan, tmp_path, "cellpose"))


def test_a_segmentation_that_nobody_has_is_refused(plan, tmp_path):
    with pytest.raises(UsageError, match="default or cellpose"):
        kinds_cells.run_cells(cells_of(plan, tmp_path, "otsu"))


def test_cellpose_has_its_own_cells_and_version(plan, tmp_path):
    default, other = (cells_of(plan, tmp_path / name, name).cell for name in ("default", "cellpose"))
    assert default.versions == {"cells": 1} and other.versions == {"cells": 1, "cellpose": 1}
    assert default.id != other.id
    profiles = load_paper("rescue")["profiles"].values()
    assert {profile["segmentation"] for profile in profiles} == {"default"}


def test_released_features_are_those_of_the_released_code(golden, plan, tmp_path):
    file = golden("morphology")
    images, count = file["images"], len(file["images"])
    benchmark = replace(plan.benchmark, table=plan.benchmark.table.iloc[:count])
    plan = replace(plan, benchmark=benchmark)
    cell = next(c for c in plan.find(benchmark=benchmark.name) if c.kind == "released_morphology")
    store = Store(tmp_path)
    isolated, restored = (store.folder(parent) for parent in cell.parents)
    shown = np.roll(images, 1, axis=0)
    shown[1:] = images[1:]  # the first one is noisy: what is measured of it stands in full.npy
    side = images.shape[1]
    build_pixels(lambda row: shown[row], count, Preprocessing("none", side, side), isolated / "pixels",
                 progress=False, workers=0)  # fmt: skip
    restored.mkdir(parents=True)
    np.save(restored / "full.npy", images[:1].transpose(0, 3, 1, 2))
    np.savez(restored / "noise.npz", rows=np.array([0]))
    for folder in (isolated, restored):
        for name in ("cell", "env", "metrics"):
            write_json(folder / f"{name}.json", {})
    store.folder(cell.id).mkdir(parents=True)
    context = Context(cell, store, plan, torch.device("cpu"), progress=False)
    kinds_cells.RUNNERS[cell.kind](context)
    with np.load(context.folder / "morphology.npz") as found:
        features, expected = found["features"], file["pc_features"]
        assert tuple(found["columns"]) == COLUMNS and (found["status"] == "ok").all()
    np.testing.assert_allclose(features[:, 1:5], expected[:, :4], rtol=1e-5)
    np.testing.assert_allclose(features[:, 5:7], expected[:, 4:6], atol=0.03)
    np.testing.assert_allclose(features[:, 7], expected[:, 6], atol=2)
    cropped = [released_morphology(image, border_crop(image, size=224))[0][0] for image in images]
    np.testing.assert_allclose(features[:, 0], cropped, rtol=1e-6)
    assert abs(features[:, 0] - file["spikiness"]).max() > 0.01, "the border was not cropped"


def test_cells_that_the_window_cuts_are_counted(plan, tmp_path):
    small, large = cells_of(plan, tmp_path / "small"), cells_of(plan, tmp_path / "large", radius=26)
    images = plan.benchmark.table["set"].value_counts().to_dict()
    assert kinds_cells.run_cells(small)["cut_by_window"] == dict.fromkeys(images, 0)
    report = kinds_cells.run_cells(large)
    assert report["cut_by_window"] == images
    assert report["status"] == {name: {"ok": count} for name, count in images.items()}
    with np.load(large.folder / "cells.npz") as found:
        assert found["cut"].all()
