"""Committed results: deterministic files, tables rebuilt byte for byte, limits, licences."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fake_store import fake_plan, fill_store

from wbcrepro.cli import main
from wbcrepro.data.benchmarks import datasets_of
from wbcrepro.errors import CellsMissing, DataMissing, UsageError
from wbcrepro.report import results
from wbcrepro.report.evaluate import Evaluator
from wbcrepro.report.predictions import from_plan
from wbcrepro.report.tables import build_table

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    plan = fake_plan()
    predictions = from_plan(plan, fill_store(tmp_path_factory.mktemp("store"), plan))
    return predictions, results.export_results(predictions, tmp_path_factory.mktemp("results"))


def test_committed_tables_are_rebuilt_byte_for_byte():
    wrong = [line for folder in results.list_results(ROOT / "results") for line in results.check_results(folder)]
    assert not wrong, "\n".join(wrong)


def test_committed_results_stay_small_and_name_nobody():
    files = [p for p in (ROOT / "results").rglob("*") if p.is_file()]
    assert all(p.stat().st_size <= results.FILE_LIMIT for p in files)
    assert sum(p.stat().st_size for p in files) <= results.TOTAL_LIMIT
    for path in (ROOT / "results").rglob("provenance.json"):
        assert "/home/" not in path.read_text() and "/root/" not in path.read_text()


def test_an_export_checks_out_and_is_deterministic(exported, tmp_path):
    predictions, folder = exported
    assert results.check_results(folder) == []
    again = results.export_results(predictions, tmp_path)
    names = sorted(p.name for p in folder.iterdir())
    assert names == sorted(p.name for p in again.iterdir()) and "table_1-test_degraded-paper.csv" in names
    assert all((folder / n).read_bytes() == (again / n).read_bytes() for n in names)


def test_tables_from_results_are_those_of_the_store(exported):
    predictions, folder = exported
    opened = results.open_results(folder)
    for on in ("test", "test_degraded"):
        ours, theirs = (build_table(p, on=on, evaluator=Evaluator(p, on, 50)).frame() for p in (predictions, opened))
        assert np.allclose(ours["mean"], theirs["mean"], atol=1.0), "half precision may turn a tie, not a table"
        assert opened.networks() == predictions.networks() and opened.sets() == ("test", "test_degraded")


def test_what_had_not_run_stays_a_hole(tmp_path):
    plan = fake_plan()
    lost = plan.find(preset="paper", method="decoupled", backbone="swin", fold=1)[0]
    folder = results.export_results(from_plan(plan, fill_store(tmp_path / "store", plan, skip={lost.id})), tmp_path)
    opened = results.open_results(folder)
    assert opened.folds("paper") == (0, 1) and results.check_results(folder) == []
    row = next(r for r in build_table(opened).rows if r.label == "Decoupled (Swin)")
    assert row.missing == (lost.id,) and row.entries["MF1"].ours.folds == 1


def test_provenance_says_where_it_came_from(exported):
    value = json.loads((exported[1] / "provenance.json").read_text())
    assert value["schema"] == 1 and value["commit"] == ["abc"] and value["hardware"] == ["a machine"]
    assert (
        value["date"] == ["2026-02-03"] and value["data_digest"] == "0" * 64 and value["cells"][0]["facts"]["seed"] == 7
    )


def test_a_changed_table_and_a_changed_array_are_noticed(exported, tmp_path):
    folder = tmp_path / "x" / "y"
    shutil.copytree(exported[1], folder)
    table = folder / "table_1-test-paper.csv"
    table.write_text(table.read_text().replace("Supervised", "supervised", 1))
    (folder / "extra.csv").write_text("a\n")
    wrong = results.check_results(folder)
    assert len(wrong) == 2 and "differs from the table" in wrong[0] and "rebuilt by nothing" in wrong[1]
    (folder / "items-test.npz").write_bytes(b"")
    assert "differs from the digest" in results.check_results(folder)[0]


@pytest.mark.parametrize(
    ("benchmark", "why"),
    [
        ("wbcbench-official", r'forbids passing labels on: wbcbench2026 \("never"\)'),
        ("int20", r'int20 \("never"\)'),
        ("raabin-wbc", r'raabin-wbc \("ask the authors"\)'),
        ("folder", "not in the catalogue"),
        ("csv", "not in the catalogue"),
    ],
)
def test_labels_that_may_not_be_passed_on_are_not_exported(tmp_path, exported, benchmark, why):
    predictions = replace(exported[0], benchmark=benchmark, synthetic=False)
    with pytest.raises(UsageError, match=why):
        results.export_results(predictions, tmp_path / "results")
    assert not (tmp_path / "results").exists()


def test_every_dataset_of_a_benchmark_has_a_say():
    assert datasets_of("sada-four") == ("acevedo20", "raabin500", "chula500", "zheng18")
    assert datasets_of("acevedo20-lt") == datasets_of("acevedo20") == ("acevedo20",)
    assert datasets_of("smears-demo") == datasets_of("sada-smears") == ()


def test_a_file_above_the_limit_leaves_nothing(exported, tmp_path, monkeypatch):
    monkeypatch.setattr(results, "FILE_LIMIT", 2000)
    with pytest.raises(UsageError, match="limited to 2,000 bytes"):
        results.export_results(exported[0], tmp_path)
    assert not list(tmp_path.rglob("*.npz"))


def test_nothing_to_export_and_nothing_to_open(tmp_path):
    plan = fake_plan()
    empty = from_plan(plan, fill_store(tmp_path, plan, skip={c.id for c in plan.cells}))
    with pytest.raises(CellsMissing, match="wbcrepro reproduce"):
        results.export_results(empty, tmp_path)
    with pytest.raises(DataMissing, match="no results"):
        results.open_results(tmp_path)


def test_commands(exported, capsys):
    root = str(exported[1].parents[1])
    assert main(["results", "list", "--results", root]) == 0 and "a machine" in capsys.readouterr().out
    assert main(["results", "rebuild", "--results", root]) == 0 and "agrees" in capsys.readouterr().out
    assert main(["report", "--results", str(exported[1])]) == 0 and "Ens. (all)" in capsys.readouterr().out
    assert main(["report", "--results", str(exported[1]), "--csv"]) == 0
    assert capsys.readouterr().out == (exported[1] / "table_1-test-paper.csv").read_text()
    assert main(["report", "--results", str(exported[1]), "--set", "val"]) == 4, "no cell has that set"
    assert main(["report", "--results", str(exported[1]), "--table", "table_9"]) == 2
