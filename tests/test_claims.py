"""Claims as data, on made-up predictions whose answer is known."""

import numpy as np
import pytest
from fake_store import fake_plan, fill_store

from wbcrepro.papers import load_paper
from wbcrepro.report import verdicts
from wbcrepro.report.claims import KINDS, evaluate_claims, findings_frame, load_part, majority_classes
from wbcrepro.report.evaluate import Estimate
from wbcrepro.report.page import claims_html, discrepancies_html
from wbcrepro.report.predictions import from_plan


def findings(path, **options):
    plan = fake_plan()
    predictions = from_plan(plan, fill_store(path, plan, per_class=40, **options))
    return predictions, evaluate_claims(predictions, n=200)


def of(found, claim):
    return {f.item: f for f in found if f.claim == claim}


def test_a_better_classifier_supports_and_a_worse_one_contradicts(tmp_path):
    _, better = findings(tmp_path / "better", skills={"supervised": 0.5, "decoupled": 2.5})
    _, worse = findings(tmp_path / "worse", skills={"supervised": 2.5, "decoupled": 0.5})
    _, alike = findings(tmp_path / "alike", skills={"supervised": 1.5, "decoupled": 1.5})
    assert {f.verdict for f in of(better, "C1").values()} == {"supported"}
    assert {f.verdict for f in of(worse, "C1").values()} == {"contradicted"}
    assert {f.verdict for f in of(worse, "C7").values()} == {"contradicted"}
    assert "contradicted" not in {f.verdict for f in of(alike, "C1").values()}
    assert of(better, "C1")["R50"].effect > 0 > of(worse, "C1")["R50"].effect
    assert of(better, "C1")["R50"].low <= of(better, "C1")["R50"].effect <= of(better, "C1")["R50"].high


def test_the_papers_effect_is_computed_from_its_table(tmp_path):
    _, found = findings(tmp_path)
    assert of(found, "C1")["R50"].paper == pytest.approx(72.0 - 63.2)
    assert of(found, "C3")["R50"].paper == pytest.approx((70.0 - 71.2) - (72.0 - 63.2))
    swin = of(found, "C2")["Swin"]
    assert swin.paper == pytest.approx(66.0 - 71.2) and "says the opposite" in swin.note
    assert of(found, "C4")["Ens. (all) against the best other row"].paper == pytest.approx(74.2 - 72.4)
    assert of(found, "C5")["Ens. (R50+R152)"].paper == pytest.approx(72.4 - (70.4 + 70.6) / 2)


def test_the_page_shows_every_finding_with_its_verdict(tmp_path):
    predictions, found = findings(tmp_path)
    html = claims_html(predictions, found, "claims.csv")
    assert html.count('class="wbc-verdict"') == len(found) and "cannot be tested here" in html
    assert html.count('colspan="5"') == len(load_part("decoupled", "claims")) and "+8.8" in html


def test_classes_that_the_data_lack_cannot_be_tested_and_the_rarest_stand_in(tmp_path):
    _, found = findings(tmp_path)
    recalls = of(found, "C6")
    assert recalls["recall of PLY"].verdict == "not testable" and recalls["recall of PLY"].effect is None
    assert set(recalls) == {"recall of PLY", "recall of PC", "recall of C", "recall of D"}
    assert (
        recalls["recall of D"].verdict in ("supported", "undecided")
        and recalls["recall of D"].low < recalls["recall of D"].high
    )


def test_averaging_lowers_the_variance_of_independent_models(tmp_path):
    _, found = findings(tmp_path)
    assert of(found, "C8")["Ens. (all)"].verdict == "supported" and of(found, "C8")["Ens. (all)"].effect < -0.3


def test_an_empty_store_makes_every_claim_untestable(tmp_path):
    plan = fake_plan()
    predictions = from_plan(plan, fill_store(tmp_path, plan, skip={c.id for c in plan.cells}))
    found = evaluate_claims(predictions)
    assert {f.verdict for f in found} == {"not testable"}
    assert len(findings_frame(predictions, found)) == len(found)


def test_every_claim_has_a_kind_rows_and_a_short_passage():
    paper = load_paper("decoupled")
    rows = {row["label"] for row in paper["tables"]["table_1"]["rows"]}
    claims = load_part("decoupled", "claims")
    assert len({c["id"] for c in claims}) == len(claims) >= 8
    for claim in claims:
        assert claim["kind"] in KINDS and len(claim["passage"].split()) <= 15
        named = [
            claim.get("row"),
            *claim.get("rows", []),
            *(p[s] for p in claim.get("pairs", []) for s in ("left", "right")),
        ]
        assert {n for n in named if n} <= rows


def test_a_verdict_needs_the_interval_and_every_fold():
    clear = Estimate({0: 0.1, 1: 0.2}, {k: np.linspace(0.05, 0.2, 50) for k in (0, 1)})
    torn = Estimate({0: 0.3, 1: -0.01}, {k: np.linspace(0.05, 0.2, 50) for k in (0, 1)})
    assert verdicts.judge(clear) == "supported" and verdicts.judge(torn) == "undecided"
    slightly = Estimate({0: -0.01}, {0: np.linspace(-0.015, -0.005, 50)})
    assert verdicts.judge(slightly) == "contradicted" and verdicts.judge(slightly, margin=0.02) == "supported"
    assert verdicts.judge(None) == "not testable"


def test_majority_classes_hold_the_share():
    assert majority_classes(np.array([10, 60, 25, 5]), 0.5).tolist() == [1]
    assert majority_classes(np.array([10, 60, 25, 5]), 0.7).tolist() == [1, 2]


def test_discrepancies_say_how_each_is_known():
    html = discrepancies_html("decoupled", "discrepancies.csv")
    assert html.count('class="wbc-code"') == len(load_part("decoupled", "discrepancies")) >= 18
    for entry in load_part("decoupled", "discrepancies"):
        assert {"id", "topic", "paper", "code", "known"} <= set(entry)
        assert entry["known"] in ("verified", "read", "second-hand")
