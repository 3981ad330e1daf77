"""BoDA (Yang et al., ECCV 2022), the loss of the poster `boda`: align domains class by class, and rare pairs more.

Image i of domain d_i and class c_i has pooled features z_i (K,). A (domain, class) pair with N_{d,c} training images
has a centroid mu_{d,c} (K,); M is the set of pairs with images. With the balanced distance and the calibration

    s_{i,(d,c)} = - (N_{d,c} / N_{d_i,c_i})^nu * |z_i - mu_{d,c}| / N_{d_i,c_i} / T

    L_i = 1/(|D|-1) sum_{d != d_i, (d,c_i) in M} [ log sum_{(d',c') in M, not own} exp s_{i,(d',c')} - s_{i,(d,c_i)} ]
    L   = CE + lambda L_BoDA [+ macro_weight * CORAL penalty],   L_BoDA = sum_i L_i

``reduction="poster"`` is this sum; ``"mean"`` (the official code) averages the brackets over all their (i, d). The
poster prints its weight w_{d_i,c_i} without an index for the target; the calibration above is the official code's, and
so is the penalty, which the poster does not have (``macro_weight=0``). Centroids carry no gradient; every ``refresh``
updates they become (1 - momentum) new + momentum old, new being the means over the whole source training set. The term
is on from the update with index ``start``.

**What it can and cannot do for a class that lives in one domain only** (the poster's `lymphocyte_atypical`): such an
image has no other domain to be drawn to, so it is never an anchor and adds no term. Its centroid stands only in the
denominators of other images: they are pushed away from it, it is pulled nowhere. What such a class gains comes from
its neighbours moving off, and from the cross-entropy. And because s is divided by N_{d_i,c_i}, the gradient of a pair
with hundreds of images is next to nothing: the term acts on pairs with a few.

Differs from the released code in: log-sum-exp instead of the log of a sum (which is -inf there once all exponentials
underflow); 0, not NaN, for a batch in which no image has a positive; if ``start`` comes before the first refresh,
centroids are made at ``start``.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wbcrepro.domains.algorithm import Algorithm, Minibatch, Passes, Settings, join, mean_over_domains
from wbcrepro.domains.coral import coral_penalty
from wbcrepro.errors import UsageError, WbcreproError


@dataclass(frozen=True)
class BoDASettings(Settings):
    """Defaults of the official code; the poster states none. ``weight``: lambda; ``momentum``: of the *old* centroid.

    ``binary_cross_entropy``: the poster's printed form, see `binary_cross_entropy`.
    """

    weight: float = 0.1
    nu: float = 0.5
    temperature: float = 1.0
    momentum: float = 0.2
    start: int = 500
    refresh: int = 120
    macro_weight: float = 1.0
    reduction: str = "mean"
    binary_cross_entropy: bool = False


def positives(labels: Tensor, domains: Tensor, counts: Tensor) -> Tensor:
    """bool (N, D): domain d is not image i's own and has its class, so that image i is drawn to that centroid."""
    other = domains[:, None] != torch.arange(len(counts), device=domains.device)
    return (counts > 0)[:, labels].T & other


def boda_terms(features: Tensor, labels: Tensor, domains: Tensor, centroids: Tensor, counts: Tensor, nu: float = 0.5,
               temperature: float = 1.0) -> Tensor:
    """The brackets of L_i, (N, D); 0 for the own domain and where domain d has no image of the class.

    features (N,K), labels and domains int64 (N,), centroids (D,C,K), finite even where they do not count, counts (D,C).
    """
    n, (d, c) = len(features), counts.shape
    positive, exists = positives(labels, domains, counts), counts.flatten() > 0
    own = F.one_hot(domains * c + labels, d * c).bool()
    counts = counts.to(features.dtype)
    anchor = counts[domains, labels].clamp_min(1)[:, None]  # an image of a pair that has none is never in training
    distance = torch.cdist(features, centroids.flatten(0, 1).to(features.dtype),
                           compute_mode="donot_use_mm_for_euclid_dist")
    s = -((counts.flatten() / anchor) ** nu) * distance / anchor / temperature
    log_sum = s.masked_fill(own | ~exists, -torch.inf).logsumexp(1, keepdim=True)
    to_class = s.view(n, d, c).gather(2, labels.view(n, 1, 1).expand(n, d, 1)).squeeze(2)
    return torch.where(positive, log_sum - to_class, torch.zeros_like(to_class))


def boda_loss(features: Tensor, labels: Tensor, domains: Tensor, centroids: Tensor, counts: Tensor, nu: float = 0.5,
              temperature: float = 1.0, reduction: str = "mean") -> Tensor:
    """L_BoDA; arguments as for `boda_terms`, ``reduction`` "mean" or "poster". 0 where no image has a positive."""
    terms = boda_terms(features, labels, domains, centroids, counts, nu, temperature)
    if reduction == "poster":
        return terms.sum() / max(len(counts) - 1, 1)
    return terms.sum() / positives(labels, domains, counts).sum().clamp_min(1)


def binary_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """-mean_i [ log p_{y_i} + sum_{c != y_i} log(1 - p_c) ] with the softmax p of logits (N,C), C > 1.

    The poster prints this form, calls it standard cross-entropy and does not say what its probabilities are; with the
    softmax the two agree on the true class. log(1 - p_c) comes from the other classes: finite where p_c rounds to 1.
    """
    c = logits.shape[1]
    same = torch.eye(c, dtype=torch.bool, device=logits.device)
    others = logits[:, None].expand(-1, c, -1).masked_fill(same, -torch.inf).logsumexp(2) - logits.logsumexp(1, True)
    wrong = others.masked_fill(F.one_hot(labels, c).bool(), 0).sum(1).mean()
    return F.cross_entropy(logits, labels) - wrong


def class_centroids(embed, passes: Passes, shape: tuple[int, int, int], device) -> tuple[Tensor, Tensor]:
    """Means float32 (D,C,K) of ``embed(x)`` over one pass, summed in float64, and how many images each has (D,C)."""
    d, c, k = shape
    total, found = torch.zeros(d * c, k, dtype=torch.float64, device=device), torch.zeros(d * c, device=device).long()
    for domain, x, y in passes():
        member = F.one_hot(domain * c + y, d * c)
        total += member.double().T @ embed(x).double()  # a product, because index_add is not deterministic on a GPU
        found += member.sum(0)
    return (total / found.clamp_min(1)[:, None]).float().view(shape), found.view(d, c)


class BoDA(Algorithm):
    """Cross-entropy, BoDA on pooled features and, if macro_weight is not 0, the CORAL penalty."""

    def __init__(self, network: nn.Module, counts: Tensor, settings: BoDASettings):
        super().__init__(network, counts, settings)
        if settings.reduction not in ("mean", "poster"):
            raise UsageError(f"reduction must be 'mean' or 'poster', got {settings.reduction!r}")
        self.register_buffer("centroids", torch.zeros(*self.counts.shape, network.info.dim))
        self.register_buffer("refreshed", torch.zeros((), dtype=torch.bool))

    def before_step(self, step: int, passes: Passes) -> None:
        """Refresh the centroids where ``step`` is a multiple of ``refresh``; eval mode, no gradients."""
        s = self.settings
        if not (step > 0 and step % s.refresh == 0) and not (step >= s.start and not self.refreshed):
            return
        self.eval()
        with torch.no_grad():
            new, found = class_centroids(self.features, passes, self.centroids.shape, self.counts.device)
        self.train()
        if not torch.equal(found, self.counts):
            raise WbcreproError(f"The pass over the training set saw {found.tolist()} images of each domain and class; "
                                f"the algorithm was built for {self.counts.tolist()}.")
        old = self.centroids if self.refreshed else new
        self.centroids.copy_((1 - s.momentum) * new + s.momentum * old)
        self.refreshed.fill_(True)

    def objective(self, minibatches: list[Minibatch]) -> dict[str, Tensor]:
        """``loss`` and, before their weights, ``cross_entropy``, ``boda`` (0 before ``start``), ``penalty``."""
        s = self.settings
        x, y, domains = join(minibatches)
        z = self.features(x)
        ce = mean_over_domains(binary_cross_entropy if s.binary_cross_entropy else F.cross_entropy, self.logits(z),
                               minibatches)
        boda = penalty = torch.zeros_like(ce)
        if int(self.step) >= s.start:
            boda = boda_loss(z, y, domains, self.centroids, self.counts, s.nu, s.temperature, s.reduction)
        if s.macro_weight:
            penalty = coral_penalty(z.split([len(labels) for _, labels in minibatches]))
        loss = ce + s.macro_weight * penalty + s.weight * boda
        return {"loss": loss, "cross_entropy": ce, "boda": boda, "penalty": penalty}
