"""MixStyle: the formula with loops, its partners, and where it acts."""

import numpy as np
import pytest
import torch
from torch import nn

from wbcrepro.backbones import TINY, Classifier, build_backbone
from wbcrepro.domains import make_algorithm
from wbcrepro.domains.mixstyle import draw_partners, mix_style
from wbcrepro.errors import UsageError


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 0.03)])
def test_it_is_the_loop_over_images_and_channels(dtype, tolerance):
    rng = np.random.default_rng(0)
    maps = torch.tensor(rng.normal(2, 3, (4, 3, 5, 6))).to(dtype)
    partners, lambdas, x = [2, 0, 3, 1], [0.0, 1.0, 0.25, 0.9], maps.double().numpy()
    expected = np.empty_like(x)
    for i, (j, lam) in enumerate(zip(partners, lambdas, strict=True)):
        for k in range(x.shape[1]):
            (mu_i, s_i), (mu_j, s_j) = ((m.mean(), np.sqrt(m.var(ddof=1) + 1e-6)) for m in (x[i, k], x[j, k]))
            sigma, mu = lam * s_i + (1 - lam) * s_j, lam * mu_i + (1 - lam) * mu_j
            expected[i, k] = sigma * (x[i, k] - mu_i) / s_i + mu
    got = mix_style(maps, torch.tensor(partners), torch.tensor(lambdas, dtype=torch.float64))
    assert got.dtype == dtype and np.abs(got.double().numpy() - expected).max() <= tolerance * np.abs(expected).max()
    last = mix_style(maps.permute(0, 2, 3, 1), torch.tensor(partners), torch.tensor(lambdas), channel_axis=3)
    torch.testing.assert_close(last.permute(0, 3, 1, 2), got)


def test_statistics_carry_no_gradient_and_flat_maps_are_finite():
    maps = torch.randn(2, 1, 4, 4, dtype=torch.float64, requires_grad=True)
    mixed = mix_style(maps, torch.tensor([1, 0]), torch.tensor([0.5, 0.5]))
    sigma = (maps.detach().var((2, 3)) + 1e-6).sqrt().flatten()
    gradient, = torch.autograd.grad(mixed.sum(), maps)
    torch.testing.assert_close(gradient, (0.5 * (sigma + sigma.flip(0)) / sigma).view(2, 1, 1, 1).expand_as(maps))
    flat = torch.zeros(2, 3, 4, 4, requires_grad=True)
    mix_style(flat, torch.tensor([1, 0]), torch.tensor([0.1, 0.9])).sum().backward()
    assert torch.isfinite(flat.grad).all()


def test_partners_are_permutations_or_of_another_domain():
    domains = torch.tensor([0, 0, 0, 1, 2, 2])
    for _ in range(20):
        assert draw_partners(domains, "random").sort().values.tolist() == list(range(6))
        assert (domains[draw_partners(domains, "crossdomain")] != domains).all()


def build(domains=2, **settings):
    backbone, info = build_backbone(TINY, "random")
    torch.manual_seed(0)
    network = Classifier(backbone, nn.Linear(info.dim, 3), info)
    return make_algorithm("mixstyle", network, torch.ones(domains, 3, dtype=torch.int64), **settings)


def test_it_acts_in_training_only_and_only_as_often_as_asked():
    batches = [(torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(d)), torch.arange(4) % 3)
               for d in range(2)]
    x, y = torch.cat([b[0] for b in batches]), torch.cat([b[1] for b in batches])
    for partner in ("random", "crossdomain"):
        never, always = build(p=0.0, partner=partner).eval(), build(p=1.0, partner=partner).eval()
        plain = nn.functional.cross_entropy(never.predict(x), y)
        assert never.objective(batches)["loss"] == plain != always.objective(batches)["loss"]
        torch.testing.assert_close(always.predict(x), never.predict(x), rtol=0, atol=0)
    calls, half = [], build(p=0.5)
    half.mix = lambda maps, domains: calls.append(maps.shape[2]) or maps
    half.objective(batches)
    assert calls == [16, 8, 4] and not any(stage._forward_hooks for stage in half.network.stages())


def test_settings_that_cannot_be_are_refused():
    with pytest.raises(UsageError, match="partner must be"):
        build(partner="none")
    with pytest.raises(UsageError, match="two source domains"):
        build(domains=1, partner="crossdomain")
