"""What a notebook opens: relative paths start at the repository, reads are noted, nothing runs read-only."""

from pathlib import Path

import wbcrepro
from wbcrepro.session import no_results, open_session


def test_relative_paths_of_a_notebook_opened_by_hand_start_above_its_folder(tmp_path, monkeypatch):
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")
    session = open_session("decoupled", "tiny")
    assert session.store.path == tmp_path / "runs" and session.results == tmp_path / "results"
    assert open_session("decoupled", "tiny", store=tmp_path / "x").store.path == tmp_path / "x"
    monkeypatch.chdir(tmp_path)
    assert open_session("decoupled", "tiny").store.path == Path("runs")


def test_weights_and_accumulation_of_a_notebook_reach_its_plan(tmp_path):
    plain = open_session("decoupled", "tiny", store=tmp_path)
    split = open_session("decoupled", "tiny", store=tmp_path, weights="random", accumulate=2)
    train = next(cell for cell in split.plan.cells if cell.kind == "train")
    assert train.config["weights"] == "random" and train.config["optimisation"]["accumulate"] == 2
    assert "--weights random --accumulate 2" in split.plan.make_command()
    assert "--weights" not in plain.plan.make_command() and "--accumulate" not in plain.plan.make_command()


def test_a_notebook_without_the_repository_says_that_the_results_are_absent(tmp_path):
    assert "is not beside this notebook" in no_results(tmp_path / "results")
    assert wbcrepro.REPOSITORY in no_results(tmp_path / "results")
    assert "committed yet" in no_results(tmp_path)


def test_reads_are_noted_found_or_not_and_read_only_runs_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("WBCREPRO_READS", str(tmp_path / "reads"))
    monkeypatch.setenv("WBCREPRO_READ_ONLY", "1")
    session = open_session("decoupled", "tiny", store=tmp_path / "store")
    assert session.synthetic and session.run_missing() == len(session.plan.cells)
    (cell, stored), *_ = session.find(method="decoupled", preset="paper", backbone="r50", fold=0)
    assert stored is None and cell.kind == "head"
    session.store.cells("head")
    assert {cell.id, "head-*"} <= set((tmp_path / "reads").read_text().split())
    assert not (tmp_path / "store" / "cells").exists()
