"""SADA's stain augmentation: the cells of a batch, re-stained with the stains of other cells of the batch.

Source: Li et al., arXiv 2412.02976, section III-A. Each image is separated into W_i H_i (Eq. 1); k-means groups the
batch by stain; an image gets one view for each of the k - 1 other clusters, with a random donor t from it:

    Norm(H_i, H_t) = H_i P(H_t) / P(H_i)           P: 99th percentile of each row                       (Eq. 2)
    x_i*           = X0 exp(-W_t Norm(H_i, H_t))                                                        (Eq. 3)

``background=True`` is the released code: a background B is taken off before the separation, clustered together with W,
and the donor's is added back. ``False`` is the text, which has none. The released code also jitters the colours of the
new views only; hand that in as ``jitter``.

Differs from the released code in: any image size; a batch without enough clusters (fewer images than k, equal images)
takes its donors from whatever other images there are; an image that has no two stains is nobody's donor and its views
are copies of it; there such batches fail or never end.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from wbcrepro.errors import UsageError
from wbcrepro.stain.clusters import kmeans_labels
from wbcrepro.stain.optical_density import _exp_
from wbcrepro.stain.snmf import EPSILON, SEPARATED, Separation, row_quantile, separate, whiten_dark

Jitter = Callable[[torch.Tensor, torch.Generator], torch.Tensor]


@dataclass(frozen=True)
class StainAugmentation:
    """Settings of :func:`stain_views`; the defaults are ours, :data:`RELEASED` is the released code.

    method, order, sparsity: of :func:`wbcrepro.stain.snmf.separate`. background: estimate, cluster and transfer it.
    raw_dark_to_white: nearly black pixels are white in the raw view too (released: a side effect).
    """

    method: str = "fast"
    order: str = "dark_nucleus"
    sparsity: float = 1e-4
    background: bool = True
    raw_dark_to_white: bool = False


RELEASED = StainAugmentation(method="released", order="as_fitted", raw_dark_to_white=True)
PAPER = StainAugmentation(method="released", order="as_fitted", background=False)


def stain_vectors(found: Separation, background: bool = True) -> torch.Tensor:
    """What is clustered: W row by row (N,6), followed by B (N,9) if ``background``."""
    w = found.W.flatten(1)
    return torch.cat([w, found.B.flatten(1)], 1) if background else w


def choose_donors(labels: torch.Tensor, usable: torch.Tensor, k: int, generator: torch.Generator) -> torch.Tensor:
    """Donors int64 (N, k-1): for view j of an image a random ``usable`` (N,) image of the j-th other cluster.

    Where clusters are lacking, any usable image of another cluster serves, then any other usable image, then the image
    itself. On the CPU, since it is a handful of numbers.
    """
    n = len(labels)
    donors = torch.arange(n)[:, None].repeat(1, k - 1)
    lots = torch.rand(n, k - 1, n, generator=generator, device=generator.device).cpu()
    same = labels[:, None] == labels[None]
    itself = torch.eye(n, dtype=torch.bool)
    for view in range(k - 1):
        other = torch.arange(k).expand(n, k)[torch.arange(k) != labels[:, None]].reshape(n, k - 1)[:, view]
        wanted = (labels[None] == other[:, None]).float() * 4 + (~same).float() * 2 + (~itself).float()
        score = torch.where(usable[None], wanted + lots[:, view], -1)
        best = score.max(1)
        donors[:, view] = torch.where(best.values > 0, best.indices, donors[:, view])
    return torch.where(usable[:, None], donors, torch.arange(n)[:, None])


def restain(
    densities: torch.Tensor, peaks: torch.Tensor, stains: torch.Tensor, background: torch.Tensor, own: torch.Tensor
) -> torch.Tensor:
    """Eq. 2 and 3: light (M,3,P) in (0,1] of densities (M,2,P) under ``stains`` (M,3,2) and ``background`` (M,3,1).

    ``peaks`` (M,2) and ``own`` (M,2): 99th percentiles of the donor's and of the image's own densities.
    """
    scaled = stains * ((peaks + EPSILON) / (own + EPSILON))[:, None]
    return _exp_(torch.baddbmm(background, scaled, densities).neg_())


def _transfer(found: Separation, donors: torch.Tensor, out: torch.Tensor) -> None:
    """Write all views of ``donors`` (N,k-1) to ``out`` (N,k-1,3,H,W)."""
    peaks = row_quantile(found.H, 0.99)
    rows = torch.arange(len(donors), device=donors.device)
    for view, chosen in enumerate(donors.unbind(1)):
        for row in rows.split(1 if out.device.type == "cpu" else len(rows)):  # in the cache of a CPU
            donor = chosen[row]
            light = restain(found.H[row], peaks[donor], found.W[donor], found.B[donor], peaks[row])
            out[row, view] = light.reshape(-1, *out.shape[2:])


@torch.no_grad()
def stain_views(
    images: torch.Tensor,
    *,
    k: int = 3,
    generator: torch.Generator,
    settings: StainAugmentation | None = None,
    jitter: Jitter | None = None,
) -> torch.Tensor:
    """k views (N,k,3,H,W) of each of images, float (N,3,H,W) in [0,1]: the raw one, then k - 1 re-stained ones.

    All draws come from ``generator``: equal states give equal views. ``jitter(views (M,3,H,W), generator)`` changes the
    new views only. Values stay in [0,1]. Raises ``ValueError`` for a wrong shape or dtype, UsageError for k < 1.
    """
    if k < 1:
        raise UsageError(f"k counts the views with the raw one: at least 1, got {k}")
    settings = settings or StainAugmentation()
    found = separate(
        images, method=settings.method, order=settings.order, sparsity=settings.sparsity, background=settings.background
    )
    n, _, height, width = images.shape
    views = images.new_empty(n, k, 3, height, width)
    views[:, 0] = whiten_dark(images) if settings.raw_dark_to_white else images
    if k == 1 or n == 0:
        return views
    usable = (found.codes == SEPARATED).cpu()
    labels = torch.zeros(n, dtype=torch.int64)
    vectors = stain_vectors(found, settings.background).cpu()
    labels[usable] = kmeans_labels(vectors[usable], k, generator=generator)
    donors = choose_donors(labels, usable, k, generator).to(images.device)
    if settings.method == "compiled":
        from wbcrepro.stain.snmf_fast import transfer_compiled

        transfer_compiled(found, donors, views[:, 1:])
    else:
        _transfer(found, donors, views[:, 1:])
    lacking = torch.nonzero(~usable)[:, 0].to(images.device)
    views[lacking, 1:] = images[lacking, None]
    if jitter:
        views[:, 1:] = jitter(views[:, 1:].flatten(0, 1), generator).clamp(0, 1).reshape(n, k - 1, 3, height, width)
    return views
