"""What a plan holds: shared parents, the presets' switches, and only the folds that a benchmark has."""

import copy
import dataclasses
import json
import re
import shutil

import pytest
import torch

from wbcrepro.data.benchmarks import load_benchmark
from wbcrepro.errors import CellsMissing, DataMissing, UsageError
from wbcrepro.experiments import plan as planning
from wbcrepro.experiments.run import Context, run_cell
from wbcrepro.experiments.store import Store
from wbcrepro.papers import load_paper


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return planning.make_plan("decoupled", "tiny", store=Store(tmp_path_factory.mktemp("s")), progress=False)


def test_parents_come_first_and_rows_share_their_stage_1(tiny):
    position = {cell.id: i for i, cell in enumerate(tiny.cells)}
    assert len(position) == len(tiny.cells)
    for cell in tiny.cells:
        assert all(position[parent] < position[cell.id] for parent in cell.parents)
    rows = [tiny.find(preset="paper", backbone="r50", fold=0, method=m)[0] for m in ("supervised", "decoupled")]
    assert rows[0].parents == rows[1].parents and rows[0].id != rows[1].id


def test_presets_differ_in_their_switches(tiny):
    labels = {"backbone": "r50", "fold": 0, "method": "decoupled"}
    heads = {preset: tiny.find(preset=preset, **labels)[0] for preset in ("paper", "code")}
    paper, code = heads["paper"].config, heads["code"].config
    assert (paper["classifier"], code["classifier"]) == ("linear", "mlp512bn")
    assert (paper["optimisation"]["variant"], code["optimisation"]["variant"]) == ("p", "p_alpha")
    assert (paper["select"], code["select"]) == ("best", "last") and (paper["online"], code["online"]) == (False, True)
    stains = {cell.config["stain"] for cell in tiny.cells if cell.kind == "pixels"}
    assert stains == {"macenko", "none"}
    folds = {p: {c.labels["fold"] for c in tiny.cells if c.kind == "train" and c.labels["preset"] == p} for p in heads}
    assert folds == {"paper": {0, 1}, "code": {0}}


def with_folds(benchmark, folds):
    table = benchmark.table.copy()
    train = table["set"] == "train"
    table.loc[train, "fold"] = [folds[i % len(folds)] for i in range(train.sum())]
    return dataclasses.replace(benchmark, table=table)


def test_only_the_folds_that_exist_are_planned(tmp_path, monkeypatch):
    benchmark = load_benchmark("smears-tiny", data_root=None, cache=tmp_path, progress=False)
    monkeypatch.setattr(planning, "load_benchmark", lambda *a, **k: with_folds(benchmark, [-1, 0]))
    one = planning.make_plan("decoupled", "tiny", store=Store(tmp_path))
    assert {cell.labels["fold"] for cell in one.cells if cell.kind == "train"} == {0}
    monkeypatch.setattr(planning, "load_benchmark", lambda *a, **k: with_folds(benchmark, [7]))
    with pytest.raises(UsageError, match="none in common"):
        planning.make_plan("decoupled", "tiny", store=Store(tmp_path))


def test_unknown_cell_names_the_command_that_lists_them(tiny):
    with pytest.raises(UsageError, match="wbcrepro plan --paper decoupled --profile tiny"):
        tiny.cell("train-000000000000")


def test_errors_repeat_the_options_of_the_plan(tmp_path):
    store = Store(tmp_path)
    plan = planning.make_plan("decoupled", "tiny", store=store, weights="random", accumulate=2, progress=False)
    head = plan.find(method="decoupled", preset="paper")[0]
    told = f"--paper decoupled --profile tiny --weights random --accumulate 2 --store {tmp_path}"
    with pytest.raises(CellsMissing, match=re.escape(f"wbcrepro run-cell {head.parents[0]} {told}")):
        run_cell(head, plan, store, device=torch.device("cpu"))
    with pytest.raises(CellsMissing, match=re.escape(f" {told}")):
        Context(head, store, plan, torch.device("cpu")).parent("pixels")
    with pytest.raises(CellsMissing, match="No plan that this store has seen"):
        store.require(head.id)
    planning.save_plan(plan, store)
    with pytest.raises(CellsMissing, match=re.escape(f"wbcrepro run-cell {head.id} {told}")):
        store.require(head.id)  # what `wbcrepro predict --run ID` says


def test_saved_plans_keep_their_options_and_no_path(tmp_path, monkeypatch):
    one_network(monkeypatch)
    store, weights = Store(tmp_path / "s"), tmp_path / "w.pth"
    weights.write_bytes(b"some weights")
    for given in ({}, {"accumulate": 2}, {"weights": str(weights), "data": tmp_path}):
        planning.save_plan(planning.make_plan("decoupled", "tiny", store=store, progress=False, **given), store)
    text = (tmp_path / "s" / "plan.json").read_text()
    told = [plan["options"] for plan in json.loads(text)["plans"]]
    assert told[:2] == ["--profile tiny", "--profile tiny --accumulate 2"] and str(tmp_path) not in text
    assert re.fullmatch("--profile tiny --data FOLDER_OF_THE_DATASETS --weights file:[0-9a-f]{12}", told[2])
    folder = {"profile": "demo", "dataset": f"folder:{tmp_path}"}
    assert planning.option_words(planning._without_paths(folder)) == "--profile demo --dataset folder:PATH"


def test_every_profile_names_what_its_tables_need():
    paper = load_paper("decoupled")
    for name, profile in paper["profiles"].items():
        assert set(profile["presets"]) <= set(paper["presets"]), name
        assert all(set(methods) <= set(paper["methods"]) for methods in profile["methods"].values())
        for table in paper["tables"].values():
            assert set(table["profiles"]) <= set(paper["profiles"])


def one_network(monkeypatch):
    """The profile tiny with one small network in every role."""
    paper = copy.deepcopy(load_paper("decoupled"))
    tiny = paper["profiles"]["tiny"]
    tiny["backbones"] = dict.fromkeys(tiny["backbones"], "test_efficientnet")
    monkeypatch.setattr(planning, "load_paper", lambda name: paper)


def trains(plan):
    return [cell for cell in plan.cells if cell.kind == "train"]


def test_a_file_of_weights_is_known_by_its_content_and_not_by_its_path(tmp_path, monkeypatch):
    one_network(monkeypatch)
    store, first, second = Store(tmp_path / "s"), tmp_path / "a.pth", tmp_path / "b.pth"
    first.write_bytes(b"some weights")
    shutil.copy(first, second)
    plans = [planning.make_plan("decoupled", "tiny", store=store, weights=str(path)) for path in (first, second)]
    assert [c.id for c in plans[0].cells] == [c.id for c in plans[1].cells]
    assert str(tmp_path) not in json.dumps(plans[0].to_json()) and plans[1].weights_file == second
    second.write_bytes(b"other weights")
    changed = planning.make_plan("decoupled", "tiny", store=store, weights=str(second))
    assert not {c.id for c in trains(changed)} & {c.id for c in trains(plans[0])}
    named = trains(changed)[0].config["weights"]
    assert re.fullmatch("file:[0-9a-f]{12}", named), "the form that `--weights` takes when the file is gone"
    again = planning.make_plan("decoupled", "tiny", store=store, weights=named)
    assert [c.id for c in again.cells] == [c.id for c in changed.cells] and again.weights_file is None


def test_a_cell_reads_the_very_file_that_it_was_planned_with(tmp_path, monkeypatch):
    one_network(monkeypatch)
    path = tmp_path / "w.pth"
    path.write_bytes(b"some weights")
    plan = planning.make_plan("decoupled", "tiny", store=Store(tmp_path), weights=str(path))
    context = Context(trains(plan)[0], Store(tmp_path), plan, torch.device("cpu"))
    assert context.weights == str(path)
    path.write_bytes(b"changed since")
    with pytest.raises(DataMissing, match="--weights FILE"):
        _ = context.weights
    plain = planning.make_plan("decoupled", "tiny", store=Store(tmp_path), weights="random")
    assert Context(trains(plain)[0], Store(tmp_path), plain, torch.device("cpu")).weights == "random"


def test_one_file_for_several_networks_and_a_missing_file_are_refused_at_once(tmp_path):
    (tmp_path / "w.pth").write_bytes(b"some weights")
    with pytest.raises(UsageError, match="fits one network.*lite0, tf_efficientnet_lite1"):
        planning.make_plan("decoupled", "tiny", store=Store(tmp_path), weights=str(tmp_path / "w.pth"))
    with pytest.raises(DataMissing, match="no such file"):
        planning.make_plan("decoupled", "tiny", store=Store(tmp_path), weights="hubb")
