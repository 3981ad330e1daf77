"""MixStyle (Zhou et al., ICLR 2021): mix the feature statistics, the "style", of two images, keep the content.

Maps x (N,K,h,w) behind each of the first three stages have, per image and channel over h x w, mean mu and standard
deviation sigma = sqrt(var + 1e-6), both (N,K) and without gradient. With probability p a stage replaces them by a
mixture with those of a partner image j(i), lambda_i ~ Beta(alpha, alpha):

    MixStyle(x_i) = (lambda_i sigma_i + (1 - lambda_i) sigma_j) * (x_i - mu_i) / sigma_i
                    + lambda_i mu_i + (1 - lambda_i) mu_j                                              (Section 2.2)

The loss stays the cross-entropy of the image's own label. ``partner="random"`` draws a permutation of the batch;
``"crossdomain"`` draws each partner from another domain (the paper, which has two domains in a batch, swaps its
halves). p and alpha are the paper's. Differs from the released code in: the three hooks are there only while the
objective is computed, so a copy of the network never carries them; Swin's channels come last.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wbcrepro.domains.algorithm import Algorithm, Minibatch, Settings, join
from wbcrepro.errors import UsageError


@dataclass(frozen=True)
class MixStyleSettings(Settings):
    """``p``: probability of mixing, per stage and step; ``alpha``: of the Beta distribution; ``partner`` as above."""

    p: float = 0.5
    alpha: float = 0.1
    partner: str = "random"


def draw_partners(domains: Tensor, partner: str) -> Tensor:
    """j(i) (N,) for images of ``domains`` (N,), from torch's global generator."""
    if partner == "random":
        return torch.randperm(len(domains))
    other = (domains[:, None] != domains).float().cpu()
    return torch.multinomial(other, 1).squeeze(1)


def mix_style(maps: Tensor, partners: Tensor, lambdas: Tensor, channel_axis: int = 1) -> Tensor:
    """Maps (N,K,h,w), or (N,h,w,K) for ``channel_axis`` 3, with mixed statistics; partners and lambdas are (N,)."""
    x = maps.float() if maps.dtype in (torch.bfloat16, torch.float16) else maps
    space = (2, 3) if channel_axis == 1 else (1, 2)
    with torch.no_grad():
        mu, sigma = x.mean(space, keepdim=True), (x.var(space, keepdim=True) + 1e-6).sqrt()
        lam = lambdas.to(x).view(-1, 1, 1, 1)
        new_mu, new_sigma = (lam * v + (1 - lam) * v[partners] for v in (mu, sigma))
    return ((x - mu) / sigma * new_sigma + new_mu).to(maps.dtype)


class MixStyle(Algorithm):
    """Cross-entropy, with mixed statistics behind the first three stages."""

    def __init__(self, network: nn.Module, counts: Tensor, settings: MixStyleSettings):
        super().__init__(network, counts, settings)
        if settings.partner not in ("random", "crossdomain"):
            raise UsageError(f"partner must be 'random' or 'crossdomain', got {settings.partner!r}")
        if settings.partner == "crossdomain" and len(counts) == 1:
            raise UsageError("partner 'crossdomain' needs at least two source domains")

    def mix(self, maps: Tensor, domains: Tensor) -> Tensor:
        """``maps`` as they are, or with probability p mixed."""
        s = self.settings
        if torch.rand(()) >= s.p:
            return maps
        lambdas = torch.distributions.Beta(s.alpha, s.alpha).sample((len(maps),))
        partners = draw_partners(domains, s.partner).to(maps.device)
        return mix_style(maps, partners, lambdas, self.network.channel_axis)

    def objective(self, minibatches: list[Minibatch]) -> dict[str, Tensor]:
        """``loss``: mean cross-entropy over all images."""
        x, y, domains = join(minibatches)
        hooks = [stage.register_forward_hook(lambda module, inputs, maps: self.mix(maps, domains))
                 for stage in self.network.stages()[:3]]
        try:
            return {"loss": F.cross_entropy(self.predict(x), y)}
        finally:
            for hook in hooks:
                hook.remove()
