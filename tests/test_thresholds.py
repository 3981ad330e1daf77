"""Fitted thresholds: each against its criterion by hand, few and absent cells, and that only the given rows matter."""

import json
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from wbcrepro.errors import UsageError
from wbcrepro.metrics import scores
from wbcrepro.rescue.cue_fitting import Cells, parts_of
from wbcrepro.rescue.mahalanobis import distance, fit_gaussian
from wbcrepro.rescue.morphology import COLUMNS, PAPER_COLUMNS, Morphology
from wbcrepro.rescue.rules import POOLED, RESCUE_CODE, RESCUE_FITTED, RESCUE_PAPER, Rules
from wbcrepro.rescue.sensitivity import one_image_effect, sensitivity
from wbcrepro.rescue.suppress_rescue import suppress_and_rescue
from wbcrepro.rescue.thresholds import FitSettings, best_f1, fit_thresholds

CLASSES = ("LY", "VLY", "PC", "PLY", "SNE")
LY, VLY, PC, PLY, SNE = range(5)
COUNTS = {LY: 600, VLY: 120, PC: 30, PLY: 14, SNE: 400}


def world(seed=0, counts=None, cue=1.0, first=-3.0, second=-2.0):
    """Two models that take rare cells for lymphocytes, the second less so, and a cue of the given strength."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(list(COUNTS), list((counts or COUNTS).values())))
    n, rare = len(labels), (labels == PC) | (labels == PLY)

    def model(help_rare):
        logits = rng.normal(size=(n, 5)) + 4 * np.eye(5)[labels]
        logits[:, [PC, PLY]] -= 4
        logits[rare, LY] += 3
        logits[rare, labels[rare]] += help_rare
        return (np.exp(logits) / np.exp(logits).sum(1, keepdims=True)).astype(np.float32)

    swin, semantic = model(first), model(second)
    semantic[rng.random(n) < 0.03] = np.nan
    features = rng.normal(size=(n, len(COLUMNS)))
    features[:, 0] = 1.15 + 0.05 * np.abs(features[:, 0]) + 0.2 * cue * (labels == PLY)
    features[labels == PC, 1:] += 2 * cue
    status = np.where(rng.random(n) < 0.03, "no_cell", "ok")
    features[status != "ok"] = np.nan
    return swin, semantic, Morphology(features, COLUMNS, status), labels


def fit(data, template=RESCUE_FITTED, **settings):
    swin, semantic, cells, labels = data
    return fit_thresholds(swin, semantic, cells, labels, template, CLASSES, settings=FitSettings(**settings))


def noted(rules, name):
    return {note.threshold: note for note in rules.of(name).fitted}


def rows(data, chosen):
    return tuple(part.take(chosen) if isinstance(part, Morphology) else part[chosen] for part in data)


def waterfall(cue, seeds=range(6), **settings):
    """Mean macro-F1 after each phase, on cells that nothing was fitted on."""
    stages = []
    for seed in seeds:
        rules = fit(world(seed, cue=cue), **settings)
        swin, semantic, cells, labels = world(100 + seed, cue=cue)
        trace = suppress_and_rescue(swin, semantic, cells, rules, CLASSES)
        stages.append([scores(labels, labelled, 5)["macro_f1"] for labelled in trace.after_phase.values()])
    return dict(zip(trace.after_phase, np.mean(stages, 0), strict=True))


@pytest.mark.parametrize("judge", ["phase2", "final"])
def test_the_rescue_helps_on_cells_it_was_not_fitted_on(judge):
    """The world is made so that every phase can help; this shows that the parts fit together."""
    stage = waterfall(cue=1, judge=judge)
    assert stage["phase1"] < stage["base"], "boosting alone floods the rare classes"
    assert stage["phase2"] > stage["base"] + 0.05
    assert stage["phase3"] > stage["phase2"] + 0.02


@pytest.mark.parametrize("settings", [{}, {"judge": "final"}, {"spikiness": "f1", "mahalanobis": "f1"}])
def test_a_cue_that_says_nothing_gains_nothing(settings):
    stage = waterfall(cue=0, **settings)
    assert stage["phase3"] < stage["phase2"] + 0.005


@pytest.mark.parametrize("share", [0.5, 0.8, 1.0])
@pytest.mark.parametrize("name", ["PC", "PLY"])
def test_the_boost_is_the_smallest_that_surfaces_its_share(name, share):
    swin, semantic, cells, labels = data = world()
    code = CLASSES.index(name)
    boost = fit(data, surface=share, max_boost=1e9).of(name).boost
    of_class = swin[labels == code].astype(float)
    common = of_class[:, [LY, VLY, SNE]].max(1)

    def surfaced(factor):
        return (of_class[:, code] * factor > common).mean()

    assert surfaced(boost) >= share
    assert boost == 1 or surfaced(boost * (1 - 1e-5)) < share


def test_the_boost_of_the_code_beats_the_standing_label():
    swin, _, _, labels = data = world()
    template = RESCUE_CODE.replace("PC", boost=None)
    boost = fit(data, template).of("PC").boost
    p = swin[labels == PC].astype(float)
    standing = np.sort(p, axis=1)[:, -1]
    demoted = np.isin(p.argmax(1), [PC, PLY])
    standing[demoted] = np.sort(p, axis=1)[demoted, -2]
    assert 0.9 <= (p[:, PC] * boost > standing).mean() < 0.9 + 1 / len(p)


def test_boosts_of_the_paper_come_from_the_training_counts():
    rules = fit(world(), RESCUE_PAPER)
    assert rules.of("PLY").boost == pytest.approx(np.log(601) / np.log(15))
    assert noted(rules, "PC")["boost"].criterion == "log_ratio of the training counts"


def test_a_boost_has_a_limit():
    swin, semantic, cells, labels = world()
    swin[labels == PLY, PLY] = 0
    rules = fit((swin, semantic, cells, labels))
    assert "no boost below 10000 surfaces one of 14 out-of-fold PLY" in rules.of("PLY").disabled
    swin[np.flatnonzero(labels == PLY)[:6], PLY] = 0.01
    note = noted(fit((swin, semantic, cells, labels)), "PLY")["boost"]
    assert "only 6 of 14 can" in note.criterion and note.effect["rare_surfaced_alone"] == 6


@pytest.mark.parametrize("seed", range(15))
def test_best_f1_against_trying_everything(seed):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(0, 40))
    found, positive = np.round(rng.random(n), 1), rng.random(n) < 0.3
    kept = rng.random(10) < 0.5
    hits, predicted, total = int(kept.sum()), 10, int(kept.sum() + positive.sum() + 3)

    def f1(threshold):
        taken = found >= threshold
        return 2 * (hits + (taken & positive).sum()) / (total + predicted + taken.sum())

    limit, value = best_f1(found, positive, hits, predicted, total)
    options = [np.inf, *np.unique(found)]
    best = max(f1(t) for t in options)
    assert value == pytest.approx(best)
    strictest = max(t for t in options if f1(t) == pytest.approx(best, abs=1e-12))
    np.testing.assert_array_equal(found >= (np.inf if limit is None else limit), found >= strictest)
    if limit is not None:
        assert limit < strictest and not ((found < strictest) & (found >= limit)).any()


def test_tau_has_the_highest_f1_after_phase_2():
    swin, semantic, cells, labels = data = world()
    rules = fit(data)
    for name, code in (("PC", PC), ("PLY", PLY)):
        def f1(tau, name=name, code=code):
            changed = rules.replace(name, semantic=tau)
            labelled = suppress_and_rescue(swin, semantic, cells, changed, CLASSES).phase2
            return scores(labels, labelled, 5)["per_class"]["f1"][code]

        tau = rules.of(name).semantic
        best = max(f1(t) for t in np.linspace(0, 1, 201))
        assert f1(tau) >= best - 1e-9
        assert noted(rules, name)["semantic"].effect["f1"] == pytest.approx(f1(tau))


def test_tau_can_be_judged_with_phase_3_in_place():
    data = world()
    early, late = fit(data), fit(data, judge="final")
    assert late.of("PC").semantic <= early.of("PC").semantic
    assert "after phase 3" in noted(late, "PC")["semantic"].criterion
    with pytest.raises(UsageError, match="cannot be judged at the end"):
        fit(data, judge="final", spikiness="f1")


def test_spikiness_is_a_quantile_of_the_lymphocytes():
    swin, semantic, cells, labels = data = world()
    rules = fit(data, outlier=0.9)
    lymphocytes = cells.features[(labels == LY) & (cells.status == "ok"), 0]
    assert rules.of("PLY").cue_threshold == pytest.approx(np.quantile(lymphocytes, 0.9))
    note = noted(rules, "PLY")["cue_threshold"]
    assert note.n == len(lymphocytes) and note.criterion == "90% quantile of the spikiness of the training LY"


def test_mahalanobis_is_a_chi_square_quantile_around_the_cells_of_each_standing_label():
    swin, semantic, cells, labels = data = world()
    rule = fit(data, coverage=0.9).of("PC")
    assert rule.cue_threshold == pytest.approx(np.sqrt(stats.chi2.ppf(0.9, 3)))
    here = (labels == PC) & (cells.status == "ok")
    standing = swin.argmax(1)
    assert rule.gaussians[POOLED].n == here.sum()
    assert rule.gaussians["LY"].n == (here & (standing == LY)).sum() >= 5
    assert ("VLY" in rule.gaussians) == ((here & (standing == VLY)).sum() >= 5)
    expected = fit_gaussian(cells.select(PAPER_COLUMNS)[here & (standing == LY)], PAPER_COLUMNS)
    np.testing.assert_allclose(rule.gaussians["LY"].precision, expected.precision)


def test_effects_are_what_running_the_rules_on_the_folds_gives():
    swin, semantic, cells, labels = data = world(2)
    rules = fit(data)
    final = suppress_and_rescue(swin, semantic, cells, rules, CLASSES).final
    found = scores(labels, final, 5)["per_class"]["f1"][PLY]
    assert noted(rules, "PLY")["cue_threshold"].effect["f1"] == pytest.approx(found)


def test_effects_in_the_code_ask_for_its_conditions_too():
    swin, semantic, cells, labels = data = world(2)
    loose = RESCUE_CODE.replace("PLY", max_prob=0.9, boost=1e5, semantic=1e-6, cue_threshold=1.1)
    rules = fit(data, loose.replace("PC", boost=1e5, semantic=1e-6))
    for name, other in (("PLY", "PC"), ("PC", "PLY")):
        trace = suppress_and_rescue(swin, semantic, cells, rules.replace(other, disabled="alone"), CLASSES)
        rescued = (trace.reason == "rescued") & (labels != CLASSES.index(name))
        assert noted(rules, name)["cue_threshold"].effect["others_passed"] == rescued.sum() > 0
        assert {"PLY": "too_sure", "PC": "box"}[name] in trace.counts()


def test_what_is_left_out_together():
    cells = Cells(None, np.zeros(300, int), np.zeros(300, int), np.repeat([7, 8, 9], 100), list(CLASSES), ("ok",))
    few = np.arange(300) % 50 == 0
    assert parts_of(cells, few)[few].tolist() == [0, 0, 1, 1, 2, 2]
    one_patient = np.arange(300) < 3
    assert parts_of(cells, one_patient)[:3].tolist() == [0, 1, 2], "one patient only: each cell by itself"
    alone = replace(cells, parts=np.arange(300))
    assert len(np.unique(parts_of(alone, np.ones(300, bool)))) == 10, "many parts: ten folds"


def test_a_class_that_is_given_up_leaves_its_candidates_to_the_others():
    swin, semantic, cells, labels = world()
    cells.status[labels == PLY] = "touches_border"
    rules = fit((swin, semantic, cells, labels), judge="final")
    assert "no semantic threshold raises the out-of-fold F1 of PLY above 0.000" in rules.of("PLY").disabled
    trace = suppress_and_rescue(swin, semantic, cells, rules, CLASSES)
    note = noted(rules, "PC")["boost"]
    run = (trace.candidate == PC) & (trace.base != PC)
    assert note.effect["rare_passed"] == (run & (labels == PC)).sum()
    assert note.effect["others_passed"] == (run & (labels != PC)).sum()


def test_effects_on_fitted_cells_are_counted_with_them_left_out():
    swin, semantic, cells, labels = data = world()
    rules = fit(data, min_group=1000)  # the pooled Gaussian only, so that it can be done by hand
    rule = rules.of("PC")
    trace = suppress_and_rescue(swin, semantic, cells, rules, CLASSES)
    in_run = (trace.candidate == PC) & trace.passed[:, 1] & (trace.base != PC) & (labels == PC)
    measured = np.flatnonzero((labels == PC) & (cells.status == "ok"))
    x, passed = cells.select(PAPER_COLUMNS), 0
    for i in np.flatnonzero(in_run & (cells.status == "ok")):
        others = fit_gaussian(x[measured[measured != i]], PAPER_COLUMNS)
        passed += distance(others, x[[i]])[0] <= rule.cue_threshold
    assert noted(rules, "PC")["cue_threshold"].effect["rare_passed"] == passed
    assert noted(rules, "PC")["semantic"].effect["rare_passed"] == in_run.sum()


def test_patients_are_left_out_together():
    swin, semantic, cells, labels = world(3)
    features = cells.features.copy()
    plasma = np.flatnonzero(labels == PC)
    features[plasma[:15], 1:] += 20  # two patients who look nothing like each other
    cells = Morphology(features, COLUMNS, cells.status)
    groups = np.arange(len(labels))
    groups[plasma] = np.where(np.arange(len(plasma)) < 15, -1, -2)
    alone, together = (fit_thresholds(swin, semantic, cells, labels, RESCUE_FITTED, CLASSES, groups=g,
                                      settings=FitSettings(min_group=1000)) for g in (None, groups))
    passed = [noted(rules, "PC")["cue_threshold"].effect["rare_passed"] for rules in (alone, together)]
    assert passed[1] == 0 < passed[0]


def test_what_the_file_of_the_release_would_have_held_is_fitted_and_its_constants_are_kept():
    swin, semantic, cells, labels = data = world()
    rules = fit(data, RESCUE_CODE)
    ply, pc = rules.of("PLY"), rules.of("PC")
    assert (ply.boost, ply.semantic, ply.cue_threshold) == (150, 0.35, 1.35)
    assert (pc.boost, pc.semantic) == (3750, 0.01)
    assert {note.criterion for note in ply.fitted} == {"given"}
    standing = suppress_and_rescue(swin, semantic, cells, rules, CLASSES).standing
    here = (labels == PC) & (cells.status == "ok") & (standing == LY)
    box = pc.boxes["LY"]
    assert box.low == tuple(cells.select(box.columns)[here].min(0))
    assert box.inside(cells.select(box.columns)[here]).all()
    assert pc.cue_threshold == pytest.approx(np.sqrt(stats.chi2.ppf(0.95, 6)))


@pytest.mark.parametrize("template", [RESCUE_FITTED, RESCUE_PAPER, RESCUE_CODE])
def test_a_class_absent_from_the_folds_is_disabled_and_the_run_goes_on(template):
    data = world(counts={**COUNTS, PLY: 0})
    rules = fit(data, template)
    assert rules.of("PLY").disabled == "no PLY among the 1150 out-of-fold images"
    trace = suppress_and_rescue(*world(1)[:3], rules, CLASSES)
    assert not (trace.candidate == PLY).any()
    pc = rules.of("PC")  # its own rule goes on, whatever came of it
    assert (trace.candidate == PC).any() or "(0 images would change to PC" in pc.disabled
    assert pc.fitted[0].n == 30


@pytest.mark.parametrize("n", [1, 2, 3])
def test_a_handful_of_cells_is_fitted_or_refused_but_never_crashes(n):
    for seed in range(5):
        for template in (RESCUE_FITTED, RESCUE_CODE):
            rules = fit(world(seed, counts={**COUNTS, PLY: n, PC: n}), template)
            suppress_and_rescue(*world(9)[:3], rules, CLASSES)
            rule = rules.of("PC")
            assert rule.disabled or "mostly shrinkage" in rule.gaussians[POOLED].note
            if n == 1:
                assert rule.disabled


def test_nothing_measurable_disables_with_a_reason():
    swin, semantic, cells, labels = world()
    for template in (RESCUE_FITTED, RESCUE_PAPER):
        blind = Morphology(cells.features, COLUMNS, np.full(len(labels), "no_cell"))
        rules = fit((swin, semantic, blind, labels), template)
        assert rules.of("PC").disabled == "0 measurable PC among the training cells; a covariance needs two"
        assert rules.of("PLY").disabled == "no measurable LY to tell PLY from"


def test_no_embeddings_disable_with_a_reason():
    swin, semantic, cells, labels = world()
    rules = fit((swin, np.full_like(semantic, np.nan), cells, labels))
    assert "no semantic threshold raises" in rules.of("PC").disabled


def test_a_rescue_that_only_harms_is_disabled():
    swin, _, cells, labels = world()
    backwards = np.full_like(swin, 0.2)
    backwards[labels == PC, PC] = 0.01  # the second model denies every plasma cell
    good = swin.copy()
    good[labels == PC] = np.eye(5)[PC] * 0.98 + 0.004  # and the first knows all of them
    rules = fit((good, backwards, cells, labels))
    assert "no semantic threshold raises the out-of-fold F1 of PC above 1.000" in rules.of("PC").disabled


def test_the_reason_counts_labels_that_would_change():
    """Images that surface with the label that they have already are none of them."""
    swin, semantic, cells, labels = world(first=6.0)
    rules = fit((swin, np.full_like(semantic, np.nan), cells, labels), RESCUE_PAPER)
    boosted = swin.astype(float)
    boosted[:, [PLY, PC]] *= [rules.of("PLY").boost, rules.of("PC").boost]
    surfaced, kept = boosted.argmax(1) == PC, swin.argmax(1) == PC
    new = surfaced & ~kept
    assert (surfaced & kept).any() and new.any()
    words = f"({new.sum()} images would change to PC in phase 1, {(new & (labels == PC)).sum()} of them rightly)"
    assert rules.of("PC").disabled.endswith(words)


def test_the_order_of_the_images_does_not_matter_and_other_images_cannot():
    """The function sees what it is given; an evaluation split is not among it."""
    data = world()
    order = np.random.default_rng(0).permutation(len(data[3]))
    one, two, three = (fit(d).to_json() for d in (data, data, rows(data, order)))
    assert one == two
    for first, second in zip(one["rare"], three["rare"], strict=True):
        for key in ("boost", "semantic", "cue_threshold"):
            assert first[key] == pytest.approx(second[key], rel=1e-9)
        assert [note["effect"] for note in first["fitted"]] == [note["effect"] for note in second["fitted"]]
    train, test = np.arange(900), np.arange(900, len(data[3]))
    before = fit(rows(data, train)).to_json()
    for part in (data[0], data[1], data[2].features, data[3]):
        part[test] = 0  # whatever happens to the test images
    assert fit(rows(data, train)).to_json() == before


def test_inputs_are_left_as_they_are():
    swin, semantic, cells, labels = data = world()
    copies = swin.copy(), semantic.copy(), cells.features.copy(), labels.copy()
    rules = fit(data)
    suppress_and_rescue(swin, semantic, cells, rules, CLASSES)
    for now, then in zip((swin, semantic, cells.features, labels), copies, strict=True):
        np.testing.assert_array_equal(now, then)


def test_fitted_rules_travel_as_json(tmp_path):
    rules = fit(world())
    (tmp_path / "rules.json").write_text(json.dumps(rules.to_json(), allow_nan=False), encoding="utf-8")
    again = Rules.from_json(json.loads((tmp_path / "rules.json").read_text(encoding="utf-8")))
    assert again.to_json() == rules.to_json()
    one, two = (suppress_and_rescue(*world(1)[:3], r, CLASSES) for r in (rules, again))
    np.testing.assert_array_equal(one.final, two.final)


@pytest.mark.parametrize("options", [{"judge": "end"}, {"spikiness": "x"}, {"mahalanobis": "x"}, {"surface": 0},
                                     {"outlier": 1.0}, {"coverage": 0}, {"max_boost": 0.5}, {"min_group": 1}])
def test_settings_out_of_range_are_refused(options):
    with pytest.raises(UsageError):
        FitSettings(**options)


def test_what_does_not_fit_together_is_refused():
    swin, semantic, cells, labels = world()
    with pytest.raises(ValueError, match="labels"):
        fit((swin, semantic, cells, labels[:-1]))
    with pytest.raises(ValueError, match="codes in"):
        fit((swin, semantic, cells, labels + 1))
    with pytest.raises(ValueError, match="3 groups"):
        fit_thresholds(swin, semantic, cells, labels, RESCUE_FITTED, CLASSES, groups=["a", "b", "c"])
    with pytest.raises(UsageError, match="names PLY"):
        fit_thresholds(swin[:, :3], semantic[:, :3], cells, labels % 3, RESCUE_FITTED, CLASSES[:3])


def test_sensitivity_is_what_running_again_gives():
    swin, semantic, cells, labels = data = world()
    rules = fit(data)
    for threshold, values in (("boost", [1, 10, 1000]), ("semantic", [0, 0.5, 1.1]), ("cue_threshold", [0, 2, 9])):
        frame = sensitivity(swin, semantic, cells, labels, rules, CLASSES, name="PC", threshold=threshold,
                            values=values)
        for row in frame.itertuples():
            changed = replace(rules, rare=tuple(replace(r, **{threshold: row.value}) if r.name == "PC" else r
                                                for r in rules.rare))
            final = suppress_and_rescue(swin, semantic, cells, changed, CLASSES).final
            assert row.macro_f1 == pytest.approx(scores(labels, final, 5)["macro_f1"])
        assert frame["macro_f1"].nunique() > 1
        assert (frame["rescued_right"] <= frame["rescued"]).all()
    with pytest.raises(UsageError, match="threshold"):
        sensitivity(swin, semantic, cells, labels, rules, CLASSES, name="PC", threshold="tau", values=[1])
    with pytest.raises(UsageError, match="disabled"):
        sensitivity(swin, semantic, cells, labels, rules.replace("PC", disabled="no cell"), CLASSES, name="PC",
                    threshold="boost", values=[1])


def test_one_image_effect_is_what_one_image_does():
    support = [40, 12, 9, 6, 1]
    frame = one_image_effect(support, CLASSES).set_index("class")

    def macro(found, alarms=0):
        """The share of six PLY images in a macro-F1 over five classes, with so many found and so many false alarms."""
        true = np.r_[np.full(6, 0), np.full(alarms, 1)]
        pred = np.r_[np.full(found, 0), np.full(6 - found, 1), np.full(alarms, 0)]
        return scores(true, pred, 2)["per_class"]["f1"][0] / 5

    ply = frame.loc["PLY"]
    assert ply["first"] == pytest.approx(macro(1) - macro(0))
    assert ply["last"] == pytest.approx(macro(6) - macro(5))
    assert ply["mean"] == pytest.approx((macro(6) - macro(0)) / 6)
    assert ply["false_alarm"] == pytest.approx(macro(6) - macro(6, alarms=1))
    assert frame["support"].tolist() == support
    assert np.isnan(one_image_effect([0, 1], ["A", "B"])["first"][0])
    with pytest.raises(ValueError, match="supports"):
        one_image_effect([1], CLASSES)
