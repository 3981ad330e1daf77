"""The rescue paper on the page of one benchmark: single networks beside those of other papers, averages apart."""

from dataclasses import replace

import pytest
from fake_rescue_store import fake_rescue_plan, fill_rescue_store, write_json
from fake_store import fake_plan, fill_store

from wbcrepro.papers import load_paper
from wbcrepro.report.costs import chains
from wbcrepro.report.method_scores import HELD_OUT_SET, two_stage_scores
from wbcrepro.report.one_benchmark import Run, collect
from wbcrepro.report.predictions import from_plan
from wbcrepro.report.rescue_evaluate import RescueEvaluator, RescueSpec
from wbcrepro.report.rescue_predictions import from_rescue_plan
from wbcrepro.report.rescue_scores import rescue_scores


@pytest.fixture(scope="module")
def plan():
    return fake_rescue_plan()


@pytest.fixture(scope="module")
def store(plan, tmp_path_factory):
    return fill_rescue_store(tmp_path_factory.mktemp("store"), plan)


@pytest.fixture(scope="module")
def run(plan, store):
    return from_rescue_plan(plan, store)


def of(scores, method, part="test set", preset="paper"):
    return next(s for s in scores if (s.method, s.part, s.preset) == (method, part, preset))


def test_single_networks_are_every_fold_alone_without_views(run):
    found = of(rescue_scores(run, 20), "swin")
    spec = RescueSpec("swin", views="identity", folds="each")
    assert found.estimate.values == RescueEvaluator(run, 20).estimate(spec, "test").values
    assert found.estimate.folds == 3 and found.networks == ("tf_efficientnet_lite0",)
    assert len(found.members) == 3 and found.missing == ()


def test_averages_and_phases_are_no_single_networks(run):
    scores = rescue_scores(run, 20)
    averaged, rescued = of(scores, "Five folds + TTA"), of(scores, "+ Phase 3")
    assert averaged.networks == ("tf_efficientnet_lite0 (3 folds)",) and averaged.estimate.folds == 1
    assert rescued.networks == (*averaged.networks, "tf_efficientnet_lite1 (embedding)")
    assert set(averaged.members) < set(rescued.members)
    assert any(i.startswith("rescue-") for i in rescued.members)


def test_every_row_stands_once_on_each_test_set(run):
    keys = [(s.preset, s.method, s.networks, s.part) for s in rescue_scores(run, 20)]
    assert len(keys) == len(set(keys)) and {k[3] for k in keys} == {"test set", "degraded test set"}
    assert [k[1] for k in keys if k[0] == "code"].count("swin") == 0, "the presets share their networks here"
    assert {"+ Phase 2", "+ Phase 3"} <= {k[1] for k in keys if k[0] == "code"}


def test_its_parts_are_called_as_those_of_other_held_out_sets(run, tmp_path):
    other = fake_plan(folds=[0])
    theirs = {(s.protocol, s.part) for s in two_stage_scores(from_plan(other, fill_store(tmp_path, other)), 10)}
    assert {(s.protocol, s.part) for s in rescue_scores(run, 10)} == theirs == {
        (HELD_OUT_SET, "test set"), (HELD_OUT_SET, "degraded test set")
    }  # fmt: skip


def test_missing_networks_are_holes(plan, tmp_path):
    gone = {c.id for c in plan.cells if c.labels.get("row") == "ldam"}
    found = from_rescue_plan(plan, fill_rescue_store(tmp_path, plan, skip=gone))
    scores = rescue_scores(found, 20)
    assert of(scores, "ldam").estimate is None and len(of(scores, "ldam").missing) == 3
    assert of(scores, "swin").estimate is not None


def test_an_empty_store_has_a_hole_for_every_row(plan, tmp_path):
    found = from_rescue_plan(plan, fill_rescue_store(tmp_path, plan, skip={c.id for c in plan.cells}))
    scores = rescue_scores(found, 20)
    assert scores and {s.estimate for s in scores} == {None} and all(s.missing for s in scores)


def test_the_rescue_costs_more_than_its_networks(plan, store, run):
    known = chains(plan, store)
    scores = rescue_scores(replace(run), 10)
    steps = {name: {step.id for i in of(scores, name).members for step in known[i].steps} for name in
             ("Five folds + TTA", "+ Phase 3")}  # fmt: skip
    assert steps["Five folds + TTA"] < steps["+ Phase 3"]
    kinds = {i.rsplit("-", 1)[0] for i in steps["+ Phase 3"]}
    assert {"rescue", "semantic", "morphology", "cells", "train"} <= kinds and "pixels" not in kinds


@pytest.mark.parametrize("profile", ["demo", "mini"])
def test_networks_read_restored_cells_and_not_the_pixel_cache(profile, tmp_path):
    plan = fake_rescue_plan(profile)
    found = chains(plan, fill_rescue_store(tmp_path, plan, skip={c.id for c in plan.cells}))
    settings = load_paper("rescue")["profiles"][profile]
    assert settings["input"] != settings["pixels"]["crop"]
    sides = {c.kind: found[c.id].side for c in plan.cells if c.id in found}
    assert {sides[kind] for kind in ("train", "tta", "head", "semantic", "rescue")} == {settings["input"]}
    assert sides["cells"] == settings["pixels"]["crop"]


def test_a_network_alone_is_not_charged_for_views_that_it_does_not_average(plan, tmp_path):
    store = fill_rescue_store(tmp_path, plan)
    taken = {"tta": 0.8, "features": 1.6, "embeddings": 0.3}  # seconds for 100 images, all views
    for cell in (c for c in plan.cells if c.kind in taken):
        env = {**store.get(cell.id).env, "inference": {"images": 100, "seconds": taken[cell.kind]}}
        write_json(store.folder(cell.id) / "env.json", env)
    table = collect([Run(from_rescue_plan(plan, store), chains(plan, store))], 20)
    spent = {e.method: e.cost.inference for e in table.entries if e.column.part == "test set" and e.preset == "paper"}
    assert spent["swin"] == spent["ldam"] == pytest.approx(1.0) and spent["decoupling"] == pytest.approx(2.0)
    assert spent["Five folds + TTA"] == pytest.approx(3 * 8.0)
    assert spent["+ Phase 2"] == spent["+ Phase 3"] == pytest.approx(3 * 8.0 + 3.0)
    assert {e.cost.side for e in table.entries} == {64}
