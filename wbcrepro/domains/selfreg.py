"""SelfReg (Kim et al., ICCV 2021), the version in DomainBed: images of one class give the same features and logits.

Pooled features z (N,K) of all sources, projections q = P(z) (N,K) and logits f (N,C). Two random shuffles a, b inside
the classes pair each image with two of its class, of whatever domain (possibly itself); one lambda ~ Beta(0.5, 0.5)
mixes them:

    ind = MSE(f, f_a) + 0.3 MSE(z, q_a)
    mix = MSE(f, lambda f_a + (1 - lambda) f_b) + 0.3 MSE(z, lambda q_a + (1 - lambda) q_b)
    L   = CE + min(CE, 1) [ lambda ind + (1 - lambda) mix ]                   (no gradient through min(CE, 1))

P is a three-layer MLP whose batch norms use batch statistics even where those of the network are frozen. Stochastic
weight averaging and the inter-domain curriculum of the paper are not in DomainBed's version, nor here. Does not differ
from that code otherwise; the order in which it sorts a batch changes nothing.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wbcrepro.domains.algorithm import Algorithm, Minibatch, Settings, join


@dataclass(frozen=True)
class SelfRegSettings(Settings):
    """``alpha``: of the Beta distribution; ``feature_weight``: the 0.3 above."""

    alpha: float = 0.5
    feature_weight: float = 0.3


def projector(dim: int) -> nn.Sequential:
    """(N, dim) to (N, dim) through two hidden layers, of the same width at 2048 (ResNet-50) and twice it elsewhere."""
    hidden = dim if dim == 2048 else 2 * dim
    layers = []
    for a, b in ((dim, hidden), (hidden, hidden), (hidden, dim)):
        layers += [nn.Linear(a, b), nn.BatchNorm1d(b), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def shuffle_within_classes(labels: Tensor) -> Tensor:
    """A random permutation (N,) with labels[permutation] == labels, from torch's global generator."""
    random = torch.rand(len(labels), dtype=torch.float64).to(labels.device)  # drawn on the CPU: the same on a GPU
    permutation = torch.empty_like(labels)
    permutation[labels.argsort(stable=True)] = (labels + random).argsort()
    return permutation


def selfreg_terms(features: Tensor, projections: Tensor, logits: Tensor, a: Tensor, b: Tensor, lam: float,
                  feature_weight: float = 0.3) -> tuple[Tensor, Tensor]:
    """(ind, mix) above, for permutations ``a`` and ``b`` (N,)."""
    def distance(f: Tensor, q: Tensor) -> Tensor:
        return F.mse_loss(logits, f) + feature_weight * F.mse_loss(features, q)

    mixed = [lam * v[a] + (1 - lam) * v[b] for v in (logits, projections)]
    return distance(logits[a], projections[a]), distance(*mixed)


class SelfReg(Algorithm):
    """Cross-entropy plus the dissimilarity of images of one class."""

    def __init__(self, network: nn.Module, counts: Tensor, settings: SelfRegSettings):
        super().__init__(network, counts, settings)
        self.projector = projector(network.info.dim)
        self.optimisers = {"network": self.adam([*network.parameters(), *self.projector.parameters()])}

    def objective(self, minibatches: list[Minibatch]) -> dict[str, Tensor]:
        """``loss``, its ``cross_entropy`` and its ``dissimilarity`` (the bracket above)."""
        x, y, _ = join(minibatches)
        z = self.features(x)
        logits = self.logits(z)
        a, b = shuffle_within_classes(y), shuffle_within_classes(y)
        lam = torch.distributions.Beta(self.settings.alpha, self.settings.alpha).sample().item()
        ind, mix = selfreg_terms(z, self.projector(z), logits, a, b, lam, self.settings.feature_weight)
        ce, term = F.cross_entropy(logits, y), lam * ind + (1 - lam) * mix
        return {"loss": ce + ce.detach().clamp_max(1) * term, "cross_entropy": ce, "dissimilarity": term}
