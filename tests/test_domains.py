"""Domain-generalisation algorithms: golden vectors of the released code, loops over formulas, and tests of them all."""

import io
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from wbcrepro.backbones import TINY, Classifier, build_backbone
from wbcrepro.domains import ALGORITHMS, make_algorithm, selfreg
from wbcrepro.domains.boda import binary_cross_entropy, boda_loss, boda_terms
from wbcrepro.domains.coral import coral_penalty
from wbcrepro.domains.mixup import mix_domains
from wbcrepro.errors import UsageError, WbcreproError

COUNTS = torch.tensor([[6, 1, 4, 0, 3], [5, 0, 3, 0, 2], [4, 2, 2, 4, 0]])
"""Three domains: class 1 is missing in one of them, 4 in another, 3 lives in the last only, two pairs have 1 or 2."""
SHORT = {"boda": {"start": 2, "refresh": 2}}


def assert_close(got: torch.Tensor, expected: np.ndarray, tolerance: float = 1e-4) -> None:
    """Gradients: a share of the largest entry."""
    assert np.abs(got.double().numpy() - expected).max() <= tolerance * np.abs(expected).max()


class Identity(nn.Module):
    """A network whose embedding is the (flattened) image, for golden vectors that begin at the features."""

    def __init__(self, weight: np.ndarray, bias: np.ndarray | None):
        super().__init__()
        self.head = nn.Linear(*weight.shape[::-1], bias=bias is not None)
        self.head.weight.data = torch.tensor(weight)
        if bias is not None:
            self.head.bias.data = torch.tensor(bias)
        self.info = SimpleNamespace(dim=weight.shape[1])

    def normalise(self, x):
        return x / 255

    def embed(self, x):
        return x.flatten(1)

    def early_layers(self, n):
        return []


def golden_batches(file, dtype, key="feats") -> list[tuple[torch.Tensor, torch.Tensor]]:
    domains = range(sum(name.startswith("labels_") for name in file.files))
    return [(torch.tensor(file[f"{key}_{d}"], dtype=dtype, requires_grad=True), torch.tensor(file[f"labels_{d}"]))
            for d in domains]


def golden_algorithm(name, file, dtype, head=("clf_weight", "clf_bias"), counts=None, **settings):
    """The algorithm around the golden classifier, and the golden minibatches with gradients on."""
    batches = golden_batches(file, dtype)
    weight, bias = (None if key is None else file[key] for key in head)
    counts = torch.ones(len(batches), len(weight), dtype=torch.int64) if counts is None else counts
    return make_algorithm(name, Identity(weight, bias), counts, **settings).to(dtype), batches


DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])


@DTYPES
def test_golden_coral(golden, dtype):
    file = golden("coral_dann_mixup_selfreg")
    algorithm, batches = golden_algorithm("coral", file, dtype)
    xs = [x for x, _ in batches]
    penalty = coral_penalty(xs)
    assert penalty.dtype == dtype and penalty.item() == pytest.approx(float(file["coral_penalty"]), rel=1e-5)
    for d, gradient in enumerate(torch.autograd.grad(penalty, xs)):
        assert_close(gradient, file[f"coral_grad_{d}"])
    pairs = [coral_penalty([xs[a], xs[b]]).item() for a in range(len(xs)) for b in range(a + 1, len(xs))]
    np.testing.assert_allclose(pairs, file["coral_pairs"], rtol=1e-5)
    terms = algorithm.objective(batches)
    assert terms["cross_entropy"].item() == pytest.approx(float(file["coral_ce"]), rel=1e-5)
    for d, gradient in enumerate(torch.autograd.grad(terms["loss"], xs)):
        assert_close(gradient, file[f"coral_total_grad_{d}"])


def golden_dann(file, dtype, **settings):
    algorithm, batches = golden_algorithm("dann", file, dtype, width=len(file["dann_input_bias"]), **settings)
    layers = [layer for layer in algorithm.discriminator if isinstance(layer, nn.Linear)]
    for layer, name in zip(layers, ("input", "hiddens_0", "output"), strict=True):
        layer.weight.data = torch.tensor(file[f"dann_{name}_weight"], dtype=dtype)
        layer.bias.data = torch.tensor(file[f"dann_{name}_bias"], dtype=dtype)
    return algorithm, batches


@DTYPES
def test_golden_dann_losses(golden, dtype):
    file = golden("coral_dann_mixup_selfreg")
    algorithm, batches = golden_dann(file, dtype, adversarial_weight=float(file["dann_lambda"]))
    xs = [x for x, _ in batches]
    assert algorithm.turn == "network"
    terms = algorithm.objective(batches)
    assert terms["loss"].item() == pytest.approx(float(file["dann_gen_loss"]), rel=1e-5)
    for d, gradient in enumerate(torch.autograd.grad(terms["loss"], xs, retain_graph=True)):
        assert_close(gradient, file[f"dann_gen_grad_{d}"])
    weight = algorithm.network.head.weight
    assert_close(torch.autograd.grad(terms["loss"], weight, retain_graph=True)[0], file["dann_clf_grad_weight"])
    for d, gradient in enumerate(torch.autograd.grad(terms["discriminator_loss"], xs)):
        assert_close(gradient, file[f"dann_disc_grad_{d}"])
    np.testing.assert_allclose(algorithm.discriminator(torch.cat(xs)).detach(), file["dann_disc_logits"], rtol=1e-4,
                               atol=1e-5)
    algorithm.step += 1
    assert algorithm.turn == "discriminator"
    loss = algorithm.objective(batches)["loss"]
    assert loss.item() == pytest.approx(float(file["dann_disc_loss"]), rel=1e-5)
    first, last = algorithm.discriminator[0].weight, algorithm.discriminator[-1].weight
    gradients = torch.autograd.grad(loss, (first, last))
    assert_close(gradients[0], file["dann_disc_grad_input_weight"])
    assert_close(gradients[1], file["dann_disc_grad_output_weight"])


def test_golden_dann_turns_and_trajectory(golden):
    file = golden("coral_dann_mixup_selfreg")
    for d_steps, row in enumerate(file["dann_is_disc_step"], start=1):
        algorithm, _ = golden_dann(file, torch.float32, d_steps=d_steps)
        turns = []
        for step in range(len(row)):
            algorithm.step.fill_(step)
            turns.append(algorithm.turn == "discriminator")
        assert turns == row.tolist()
    algorithm, batches = golden_dann(file, torch.float32, lr=0.02, lr_d=0.02)
    batches = [(x.detach(), y) for x, y in batches]
    losses = [algorithm.update(batches)["loss"] for _ in file["dann_trajectory"]]
    np.testing.assert_allclose(losses, file["dann_trajectory"], rtol=1e-4)
    np.testing.assert_allclose(algorithm.discriminator[-1].bias.detach(), file["dann_final_disc_output_bias"],
                               rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(algorithm.network.head.bias.detach(), file["dann_final_clf_bias"], rtol=1e-4, atol=1e-6)


class Drawn:
    """Stands in for a Beta distribution whose draws are known."""

    def __init__(self, values):
        self.values = torch.tensor(values, dtype=torch.float64)

    def __call__(self, a, b):
        return self

    def sample(self, shape=()):
        return self.values.reshape(shape)


@DTYPES
def test_golden_mixup(golden, dtype, monkeypatch):
    file = golden("coral_dann_mixup_selfreg")
    permutation, lambdas = file["mix_permutation"].tolist(), file["mix_lambda"].tolist()
    algorithm, _ = golden_algorithm("mixup", file, dtype, head=("mix_weight", None))
    batches = golden_batches(file, dtype, "mix_images")
    for k, (x, first, second, lam) in enumerate(mix_domains(batches, permutation, lambdas)):
        np.testing.assert_allclose(x.detach(), file[f"mix_mixed_{k}"], rtol=0, atol=1e-6)
        expected = [batches[permutation[(k + side) % len(permutation)]][1] for side in (0, 1)]
        assert torch.equal(first, expected[0]) and torch.equal(second, expected[1]) and lam == lambdas[k]
    monkeypatch.setattr(torch, "randperm", lambda n: torch.tensor(permutation[:n]))
    monkeypatch.setattr(torch.distributions, "Beta", Drawn(lambdas))
    loss = algorithm.objective(batches)["loss"]
    assert loss.item() == pytest.approx(float(file["mix_loss"]), rel=1e-5)
    assert_close(torch.autograd.grad(loss, algorithm.network.head.weight)[0], file["mix_weight_grad"])


def test_mixup_cuts_to_the_shorter_minibatch():
    batches = [(torch.full((n, 1), float(n)), torch.full((n,), n)) for n in (2, 5)]
    for k, (x, first, second, lam) in enumerate(mix_domains(batches, [1, 0], [0.25, 1.0])):
        assert x.tolist() == [[[2.75], [2.75]], [[2.0], [2.0]]][k] and len(first) == len(second) == 2
        assert (first[0], second[0], lam) == [(5, 2, 0.25), (2, 5, 1.0)][k]


@DTYPES
def test_golden_selfreg(golden, dtype, monkeypatch):
    file = golden("coral_dann_mixup_selfreg")
    network, classes = Identity(file["clf_weight"], file["clf_bias"]), len(file["clf_bias"])
    algorithm = make_algorithm("selfreg", network, torch.ones(1, classes, dtype=torch.int64)).to(dtype)
    assert [layer.weight.shape[0] for layer in algorithm.projector if hasattr(layer, "weight")] == [
        len(file[f"selfreg_cdpl_{k}_bias"]) for k in (0, 1, 3, 4, 6, 7)]
    for name, value in algorithm.projector.named_parameters():
        value.data = torch.tensor(file[f"selfreg_cdpl_{name.replace('.', '_')}"], dtype=dtype)
    x = torch.tensor(file["selfreg_feat"], dtype=dtype, requires_grad=True)
    y = torch.tensor(file["selfreg_sorted_labels"])
    a, b = (torch.tensor(file[f"selfreg_perm_{side}"]) for side in "ab")
    lam = float(file["selfreg_lambda"])
    logits, projected = algorithm.logits(x), algorithm.projector(x)
    np.testing.assert_allclose(logits.detach(), file["selfreg_logits"], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(projected.detach(), file["selfreg_proj"], rtol=1e-4, atol=1e-5)
    ind, mix = selfreg.selfreg_terms(x, projected, logits, a, b, lam)
    for got, name in ((ind, "ind"), (mix, "hdl")):
        expected = float(file[f"selfreg_mse_{name}_logit"]) + 0.3 * float(file[f"selfreg_mse_{name}_feat"])
        assert got.item() == pytest.approx(expected, rel=1e-5)
    shuffles = iter((a, b))
    monkeypatch.setattr(selfreg, "shuffle_within_classes", lambda labels: next(shuffles))
    monkeypatch.setattr(torch.distributions, "Beta", Drawn(lam))
    algorithm.train()
    terms = algorithm.objective([(x, y)])
    assert terms["cross_entropy"].item() == pytest.approx(float(file["selfreg_ce"]), rel=1e-5)
    assert terms["loss"].item() == pytest.approx(float(file["selfreg_loss"]), rel=1e-5)
    assert_close(torch.autograd.grad(terms["loss"], x)[0], file["selfreg_grad_feat"])


def test_selfreg_shuffles_inside_classes_and_reaches_every_place():
    labels = torch.tensor([2, 0, 2, 1, 2, 0, 7])
    seen = set()
    for _ in range(100):
        permutation = selfreg.shuffle_within_classes(labels)
        assert torch.equal(labels[permutation], labels) and permutation.sort().values.tolist() == list(range(7))
        seen.add(tuple(permutation.tolist()))
    assert len(seen) == math.factorial(3) * math.factorial(2)


def golden_centroids(file, dtype, key="centroids") -> torch.Tensor:
    table = torch.zeros(*file["counts"].shape, file["centroids"].shape[1], dtype=dtype)
    rows = torch.tensor(file["centroid_domain"]), torch.tensor(file["centroid_class"])
    table[rows] = torch.tensor(file[key], dtype=dtype)
    return table


def golden_boda(file, dtype, **settings):
    algorithm, batches = golden_algorithm("boda", file, dtype, ("classifier_weight", "classifier_bias"),
                                          torch.tensor(file["counts"]), **settings)
    algorithm.centroids.copy_(golden_centroids(file, dtype))
    algorithm.refreshed.fill_(True)
    return algorithm, batches


@DTYPES
def test_golden_boda_loss(golden, dtype):
    file = golden("boda")
    suffix, tolerance = ("64", 2e-6) if dtype == torch.float64 else ("", 1e-5)
    batches, counts = golden_batches(file, dtype), torch.tensor(file["counts"])
    xs, labels = [x for x, _ in batches], torch.cat([y for _, y in batches])
    domains = torch.tensor([d for d, x in enumerate(xs) for _ in x])
    arguments = (torch.cat(xs), labels, domains, golden_centroids(file, dtype), counts)
    for k, (nu, temperature) in enumerate(file["nu_temperature"]):
        loss = boda_loss(*arguments, nu, temperature)
        assert loss.dtype == dtype and loss.item() == pytest.approx(file[f"boda_loss{suffix}"][k], rel=tolerance)
        if (nu, temperature) == (0.5, 1):
            for d, gradient in enumerate(torch.autograd.grad(loss, xs, retain_graph=True)):
                assert_close(gradient, file[f"boda_grad{suffix}_{d}"], 1e-4)
    terms = boda_terms(*arguments).detach().numpy()
    np.testing.assert_allclose(terms, np.nan_to_num(file["boda_terms64"]), rtol=10 * tolerance, atol=1e-5)
    poster = boda_loss(*arguments, reduction="poster").item()
    assert poster == pytest.approx(float(file["boda_poster_sum64"]), rel=tolerance)


@DTYPES
def test_golden_boda_total(golden, dtype):
    file = golden("boda")
    algorithm, batches = golden_boda(file, dtype)
    xs = [x for x, _ in batches]
    for step in (499, 500):
        algorithm.step.fill_(step)
        terms = algorithm.objective(batches)
        assert (terms["boda"].item() != 0) == bool(file[f"active_at_{step}"])
    assert terms["cross_entropy"].item() == pytest.approx(float(file["total_ce"]), rel=1e-5)
    assert terms["penalty"].item() == pytest.approx(float(file["macro_penalty"]), rel=1e-5)
    assert terms["loss"].item() == pytest.approx(float(file["total"]), rel=1e-5)
    for d, gradient in enumerate(torch.autograd.grad(terms["penalty"], xs, retain_graph=True)):
        assert_close(gradient, file[f"macro_grad_{d}"])
    for d, gradient in enumerate(torch.autograd.grad(terms["loss"], xs)):
        assert_close(gradient, file[f"total_grad_{d}"])
    without, _ = golden_boda(file, dtype, macro_weight=0.0)
    without.step.fill_(500)
    expected = float(file["total"]) - float(file["macro_penalty"])
    assert without.objective(batches)["loss"].item() == pytest.approx(expected, rel=1e-5)


def test_golden_boda_centroids(golden):
    file = golden("boda")
    domains = range(len(file["counts"]))

    def passes(number):
        for d in domains:
            x, y = (torch.tensor(file[f"pass{number}_{key}_{d}"]) for key in ("feats", "labels"))
            for part in torch.arange(len(y)).split(50):  # in two pieces, as a loop would
                yield d, x[part], y[part]

    counts = torch.stack([torch.tensor(file[f"pass1_labels_{d}"]).bincount(minlength=file["counts"].shape[1])
                          for d in domains])
    algorithm, _ = golden_algorithm("boda", file, torch.float32, ("classifier_weight", "classifier_bias"), counts,
                                    momentum=float(file["momentum"]))
    algorithm.before_step(0, lambda: pytest.fail("no refresh before the first update"))
    for step, number, key in ((120, 1, "centroids_first"), (240, 2, "centroids")):
        algorithm.before_step(step, lambda n=number: passes(n))
        expected = golden_centroids(file, torch.float32, key)
        np.testing.assert_allclose(algorithm.centroids, expected, rtol=1e-5, atol=1e-6)
    algorithm.before_step(241, lambda: pytest.fail("no refresh between multiples"))
    assert algorithm.training and not algorithm.centroids.requires_grad
    with pytest.raises(WbcreproError, match="saw"):
        algorithm.before_step(360, lambda: list(passes(1))[1:])


def boda_loop(z, y, domains, mu, counts, nu, temperature) -> tuple[float, float]:
    """The formula with loops, float64: (mean over brackets, the poster's sum)."""
    pairs = [(d, c) for d in range(len(counts)) for c in range(len(counts[0])) if counts[d][c] > 0]
    brackets, total = [], 0.0
    for z_i, c_i, d_i in zip(z, y, domains, strict=True):
        n_i = counts[d_i][c_i]

        def s(pair, z_i=z_i, n_i=n_i):
            return -((counts[pair[0]][pair[1]] / n_i) ** nu) * math.dist(z_i, mu[pair[0]][pair[1]]) / n_i / temperature

        logits = [s(pair) for pair in pairs if pair != (d_i, c_i)]
        of_image = []
        for d in range(len(counts)):
            if d != d_i and (d, c_i) in pairs:
                log_sum = max(logits) + math.log(sum(math.exp(v - max(logits)) for v in logits))
                of_image.append(log_sum - s((d, c_i)))
        brackets += of_image
        total += sum(of_image) / max(len(counts) - 1, 1)
    return (sum(brackets) / len(brackets) if brackets else 0.0), total


@st.composite
def boda_cases(draw):
    """Counts with holes, features near and far, and images of pairs that exist."""
    d, c, k = draw(st.integers(1, 4)), draw(st.integers(1, 5)), draw(st.integers(1, 6))
    counts = draw(st.lists(st.lists(st.sampled_from([0, 0, 1, 2, 30, 5000]), min_size=c, max_size=c), min_size=d,
                           max_size=d).filter(lambda table: any(map(any, table))))
    pairs = [(a, b) for a in range(d) for b in range(c) if counts[a][b]]
    images = draw(st.lists(st.sampled_from(pairs), min_size=1, max_size=8))
    return counts, images, k, draw(st.sampled_from([1e-3, 1.0, 1e4])), draw(st.integers(0, 99))


@given(boda_cases(), st.sampled_from([0.0, 0.5, 1.0]), st.sampled_from([0.1, 1.0]))
def test_boda_is_the_loop_and_finite_whatever_is_missing(case, nu, temperature):
    counts, images, k, scale, seed = case
    rng = np.random.default_rng(seed)
    z, mu = rng.normal(0, scale, (len(images), k)), rng.normal(0, scale, (len(counts), len(counts[0]), k))
    domains, labels = (torch.tensor(column) for column in zip(*images, strict=True))
    expected = boda_loop(z, labels.tolist(), domains.tolist(), mu, counts, nu, temperature)
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 2e-4)):
        x = torch.tensor(z, dtype=dtype, requires_grad=True)
        for reduction, value in zip(("mean", "poster"), expected, strict=True):
            loss = boda_loss(x, labels, domains, torch.tensor(mu, dtype=dtype), torch.tensor(counts), nu, temperature,
                             reduction)
            gradient, = torch.autograd.grad(loss, x)
            assert torch.isfinite(gradient).all()
            assert loss.item() == pytest.approx(value, rel=tolerance, abs=tolerance)


def test_boda_gradient_agrees_with_finite_differences():
    torch.manual_seed(0)
    z, mu = torch.randn(6, 3, dtype=torch.float64, requires_grad=True), torch.randn(3, 5, 3, dtype=torch.float64)
    labels, domains = torch.tensor([0, 1, 2, 3, 4, 1]), torch.tensor([0, 0, 1, 2, 0, 2])
    assert torch.autograd.gradcheck(lambda x: boda_loss(x, labels, domains, mu, COUNTS), z)


def test_a_class_of_one_domain_is_pushed_from_but_never_pulled():
    z = torch.randn(4, 3, generator=torch.Generator().manual_seed(1), requires_grad=True)
    labels, domains, mu = torch.tensor([3, 0, 2, 3]), torch.tensor([2, 0, 1, 2]), torch.randn(3, 5, 3)
    gradient, = torch.autograd.grad(boda_loss(z, labels, domains, mu, COUNTS), z)
    assert (gradient[[0, 3]] == 0).all() and (gradient[[1, 2]] != 0).any(1).all()
    without = COUNTS.clone()
    without[2, 3] = 0
    assert boda_loss(z[1:3], labels[1:3], domains[1:3], mu, without) < boda_loss(z[1:3], labels[1:3], domains[1:3], mu,
                                                                               COUNTS)
    alone = boda_loss(z[[0, 3]], labels[[0, 3]], domains[[0, 3]], mu, COUNTS)  # the mean over nothing
    assert alone.item() == 0 and (torch.autograd.grad(alone, z)[0] == 0).all()


def test_boda_where_the_log_of_a_sum_underflows():
    counts, mu = torch.tensor([[1, 1], [1, 1]]), torch.zeros(2, 2, 4)
    z = torch.full((1, 4), 1e3, requires_grad=True)
    assert torch.exp(-torch.cdist(z, mu[0])).sum() == 0  # so log(exp(s) / sum) would be NaN
    loss = boda_loss(z, torch.tensor([0]), torch.tensor([0]), mu, counts)
    loss.backward()
    assert loss.item() == pytest.approx(math.log(3), abs=1e-3) and torch.isfinite(z.grad).all()


def test_binary_cross_entropy_is_the_loop_and_finite():
    rng = np.random.default_rng(0)
    z, y = rng.normal(0, 2, (9, 4)), rng.integers(0, 4, 9)
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    expected = -np.mean([sum(math.log(q) if c == t else math.log(1 - q) for c, q in enumerate(row))
                         for row, t in zip(p, y, strict=True)])
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        got = binary_cross_entropy(torch.tensor(z, dtype=dtype), torch.tensor(y))
        assert got.item() == pytest.approx(expected, rel=tolerance)
    extreme = torch.tensor([[6e4, 0, -6e4], [0, 0, 0], [-1e-7, 50, 0]], requires_grad=True)
    for target in range(3):
        value = binary_cross_entropy(extreme, torch.full((3,), target))
        assert torch.isfinite(value) and torch.isfinite(torch.autograd.grad(value, extreme)[0]).all()


def test_coral_is_the_loop_and_finite_for_one_image():
    rng = np.random.default_rng(1)
    xs = [rng.normal(0, 1, (n, 5)) for n in (7, 4, 9, 2)]
    pairs = [((a.mean(0) - b.mean(0)) ** 2).mean() + ((np.cov(a.T) - np.cov(b.T)) ** 2).mean()
             for i, a in enumerate(xs) for b in xs[i + 1 :]]
    assert coral_penalty([torch.tensor(x) for x in xs]).item() == pytest.approx(np.mean(pairs), rel=1e-12)
    lonely = [torch.randn(1, 5, requires_grad=True), torch.randn(6, 5)]
    penalty = coral_penalty(lonely)
    penalty.backward()
    assert torch.isfinite(penalty) and torch.isfinite(lonely[0].grad).all()
    assert coral_penalty(lonely[:1]).item() == 0


# All algorithms, also those of other files: whatever is registered must start, train, go on and predict.


@pytest.fixture(scope="module")
def source_images():
    """One (images, labels) per domain with exactly COUNTS images: noise with a brightness per class."""
    generator = torch.Generator().manual_seed(7)
    found = []
    for row in COUNTS:
        y = torch.arange(len(row)).repeat_interleave(row)
        noise = torch.rand(len(y), 3, 32, 32, generator=generator)
        found.append(((noise + y.view(-1, 1, 1, 1)) / len(row), y))
    return found


def make(name, seed=0, **settings):
    backbone, info = build_backbone(TINY, "random", seed=seed)
    torch.manual_seed(seed)
    head = nn.Linear(info.dim, COUNTS.shape[1])
    settings = {"lr": 1e-3, **SHORT.get(name, {}), **settings}
    return make_algorithm(name, Classifier(backbone, head, info), COUNTS, **settings)


def train(algorithm, data, steps) -> list[dict[str, float]]:
    """What the training loop does, without its files: minibatches of a step depend on the step alone."""
    history = []
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        rows = [torch.randint(len(y), (6,), generator=generator) for _, y in data]
        batches = [(x[r], y[r]) for (x, y), r in zip(data, rows, strict=True)]
        algorithm.before_step(step, lambda: ((d, *pair) for d, pair in enumerate(data)))
        history.append(algorithm.update(batches))
    return history


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_algorithm_trains_and_predicts(name, source_images):
    algorithm = make(name, frozen_stages=1)
    before = {key: value.clone() for key, value in algorithm.network.state_dict().items()}
    history = train(algorithm, source_images, range(5))
    assert all(math.isfinite(value) for line in history for value in line.values()) and int(algorithm.step) == 5
    assert all("loss" in line and all(type(value) is float for value in line.values()) for line in history)
    after = algorithm.network.state_dict()
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert any(key.startswith("backbone.blocks.4") for key in changed)
    assert not [key for key in changed if "running" in key or "num_batches" in key]
    assert not [key for key in changed if key.startswith(("backbone.conv_stem", "backbone.bn1", "backbone.blocks.0"))]
    algorithm.eval()
    x = source_images[0][0]
    with torch.no_grad():
        logits = algorithm.predict(x)
        torch.testing.assert_close(logits, algorithm.network((x * 255).round().to(torch.uint8)), rtol=0.1, atol=0.1)
    assert logits.shape == (len(x), COUNTS.shape[1]) and torch.isfinite(logits).all()


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_algorithm_goes_on_bit_by_bit(name, source_images):
    straight, first = make(name), make(name)
    torch.manual_seed(0)
    whole = train(straight, source_images, range(6))
    torch.manual_seed(0)
    begun = train(first, source_images, range(3))
    file = io.BytesIO()
    torch.save({"algorithm": first.state_dict(), "rng": torch.get_rng_state(),
                "optimisers": {key: value.state_dict() for key, value in first.optimisers.items()}}, file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    second = make(name, seed=9)
    second.load_state_dict(state["algorithm"])
    for key, value in second.optimisers.items():
        value.load_state_dict(state["optimisers"][key])
    torch.set_rng_state(state["rng"])
    assert begun + train(second, source_images, range(3, 6)) == whole
    expected = straight.state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in second.state_dict().items())


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_algorithm_stops_at_a_loss_that_is_not_finite(name, source_images):
    algorithm = make(name)
    algorithm.network.head.weight.data[:] = torch.nan
    algorithm.network.backbone.conv_head.weight.data[:] = torch.nan
    before = algorithm.network.backbone.conv_stem.weight.clone()
    with pytest.raises(WbcreproError, match="step 0 is not finite.*lower learning rate"):
        train(algorithm, source_images, range(1))
    assert torch.equal(before, algorithm.network.backbone.conv_stem.weight)


def test_batchnorm_can_train_and_amp_leaves_a_cpu_alone(source_images):
    free, frozen = make("erm", freeze_batchnorm=False), make("erm")
    start = free.network.backbone.bn1.running_mean.clone()
    train(free, source_images, range(1))
    assert not torch.equal(start, free.network.backbone.bn1.running_mean)
    assert train(make("erm", amp=True), source_images, range(2)) == train(frozen, source_images, range(2))


def test_boda_starts_at_its_step_and_makes_centroids_for_it(source_images):
    algorithm = make("boda", start=3, refresh=1000, macro_weight=0.0)
    history = train(algorithm, source_images, range(5))
    assert [line["boda"] > 0 for line in history] == [False] * 3 + [True] * 2
    assert all(line["penalty"] == 0 for line in history)
    assert (algorithm.centroids.abs().sum(2) > 0).equal(COUNTS > 0)
    assert history[0]["loss"] == history[0]["cross_entropy"]
    binary = train(make("boda", binary_cross_entropy=True), source_images, range(1))[0]
    assert binary["cross_entropy"] > history[0]["cross_entropy"]


def test_unknown_names_settings_and_counts_are_refused():
    with pytest.raises(UsageError, match="unknown algorithm 'coral2'; known: erm, "):
        make("coral2")
    with pytest.raises(UsageError, match="'erm' has no setting gamma; known: lr, "):
        make("erm", gamma=1)
    with pytest.raises(UsageError, match="reduction"):
        make("boda", reduction="sum")
    with pytest.raises(UsageError, match="5 stages"):
        make("erm", frozen_stages=6)
    for wrong in (torch.tensor([3, 4]), torch.tensor([[1, -1]]), torch.tensor([[1, 2], [0, 0]])):
        with pytest.raises(UsageError, match="counts must be"):
            make_algorithm("erm", Identity(np.ones((2, 3), np.float32), None), wrong)
