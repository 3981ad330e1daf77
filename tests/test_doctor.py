"""`wbcrepro doctor`: the forecast against numbers worked out by hand, and what it says when things are missing."""

import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from wbcrepro.cli import main
from wbcrepro.commands.doctor import duration
from wbcrepro.experiments.cell import Cell
from wbcrepro.experiments.cost import Speed, forecast, measure
from wbcrepro.experiments.plan import Plan


@pytest.fixture
def plan():
    """40 training images in two folds of 10 and 30, 5 test images; one chain, and an online stage 2."""
    table = pd.DataFrame({"set": ["train"] * 40 + ["test"] * 5, "fold": [0] * 10 + [1] * 30 + [-1] * 5})
    benchmark = SimpleNamespace(name="fake", table=table, read=lambda item: np.zeros((4, 4, 3), np.uint8))
    pixels = Cell("pixels", {"crop": 8})
    optimisation = {"epochs": 3, "batch_size": 4}
    train = Cell("train", {"fold": 0, "backbone": "b", "optimisation": optimisation}, (pixels.id,))
    features = Cell("features", {"fold": 0, "passes": 2}, (train.id,))
    head = Cell("head", {"fold": 0, "method": "crt"}, (features.id,))
    online = Cell("head", {"fold": 0, "online": True, "optimisation": {"epochs": 2}}, (train.id,))
    return Plan("p", "tiny", benchmark, (pixels, train, features, head, online))


class FakeStore:
    """A store in which the named cells are done."""

    def __init__(self, *done: str):
        self.finished = done

    def done(self, cell_id: str) -> bool:
        """Whether the cell is among the finished ones."""
        return cell_id in self.finished


def calibrate(name, side, batch, device):
    """One second per training image, a tenth per forward one."""
    assert (name, side, batch) == ("b", 8, 4)
    return Speed(train=1.0, forward=0.1, parameters=1000, dim=16)


def test_forecast_is_what_one_counts_by_hand(plan):
    cost = forecast(plan, FakeStore(), torch.device("cpu"), calibrate=calibrate)
    assert cost.cells == {"pixels": 1, "train": 1, "features": 1, "head": 2} and cost.done == 0
    # train: 3 epochs x 30, validation 4 x 10; features: 3 passes x 30 + 8 x (10 + 5); online: 2 x (30 + 10) + 8 x 15
    assert cost.images == {"pixels": 45, "train": 90 + 40, "features": 90 + 120, "head": 80 + 120}
    assert cost.seconds["train"] == pytest.approx(90 + 4)
    assert cost.seconds["features"] == pytest.approx(21)
    assert cost.seconds["head"] == pytest.approx(20)
    assert cost.disk == 45 * 3 * 64 + 2 * 4 * 1000 * 8 + 2 * 16 * 210


def test_what_is_done_costs_nothing(plan):
    pixels, train = plan.cells[:2]
    cost = forecast(plan, FakeStore(pixels.id, train.id), torch.device("cpu"), calibrate=calibrate)
    assert cost.done == 2 and cost.images == {"features": 210, "head": 200}
    everything = forecast(plan, FakeStore(*(c.id for c in plan.cells)), torch.device("cpu"), calibrate=calibrate)
    assert everything.total_seconds == 0 and everything.disk == 0 and everything.done == 5


def test_measure_times_a_real_network():
    speed = measure("test_efficientnet", 32, 4, torch.device("cpu"), steps=1)
    assert speed.dim == 256 and speed.parameters > 50_000
    assert 0 < speed.forward < speed.train < 5


def test_doctor_prints_json_for_a_profile_that_runs_here(tmp_path, capsys):
    arguments = ["doctor", "--paper", "decoupled", "--profile", "tiny", "--store", str(tmp_path / "new" / "runs")]
    assert main([*arguments, "--device", "cpu", "--json", "--no-calibration"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["schema"] == 1 and report["device"]["device"] == "cpu" and report["disk"]["free_gib"] > 0
    assert report["versions"]["torch"] == torch.__version__.split("+")[0]
    paper = report["papers"]["decoupled"]
    assert sum(paper["cells"].values()) > 10 and paper["done"] == 0 and paper["images_through_networks"]["train"] > 0
    assert not any(entry["found"] for entry in report["datasets"].values())


def test_doctor_says_what_a_profile_lacks(tmp_path, capsys):
    (tmp_path / "data").mkdir()
    arguments = ["doctor", "--paper", "decoupled", "--profile", "paper", "--data", str(tmp_path / "data")]
    assert main([*arguments, "--store", str(tmp_path / "runs"), "--no-calibration"]) == 3
    out = capsys.readouterr().out
    assert "MISSING" in out and "wbcbench2026" in out and "not found (gated)" in out


def test_doctor_finds_a_dataset_in_its_published_layout(real_data, tmp_path, capsys):
    arguments = ["doctor", "--paper", "decoupled", "--profile", "tiny", "--data", str(real_data), "--device", "cpu"]
    assert main([*arguments, "--store", str(tmp_path / "runs"), "--no-calibration"]) == 0
    assert "acevedo20     found (published), not verified yet" in capsys.readouterr().out


@pytest.mark.parametrize("seconds, words", [(40, "40 s"), (700, "12 min"), (12600, "3.5 h"), (362880, "4.2 days")])
def test_duration(seconds, words):
    assert duration(seconds) == words
