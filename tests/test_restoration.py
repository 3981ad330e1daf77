"""Restoration: it learns, reads its own rows only, resumes bit for bit; the baselines; how all of them are scored."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

from wbcrepro import restoration_training
from wbcrepro.errors import DataMissing, UsageError, WbcreproError
from wbcrepro.rescue.noise import NOISES
from wbcrepro.rescue.restoration_baselines import BASELINES, restore_with
from wbcrepro.rescue.restoration_evaluation import COLUMNS, compare, evaluate, intervals, summary
from wbcrepro.restoration_training import Pairs, RestorationTraining, fit_pix2pix, load_generator, restore

SIZE, COUNT = 32, 40
TRAIN, TEST = np.arange(30), np.arange(30, COUNT)
FAST = RestorationTraining(epochs=2, decay_epochs=1, batch_size=8, lr=2e-3, ngf=4, ndf=4,
                           noise=("released", "gaussian"), seed=3)


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def cells() -> np.ndarray:
    """Two-tone discs of several sizes, tones and places on white: uint8 (COUNT,3,SIZE,SIZE)."""
    rng, (y, x) = np.random.default_rng(0), np.mgrid[:SIZE, :SIZE]
    images = np.full((COUNT, 3, SIZE, SIZE), 255, np.uint8)
    for image in images:
        cx, cy, radius = *rng.uniform(13, 19, 2), rng.uniform(8, 12)
        distance = np.hypot(x - cx, y - cy)
        for inside, tone in ((distance < radius, rng.integers(140, 220, 3)),
                             (distance < radius / 2, rng.integers(40, 120, 3))):
            image[:, inside] = tone[:, None]
    return images


def noisy(images: np.ndarray, name: str = "released") -> np.ndarray:
    made = [NOISES[name](image.transpose(1, 2, 0), np.random.default_rng(i)) for i, image in enumerate(images)]
    return np.stack(made).transpose(0, 3, 1, 2)


def run(folder, cfg=FAST, rows=TRAIN, clean=None, **options):
    clean = cells() if clean is None else clean
    return fit_pix2pix(clean, rows, cfg, folder=folder, progress=False, **options)


def bits(folder) -> bytes:
    return (folder / "generator.safetensors").read_bytes()


def test_learns_to_restore_images_it_has_not_seen(tmp_path):
    images = cells()
    result = run(tmp_path, replace(FAST, epochs=20, decay_epochs=5, batch_size=4, noise=("released",)))
    assert result.history[-1]["l1"] < 0.25 * result.history[0]["l1"]
    damaged = noisy(images[TEST])
    restored = restore(result.generator, damaged)
    before, after = (summary(evaluate(x, images[TEST]))["cell_psnr"] for x in (damaged, restored))
    assert after > before + 5
    assert after > summary(evaluate(restore_with("median_3x3", damaged), images[TEST]))["cell_psnr"]


def test_writes_what_it_promises(tmp_path):
    result = run(tmp_path)
    assert result.epochs_run == 3 and [line["epoch"] for line in result.history] == [0, 1, 2]
    assert sorted(os.listdir(tmp_path)) == ["checkpoint.pt", "generator.safetensors", "log.jsonl"]
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert lines == result.history
    assert set(lines[0]) == {"epoch", "lr", "generator_loss", "discriminator_loss", "l1", "images_per_second",
                             "seconds"}
    assert result.parameters["generator"] == sum(p.numel() for p in load_generator(result.generator).parameters())


def test_learning_rate_is_constant_then_falls_linearly(tmp_path):
    cfg = RestorationTraining()
    rates = [cfg.learning_rate(epoch) for epoch in range(200)]
    assert rates[:100] == [2e-4] * 100
    np.testing.assert_allclose(rates[100:], 2e-4 * np.arange(100, 0, -1) / 101)
    used = [line["lr"] for line in run(tmp_path, replace(FAST, epochs=1, decay_epochs=2)).history]
    np.testing.assert_allclose(used, [2e-3, 2e-3 * 2 / 3, 2e-3 / 3])


def test_one_step_is_adam_on_the_losses_of_the_paper(tmp_path):
    """One epoch of one batch, replayed in plain PyTorch from the same start: discriminator first, then generator."""
    cfg = replace(FAST, epochs=1, decay_epochs=0, batch_size=len(TRAIN))
    with torch.random.fork_rng():
        torch.manual_seed(restoration_training.derive_seed(cfg.seed, "fit_pix2pix"))
        g = restoration_training.UNetGenerator(5, 4)
        d = restoration_training.PatchDiscriminator(1, 4)
        run(tmp_path, cfg)
        (x, y), = Pairs(cells(), None, TRAIN, cfg).batches(0)
        x, y = x / 127.5 - 1, y / 127.5 - 1
        adam_g, adam_d = (torch.optim.Adam(net.parameters(), 2e-3, (0.5, 0.999)) for net in (g, d))
        bce, fake = torch.nn.functional.binary_cross_entropy_with_logits, g(x)
        real_score, fake_score = d(x, y), d(x, fake.detach())
        ((bce(real_score, torch.ones_like(real_score)) + bce(fake_score, torch.zeros_like(fake_score))) / 2).backward()
        adam_d.step()
        score = d(x, fake)
        (bce(score, torch.ones_like(score)) + 100 * (fake - y).abs().mean()).backward()
        adam_g.step()
    for name, value in load_file(tmp_path / "generator.safetensors").items():
        torch.testing.assert_close(value, g.state_dict()[name], rtol=1e-4, atol=1e-5, msg=name)


def test_same_seed_same_bits_and_the_callers_generator_is_left_alone(tmp_path):
    torch.manual_seed(11)
    before = torch.get_rng_state()
    run(tmp_path / "a")
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    run(tmp_path / "b", workers=2)
    run(tmp_path / "c", replace(FAST, seed=4))
    assert bits(tmp_path / "a") == bits(tmp_path / "b") != bits(tmp_path / "c")


def test_only_training_rows_are_read(tmp_path):
    run(tmp_path / "a")
    other = cells()
    other[TEST] = 0
    run(tmp_path / "b", clean=other)
    other[TRAIN[0]] = 0
    run(tmp_path / "c", clean=other)
    assert bits(tmp_path / "a") == bits(tmp_path / "b") != bits(tmp_path / "c")


def test_pairs_are_hashes_of_seed_epoch_and_row():
    images = cells()
    pairs = Pairs(images, None, TRAIN, FAST)
    flipped = 0
    for row in TRAIN:
        x, y = pairs.pair(row, 0)
        again = Pairs(images, None, TRAIN[::-1], FAST).pair(row, 0)
        assert np.array_equal(x, again[0]) and np.array_equal(y, again[1])
        assert not np.array_equal(x, pairs.pair(row, 1)[0])
        mirrored = np.array_equal(y, images[row][..., ::-1]) and not np.array_equal(y, images[row])
        assert mirrored or np.array_equal(y, images[row])
        flipped += mirrored
        assert not np.array_equal(x, y) and np.array_equal(x[:, y[0] == 255], y[:, y[0] == 255])
    assert 5 < flipped < 25
    still = Pairs(images, None, TRAIN, replace(FAST, flip=False))
    assert all(np.array_equal(still.pair(row, epoch)[1], images[row]) for row in TRAIN for epoch in range(2))
    orders = [np.concatenate([y.numpy()[:, 0].reshape(len(y), -1).sum(1) for _, y in pairs.batches(e)])
              for e in (0, 0, 1)]
    assert np.array_equal(orders[0], orders[1]) and not np.array_equal(orders[0], orders[2])
    assert sorted(orders[0]) == sorted(orders[2])  # flips aside, every image once


def test_true_pairs_replace_the_noise(tmp_path):
    """Half-dark twins: what the network learns is to brighten, whatever noise the settings name."""
    images = cells()
    dark = images // 2
    for row in range(5):
        x, y = Pairs(images, dark, TRAIN, FAST).pair(row, 0)
        assert np.array_equal(x, y // 2)  # flipped together
    cfg = replace(FAST, epochs=20, decay_epochs=5, batch_size=4)
    result = run(tmp_path, cfg, degraded=dark)
    restored = restore(result.generator, dark[TEST])
    before, after = (np.abs(x.astype(int) - images[TEST]).mean() for x in (dark[TEST], restored))
    assert after < 0.3 * before
    with pytest.raises(UsageError, match="belongs to other settings"):
        run(tmp_path, cfg)


@pytest.mark.parametrize("kill_at", [0, 1, 2])
def test_interrupted_inside_an_epoch(tmp_path, monkeypatch, kill_at):
    run(tmp_path / "whole")
    real, calls = restoration_training.save_checkpoint, iter(range(99))

    def interrupted(*args):
        if next(calls) == kill_at:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(restoration_training, "save_checkpoint", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut")
    monkeypatch.undo()
    assert run(tmp_path / "cut").epochs_run == 3 and bits(tmp_path / "cut") == bits(tmp_path / "whole")


def test_a_finished_run_is_not_run_again(tmp_path, monkeypatch):
    first = run(tmp_path)
    before = bits(tmp_path)
    monkeypatch.setattr(restoration_training, "_train_epoch", lambda *args: pytest.fail("trained again"))
    assert run(tmp_path) == first and bits(tmp_path) == before


SCRIPT = """
import os, sys, pathlib
os.environ["OMP_NUM_THREADS"] = "1"
sys.path.insert(0, sys.argv[2])
import torch
torch.set_num_threads(1)
import test_restoration as t
t.run(pathlib.Path(sys.argv[1]), t.LONG)
"""
LONG = replace(FAST, epochs=7, decay_epochs=3)


def test_sigkill_at_any_moment_then_resume_is_bit_identical(tmp_path):
    run(tmp_path / "whole", LONG)
    here, kills, chance = os.path.dirname(os.path.abspath(__file__)), 0, random.Random(1)
    (tmp_path / "cut").mkdir()
    for _ in range(2):
        process = subprocess.Popen([sys.executable, "-c", SCRIPT, str(tmp_path / "cut"), here])
        log = tmp_path / "cut" / "log.jsonl"
        epochs = len(log.read_text().splitlines()) if log.exists() else 0
        started = time.monotonic()
        while process.poll() is None and time.monotonic() - started < 120:
            if log.exists() and len(log.read_text().splitlines()) > epochs:  # at least one further epoch is stored
                time.sleep(chance.uniform(0, 0.05))
                process.send_signal(signal.SIGKILL)
                kills += process.wait() == -signal.SIGKILL
                break
            time.sleep(0.001)
    assert kills == 2
    result = run(tmp_path / "cut", LONG)
    assert bits(tmp_path / "cut") == bits(tmp_path / "whole")
    assert [line["epoch"] for line in result.history] == list(range(10))


def test_a_loss_that_is_not_finite_is_an_error_with_advice(tmp_path, monkeypatch):
    real = restoration_training.generator_loss
    monkeypatch.setattr(restoration_training, "generator_loss",
                        lambda *args: (real(*args)[0] * float("nan"), real(*args)[1]))
    with pytest.raises(WbcreproError, match="Epoch 0 of Pix2Pix.*nan.*lower learning rate"):
        run(tmp_path)
    assert not (tmp_path / "checkpoint.pt").exists()


def test_other_settings_and_arrays_are_refused(tmp_path):
    images = cells()
    run(tmp_path)
    for change in ({"cfg": replace(FAST, lr=1e-3)}, {"rows": TRAIN[1:]}):
        with pytest.raises(UsageError, match="belongs to other settings"):
            run(tmp_path, **change)
    with pytest.raises(UsageError, match="at least one training image"):
        run(tmp_path, rows=TRAIN[:0])
    with pytest.raises(UsageError, match=r"expected uint8 \(N, 3, S, S\)"):
        run(tmp_path, clean=images.transpose(0, 2, 3, 1))
    with pytest.raises(UsageError, match="row i must be a degraded copy"):
        run(tmp_path, degraded=images[:5])
    with pytest.raises(UsageError, match="noise \\['speckle'\\]: expected one or more of salt_and_pepper"):
        RestorationTraining(noise=("released", "speckle"))
    for wrong in ({"epochs": 0}, {"noise": ()}, {"batch_size": 0}, {"decay_epochs": -1}):
        with pytest.raises(UsageError):
            RestorationTraining(**wrong)


def test_a_single_image_can_be_trained_on(tmp_path):
    result = run(tmp_path, replace(FAST, epochs=1, decay_epochs=0), rows=TRAIN[:1])
    assert np.isfinite(result.history[0]["generator_loss"])


def test_progress_bar_counts_images(tmp_path, capsys):
    fit_pix2pix(cells(), TRAIN, FAST, folder=tmp_path)
    assert "90/90" in capsys.readouterr().err


def test_restore_in_both_modes(tmp_path):
    """Eval: an image does not depend on its batch, nor on a seed. Train: dropout by seed, each image alone."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (6, 3, 48, 48)).astype(np.uint8)
    torch.manual_seed(5)
    network = restoration_training.UNetGenerator(6, ngf=4)
    network.train()(torch.randn(4, 3, 64, 64))  # so that the stored statistics are not those of the batch
    restoration_training.save_weights(network, tmp_path / "g.safetensors")
    plain = restore(tmp_path / "g.safetensors", images)
    assert plain.shape == images.shape and plain.dtype == np.uint8
    with torch.no_grad():
        expected = (network.eval()(torch.from_numpy(images) / 127.5 - 1) + 1) * 127.5
    assert np.abs(plain - expected.numpy()).max() < 0.51
    assert np.abs(restore(tmp_path / "g.safetensors", images[3:], batch=1).astype(int) - plain[3:]).max() <= 1
    before = torch.get_rng_state()
    modes = [restore(tmp_path / "g.safetensors", images, mode="train", seed=s) for s in (0, 0, 1)]
    assert torch.equal(torch.get_rng_state(), before)
    assert np.array_equal(modes[0], modes[1]) and not np.array_equal(modes[0], modes[2])
    assert not np.array_equal(modes[0], plain)
    assert np.array_equal(restore(tmp_path / "g.safetensors", images[:1], mode="train"), modes[0][:1])
    assert restore(tmp_path / "g.safetensors", images[:0]).shape == (0, 3, 48, 48)
    with pytest.raises(UsageError, match="unknown mode 'test'"):
        restore(tmp_path / "g.safetensors", images, mode="test")


def test_files_that_are_no_generator(tmp_path):
    with pytest.raises(DataMissing, match="No generator at.*fit_pix2pix"):
        restore(tmp_path / "none.safetensors", cells())
    save_file({"head.weight": torch.zeros(2)}, tmp_path / "head.safetensors")
    with pytest.raises(UsageError, match="expected the weights of a Pix2Pix generator.*head.weight"):
        load_generator(tmp_path / "head.safetensors")


@pytest.mark.parametrize("name", BASELINES)
def test_baselines_keep_shape_and_input_and_flat_images(name):
    image = np.random.default_rng(0).integers(0, 256, (33, 47, 3)).astype(np.uint8)
    before = image.copy()
    restored = BASELINES[name](image)
    assert restored.shape == image.shape and restored.dtype == np.uint8 and restored is not image
    assert np.array_equal(image, before)
    flat = np.full((20, 21, 3), (200, 60, 130), np.uint8)
    assert np.abs(BASELINES[name](flat).astype(int) - flat).max() <= 1  # and no channel takes another's place
    view = cells()[0].transpose(1, 2, 0)
    assert BASELINES[name](view).shape == view.shape


@pytest.mark.parametrize("name", [name for name in BASELINES if name != "none"])
def test_baselines_take_noise_away(name):
    images = cells()
    damaged = noisy(images, "gaussian")
    before, after = (summary(evaluate(x, images))["cell_psnr"] for x in (damaged, restore_with(name, damaged)))
    assert after > before + 1


def test_a_median_takes_salt_and_pepper_away_and_nothing_does_nothing():
    images = cells()
    damaged = noisy(images, "salt_and_pepper")
    assert np.array_equal(restore_with("none", damaged), damaged)
    scores = {name: summary(evaluate(restore_with(name, damaged), images))["psnr"] for name in BASELINES}
    assert scores["median_3x3"] > scores["none"] + 5 and scores["median_3x3"] > scores["nl_means"] + 5


def test_scores_by_hand():
    pristine = np.full((48, 48, 3), 255, np.uint8)
    pristine[16:32, 16:32] = 100
    restored = pristine.copy()
    restored[20:24, 20:24] += 10
    scores = compare(restored, pristine)
    assert scores["psnr"] == pytest.approx(10 * np.log10(255**2 / (100 * 16 / 48**2)))
    assert scores["cell_psnr"] == pytest.approx(10 * np.log10(255**2 / (100 * 16 / 16**2)))
    assert scores["cell_ssim"] < scores["ssim"] < 1
    other = np.zeros((48, 48), bool)
    other[40:] = True
    assert compare(restored, pristine, other)["cell_psnr"] == np.inf
    same = compare(pristine, pristine)
    assert same["psnr"] == same["cell_psnr"] == np.inf and same["ssim"] == same["cell_ssim"] == 1


def test_ssim_follows_wang_by_loops():
    """One window in the middle of a grey image, the weights and constants of the paper written out."""
    rng = np.random.default_rng(0)
    a = rng.integers(0, 256, (11, 11)).astype(np.uint8)
    b = np.clip(a + rng.normal(0, 20, a.shape), 0, 255).astype(np.uint8)
    y, x = np.mgrid[-5:6, -5:6]
    w = np.exp(-(x**2 + y**2) / (2 * 1.5**2))
    w /= w.sum()
    ma, mb = (w * a).sum(), (w * b).sum()
    va, vb, cov = (w * (a - ma) ** 2).sum(), (w * (b - mb) ** 2).sum(), (w * (a - ma) * (b - mb)).sum()
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    expected = (2 * ma * mb + c1) * (2 * cov + c2) / ((ma**2 + mb**2 + c1) * (va + vb + c2))
    middle = np.zeros((11, 11), bool)
    middle[5, 5] = True
    found = compare(np.repeat(b[..., None], 3, 2), np.repeat(a[..., None], 3, 2), middle)
    assert found["cell_ssim"] == pytest.approx(expected, rel=1e-6) == found["ssim"]


def test_means_leave_out_what_has_no_value_and_count_it():
    white = np.full((1, 3, SIZE, SIZE), 255, np.uint8)
    images = np.concatenate([cells()[:3], white])
    restored = noisy(images)
    restored[0] = images[0]
    frame = evaluate(restored, images)
    assert list(frame) == list(COLUMNS) and len(frame) == 4
    assert np.isnan(frame["cell_psnr"][3]) and np.isinf(frame["psnr"][[0, 3]]).all()
    found = summary(frame)
    assert (found["images"], found["identical"]) == (4, 2)
    assert found["psnr"] == pytest.approx(frame["psnr"][1:3].mean())
    assert found["cell_ssim"] == pytest.approx(frame["cell_ssim"][:3].mean())
    cell = np.zeros((4, SIZE, SIZE), bool)
    assert np.isnan(summary(evaluate(restored, images, cell))["cell_psnr"])


def test_images_that_are_no_twins_are_refused():
    images = cells()
    with pytest.raises(ValueError, match="two uint8 images of one shape"):
        compare(images[0].transpose(1, 2, 0), images[0].transpose(1, 2, 0)[:-1])
    with pytest.raises(ValueError):
        evaluate(images[:3], images[:4])


def test_intervals_draw_whole_patients_and_pair_each_image_with_itself():
    rng = np.random.default_rng(3)
    groups = np.repeat(["a", "b", "c", "d"], [5, 9, 2, 8])
    before = pd.DataFrame(rng.normal(20, 3, (24, 4)), columns=list(COLUMNS))
    after = before + 2 + rng.normal(0, 0.1, (24, 4))
    after.loc[4, "psnr"] = np.inf  # equal to its twin: in no mean
    found = intervals(after, before, groups, draws=500, seed=1)
    counts = np.random.default_rng(1).multinomial(4, np.full(4, 0.25), size=500)
    means = []
    for draw in counts:
        values = [after["psnr"][i] for name, times in zip("abcd", draw, strict=True) for _ in range(times)
                  for i in np.flatnonzero(groups == name) if i != 4]  # fmt: skip
        means.append(np.mean(values) if values else np.nan)
    assert found["psnr"] == pytest.approx(list(np.nanquantile(means, [0.025, 0.975])))
    low, high = found["psnr_gain"]
    assert 1.8 < low < high < 2.2 and high - low < found["psnr"][1] - found["psnr"][0]


def test_intervals_resample_images_where_no_patient_is_known():
    rng = np.random.default_rng(0)
    before = pd.DataFrame(rng.normal(20, 3, (30, 4)), columns=list(COLUMNS))
    low, high = intervals(before, before, np.array([""] * 30))["cell_psnr"]
    assert low < before["cell_psnr"].mean() < high
    nothing = before.assign(cell_psnr=np.nan)
    assert np.isnan(intervals(nothing, before, np.array([""] * 30))["cell_psnr"]).all()
