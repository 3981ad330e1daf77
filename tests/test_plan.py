"""What a plan holds: shared parents, the presets' switches, and only the folds that a benchmark has."""

import dataclasses

import pytest

from wbcrepro.data.benchmarks import load_benchmark
from wbcrepro.errors import UsageError
from wbcrepro.experiments import plan as planning
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


def test_every_profile_names_what_its_tables_need():
    paper = load_paper("decoupled")
    for name, profile in paper["profiles"].items():
        assert set(profile["presets"]) <= set(paper["presets"]), name
        assert all(set(methods) <= set(paper["methods"]) for methods in profile["methods"].values())
        for table in paper["tables"].values():
            assert set(table["profiles"]) <= set(paper["profiles"])
