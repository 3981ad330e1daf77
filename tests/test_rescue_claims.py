"""Claims of `rescue` as data, on made-up predictions whose answer is known."""

import json

import numpy as np
import pytest
from fake_rescue_store import fake_rescue_plan, fill_rescue_store
from test_rescue_report import sure

from wbcrepro.papers import load_paper
from wbcrepro.report.claims import findings_frame, load_part
from wbcrepro.report.page import claims_html, discrepancies_html
from wbcrepro.report.rescue_claims import KINDS, evaluate_rescue_claims
from wbcrepro.report.rescue_evaluate import RescueEvaluator
from wbcrepro.report.rescue_frames import optimism
from wbcrepro.report.rescue_predictions import from_rescue_plan

LY = 1


def findings(path, plan=None, n=100, **options):
    plan = plan or fake_rescue_plan()
    predictions = from_rescue_plan(plan, fill_rescue_store(path, plan, **options))
    return predictions, evaluate_rescue_claims(predictions, n=n)


def of(found, claim):
    return {f.item: f for f in found if f.claim == claim}


def blind(skill_of_second):
    """Networks that call every rare cell LY with the rare class close behind; a second branch of given skill."""

    def probabilities(cell, on, labels):
        views = 1 if cell.kind in ("semantic", "rescored") else 8
        if cell.kind == "semantic":
            return sure(labels if skill_of_second else np.full(len(labels), LY), views)
        made = sure(np.where(labels >= 3, LY, labels), views).astype(np.float32)
        rare = labels >= 3
        made[rare, :, LY], made[rare, :, labels[rare]] = 0.6, 0.34
        return made.astype(np.float16)

    return probabilities


@pytest.fixture(scope="module")
def knowing(tmp_path_factory):
    """The second branch knows the rare cells that the networks call lymphocytes."""
    return findings(tmp_path_factory.mktemp("knowing"), probabilities=blind(True))[1]


@pytest.fixture(scope="module")
def ordinary(tmp_path_factory):
    return findings(tmp_path_factory.mktemp("ordinary"))


def test_a_second_branch_that_knows_rare_cells_supports_phase_2(knowing):
    found = knowing
    for on in ("degraded", "pristine"):
        one = of(found, "C1")[f"+ Phase 2 against Five folds + TTA, {on}"]
        assert one.verdict == "supported" and one.folds == 3 and one.effect > 25
        assert one.paper == pytest.approx(71.528 - 66.585) and "all folds averaged" in one.note
        assert of(found, "C8")[f"recall of PLY, {on}"].verdict == "supported"
        assert of(found, "C7")[f"second branch against a second network, {on}"].verdict == "supported"


def test_one_that_does_not_leaves_nothing_to_support(tmp_path):
    _, found = findings(tmp_path, probabilities=blind(False))
    for on in ("degraded", "pristine"):
        assert of(found, "C1")[f"+ Phase 2 against Five folds + TTA, {on}"].effect == 0
    assert {f.verdict for claim in ("C1", "C2", "C8") for f in of(found, claim).values()} == {"undecided"}


def test_phase_3_works_by_the_cue_and_harms_where_there_is_none(knowing):
    """The control's PLY are not spiky, so phase 3 sends back what the second branch knew."""
    cues = of(knowing, "C9")
    assert cues["gain of phase 3, benchmark - control, pristine"].verdict == "supported"
    alone = cues["gain of phase 3 on the control (the claim: nothing), pristine"]
    assert alone.effect < -5 and alone.verdict == "supported", "a loss is no gain"


def test_two_trainings_never_decide(tmp_path):
    plan = fake_rescue_plan("tiny", folds=2)
    _, found = findings(tmp_path, plan, probabilities=blind(True))
    assert found and not {f.verdict for f in found} & {"supported", "contradicted"}
    assert "two trials decide nothing" in of(found, "C1")["+ Phase 2 against Five folds + TTA, pristine"].note


def test_one_network_on_restored_images_decides_nothing(ordinary):
    _, found = ordinary
    restored = of(found, "C10")
    assert {f.verdict for f in restored.values()} == {"undecided"} and {f.folds for f in restored.values()} == {1}
    left = restored["Pix2Pix against images left alone, degraded"]
    assert left.low > 0 and "one trial decides nothing" in left.note and "dB" in left.note


def test_long_tail_methods_that_bring_little_support_the_plateau_and_a_better_one_contradicts_it(tmp_path):
    def equal(cell, on, labels):
        if cell.kind == "semantic":
            return None
        wrong = labels.copy()
        if cell.labels.get("row") != "ldam":
            wrong[labels == 4] = LY
        return sure(wrong, 8)

    _, found = findings(tmp_path, probabilities=equal)
    plateau = of(found, "C4")
    assert plateau["Over-sampling against Five folds + TTA, pristine"].verdict == "supported"
    assert plateau["LDAM against Five folds + TTA, pristine"].verdict == "contradicted"


def test_specificity_and_recall_say_the_same_once_chance_is_taken_off(ordinary):
    _, found = ordinary
    claims = of(found, "C5")
    plain, scaled = claims["specificity - balanced accuracy"], claims["the same, chance-corrected"]
    assert plain.paper == pytest.approx(99.32 - 72.26)
    spec, recall = (0.9932 - 12 / 13) * 13, (0.7226 - 1 / 13) / (12 / 13)
    assert scaled.paper == pytest.approx(100 * (spec - recall), abs=1e-4) and abs(scaled.effect) < abs(plain.effect)


def test_the_fall_is_taken_apart(ordinary):
    _, found = ordinary
    degradation, shared, both = of(found, "C6").values()
    assert degradation.effect > 5 and degradation.low > 0 and "9.7 points" in degradation.note
    assert both.effect == pytest.approx(degradation.effect - shared.effect)


def test_a_head_that_saw_its_images_flatters_itself(ordinary):
    predictions, found = ordinary
    known = optimism(RescueEvaluator(predictions, 100))
    assert known["optimism"].mean == pytest.approx(known["seen"].mean - known["out of fold"].mean) and (
        known["optimism"].interval()[0] > 0
    )
    assert known["left out"] == 0 and all("optimism +" in f.note for f in of(found, "C11").values())


@pytest.mark.parametrize("stored", ["marked", "left out"])
def test_a_training_image_without_an_embedding_is_counted_and_left_out(tmp_path, stored):
    plan = fake_rescue_plan()
    store = fill_rescue_store(tmp_path, plan)
    gone = plan.benchmark.table["id"][0]
    for cell in (c for c in plan.cells if c.kind == "semantic"):
        name = "val" if cell.config["fold"] >= 0 else "train"
        arrays = dict(store.get(cell.id).predictions())
        at = np.flatnonzero(arrays[f"{name}_ids"] == gone)
        arrays[f"{name}_missing"][at] = True
        if name == "train" and stored == "left out":  # so do stores of before
            arrays |= {k: np.delete(v, at, 0) for k, v in arrays.items() if k.startswith("train_")}
        np.savez(store.folder(cell.id) / "predictions.npz", **arrays)
    predictions = from_rescue_plan(plan, store)
    known = optimism(RescueEvaluator(predictions, 20))
    assert known["left out"] == 1 and set(known["optimism"].values) == {"pooled"}
    assert of(evaluate_rescue_claims(predictions, n=20), "C11")


def test_without_a_control_or_patients_a_claim_says_so(tmp_path):
    plan = fake_rescue_plan("mini", groups=False, synthetic=False)
    _, found = findings(tmp_path, plan, n=50)
    assert [f.note for f in of(found, "C9").values()] == ["this profile has no control"]
    assert "no patients are known here" in list(of(found, "C6").values())[1].note
    assert {f.verdict for f in of(found, "C9").values()} == {"not testable"}


def test_an_empty_store_makes_every_claim_untestable(tmp_path):
    plan = fake_rescue_plan()
    predictions, found = findings(tmp_path, plan, skip={c.id for c in plan.cells})
    assert {f.verdict for f in found} == {"not testable"}
    assert {f.claim for f in found} == {c["id"] for c in load_part("rescue", "claims")}
    assert len(findings_frame(predictions, found)) == len(found)


def test_the_page_shows_every_finding_and_says_synthetic(ordinary):
    predictions, found = ordinary
    html = claims_html(predictions, found, "claims.csv")
    assert html.count('class="wbc-verdict"') == len(found) and "wbc-synthetic" in html


def test_every_claim_has_a_kind_a_test_rows_and_a_short_passage():
    rows = {row["label"] for row in load_paper("rescue")["tables"]["table_2"]["rows"]}
    claims = load_part("rescue", "claims")
    assert len({c["id"] for c in claims}) == len(claims) >= 8
    for claim in claims:
        assert claim["kind"] in KINDS and claim["test"] and len(claim["passage"].split()) <= 15
        named = [claim.get("left"), claim.get("right"), *claim.get("pairs", []), *claim.get("minus", {}).values()]
        assert {n for n in named if n} <= rows


def test_discrepancies_say_how_each_is_known():
    entries = load_part("rescue", "discrepancies")
    html = discrepancies_html("rescue", "discrepancies.csv")
    assert html.count('class="wbc-code"') == len(entries) >= 15
    for entry in entries:
        assert {"id", "topic", "paper", "code", "known", "here"} <= set(entry)
        assert entry["known"] in ("verified", "read", "second-hand")


def test_the_fall_is_weighed_only_where_patients_are_known(tmp_path, ordinary):
    """We chose the strength of the degradation: alone it says nothing of where the paper's fall comes from."""
    item = "degradation: the same images, pristine - degraded"
    _, found = findings(tmp_path, fake_rescue_plan("mini", groups=False, synthetic=False), n=50)
    lone = of(found, "C6")[item]
    assert lone.verdict == "not testable" and lone.effect is not None and "our choosing" in lone.note
    assert of(ordinary[1], "C6")[item].verdict != "not testable"


def switch_off(store, plan, benchmark, rules="paper"):
    """Rewrite the stored rules as if no class of theirs were in force."""
    for cell in (c for c in plan.cells if c.kind == "rescue"):
        if cell.config["benchmark"] == benchmark and cell.labels["rules"] == rules:
            path = store.folder(cell.id) / "rules.json"
            document = json.loads(path.read_text())
            for rare in document["rare"]:
                rare["disabled"] = "no gain out of fold"
            path.write_text(json.dumps(document))


def test_phases_without_a_rule_in_force_show_nothing(tmp_path):
    plan = fake_rescue_plan()
    store = fill_rescue_store(tmp_path, plan, probabilities=blind(True))
    switch_off(store, plan, "rescue-smears")
    found = evaluate_rescue_claims(from_rescue_plan(plan, store), n=20)
    for claim in ("C1", "C2", "C3", "C8", "C12"):
        assert {f.verdict for f in of(found, claim).values()} == {"not testable"}, claim
        assert all("not in force" in f.note for f in of(found, claim).values())
    cues = of(found, "C9")
    assert cues["gain of phase 3, benchmark - control, pristine"].verdict == "not testable"
    assert cues["gain of phase 3, benchmark - control, pristine (rules fitted)"].note is not None


def test_nothing_follows_from_no_gain_on_the_control_where_the_cue_gains_nothing_either(ordinary):
    alone = {k: f for k, f in of(ordinary[1], "C9").items() if "the claim: nothing" in k}
    pairs = [f for k, f in of(ordinary[1], "C9").items() if "benchmark - control" in k]
    assert alone and all(f.verdict != "supported" for f in pairs)
    assert all(f.verdict != "supported" for f in alone.values())


def test_a_method_far_below_the_average_is_called_a_loss(tmp_path):
    def worse(cell, on, labels):
        views = 1 if cell.kind in ("semantic", "rescored") else 8
        return sure(np.full(len(labels), LY) if cell.labels.get("row") == "ldam" else labels, views)

    _, found = findings(tmp_path, probabilities=worse)
    notes = {item: f.note for item, f in of(found, "C4").items()}
    assert all(("a loss, not a plateau" in note) == item.startswith("LDAM") for item, note in notes.items())


def test_the_rescue_is_judged_as_a_whole(knowing):
    whole = of(knowing, "C12")["+ Phase 3 against Five folds + TTA, degraded"]
    assert whole.paper == pytest.approx(77.139 - 66.585)


def test_the_head_of_everything_stands_beside_the_average_of_the_others(ordinary):
    assert all("against the average of the folds' heads" in f.note for f in of(ordinary[1], "C11").values())
    assert all("macro-F1 of the branches alone" in f.note for item, f in of(ordinary[1], "C7").items()
               if "second network" in item)  # fmt: skip
