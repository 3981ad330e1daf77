"""Spikiness and cell features: golden vectors of the released code, shapes with known answers, cells that have none."""

from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from wbcrepro.rescue.morphology import (
    COLUMNS,
    PC_COLUMNS,
    Morphology,
    collect,
    morphology,
    pc_features,
    released_morphology,
    two_means,
)
from wbcrepro.rescue.spikiness import released_foreground, spikiness


def gray(image):
    return cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)


@pytest.mark.parametrize("images, scores", [("gray", "spikiness"), ("noisy_gray", "noisy_spikiness")])
def test_golden_spikiness(golden, images, scores):
    file = golden("morphology")
    found = [spikiness(released_foreground(g)) for g in file[images]]
    np.testing.assert_allclose(found, file[scores], atol=1e-6)


def test_golden_spikiness_from_colour(golden):
    file = golden("morphology")
    for images, scores in (("images", "spikiness"), ("shape_images", "shape_spikiness")):
        found = [released_morphology(image)[0][0] for image in file[images]]
        np.testing.assert_allclose(found, file[scores], atol=1e-6)


def test_golden_features(golden):
    file = golden("morphology")
    assert tuple(file["pc_columns"]) == PC_COLUMNS
    found = np.array([pc_features(image) for image in file["images"]])
    expected = file["pc_features"]
    np.testing.assert_allclose(found[:, :4], expected[:, :4], rtol=1e-5)
    np.testing.assert_allclose(found[:, 4:6], expected[:, 4:6], atol=0.03)
    np.testing.assert_allclose(found[:, 6], expected[:, 6], atol=2)


def test_golden_features_stay_near_the_seeds_of_the_released_k_means(golden):
    """The exact 2-means lies within the span that 21 random starts of the reference cover, or just beside it."""
    file = golden("morphology")
    found = np.array([pc_features(image) for image in file["images"]])
    slack = np.array([0, 1e-4, 1e-4, 1e-6, 0.015, 1e-6, 1.1])
    assert (found >= file["pc_features_min"] - slack).all()
    assert (found <= file["pc_features_max"] + slack).all()


def test_golden_degenerate(golden):
    file = golden("morphology")
    assert [pc_features(image) is None for image in file["degenerate_images"]] == file["degenerate_pc_is_none"].tolist()
    statuses = [released_morphology(image)[1] for image in file["degenerate_images"]]
    assert statuses == ["no_cell", "too_small"]
    # The reference says 0 where nothing was measured; a number that is none is NaN here.
    assert (file["degenerate_spikiness"] == 0).all()
    assert np.isnan([released_morphology(image)[0][0] for image in file["degenerate_images"]]).all()


def test_golden_masks(golden):
    file = golden("morphology")
    columns = (file[key] for key in ("images", "masks", "mask_area", "mask_nc_ratio"))
    for image, mask, area, ratio in zip(*columns, strict=True):
        cell = SimpleNamespace(cell=mask > 0, nucleus=mask == 255, status="ok")
        features, status = morphology(image, cell)
        value = dict(zip(COLUMNS, features, strict=True))
        assert status == "ok" and value["Area"] == area
        assert value["NC_Ratio"] == pytest.approx(ratio)


def disc(size=121, centre=(60, 60), radius=40):
    y, x = np.mgrid[:size, :size]
    return (x - centre[0]) ** 2 + (y - centre[1]) ** 2 <= radius**2


def test_spikiness_of_a_disc_is_one_and_a_spike_raises_it_as_much_as_it_is_long():
    round_cell = disc()
    assert spikiness(round_cell) == pytest.approx(1, abs=0.03)
    spiked = round_cell.copy()
    spiked[58:63, 60:120] = True  # reaches 59 from the centre
    assert spikiness(spiked) == pytest.approx(59 / 40, abs=0.04)


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_spikiness_hardly_depends_on_how_the_cell_lies(turns):
    star = np.zeros((121, 121), np.uint8)
    angles = np.linspace(0, 2 * np.pi, 200)
    radius = 35 + 12 * np.cos(5 * angles)
    points = np.stack([60 + radius * np.cos(angles), 60 + radius * np.sin(angles)], 1).round().astype(np.int32)
    cv2.fillPoly(star, [points], 1)
    for vertices in ("compressed", "all"):
        one, two = (spikiness(np.ascontiguousarray(np.rot90(star, k)) > 0, vertices=vertices) for k in (0, turns))
        assert one == pytest.approx(two, rel=0.04)


def test_spikiness_looks_at_the_largest_object_and_closes_small_gaps():
    two = disc(200, (60, 60), 40)
    two[150:190, 150:154] = True  # a rod, far spikier
    assert spikiness(two) == pytest.approx(spikiness(disc(200, (60, 60), 40)))
    gap = disc()
    gap[:61, 59:62] = False  # a slit from the rim to the centre
    assert spikiness(gap) == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("mask", [np.zeros((20, 20), np.uint8), np.zeros((20, 20, 3), bool)])
def test_spikiness_refuses_what_is_no_mask(mask):
    with pytest.raises(ValueError, match="bool mask"):
        spikiness(mask)


def test_spikiness_refuses_an_unknown_option():
    with pytest.raises(ValueError, match="vertices"):
        spikiness(disc(), vertices="some")


@pytest.mark.parametrize("seed", range(20))
def test_two_means_is_the_best_of_all_thresholds(seed):
    rng = np.random.default_rng(seed)
    values = np.clip(np.r_[rng.normal(80, 25, 200), rng.normal(170, 20, rng.integers(5, 300))], 0, 255).astype(np.uint8)

    def scatter(low, high):
        return sum(((v := g.astype(float)) - v.mean()).dot(v - v.mean()) for g in (low, high))

    best = min(scatter(values[values <= t], values[values > t]) for t in range(values.min(), values.max()))
    low, high = two_means(values)
    dark = values <= (low + high) / 2
    assert scatter(values[dark], values[~dark]) == pytest.approx(best)
    assert (low, high) == (pytest.approx(values[dark].mean()), pytest.approx(values[~dark].mean()))


def test_two_means_of_one_level_does_not_exist():
    assert two_means(np.full(30, 77, np.uint8)) is None
    assert two_means(np.zeros(0, np.uint8)) is None


def plasma_cell(shift=15):
    """Radius 40, nucleus of radius 20 moved by ``shift``: blue-violet on paler blue, white around."""
    cell, nucleus = disc(), disc(centre=(60 + shift, 60), radius=20)
    image = np.full((121, 121, 3), 255, np.uint8)
    image[cell] = (150, 160, 210)
    image[nucleus] = (80, 50, 130)
    return image, SimpleNamespace(cell=cell, nucleus=nucleus, status="ok")


@pytest.mark.parametrize("shift", [0, 8, 15])
def test_both_ways_measure_what_was_drawn(shift):
    image, cell = plasma_cell(shift)
    released, masks = released_morphology(image), morphology(image, cell)
    assert released[1] == masks[1] == "ok"
    for features, _ in (released, masks):
        value = dict(zip(COLUMNS, features, strict=True))
        assert value["Area"] == cell.cell.sum()
        assert value["NC_Ratio"] == pytest.approx(cell.nucleus.sum() / cell.cell.sum())
        assert value["Offset"] == pytest.approx(shift / 40, abs=0.01)
        assert value["Cyto_Int"] == gray(image)[60, 22]
        assert value["RB_Ratio"] == pytest.approx(image[cell.cell].mean(0)[0] / image[cell.cell].mean(0)[2])
        assert value["StdDev"] == pytest.approx(gray(image)[cell.cell].astype(float).std())


def test_a_cell_of_one_grey_level_has_no_nucleus():
    image = np.full((121, 121, 3), 255, np.uint8)
    image[disc()] = 120
    features, status = released_morphology(image)
    assert status == "no_nucleus"
    assert np.isfinite(features[:5]).all() and np.isnan(features[5:]).all()


@pytest.mark.parametrize("value", [0, 255])
def test_black_and_white_images(value):
    features, status = released_morphology(np.full((64, 64, 3), value, np.uint8))
    assert status == ("no_nucleus" if value == 0 else "no_cell")
    assert np.isnan(features[-1])


def test_the_status_of_the_segmentation_is_kept_and_never_becomes_ok():
    image, cell = plasma_cell()
    features, status = morphology(image, SimpleNamespace(cell=cell.cell, nucleus=cell.nucleus, status="touches_border"))
    assert status == "touches_border" and np.isfinite(features).all()
    nothing = np.zeros_like(cell.cell)
    features, status = morphology(image, SimpleNamespace(cell=nothing, nucleus=nothing, status="no_cell"))
    assert status == "no_cell" and np.isnan(features).all()
    features, status = morphology(image, SimpleNamespace(cell=cell.cell, nucleus=nothing, status="ok"))
    assert status == "no_nucleus" and np.isfinite(features[:5]).all() and np.isnan(features[5:]).all()
    assert morphology(image, SimpleNamespace(cell=nothing, nucleus=nothing, status="ok"))[1] == "no_cell"


def test_wrong_images_are_refused():
    with pytest.raises(ValueError, match="RGB image"):
        pc_features(np.zeros((8, 8), np.uint8))
    with pytest.raises(ValueError, match="RGB image"):
        pc_features(np.zeros((8, 8, 3), np.float32))
    image, cell = plasma_cell()
    with pytest.raises(ValueError, match="the mask is"):
        morphology(image[:100], cell)


def test_collect_select_and_take():
    image, cell = plasma_cell()
    cells = collect([morphology(image, cell), released_morphology(np.full((64, 64, 3), 255, np.uint8))])
    assert cells.features.dtype == np.float32 and cells.columns == COLUMNS
    assert cells.status.tolist() == ["ok", "no_cell"]
    assert cells.select(["Offset", "Area"])[0, 1] == cell.cell.sum()
    assert cells.take(np.array([1])).status.tolist() == ["no_cell"]
    assert collect([]).features.shape == (0, len(COLUMNS))
    with pytest.raises(ValueError, match="no column Weight"):
        cells.select(["Weight"])
    with pytest.raises(ValueError, match="expected"):
        Morphology(np.zeros((2, 3)), COLUMNS, np.array(["ok", "ok"]))
