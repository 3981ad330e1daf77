"""CORAL (Sun & Saenko, ECCV workshops 2016), as DomainBed extends it to many sources: align the first two moments.

For pooled features Z_d (n_d, K) of domain d with mean mu_d (K,) and covariance S_d (K, K) (divided by n_d - 1):

    L = 1/D sum_d CE_d + gamma * 2/(D(D-1)) sum_{d<e} [ |mu_d - mu_e|^2 / K + |S_d - S_e|_F^2 / K^2 ]

The paper (Eq. 1) aligns covariances only, divides by 4 K^2, and has one source and one unlabelled target; the mean
term, the pairs of sources and the divisors are DomainBed's. Differs from that code in: a minibatch of one image has
zero covariance, where division by n - 1 gives NaN. The moments do not look at classes: where laboratories differ in
*which* cells they hold, a penalty of zero means that features no longer tell those cells apart.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from wbcrepro.domains.algorithm import Algorithm, Minibatch, Settings, join, mean_over_domains


@dataclass(frozen=True)
class CORALSettings(Settings):
    """``gamma``: weight of the penalty."""

    gamma: float = 1.0


def moments(z: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (K,) and covariance (K, K) of features (n, K)."""
    mean = z.mean(0)
    centred = z - mean
    return mean, centred.T @ centred / max(len(z) - 1, 1)


def coral_penalty(features: list[Tensor]) -> Tensor:
    """The double sum above without gamma, from one (n_d, K) per domain; 0 for a single domain."""
    found = [moments(z) for z in features]
    pairs = [(a, b) for i, a in enumerate(found) for b in found[i + 1 :]]
    if not pairs:
        return features[0].sum() * 0
    return torch.stack([F.mse_loss(a[0], b[0]) + F.mse_loss(a[1], b[1]) for a, b in pairs]).mean()


class CORAL(Algorithm):
    """Cross-entropy plus the penalty on pooled features."""

    def objective(self, minibatches: list[Minibatch]) -> dict[str, Tensor]:
        """``loss``, its ``cross_entropy`` and its ``penalty`` (before gamma)."""
        x, _, _ = join(minibatches)
        z = self.features(x)
        ce = mean_over_domains(F.cross_entropy, self.logits(z), minibatches)
        penalty = coral_penalty(z.split([len(y) for _, y in minibatches]))
        return {"loss": ce + self.settings.gamma * penalty, "cross_entropy": ce, "penalty": penalty}
