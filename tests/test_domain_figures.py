"""Figures of unseen laboratories: they draw what they are given, edge cases too."""

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from fake_domain_store import FIVE, fake_domain_plan, fill_domain_store

from wbcrepro.metrics import wilson_interval
from wbcrepro.report import domain_figures, figures
from wbcrepro.report.domain_predictions import from_domain_plan
from wbcrepro.report.domain_tables import build_domain_table


@pytest.fixture(autouse=True)
def style():
    with plt.rc_context():
        figures.use_style()
        yield
        plt.close("all")


def texts(axis):
    return [t.get_text() for t in axis.texts]


def test_laboratories_show_every_count_and_frame_the_rarest_class():
    counts = {"a": np.array([3329, 1214, 0]), "b": np.array([7, 7, 7]), "c": np.zeros(3, int)}
    axis = domain_figures.laboratories_figure(counts, ("A", "B", "C")).axes[0]
    assert texts(axis) == ["3,329", "1,214", "–", "7", "7", "7", "–", "–", "–"]
    assert [p.get_x() for p in axis.patches] == [pytest.approx(0.52)], "one frame: B of a; b has no rarest class"
    assert [t.get_text() for t in axis.get_yticklabels()] == ["a (4,543)", "b (21)", "c (0)"]


def test_scores_have_a_marker_per_method_and_laboratory(tmp_path):
    plan = fake_domain_plan(trials=2)
    lost = {c.id for c in plan.find(method="coral", held_out="rapid")}
    predictions = from_domain_plan(plan, fill_domain_store(tmp_path, plan, skip=lost))
    table = build_domain_table(predictions)
    figure = domain_figures.laboratory_scores_figure(table)
    points = [line for line in figure.axes[0].lines if line.get_marker() in domain_figures.MARKERS]
    assert len(points) == 7 * 3 - 2, "CORAL has neither the laboratory nor the average"
    value = {r.label: r for r in table.rows}["ERM"].entries["Acevedo-20", "macro"].ours
    assert points[0].get_xdata()[0] == pytest.approx(100 * value.mean)
    assert [t.get_text() for t in figure.axes[0].get_yticklabels()] == [
        "Acevedo-20\n(mgg)",
        "Zheng-18\n(rapid)",
        "Average",
    ]
    assert [t.get_text() for t in figure.legends[0].texts][:2] == ["ERM", "CORAL"]


@pytest.mark.parametrize("size", [3, 9])
def test_the_followed_class_is_framed_and_its_recall_written(size):
    left = np.diag(np.arange(size, 0, -1)).astype(float)
    left[-1, :2] = 3, 0.5
    left[1] = 0  # class 1 does not occur, but is predicted
    names = [f"c{i}" for i in range(size)]
    figure = domain_figures.confusion_pair_figure({"ERM": left, "BoDA": left}, names, names[-1])
    low, high = (100 * float(v) for v in wilson_interval(1, 4.5))
    for axis in figure.axes:
        assert f"22 % [{low:.0f}, {high:.0f}]" in axis.get_title() and len(axis.patches) == 1
        assert "0.5" in texts(axis) and len(axis.get_yticks()) == size - 1
        assert axis.images[0].get_array().shape == (size - 1, size)
    assert figure.axes[0].get_title().startswith("ERM\n") and figure.axes[1].get_title().startswith("BoDA\n")


def test_a_followed_class_without_images_is_not_framed():
    figure = domain_figures.confusion_pair_figure({"ERM": np.diag([2.0, 0.0])}, ("A", "B"), "B")
    assert figure.axes[0].get_title() == "ERM" and not figure.axes[0].patches


def test_sweeps_mark_the_papers_best_and_name_what_was_not_run():
    points = [("k", 2, 80.0, None), ("k", 3, 82.0, 84.4), ("k", 4, None, None), ("beta", 0.1, 82.0, 84.4)]
    frame = pd.DataFrame(
        [{"parameter": p, "value": v, "metric": m, "mean": y, "low": y and y - 1, "high": y and y + 1, "paper": best}
         for p, v, y, best in points for m in ("micro", "macro")]
    )  # fmt: skip
    one, two = domain_figures.sweep_figure(frame).axes
    assert one.get_xlabel() == "number of clusters k\nnot run: 4" and "not run" not in two.get_xlabel()
    stars = [line for line in one.lines if line.get_marker() == "*"]
    assert [line.get_xdata().tolist() for line in stars] == [[1], [1]]
    assert one.lines[0].get_ydata().tolist() == [80, 82]


def test_shift_curves_have_a_panel_per_laboratory():
    frame = pd.DataFrame(
        [{"laboratory": lab, "method": m, "shift": s, "mean": 80 - s, "low": 79 - s, "high": 81 - s}
         for lab in ("a", "b") for m in ("ERM", "SADA") for s in (0.0, 1.0, 2.0)]
    )  # fmt: skip
    figure = domain_figures.shift_figure(frame)
    assert [a.get_title() for a in figure.axes] == ["a", "b"] and len(figure.axes[0].lines) == 2
    assert [t.get_text() for t in figure.axes[0].get_xticklabels()] == ["0", "1", "2"]


def test_embeddings_are_coloured_by_laboratory_and_by_class():
    rng = np.random.default_rng(0)
    labs, classes = np.array(["a", "b"] * 10), np.array(FIVE * 4)
    panels = {"before": (rng.normal(size=(20, 2)), labs, classes), "after": (rng.normal(size=(20, 2)), labs, classes)}
    figure = domain_figures.embedding_figure(panels, "b")
    assert len(figure.axes) == 4 and figure.axes[3].get_title() == "after, by class"
    assert [t.get_text() for t in figure.axes[2].get_legend().texts] == ["a", "b (unseen)"]
    assert sum(len(c.get_offsets()) for c in figure.axes[0].collections) == 20


def test_thirteen_classes_have_thirteen_marks():
    panels = {"after": (np.zeros((13, 2)), np.full(13, "a"), np.array([f"class {i:02d}" for i in range(13)]))}
    lines = domain_figures.embedding_figure(panels).axes[1].get_legend().get_lines()
    assert len({(line.get_marker(), line.get_color()) for line in lines}) == 13


def test_saliency_maps_stand_beside_their_cell_and_wrong_predictions_are_marked():
    images, heat = np.zeros((2, 8, 8, 3), np.uint8), np.ones((2, 8, 8))
    wanted = {"ERM": ["A", "A"], "SADA": ["A", "B"]}
    figure = domain_figures.gradcam_figure(images, {"ERM": heat, "SADA": heat}, ("A", "B"), wanted)
    grid = np.array(figure.axes[:6]).reshape(2, 3)
    assert [a.get_title() for a in grid[0]] == ["image", "ERM", "SADA"] and grid[1, 0].get_ylabel() == "B"
    assert grid[1, 1].get_xlabel() == "✗ A" and grid[1, 2].get_xlabel() == "B"
    assert domain_figures.gradcam_figure(images, {"ERM": heat}, ("A", "B")).axes[1].get_xlabel() == ""


@pytest.mark.parametrize("trials", [1, 2])
def test_a_method_with_one_trial_has_hollow_markers(tmp_path, trials):
    plan = fake_domain_plan(trials=trials)
    table = build_domain_table(from_domain_plan(plan, fill_domain_store(tmp_path, plan)))
    axis = domain_figures.laboratory_scores_figure(table).axes[0]
    faces = {line.get_markerfacecolor() for line in axis.lines if line.get_marker() in domain_figures.MARKERS}
    assert (faces == {"white"}) == (trials == 1) and ("white" in faces) == (trials == 1)
