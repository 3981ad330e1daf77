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
    plan = fake_plan(folds=[0, 1, 2])
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
    def made(*values, draws=(0.05, 0.2)):
        return Estimate(dict(enumerate(values)), {k: np.linspace(*draws, 50) for k in range(len(values))})

    assert verdicts.judge(made(0.1, 0.12, 0.14)) == "supported"
    assert verdicts.judge(made(0.3, 0.2, -0.01)) == "undecided"
    assert verdicts.judge(made(0.1, 0.12)) == "undecided", "two trainings say little of a third"
    assert verdicts.judge(made(0.02, 0.1, 0.3)) == "undecided", "0.14 +- 0.36 over trainings"
    slightly = made(-0.01, -0.011, -0.009, draws=(-0.015, -0.005))
    assert verdicts.judge(slightly) == "contradicted" and verdicts.judge(slightly, margin=0.02) == "supported"
    assert verdicts.judge(None) == "not testable"


def test_trial_intervals_are_those_of_student():
    low, high = verdicts.trial_interval([1.0, 2.0, 3.0])
    assert (low, high) == pytest.approx((2 - 4.302653 / 3**0.5, 2 + 4.302653 / 3**0.5), abs=1e-5)
    assert verdicts.trial_interval([1.0, 1.0]) == (-np.inf, np.inf)


def test_among_equals_the_best_is_neither_supported_nor_contradicted():
    """Six methods of the same skill on the same images, five trials each: a maximum over five rivals is ahead of the
    sixth nearly always, one fixed rival hardly ever."""
    rng, verdict = np.random.default_rng(4), []
    for _ in range(100):
        images = rng.normal(size=(6, 1)) + rng.normal(size=(6, 400))  # bootstrap replicates around a shared error
        trials = images.mean(1, keepdims=True) + rng.normal(size=(6, 5))
        rivals = [trials[0] - other for other in trials[1:]]
        draws = [images[0] - other for other in images[1:]]
        verdict.append(verdicts.judge_best(
            [Estimate(dict(enumerate(t)), dict.fromkeys(range(5), d)) for t, d in zip(rivals, draws, strict=True)]
        ))  # fmt: skip
    assert verdict.count("contradicted") <= 5 and verdict.count("supported") <= 5


def test_best_needs_every_rival_and_one_fixed_rival_contradicts():
    def ahead(by, spread=0.01):
        return Estimate({k: by + spread * (k - 1) for k in range(3)}, dict.fromkeys(range(3), np.full(50, by)))

    assert verdicts.judge_best([ahead(0.2), ahead(0.1)]) == "supported"
    assert verdicts.judge_best([ahead(0.2), ahead(0.001)]) == "undecided"
    assert verdicts.judge_best([ahead(0.2), ahead(-0.2)]) == "contradicted"
    assert verdicts.judge_best([ahead(0.2, 0.04)] * 5) == "supported", "8.7 standard errors: all have to hold anyway"
    assert verdicts.judge_best([ahead(-0.2, 0.04)] * 5) == "undecided", "one in five may be ahead by luck (t: 9.9)"
    torn = Estimate({0: 0.2, 1: -0.2, 2: -0.2}, dict.fromkeys(range(3), np.full(50, -0.1)))
    assert verdicts.judge_best([torn, ahead(0.1)]) == "undecided"
    assert verdicts.judge_best([]) == "not testable"


def test_majority_classes_hold_the_share():
    assert majority_classes(np.array([10, 60, 25, 5]), 0.5).tolist() == [1]
    assert majority_classes(np.array([10, 60, 25, 5]), 0.7).tolist() == [1, 2]


def test_discrepancies_say_how_each_is_known():
    html = discrepancies_html("decoupled", "discrepancies.csv")
    assert html.count('class="wbc-code"') == len(load_part("decoupled", "discrepancies")) >= 18
    for entry in load_part("decoupled", "discrepancies"):
        assert {"id", "topic", "paper", "code", "known"} <= set(entry)
        assert entry["known"] in ("verified", "read", "second-hand")
