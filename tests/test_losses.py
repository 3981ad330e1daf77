"""Losses against the golden vectors of the released code and against plain loops over the papers' formulas."""

import math

import numpy as np
import pytest
import torch

from wbcrepro.errors import UsageError
from wbcrepro.longtail.losses import LOSSES, FocalLoss, HybridLoss, make_loss
from wbcrepro.longtail.losses.effective_number import effective_number, effective_number_weights
from wbcrepro.longtail.losses.focal import log_weights
from wbcrepro.longtail.losses.hybrid import hybrid_terms
from wbcrepro.longtail.losses.ldam import LDAMLoss, drw_weights, ldam_margins


def value_and_gradient(loss, logits: np.ndarray, targets: np.ndarray, dtype) -> tuple[float, np.ndarray]:
    z = torch.tensor(logits, dtype=dtype, requires_grad=True)
    value = loss(z, torch.tensor(targets))
    value.backward()
    return value.item(), z.grad.double().numpy()


def assert_gradient(got, expected, tolerance):
    assert np.abs(got - expected).max() <= tolerance * np.abs(expected).max()


def test_golden_effective_number_weights(golden):
    file = golden("class_balanced")
    for b, beta in enumerate(file["betas"]):
        for row, counts in enumerate(file["counts"]):
            for key, mode in (("weights_raw", "none"), ("weights_mean1", "mean")):
                got = effective_number_weights(counts, float(beta), mode)
                np.testing.assert_allclose(got, file[key][b, row], rtol=1e-9)
            np.testing.assert_allclose(effective_number_weights(counts, float(beta)), file["weights_code001"][b, row],
                                       rtol=1e-5)


def test_golden_hybrid_loss_as_released(golden):
    file = golden("class_balanced")
    alpha = torch.tensor(file["alpha"])
    for case, (gamma, lam) in enumerate(file["gamma_lambda"]):
        loss = HybridLoss(alpha, gamma, lam, "p_alpha")
        for dtype, suffix, tolerance in ((torch.float32, "", 1e-5), (torch.float64, "64", 1e-9)):
            value, gradient = value_and_gradient(loss, file["logits"], file["targets"], dtype)
            assert value == pytest.approx(file[f"code_loss{suffix}"][case], rel=tolerance)
            assert_gradient(gradient, file[f"code_grad{suffix}"][case], tolerance)
        plain = HybridLoss(torch.ones(len(alpha)), gamma, lam, "p_alpha")
        value, gradient = value_and_gradient(plain, file["logits"], file["targets"], torch.float32)
        assert value == pytest.approx(file["code_loss_noweight"][case], rel=1e-5)
        assert_gradient(gradient, file["code_grad_noweight"][case], 1e-5)


def test_golden_hybrid_loss_as_printed(golden):
    file = golden("class_balanced")
    counts = file["counts"][0]
    for case, (gamma, lam) in enumerate(file["gamma_lambda"]):
        for mode, key in (("none", "paper_raw"), ("mean", "paper_mean1")):
            loss = make_loss("hybrid", counts, beta=0.9999, gamma=gamma, lam=lam, variant="p", normalise=mode)
            value, gradient = value_and_gradient(loss, file["logits"], file["targets"], torch.float64)
            assert value == pytest.approx(file[f"{key}_loss"][case], rel=1e-9)
            assert_gradient(gradient, file[f"{key}_grad"][case], 1e-9)
    alpha = torch.tensor(effective_number_weights(counts))
    ce, focal = hybrid_terms(torch.tensor(file["logits"]).double(), torch.tensor(file["targets"]), alpha, 2.0, "p")
    np.testing.assert_allclose(ce, file["paper_mean1_ce"], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(focal, file["paper_mean1_focal"], rtol=1e-9, atol=1e-12)


def test_golden_focal_losses_of_the_other_releases(golden):
    file = golden("class_balanced")
    weights = log_weights(file["counts"][0])
    np.testing.assert_allclose(weights, file["focal002_alpha"], rtol=1e-5)
    value, gradient = value_and_gradient(FocalLoss(weights, 2.0, "p_alpha"), file["logits"], file["targets"],
                                         torch.float32)
    assert value == pytest.approx(float(file["focal002_loss"]), rel=1e-5)
    assert_gradient(gradient, file["focal002_grad"], 1e-5)
    named = make_loss("focal", file["counts"][0], weights="log", variant="p_alpha")
    assert value_and_gradient(named, file["logits"], file["targets"], torch.float32)[0] == value
    ldam = golden("ldam")
    loss = make_loss("focal", ldam["counts"], beta=0.9999, gamma=1.0, variant="p_alpha")
    value, gradient = value_and_gradient(loss, ldam["focal_logits"], ldam["targets"], torch.float32)
    assert value == pytest.approx(float(ldam["focal_loss"]), rel=1e-5)
    assert_gradient(gradient, ldam["focal_grad"], 1e-4)


def test_golden_ldam(golden):
    file = golden("ldam")
    for prefix, margin, scale in (("", 0.5, 30), ("m0.3_s10_", 0.3, 10)):
        np.testing.assert_allclose(ldam_margins(file["counts"], margin), file[f"{prefix}margins"], rtol=1e-5)
        loss = LDAMLoss(file["counts"], margin, scale, drw_start=160)
        for epoch, suffix in ((159, ""), (160, "_drw")):
            loss.set_epoch(epoch)
            np.testing.assert_allclose(loss.weights, file["drw_weights"][int(epoch == 160)], rtol=1e-5)
            value, gradient = value_and_gradient(loss, file["cosine"], file["targets"], torch.float32)
            assert value == pytest.approx(float(file[f"{prefix}loss{suffix}"]), rel=1e-5)
            assert_gradient(gradient, file[f"{prefix}grad{suffix}"], 1e-4)


def loop_loss(name: str, z: np.ndarray, y: np.ndarray, counts: list[int], o: dict) -> float:
    """The formulas with loops over images and classes, in float64, from the papers' pages."""
    total, weight_sum = 0.0, 0.0
    effective = [(1 - o["beta"]) / (1 - o["beta"] ** n) for n in counts]
    alpha = [e / (sum(effective) / len(effective)) for e in effective]
    margins = [n**-0.25 for n in counts]
    margins = [m * 0.5 / max(margins) for m in margins]
    for row, target in zip(z, y, strict=True):
        if name == "ldam":
            row = [30 * (v - (margins[c] if c == target else 0)) for c, v in enumerate(row)]
        if name == "balanced_softmax":
            row = [v + math.log(counts[c]) for c, v in enumerate(row)]
        log_p = row[target] - max(row) - math.log(sum(math.exp(v - max(row)) for v in row))
        weight = alpha[target] if name in ("class_balanced", "focal", "hybrid") else 1.0
        ce = -weight * log_p
        q = math.exp(log_p) if o["variant"] == "p" else math.exp(-ce)
        focal = (1 - q) ** o["gamma"] * ce
        total += {"focal": focal, "hybrid": (1 - o["lam"]) * ce + o["lam"] * focal}.get(name, ce)
        weight_sum += 1
    return total / weight_sum


@pytest.mark.parametrize("name", sorted(LOSSES))
@pytest.mark.parametrize(("n", "classes"), [(1, 2), (5, 3), (64, 13)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("variant", ["p", "p_alpha"])
def test_losses_are_the_loops(name, n, classes, dtype, variant):
    rng = np.random.default_rng([n, classes])
    counts = rng.integers(1, 5000, classes).tolist()
    z = torch.tensor(rng.normal(0, 2, (n, classes))).to(dtype)
    if name == "ldam":
        z = torch.tensor(rng.uniform(-1, 1, (n, classes))).to(dtype)
    y = rng.integers(0, classes, n)
    options = {"beta": 0.999, "gamma": 1.5, "lam": 0.3, "variant": variant}
    accepted = {"class_balanced": ["beta"], "focal": ["beta", "gamma", "variant"], "hybrid": list(options)}
    loss = make_loss(name, counts, **{key: options[key] for key in accepted.get(name, [])})
    z = z.float() if name == "cross_entropy" and dtype in (torch.float16, torch.bfloat16) else z  # torch's own loss
    got = loss(z, torch.tensor(y))
    expected = loop_loss(name, z.double().numpy(), y, counts, options)
    assert float(got) == pytest.approx(expected, rel={torch.float64: 1e-9}.get(dtype, 2e-5))
    assert got.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


@pytest.mark.parametrize("name", sorted(LOSSES))
@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("variant", ["p", "p_alpha"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_losses_and_gradients_are_finite_at_extreme_logits(name, gamma, variant, dtype):
    counts = [17354, 10801, 90, 14, 1]
    options = {"focal": {"gamma": gamma, "variant": variant, "beta": 0.9999},
               "hybrid": {"gamma": gamma, "variant": variant}}.get(name, {})
    loss = make_loss(name, counts, **options)
    big = 6e4
    rows = [[big, -big, 0, 0, 0], [-big] * 5, [0] * 5, [big] * 5, [1e-7, 0, 0, 0, 0], [0, 0, 0, 0, big]]
    z = torch.tensor(rows, dtype=dtype if name != "cross_entropy" else torch.float32, requires_grad=True)
    for target in range(5):
        z.grad = None
        value = loss(z, torch.full((len(rows),), target))
        value.backward()
        assert torch.isfinite(value) and torch.isfinite(z.grad).all(), (target, value)


def test_hybrid_gradient_agrees_with_finite_differences():
    torch.manual_seed(0)
    z, y = torch.randn(6, 4, dtype=torch.float64, requires_grad=True), torch.tensor([0, 1, 2, 3, 0, 1])
    for variant in ("p", "p_alpha"):
        loss = make_loss("hybrid", [900, 80, 30, 5], variant=variant)
        assert torch.autograd.gradcheck(lambda x, loss=loss: loss(x, y), z)


def test_variants_agree_without_weights_and_differ_with_them():
    z, y = torch.randn(32, 3, generator=torch.Generator().manual_seed(0)), torch.arange(32) % 3
    assert FocalLoss(torch.ones(3), variant="p")(z, y) == FocalLoss(torch.ones(3), variant="p_alpha")(z, y)
    alpha = torch.tensor([0.02, 1.0, 9.0])
    assert FocalLoss(alpha, variant="p")(z, y) != FocalLoss(alpha, variant="p_alpha")(z, y)


def test_effective_number_at_its_limits():
    counts = np.array([1, 2, 1000, 10_000_000])
    np.testing.assert_array_equal(effective_number(counts, 0), 1)
    np.testing.assert_array_equal(effective_number(counts, 1), counts)
    np.testing.assert_allclose(effective_number(counts, 1 - 1e-12), counts, rtol=1e-4)
    np.testing.assert_allclose(effective_number([1, 2, 3], 0.9), [1, 1.9, 2.71], rtol=1e-12)
    absent = effective_number_weights([5, 0, 50])
    assert absent[1] == 0 and absent[[0, 2]].mean() == pytest.approx(1)
    for wrong in ({"beta": 1.1}, {"beta": -0.1}, {"normalise": "sum"}):
        with pytest.raises(ValueError):
            effective_number_weights([1, 2], **wrong)
    with pytest.raises(ValueError, match="no class"):
        effective_number_weights([0, 0])


def test_log_weights_are_mild_and_leave_out_a_class_without_images():
    counts = [17354, 90, 0, 14]
    raw = [1 / (math.log(1 + n) + 1e-5) for n in counts if n]
    found = log_weights(counts)
    np.testing.assert_allclose(found[[0, 1, 3]], [w * 3 / sum(raw) for w in raw], rtol=1e-12)
    assert found[2] == 0 and found[3] / found[0] < 4  # against 1,240 for the counts
    torch.testing.assert_close(found[[0, 1, 3]], log_weights(torch.tensor([17354, 90, 14])))
    with pytest.raises(ValueError, match="no class"):
        log_weights([0, 0])
    for wrong in ({"weights": "sqrt"}, {"weights": "log", "beta": 0.9}):
        with pytest.raises(UsageError, match="weights='log' or a beta"):
            make_loss("focal", counts, **wrong)


def test_deferred_weights_start_at_their_epoch():
    assert (drw_weights([5, 500], 159, 160) == 1).all() and (drw_weights([5, 500], 1000, None) == 1).all()
    np.testing.assert_array_equal(drw_weights([5, 500], 160, 160), effective_number_weights([5, 500]))


def test_unknown_losses_and_options_are_refused():
    with pytest.raises(UsageError, match="hybrid"):
        make_loss("hybird", [1, 2])
    with pytest.raises(UsageError, match="lambda_"):
        make_loss("hybrid", [1, 2], lambda_=0.5)
    for wrong in ({"lam": 1.5}, {"gamma": -1}, {"variant": "q"}):
        with pytest.raises(ValueError):
            make_loss("hybrid", [1, 2], **wrong)
