"""Training of the semantic head: what it learns, what it may see, and that it says the same twice."""

import hashlib

import numpy as np
import pytest
import torch

from wbcrepro import semantic_training
from wbcrepro.checkpoints import load_weights
from wbcrepro.errors import UsageError, WbcreproError
from wbcrepro.semantic_training import (
    RESAMPLING,
    SemanticSettings,
    build_head,
    fit_semantic,
    predict_semantic,
    resample,
)

CLASSES = ("SNE", "LY", "PLY", "PC")
SMALL = {"hidden": 32, "latent": 16, "projection": 8, "batch_size": 32, "lr": 3e-3, "epochs": 12,
         "resample": {"PLY": 10.0, "SNE": 0.5}}


def clusters(n: int = 160, dim: int = 24, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings around one direction a class, with 60, 30, 4 and 6 per cent of the images."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(4), [int(0.6 * n), int(0.3 * n), int(0.04 * n), int(0.06 * n) + 1]))
    centres = np.random.default_rng(9).normal(size=(4, dim))
    rows = centres[labels] + 0.5 * rng.normal(size=(len(labels), dim))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32), labels


def weights(head) -> str:
    return hashlib.sha256(b"".join(v.numpy().tobytes() for v in head.state_dict().values())).hexdigest()


def losses(history) -> list[tuple]:
    return [(line["loss"], line["train_accuracy"], line["kept"]) for line in history]


@pytest.fixture(scope="module")
def fitted():
    x, y = clusters()
    rows = np.arange(0, len(y), 2)
    return x, y, rows, *fit_semantic(x, y, rows, SemanticSettings.code(**SMALL), classes=CLASSES)


def test_it_learns_what_can_be_learnt(fitted):
    x, y, rows, head, history = fitted
    rest = np.setdiff1d(np.arange(len(y)), rows)
    probabilities = predict_semantic(head, x[rest])
    assert probabilities.shape == (len(rest), 4) and probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities.sum(1), 1, atol=1e-5)
    assert (probabilities.argmax(1) == y[rest]).mean() > 0.9 > (y[rest] == 0).mean()
    assert history[-1]["focal"] < history[0]["focal"] * 0.6 and history[-1]["loss"] < history[0]["loss"]
    for line in history:
        assert line["loss"] == pytest.approx(0.3 * line["supcon"] + 0.7 * line["focal"], rel=1e-5)
    assert [line["lr"] for line in history] == sorted((line["lr"] for line in history), reverse=True)


@pytest.mark.parametrize("change", ["nan", "noise", "labels", "float64"])
def test_only_the_training_rows_are_read(fitted, change):
    x, y, rows, head, history = fitted
    rest = np.setdiff1d(np.arange(len(y)), rows)
    x, y = x.copy(), y.copy()
    if change == "nan":
        x[rest], y[rest] = np.nan, -1
    elif change == "noise":
        x[rest] = np.random.default_rng(1).normal(size=x[rest].shape)
    elif change == "labels":
        y[rest] = np.random.default_rng(1).integers(0, 4, len(rest))
    else:
        x = x.astype(np.float64)
    again, found = fit_semantic(x, y, rows, SemanticSettings.code(**SMALL), classes=CLASSES)
    assert weights(again) == weights(head) and losses(found) == losses(history)


def test_a_training_row_decides(fitted):
    """The comparison above can fail: one label of one training row changes the weights."""
    x, y, rows, head, _ = fitted
    y = y.copy()
    y[rows[3]] = (y[rows[3]] + 1) % 4
    assert weights(fit_semantic(x, y, rows, SemanticSettings.code(**SMALL), classes=CLASSES)[0]) != weights(head)


def test_seed_order_of_rows_and_global_generator(fitted):
    x, y, rows, head, history = fitted
    settings = SemanticSettings.code(**SMALL)
    torch.manual_seed(77)
    before, seen = torch.get_rng_state(), []
    again, found = fit_semantic(x, y, rows[::-1], settings, classes=CLASSES, log=seen.append)
    assert torch.equal(before, torch.get_rng_state())
    assert weights(again) == weights(head) and seen == found and len(seen) == 12
    assert weights(fit_semantic(x, y, rows, settings, classes=CLASSES, seed=1)[0]) != weights(head)


def test_noise_is_drawn_anew_and_never_when_scoring(fitted, monkeypatch):
    x, y, rows, head, _ = fitted
    drawn = []
    real = torch.randn_like
    monkeypatch.setattr(torch, "randn_like", lambda t: drawn.append(real(t)) or drawn[-1])
    fit_semantic(x, y, rows, SemanticSettings.code(**SMALL | {"epochs": 2}), classes=CLASSES)
    assert len({d.numpy().tobytes() for d in drawn}) == len(drawn) >= 4
    assert torch.cat(drawn).std() == pytest.approx(1, abs=0.05)
    quiet, loud = (fit_semantic(x, y, rows, SemanticSettings.code(**SMALL | {"noise": n}), classes=CLASSES)[1]
                   for n in (0.0, 0.5))
    assert quiet[-1]["focal"] < 0.7 * loud[-1]["focal"]
    count = len(drawn)
    np.testing.assert_array_equal(predict_semantic(head, x), predict_semantic(head, x, batch_size=len(x)))
    assert len(drawn) == count


def test_the_kept_epoch_is_the_last_of_the_most_accurate(fitted, tmp_path):
    x, y, rows, head, history = fitted
    best = max(line["train_accuracy"] for line in history)
    kept = [line["epoch"] for line in history if line["kept"]]
    assert kept[-1] == [line["epoch"] for line in history if line["train_accuracy"] == best][-1]
    low = SemanticSettings.code(**SMALL | {"lr": 3e-2, "epochs": 8, "noise": 0.5})
    chosen, lines = fit_semantic(x, y, rows, low, classes=CLASSES)
    drawn = resample(y[rows], {2: 10.0, 0: 0.5}, 0)
    at = [line["epoch"] for line in lines if line["kept"]][-1]
    correct = predict_semantic(chosen, x[rows]).argmax(1) == y[rows]
    assert correct[drawn].mean() == pytest.approx(lines[at]["train_accuracy"])
    last, lines = fit_semantic(x, y, rows, SemanticSettings.code(**SMALL, select="last"), classes=CLASSES)
    assert all(line["kept"] for line in lines)


def test_presets_differ_as_text_and_code_do():
    paper, code = SemanticSettings.paper(), SemanticSettings.code()
    differ = {k for k in vars(code) if getattr(code, k) != getattr(paper, k)}
    assert differ == {"classify", "epochs"}
    assert (paper.epochs, paper.classify, code.epochs, code.classify) == (15, "projection", 150, "encoder")
    assert SemanticSettings.paper(epochs=3).epochs == 3 and code.resample == RESAMPLING is not code.resample


def test_resampling_repeats_and_halves():
    labels = np.repeat([0, 1, 2, 3, 4], [9, 4, 1, 5, 3])
    found = resample(labels, {0: 0.5, 1: 50.0, 2: 0.5, 3: 2.5, 7: 3.0}, seed=0)
    times = np.bincount(found, minlength=len(labels))
    assert times[:9].sum() == 4 and times[:9].max() == 1  # half of nine, rounded down, none twice
    assert (times[9:13] == 50).all() and times[13] == 1  # a class keeps an image
    assert sorted(times[14:19]) == [2, 2, 2, 3, 3] and (times[19:] == 1).all()
    np.testing.assert_array_equal(found, resample(labels, {0: 0.5, 1: 50.0, 2: 0.5, 3: 2.5}, seed=0))
    assert (found[:4] != resample(labels, {0: 0.5}, seed=1)[:4]).any()
    np.testing.assert_array_equal(resample(labels, {}, 0), np.arange(len(labels)))


@pytest.mark.parametrize("preset", [SemanticSettings.code, SemanticSettings.paper])
@pytest.mark.parametrize("codes", [[0], [1] * 40, [0, 1, 1], [0] * 31 + [3] * 2])
def test_few_images_one_class_and_absent_classes(preset, codes):
    """One image; batches of one class; fewer images than a batch; classes without an image; a last batch of one."""
    x = clusters()[0][: len(codes)]
    head, history = fit_semantic(x, np.array(codes), np.arange(len(codes)), preset(**SMALL | {"epochs": 2}),
                                 classes=CLASSES)
    assert np.isfinite(predict_semantic(head, x)).all() and len(history) == 2
    assert all(np.isfinite(line["loss"]) for line in history)


def test_an_interrupted_training_ends_with_the_same_bits(fitted, tmp_path):
    x, y, rows, head, history = fitted
    settings = SemanticSettings.code(**SMALL)

    def stop(line):
        if line["epoch"] == 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit_semantic(x, y, rows, settings, classes=CLASSES, folder=tmp_path, log=stop)
    seen = []
    again, found = fit_semantic(x, y, rows, settings, classes=CLASSES, folder=tmp_path, log=seen.append)
    assert [line["epoch"] for line in seen] == [10, 11]  # from the checkpoint after ten epochs
    assert weights(again) == weights(head) and losses(found) == losses(history)
    stored = build_head(settings, x.shape[1], 4)
    load_weights(stored, tmp_path / "head.safetensors")
    assert weights(stored) == weights(head)
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 12
    x = x.copy()
    x[rows[0]] = -x[rows[0]]
    with pytest.raises(UsageError, match="other settings"):
        fit_semantic(x, y, rows, settings, classes=CLASSES, folder=tmp_path)


def test_images_without_an_embedding_get_no_probabilities(fitted):
    x, _, _, head, _ = fitted
    expected, gaps = predict_semantic(head, x[:5]), x[:5].copy()
    gaps[2] = np.nan
    found = predict_semantic(head, gaps)
    assert np.isnan(found[2]).all()
    np.testing.assert_array_equal(np.delete(found, 2, 0), np.delete(expected, 2, 0))
    assert predict_semantic(head, x[:0]).shape == (0, 4)
    np.testing.assert_allclose(predict_semantic(head, x.astype(np.float16)), predict_semantic(head, x), atol=0.01)
    with pytest.raises(UsageError, match=r"\(n, 24\)"):
        predict_semantic(head, x[:, :20])


def test_what_does_not_fit_is_refused_in_words():
    x, y = clusters()
    rows, settings = np.arange(20), SemanticSettings.code(**SMALL)

    def fit(x=x, y=y, rows=rows, settings=settings):
        fit_semantic(x, y, rows, settings, classes=CLASSES)

    long, gap = x.copy(), x.copy()
    long[7] *= 1.1
    gap[3] = np.nan
    cases = [
        ({"x": long}, "1 of 20 rows do not, the first is row 7"),
        ({"x": gap}, "the first is row 3"),
        ({"x": x[:, 0]}, "Expected embeddings"),
        ({"y": y[:-1]}, "Expected embeddings"),
        ({"y": np.full(len(y), 4)}, "codes of the 4 classes"),
        ({"rows": np.array([], dtype=int)}, "at least one"),
        ({"rows": np.array([1, 1, 2])}, "twice"),
        ({"rows": np.array([len(y)])}, "row numbers"),
        ({"rows": np.ones(len(y), dtype=bool)}, "row numbers"),
        ({"settings": SemanticSettings.code()}, "BNE, MMY, which this dataset has not"),
    ]
    for change, message in cases:
        with pytest.raises(UsageError, match=message):
            fit(**change)
    for wrong in ({"classify": "latent"}, {"select": "best"}, {"epochs": 0}, {"noise": -1}, {"resample": {"PC": 0}}):
        with pytest.raises(UsageError):
            SemanticSettings(**wrong)


def test_a_loss_that_is_not_finite_is_an_error(monkeypatch):
    x, y = clusters()
    monkeypatch.setattr(semantic_training, "ContrastiveHeadLoss", lambda *_, **__: Broken())
    with pytest.raises(WbcreproError, match="lower learning rate"):
        fit_semantic(x, y, np.arange(40), SemanticSettings.code(**SMALL), classes=CLASSES)


class Broken(torch.nn.Module):
    def forward(self, z, logits, labels):
        value = logits.sum() * float("nan")
        return value, value, value
