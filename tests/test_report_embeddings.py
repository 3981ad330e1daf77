"""Probes find what was put into features, and nothing where nothing is."""

import numpy as np
import pytest

from wbcrepro.metrics import wilson_interval
from wbcrepro.report.embeddings import probe, probe_frame, project


@pytest.fixture
def made_up():
    """300 images of three laboratories and two classes; feature 0 is the laboratory, feature 1 the class."""
    rng = np.random.default_rng(0)
    domains, labels = np.repeat(["a", "b", "c"], 100), rng.integers(2, size=300)
    z = rng.normal(0, 0.1, (300, 6))
    z[:, 0] += np.repeat([0, 3, 6], 100)
    z[:, 1] += 4 * labels
    return {"features": z.astype(np.float16), "domains": domains, "labels": labels}


def test_probe_finds_what_is_there_and_guesses_where_nothing_is(made_up):
    assert probe(made_up["features"], made_up["domains"]).all()
    blind = probe(made_up["features"][:, 1:], made_up["domains"]).mean()
    assert 0.2 < blind < 0.47, "without feature 0 the laboratory is a guess"
    assert probe(np.zeros((6, 2)), np.array(["one"] * 6)).all()


def test_every_image_is_predicted_by_a_probe_that_did_not_see_it():
    """Pure noise in many dimensions is learned by heart, and still predicts nothing."""
    rng = np.random.default_rng(1)
    assert probe(rng.normal(size=(400, 500)), rng.integers(2, size=400)).mean() == pytest.approx(0.5, abs=0.1)


def test_frame_has_intervals_and_what_the_class_alone_says(made_up):
    confounded = made_up | {"labels": (made_up["domains"] == "c").astype(int)}
    frame = probe_frame({"free": made_up, "confounded": confounded}).set_index("features")
    low, high = wilson_interval(300, 300)
    assert frame.loc["free", ["laboratory", "laboratory, low", "laboratory, high"]].to_list() == pytest.approx(
        [100, 100 * low, 100 * high]
    )
    assert frame.loc["free", "class"] == 100 and frame.loc["free", "images"] == 300
    assert frame.loc["free", "largest laboratory"] == pytest.approx(100 / 3)
    assert frame.loc["free", "laboratory from the class"] < 50
    assert 60 < frame.loc["confounded", "laboratory from the class"] < 75, "c is known, a and b are a guess"


def test_map_keeps_far_groups_apart_and_is_the_same_again(made_up):
    points = project(made_up["features"])
    assert points.shape == (300, 2) and np.array_equal(points, project(made_up["features"]))
    centres = np.array([points[made_up["domains"] == d].mean(0) for d in "abc"])
    nearest = ((points[:, None] - centres) ** 2).sum(2).argmin(1)
    assert (np.array(list("abc"))[nearest] == made_up["domains"]).mean() > 0.9
    assert project(np.random.default_rng(0).normal(size=(9, 3))).shape == (9, 2)


def test_a_slide_known_by_heart_earns_nothing():
    """Sixty slides of five images each look alike within a slide and say nothing of the class of another slide."""
    rng = np.random.default_rng(2)
    slides = np.repeat(np.arange(60), 5)
    z = rng.normal(size=(60, 80))[slides] + rng.normal(0, 0.01, (300, 80))
    labels = rng.integers(2, size=60)[slides]
    names = np.array([f"slide {s}" for s in slides])
    assert probe(z, labels).mean() > 0.95
    assert probe(z, labels, groups=names).mean() == pytest.approx(0.5, abs=0.15)
    none = np.full(300, "")
    assert np.array_equal(probe(z, labels, groups=none), probe(z, labels))
    half = np.where(slides < 30, names, "")
    seen = probe(z, labels, groups=half)
    assert seen[slides >= 30].mean() > 0.9 > 0.7 > seen[slides < 30].mean(), "an empty name is no common group"
    arrays = {"features": z, "domains": labels.astype(str), "labels": labels}
    by_image, by_slide = (probe_frame({"a": a})["class"][0] for a in (arrays, arrays | {"groups": names}))
    assert by_image > 95 and by_slide < 70
