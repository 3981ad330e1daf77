"""Suppress-and-rescue against plain transcriptions of Algorithm 1 and of the released behaviour, image by image."""

import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wbcrepro.data import WBCBENCH_CLASSES
from wbcrepro.errors import UsageError
from wbcrepro.rescue.mahalanobis import Gaussian, distance, fit_gaussian
from wbcrepro.rescue.morphology import BOX_COLUMNS, COLUMNS, Morphology
from wbcrepro.rescue.rules import POOLED, RESCUE_CODE, RESCUE_PAPER, Box, RareClass, Rules, inverse_log_frequency
from wbcrepro.rescue.suppress_rescue import suppress_and_rescue
from wbcrepro.rescue.trace import REASONS, Trace, explain

CLASSES = ("LY", "VLY", "PC", "PLY", "SNE")
LY, VLY, PC, PLY, SNE = range(5)


def dirichlet(rng, n, tail=0.3):
    return rng.dirichlet(np.full(5, tail), n).astype(np.float32)


def measured(rng, n, ill=0.1):
    features = rng.normal(size=(n, len(COLUMNS))) * 0.3 + 1.3
    status = np.where(rng.random(n) < ill, "no_cell", "ok")
    features[(status == "no_cell") & (rng.random(n) < 0.5)] = np.nan
    return Morphology(features.astype(np.float32), COLUMNS, status)


def case(seed, n=60):
    rng = np.random.default_rng(seed)
    semantic = dirichlet(rng, n)
    semantic[rng.random(n) < 0.1] = np.nan
    return dirichlet(rng, n), semantic, measured(rng, n)


def gaussians(columns, seed=0, keys=("LY", "VLY", POOLED)):
    rng = np.random.default_rng(seed)
    samples = {key: rng.normal(1.3 + 0.1 * k, 0.3, (40, len(columns))) for k, key in enumerate(keys)}
    return {key: fit_gaussian(sample, columns) for key, sample in samples.items()}


def paper(boost=(4.0, 2.0), tau=(0.2, 0.15), cue=(1.4, 1.8)):
    rules = RESCUE_PAPER.replace("PLY", boost=boost[0], semantic=tau[0], cue_threshold=cue[0])
    return rules.replace("PC", boost=boost[1], semantic=tau[1], cue_threshold=cue[1],
                         gaussians=gaussians(rules.of("PC").columns))


def code(cue=3.0, **ply):
    pc = RESCUE_CODE.of("PC")
    boxes = {key: Box(BOX_COLUMNS, (0.6,) * 5, (2.2,) * 5) for key in ("LY", "VLY")}
    fitted = {"gaussians": gaussians(pc.columns, keys=("LY", "VLY")), "boxes": boxes}
    rules = RESCUE_CODE.replace("PC", cue_threshold=cue, **fitted)
    return rules.replace("PLY", **ply)


def loop_algorithm_1(p_swin, p_med, cell, rules):
    """Lines 1-31, one image: (label, label if stopped after phase 2, candidate)."""
    y_base = int(np.argmax(p_swin))
    boosted = np.array(p_swin, dtype=np.float64)
    for c in ("PLY", "PC"):
        boosted[CLASSES.index(c)] = boosted[CLASSES.index(c)] * rules.of(c).boost
    cand = CLASSES[int(np.argmax(boosted))]
    if cand not in ("PLY", "PC"):
        return y_base, y_base, -1
    code_ = CLASSES.index(cand)
    rule = rules.of(cand)
    if np.isnan(p_med).any() or p_med[code_] < rule.semantic:
        return y_base, y_base, code_
    values = dict(zip(COLUMNS, cell.features[0].astype(np.float64), strict=True))
    if cell.status[0] != "ok":
        return y_base, code_, code_
    if cand == "PLY":
        return (code_ if values["spikiness"] > rule.cue_threshold else y_base), code_, code_
    gaussian = rule.gaussians[CLASSES[y_base] if CLASSES[y_base] in ("LY", "VLY") else POOLED]
    away = np.array([values[name] for name in rule.columns]) - gaussian.mean
    d_m = np.sqrt(away @ gaussian.precision @ away)
    return (code_ if d_m <= rule.cue_threshold else y_base), code_, code_


@given(seed=st.integers(0, 10**6), boost=st.tuples(*[st.floats(0.5, 3000)] * 2),
       tau=st.tuples(*[st.floats(0, 0.6)] * 2), cue=st.tuples(st.floats(1, 1.8), st.floats(0.5, 4)))
def test_algorithm_1_line_by_line(seed, boost, tau, cue):
    swin, semantic, cells = case(seed)
    rules = paper(boost, tau, cue)
    trace = suppress_and_rescue(swin, semantic, cells, rules, CLASSES)
    expected = [loop_algorithm_1(swin[i], semantic[i], cells.take(np.array([i])), rules) for i in range(len(swin))]
    np.testing.assert_array_equal(np.stack([trace.final, trace.phase2, trace.candidate], 1), expected)
    np.testing.assert_array_equal(trace.base, swin.argmax(1))
    np.testing.assert_array_equal(trace.standing, trace.base)


def loop_submit(p_swin, p_med, cell, rules):
    """The released script, one image: suppress, surface, PLY first, then PC."""
    order = np.argsort(-p_swin, kind="stable")
    label, max_prob = int(order[0]), float(p_swin[order[0]])
    if CLASSES[label] in ("PC", "PLY"):
        label, max_prob = int(order[1]), float(p_swin[order[1]])
    values = dict(zip(COLUMNS, cell.features[0].astype(np.float64), strict=True))
    p_med = np.full(5, -1.0) if np.isnan(p_med).any() else p_med
    ok = cell.status[0] == "ok"
    if (float(p_swin[PLY]) * 150 > max_prob and p_med[PLY] > 0.35 and label == LY and max_prob < 0.8
            and ok and values["spikiness"] > rules.of("PLY").cue_threshold):
        return PLY
    rule = rules.of("PC")
    if float(p_swin[PC]) * 3750 > max_prob and p_med[PC] > 0.01 and label in (LY, VLY) and ok and rule.gaussians:
        gaussian, box = rule.gaussians[CLASSES[label]], rule.boxes[CLASSES[label]]
        boxed = all(low <= values[c] <= high for c, low, high in zip(box.columns, box.low, box.high, strict=True))
        if boxed and distance(gaussian, np.array([[values[c] for c in rule.columns]]))[0] <= rule.cue_threshold:
            return PC
    return label


@given(seed=st.integers(0, 10**6), cue=st.floats(0.5, 6), spiky=st.floats(1, 1.6))
def test_released_submit_image_by_image(seed, cue, spiky):
    swin, semantic, cells = case(seed)
    rules = code(cue, cue_threshold=spiky)
    trace = suppress_and_rescue(swin, semantic, cells, rules, CLASSES)
    expected = [loop_submit(swin[i], semantic[i], cells.take(np.array([i])), rules) for i in range(len(swin))]
    np.testing.assert_array_equal(trace.final, expected)
    for i in range(len(swin)):  # stopped early, the first class that came so far takes the image
        surfaced = [c for c, b in ((PLY, 150), (PC, 3750)) if float(swin[i, c]) * b > max_prob_of(swin[i])]
        p_med = np.full(5, -1.0) if np.isnan(semantic[i]).any() else semantic[i]
        verified = [c for c in surfaced if p_med[c] > {PLY: 0.35, PC: 0.01}[c]]
        assert trace.phase1[i] == (surfaced or [trace.standing[i]])[0]
        assert trace.phase2[i] == (verified or [trace.standing[i]])[0]


def max_prob_of(p_swin):
    """Of the label that an image stands at after the demotion."""
    order = np.argsort(-p_swin, kind="stable")
    return float(p_swin[order[1] if CLASSES[order[0]] in ("PC", "PLY") else order[0]])


def test_the_random_cases_reach_every_end():
    """Else the two tests above compare little."""
    seen = {"paper": set(), "code": set()}
    for seed in range(40):
        for rules in (paper(), code()):
            trace = suppress_and_rescue(*case(seed), rules, CLASSES)
            seen[rules.mode] |= set(trace.counts())
            assert sum(trace.counts().values()) == len(trace)
    assert seen["paper"] == set(REASONS) - {"not_confused", "too_sure", "no_parameters", "box"}
    assert seen["code"] == set(REASONS) - {"no_parameters", "confirmed"}


@given(seed=st.integers(0, 10**6), mode=st.sampled_from(["paper", "code"]))
def test_flags_margins_and_reasons_say_the_same(seed, mode):
    trace = suppress_and_rescue(*case(seed), paper() if mode == "paper" else code(), CLASSES)
    assert (trace.passed[:, 1:] <= trace.passed[:, :-1]).all(), "a phase is passed only behind those before it"
    assert (trace.margin[trace.passed & ~np.isnan(trace.margin)] >= 0).all()
    for k, words in enumerate((["no_candidate"], ["semantic"], ["cue"])):
        stopped = np.isin(trace.reason, words)
        assert not trace.passed[stopped, k].any() and (trace.margin[stopped, k] <= 0).all()
        assert np.isnan(trace.margin[stopped, k + 1:]).all(), "phases not reached have no margin"
    gone = np.isin(trace.reason, ["no_embedding", "unmeasurable"])
    assert np.isnan(np.where(trace.reason == "no_embedding", trace.margin[:, 1], trace.margin[:, 2])[gone]).all()
    rescued = np.isin(trace.reason, ["rescued", "confirmed"])
    np.testing.assert_array_equal(rescued, trace.passed.all(1))
    np.testing.assert_array_equal(trace.final, np.where(rescued, trace.candidate, trace.standing))
    np.testing.assert_array_equal(trace.reason == "rescued", trace.final != trace.standing)


def one(p_swin, p_med, spiky=1.5, status="ok", rules=None):
    features = np.full((1, len(COLUMNS)), 1.3)
    features[0, 0] = spiky
    cells = Morphology(features, COLUMNS, np.array([status]))
    return suppress_and_rescue(np.array([p_swin]), np.array([p_med]), cells, rules or paper(), CLASSES)


SWIN = [0.42, 0.1, 0.0, 0.3, 0.18]  # boosted four times, PLY has 1.2
MED = [0.3, 0.1, 0.1, 0.4, 0.1]


@pytest.mark.parametrize("change, reason, words", [
    ({}, "rescued", "spikiness 1.5 against 1.4: passed by 0.1"),
    ({"spiky": 1.2}, "cue", "spikiness 1.2 against 1.4: stopped, 0.2 short"),
    ({"status": "several_cells"}, "unmeasurable", "spikiness: stopped: the cell could not be measured"),
    ({"p_med": [0.8, 0.1, 0, 0.1, 0]}, "semantic", "semantic P[PLY] 0.1 against 0.2: stopped, 0.1 short"),
    ({"p_med": [np.nan] * 5}, "no_embedding", "no embedding: stopped"),
    ({"p_swin": [0.77, 0.1, 0.0, 0.0775, 0.05]}, "no_candidate",
     "boosted P[PLY] 0.31 against 0.77 of LY: stopped, 0.46 short"),
    ({"p_swin": [0.1, 0, 0, 0.9, 0]}, "confirmed", "final label: PLY"),
])
def test_explain_says_which_phase_stopped_an_image_and_by_how_much(change, reason, words):
    trace = one(**{"p_swin": SWIN, "p_med": MED} | change)
    assert trace.reason.tolist() == [reason]
    lines = explain(trace, 0)
    assert any(words in line for line in lines), lines
    assert lines[-1] == f"final label: {CLASSES[trace.final[0]]}"
    assert sum(line.startswith("phase") for line in lines) == min(3, trace.passed.sum() + 1)


def test_exactly_at_a_limit():
    """Algorithm 1: P_Med < tau stops, S > tau_S passes, D_M <= tau_M passes. The code asks for P_Med > tau."""
    at = MED[PLY]
    assert one(SWIN, MED, rules=paper(tau=(at, 0.15))).reason[0] == "rescued"
    assert one(SWIN, MED, rules=code(semantic=at)).reason[0] == "semantic"
    assert one(SWIN, MED, spiky=1.5, rules=paper(cue=(1.5, 1.8))).reason[0] == "cue"
    near = {POOLED: Gaussian(("Area",), np.zeros(1), np.eye(1), 0.0, 9)}
    rules = Rules("paper", (RareClass("PLY", ("LY",), 4.0, 0.2, "mahalanobis", 1.3, ("Area",), near),))
    assert one(SWIN, MED, rules=rules).reason[0] == "rescued"
    assert one(SWIN, MED, rules=rules.replace("PLY", cue_threshold=1.29)).reason[0] == "cue"


def test_an_equal_boosted_probability_does_not_surface():
    tie = [0.5, 0.0, 0.0, 0.25, 0.25]
    assert one(tie, MED, rules=paper(boost=(2.0, 1.0))).reason[0] == "no_candidate"
    assert one(tie, MED, rules=code(boost=2.0)).candidate[0] == -1
    assert one(tie, MED, rules=code(boost=2.0001)).candidate[0] == PLY


@pytest.mark.parametrize("mode", ["paper", "code"])
def test_an_embedding_that_is_partly_missing_is_missing(mode):
    trace = one(SWIN, [*MED[:4], np.nan], rules=paper() if mode == "paper" else code())
    assert trace.reason[0] == "no_embedding" and np.isnan(trace.value[0, 1])


def test_a_status_can_be_accepted_by_name():
    rules = replace(paper(), accept=("ok", "several_cells"))
    assert one(SWIN, MED, status="several_cells", rules=rules).reason.tolist() == ["rescued"]


def test_in_the_paper_a_rare_arg_max_stays_and_in_the_code_it_is_demoted():
    rare = [0.2, 0.1, 0.0, 0.6, 0.1]
    no = [0.9, 0.0, 0.0, 0.0, 0.1]
    kept, demoted = one(rare, no), one(rare, no, rules=code())
    assert kept.final[0] == PLY and kept.reason[0] == "semantic"
    assert demoted.base[0] == PLY and demoted.final[0] == demoted.standing[0] == LY
    assert "demoted to LY, the runner-up" in explain(demoted, 0)


def test_without_its_file_the_released_code_never_predicts_a_plasma_cell():
    swin, semantic, cells = case(3, 400)
    trace = suppress_and_rescue(swin, semantic, cells, RESCUE_CODE, CLASSES)
    assert (trace.base == PC).sum() > 20
    runner_up = (trace.base == PLY) & (trace.standing == PC)  # the only way left: demoted from PLY to PC
    assert ((trace.final == PC) <= runner_up).all()
    assert (trace.reason == "no_parameters").any()


def test_the_code_asks_for_ply_before_pc():
    rules = code(cue=100.0).replace("PC", boxes={})
    p, q = [0.5, 0.0, 0.2, 0.2, 0.1], [0.2, 0.1, 0.3, 0.4, 0.0]
    assert one(p, q, rules=rules).final[0] == PLY
    assert one(p, q, spiky=1.1, rules=rules).final[0] == PC
    turned = Rules("code", rules.rare[::-1])
    assert one(p, q, rules=turned).final[0] == PC


def test_disabled_rules_surface_nothing():
    for rules in (paper(), code()):
        off = rules.replace("PLY", disabled="no cell in the folds").replace("PC", disabled="no cell in the folds")
        trace = suppress_and_rescue(*case(1), off, CLASSES)
        np.testing.assert_array_equal(trace.final, trace.standing)
        assert trace.counts() == {"no_candidate": len(trace)}
        assert explain(trace, 0)[-2] == "no rule is in force"


def test_other_classes_and_no_cue():
    rules = Rules("paper", (RareClass("SNE", against=("VLY",), boost=50.0, semantic=0.5),))
    swin, semantic, cells = case(0)
    trace = suppress_and_rescue(swin, semantic, cells, rules, CLASSES)
    boosted = swin.astype(float) * [1, 1, 1, 1, 50]
    expected = np.where((boosted.argmax(1) == SNE) & (semantic[:, SNE] >= 0.5), SNE, swin.argmax(1))
    np.testing.assert_array_equal(trace.final, expected)
    assert (trace.final != trace.base).any()


def test_boosts_of_the_paper():
    counts = {"SNE": 17354, "LY": 10801, "PC": 90, "PLY": 14, "VLY": 488}
    numbers = [counts[name] for name in CLASSES]
    assert inverse_log_frequency(numbers, PLY, "log_literal") == pytest.approx(0.369, abs=5e-4)
    assert inverse_log_frequency(numbers, PC, "log_literal") == pytest.approx(0.222, abs=5e-4)
    assert inverse_log_frequency(numbers, PLY) == pytest.approx(np.log(17355) / np.log(15))
    assert inverse_log_frequency(numbers, SNE) == 1
    with pytest.raises(ValueError, match="no log-frequency"):
        inverse_log_frequency([5, 0], 1)
    with pytest.raises(ValueError, match="reading"):
        inverse_log_frequency(numbers, PLY, "log")


def test_table_and_arrays(tmp_path):
    swin, semantic, cells = case(5)
    trace = suppress_and_rescue(swin, semantic, cells, paper(), CLASSES)
    frame = trace.to_frame([f"i{k}" for k in range(len(trace))])
    assert len(frame) == len(trace) and set(frame["candidate"]) == {"", "PC", "PLY"}
    assert (frame["final"] == np.array(CLASSES)[trace.final]).all()
    np.savez(tmp_path / "trace.npz", **trace.to_arrays("test_"))
    with np.load(tmp_path / "trace.npz", allow_pickle=False) as file:
        again = Trace.from_arrays(file, trace.rules, CLASSES, "test_")
    assert all(explain(again, i) == explain(trace, i) for i in range(len(trace)))
    assert set(trace.after_phase) == {"base", "phase1", "phase2", "phase3"}


def test_rules_travel_as_json():
    for rules in (paper(), code(), RESCUE_PAPER, RESCUE_CODE):
        again = Rules.from_json(rules.to_json())
        assert again.to_json() == rules.to_json()
        assert isinstance(again.of("PC").columns, tuple)
    trace, again = (suppress_and_rescue(*case(2), r, CLASSES) for r in (code(), Rules.from_json(code().to_json())))
    np.testing.assert_array_equal(trace.final, again.final)


@pytest.mark.parametrize("rules, words", [
    (RESCUE_PAPER, "PLY has no boost, semantic, cue_threshold"),
    (paper().replace("PC", gaussians={}), "PC has no gaussians"),
    (Rules("paper", (RareClass("XX", against=("LY",), boost=1.0, semantic=0.1),)), "names XX"),
    (Rules("paper", (RareClass("PC", against=("YY",), boost=1.0, semantic=0.1),)), "names YY"),
])
def test_rules_that_cannot_run_are_refused(rules, words):
    with pytest.raises(UsageError, match=words):
        suppress_and_rescue(*case(0), rules, CLASSES)


@pytest.mark.parametrize("make", [
    lambda: Rules("both", RESCUE_PAPER.rare), lambda: Rules("paper", ()), lambda: Rules("paper", RESCUE_PAPER.rare * 2),
    lambda: RareClass("PC", ("LY",), cue="colour"), lambda: RareClass("PC", ("LY",), cue="mahalanobis"),
    lambda: RareClass("PC", ("LY",), boost="log"), lambda: RESCUE_PAPER.of("LY"),
])
def test_rules_that_make_no_sense_are_refused(make):
    with pytest.raises(UsageError):
        make()


def test_arrays_that_do_not_fit_are_refused():
    swin, semantic, cells = case(0)
    with pytest.raises(ValueError, match="second model"):
        suppress_and_rescue(swin, semantic[:-1], cells, paper(), CLASSES)
    with pytest.raises(ValueError, match="first model"):
        suppress_and_rescue(swin[:, :4], semantic, cells, paper(), CLASSES)
    with pytest.raises(ValueError, match="cells measured"):
        suppress_and_rescue(swin, semantic, cells.take(np.arange(3)), paper(), CLASSES)
    swin[4, 1] = np.nan
    with pytest.raises(ValueError, match="1 images have"):
        suppress_and_rescue(swin, semantic, cells, paper(), CLASSES)


def test_no_images():
    swin, semantic, cells = (x[:0] if isinstance(x, np.ndarray) else x.take(np.arange(0)) for x in case(0))
    for rules in (paper(), code()):
        assert len(suppress_and_rescue(swin, semantic, cells, rules, CLASSES)) == 0


@pytest.mark.parametrize("mode", ["paper", "code"])
def test_the_whole_benchmark_takes_less_than_a_second(mode):
    rng, n = np.random.default_rng(0), 55012
    swin, semantic = (rng.dirichlet(np.full(13, 0.3), n).astype(np.float32) for _ in range(2))
    cells = measured(rng, n)
    rules = paper() if mode == "paper" else code()
    start = time.process_time()
    suppress_and_rescue(swin, semantic, cells, rules, WBCBENCH_CLASSES)
    assert time.process_time() - start < 1


def test_gaussian_of_the_standing_label_is_used():
    near = {key: Gaussian(("Area",), np.array([mean]), np.eye(1), 0.0, 9) for key, mean in (("LY", 0.0), (POOLED, 9.0))}
    rules = Rules("paper", (RareClass("PC", ("LY", "VLY"), 100.0, 0.0, "mahalanobis", 1.0, ("Area",), near),))
    cells = Morphology(np.array([[0.5], [0.5], [9.5]]), ("Area",), np.array(["ok"] * 3))
    swin = np.array([[0.9, 0, 0.1, 0, 0], [0, 0.9, 0.1, 0, 0], [0, 0.9, 0.1, 0, 0]])
    trace = suppress_and_rescue(swin, swin, cells, rules, CLASSES)
    assert trace.final.tolist() == [PC, VLY, PC]
    np.testing.assert_allclose(trace.value[:, 2], [0.5, 8.5, 0.5])
