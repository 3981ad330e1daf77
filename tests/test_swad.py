"""SWAD against the reference's windows, counts and weights, and by hand where the reference does not go."""

import io

import numpy as np
import pytest
import torch

from wbcrepro.domains.swad import Average, LossValley
from wbcrepro.errors import UsageError


def weights(step: int) -> dict[str, torch.Tensor]:
    """The toy of the golden file: two weights that are (step, step^2) after each training step."""
    return {"w": torch.tensor([step, step**2], dtype=torch.float64)}


def walk(losses, every: int, settings, *, late: int | None = None, restart: bool = False):
    """Feed a sequence of losses, one a checkpoint; yields (step, valley) after each, ends when the valley is dead."""
    valley, losses, step = LossValley(*settings), iter(losses), 0
    for loss in losses:
        while True:
            valley.add(weights(step), step)
            if step % every == 0:
                seen = late is None or step >= late
                valley.checkpoint(loss if seen else None)
                if restart:
                    valley = reloaded(valley, settings)
                if seen:
                    break
            step += 1
        yield step, valley
        if valley.dead:
            return
        step += 1


def reloaded(valley: LossValley, settings) -> LossValley:
    """The same detector through a file, as a checkpoint stores it."""
    file = io.BytesIO()
    torch.save(valley.state_dict(), file)
    file.seek(0)
    other = LossValley(*settings)
    other.load_state_dict(torch.load(file, weights_only=True))
    return other


def settings_of(row) -> tuple[int, int, float]:
    return int(row[0]), int(row[1]), float(row[2])


@pytest.mark.parametrize("restart", [False, True], ids=["one go", "interrupted at every checkpoint"])
@pytest.mark.parametrize("setting", range(3))
def test_golden_all_sequences(golden, setting, restart):
    file = golden("swad")
    every, settings = int(file["freq"]), settings_of(file["params"][setting])
    for row, losses in enumerate(file["losses"]):
        where, at = f"{file['names'][row]} {settings}", (row, setting)
        trace = np.full(file["trace"].shape[2:], -9)
        for number, (step, valley) in enumerate(walk(losses, every, settings, restart=restart)):
            mean = valley.average or Average()
            trace[number] = step, valley.average is not None, mean.start, mean.end, mean.count
        np.testing.assert_array_equal(trace, file["trace"][at], err_msg=where)
        final = valley.final()
        assert (valley.average is not None) == file["converged"][at], where
        assert valley.start_step == file["converge_step"][at], where
        assert valley.dead == file["dead"][at], where
        assert (number if valley.dead else -1) == file["dead_index"][at], where
        np.testing.assert_allclose(valley.threshold, file["threshold"][at], rtol=1e-9, err_msg=where)
        expected = file["start_step"][at], file["end_step"][at], file["n_averaged"][at]
        assert (final.start, final.end, final.count) == expected, where
        np.testing.assert_allclose(final.weights["w"], file["weights"][at], rtol=1e-9, err_msg=where)


def test_golden_late_start(golden):
    """The SADA fork: checkpoints before a step only restart the segment (its own method: until stage 2)."""
    file = golden("swad")
    for i, late in enumerate(file["late_start"]):
        for j, name in enumerate(file["late_names"]):
            losses = file["losses"][list(file["names"]).index(name)]
            *_, (_, valley) = walk(losses, int(file["freq"]), (4, 6, 0.3), late=int(late))
            final = valley.final()
            expected = file["late_start_step"][i, j], file["late_end_step"][i, j], file["late_n_averaged"][i, j]
            assert (final.start, final.end, final.count) == expected, (name, late)
            np.testing.assert_allclose(final.weights["w"], file["late_weights"][i, j], rtol=1e-9)


def test_a_window_by_hand():
    """N_s 2, N_e 2, one step a checkpoint: the loss falls, stays low for three, rises; the start was overwritten."""
    losses = [3.0, 2.0, 1.0, 1.1, 1.2, 9.0, 9.0, 1.0]
    *_, (step, valley) = walk(losses, 1, (2, 2, 0.3))
    assert valley.start_step == 2 and valley.threshold == pytest.approx(1.3 * 1.05)
    assert valley.dead and step == 6
    final = valley.final()
    assert (final.start, final.end, final.count) == (3, 4, 2)
    np.testing.assert_allclose(final.weights["w"], [3.5, (9 + 16) / 2])


def test_final_changes_nothing_and_can_be_asked_at_any_time():
    for _, valley in walk([1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0], 3, (3, 6, 0.3)):
        before = str(valley.state_dict())
        assert str(valley.final()) == str(valley.final())
        assert str(valley.state_dict()) == before


@pytest.mark.parametrize("losses", [[1.0] * 9, [9.0, 8.0, 7.0], [3.0, 1.0, 1.0, 1.0, 9.0, 9.0, 9.0, 9.0, 9.0, 9.0]])
def test_a_closed_valley_keeps_its_average_and_nothing_else(losses):
    *_, (step, valley) = walk(losses, 2, (3, 4, 0.3))
    final, found = valley.final(), (valley.start_step, valley.dead)
    assert str(valley.close()) == str(final)
    for again in (valley, reloaded(valley, (3, 4, 0.3))):
        again.add(weights(99), 99)
        again.checkpoint(0.1)
        assert str(again.final()) == str(again.close()) == str(final)
        assert (again.start_step, again.dead) == found and again.queue == [] and not again.segment.weights


def test_averages_do_not_share_memory_with_the_network():
    network, valley = torch.nn.Linear(2, 2), LossValley(1, 1)
    for step in range(4):
        with torch.no_grad():
            network.weight.fill_(step)
        valley.add({"weight": network.weight}, step)
        valley.checkpoint(1.0)
    final = valley.final().weights["weight"]
    assert not final.requires_grad and torch.equal(final, torch.full((2, 2), 2.0))  # 0 overwritten, then 1, 2, 3
    network.weight.data.zero_()
    assert torch.equal(final, torch.full((2, 2), 2.0))


def test_few_copies_of_the_weights_are_kept():
    for n_converge, n_tolerance in ((3, 6), (5, 3)):
        for _, valley in walk(np.r_[np.linspace(9, 1, 20), np.ones(20)], 5, (n_converge, n_tolerance, 0.3)):
            state = valley.state_dict()
            kept = [*state["queue"], state["segment"], state["average"] or {"weights": {}}]
            places = {value.data_ptr() for part in kept for value in part["weights"].values()}
            assert len(places) <= max(n_converge, n_tolerance) + 1
        assert valley.average is not None and len(state["queue"]) == n_tolerance


def test_wrong_settings_and_no_checkpoint():
    with pytest.raises(UsageError, match="n_converge"):
        LossValley(0)
    with pytest.raises(UsageError, match="seen no checkpoint"):
        LossValley().final()
