"""Tables of unseen laboratories from stored predictions, against values computed by hand."""

import json

import numpy as np
import pytest
from fake_domain_store import FIVE, fake_domain_plan, fill_domain_store, laboratory_rows, one_hot

from wbcrepro import metrics
from wbcrepro.cli import main
from wbcrepro.errors import UsageError
from wbcrepro.report import results
from wbcrepro.report.domain_evaluate import DomainEvaluator, DomainSpec, lone_classes
from wbcrepro.report.domain_frames import (
    choices_frame,
    confusion_of,
    gains_frame,
    recall_frame,
    scoring_frame,
    shift_frame,
    sweep_frame,
)
from wbcrepro.report.domain_page import domain_table_html, domain_table_text
from wbcrepro.report.domain_predictions import from_domain_plan
from wbcrepro.report.domain_tables import build_domain_table
from wbcrepro.report.tables import ranked


def made(path, plan=None, **options):
    plan = plan or fake_domain_plan()
    return plan, from_domain_plan(plan, fill_domain_store(path, plan, **options))


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    return made(tmp_path_factory.mktemp("store"), skills={"erm": 0.8, "sada": 2.0})


def hand_made(cell, on, labels):
    """ERM calls the first image of class 0 a 1, in trial 1 also the first image of class 1 a 0; others are right."""
    codes = labels.copy()
    if cell.labels["method"] == "erm" and on == "test":
        codes[0] = 1
        if cell.labels["trial"] == 1:
            codes[np.flatnonzero(labels == 1)[0]] = 0
    return one_hot(codes, 2)


def test_a_tiny_table_equals_the_one_computed_by_hand(tmp_path):
    # Eight images, four a class. ERM is right on 7 of 8 in trial 0 and on 6 of 8 in trial 1 (laboratory by laboratory
    # the same), so micro-F1 is 0.875 and 0.75: mean 81.25, sample sd 12.5 / sqrt(2) = 8.84 points.
    plan = fake_domain_plan(classes=("A", "B"), trials=2)
    _, predictions = made(tmp_path, plan, counts=(4, 4), probabilities=hand_made)
    table = build_domain_table(predictions)
    rows = {row.label: row.entries for row in table.rows}
    erm = rows["ERM"]
    assert erm["Acevedo-20", "micro"].ours.values == {0: 0.875, 1: 0.75}
    # trial 0: F1 of A = 2*3/(4+3), of B = 2*4/(4+5); trial 1: 2*3/(4+4) for both
    assert erm["Zheng-18", "macro"].ours.values == {0: pytest.approx((6 / 7 + 8 / 9) / 2), 1: 0.75}
    assert erm["Average", "micro"].numbers()["std"] == pytest.approx(12.5 / np.sqrt(2))
    assert rows["SADA"]["Average", "micro"].numbers()["mean"] == 100
    assert erm["Acevedo-20", "micro"].paper == (70.0, 5.0) and rows["DANN"]["Acevedo-20", "micro"].paper is None
    assert [c.label for c in table.columns] == ["Acevedo-20", "LDWBC", "Raabin-WBC", "Zheng-18", "Average"]
    assert [c.laboratories for c in table.columns][1:] == [(), (), ("rapid",), ("mgg", "rapid")]
    # The paper's 84.4 - 79.6 has our sign. A resample without either of ERM's two wrong images has probability
    # (3/4)^8 = 0.10 in one laboratory and 0.01 in both: only the average is sure of its images at 95 %, and two trials
    # are sure of nothing.
    changes = {c: rows["SADA"][c, "micro"].ours.minus(erm[c, "micro"].ours) for c in ("Zheng-18", "Average")}
    assert changes["Zheng-18"].interval()[0] == 0 < changes["Average"].interval()[0]
    assert rows["SADA"]["Average", "micro"].verdict == "same, unsure"
    assert rows["SADA"]["Average", "micro"].reference == "ERM" and erm["Average", "micro"].reference == ""


# Both trials share the resample: n0 and n1 draws of the two wrong images, each binomial (4, 1/4); the mean over trials
# is 1 - (2 n0 + n1) / 16, of which the 2.5 % and 97.5 % quantiles are 56.25 and 100 (2 n0 + n1 is 7 or less with
# probability 0.983, 6 or less with 0.953, and 0 with 0.100). All other rows share the best value: no rank is given.
HAND = """\
row,column,laboratory,metric,set,preset,selection,rows,classes,without_lone,images,classes_averaged,\
paper_mean,paper_std,mean,std,low,high,trials,rank,verdict,reference,missing_cells
ERM,Acevedo-20,mgg,micro,test,paper,swad,all,target,False,8,2,\
70.00,5.00,81.25,8.84,56.25,100.00,2,,other data: value not comparable,,0
ERM,LDWBC,,micro,test,paper,swad,all,target,False,0,0,83.80,0.40,,,,,0,,not run,,0
ERM,Raabin-WBC,,micro,test,paper,swad,all,target,False,0,0,86.90,0.50,,,,,0,,not run,,0
ERM,Zheng-18,rapid,micro,test,paper,swad,all,target,False,8,2,\
77.80,1.00,81.25,8.84,56.25,100.00,2,,other data: value not comparable,,0
"""


def test_the_csv_is_the_one_written_by_hand(tmp_path):
    plan = fake_domain_plan(classes=("A", "B"), trials=2)
    _, predictions = made(tmp_path, plan, counts=(4, 4), probabilities=hand_made)
    assert build_domain_table(predictions).to_csv().startswith(HAND)


def test_values_equal_direct_calls_of_the_metrics(filled):
    plan, predictions = filled
    member = predictions.find(method="sada", preset="paper", held_out="rapid")[0]
    found = predictions.read(member)
    expected = metrics.scores(found.labels, found.probabilities.argmax(1), 5)
    entries = {r.label: r.entries for r in build_domain_table(predictions).rows}["SADA"]
    assert entries["Zheng-18", "macro"].ours.values[0] == pytest.approx(expected["macro_f1"], abs=1e-12)
    assert entries["Zheng-18", "micro"].ours.values[0] == pytest.approx(expected["accuracy"], abs=1e-12)


def test_intervals_are_paired_over_rows_and_independent_over_laboratories(filled):
    evaluator = DomainEvaluator(filled[1], n=400)
    erm, sada = (DomainSpec(m) for m in ("erm", "sada"))
    gain = evaluator.difference(sada, erm, ("mgg", "rapid"), "macro_f1")
    one, other = (evaluator.estimate(s, ("mgg", "rapid"), "macro_f1") for s in (sada, erm))
    assert gain.mean == pytest.approx(one.mean - other.mean)
    assert np.allclose(gain.replicates, one.replicates - other.replicates)
    parts = [evaluator.estimate(sada, (lab,), "macro_f1") for lab in ("mgg", "rapid")]
    assert abs(np.corrcoef(parts[0].replicates, parts[1].replicates)[0, 1]) < 0.2
    assert np.allclose(one.replicates, (parts[0].replicates + parts[1].replicates) / 2)
    again = DomainEvaluator(filled[1], n=400)
    assert np.allclose(again.estimate(erm, ("rapid",), "macro_f1").replicates,
                       evaluator.estimate(erm, ("rapid",), "macro_f1").replicates)  # fmt: skip


def test_the_released_code_scores_the_rows_outside_the_trials_fold(tmp_path):
    def last_fold_wrong(cell, on, labels):
        codes, folds = labels.copy(), np.arange(len(labels)) % 5
        codes[folds == 0] = (codes[folds == 0] + 1) % 2
        return one_hot(codes, 2)

    plan = fake_domain_plan(classes=("A", "B"), trials=2)
    _, predictions = made(tmp_path, plan, counts=(10, 10), probabilities=last_fold_wrong)
    whole, code = (build_domain_table(predictions, rows=rows) for rows in ("all", "in_split"))
    key = ("Zheng-18", "micro")
    assert whole.rows[0].entries[key].ours.values == {0: pytest.approx(16 / 20), 1: pytest.approx(16 / 20)}
    assert code.rows[0].entries[key].ours.values == {0: 1.0, 1: pytest.approx(12 / 16)}
    assert code.scored["Zheng-18"] == (16, 2) and "four fifths" in code.caption()
    assert build_domain_table(predictions, preset="code").spec.rows == "in_split", "the preset decides unless asked"


def test_one_image_decides_a_class_and_scores_are_given_without_it(tmp_path):
    counts = dict.fromkeys(("mgg", "rapid", "source-a", "source-b"), (6, 6, 1))

    def lone_wrong(cell, on, labels):
        codes = labels.copy()
        codes[labels == 2] = 0
        return one_hot(codes, 3)

    plan = fake_domain_plan(classes=("A", "B", "C"), trials=1)
    _, predictions = made(tmp_path, plan, counts=counts, probabilities=lone_wrong)
    with_it, without = (build_domain_table(predictions, without_lone=flag) for flag in (False, True))
    value = {t.spec.without_lone: t.rows[0].entries["Zheng-18", "macro"].ours.values[0] for t in (with_it, without)}
    assert value[False] == pytest.approx((12 / 13 + 1 + 0) / 3) and value[True] == 1.0
    assert with_it.scored["Zheng-18"] == (13, 3) and without.scored["Zheng-18"] == (12, 2)
    assert "left out" in without.caption() and "left out" not in with_it.caption()
    assert lone_classes(np.array([0, 0, 3, 5, 5])).tolist() == [3]


@pytest.mark.parametrize(("classes", "expected"), [("target", 1 / 2 * 2), ("list", 2 / 3), ("occurring", 2 / 3)])
def test_what_the_macro_average_runs_over_is_a_choice(tmp_path, classes, expected):
    """Class C is not in the laboratory; one of eleven images is called C."""

    def one_called_c(cell, on, labels):
        codes = labels.copy()
        codes[0] = 2
        return one_hot(codes, 3)

    counts = dict.fromkeys(("mgg", "rapid", "source-a", "source-b"), (5, 6, 0))
    plan = fake_domain_plan(classes=("A", "B", "C"), trials=1)
    _, predictions = made(tmp_path, plan, counts=counts, probabilities=one_called_c)
    value = build_domain_table(predictions, classes=classes).rows[0].entries["Zheng-18", "macro"].ours.values[0]
    assert value == pytest.approx(expected * (8 / 9 + 1) / 2)


def test_values_are_compared_only_on_the_papers_data_and_protocol(tmp_path):
    """All answers right: above the paper's 70.0 +- 5.0 on its data, elsewhere only the direction counts."""
    right = lambda cell, on, labels: one_hot(labels, 5)  # noqa: E731
    for profile, expected in (("paper", "above"), ("mini", "not comparable")):
        plan = fake_domain_plan(profile=profile, trials=2)
        _, predictions = made(tmp_path / profile, plan, counts=(2, 2, 2, 2, 2), probabilities=right)
        erm, *_, sada, _ = build_domain_table(predictions).rows
        assert erm.entries["Acevedo-20", "micro"].verdict == expected
        assert sada.entries["Acevedo-20", "micro"].verdict == ("above" if profile == "paper" else "none")


def test_one_trial_is_never_sure_of_a_direction(tmp_path):
    _, predictions = made(tmp_path, skills={"erm": 0.1, "sada": 5.0})
    entry = {r.label: r for r in build_domain_table(predictions).rows}["SADA"].entries["Average", "macro"]
    assert entry.ours.folds == 1 and entry.verdict == "same, unsure"


def test_presets_and_selections_are_separate(tmp_path):
    _, predictions = made(tmp_path, fake_domain_plan(more=True))
    table = build_domain_table(predictions, preset="code")
    rows = {r.label: r for r in table.rows}
    assert rows["SADA"].entries["Average", "micro"].ours is not None
    assert rows["ERM"].entries["Average", "micro"].ours is None
    assert rows["ERM"].left_out and rows["ERM"].command == "", "no profile runs ERM under the code's preset"
    assert ("run by no profile in this preset: ERM, CORAL, Mixup, SelfReg, BoDA, DANN", "") in table.holes()
    elsewhere = ("no laboratory of this profile stands for LDWBC, another profile does",
                 "wbcrepro reproduce --paper sada --profile paper")  # fmt: skip
    assert (
        elsewhere in table.holes() and "fill this table: none (some rows: tiny, demo, mini, paper)" in table.caption()
    )
    swad, last = (build_domain_table(predictions, selection=s) for s in ("swad", "last"))
    values = [t.rows[0].entries["Average", "macro"].ours.mean for t in (swad, last)]
    assert values[0] != values[1] and "SWAD" in swad.caption() and "last step" in last.caption()


def test_missing_cells_leave_holes_that_name_their_command(tmp_path):
    plan = fake_domain_plan(trials=2)
    lost = [c for c in plan.find(preset="paper", method="sada", held_out="rapid") if c.labels["trial"] == 1][0]
    gone = {c.id for c in plan.find(preset="paper", method="coral", held_out="rapid")}
    _, predictions = made(tmp_path, plan, skip={lost.id} | gone)
    rows = {row.label: row for row in build_domain_table(predictions).rows}
    assert rows["SADA"].missing == (lost.id,) and rows["SADA"].command.startswith(f"wbcrepro run-cell {lost.id} ")
    assert rows["SADA"].entries["Zheng-18", "micro"].ours.folds == 1
    assert rows["SADA"].entries["Acevedo-20", "micro"].ours.folds == 2
    assert list(rows["SADA"].entries["Average", "micro"].ours.values) == [0], "an average needs every laboratory"
    assert (
        rows["CORAL"].entries["Zheng-18", "micro"].ours is None
        and rows["CORAL"].entries["Average", "micro"].ours is None
    )
    assert rows["CORAL"].command.startswith("wbcrepro reproduce --paper sada --profile demo")
    text, html = (f(build_domain_table(predictions)) for f in (domain_table_text, domain_table_html))
    assert "not run" in text and "wbc-hole" in html and "(1/2 trials)" in html


def test_the_external_laboratory_is_named(filled):
    table = build_domain_table(filled[1], "table_2")
    assert [c.laboratories for c in table.columns] == [("rapid",)] and "SYSU3H is private" in table.caption()
    assert {r.label: r for r in table.rows}["ERM"].entries["SYSU3H", "macro"].paper == (68.3, 1.3)
    assert "ours: rapid" in domain_table_html(table)


def test_no_direction_is_measured_against_a_value_that_is_probably_a_misprint(filled):
    rows = {r.label: r for r in build_domain_table(filled[1], "table_2").rows}
    for label in ("CORAL", "SADA"):
        micro, macro = (rows[label].entries["SYSU3H", metric] for metric in ("micro", "macro"))
        assert micro.reference == "ERM" and micro.verdict.endswith("unsure")
        assert macro.verdict == "not comparable" and not macro.reference and macro.paper


def test_validation_rows_are_those_of_the_sources(tmp_path):
    plan = fake_domain_plan("boda", trials=2)
    _, predictions = made(tmp_path, plan)
    table = build_domain_table(predictions)
    assert table.on == "val" and (table.columns[0].label, table.columns[0].ours) == ("Sources", "validation rows")
    member = predictions.find(preset="paper", method="erm", trial=1)[0]
    found = predictions.read(member, "val", "best")
    assert set(found.domains) == {"source-a", "source-b"} and set(found.folds) == {1}
    score = metrics.scores(found.labels, found.probabilities.argmax(1), 5)["macro_f1"]
    assert table.rows[0].entries["Sources", "macro"].ours.values[1] == pytest.approx(score)
    plus = {r.label: r for r in table.rows}["BoDA+"]
    assert plus.entries["Sources", "macro"].ours.folds == 2, "a retrained classifier has one set of weights"


def test_a_sweep_has_a_point_per_value_and_the_papers_best(tmp_path):
    _, predictions = made(tmp_path, fake_domain_plan(trials=1))
    table = build_domain_table(predictions, "figure_7")
    frame = sweep_frame(table)
    k = frame[(frame.parameter == "k") & (frame.metric == "micro")]
    assert k.value.tolist() == [2, 3, 4, 5] and k["mean"].notna().tolist() == [True, True, True, False]
    assert k.paper.tolist()[1] == 84.45 and k.paper.notna().sum() == 1


def test_variants_of_the_held_out_laboratory_are_scored_when_asked_for(tmp_path):
    plan = fake_domain_plan(trials=1)
    store = fill_domain_store(tmp_path, plan)
    for cell in plan.find(held_out="rapid"):
        path = store.folder(cell.id) / "predictions.npz"
        arrays = dict(np.load(path))
        ids, labels, domains, folds = laboratory_rows("rapid@2", (3, 3, 3, 3, 3))
        more = {"ids": ids, "labels": labels.astype(np.int16), "domains": domains, "folds": folds.astype(np.int8)}
        more["groups"] = np.full(len(ids), "")
        more["probabilities"] = np.repeat(one_hot(labels, 5)[:, :1], 3, axis=1)
        np.savez(path, **arrays | {f"test_{k}": np.concatenate([arrays[f"test_{k}"], v]) for k, v in more.items()})
    predictions = from_domain_plan(plan, store)
    assert predictions.targets("rapid") == ("rapid", "rapid@2")
    evaluator = DomainEvaluator(predictions, n=50)
    assert build_domain_table(predictions, evaluator=evaluator).scored["Zheng-18"][0] == 59
    assert evaluator.estimate(DomainSpec("erm", target="rapid@2"), ("rapid",), "micro_f1").mean == 1.0
    assert evaluator.estimate(DomainSpec("erm", target="none"), ("rapid",), "micro_f1") is None
    folder = results.export_results(predictions, tmp_path / "results")
    assert results.open_results(folder).targets("rapid") == ("rapid", "rapid@2")
    frame = shift_frame(predictions, ["erm", "sada"], evaluator=evaluator)
    assert frame["shift"].tolist() == [1.0, 2.0] * 2 and frame["mean"].tolist()[1] == 100
    assert set(frame.laboratory) == {"rapid"}, "a laboratory without variants has no curve"


def test_gains_are_paired_differences_to_erm(filled):
    table = build_domain_table(filled[1])
    frame = gains_frame(table).set_index("step")
    sada = {r.label: r.entries["Average", "macro"].ours for r in table.rows}
    assert frame.loc["SADA: Average", "change"] == pytest.approx(100 * (sada["SADA"].mean - sada["ERM"].mean))
    assert frame.loc["SADA: Average", "paper"] == pytest.approx(68.6 - 63.2) and frame.loc["SADA: Average", "low"] > 0
    assert len(frame) == 6 * 3 and np.isnan(frame.loc["DANN: Average", "paper"])


def test_scoring_choices_leave_the_trainings_alone(filled):
    frame = scoring_frame(filled[1], evaluator=DomainEvaluator(filled[1], n=50))
    assert frame.scoring.nunique() == 8 and len(frame) == 8 * 7
    sada = frame[frame.row == "SADA"].set_index("scoring")
    assert sada.loc["the paper's way", "mean"] == sada.loc["averaged weights (SWAD)", "mean"]
    assert sada.loc["the paper's way", "mean"] != sada.loc["weights of the last step", "mean"]
    assert frame[frame.scoring == "the paper's way"].place.min() == 1


def test_choices_stand_side_by_side_with_paired_changes(tmp_path):
    plan = fake_domain_plan(held_out=["rapid"])
    lost = {c.id for c in plan.find(method="coral")}
    wrong_in_split = lambda cell, on, labels: one_hot(np.where(np.arange(len(labels)) % 5, 1 - labels, labels), 2)  # noqa: E731
    plan.benchmark.classes = ("A", "B")
    _, predictions = made(tmp_path, plan, counts=(25, 25), skip=lost, probabilities=wrong_in_split)
    choices = {"all": {}, "four fifths": {"rows": "in_split"}, "last": {"selection": "last"}}
    frame = choices_frame(predictions, choices, metric="micro").set_index(["row", "column"])
    assert "CORAL" not in frame.index and "LDWBC" not in frame.index.get_level_values("column")
    line = frame.loc["ERM", "Average"]
    assert (
        line["all"] == pytest.approx(20) and line["four fifths"] == 0 == line["last: change"]
    )  # fold 0 alone is right
    assert line["four fifths: change"] == pytest.approx(-20) and line["trials"] == 1
    assert line["four fifths: low"] < -20 < line["four fifths: high"] and line["last: low"] == 0 == line["last: high"]


def test_recall_beside_the_training_images_of_each_source(tmp_path):
    counts = {"rapid": (4, 4, 2), "source-a": (9, 9, 3), "source-b": (9, 9, 0)}
    plan = fake_domain_plan("boda", classes=("A", "B", "C"), trials=2)
    half = lambda cell, on, labels: one_hot(np.where(np.arange(len(labels)) == len(labels) - 1, 0, labels), 3)  # noqa: E731
    _, predictions = made(tmp_path, plan, counts=counts, probabilities=half)
    specs = {"ERM": DomainSpec("erm", selection="best"), "BoDA": DomainSpec("boda", selection="best")}
    frame = recall_frame(predictions, specs, "rapid").set_index("class")
    assert frame.loc["C"].tolist() == [3, 0, 1, 2, 50.0, 50.0] and frame.loc["A", "recall ERM"] == 100
    assert confusion_of(predictions, specs["ERM"], "rapid").tolist() == [[4, 0, 0], [0, 4, 0], [1, 0, 1]]


def test_forms_of_a_table_agree(filled, tmp_path, monkeypatch):
    monkeypatch.setenv("WBCREPRO_PAGE_FILES", str(tmp_path))
    monkeypatch.setenv("WBCREPRO_PAGE_URL", "../_static/pages/x")
    table = build_domain_table(filled[1])
    value = json.loads(json.dumps(table.to_json(), allow_nan=False))
    assert value["schema"] == 1 and value["kind"] == "lodo" and len(value["rows"]) == 7 and value["synthetic"] is True
    frame = table.frame()
    assert len(frame) == 7 * 5 * 2
    assert frame["mean"].iloc[0] == pytest.approx(value["rows"][0]["entries"][0]["mean"], abs=1e-4)
    html = domain_table_html(table)
    assert "wbc-synthetic" in html and '<b class="wbc-best">84.4 ± 0.3</b>' in html and html.count("<table>") == 4
    assert '<u class="wbc-second">80.0 ± 0.6</u>' in html, "the paper's own second is marked as printed there"
    assert (tmp_path / "table_1-test-paper-swad-all-target.csv").read_text() == table.to_csv()
    assert "reproduced" not in html.lower()
    assert "average is over mgg, rapid, the paper's over its own" in table.caption()


def test_unknown_names_are_refused(filled):
    for options in (
        {"name": "table_9"},
        {"preset": "x"},
        {"selection": "x"},
        {"rows": "x"},
        {"classes": "x"},
        {"on": "val"},
    ):
        with pytest.raises(UsageError):
            build_domain_table(filled[1], **options)
    with pytest.raises(ValueError, match="expected one of"):
        DomainSpec("erm", rows="x")
    with pytest.raises(ValueError, match="expected one of"):
        filled[1].read(filled[1].members[0], "test", "x")


def test_results_travel_and_are_rebuilt_byte_for_byte(filled, tmp_path, capsys):
    _, predictions = filled
    folder = results.export_results(predictions, tmp_path / "one")
    assert folder == tmp_path / "one" / "sada" / "sada-smears-demo" and results.check_results(folder) == []
    again = results.export_results(predictions, tmp_path / "two")
    names = sorted(p.name for p in folder.iterdir())
    assert names == sorted(p.name for p in again.iterdir())
    assert all((folder / n).read_bytes() == (again / n).read_bytes() for n in names)
    opened = results.open_results(folder)
    assert opened.members == predictions.members and opened.members[0].train_counts and opened.classes == FIVE
    assert build_domain_table(opened).to_csv() == build_domain_table(predictions).to_csv()
    assert (folder / "table_1-test-paper-swad-all-target.csv").read_text() == build_domain_table(opened).to_csv()
    root = str(tmp_path / "one")
    assert main(["results", "list", "--results", root]) == 0 and "a machine" in capsys.readouterr().out
    assert main(["results", "rebuild", "--results", root]) == 0 and "agrees" in capsys.readouterr().out
    assert main(["report", "--results", str(folder)]) == 0 and "F1-macro" in capsys.readouterr().out
    assert main(["report", "--results", str(folder), "--csv", "--selection", "last"]) == 0
    assert capsys.readouterr().out == build_domain_table(opened, selection="last").to_csv()
    assert main(["report", "--results", str(folder), "--classes", "wrong"]) == 2
    broken = folder / "items-test.npz"
    broken.write_bytes(b"")
    assert "differs from the digest" in results.check_results(folder)[0]


def test_only_known_selections_are_exported(filled, tmp_path):
    with pytest.raises(UsageError, match="expected some of swad, last, best"):
        results.export_results(filled[1], tmp_path, views=["code"])
    with np.load(results.export_results(filled[1], tmp_path / "all") / "probabilities-test-paper-m2.npz") as file:
        assert {name.rpartition("/")[2] for name in file.files} == {"swad"}, "an ablation keeps its table's selection"
    folder = results.export_results(filled[1], tmp_path, views=["swad"])
    assert results.check_results(folder) == [] and not list(folder.glob("*-last-*.csv"))


def test_captions_say_what_the_numbers_do_not_show(tmp_path, filled):
    """Class C of both laboratories comes from one slide, class A from its forty cells."""
    plan = fake_domain_plan(trials=1)
    store = fill_domain_store(tmp_path, plan, counts=(40, 12, 9, 12, 12))
    for cell in plan.cells:
        path = store.folder(cell.id) / "predictions.npz"
        arrays = dict(np.load(path))
        slides = {1: "slide 1", 2: "slide 1"}
        arrays["test_groups"] = np.array([slides.get(int(code), "") for code in arrays["test_labels"]])
        np.savez(path, **arrays)
    table = build_domain_table(from_domain_plan(plan, store), evaluator=None)
    assert table.few == {lab: {"lymphocyte": (12, 1)} for lab in ("mgg", "rapid")}, "nine images are not many"
    assert "in rapid class lymphocyte comes from 1 slide(s) or group(s) (12 images)" in table.caption()
    assert "too narrow" not in build_domain_table(filled[1]).caption()
    assert "drawn together where they are known" in build_domain_table(filled[1]).caption()
    boda = from_domain_plan(fake_domain_plan("boda"), fill_domain_store(tmp_path / "b", fake_domain_plan("boda")))
    chosen = [build_domain_table(boda, name).caption() for name in ("table_1", "table_2")]
    assert ["also chose the weights" in words for words in chosen] == [True, False]
    assert "also chose" not in build_domain_table(boda, "table_1", selection="last").caption()


def test_an_external_column_needs_a_laboratory_and_says_when_it_is_no_new_result(filled, tmp_path):
    words = build_domain_table(filled[1], "table_2").caption()
    assert words.endswith("Profiles that fill this table: tiny, demo, mini."), "nothing stands in in profile paper"
    assert "no further result: it scores the same cells as the column Zheng-18 of 'Leave one laboratory out" in words
    assert "no further result" not in build_domain_table(filled[1]).caption()
    plan = fake_domain_plan("boda")
    boda = from_domain_plan(plan, fill_domain_store(tmp_path, plan))
    assert "no further result" not in build_domain_table(boda, "table_2").caption()
    assert "tiny, demo, mini, paper." in build_domain_table(boda, "table_2").caption()


def test_a_rank_that_more_than_two_share_is_not_given():
    assert ranked({"a": 3.0, "b": 3.0, "c": 2.0}) == {"a": "best", "b": "best", "c": "second"}
    assert ranked({"a": 3.0, "b": 2.0, "c": 2.0, "d": 2.0}) == {"a": "best"}
    assert ranked({"a": 3.0, "b": 3.0, "c": 3.0, "d": 2.0}) == {}
