"""Tables and frames of `rescue` from stored predictions, against tables computed by hand and direct calls."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from fake_rescue_store import CLASSES, TEST, TRAIN, fake_rescue_plan, fill_rescue_store

from wbcrepro import metrics
from wbcrepro.errors import UsageError
from wbcrepro.inference.tta import RESCUE_WEIGHTS, combine_views
from wbcrepro.report import rescue_figures, rescue_frames, verdicts
from wbcrepro.report.designs import design_of
from wbcrepro.report.evaluate import Estimate
from wbcrepro.report.rescue_evaluate import AVERAGED, STAGES, RescueEvaluator, RescueSpec, paired
from wbcrepro.report.rescue_page import rescue_table_html, rescue_table_text
from wbcrepro.report.rescue_predictions import from_rescue_plan
from wbcrepro.report.rescue_tables import build_rescue_table
from wbcrepro.report.rescue_validation import cross_validation, fall_frame, gap
from wbcrepro.report.results import check_results, export_results, open_results

N = 60


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    plan = fake_rescue_plan()
    store = fill_rescue_store(tmp_path_factory.mktemp("store"), plan)
    predictions = from_rescue_plan(plan, store)
    return plan, store, predictions, RescueEvaluator(predictions, N)


def entries(table, row):
    return {c.key: next(r for r in table.rows if r.label == row).entries[c.key] for c in table.columns}


def cells(plan, kind, **labels):
    own = plan.benchmark.name
    return [c for c in plan.find(**{"benchmark": own, **labels}) if c.kind == kind]


def sure(codes, views):
    """Probabilities (N, V, C) that are sure of these codes in every view."""
    table = np.full((len(CLASSES), len(CLASSES)), 0.02, np.float16)
    np.fill_diagonal(table, 0.92)
    return np.repeat(table[codes][:, None], views, axis=1)


# The evaluator


def test_an_average_of_folds_is_that_of_the_released_views(filled):
    plan, store, _, evaluator = filled
    arrays = [store.get(c.id).predictions() for c in cells(plan, "tta", row="ldam")]
    assert len(arrays) == 3
    mean = np.mean([combine_views(a["test_probabilities"], RESCUE_WEIGHTS) for a in arrays], axis=0)
    expected = metrics.scores(arrays[0]["test_labels"], mean.argmax(1), len(CLASSES))["macro_f1"]
    assert evaluator.estimate(RescueSpec("ldam"), "test").values == {AVERAGED: pytest.approx(expected, abs=1e-12)}


@pytest.mark.parametrize("rules", ["paper", "fitted", "code"])
@pytest.mark.parametrize("on", ["test", "test_degraded"])
def test_the_rescue_computed_anew_is_the_stored_one(filled, rules, on):
    _, _, predictions, evaluator = filled
    _, stored = predictions.trace(rules, on)
    anew = evaluator.rescued(RescueSpec(rules=rules, preset="code" if rules == "code" else "paper"), on)
    for stage in STAGES.values():
        assert np.array_equal(stored.after_phase[stage], anew.after_phase[stage])
    assert (stored.final != stored.base).any(), "the test would say nothing if no label changed"


def test_presets_with_the_same_networks_share_them(filled):
    predictions = filled[2]
    paper, code = (predictions.networks("swin", preset) for preset in ("paper", "code"))
    assert [m.id for m in paper] == [m.id for m in code] and len(paper) == 3
    heads = [{m.id for m in predictions.select("semantic", preset)} for preset in ("paper", "code")]
    assert len(heads[0]) == len(heads[1]) == 4 and not heads[0] & heads[1]


def test_a_head_without_groups_takes_those_of_its_images(filled):
    _, store, predictions, _ = filled
    head = predictions.networks("decoupling", "paper")[0]
    assert "test_groups" not in store.get(head.id).predictions()
    groups = predictions.read(head, "test").groups
    assert set(groups) == {f"test patient {i}" for i in range(5)}


def test_rows_are_resampled_together_and_patients_as_one(filled):
    evaluator = filled[3]
    spec = RescueSpec(folds="each")
    found = evaluator.decided(spec, "test")
    draws = evaluator.estimate(spec, "test").draws
    both = evaluator.estimate(replace(spec, row="ldam"), "test")
    assert paired(both, evaluator.estimate(spec, "test")).values.keys() == draws.keys()
    assert set(found[0].units) == {f"test patient {i}" for i in range(5)}
    again = RescueEvaluator(evaluator.predictions, N)
    assert np.array_equal(again.estimate(spec, "test").draws[1], draws[1])


def test_an_average_is_compared_with_every_single_fold():
    whole = Estimate({AVERAGED: 0.8}, {AVERAGED: np.array([0.7, 0.9])})
    single = Estimate({0: 0.5, 1: 0.6}, {0: np.array([0.4, 0.6]), 1: np.array([0.6, 0.6])})
    assert paired(whole, single).values == {0: pytest.approx(0.3), 1: pytest.approx(0.2)}
    assert paired(single, whole).draws[1] == pytest.approx([-0.1, -0.3])
    with pytest.raises(ValueError, match="no fold in common"):
        paired(single, Estimate({5: 0.1}, {5: np.zeros(2)}))


# Table 1


def test_cross_validation_equals_the_one_computed_by_hand(tmp_path):
    plan = fake_rescue_plan()

    def probabilities(cell, on, labels):
        if cell.kind == "semantic":
            return None
        wrong = labels.copy()
        if cell.config.get("folds") == "group" and cell.config["fold"] == 0 and on == "val":
            wrong[np.flatnonzero(labels == 4)] = 1  # fold 0 by patient calls every PLY a lymphocyte
        return sure(wrong, 8)

    predictions = from_rescue_plan(plan, fill_rescue_store(tmp_path, plan, probabilities=probabilities))
    evaluator = RescueEvaluator(predictions, N)
    table = build_rescue_table(predictions, "table_1", evaluator=evaluator)
    by_patient, by_image = (entries(table, f"Folds by {name}") for name in ("patient", "image"))
    labels = plan.benchmark.table.query("set == 'train' and fold == 0")["label"].to_numpy()
    n, missed = np.bincount(labels, minlength=5)[1], int((labels == 4).sum())
    assert missed == 3
    expected = (1 + 1 + 1 + 2 * n / (2 * n + missed) + 0) / 5  # F1 of SNE, VLY, PC, LY, PLY
    assert by_patient["val:macro_f1"].ours.values == {0: pytest.approx(expected), 1: 1.0, 2: 1.0}
    assert by_patient["val:balanced_accuracy"].ours.values[0] == pytest.approx(0.8)
    lacking = plan.benchmark.table.query("set == 'train'")
    lacking = [5 - lacking["label"][(np.arange(len(lacking)) // 6) % 3 == k].nunique() for k in range(3)]
    assert by_image["val:macro_f1"].ours.values == {k: pytest.approx(1 - lacking[k] / 5) for k in range(3)}
    assert by_image["val:macro_f1"].paper == (pytest.approx(73.55), pytest.approx(2.37))
    assert by_patient["val:macro_f1"].paper is None
    pooled = entries(table, "Gap, all folds pooled")["val:balanced_accuracy"].ours
    assert pooled.mean == pytest.approx((3 / 9) / 5), "3 of 9 PLY, one of five classes"
    assert gap(evaluator, "balanced_accuracy", pooled=True).mean == pooled.mean


def test_cells_of_one_person_on_both_sides_show_as_a_gap(filled):
    evaluator = filled[3]
    assert gap(evaluator, "balanced_accuracy").mean > 0.05
    one, other = (cross_validation(evaluator, folds, pooled=True) for folds in ("image", "group"))
    assert gap(evaluator, pooled=True).mean == pytest.approx(one.mean - other.mean)


def test_without_patients_all_folds_are_by_image(tmp_path):
    plan = fake_rescue_plan(groups=False)
    predictions = from_rescue_plan(plan, fill_rescue_store(tmp_path, plan))
    table = build_rescue_table(predictions, "table_1", evaluator=RescueEvaluator(predictions, N))
    assert "No patients are known" in table.caption() and "no patients are known" in table.caption()
    assert [row.label for row in table.rows] == ["Folds by image", "Folds by patient"]
    assert all(e.ours is None and not e.planned for e in table.rows[1].entries.values())
    assert table.rows[0].cells == tuple(m.id for m in predictions.networks("swin", "paper"))
    fall = fall_frame(RescueEvaluator(predictions, N))
    assert "cross-validation, folds by patient" not in set(fall["station"]) and len(fall) == 4
    assert "no patients known" in fall["what changed"][1] and "other patients" not in " ".join(fall["what changed"])
    assert table.holes() == [("not possible on these images, whose patients are not known: Folds by patient", "")]


# Table 2


def test_steps_of_the_waterfall_are_differences_to_the_row_that_they_name(filled):
    table = build_rescue_table(filled[2], "table_2", evaluator=filled[3])
    labels = [row.label for row in table.rows]
    assert labels[:7] == [row["label"] for row in filled[2].paper["tables"]["table_2"]["rows"]]
    assert labels[7:] == [f"+ Phase {k} ({rules})" for rules in ("fitted", "code") for k in (2, 3)]
    references = {row.label: {e.reference for e in row.entries.values()} - {""} for row in table.rows}
    assert references["+ Phase 3"] == {"+ Phase 2"} and references["+ Phase 2"] == {"Five folds + TTA"}
    assert references["LDAM"] == {"Five folds + TTA"} and references["Five folds + TTA"] == {"Single fold"}
    assert references["+ Phase 3 (code)"] == {"+ Phase 2 (code)"} and not references["Single fold"]
    for column in (":test:macro_f1", ":test_degraded:macro_f1"):
        one, other = (entries(table, f"+ Phase {k}")[column] for k in (3, 2))
        assert one.step.mean == pytest.approx(one.ours.mean - other.ours.mean)
    assert entries(table, "+ Phase 2")[":test:macro_f1"].paper == (pytest.approx(71.528), None)


def test_a_step_is_judged_by_every_fold_and_not_by_the_average(filled):
    table = build_rescue_table(filled[2], "table_2", evaluator=filled[3])
    step = entries(table, "+ Phase 2")[":test_degraded:macro_f1"]
    assert step.ours.folds == 1, "the average of all folds is one number"
    change = filled[3].change(RescueSpec(stage="phase2"), RescueSpec(), "test_degraded")
    assert change.folds == 3 and step.verdict == verdicts.direction(change, 4.943)


def test_the_single_fold_is_every_fold_without_views(filled):
    plan, store, predictions, evaluator = filled
    table = build_rescue_table(predictions, "table_2", evaluator=evaluator)
    ours = entries(table, "Single fold")[":test:macro_f1"].ours
    for cell in cells(plan, "tta", row="swin", folds="group"):
        a = store.get(cell.id).predictions()
        codes = a["test_probabilities"][:, 0].argmax(1)
        expected = metrics.scores(a["test_labels"], codes, len(CLASSES))["macro_f1"]
        assert ours.values[cell.labels["fold"]] == pytest.approx(expected)


def test_the_control_stands_beside_and_only_where_it_runs(filled):
    table = build_rescue_table(filled[2], "table_2", evaluator=filled[3])
    control = [c for c in table.columns if c.control]
    assert [c.benchmark for c in control] == ["rescue-smears-control"] * 2
    assert all(entries(table, "+ Phase 3")[c.key].ours and entries(table, "+ Phase 3")[c.key].paper is None
               for c in control)  # fmt: skip
    assert all(not entries(table, row)[c.key].planned for row in ("LDAM", "+ Phase 3 (code)") for c in control)
    released = build_rescue_table(filled[2], "table_2", preset="code", evaluator=filled[3])
    assert not [c for c in released.columns if c.control]
    assert released.rows[1].left_out and not released.rows[1].command
    here = entries(table, "+ Phase 3 (code)")[":test:macro_f1"].ours.mean
    assert entries(released, "+ Phase 3")[":test:macro_f1"].ours.mean == here


def test_a_difference_names_its_row_and_a_verdict_the_folds_that_it_judges(filled):
    table = build_rescue_table(filled[2], "table_2", evaluator=filled[3])
    entry = entries(table, "Decoupling")[":test:macro_f1"]
    html = rescue_table_html(table)
    assert "to Five folds + TTA</small>" in html
    assert f"folds alone: Δ {100 * entry.change.mean:+.1f}, {verdicts.VALUES[entry.verdict]}" in html
    assert entry.change.folds == 3 and "Rows named after five folds have 3 here." in table.caption()


@pytest.mark.parametrize(("share", "words"), [(0.0, "no row is favoured"), (0.01, "that favours its row")])
def test_restored_training_images_favour_a_row_only_where_there_are_some(filled, share, words):
    changed = {"train": share, "test": 0.02, "test_degraded": 0.75}
    members = tuple(
        replace(m, metrics=m.metrics | {"noisy": changed}) if m.kind == "restored" else m for m in filled[2].members
    )
    predictions = replace(filled[2], members=members)
    table = build_rescue_table(predictions, "table_restoration", evaluator=RescueEvaluator(predictions, N))
    assert words in table.caption()


def test_a_rule_that_is_not_in_force_is_named(filled):
    words = build_rescue_table(filled[2], "table_2", evaluator=filled[3]).caption()
    assert "Rules fitted, fitted (control): PLY is never rescued, because no threshold" in words


def test_holes_name_the_command_that_fills_them(tmp_path):
    plan = fake_rescue_plan()
    ldam = cells(plan, "tta", row="ldam")[1].id
    store = fill_rescue_store(tmp_path, plan, skip={ldam})
    predictions = from_rescue_plan(plan, store)
    table = build_rescue_table(predictions, "table_2", evaluator=RescueEvaluator(predictions, N))
    command = f"wbcrepro run-cell {ldam} --paper rescue --profile demo"
    assert ("holes in LDAM", command) in table.holes() and command in rescue_table_text(table)
    entry = entries(table, "LDAM")[":test:macro_f1"]
    assert entry.ours is None and entry.verdict == "missing", "an average of two of three folds is another row"
    assert command in rescue_table_html(table) and 'class="wbc-hole"' in rescue_table_html(table)


def test_a_hole_of_the_control_is_a_hole_of_the_row(tmp_path):
    plan = fake_rescue_plan()
    skipped = next(c.id for c in plan.find(benchmark="rescue-smears-control", rules="paper") if c.kind == "rescue")
    predictions = from_rescue_plan(plan, fill_rescue_store(tmp_path, plan, skip={skipped}))
    table = build_rescue_table(predictions, "table_2", evaluator=RescueEvaluator(predictions, N))
    assert ("holes in + Phase 2, + Phase 3", predictions.run_command(next(
        m for m in predictions.members if m.id == skipped))) in table.holes()  # fmt: skip
    assert entries(table, "+ Phase 2")[":test:macro_f1"].ours is not None


def test_a_method_that_the_profile_leaves_out_is_run_by_one_that_has_it(tmp_path):
    plan = fake_rescue_plan("tiny", folds=2)
    predictions = from_rescue_plan(plan, fill_rescue_store(tmp_path, plan))
    holes = build_rescue_table(predictions, "table_restoration", evaluator=RescueEvaluator(predictions, N)).holes()
    known = {command.rpartition(" ")[2]: words for words, command in holes}
    assert "Non-local means" in known["demo"] and "published pairs" in known["paper"] and len(known) == 2


def test_an_empty_store_gives_tables_of_holes(tmp_path):
    plan = fake_rescue_plan()
    predictions = from_rescue_plan(plan, fill_rescue_store(tmp_path, plan, skip={c.id for c in plan.cells}))
    for name in ("table_1", "table_2", "table_restoration"):
        table = build_rescue_table(predictions, name)
        assert not table.any_result and "wbcrepro reproduce --paper rescue" in rescue_table_text(table)
        assert rescue_table_html(table) and table.to_csv() and table.to_json()["rows"]


def test_tables_print_as_the_other_papers_do(filled):
    design = design_of("rescue")
    assert design.build is build_rescue_table and design.text is rescue_table_text
    table = build_rescue_table(filled[2], "table_2", evaluator=filled[3])
    text = design.text(table)
    assert "SYNTHETIC IMAGES" in text and "private leaderboard" in text and "63.86" in text
    value = json.loads(json.dumps(table.to_json(), allow_nan=False))
    assert value["synthetic"] and len(value["rows"]) == 11 and len(value["columns"]) == 4
    again = build_rescue_table(filled[2], "table_2", evaluator=RescueEvaluator(filled[2], N))
    assert again.to_csv() == table.to_csv() and len(table.frame()) == 44


@pytest.mark.parametrize("name, options", [("table_9", {}), ("figure_1", {}), ("table_2", {"preset": "ours"}),
                                           ("table_2", {"on": "val"}), ("table_1", {"on": "test"})])  # fmt: skip
def test_unknown_tables_presets_and_sets_are_refused(filled, name, options):
    with pytest.raises(UsageError, match="it has"):
        build_rescue_table(filled[2], name, **options)


# Restoration, the fall, frames


def test_restoration_compares_one_network_on_the_same_images(filled):
    plan, store, predictions, evaluator = filled
    table = build_rescue_table(predictions, "table_restoration", evaluator=evaluator)
    median, ours = (entries(table, row) for row in ("Median filter", "Pix2Pix"))
    assert median["psnr"].number == 24.0 and entries(table, "No restoration")["psnr"].number == 20.0
    assert median["psnr"].interval == (23.5, 24.5) and "<small>[23.50, 24.50]</small>" in rescue_table_html(table)
    first = cells(plan, "tta", row="swin", folds="group", fold=0)[0]
    a = store.get(first.id).predictions()
    expected = metrics.scores(a["test_degraded_labels"], a["test_degraded_probabilities"][:, 0].argmax(1), 5)
    assert ours["f1:test_degraded"].ours.values == {0: pytest.approx(expected["macro_f1"])}
    assert ours["f1:test_degraded"].step.mean > 0 and "one training decides nothing" in table.caption()
    other = next(row for row in table.rows if row.label == "Pix2Pix (released noise)")
    assert other.entries["psnr"].number == 25.0 and not other.entries["f1:test"].planned


def test_the_fall_adds_up(filled):
    fall = fall_frame(filled[3])
    assert len(fall) == 5
    assert fall["score"].diff()[1:].to_numpy() == pytest.approx(fall["change"][1:].to_numpy())
    degraded = fall.set_index("station").loc["degraded test set, single fold"]
    assert degraded["change low"] < degraded["change"] < degraded["change high"] < 0


def test_overlap_of_the_branches_adds_up_to_all_images(filled):
    frame = rescue_frames.overlap_frame(filled[3], "test")
    assert frame[list(rescue_frames.SHARES)].sum(axis=1).to_numpy() == pytest.approx(100)
    assert frame["images"].tolist() == [*TEST, sum(TEST)]
    both = filled[3].branches(RescueSpec(), "test")
    first, second = both.scored.probabilities.argmax(1), both.semantic.argmax(1)
    only = (first != both.scored.labels) & (second == both.scored.labels)
    assert frame["oracle gain"].iloc[-1] == pytest.approx(100 * only.mean()), "equal classes: the plain share"


def test_sensitivity_at_the_fitted_value_is_the_value_of_the_table(filled):
    frame = rescue_frames.sensitivity_frame(filled[3])
    table = build_rescue_table(filled[2], "table_2", evaluator=filled[3])
    final = 100 * entries(table, "+ Phase 3")[":test_degraded:macro_f1"].ours.mean
    at = frame[frame["value"] == frame["fitted"]]
    assert len(at) == 6 and at["macro_f1"].to_numpy() == pytest.approx(final)
    assert frame["macro_f1"].nunique() > 3, "thresholds that move nothing would test nothing"


def test_counts_are_those_of_both_sides(filled):
    frame = rescue_frames.counts_frame(filled[2]).set_index("class")
    assert frame.loc["PLY", "paper"] == 14 and np.isnan(frame.loc["MO", "ours, training"])
    assert frame.loc[list(CLASSES), "ours, training"].tolist() == list(TRAIN)


def test_confusions_keep_every_image_and_phases_move_rare_cells(filled):
    names, matrices = rescue_frames.target_confusions(filled[3])
    assert names == ["PLY", "PC", "LY", "VLY", "other"]
    assert {m.sum() for m in matrices.values()} == {sum(TEST)}
    assert matrices["after phase 2"][0, 0] > matrices["networks alone"][0, 0]


def test_the_gallery_tells_what_happened(filled):
    frame = rescue_frames.gallery_frame(filled[2], each=2)
    assert {"rescued", "missed"} <= set(frame["kind"]) and frame.groupby(["kind", "class"]).size().max() <= 2
    for line in frame.to_dict("records"):
        rare = line["class"]
        right = {"rescued": (rare, rare), "missed": (rare, None), "wrongly rescued": (None, rare)}[line["kind"]]
        assert line["truth"] == right[0] or (right[0] is None and line["truth"] != rare)
        assert line["final"] == right[1] or (right[1] is None and line["final"] != rare)
        assert line["sentences"][0] == f"base label: {line['base']}"


def test_figures_are_drawn_with_labelled_axes(filled):
    _, _, predictions, evaluator = filled
    table = build_rescue_table(predictions, "table_2", evaluator=evaluator)
    gallery = rescue_frames.gallery_frame(predictions)
    drawn = [
        rescue_figures.waterfall_figure(table),
        rescue_figures.counts_figure(rescue_frames.counts_frame(predictions)),
        rescue_figures.overlap_figure(rescue_frames.overlap_frame(evaluator)),
        rescue_figures.targets_figure(*rescue_frames.target_confusions(evaluator)),
        rescue_figures.sensitivity_figure(rescue_frames.sensitivity_frame(evaluator)),
        rescue_figures.one_image_figure(CLASSES, TEST, {"phase 3": 5.6}, 13),
    ]
    for figure in drawn:
        assert all(axis.get_xlabel() for axis in figure.axes if axis.get_visible())
    line = next(x for x in drawn[-1].axes[0].lines if x.get_label().startswith("mean"))
    at = dict(zip(*line.get_data(), strict=True))
    assert at[10] == pytest.approx(100 / 10 / 13)
    with pytest.raises(ValueError, match="images for"):
        rescue_figures.gallery_figure([], gallery)


# Committed results


def test_results_that_travel_give_the_same_tables(filled, tmp_path):
    predictions = filled[2]
    folder = export_results(predictions, tmp_path)
    assert check_results(folder) == [] and max(p.stat().st_size for p in folder.iterdir()) < 100_000
    opened = open_results(folder)
    for name in ("table_1", "table_2", "table_restoration"):
        tables = [build_rescue_table(p, name, evaluator=RescueEvaluator(p, N)) for p in (predictions, opened)]
        assert tables[0].to_csv() == tables[1].to_csv()
    assert opened.controls == predictions.controls
    assert opened.read(opened.networks("ldam", "paper")[0], "test", "identity") is None, "only its average was kept"
    swin = opened.networks("swin", "paper")[0]
    for view in ("identity", "tta"):
        one, other = (p.read(swin, "val", view) for p in (opened, predictions))
        assert np.array_equal(one.ids, other.ids) and np.array_equal(one.groups, other.groups)
        assert one.probabilities == pytest.approx(other.probabilities, abs=1e-3)


def test_a_changed_file_is_noticed(filled, tmp_path):
    folder = export_results(filled[2], tmp_path)
    shutil.copy(folder / "rules-rescue-smears-paper.json", folder / "rules-rescue-smears-fitted.json")
    (folder / "table_2-paper.csv").write_text("row\n")
    wrong = " ".join(check_results(folder))
    assert "rules-rescue-smears-fitted.json" in wrong and "digest" in wrong
