"""DANN (Ganin et al., JMLR 2016): features from which a discriminator cannot tell the domain.

With pooled features z_i (K,) of image i, its class y_i and domain d_i, a classifier f and a discriminator g (an MLP
with one logit per source domain), two players take turns:

    discriminator:  min_g      L_d = mean_i CE(g(z_i), d_i)
    network:        min_theta  mean_i CE(f(z_i), y_i) - lambda L_d

The paper seeks the same saddle point (Eq. 9-10) with a gradient-reversal layer in one step and raises lambda during
training; alternating steps, Adam with betas (0.5, 0.9) for both players, the MLP's width and a constant lambda are
DomainBed's. As there the first update is the network's. Differs from that code in: the discriminator's step does not
compute gradients that it throws away; no gradient penalty (0 by default there). `boda` and `sada` name the
baseline without its settings.

Only every second update (for ``d_steps`` 1) trains the classifier: a run sees half the training of the other rows.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wbcrepro.domains.algorithm import Algorithm, Minibatch, Settings, join


@dataclass(frozen=True)
class DANNSettings(Settings):
    """``adversarial_weight``: lambda; ``d_steps``: discriminator steps per network step; width of two hidden layers.

    ``lr_d`` and ``weight_decay_d``: of the discriminator.
    """

    adversarial_weight: float = 1.0
    d_steps: int = 1
    width: int = 256
    lr_d: float = 5e-5
    weight_decay_d: float = 0.0


def discriminator(dim: int, width: int, domains: int) -> nn.Sequential:
    """An MLP (N, dim) to logits (N, domains)."""
    return nn.Sequential(nn.Linear(dim, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(),
                         nn.Linear(width, domains))


class DANN(Algorithm):
    """Classifier and discriminator in turns; two optimisers."""

    def __init__(self, network: nn.Module, counts: Tensor, settings: DANNSettings):
        super().__init__(network, counts, settings)
        self.discriminator = discriminator(network.info.dim, settings.width, len(counts))
        betas = (0.5, 0.9)
        self.optimisers = {"network": self.adam(network.parameters(), betas=betas),
                           "discriminator": self.adam(self.discriminator.parameters(), betas=betas, lr=settings.lr_d,
                                                      weight_decay=settings.weight_decay_d)}

    @property
    def turn(self) -> str:
        """``"discriminator"`` for d_steps updates of each d_steps + 1; the network comes first if d_steps is 1."""
        d_steps = self.settings.d_steps
        return "discriminator" if (int(self.step) + 1) % (1 + d_steps) < d_steps else "network"

    def objective(self, minibatches: list[Minibatch]) -> dict[str, Tensor]:
        """``loss``: what the player whose turn it is minimises; ``discriminator_loss``: L_d in both."""
        x, y, domains = join(minibatches)
        if self.turn == "discriminator":
            with torch.no_grad():
                z = self.features(x)
            loss = F.cross_entropy(self.discriminator(z), domains)
            return {"loss": loss, "discriminator_loss": loss}
        z = self.features(x)
        fooled = F.cross_entropy(self.discriminator(z), domains)
        loss = F.cross_entropy(self.logits(z), y) - self.settings.adversarial_weight * fooled
        return {"loss": loss, "discriminator_loss": fooled}
