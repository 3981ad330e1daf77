"""Plans of the papers about unseen laboratories: who trains, who is tested, what runs first, what presets change."""

import copy

import pytest

from wbcrepro.errors import UsageError
from wbcrepro.experiments import plan as planning
from wbcrepro.experiments.store import Store
from wbcrepro.papers import load_paper


@pytest.fixture(scope="module")
def plans(tmp_path_factory):
    store = Store(tmp_path_factory.mktemp("s"))
    return {name: planning.make_plan(name, "tiny", store=store, progress=False) for name in ("sada", "boda")}


def trainings(plan, **labels):
    return [cell for cell in plan.find(**labels) if cell.kind == "domain_train"]


@pytest.mark.parametrize("paper", ["sada", "boda"])
def test_parents_come_first_and_ids_are_distinct(plans, paper):
    position = {cell.id: i for i, cell in enumerate(plans[paper].cells)}
    assert len(position) == len(plans[paper].cells)
    for cell in plans[paper].cells:
        assert all(position[parent] < position[cell.id] for parent in cell.parents)


def test_the_held_out_laboratory_and_its_variants_never_train(plans):
    benchmark = plans["sada"].benchmark
    for cell in trainings(plans["sada"]):
        config = cell.config
        assert config["held_out"] not in config["sources"] and len(config["sources"]) == 3
        assert not any("@" in name for name in config["sources"])
        assert set(config["sources"]) | {config["held_out"]} == set(benchmark.domains)
        assert config["targets"] == [config["held_out"], *benchmark.variants.get(config["held_out"], ())]
    assert any(len(cell.config["targets"]) > 1 for cell in trainings(plans["sada"]))


def test_methods_of_one_laboratory_and_trial_share_their_seed_and_nothing_else_does(plans):
    seeds = {}
    for plan in plans.values():
        for cell in trainings(plan):
            key = (plan.paper, cell.config["held_out"], cell.config["trial"])
            seeds.setdefault(key, set()).add(cell.config["seed"])
    assert all(len(found) == 1 for found in seeds.values())
    assert len({next(iter(found)) for found in seeds.values()}) == len(seeds)


def test_the_switches_of_the_presets_reach_the_algorithm(plans):
    where = {"method": "sada", "held_out": "rapid"}
    paper, code = (trainings(plans["sada"], preset=p, **where)[0].config["settings"] for p in ("paper", "code"))
    assert (paper["contrastive"], paper["beta"], paper["alignment"]) == ("disc", 0.1, "sum")
    assert (code["contrastive"], code["beta"], code["alignment"]) == ("supcon", 0.0, "mean")
    m2 = trainings(plans["sada"], preset="paper", method="m2", held_out="rapid")[0].config["settings"]
    assert {key for key in paper if paper[key] != m2[key]} == {"beta"} and m2["beta"] == 0
    boda = [trainings(plans["boda"], preset=p, method="boda", trial=0)[0].config["settings"] for p in ("paper", "code")]
    assert [s["macro_weight"] for s in boda] == [0.0, 1.0]


def test_only_sada_keeps_its_first_stage_from_the_average(plans):
    for cell in trainings(plans["sada"]):
        starts = cell.config["schedule"].get("swad_from_step")
        assert starts == (cell.config["settings"]["stage1_steps"] if cell.config["algorithm"] == "sada" else None)


def test_a_retrained_row_builds_on_the_training_of_its_method(plans):
    plus = [cell for cell in plans["boda"].cells if cell.kind == "domain_head"]
    assert len(plus) == 2
    for cell in plus:
        parent = plans["boda"].cell(cell.parents[0])
        assert (parent.labels["method"], parent.labels["trial"]) == ("boda", cell.labels["trial"])
        assert parent.labels["preset"] == cell.labels["preset"] == "paper"


def test_rows_come_before_ablations_and_ablations_before_further_trials(tmp_path, monkeypatch):
    paper = copy.deepcopy(load_paper("sada"))
    paper["profiles"]["tiny"] |= {"trials": 3, "more": {"paper": ["mixstyle", "sada_mean"]}}
    monkeypatch.setattr(planning, "load_paper", lambda name: paper)
    plan = planning.make_plan("sada", "tiny", store=Store(tmp_path), progress=False)
    tiers = [(c.labels["tier"], c.labels["trial"]) for c in trainings(plan)]
    assert tiers == sorted(tiers, key=lambda tier: (tier[1], tier[0])) and {t for t, _ in tiers} == {0, 1, 2}
    assert {c.labels["method"] for c in trainings(plan, tier=1)} == {"mixstyle", "sada_mean"}
    assert len(plan.tier(0)) < len(plan.tier(1)) < len(plan.tier(2)) == len(plan.cells)
    kept = {cell.id for cell in plan.tier(0)}
    assert all(parent in kept for cell in plan.tier(0) for parent in cell.parents)


def test_a_laboratory_that_the_benchmark_lacks_is_named(tmp_path):
    with pytest.raises(UsageError, match="boda-tiny has no laboratory mgg|has no laboratory"):
        planning.make_plan("sada", "mini", store=Store(tmp_path), dataset="boda-tiny", progress=False)


@pytest.mark.parametrize("paper", ["sada", "boda"])
@pytest.mark.parametrize("profile", ["tiny", "demo", "mini", "paper"])
def test_every_profile_names_methods_columns_and_figures_that_exist(paper, profile):
    document = load_paper(paper)
    settings = document["profiles"][profile]
    named = [m for part in (settings["presets"], settings.get("more") or {}) for ms in part.values() for m in ms]
    assert set(named) <= set(document["methods"])
    assert set(settings["columns"].values()) >= set(settings["held_out"]) - {"chula_lab500"}
    for figure in settings["figures"].values():
        assert figure["held_out"] in settings["held_out"]
        assert set(figure["methods"]) <= set(settings["presets"]["paper"])
    for table in document["tables"].values():
        for row in table.get("rows", []):
            assert row["method"] in document["methods"]
