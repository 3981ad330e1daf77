"""Heads against the reference of Kang et al. (golden), and what retraining must and must not change."""

import hashlib

import numpy as np
import pytest
import torch
from torch import nn

from wbcrepro.errors import UsageError
from wbcrepro.longtail.heads import (
    CosineHead,
    CRTConfig,
    fit_crt,
    fit_head,
    fit_lws,
    fit_ncm,
    fit_tau_norm,
    logit_adjust,
    make_head,
    predict_logits,
    tau_normalise,
)  # fmt: skip
from wbcrepro.longtail.heads.fit import KINDS, crt_config
from wbcrepro.longtail.heads.lws import ScaledHead
from wbcrepro.longtail.heads.tau_norm import TAUS
from wbcrepro.longtail.losses import LDAMLoss
from wbcrepro.metrics import scores

torch.set_num_threads(1)


def golden_linear(file) -> nn.Linear:
    head = nn.Linear(file["weight"].shape[1], file["weight"].shape[0])
    head.load_state_dict({"weight": torch.tensor(file["weight"]), "bias": torch.tensor(file["bias"])})
    return head


def test_golden_tau_normalisation(golden):
    file = golden("classifier_balancing")
    linear, x = golden_linear(file), torch.tensor(file["test_features"])
    np.testing.assert_allclose(TAUS, file["taus"], atol=1e-12)
    for row, tau in enumerate(file["taus"]):
        logits = predict_logits(tau_normalise(linear, float(tau)), x)
        np.testing.assert_array_equal(logits.argmax(1), file["tau_pred"][row])
        if f"tau_logits_{tau:.1f}" in file and abs(tau * 2 - round(tau * 2)) < 1e-9:
            np.testing.assert_allclose(logits, file[f"tau_logits_{tau:.1f}"], atol=1e-5)
    f1 = [scores(file["test_labels"], pred, linear.out_features)["macro_f1"] for pred in file["tau_pred"]]
    steps = []
    chosen = fit_tau_norm(linear, x, file["test_labels"], log=steps.append)
    assert chosen.tau == file["taus"][int(np.argmax(f1))] and chosen.bias is None
    np.testing.assert_allclose([s["val_macro_f1"] for s in steps], f1)


def test_golden_lws(golden):
    file = golden("classifier_balancing")
    linear, x = golden_linear(file), torch.tensor(file["test_features"])
    head = ScaledHead(linear, linear.out_features)
    with torch.no_grad():
        head.scales.copy_(torch.tensor(file["lws_scales"]))
    logits = head(x)
    np.testing.assert_allclose(logits.detach(), file["lws_logits"], atol=1e-5)
    np.testing.assert_array_equal(logits.argmax(1), file["lws_pred"])
    nn.functional.cross_entropy(logits, torch.tensor(file["test_labels"])).backward()
    np.testing.assert_allclose(head.scales.grad, file["lws_grad_scales"], atol=1e-5)
    assert head.linear.weight.grad is None and head.linear.bias.grad is None


def test_golden_nearest_class_mean(golden):
    file = golden("classifier_balancing")
    for kind in ("cl2n", "l2n", "un"):
        head = fit_ncm(file["train_features"], file["train_labels"], classes=len(file["weight"]), kind=kind)
        np.testing.assert_allclose(head.centroids, file[f"ncm_{kind}cs"], atol=1e-5)
        logits = predict_logits(head, torch.tensor(file["test_features"]))
        np.testing.assert_allclose(logits, file[f"ncm_{kind}_logits"], atol=1e-4)
        np.testing.assert_array_equal(logits.argmax(1), file[f"ncm_{kind}_pred"])
    np.testing.assert_allclose(head.mean, file["ncm_mean"], atol=1e-5)


def test_golden_cosine_head_under_ldam(golden):
    file = golden("ldam")
    head = CosineHead(file["weight"].shape[0], file["weight"].shape[1])
    with torch.no_grad():
        head.weight.copy_(torch.tensor(file["weight"].T))
    x = torch.tensor(file["features"], requires_grad=True)
    cosine = head(x)
    np.testing.assert_allclose(cosine.detach(), file["cosine"], atol=1e-6)
    loss = LDAMLoss(file["counts"], drw_start=0)
    loss(cosine, torch.tensor(file["targets"])).backward()
    for got, expected in ((x.grad, file["grad_features_drw"]), (head.weight.grad.T, file["grad_weight_drw"])):
        assert np.abs(got.numpy() - expected).max() <= 1e-4 * np.abs(expected).max()


def test_heads_have_the_released_shape_and_depend_on_their_seed():
    head = make_head("mlp512bn", 2048, 13, seed=1)
    assert sum(p.numel() for p in head.parameters()) == 1_056_781  # as the released notebook prints for ResNet-50
    assert (head[0].bias == 0).all() and (head[4].bias == 0).all()
    assert float(head[0].weight.detach().std()) == pytest.approx((2 / 2048) ** 0.5, rel=0.02)
    before = torch.get_rng_state()
    for kind in ("linear", "mlp512bn", "cosine"):
        one, same, other = (make_head(kind, 16, 5, seed=seed) for seed in (1, 1, 2))
        assert all((a == b).all() for a, b in zip(one.parameters(), same.parameters(), strict=True))
        assert any((a != b).any() for a, b in zip(one.parameters(), other.parameters(), strict=True))
        assert one(torch.randn(4, 16, generator=torch.Generator().manual_seed(0))).shape == (4, 5)
    assert (torch.get_rng_state() == before).all()
    with pytest.raises(UsageError, match="mlp512bn"):
        make_head("mlp", 8, 2)


def long_tail(seed: int = 0, passes: int = 2):
    """Three overlapping classes in 8 dimensions, 600 : 40 : 12, with augmented passes, and a balanced set."""
    rng = np.random.default_rng(seed)
    centres = np.zeros((3, 8))
    centres[1, 0] = centres[2, 1] = 2.2
    labels, balanced = np.repeat([0, 1, 2], [600, 40, 12]), np.repeat([0, 1, 2], 100)
    x = centres[labels] + rng.normal(0, 1, (len(labels), 8))
    features = x[:, None] + rng.normal(0, 0.1, (len(x), passes, 8))
    val = centres[balanced] + rng.normal(0, 1, (len(balanced), 8))
    return torch.tensor(features, dtype=torch.float32), labels, torch.tensor(val, dtype=torch.float32), balanced


def fitted(name: str, stage1: nn.Module, data, **extra):
    x, y, vx, vy = data
    options = {"optimisation": {"epochs": 25, "batch_size": 64, "lr": 0.01, "loss": "cross_entropy"}}
    options = options if name == "crt" else {}
    return fit_head(name, trained=stage1, features=x, plain=x[:, 0], labels=torch.tensor(y), val_features=vx,
                    val_labels=torch.tensor(vy), classes=3, options=options | extra, seed=3)


@pytest.fixture(scope="module")
def stage1():
    x, y, vx, vy = long_tail()
    cfg = CRTConfig(epochs=80, batch_size=64, lr=0.02, sampler="instance", loss="cross_entropy", patience=80,
                    select="last")
    return fit_crt(x, y, vx, vy, cfg, classes=3, seed=0)


@pytest.mark.parametrize("name", [k for k in KINDS if k != "as_trained"])
def test_every_rebalancing_raises_the_recall_of_the_tail_and_leaves_stage_1_alone(name, stage1):
    data = long_tail()
    test = long_tail(seed=9)
    before = {k: v.clone() for k, v in stage1.state_dict().items()}
    head, chosen = fitted(name, stage1, data)
    assert not head.training
    assert all((stage1.state_dict()[k] == v).all() for k, v in before.items())
    plain, better = (scores(test[3], predict_logits(h, test[2]).argmax(1), 3) for h in (stage1, head))
    assert better["per_class"]["recall"][2] > plain["per_class"]["recall"][2] + 0.1, (plain, better)
    assert better["balanced_accuracy"] > plain["balanced_accuracy"] + 0.05
    assert predict_logits(head, data[0]).shape == (*data[0].shape[:2], 3)
    assert isinstance(chosen, dict)


def test_crt_starts_anew_and_is_reproducible(stage1):
    data = long_tail()
    a, b = fitted("crt", stage1, data)[0], fitted("crt", make_head("linear", 8, 3, seed=77), data)[0]
    assert (a.weight == b.weight).all(), "cRT must not depend on the stage-1 head: it re-initialises"
    digest = hashlib.sha256(a.weight.detach().numpy().tobytes()).hexdigest()
    torch.manual_seed(123)  # the global generator plays no part
    assert hashlib.sha256(fitted("crt", stage1, data)[0].weight.detach().numpy().tobytes()).hexdigest() == digest


def test_best_and_last_epoch_differ_and_patience_stops():
    x, y, vx, vy = long_tail()
    rows: dict[str, list] = {"best": [], "last": []}
    heads = {}
    for select in rows:
        cfg = CRTConfig(epochs=60, batch_size=64, lr=0.05, patience=4, select=select)
        heads[select] = fit_crt(x, y, vx, vy, cfg, classes=3, seed=1, log=rows[select].append)
    assert rows["best"] == rows["last"]
    history = [r["val_macro_f1"] for r in rows["best"]]
    best = int(np.argmax(history))
    assert rows["best"][-1]["best_epoch"] == best and len(history) == best + 5 < 60
    for select, epoch in (("best", best), ("last", len(history) - 1)):
        got = scores(vy, predict_logits(heads[select], vx).argmax(1), 3)["macro_f1"]
        assert got == pytest.approx(history[epoch])
    lrs = [r["lr"] for r in rows["best"]]
    np.testing.assert_allclose(lrs, [0.05 * (1 + np.cos(np.pi * e / 60)) / 2 for e in range(len(lrs))], rtol=1e-6)


def test_epochs_go_through_the_passes_in_turn():
    """A pass of noise spoils every other epoch: its loss is far above that of the clean pass."""
    x, y, vx, vy = long_tail()
    x[:, 1] = torch.randn(x[:, 1].shape, generator=torch.Generator().manual_seed(0)) * 5
    rows = []
    fit_crt(x, y, vx, vy, CRTConfig(epochs=8, batch_size=64, lr=1e-3, patience=8), classes=3, seed=0, log=rows.append)
    loss = [r["loss"] for r in rows]
    assert min(loss[1::2]) > 1.3 * max(loss[0::2])


def test_counts_of_the_caller_enter_the_loss():
    x, y, vx, vy = long_tail()
    cfg = CRTConfig(epochs=2, batch_size=64)
    heads = [fit_crt(x, y, vx, vy, cfg, classes=3, seed=0, counts=c) for c in (None, [600, 40, 12], [1, 1, 1])]
    assert (heads[0].weight == heads[1].weight).all() and (heads[0].weight != heads[2].weight).any()


def test_half_precision_features_and_a_missing_class_are_fine():
    x, y, vx, vy = long_tail()
    keep = y != 1
    for kind in ("linear", "mlp512bn", "cosine"):
        head = fit_crt(x[keep].half(), y[keep], vx.half(), vy, CRTConfig(head=kind, epochs=3), classes=3, seed=0)
        logits = predict_logits(head, vx.half())
        assert logits.dtype == torch.float32 and torch.isfinite(logits).all() and logits.shape == (300, 3)
    ncm = fit_ncm(x[keep], y[keep], classes=3)
    probabilities = predict_logits(ncm, vx).softmax(-1)
    assert (probabilities[:, 1] == 0).all() and torch.isfinite(probabilities).all()
    linear = make_head("linear", 8, 3, seed=0)
    assert torch.isfinite(predict_logits(logit_adjust(linear, np.bincount(y[keep], minlength=3)), vx)).all()


def test_logit_adjustment_is_the_formula():
    linear, x = make_head("linear", 8, 3, seed=0), torch.randn(5, 8)
    prior = np.array([0.7, 0.2, 0.1])
    got = predict_logits(logit_adjust(linear, prior * 1000, tau=1.5), x)
    np.testing.assert_allclose(got, linear(x).detach() - 1.5 * torch.tensor(np.log(prior)), rtol=1e-5)


def test_frozen_means_parameters_and_buffers():
    """LWS over a head with BatchNorm leaves its running statistics bit-identical."""
    x, y, vx, vy = long_tail()
    base = make_head("mlp512bn", 8, 3, seed=0)
    before = {k: v.clone() for k, v in base.state_dict().items()}
    cfg = CRTConfig(epochs=3, batch_size=64, lr=0.05, patience=3, select="last")
    head = fit_lws(base, x, y, vx, vy, cfg, classes=3, seed=0)
    assert all((head.linear.state_dict()[k] == v).all() for k, v in before.items())
    assert (head.scales != 1).all()


def test_wrong_requests_are_refused(stage1):
    x, y, vx, vy = long_tail()
    with pytest.raises(UsageError, match="select"):
        fit_crt(x, y, vx, vy, CRTConfig(select="first"), classes=3, seed=0)
    with pytest.raises(UsageError, match="features"):
        fit_crt(x, y[:-1], vx, vy, CRTConfig(), classes=3, seed=0)
    with pytest.raises(UsageError, match="needs a linear head"):
        tau_normalise(make_head("mlp512bn", 8, 3), 1.0)
    with pytest.raises(UsageError, match="unknown head"):
        fitted("crtt", stage1, long_tail())
    with pytest.raises(UsageError, match="learning_rate"):
        crt_config(optimisation={"learning_rate": 1})


def test_yaml_options_become_a_config():
    got = crt_config("mlp512bn", "last", {"loss": "hybrid", "beta": 0.9, "gamma": 1.0, "lam": 0.2, "lr": 0.1,
                                          "epochs": 7, "variant": "p_alpha", "patience": 3, "weight_decay": 0.0,
                                          "batch_size": 8})
    assert got == CRTConfig("mlp512bn", 7, 8, 0.1, 0.0, 3, "class_balanced", "hybrid",
                            {"beta": 0.9, "gamma": 1.0, "lam": 0.2, "variant": "p_alpha"}, "last")
