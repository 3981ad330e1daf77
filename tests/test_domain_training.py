"""The loop over domains: it learns, resumes bit for bit after a kill, selects weights as said, draws as promised."""

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

from wbcrepro import checkpoints, domain_training
from wbcrepro.backbones import TINY, Classifier, build_backbone
from wbcrepro.domain_training import DomainTraining, draw_rows, embed_domains, fit_domains, predict_domains
from wbcrepro.domains import make_algorithm
from wbcrepro.domains.swad import LossValley
from wbcrepro.errors import UsageError, WbcreproError
from wbcrepro.training import load_weights

DOMAINS, CLASSES, EACH = 3, 3, 40
TRAIN = [np.arange(d * EACH, d * EACH + 30) for d in range(DOMAINS)]
VAL = [np.arange(d * EACH + 30, d * EACH + EACH) for d in range(DOMAINS)]
FAST = DomainTraining(steps=13, checkpoint_every=4, batch_per_domain=6, swad=(2, 2, 0.3), seed=7)
FILES = ("last.safetensors", "best.safetensors", "swad.safetensors")


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def dataset() -> tuple[np.ndarray, np.ndarray]:
    """Noise whose brightness tells the class (7 : 2 : 1) and whose blue tells the domain."""
    rng = np.random.default_rng(0)
    labels = np.tile([0, 0, 1, 0, 0, 2, 0, 1, 0, 0], DOMAINS * EACH // 10)
    images = rng.integers(0, 60, (DOMAINS * EACH, 3, 32, 32)) + 80 * labels[:, None, None, None]
    images[:, 2] += 10 * np.repeat(np.arange(DOMAINS), EACH)[:, None, None]
    return images.astype(np.uint8), labels


def counts() -> torch.Tensor:
    labels = dataset()[1]
    return torch.from_numpy(np.stack([np.bincount(labels[rows], minlength=CLASSES) for rows in TRAIN]))


def algorithm(name: str = "erm", **settings):
    backbone, info = build_backbone(TINY, "random")
    torch.manual_seed(0)
    head = torch.nn.Sequential(torch.nn.Dropout(0.2), torch.nn.Linear(info.dim, CLASSES))  # the generator matters
    return make_algorithm(name, Classifier(backbone, head, info), counts(), **{"lr": 3e-3, **settings})


def run(folder, cfg=FAST, model=None, **options):
    model = model or algorithm()
    return model, fit_domains(model, *dataset(), TRAIN, VAL, cfg, folder=folder, **{"progress": False, **options})


def weights(folder) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in FILES}


def test_learns_and_writes_what_it_promises(tmp_path):
    _, result = run(tmp_path, replace(FAST, steps=41, checkpoint_every=10))
    assert sorted(os.listdir(tmp_path)) == sorted([*FILES, "checkpoint.pt", "log.jsonl"])
    assert [line["step"] for line in result.history] == [0, 10, 20, 30, 40] and result.steps_run == 41
    assert [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()] == result.history
    assert result.history[-1]["train"]["loss"] < 0.7 * result.history[0]["train"]["loss"]
    assert max(line["val_accuracy"] for line in result.history) > 0.9
    assert {name: path.name for name, path in result.selections.items()} == {
        "last": "last.safetensors", "best": "best.safetensors", "swad": "swad.safetensors",
    }  # fmt: skip


def scores(model, images, labels) -> tuple[list[float], list[float]]:
    """Accuracy and cross-entropy of each source's validation images, by way of probabilities."""
    found = [(predict_domains(model, images, rows), labels[rows]) for rows in VAL]
    accuracy = [float((p.argmax(1) == y).mean()) for p, y in found]
    return accuracy, [float(-np.log(p[np.arange(len(y)), y]).mean()) for p, y in found]


def test_selections_are_what_the_history_says(tmp_path):
    images, labels = dataset()
    model, result = run(tmp_path, replace(FAST, steps=29))
    rule = {"last": result.history[-1], "best": max(result.history, key=lambda line: line["val_accuracy"])}
    for name, line in rule.items():
        load_weights(model.network, result.selections[name])
        accuracy, loss = scores(model, images, labels)
        assert accuracy == pytest.approx(line["domains"]["val_accuracy"])
        assert loss == pytest.approx(line["domains"]["val_loss"], rel=1e-3)
        assert np.mean(accuracy) == pytest.approx(line["val_accuracy"])
        assert np.mean(loss) == pytest.approx(line["val_loss"], rel=1e-3)


@pytest.mark.parametrize("late", [0, 5])
def test_swad_weights_are_those_of_the_valley(tmp_path, monkeypatch, late):
    """Replayed from the weights after every step and the losses in the history."""
    after, cfg = [], replace(FAST, steps=25, swad=(1, 2, 5.0), swad_from_step=late)
    model = algorithm()
    update = model.update

    def spy(minibatches):
        values = update(minibatches)
        after.append({name: value.clone() for name, value in model.network.named_parameters()})
        return values

    monkeypatch.setattr(model, "update", spy)
    _, result = run(tmp_path, cfg, model)
    valley, losses = LossValley(*cfg.swad), {line["step"]: line["val_loss"] for line in result.history}
    for step, state in enumerate(after):
        valley.add(state, step)
        if step in losses:
            valley.checkpoint(losses[step] if step >= late else None)
    final, stored = valley.final(), load_file(result.selections["swad"])
    assert final.count > 2 and result.swad["segments"] == final.count
    assert (result.swad["first_step"], result.swad["last_step"]) == (final.start, final.end)
    assert result.swad["start_step"] == {0: 0, 5: 8}[late] and not result.swad["dead"]
    for name, value in final.weights.items():
        torch.testing.assert_close(stored[name], value, rtol=1e-5, atol=1e-7)
    last = load_file(result.selections["last"])
    for name, value in model.network.state_dict().items():
        assert torch.equal(value, last[name]), "the network must end with the last weights"
    assert not torch.equal(stored["head.1.weight"], last["head.1.weight"])


def test_stops_when_the_valley_is_left(tmp_path, monkeypatch):
    losses = iter([3.0, 1.0, 1.0, 1.0, 9.0, 9.0, 9.0, 9.0])
    real = domain_training._validate
    monkeypatch.setattr(domain_training, "_validate", lambda *a: real(*a) | {"val_loss": next(losses)})
    cfg = replace(FAST, steps=9, checkpoint_every=1, stop_when_dead=True)
    _, result = run(tmp_path, cfg)
    assert result.swad["dead"] and result.steps_run == len(result.history) == 6
    again = run(tmp_path, cfg)[1]
    assert again == result
    losses = iter([3.0, 1.0, 1.0, 1.0, 9.0, 9.0, 9.0, 9.0, 9.0])
    assert run(tmp_path / "on", replace(cfg, stop_when_dead=False))[1].steps_run == 9
    assert weights(tmp_path)["swad.safetensors"] == weights(tmp_path / "on")["swad.safetensors"]


def test_same_seed_same_bits_and_the_callers_generator_is_left_alone(tmp_path):
    model = algorithm("mixup")
    torch.manual_seed(11)
    before = torch.get_rng_state()
    run(tmp_path / "a", model=model)
    assert torch.equal(torch.get_rng_state(), before)
    run(tmp_path / "b", model=algorithm("mixup"))
    run(tmp_path / "c", replace(FAST, seed=8), algorithm("mixup"))
    a, b, c = (weights(tmp_path / name) for name in "abc")
    assert a == b and all(a[name] != c[name] for name in a)


def test_a_finished_run_is_not_run_again(tmp_path, monkeypatch):
    model, first = run(tmp_path)
    files = weights(tmp_path)
    monkeypatch.setattr(domain_training, "_train", lambda *args: pytest.fail("trained again"))
    again, second = run(tmp_path)
    assert second == first and weights(tmp_path) == files
    for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name, settings", [
    ("erm", {}), ("mixup", {}), ("dann", {}), ("boda", {"start": 3, "refresh": 3}),
])  # fmt: skip
def test_interrupted_between_checkpoints(tmp_path, monkeypatch, name, settings):
    run(tmp_path / "whole", model=algorithm(name, **settings))
    for stop in (0, 6, 12):
        model = algorithm(name, **settings)
        update = model.update

        def interrupted(minibatches, model=model, update=update, stop=stop):
            if int(model.step) == stop:
                raise KeyboardInterrupt
            return update(minibatches)

        monkeypatch.setattr(model, "update", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "cut", model=model)
    _, result = run(tmp_path / "cut", model=algorithm(name, **settings))
    assert weights(tmp_path / "cut") == weights(tmp_path / "whole")
    assert [line["step"] for line in result.history] == [0, 4, 8, 12]


def test_a_truncated_checkpoint_falls_back_to_the_one_before(tmp_path, monkeypatch):
    run(tmp_path / "whole")
    model, starts = algorithm(), []
    real, update = domain_training._next_checkpoint, model.update
    monkeypatch.setattr(model, "update", lambda batches: _stop() if int(model.step) == 10 else update(batches))
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", model=model)
    current = tmp_path / "cut" / checkpoints.CURRENT
    current.write_bytes(current.read_bytes()[: current.stat().st_size // 2])
    monkeypatch.setattr(domain_training, "_next_checkpoint", lambda *a: (starts.append(a[4]), real(*a))[1])
    run(tmp_path / "cut")
    assert starts == [5, 9] and weights(tmp_path / "cut") == weights(tmp_path / "whole")


def _stop():
    raise KeyboardInterrupt


@pytest.mark.parametrize("killed_in", ["save_checkpoint", "save_weights"])
def test_best_weights_are_of_a_line_of_the_history_also_where_steps_do_not_repeat(tmp_path, monkeypatch, killed_in):
    """Killed as step 4, the best, is written; on a GPU it may be worse when it is run again."""
    validate, write, seen = domain_training._validate, getattr(domain_training, killed_in), {}
    scores = iter([0.5, 0.9, 0.3, 0.1, 0.2])

    def scored(model, sources):
        score = next(scores)
        seen[score] = {name: value.clone() for name, value in model.network.state_dict().items()}
        return validate(model, sources) | {"val_accuracy": score}

    monkeypatch.setattr(domain_training, "_validate", scored)
    monkeypatch.setattr(domain_training, killed_in, lambda *a: _stop() if len(seen) == 2 else write(*a))
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path)
    monkeypatch.setattr(domain_training, killed_in, write)
    _, result = run(tmp_path)
    best = max(line["val_accuracy"] for line in result.history)
    assert best == {"save_checkpoint": 0.5, "save_weights": 0.9}[killed_in]
    stored = load_file(result.selections["best"])
    assert all(torch.equal(stored[name], value) for name, value in seen[best].items())


def test_a_finished_run_keeps_no_queue_of_weights(tmp_path):
    run(tmp_path)
    state = torch.load(tmp_path / checkpoints.CURRENT, weights_only=True)
    assert state["valley"]["closed"] and state["valley"]["queue"] == []


SCRIPT = """
import os, sys, pathlib
os.environ["OMP_NUM_THREADS"] = "1"
sys.path.insert(0, sys.argv[2])
import torch
torch.set_num_threads(1)
import test_domain_training as t
t.run(pathlib.Path(sys.argv[1]), t.LONG, t.algorithm("mixup"))
"""
LONG = replace(FAST, steps=41, checkpoint_every=3)


def test_sigkill_at_any_moment_then_resume_is_bit_identical(tmp_path):
    run(tmp_path / "whole", LONG, algorithm("mixup"))
    here, kills, chance = os.path.dirname(os.path.abspath(__file__)), 0, random.Random(1)
    (tmp_path / "cut").mkdir()
    log = tmp_path / "cut" / "log.jsonl"
    for round_ in range(2):
        process = subprocess.Popen([sys.executable, "-c", SCRIPT, str(tmp_path / "cut"), here])
        deadline = time.time() + 120
        while time.time() < deadline and process.poll() is None:
            if log.is_file() and log.read_text().count("\n") > 2 + 4 * round_:
                time.sleep(chance.random() * 0.1)
                process.send_signal(signal.SIGKILL)
                kills += process.wait() == -signal.SIGKILL
                break
            time.sleep(0.001)
    assert kills == 2
    _, result = run(tmp_path / "cut", LONG, algorithm("mixup"))
    assert weights(tmp_path / "cut") == weights(tmp_path / "whole")
    assert [line["step"] for line in result.history] == [*range(0, 40, 3), 40]


def test_checkpoint_of_other_settings_is_refused(tmp_path):
    run(tmp_path)
    for cfg, model in ((replace(FAST, seed=1), algorithm()), (FAST, algorithm(lr=1e-4)), (FAST, algorithm("mixup"))):
        with pytest.raises(UsageError, match="belongs to other settings"):
            run(tmp_path, cfg, model)
    with pytest.raises(UsageError, match="belongs to other settings"):
        fit_domains(algorithm(), *dataset(), TRAIN, VAL[::-1], FAST, folder=tmp_path, progress=False)


def recorded(monkeypatch, folder, cfg, model) -> list:
    """The minibatches of every step."""
    seen, update = [], model.update
    monkeypatch.setattr(model, "update", lambda minibatches: (seen.append(minibatches), update(minibatches))[1])
    run(folder, cfg, model)
    return seen


def test_minibatches(tmp_path, monkeypatch):
    """One a domain and step, of its training rows, drawn by hash and augmented as the algorithm wants it."""
    images, labels = dataset()
    plain = recorded(monkeypatch, tmp_path / "plain", replace(FAST, augment=False), algorithm())
    assert len(plain) == FAST.steps
    for step, minibatches in enumerate(plain):
        assert len(minibatches) == DOMAINS
        for domain, (x, y) in enumerate(minibatches):
            rows = draw_rows([TRAIN[domain]], 6, seed=FAST.seed, domain=domain, step=step)
            assert x.dtype == torch.float32 and y.dtype == torch.int64
            torch.testing.assert_close(x, torch.from_numpy(images[rows]) / 255)
            assert torch.equal(y, torch.from_numpy(labels[rows]))
    for kind in ("domainbed", "geometric"):
        model = algorithm()
        model.augmentation = kind
        seen = recorded(monkeypatch, tmp_path / kind, FAST, model)
        again = recorded(monkeypatch, tmp_path / f"{kind} again", FAST, algorithm())
        assert torch.equal(seen[3][1][0], again[3][1][0]) == (kind == "domainbed")
        for (x, y), (_, expected) in zip(seen[3], plain[3], strict=True):
            assert torch.equal(y, expected) and 0 <= x.min() and x.max() <= 1 + 1e-6
        assert (seen[3][0][0] - plain[3][0][0]).abs().mean() > 0.02


def test_copies_of_an_image_in_a_minibatch_differ():
    images, labels = dataset()
    sources = domain_training.Sources(images, labels, [[3], [50]], [[9], [59]], FAST, "domainbed", torch.device("cpu"))
    for x, y in sources.minibatches(0):
        assert len(set(y.tolist())) == 1 and len({image.numpy().tobytes() for image in x}) == len(x) == 6


def test_draws_are_uniform_and_independent():
    rows = np.arange(100, 120)
    drawn = np.array([draw_rows([rows], 32, seed=0, domain=0, step=step) for step in range(500)])
    assert set(drawn.ravel()) == set(rows)
    frequency = np.bincount(drawn.ravel() - 100) / drawn.size
    assert np.abs(frequency - 1 / 20).max() < 5 * np.sqrt(0.05 * 0.95 / drawn.size)
    other = np.array([draw_rows([rows], 32, seed=0, domain=1, step=step) for step in range(500)])
    assert (drawn == other).mean() == pytest.approx(1 / 20, abs=0.01)
    assert (drawn[1:] == drawn[:-1]).mean() == pytest.approx(1 / 20, abs=0.01)


def test_class_balanced_draws(tmp_path, monkeypatch):
    seen = recorded(monkeypatch, tmp_path, replace(FAST, sampling="class_balanced", steps=60), algorithm())
    labels = torch.stack([y for minibatches in seen for _, y in minibatches])
    frequency = torch.bincount(labels.flatten(), minlength=CLASSES) / labels.numel()
    assert (frequency - 1 / 3).abs().max() < 0.06
    groups = [np.array([5, 6, 7]), np.array([9])]
    drawn = np.concatenate([draw_rows(groups, 50, seed=0, domain=0, step=step) for step in range(100)])
    np.testing.assert_allclose(np.bincount(drawn)[[5, 6, 7, 9]] / len(drawn), [1 / 6, 1 / 6, 1 / 6, 1 / 2], atol=0.02)


def test_passes_go_once_over_the_training_set_as_it_is_augmented(tmp_path, monkeypatch):
    images, labels = dataset()
    model, steps = algorithm(), []

    def before_step(step, passes):
        steps.append(step)
        if step in (1, 2):
            first, second = list(passes()), list(passes())
            for (d, x, y), (_, again, _) in zip(first, second, strict=True):
                assert torch.equal(x, again) and len(y) == 30
                assert torch.equal(y, torch.from_numpy(labels[TRAIN[d]]))
                assert (x - torch.from_numpy(images[TRAIN[d]]) / 255).abs().mean() > 0.02
            assert [d for d, _, _ in first] == [0, 1, 2]

    monkeypatch.setattr(model, "before_step", before_step)
    run(tmp_path, model=model)
    assert steps == list(range(FAST.steps))


def test_two_steps_replayed_in_plain_pytorch(tmp_path):
    images, labels = dataset()
    plain = algorithm().network.eval()
    optimiser = torch.optim.Adam(plain.parameters(), lr=3e-3)
    for step in range(2):
        rows = np.concatenate([draw_rows([TRAIN[d]], 6, seed=7, domain=d, step=step) for d in range(DOMAINS)])
        optimiser.zero_grad()
        F.cross_entropy(plain(torch.from_numpy(images[rows])), torch.from_numpy(labels[rows])).backward()
        optimiser.step()
    model = algorithm()
    model.network.head[0].p = 0.0
    run(tmp_path, replace(FAST, steps=2, augment=False), model)
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(model.network.state_dict()[name], value, rtol=1e-3, atol=1e-4)


def test_batch_norms_stay_frozen_from_the_first_step(tmp_path):
    model = algorithm()
    before = {name: value.clone() for name, value in model.network.named_buffers()}
    run(tmp_path, model=model)
    assert before and all(torch.equal(value, before[name]) for name, value in model.network.named_buffers())


def test_divergence_is_an_error_with_advice(tmp_path, monkeypatch):
    model = algorithm()
    with torch.no_grad():
        model.network.head[1].weight.fill_(float("inf"))
    with pytest.raises(WbcreproError, match="(?i)next step: a lower learning rate"):
        run(tmp_path / "loss", FAST, model)
    model = algorithm()
    monkeypatch.setattr(model, "update", lambda minibatches: {"loss": 1.0, "penalty": float("nan")})
    with pytest.raises(WbcreproError, match="Step 0 gave .*penalty.*Next step: a lower learning rate"):
        run(tmp_path / "term", FAST, model)
    model = algorithm()
    monkeypatch.setattr(model, "predict", lambda x: torch.full((len(x), CLASSES), float("nan")))
    monkeypatch.setattr(model, "update", lambda minibatches: {"loss": 1.0})
    with pytest.raises(WbcreproError, match="validation images is .*nan.*Next step"):
        run(tmp_path / "val", FAST, model)
    assert not list(tmp_path.rglob("checkpoint.pt"))


@pytest.mark.parametrize("change, message", [
    ({"sampling": "even"}, "unknown sampling 'even'; expected one of natural, class_balanced"),
    ({"steps": 0}, "cannot be run"),
    ({"swad_from_step": 13}, "before SWAD begins"),
])  # fmt: skip
def test_schedules_that_cannot_be(tmp_path, change, message):
    with pytest.raises(UsageError, match=message):
        run(tmp_path, replace(FAST, **change))


def test_a_source_without_images_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"needs training and validation images; got .*\(30, 0\)"):
        fit_domains(algorithm(), *dataset(), TRAIN, [*VAL[:2], VAL[2][:0]], FAST, folder=tmp_path, progress=False)


def test_progress_bar_counts_steps(tmp_path, capsys):
    run(tmp_path, progress=True)
    assert "13/13" in capsys.readouterr().err


def test_predict_and_embed_take_algorithms_and_networks():
    images, _ = dataset()
    model = algorithm().eval()
    rows = np.array([5, 2, 70])
    x = torch.from_numpy(images[rows]) / 255
    with torch.no_grad():
        logits, z = model.predict(x), model.features(x)
    for given in (model, model.network):
        probabilities, features = predict_domains(given, images, rows), embed_domains(given, images, rows)
        assert probabilities.dtype == features.dtype == np.float32
        np.testing.assert_allclose(probabilities, logits.softmax(1), atol=1e-5)
        np.testing.assert_allclose(features, z, rtol=1e-3, atol=1e-4)


def test_reads_a_memory_map(tmp_path):
    images, labels = dataset()
    np.save(tmp_path / "images.npy", images)
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
    fit_domains(algorithm(), mapped, labels, TRAIN, VAL, FAST, folder=tmp_path / "a", progress=False)
    run(tmp_path / "b")
    assert weights(tmp_path / "a") == weights(tmp_path / "b")


if torch.cuda.is_available():  # not a skip: machines without a GPU have nothing to test here

    @pytest.mark.parametrize("amp", [False, True])
    def test_on_a_gpu(tmp_path, amp):
        cfg = replace(FAST, steps=41, checkpoint_every=10)
        model, result = run(tmp_path, cfg, algorithm(amp=amp), device="cuda")
        assert max(line["val_accuracy"] for line in result.history) > 0.9
        again = run(tmp_path, cfg, algorithm(amp=amp), device="cuda")[1]
        assert again == result
        images, _ = dataset()
        there = predict_domains(model, images, VAL[0], device="cuda")
        np.testing.assert_allclose(there, predict_domains(model, images, VAL[0]), atol=0.02)
