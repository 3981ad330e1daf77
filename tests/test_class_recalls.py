"""Fig. 2 in three columns: what is printed, what the log says and what we counted stay apart."""

import numpy as np
import pytest
from fake_store import fake_plan, fill_store

from wbcrepro.metrics import wilson_interval
from wbcrepro.papers import load_paper
from wbcrepro.report.class_recalls import recalls_frame, recalls_html
from wbcrepro.report.evaluate import Evaluator
from wbcrepro.report.predictions import from_plan
from wbcrepro.report.tables import row_spec

BEST = row_spec(load_paper("decoupled"), "table_1", "Ens. (all)", "paper")
CLASSES = ("SNE", "PC", "X")


def evaluator(folder, profile="demo", benchmark="smears-demo", skip=False, wrong=1):
    """Three classes of four images; in fold 0 the ensemble calls ``wrong`` PC images SNE."""
    plan = fake_plan(profile, benchmark, classes=CLASSES, folds=[0, 1])

    def probabilities(cell, on, labels):
        codes = labels.copy()
        if cell.labels["fold"] == 0:
            codes[np.flatnonzero(labels == 1)[:wrong]] = 0
        return np.repeat(np.eye(3, dtype=np.float16)[codes][:, None] * 0.9 + 0.03, 8, axis=1)

    skipped = {c.id for c in plan.cells} if skip else ()
    store = fill_store(folder, plan, per_class=4, probabilities=probabilities, skip=skipped)
    return Evaluator(from_plan(plan, store), n=10)


def test_paper_log_and_ours_stand_in_columns_of_their_own(tmp_path):
    frame = recalls_frame(evaluator(tmp_path), BEST).set_index("class")
    plasma = frame.loc["PC"]
    assert (plasma["paper_correct"], plasma["paper_of"]) == (11, 18)
    assert (plasma["log_correct"], plasma["log_of"]) == (10, 18)
    assert plasma["log_recall"] == pytest.approx(55.56, abs=0.01)
    assert (plasma["ours_correct"], plasma["ours_of"], plasma["folds"]) == (3.5, 4, 2)
    low, high = wilson_interval(3.5, 4)
    assert (plasma["ours_low"], plasma["ours_high"]) == pytest.approx((100 * low, 100 * high))
    assert frame.loc["SNE", "log_of"] == 3471 and np.isnan(frame.loc["SNE", "paper_of"])
    assert np.isnan(frame.loc["X", "log_of"]) and frame.loc["X", "ours_recall"] == 100


def test_the_stored_log_is_that_of_the_released_code():
    """Recall and support as logged: the product is a whole number of images for every class."""
    tables = load_paper("decoupled")["tables"]
    figure = tables["figure_2"]["code_log"]["recalls"]
    logged = {"SNE": 96.60, "EO": 93.91, "LY": 93.47, "BL": 87.69, "BA": 90.99, "MO": 87.98, "PC": 55.56, "MY": 51.69,
              "MMY": 64.58, "PMY": 70.00, "VLY": 55.10, "BNE": 44.23, "PLY": 66.67}  # fmt: skip
    assert {name: round(100 * hit / size, 2) for name, (hit, size) in figure.items()} == logged
    balanced = np.mean([hit / size for hit, size in figure.values()])
    assert 100 * balanced == pytest.approx(tables["table_1"]["code_log"]["Decoupled (R50)"]["BAcc"], abs=0.01)


def test_verdicts_compare_values_on_the_papers_data_only(tmp_path):
    def verdicts_of(name, **options):
        return recalls_frame(evaluator(tmp_path / name, **options), BEST).set_index("class")["verdict"]

    other = verdicts_of("other")
    assert other["PC"] == "other data: value not comparable" and other["SNE"] == ""
    assert other["PLY"] == "cannot be tested here", "this data have no PLY"
    assert verdicts_of("none", skip=True)["PC"] == "not run"
    same = {"profile": "paper", "benchmark": "wbcbench"}
    assert verdicts_of("same", **same, wrong=4)["PC"] == "same data: within two standard deviations"
    assert verdicts_of("above", **same, wrong=0)["PC"] == "same data: above the paper"


def test_the_page_has_three_groups_and_a_csv(tmp_path, monkeypatch):
    monkeypatch.setenv("WBCREPRO_PAGE_FILES", str(tmp_path))
    monkeypatch.setenv("WBCREPRO_PAGE_URL", "../_static/pages/x")
    html = recalls_html(evaluator(tmp_path / "store"), BEST, "Ens. (all)", "figure_2.csv")
    assert html.count('class="wbc-group"') == 3 and "11 of 18: 61 %" in html and "10 of 18: 56 %" in html
    assert "3.5 of 4: 88 %" in html and "ResNet-50 after its last stage-2 epoch" in html and "wbc-synthetic" in html
    assert (tmp_path / "figure_2.csv").read_text().startswith("class,paper_correct,paper_of")
    assert "wbcrepro reproduce" in html and "cells</summary>" in html
