"""Inter-domain mixup (Zhang et al., ICLR 2018; Yan et al. 2020), as in DomainBed: images of two laboratories in one.

A random permutation of the D source domains is closed to a cycle; each of its D pairs (d, e) draws one
lambda ~ Beta(alpha, alpha), and with minibatches x_d, x_e (B,3,S,S), labels y_d, y_e (B,)

    x = lambda x_d + (1 - lambda) x_e
    L = 1/D sum_pairs [ lambda CE(f(x), y_d) + (1 - lambda) CE(f(x), y_e) ]

Minibatches of unequal size are cut to the shorter. Differs from the released code in: all pairs go through the network
in one pass, which changes something only for batch norms in training mode; the draws come from torch's generator.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from wbcrepro.domains.algorithm import Algorithm, Minibatch, Settings


@dataclass(frozen=True)
class MixupSettings(Settings):
    """``alpha``: of the Beta distribution; 0.2 leaves most images nearly unmixed."""

    alpha: float = 0.2


def mix_domains(minibatches: list[Minibatch], permutation: list[int],
                lambdas: list[float]) -> list[tuple[Tensor, Tensor, Tensor, float]]:
    """(mixed images, first labels, second labels, lambda) of each cyclic pair of ``permutation``."""
    found = []
    for k, lam in enumerate(lambdas):
        (x_d, y_d), (x_e, y_e) = (minibatches[permutation[(k + side) % len(permutation)]] for side in (0, 1))
        n = min(len(x_d), len(x_e))
        found.append((lam * x_d[:n] + (1 - lam) * x_e[:n], y_d[:n], y_e[:n], lam))
    return found


def mixed_cross_entropy(logits: Tensor, first: Tensor, second: Tensor, lam: float) -> Tensor:
    """lambda CE(logits, first) + (1 - lambda) CE(logits, second) for logits (B,C) and labels (B,)."""
    return lam * F.cross_entropy(logits, first) + (1 - lam) * F.cross_entropy(logits, second)


class Mixup(Algorithm):
    """Cross-entropy of images mixed across domains."""

    def objective(self, minibatches: list[Minibatch]) -> dict[str, Tensor]:
        """``loss``: the mean over pairs."""
        permutation = torch.randperm(len(minibatches)).tolist()
        beta = torch.distributions.Beta(self.settings.alpha, self.settings.alpha)
        mixed = mix_domains(minibatches, permutation, beta.sample((len(minibatches),)).tolist())
        logits = self.predict(torch.cat([pair[0] for pair in mixed])).split([len(pair[0]) for pair in mixed])
        return {"loss": torch.stack([mixed_cross_entropy(z, *pair[1:])
                                     for z, pair in zip(logits, mixed, strict=True)]).mean()}
