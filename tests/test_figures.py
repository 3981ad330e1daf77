"""Figures: they draw what they are given, on edge cases too, on an opaque light background."""

import matplotlib

matplotlib.use("Agg")

import io

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from wbcrepro.metrics import wilson_interval
from wbcrepro.report import figures


@pytest.fixture(autouse=True)
def style():
    with plt.rc_context():
        figures.use_style()
        yield
        plt.close("all")


def texts(figure):
    return [t.get_text() for axis in figure.axes for t in axis.texts]


def test_confusion_shows_counts_and_wilson_intervals():
    labels, codes = np.array([0, 0, 0, 1, 1]), np.array([0, 0, 1, 1, 1])
    found = texts(figures.confusion_figure([(labels, codes)], ("A", "B", "C")))
    low, high = wilson_interval(2, 3)
    assert f"67 % [{100 * low:.0f}, {100 * high:.0f}]" in found and "absent" in found
    assert sorted(t for t in found if t.isdigit()) == ["1", "2", "2"]


def test_confusion_is_the_mean_of_all_folds_at_the_size_of_one_test_set():
    labels = np.array([0, 0, 0, 1, 1])
    found = texts(figures.confusion_figure([(labels, labels), (labels, np.array([1, 0, 0, 1, 1]))], ("A", "B")))
    low, high = wilson_interval(2.5, 3)
    assert f"83 % [{100 * low:.0f}, {100 * high:.0f}]" in found
    assert {"2.5", "0.5", "2"} <= set(found) and "3" not in found


def test_recall_leaves_out_absent_classes_and_sorts_by_training_images():
    folds = [(np.array([0, 0, 1]), np.array([0, 1, 1]))]
    axis = figures.recall_figure({"a": folds, "b": folds}, ("A", "B", "C"), np.array([5, 9, 1])).axes[0]
    assert [t.get_text() for t in axis.get_yticklabels()] == ["B (n = 9)", "A (n = 5)", "C (n = 1)"]
    assert axis.lines[0].get_xdata().tolist() == [1.0, 0.5]


def test_training_curves_skip_what_no_log_holds():
    logs = {"a": [{"epoch": 0, "loss": 1.0}, {"epoch": 1, "loss": 0.5}], "b": [{"epoch": 0}]}
    figure = figures.training_figure(logs, ("loss", "macro_f1"))
    assert len(figure.axes) == 1 and figure.axes[0].get_ylabel() == "training loss"
    assert figure.axes[0].lines[0].get_ydata() == pytest.approx([1.0, 0.5])


def test_training_curves_are_told_apart_without_colour():
    logs = {f"fold {i}": [{"epoch": 0, "loss": 1.0}, {"epoch": 1, "loss": 0.5}] for i in range(42)}
    lines = figures.training_figure(logs, ("loss",)).axes[0].lines
    patterns = [line._unscaled_dash_pattern for line in lines]
    assert len(set(map(str, patterns[:6]))) == 6
    assert len({(line.get_color(), str(p)) for line, p in zip(lines, patterns, strict=True)}) == 42


def test_calibration_by_hand():
    # Bin 0.5-0.6: confidences 0.5 and 0.5, one right; bin 0.9-1.0: 0.9, right. ECE = (2 * 0 + 1 * 0.1) / 3
    probabilities = np.array([[0.5, 0.5], [0.5, 0.5], [0.1, 0.9]])
    rows, error = figures.calibration(np.array([0, 1, 1]), probabilities)
    assert rows == pytest.approx(np.array([[0.5, 0.5, 2], [0.9, 1.0, 1]]))
    assert error == pytest.approx(0.1 / 3)


def test_effects_fill_only_what_excludes_zero():
    frame = pd.DataFrame({"step": ["x", "y"], "change": [1.0, 1.0], "low": [0.5, -1.0], "high": [2.0, 3.0]})
    lines = [line for line in figures.effects_figure(frame).axes[0].lines if line.get_marker() == "o"]
    assert [line.get_ydata().tolist() for line in lines] == [[0], [1]]
    assert lines[1].get_markerfacecolor() == "white"


def test_one_training_is_hollow_whatever_its_interval():
    frame = pd.DataFrame({"step": ["x", "y"], "change": 1.0, "low": 0.5, "high": 2.0, "trials": [1, 3]})
    axis = figures.effects_figure(frame).axes[0]
    lines = [line for line in axis.lines if line.get_marker() == "o"]
    assert [line.get_ydata().tolist() for line in lines] == [[1], [0]] and lines[1].get_markerfacecolor() == "white"
    assert "more than one training" in axis.get_xlabel()


def test_saved_figures_are_opaque():
    figure = figures.reliability_figure({"a": (np.array([0, 1]), np.array([[0.8, 0.2], [0.3, 0.7]]))})
    buffer = io.BytesIO()
    figure.savefig(buffer)
    buffer.seek(0)
    image = plt.imread(buffer)
    assert image[0, 0, :3].min() == 1 and (image.shape[2] == 3 or image[..., 3].min() == 1)
