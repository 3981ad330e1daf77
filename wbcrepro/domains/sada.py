"""SADA, stain-aware domain alignment (Li et al., arXiv 2412.02976): two stages on one network.

Stage 1, ``stage1_steps`` updates, on k views of every image x_i (N,3,S,S) of the joined minibatches, the raw one first
and k - 1 with the stains of other images of the batch (Eq. 1-3, `wbcrepro.stain.augmentation`):

    L_r = L_DISC(z, y) + beta L_LA(E)                                                                       (Eq. 7)

with z (N,k,128) projections of pooled features (Eq. 6, `contrastive`) and E (N,k,128,h,w) embeddings of the last
feature maps (Eq. 4-5, `local_alignment`). Stage 2: cross-entropy of logits (N,C) on the raw images (Eq. 8), which in
the code trains the whole network, not a head on a frozen one (the text does not say), and so it does here. One Adam
with its state serves both stages.

Where paper (the defaults) and released code differ, and the setting that chooses:

- the code runs SupCon on all views (``contrastive="supcon"``) and beta = 0: README's command is no row of the paper;
- it takes means where Eq. 5 and 6 have sums (``reduction``, ``alignment``): a beta is not portable between them;
- its projector is an MLP (``projector="mlp"``), the paper's is linear, of a size not given (we take the code's 128);
- it takes a background off before the separation and adds the donor's (``background``), separates with ten iterations
  in unsorted columns and whitens nearly black pixels of the raw view (``separation="released"``; "fast" is ours);
- it jitters colours, in stage 1 of the synthetic views only and in stage 2 of all images (``jitter="released"``).

Images come cropped and flipped only (``augmentation``): the baselines' jitter and greyscale are not applied, in code
or here. Rows of Table III: M1 is `erm`; M2 has beta = 0; M3 ``contrastive="supcon_raw"`` and beta = 0, on raw views
alone, our reading of "replacing" the loss. Differs from both in: batches smaller than k and any image size work.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wbcrepro.domains.algorithm import Algorithm, Minibatch, Settings, join
from wbcrepro.domains.contrastive import DENOMINATORS, averaged_anchor_loss, supcon_loss
from wbcrepro.domains.local_alignment import FORMS, alignment_head, local_alignment_loss
from wbcrepro.errors import UsageError
from wbcrepro.stain.augmentation import RELEASED, StainAugmentation, stain_views
from wbcrepro.stain.colour_jitter import random_colour_jitter

JITTER = (0.2, 0.25, 0.25, 0.15)
"""Brightness, contrast, saturation and hue of the released code's colour jitter."""
SEPARATIONS = {"fast": StainAugmentation(), "released": RELEASED, "compiled": StainAugmentation(method="compiled")}
"""``compiled``: "fast" by numba on one CPU core, equal to rounding; at a tie of clusters it may take another donor."""


@dataclass(frozen=True)
class SADASettings(Settings):
    """Defaults: the paper's text, with the code's temperature and sizes where the text has none.

    ``k`` counts the views with the raw one, and the stain clusters. ``embedding``: length of projections and of local
    embeddings. ``contrastive="none"`` with beta = 0 has no stage 1.
    """

    contrastive: str = "disc"
    denominator: str = "all_views"
    reduction: str = "sum"
    temperature: float = 0.1
    beta: float = 0.1
    alignment: str = "sum"
    projector: str = "linear"
    embedding: int = 128
    k: int = 3
    background: bool = False
    jitter: str = "none"
    separation: str = "fast"
    stage1_steps: int = 4000


CHOICES = {"contrastive": ("disc", "supcon", "supcon_raw", "none"), "denominator": DENOMINATORS, "alignment": FORMS,
           "reduction": ("sum", "mean"), "projector": ("linear", "mlp"), "jitter": ("none", "released"),
           "separation": tuple(SEPARATIONS)}


class SADA(Algorithm):
    """See the module; ``projector`` and ``alignment`` serve stage 1 and are no part of the network that predicts."""

    augmentation = "geometric"

    def __init__(self, network: nn.Module, counts: Tensor, settings: SADASettings):
        super().__init__(network, counts, settings)
        s = settings
        for name, known in CHOICES.items():
            if getattr(s, name) not in known:
                raise UsageError(f"{name} must be one of {', '.join(known)}; got {getattr(s, name)!r}")
        if s.k < 1 or s.beta < 0 or s.temperature <= 0:
            raise UsageError(f"need k >= 1, beta >= 0, temperature > 0; got {s.k}, {s.beta}, {s.temperature}")
        self.projector = None if s.contrastive == "none" else projector(s.projector, network.info.dim, s.embedding)
        self.alignment = alignment_head(_map_channels(network), out=s.embedding) if s.beta and s.k > 1 else None
        self.optimisers = {"network": self.adam(self.parameters())}
        self.stain = replace(SEPARATIONS[s.separation], background=s.background)
        self.train()

    @property
    def stage(self) -> int:
        """1 while the next update learns features, 2 once it trains the classifier."""
        learns = self.projector is not None or self.alignment is not None
        return 1 if learns and int(self.step) < self.settings.stage1_steps else 2

    def objective(self, minibatches: list[Minibatch]) -> dict[str, Tensor]:
        """``loss``; in stage 1 also its parts ``contrastive`` and ``alignment`` (before beta)."""
        x, y, _ = join(minibatches)
        if self.stage == 1:
            return self.representation(self.views(x), y)
        if self.settings.jitter == "released":
            x = _jitter(x, _generator())
        return {"loss": F.cross_entropy(self.predict(x), y)}

    def views(self, x: Tensor) -> Tensor:
        """The views (N,k,3,S,S) in [0, 1] of images (N,3,S,S); raw ones alone, k = 1, where no loss needs others."""
        s = self.settings
        if s.k == 1 or (s.contrastive in ("supcon_raw", "none") and self.alignment is None):
            return x[:, None]
        jitter = _jitter if s.jitter == "released" else None
        return stain_views(x, k=s.k, generator=_generator(), settings=self.stain, jitter=jitter)

    def representation(self, views: Tensor, y: Tensor) -> dict[str, Tensor]:
        """Eq. 7 on views (N,k,3,S,S) with labels (N,)."""
        s, shape, terms = self.settings, views.shape[:2], {}
        with self.autocast(views):
            inputs = self.inputs(views.flatten(0, 1))
            maps = None if self.alignment is None else self.network.maps(inputs)
            pooled = self.network.embed(inputs) if maps is None else self.network.pool(maps)
            z = None if self.projector is None else self.projector(pooled).unflatten(0, shape)
            local = None if maps is None else self.alignment(maps).unflatten(0, shape)
        loss = 0
        if z is not None:
            loss = terms["contrastive"] = self.contrastive_loss(z, y)
        if local is not None:
            terms["alignment"] = local_alignment_loss(local, s.alignment)
            loss = loss + s.beta * terms["alignment"]
        return {"loss": loss} | terms

    def contrastive_loss(self, z: Tensor, y: Tensor) -> Tensor:
        """The chosen loss of projections (N,k,E) with labels (N,)."""
        s = self.settings
        if s.contrastive == "disc":
            return averaged_anchor_loss(z, y, s.temperature, denominator=s.denominator, reduction=s.reduction)
        if s.contrastive == "supcon":
            return supcon_loss(z.flatten(0, 1), y.repeat_interleave(z.shape[1]), s.temperature, reduction=s.reduction)
        return supcon_loss(z[:, 0], y, s.temperature, reduction=s.reduction)


def projector(kind: str, dim: int, out: int) -> nn.Module:
    """f_p from (N, dim) to (N, out): one linear layer (paper) or, with one hidden layer of ``dim``, two (code)."""
    if kind == "linear":
        return nn.Linear(dim, out)
    return nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, out))


@torch.no_grad()
def _map_channels(network: nn.Module) -> int:
    """Channels of the last maps, counted on those of one blank image; leaves the network in eval mode."""
    blank = torch.zeros(1, 3, 64, 64, device=next(network.parameters()).device)
    return network.eval().maps(blank).shape[1]


def _jitter(images: Tensor, generator: torch.Generator) -> Tensor:
    return random_colour_jitter(images, JITTER, generator)


def _generator() -> torch.Generator:
    """A new stream that begins where torch's global generator is, so that a checkpoint of that one is enough."""
    return torch.Generator().manual_seed(int(torch.randint(2**62, ())))
