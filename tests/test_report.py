"""Tables from stored predictions, against a table computed by hand and against direct calls of the metrics."""

import copy
import dataclasses
import json
import shlex

import numpy as np
import pandas as pd
import pytest
from fake_store import fake_plan, fill_store

from wbcrepro import metrics
from wbcrepro.cli import build_parser
from wbcrepro.experiments.plan import make_plan
from wbcrepro.experiments.store import Store
from wbcrepro.inference.ensemble import mean_probabilities
from wbcrepro.inference.tta import CODE_WEIGHTS
from wbcrepro.papers import load_paper
from wbcrepro.report import verdicts
from wbcrepro.report.ablations import effects_frame, factorial, methods_frame, presets_frame
from wbcrepro.report.claims import evaluate_claims
from wbcrepro.report.evaluate import Estimate, Evaluator, Spec, average, scored
from wbcrepro.report.page import download, frame_html, table_html
from wbcrepro.report.predictions import from_plan
from wbcrepro.report.tables import build_table
from wbcrepro.report.text import table_text


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    plan = fake_plan()
    store = fill_store(tmp_path_factory.mktemp("store"), plan, skills={"supervised": 0.8})
    return plan, store, from_plan(plan, store)


def certain(codes, classes=2):
    """Probabilities (N, 8, C) that are sure of these codes in every view."""
    return np.repeat(np.eye(classes, dtype=np.float16)[codes][:, None] * 0.9 + 0.05, 8, axis=1)


def test_a_tiny_table_equals_the_one_computed_by_hand(tmp_path):
    # Truth 0 0 0 0 1 1 1 1. Supervised R50 says 1 once in fold 0 (recall 3/4, 4/4) and nothing wrong in fold 1.
    plan = fake_plan(classes=("A", "B"))

    def probabilities(cell, on, labels):
        wrong = cell.labels["method"] == "supervised" and cell.labels["backbone"] == "r50" and cell.labels["fold"] == 0
        return certain(np.array([1, 0, 0, 0, 1, 1, 1, 1]) if wrong else labels)

    predictions = from_plan(plan, fill_store(tmp_path, plan, per_class=4, probabilities=probabilities))
    table = build_table(predictions)
    rows = {row.label: row.entries for row in table.rows}
    first = rows["Supervised (R50)"]
    # BAcc: (3/4 + 4/4)/2 = 0.875 and 1 -> mean 93.75, sample sd 0.125/sqrt(2) = 8.84 points
    assert first["BAcc"].ours.values == {0: 0.875, 1: 1.0}
    assert first["BAcc"].numbers()["mean"] == pytest.approx(93.75)
    assert first["BAcc"].numbers()["std"] == pytest.approx(12.5 / np.sqrt(2))
    # MF1 of fold 0: F1 of A = 2*3/(4+3) = 6/7, of B = 2*4/(4+5) = 8/9; MP: (3/3 + 4/5)/2; MSpec: (4/4 + 3/4)/2
    assert first["MF1"].ours.values[0] == pytest.approx((6 / 7 + 8 / 9) / 2)
    assert first["MP"].ours.values[0] == pytest.approx(0.9)
    assert first["MSpec"].ours.values[0] == pytest.approx(0.875)
    assert first["BAcc"].paper == (63.2, 0.9) and first["BAcc"].code_log == 67.90
    assert rows["Supervised (R152)"]["MF1"].code_log is None
    assert rows["Supervised (R152)"]["MF1"].numbers()["mean"] == 100
    assert table.ranks() == {}, "all other rows share the best value, so no mark says anything"
    # fold 1 does not improve, so the direction is the paper's without being certain
    assert rows["Decoupled (R50)"]["BAcc"].verdict == "same, unsure"
    assert rows["Decoupled (R50)"]["BAcc"].reference == "Supervised (R50)"
    assert rows["Supervised (R50)"]["BAcc"].verdict == "not comparable"


def test_values_equal_direct_calls_of_the_metrics(filled):
    plan, store, predictions = filled
    cells = plan.find(preset="paper", method="decoupled")
    entry = {r.label: r.entries for r in build_table(predictions).rows}["Ens. (R50+Swin)"]["MF1"]
    for fold in (0, 1):
        arrays = [
            store.get(c.id).predictions() for c in cells if c.labels["fold"] == fold and c.labels["backbone"] != "r152"
        ]
        mean = mean_probabilities([a["test_probabilities"] for a in arrays], CODE_WEIGHTS)
        expected = metrics.scores(arrays[0]["test_labels"], mean.argmax(1), 4)["macro_f1"]
        assert entry.ours.values[fold] == pytest.approx(expected, abs=1e-12)


def test_the_interval_is_that_of_the_metrics_module(filled):
    predictions = filled[2]
    evaluator, spec = Evaluator(predictions, n=400), Spec("decoupled", ("r50",))
    decided = evaluator.decided(spec)
    labels = decided[0][0]
    expected = metrics.bootstrap(
        [codes for _, codes in decided.values()], labels, "macro_f1", 400, evaluator.seed, n_classes=4, stratified=True
    )
    assert evaluator.estimate(spec, "macro_f1").interval() == pytest.approx(expected)


def test_paired_differences_are_tighter_than_the_values(filled):
    evaluator = Evaluator(filled[2], n=400)
    one = evaluator.estimate(Spec("decoupled", ("r50",), view="code"), "macro_f1")
    other = evaluator.estimate(Spec("decoupled", ("r50",), view="dihedral"), "macro_f1")
    low, high = one.minus(other).interval()
    width = one.interval()[1] - one.interval()[0]
    assert high - low < width and low <= one.mean - other.mean <= high


def test_estimates_combine_fold_by_fold():
    one = Estimate({0: 0.5, 1: 0.7}, {0: np.array([0.4, 0.6]), 1: np.array([0.6, 0.8])})
    two = Estimate({1: 0.4}, {1: np.array([0.7, 0.1])})
    assert one.minus(two).values == {1: pytest.approx(0.3)}
    assert average([one, two]).draws[1] == pytest.approx([0.65, 0.45])
    assert one.std == pytest.approx(np.sqrt(0.02)) and two.std is None
    assert two.minus(Estimate({0: 0.1}, {0: np.zeros(2)})) is None


def test_missing_cells_leave_holes_that_name_their_command(tmp_path):
    plan = fake_plan()
    lost = plan.find(preset="paper", method="decoupled", backbone="swin", fold=1)[0]
    predictions = from_plan(plan, fill_store(tmp_path / "store", plan, skip={lost.id}))
    rows = {row.label: row for row in build_table(predictions).rows}
    swin = rows["Decoupled (Swin)"]
    assert swin.missing == (lost.id,) and swin.command.startswith(f"wbcrepro run-cell {lost.id} ")
    assert swin.entries["MF1"].ours.folds == 1 and rows["Decoupled (R50)"].entries["MF1"].ours.folds == 2
    assert rows["Ens. (all)"].entries["MF1"].ours.folds == 1, "an ensemble needs every member of its fold"
    empty = from_plan(plan, fill_store(tmp_path / "empty", plan, skip={c.id for c in plan.cells}))
    table = build_table(empty)
    assert not table.any_result and table.rows[0].command.startswith("wbcrepro reproduce --paper decoupled")
    assert "not run" in table_text(table) and "wbc-hole" in table_html(table)
    assert table.frame()["verdict"].unique().tolist() == ["not run"]


def test_a_row_that_the_profile_leaves_out_names_a_profile_that_has_it(filled):
    table = build_table(filled[2], preset="code")
    swin = next(row for row in table.rows if row.label == "Supervised (Swin)")
    assert not swin.cells and swin.left_out and not table.rows[0].left_out
    assert swin.command == "wbcrepro reproduce --paper decoupled --profile mini"
    named = load_paper("decoupled")["profiles"]["mini"]
    assert "swin" in named["presets"]["code"] and "supervised" in named["methods"]["code"]
    assert "left out by this profile, run by another: Supervised (Swin), Decoupled (Swin)" in table_text(table)
    paper = copy.deepcopy(load_paper("decoupled"))
    paper["profiles"]["mini"]["presets"]["code"] = ["r50"]
    table = build_table(dataclasses.replace(filled[2], paper=paper), preset="code")
    assert "run by no profile in this preset: Supervised (Swin)" in table_html(table)


def test_the_caption_names_the_profiles_that_fill_the_table(filled):
    words = "Profiles that fill this table: "
    assert build_table(filled[2]).caption().endswith(f"{words}tiny, demo, mini, paper.")
    assert build_table(filled[2], preset="code").caption().endswith(f"{words}mini (some rows: tiny, demo, paper).")


def test_holes_repeat_the_options_that_the_plan_was_asked_with(tmp_path):
    store = Store(tmp_path / "a store")
    asked = {"dataset": "smears-demo", "weights": "random", "accumulate": 2}
    plan = make_plan("decoupled", "tiny", store=store, data=tmp_path, progress=False, **asked)
    words = f"--profile tiny --data {tmp_path} --dataset smears-demo --weights random --accumulate 2 "
    words += f"--store '{tmp_path}/a store'"
    found = from_plan(plan, store)
    assert found.make_command() == f"wbcrepro reproduce --paper decoupled {words}"
    assert found.run_command(found.members[0]) == f"wbcrepro run-cell {found.members[0].id} --paper decoupled {words}"
    parsed = build_parser().parse_args(shlex.split(found.make_command())[1:])
    again = make_plan("decoupled", parsed.profile, store=store, dataset=parsed.dataset, weights=parsed.weights,
                      accumulate=parsed.accumulate, progress=False)  # fmt: skip
    assert {cell.id for cell in again.cells} == {cell.id for cell in plan.cells}


def test_members_with_other_images_are_refused(tmp_path):
    plan = fake_plan()
    store = fill_store(tmp_path, plan)
    cell = plan.find(preset="paper", method="decoupled", backbone="swin", fold=0)[0]
    path = store.folder(cell.id) / "predictions.npz"
    arrays = store.get(cell.id).predictions()
    arrays["test_ids"] = arrays["test_ids"][::-1]
    np.savez(path, **arrays)
    with pytest.raises(ValueError, match="different images"):
        scored(from_plan(plan, store), Spec("decoupled", ("r50", "swin")))


def test_forms_of_a_table_agree(filled, tmp_path, monkeypatch):
    monkeypatch.setenv("WBCREPRO_PAGE_FILES", str(tmp_path))
    monkeypatch.setenv("WBCREPRO_PAGE_URL", "../_static/pages/x")
    table = build_table(filled[2])
    value = json.loads(json.dumps(table.to_json(), allow_nan=False))
    assert value["schema"] == 1 and len(value["rows"]) == 10 and value["synthetic"] is True
    frame = table.frame()
    assert len(frame) == 40 and frame["mean"].iloc[0] == pytest.approx(
        value["rows"][0]["entries"]["MF1"]["mean"], abs=1e-4
    )
    html = table_html(table)
    assert "wbc-synthetic" in html and "65.8 ± 0.6" in html and "71.54" in html and 'class="wbc-best"' in html
    assert '<b class="wbc-best">74.2 ± 1.0</b>' in html, "the paper's own best is marked as printed there"
    assert '<u class="wbc-second">72.4 ± 2.6</u>' in html
    assert (tmp_path / "table_1-test-paper.csv").read_text() == table.to_csv()
    assert html.count("<table>") == 2 and html.count('class="wbc-code"') == 20, "the log has MF1 and BAcc only"
    assert "reproduced" not in html.lower().replace("reproduce ", "")


def test_downloads_are_silent_where_no_page_is_made(monkeypatch):
    monkeypatch.delenv("WBCREPRO_PAGE_FILES", raising=False)
    assert download("a.csv", "x") == ""


def test_verdict_words_never_promise_too_much():
    words = " ".join([*verdicts.VALUES.values(), *verdicts.CLAIMS.values()])
    assert "reproduc" not in words and "confirm" not in words


@pytest.mark.parametrize(
    ("values", "draws", "paper", "expected"),
    [
        ({0: 0.1, 1: 0.12, 2: 0.11}, [0.05, 0.15], 2.0, "same"),
        ({0: 0.1, 1: 0.12, 2: 0.11}, [0.05, 0.15], -2.0, "opposite"),
        ({0: 0.1, 1: 0.12, 2: 0.11}, [-0.05, 0.15], 2.0, "same, unsure"),
        ({0: 0.3, 1: -0.1, 2: 0.2}, [0.05, 0.15], 2.0, "same, unsure"),  # the folds disagree
        ({0: 0.1, 1: 0.1}, [0.05, 0.15], 2.0, "same, unsure"),  # two trainings say little of a third
        ({0: 0.01, 1: 0.1, 2: 0.3}, [0.05, 0.15], 2.0, "same, unsure"),  # 0.137 +- 4.30 * 0.149 / sqrt(3)
        ({0: -0.1}, [-0.3, 0.1], 2.0, "opposite, unsure"),
        ({0: 0.1}, [0.05, 0.15], 0.0, "flat"),
    ],
)
def test_directions(values, draws, paper, expected):
    assert verdicts.direction(Estimate(values, {k: np.array(draws) for k in values}), paper) == expected


def test_same_data_compares_values_within_two_standard_deviations():
    ours = Estimate({0: 0.70, 1: 0.72}, {0: np.zeros(2), 1: np.zeros(2)})
    assert verdicts.same_data(ours, 0.72, 0.01) == "within"
    assert verdicts.same_data(ours, 0.60, 0.01) == "above" and verdicts.same_data(ours, 0.80, 0.01) == "below"


def test_values_are_compared_only_on_the_papers_data_and_protocol(tmp_path):
    for profile, benchmark, expected in (
        ("paper", "wbcbench", True),
        ("mini", "wbcbench", False),
        ("paper", "acevedo20-lt", False),
    ):
        plan = fake_plan(profile, benchmark, folds=[0, 1])
        predictions = from_plan(plan, fill_store(tmp_path / profile / benchmark, plan))
        found = {e.verdict for row in build_table(predictions).rows for e in row.entries.values()}
        assert bool(found & {"within", "above", "below"}) == expected


@pytest.mark.parametrize("folds", [[0], [0, 1]])
def test_a_benchmark_without_a_test_set_is_scored_on_its_validation_fold(tmp_path, folds):
    plan = fake_plan("paper", "wbcbench-code", folds=folds)
    predictions = from_plan(plan, fill_store(tmp_path, plan, sets=("val",)))
    table = build_table(predictions, preset="code")
    assert table.any_result and table.on == "val", "`wbcrepro report` would exit with 4 and `make` stop before the book"
    assert "validation fold, which also stopped the training, of wbcbench-code" in table.caption()
    assert "over its images" in table.caption()
    assert build_table(predictions, on="test_degraded").any_result is False
    expected = Evaluator(predictions, "val", 100).estimate(Spec("decoupled", ("r50",)), "macro_f1")
    evaluator = Evaluator(predictions, "test", 100)
    assert evaluator.estimate(Spec("decoupled", ("r50",)), "macro_f1").values == expected.values
    assert set(scored(predictions, Spec("decoupled", ("r50",)))) == set(folds)
    # what the chapters compute from it
    assert len(effects_frame(evaluator, "macro_f1")) and len(evaluate_claims(predictions, n=100))
    assert predictions.sets() == (), "nothing of it is exported as a test set"


def test_ablations_separate_the_three_steps(filled):
    evaluator = Evaluator(filled[2], n=200)
    cells = factorial(evaluator, "macro_f1")
    assert len(cells) == 2 * 3 * 4
    frame = effects_frame(evaluator, "macro_f1").set_index("step")
    alone = cells["decoupled", "none", "single"].mean - cells["supervised", "none", "single"].mean
    assert frame.loc["decoupling: one model, no views", "change"] == pytest.approx(100 * alone)
    assert frame.loc["decoupling: one model, no views", "low"] > 0, "the decoupled rows were made better"
    chain = [
        "decoupling: one model, no views",
        "code's views: one decoupled model",
        "backbones: decoupled, code's views",
    ]
    assert frame.loc[chain, "change"].sum() == pytest.approx(frame.loc["all three", "change"])
    assert frame.loc["backbones: decoupled, no views", "sd after"] == pytest.approx(
        100 * cells["decoupled", "none", "backbones"].std
    )


def test_methods_and_presets_are_compared_on_what_both_have(filled):
    evaluator, names = Evaluator(filled[2], n=100), {"MF1": "macro_f1"}
    methods = methods_frame(evaluator, names)
    assert methods["classifier"].tolist()[:2] == ["supervised", "decoupled"] and len(methods) == 6
    assert np.isnan(methods["ΔMF1"][0]) and methods["ΔMF1 low"][1] > 0
    presets = presets_frame(evaluator, names)
    assert presets["folds"].tolist() == [1] * 6, "preset code runs one fold, so only that fold is compared"


def test_a_class_without_images_is_a_dash_and_a_missing_value_a_hole():
    frame = pd.DataFrame({"class": ["A", "B"], "images scored": [4, 0], "recall": [np.nan, np.nan]})
    html = frame_html(frame, "a.csv")
    assert html.count("wbc-hole") == 1 and "<td>0</td><td>–</td>" in html
