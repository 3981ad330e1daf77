"""The loop: it learns, resumes bit for bit after a kill, keeps frozen parts frozen, and reads what it wrote."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from wbcrepro import augment, checkpoints, training
from wbcrepro.backbones import TINY, Classifier, build_backbone
from wbcrepro.errors import UsageError, WbcreproError
from wbcrepro.training import TrainConfig, batches, embed, fit, load_weights, predict

CLASSES, COUNT = 3, 90
TRAIN, VAL = np.arange(60), np.arange(60, COUNT)
FAST = TrainConfig(epochs=3, batch_size=16, lr=3e-3, drop_last=False, seed=7)


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def dataset() -> tuple[np.ndarray, np.ndarray]:
    """Noise whose brightness tells the class, long-tailed: 5 : 3 : 1."""
    rng = np.random.default_rng(0)
    labels = np.array([0, 0, 1, 0, 1, 2, 0, 1, 0] * (COUNT // 9))
    images = rng.integers(0, 90, (COUNT, 3, 32, 32)) + 80 * labels[:, None, None, None]
    return images.astype(np.uint8), labels


def network(drop: float = 0.0) -> Classifier:
    backbone, info = build_backbone(TINY, "random")
    torch.manual_seed(0)
    return Classifier(backbone, torch.nn.Sequential(torch.nn.Dropout(drop), torch.nn.Linear(info.dim, CLASSES)), info)


def run(folder, cfg=FAST, model=None):
    images, labels = dataset()
    model = model or network(drop=0.2)  # dropout makes the global generator matter
    return model, fit(model, images, labels, TRAIN, VAL, cfg, classes=CLASSES, folder=folder, progress=False)


def weights(folder) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in ("best.safetensors", "last.safetensors")}


def test_learns_and_writes_what_it_promises(tmp_path):
    images, labels = dataset()
    model, result = run(tmp_path, replace(FAST, epochs=6))
    assert result.epochs_run == 6 and len(result.history) == 6
    assert result.history[-1]["loss"] < 0.7 * result.history[0]["loss"]
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert lines == result.history
    assert [line["epoch"] for line in lines] == list(range(6))
    best = max(lines, key=lambda line: line["macro_f1"])
    assert result.best_epoch == best["epoch"] and best["macro_f1"] > 0.9
    load_weights(model, result.best_state)
    probabilities = predict(model, images, VAL)
    assert probabilities.shape == (len(VAL), 1, CLASSES) and probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities.sum(-1), 1, atol=1e-5)
    assert (probabilities[:, 0].argmax(1) == labels[VAL]).mean() == pytest.approx(best["accuracy"])
    assert sorted(os.listdir(tmp_path)) == ["best.safetensors", "checkpoint.previous.pt", "checkpoint.pt",
                                            "last.safetensors", "log.jsonl"]


def test_cosine_schedule_per_epoch(tmp_path):
    _, result = run(tmp_path, replace(FAST, epochs=4, patience=None))
    expected = [FAST.lr * (1 + np.cos(np.pi * epoch / 4)) / 2 for epoch in range(4)]
    np.testing.assert_allclose([line["lr"] for line in result.history], expected, rtol=1e-6)


def test_early_stopping(tmp_path, monkeypatch):
    scores = iter([0.1, 0.5, 0.5, 0.4, 0.3, 0.9])
    real = training.metrics.scores
    monkeypatch.setattr(training.metrics, "scores", lambda *a: real(*a) | {"macro_f1": next(scores)})
    _, result = run(tmp_path, replace(FAST, epochs=6, patience=3))
    assert (result.best_epoch, result.epochs_run) == (1, 5)  # an equal score is no improvement


def test_same_seed_same_bits_and_the_callers_generator_is_left_alone(tmp_path):
    torch.manual_seed(11)
    before = torch.get_rng_state()
    run(tmp_path / "a", model=(model := network(0.2)))
    torch.manual_seed(99)
    run(tmp_path / "b")
    run(tmp_path / "c", replace(FAST, seed=8))
    assert weights(tmp_path / "a") == weights(tmp_path / "b") != weights(tmp_path / "c")
    torch.set_rng_state(before)
    run(tmp_path / "d", model=model)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_finished_run_is_not_run_again(tmp_path, monkeypatch):
    model, first = run(tmp_path)
    monkeypatch.setattr(training, "_train_epoch", lambda *args: pytest.fail("trained again"))
    again_model, again = run(tmp_path)
    assert again == first
    for a, b in zip(model.state_dict().values(), again_model.state_dict().values(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("kill_at", [0, 1, 2])
def test_interrupted_inside_an_epoch(tmp_path, monkeypatch, kill_at):
    run(tmp_path / "whole")
    real = training._validate
    calls = iter(range(99))

    def interrupted(*args):
        if next(calls) == kill_at:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(training, "_validate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut")
    monkeypatch.undo()
    _, result = run(tmp_path / "cut")
    assert result.epochs_run == FAST.epochs and weights(tmp_path / "cut") == weights(tmp_path / "whole")


@pytest.mark.parametrize("damage", ["truncated", "empty", "gone", "both"])
def test_damaged_checkpoint_falls_back(tmp_path, damage, capsys):
    run(tmp_path / "cut", replace(FAST, epochs=4))
    whole = weights(tmp_path / "cut")
    current, previous = tmp_path / "cut" / "checkpoint.pt", tmp_path / "cut" / "checkpoint.previous.pt"
    assert len(torch.load(previous, weights_only=True)["history"]) == 3
    if damage == "gone":
        current.unlink()
    else:
        current.write_bytes(current.read_bytes()[: 0 if damage == "empty" else current.stat().st_size // 2])
    if damage == "both":
        previous.write_bytes(b"not a checkpoint")
    (tmp_path / "cut" / "last.safetensors").unlink()
    _, result = run(tmp_path / "cut", replace(FAST, epochs=4))
    assert result.epochs_run == 4 and weights(tmp_path / "cut") == whole


def test_a_good_checkpoint_survives_a_damaged_newer_one(tmp_path, monkeypatch):
    """After a fallback the damaged file must not take the place of the good one before it."""
    run(tmp_path, replace(FAST, epochs=4))
    current = tmp_path / "checkpoint.pt"
    current.write_bytes(current.read_bytes()[:1000])
    monkeypatch.setattr(training, "_validate", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, replace(FAST, epochs=4))
    monkeypatch.undo()
    monkeypatch.setattr(checkpoints.os, "replace", _stop_after(checkpoints.os.replace, "checkpoint.pt"))
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, replace(FAST, epochs=4))
    readable = []
    for name in ("checkpoint.pt", "checkpoint.previous.pt"):
        try:
            readable.append(torch.load(tmp_path / name, weights_only=True))
        except Exception:
            continue
    assert readable


def _stop_after(real, name):
    """os.replace that dies just before the new checkpoint takes its name."""
    def replace_(source, target):
        if target.name == name:
            raise KeyboardInterrupt
        real(source, target)
    return replace_


@pytest.mark.parametrize("killed_in", ["save_checkpoint", "save_weights"])
def test_best_weights_are_of_an_epoch_in_the_history_also_where_epochs_do_not_repeat(tmp_path, monkeypatch, killed_in):
    """Killed as epoch 1, the best, is written; on a GPU it may be worse when it is run again."""
    validate, write, seen = training._validate, getattr(checkpoints, killed_in), {}
    scores = iter([0.5, 0.9, 0.3, 0.1])

    def scored(model, *rest):
        score = next(scores)
        seen[score] = {name: value.clone() for name, value in model.state_dict().items()}
        return validate(model, *rest) | {"macro_f1": score}

    def killed(*arguments):
        if len(seen) == 2:
            raise KeyboardInterrupt
        write(*arguments)

    monkeypatch.setattr(training, "_validate", scored)
    monkeypatch.setattr(training, killed_in, killed)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path)
    monkeypatch.setattr(training, killed_in, write)
    _, result = run(tmp_path)
    best = result.history[result.best_epoch]["macro_f1"]
    assert best == max(line["macro_f1"] for line in result.history)
    stored = load_file(result.best_state)
    assert all(torch.equal(stored[name], value) for name, value in seen[best].items())


def test_checkpoint_of_other_settings_is_refused(tmp_path):
    run(tmp_path)
    with pytest.raises(UsageError, match="belongs to other settings"):
        run(tmp_path, replace(FAST, lr=1e-3))
    images, labels = dataset()
    with pytest.raises(UsageError, match="belongs to other settings"):
        fit(network(), images, labels, TRAIN[1:], VAL, FAST, classes=CLASSES, folder=tmp_path, progress=False)


SCRIPT = """
import os, sys, pathlib
os.environ["OMP_NUM_THREADS"] = "1"
sys.path.insert(0, sys.argv[2])
import torch
torch.set_num_threads(1)
import test_training as t
t.run(pathlib.Path(sys.argv[1]), t.replace(t.FAST, epochs=8, patience=None))
"""


def test_sigkill_at_any_moment_then_resume_is_bit_identical(tmp_path):
    cfg = replace(FAST, epochs=8, patience=None)
    run(tmp_path / "whole", cfg)
    here, kills, chance = os.path.dirname(os.path.abspath(__file__)), 0, random.Random(1)
    (tmp_path / "cut").mkdir()
    for round_ in range(2):
        process = subprocess.Popen([sys.executable, "-c", SCRIPT, str(tmp_path / "cut"), here])
        log, deadline = tmp_path / "cut" / "log.jsonl", time.time() + 120
        while time.time() < deadline and process.poll() is None:
            if log.is_file() and log.read_text().count("\n") > 2 * round_:
                time.sleep(chance.random() * 0.1)
                process.send_signal(signal.SIGKILL)
                kills += process.wait() == -signal.SIGKILL
                break
            time.sleep(0.001)
    assert kills == 2
    _, result = run(tmp_path / "cut", cfg)
    assert weights(tmp_path / "cut") == weights(tmp_path / "whole")
    assert [line["epoch"] for line in result.history] == list(range(8))
    logged = [json.loads(line)["epoch"] for line in (tmp_path / "cut" / "log.jsonl").read_text().splitlines()]
    assert logged == list(range(8))


HYBRID = replace(FAST, sampler="class_balanced", loss="hybrid", loss_options={"variant": "p_alpha"},
                 freeze_backbone=True, lr=1e-2)


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_frozen_backbone(tmp_path, mode):
    """Parameters and buffers bit-identical in "eval"; in "train" (the released code) only the buffers drift."""
    model = network()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    run(tmp_path, replace(HYBRID, backbone_mode=mode), model)
    after = model.state_dict()
    buffers = {f"backbone.{name}" for name, _ in model.backbone.named_buffers()}
    for name in (n for n in before if n.startswith("backbone.")):
        if name not in buffers or mode == "eval":
            assert torch.equal(before[name], after[name]), name
    drifted = [name for name in buffers if not torch.equal(before[name], after[name])]
    assert bool(drifted) == (mode == "train")
    assert not torch.equal(before["head.1.weight"], after["head.1.weight"])


def test_a_network_frozen_once_can_be_trained_again(tmp_path):
    model = network()
    run(tmp_path / "frozen", HYBRID, model)
    before = {name: value.clone() for name, value in model.backbone.named_parameters()}
    run(tmp_path / "whole", FAST, model)
    assert all(not torch.equal(before[name], value) for name, value in model.backbone.named_parameters())


def test_class_balanced_epochs_show_rare_images_in_many_versions(tmp_path, monkeypatch):
    seen = []
    real = augment.augment

    def spy(images, kind, **keys):
        out = real(images, kind, **keys)
        seen.extend(zip(keys["index"].tolist(), [i.numpy().tobytes() for i in out], strict=True)
                    if "repeat" in keys else [])
        return out

    monkeypatch.setattr(training, "augment_batch", spy)
    run(tmp_path, replace(HYBRID, epochs=1))
    images, labels = dataset()
    rare = [pixels for index, pixels in seen if labels[index] == 2]
    assert len(rare) > 1.5 * (labels[TRAIN] == 2).sum()
    assert len(set(rare)) > 0.7 * len(rare)


def test_one_step_is_adamw_on_the_mean_loss_of_the_batch(tmp_path):
    """One epoch of one batch without augmentation, replayed in plain PyTorch; split in 3 passes it is the same step."""
    images, labels = dataset()
    cfg = replace(FAST, epochs=1, batch_size=len(TRAIN), augment="none", weight_decay=0.1, grad_clip=0.1,
                  freeze_backbone=True)  # with batch normalisation at rest, passes do not see each other
    plain = network()
    plain.eval()
    optimiser = torch.optim.AdamW(plain.head.parameters(), lr=cfg.lr, weight_decay=cfg.weight_decay)
    F.cross_entropy(plain(torch.from_numpy(images[TRAIN])), torch.from_numpy(labels[TRAIN])).backward()
    norm = torch.nn.utils.clip_grad_norm_(plain.head.parameters(), 0.1)
    optimiser.step()
    assert norm > 0.2
    for passes in (1, 3):
        model, result = run(tmp_path / str(passes), replace(cfg, accumulate=passes), network())
        torch.testing.assert_close(model.head[1].weight, plain.head[1].weight, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("n, size, drop, expected", [
    (10, 4, True, [4, 4]), (10, 4, False, [4, 4, 2]), (9, 4, False, [4, 4]), (3, 256, True, [3]), (8, 4, True, [4, 4]),
])  # fmt: skip
def test_last_batch(n, size, drop, expected):
    cut = batches(np.arange(n), TrainConfig(batch_size=size, drop_last=drop))
    assert [len(b) for b in cut] == expected


@pytest.mark.parametrize("loss", ["cross_entropy", "class_balanced", "focal", "hybrid", "balanced_softmax", "ldam"])
def test_every_loss_goes_through_the_loop(tmp_path, loss):
    _, result = run(tmp_path, replace(FAST, epochs=1, loss=loss))
    assert np.isfinite(result.history[0]["loss"])


def test_compiled_backbone(tmp_path, monkeypatch):
    """The switch compiles the backbone in place, so that names in the weights stay; eager backend: same bits."""
    real, compiled = torch.nn.Module.compile, []
    monkeypatch.setattr(torch.nn.Module, "compile",
                        lambda self: (compiled.append(self), real(self, backend="eager")))
    cfg = replace(FAST, epochs=1)
    run(tmp_path / "plain", cfg)
    model, _ = run(tmp_path / "compiled", replace(cfg, compile=True))
    assert compiled == [model.backbone]
    assert weights(tmp_path / "plain") == weights(tmp_path / "compiled")


def test_progress_bar_counts_steps(tmp_path, capsys):
    images, labels = dataset()
    fit(network(), images, labels, TRAIN, VAL, FAST, classes=CLASSES, folder=tmp_path, progress=True)
    assert "12/12" in capsys.readouterr().err  # 60 images in batches of 16, 3 epochs


def test_divergence_is_an_error_with_advice(tmp_path):
    model = network()
    with torch.no_grad():
        model.head[1].weight.fill_(float("inf"))
    with pytest.raises(WbcreproError, match="training loss of epoch 0 is nan.*lower learning rate"):
        run(tmp_path, FAST, model)
    assert not (tmp_path / "checkpoint.pt").exists()


def test_too_few_images(tmp_path):
    images, labels = dataset()
    with pytest.raises(UsageError, match="got 1 and 30"):
        fit(network(), images, labels, TRAIN[:1], VAL, FAST, classes=CLASSES, folder=tmp_path, progress=False)


def test_embed_and_predict_agree_with_the_model():
    images, labels = dataset()
    model = network().eval()
    rows = np.array([5, 2, 70])
    batch = torch.from_numpy(images[rows])
    with torch.no_grad():
        expected = model.embed(batch.flip(-1)).numpy()
        logits = model(batch)
    features = embed(model, images, rows, views=("identity", "hflip"))
    assert features.shape == (3, 2, model.info.dim) and features.dtype == np.float32
    np.testing.assert_allclose(features[:, 1], expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(predict(model, images, rows)[:, 0], logits.softmax(1).numpy(), atol=1e-5)
    assert not model.training


def test_augmented_passes_differ_and_can_be_had_again():
    images, _ = dataset()
    model = network()
    first = embed(model, images, np.arange(20), augment="randaugment", passes=3, seed=1)
    assert first.shape == (20, 3, model.info.dim)
    again = embed(model, images, np.arange(20), augment="randaugment", passes=3, seed=1, batch_size=20)
    np.testing.assert_array_equal(first, again)
    assert np.abs(first[:, 0] - first[:, 1]).max() > 0.01
    half = embed(model, images, np.arange(20), augment="randaugment", passes=3, seed=1, dtype=np.float16)
    np.testing.assert_array_equal(half, first.astype(np.float16))
    part = embed(model, images, np.arange(10, 20), augment="randaugment", passes=3, seed=1)
    np.testing.assert_allclose(part, first[10:], rtol=1e-4, atol=1e-5)


def test_reads_a_memory_map(tmp_path):
    images, labels = dataset()
    np.save(tmp_path / "images.npy", images)
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
    a = fit(network(), images, labels, TRAIN, VAL, FAST, classes=CLASSES, folder=tmp_path / "a", progress=False)
    b = fit(network(), mapped, labels, TRAIN, VAL, FAST, classes=CLASSES, folder=tmp_path / "b", progress=False)
    assert a.best_state.read_bytes() == b.best_state.read_bytes()


if torch.cuda.is_available():  # not a skip: machines without a GPU have nothing to test here

    def test_on_a_gpu(tmp_path):
        images, labels = dataset()
        model = network()
        result = fit(model, images, labels, TRAIN, VAL, replace(FAST, epochs=6), classes=CLASSES, folder=tmp_path,
                     device="cuda", progress=False)
        assert result.history[-1]["macro_f1"] > 0.9
        there = predict(model, images, VAL, device="cuda")
        np.testing.assert_allclose(there, predict(model, images, VAL, device="cpu"), atol=0.02)
