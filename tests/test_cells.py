"""Segmentation against masks by people (Zheng-18) and drawn truth, every status, Cellpose's two interfaces."""

import sys
import time
import types
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from wbcrepro.data.smears import LABORATORIES, SmearSource, SmearSpec
from wbcrepro.errors import DataMissing
from wbcrepro.rescue import cell_evaluation, red_cells
from wbcrepro.rescue.cell_evaluation import evaluate, evaluate_zheng18, iou, smear_masks, summary
from wbcrepro.rescue.cells import STATUSES, SegmentSettings, cell_from_labels, segment
from wbcrepro.rescue.cells_cellpose import load_cellpose
from wbcrepro.rescue.outline import best_ring

ROOT = Path(__file__).resolve().parents[1]
SIX = ("LY", "SNE", "EO", "MO", "PC", "PLY")


def smears(size=96, per_class=4, classes=SIX, **options):
    return SmearSource(SmearSpec.balanced(per_class, classes, **{"size": size, "confined": {}, "seed": 3, **options}))


# --- how good --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def zheng18(real_data, tmp_path_factory):
    try:
        return evaluate_zheng18(real_data, tmp_path_factory.mktemp("cache"))
    except DataMissing as error:
        pytest.skip(f"Zheng-18 is not there: {error}")


def test_zheng18_images_that_nothing_was_tuned_on(zheng18):
    test = summary(zheng18, "part").loc["test"]
    assert test["images"] == 150 and test["no_cell"] == 0
    assert test["cell_mean"] >= 0.93 and test["cell_tenth"] >= 0.85
    assert test["nucleus_mean"] >= 0.87 and test["nucleus_tenth"] >= 0.75


def test_the_committed_table_is_what_the_code_gives(zheng18):
    committed = pd.read_csv(ROOT / "results" / "cells-zheng18.csv", comment="#")
    assert list(committed.columns) == list(zheng18.columns) and list(committed["image"]) == list(zheng18["image"])
    assert (committed["status"] == zheng18["status"]).mean() > 0.98
    for column in ("cell_iou", "nucleus_iou"):  # other versions of the libraries round otherwise
        assert abs(committed[column].mean() - zheng18[column].mean()) < 0.005


@pytest.mark.parametrize("size", [64, 96, 128])
def test_smears_of_every_laboratory(size):
    source = smears(size)
    table = evaluate(source, smear_masks(source))
    table["laboratory"] = source.manifest.frame["domain"]
    found = summary(table, "laboratory")
    assert set(found.index) == set(LABORATORIES) and (found["no_cell"] == 0).all()
    assert (found["cell_mean"] > 0.92).all() and (found["nucleus_mean"] > 0.87).all()


def test_a_crowd_of_red_cells_costs_little():
    scores = {}
    for amount in (0.0, 2.2):
        source = smears(red_cells=amount)
        scores[amount] = evaluate(source, smear_masks(source))["cell_iou"]
    assert scores[2.2].mean() > 0.94 and scores[2.2].mean() > scores[0.0].mean() - 0.04


def test_speed():
    source = smears(128, per_class=2)
    images = [source.read(row) for row in range(len(source))]
    spent = []
    for _ in range(3):  # the fastest: other processes only ever slow one down
        start = time.process_time()
        for image in images:
            segment(image)
        spent.append(time.process_time() - start)
    assert len(images) / min(spent) > 40  # cells a second of CPU time


# --- what every answer is --------------------------------------------------------------------------------------------


def test_masks_fit_the_image_and_each_other():
    source = smears(72, per_class=2)
    for row in range(len(source)):
        image = source.read(row)
        before = image.copy()
        cell = segment(image)
        assert np.array_equal(image, before)
        assert cell.status in STATUSES and cell.cell.dtype == cell.nucleus.dtype == bool
        assert cell.cell.shape == cell.nucleus.shape == image.shape[:2]
        assert not (cell.nucleus & ~cell.cell).any() and cell.nucleus.any()
        y, x = np.nonzero(cell.cell)
        assert cell.centroid == pytest.approx((x.mean(), y.mean()))


@pytest.mark.parametrize("turn", [lambda a: a[::-1], lambda a: a[:, ::-1], lambda a: np.rot90(a)])
def test_a_turned_image_gives_the_turned_masks(turn):
    source = smears(96, per_class=2)
    for row in range(len(source)):
        image = source.read(row)
        cell, turned = segment(image), segment(np.ascontiguousarray(turn(image)))
        assert iou(turn(cell.cell), turned.cell) > 0.93, source.manifest.frame["id"][row]


def test_scale_of_the_picture_does_not_matter():
    source = smears(96, per_class=1)
    for row in range(len(source)):
        image = source.read(row)
        large = np.repeat(np.repeat(image, 4, axis=0), 4, axis=1)
        assert iou(segment(large).cell[2::4, 2::4], segment(image).cell) > 0.93


@pytest.mark.parametrize("image", [np.zeros((9, 9), np.uint8), np.zeros((3, 9, 9), np.uint8), [[1]], None,
                                   np.zeros((9, 9, 3), float), np.zeros((0, 9, 3), np.uint8)])  # fmt: skip
def test_what_is_no_image_is_refused(image):
    with pytest.raises(ValueError, match="expected"):
        segment(image)


# --- statuses --------------------------------------------------------------------------------------------------------


def beside(first, second, shift):
    """Both images in one picture, the second ``shift`` pixels to the right of the first (the darker pixel wins)."""
    height, width = first.shape[:2]
    canvas = np.full((height, width + shift, 3), np.median(first.reshape(-1, 3), axis=0), np.uint8)
    canvas[:, :width] = first
    canvas[:, shift:] = np.minimum(canvas[:, shift:], second)
    return canvas


def one(label="LY", row=0, **options):
    return smears(96, per_class=row + 1, classes=(label,), domains=("mgg",), red_cells=0, **options).read(row)


def test_one_whole_cell_is_ok():
    cell = segment(one("SNE"))
    assert cell.status == "ok" and cell.other_cells == 0


def test_two_cells():
    pair = beside(one("LY"), one("LY", row=1), 50)
    cell = segment(pair)
    assert cell.status == "several_cells" and cell.other_cells == 1
    assert cell.cell.sum() < 0.75 * (segment(one("LY")).cell.sum() + segment(one("LY", row=1)).cell.sum())


def test_a_cell_cut_by_the_edge():
    assert segment(one("MO")[:, 38:]).status == "touches_border"


@pytest.mark.parametrize("level", [0, 255, 128])
def test_blank(level):
    cell = segment(np.full((64, 64, 3), level, np.uint8))
    assert cell.status == "blank" and not cell.cell.any() and not cell.nucleus.any() and np.isnan(cell.centroid).all()


@pytest.mark.parametrize("shape", [(1, 1, 3), (15, 80, 3), (80, 15, 3)])
def test_smaller_than_can_be_looked_at(shape):
    assert segment(np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)).status == "too_small"


def test_an_empty_field_and_one_of_noise():
    rng = np.random.default_rng(0)
    empty = np.clip(rng.normal((230, 215, 200), 3, (80, 80, 3)), 0, 255).astype(np.uint8)
    assert segment(empty).status == "no_cell"
    assert not segment(rng.integers(0, 256, (80, 80, 3)).astype(np.uint8)).cell.any()


def test_red_cells_only():
    y, x = np.mgrid[:96, :96]
    image = np.full((96, 96, 3), (245, 230, 205), np.uint8)
    for row, column in ((20, 30), (52, 46), (80, 75), (25, 80)):
        image[np.hypot(y - row, x - column) < 14] = (205, 150, 150)
    image = np.clip(image + np.random.default_rng(0).normal(0, 2, image.shape), 0, 255).astype(np.uint8)
    cell = segment(image)
    assert cell.status == "no_nucleus" and not cell.cell.any()


def test_every_status_is_tested_above():
    text = Path(__file__).read_text(encoding="utf-8")
    assert not [status for status in STATUSES if f'== "{status}"' not in text]


def test_any_content_gets_a_status():
    rng = np.random.default_rng(1)
    for _ in range(40):
        image = np.full((*rng.integers(16, 90, 2), 3), rng.integers(0, 256, 3), np.uint8)
        for _ in range(rng.integers(0, 5)):
            top, left = rng.integers(0, 60, 2)
            image[top : top + rng.integers(1, 50), left : left + rng.integers(1, 50)] = rng.integers(0, 256, 3)
        assert segment(image).status in STATUSES


# --- parts -----------------------------------------------------------------------------------------------------------


def test_the_ring_is_the_best_of_all_small_rings():
    rng = np.random.default_rng(0)
    rays, radii, bend = 6, 4, 1.5
    rings = np.stack(np.meshgrid(*[np.arange(radii)] * rays, indexing="ij"), axis=-1).reshape(-1, rays)
    for _ in range(20):
        gain = rng.normal(size=(rays, radii))
        gain[0, rng.integers(radii)] += 50  # fixes one ray, so that going round twice is exact
        step = rings - np.roll(rings, 1, axis=1)
        cost = bend * (step / (rings + 1.0)) ** 2
        best = rings[(gain[np.arange(rays), rings] - cost).sum(axis=1).argmax()]
        assert best_ring(gain, bend).tolist() == best.tolist()


def test_colour_speaks_only_where_it_tells_red_cells_from_cytoplasm():
    rng = np.random.default_rng(0)
    cytoplasm, red = rng.normal((0.5, 0.6, 0.1), 0.03, (200, 3)), rng.normal((0.15, 0.5, 0.4), 0.03, (400, 3))
    density = np.stack([cytoplasm[:100], red[:100]]).astype(np.float32)
    found = red_cells.evidence(density, cytoplasm, red)
    assert found[0].min() > 0 > found[1].max()
    assert red_cells.evidence(density, cytoplasm, cytoplasm[:150] + 0.01) is None  # the same colour
    assert red_cells.evidence(density, cytoplasm, red * 0.3) is None  # too faint
    assert red_cells.evidence(density, cytoplasm[:9], red) is None and red_cells.evidence(density, red, red[:9]) is None


def test_iou():
    a, b = np.zeros((4, 4), bool), np.zeros((4, 4), bool)
    assert iou(a, b) == 1
    a[:2], b[1:3] = True, True
    assert iou(a, b) == pytest.approx(4 / 12) and iou(a, ~a) == 0


def test_a_mask_that_is_not_there(tmp_path):
    manifest = types.SimpleNamespace(frame=pd.DataFrame({"path": ["1.bmp"]}))
    source = types.SimpleNamespace(root=tmp_path, manifest=manifest)
    with pytest.raises(DataMissing, match="1.png"):
        cell_evaluation.zheng18_masks(source)(0)


# --- Cellpose --------------------------------------------------------------------------------------------------------


def fake_cellpose(monkeypatch, version, labels):
    """A module with the interface of Cellpose 3 or 4 that knows the answer; returns the record of its calls."""
    calls = []

    class Model4:
        def __init__(self, gpu=False, pretrained_model="cpsam"):
            calls.append(("CellposeModel", gpu, pretrained_model))

        def eval(self, x, diameter=None, normalize=True, batch_size=8):
            calls.append(("eval4", x.shape, diameter, normalize))
            return labels, [], np.zeros(256)

    class Model3:
        def __init__(self, gpu=False, model_type="cyto3"):
            calls.append(("Cellpose", gpu, model_type))

        def eval(self, x, diameter=30.0, channels=None):
            calls.append(("eval3", x.shape, diameter, channels))
            return labels, [], np.zeros(256), 30.0

    models = types.ModuleType("cellpose.models")
    models.CellposeModel = Model4
    if version == 3:
        models.Cellpose = Model3
    package = types.ModuleType("cellpose")
    package.models = models
    monkeypatch.setitem(sys.modules, "cellpose", package)
    monkeypatch.setitem(sys.modules, "cellpose.models", models)
    return calls


@pytest.fixture(scope="module")
def labelled():
    """An image, its truth, and label masks: 1 a red cell in the middle of nowhere, 2 the white cell."""
    source = smears(96, per_class=1, classes=("SNE",), domains=("mgg",))
    truth = source.truth(0)
    cell = truth.nucleus | truth.cytoplasm
    labels = np.zeros((96, 96), np.int32)
    labels[2:12, 2:12] = 1
    labels[cell] = 2
    return source.read(0), cell, truth.nucleus, labels


@pytest.mark.parametrize("version", [3, 4])
def test_both_generations_of_cellpose_give_the_same_result(monkeypatch, labelled, version):
    image, cell, nucleus, labels = labelled
    calls = fake_cellpose(monkeypatch, version, labels)
    segmenter = load_cellpose()
    found = segmenter(image)
    assert segmenter.version == version and found.status == "ok" and found.other_cells == 0
    assert np.array_equal(found.cell, cell) and iou(found.nucleus, nucleus) > 0.85
    assert not (found.nucleus & ~found.cell).any()
    expected = {3: [("Cellpose", False, "cyto3"), ("eval3", image.shape, None, [0, 0])],
                4: [("CellposeModel", False, "cpsam"), ("eval4", image.shape, None, True)]}  # fmt: skip
    assert calls == expected[version]


def test_cellpose_statuses(monkeypatch, labelled):
    image, cell, _, labels = labelled
    nothing = np.zeros_like(labels)
    assert cell_from_labels(image, nothing).status == "no_cell"
    assert cell_from_labels(image, np.where(labels == 1, 1, 0)).status == "no_nucleus"
    left = labels.copy()
    left[:, :48][cell[:, :48]] = 3  # the cell in two halves, each with a part of the nucleus
    assert cell_from_labels(image, left).status == "several_cells"
    fake_cellpose(monkeypatch, 4, nothing)
    assert load_cellpose()(np.zeros((40, 40, 3), np.uint8)).status == "blank"
    with pytest.raises(ValueError, match="labels have the shape"):
        cell_from_labels(image, labels[:50])


def test_without_cellpose_or_its_weights(monkeypatch):
    monkeypatch.setitem(sys.modules, "cellpose", None)
    with pytest.raises(DataMissing, match="pip install"):
        load_cellpose()
    fake_cellpose(monkeypatch, 4, None)

    def offline(**_):
        raise OSError("no route to host")

    sys.modules["cellpose.models"].CellposeModel = offline
    with pytest.raises(DataMissing, match="could not fetch"):
        load_cellpose()


def test_settings_are_used():
    image = one("SNE")
    assert segment(image, SegmentSettings(smallest=200)).status == "too_small"
    assert segment(image, SegmentSettings(contrast=300)).status == "blank"
    assert segment(image, SegmentSettings(side=64)).cell.shape == image.shape[:2]
