"""Contrastive losses of SADA: the averaged-anchor loss (Eq. 6) and the supervised one that its release runs instead.

With z_j the embeddings scaled to unit length, k views of each of N images, a_i the average of the k views of image i
(*not* scaled again) and P(i) all views, its own included, of all images with the class of image i:

    L_DISC = sum_i -1/|P(i)| sum_{j in P(i)} log( exp(a_i . z_j / tau) / sum_m exp(a_i . z_m / tau) )       (Eq. 6)

The last sum is printed over m = 1..N, which read literally is the N raw views (``denominator="raw_views"``; the loss
can then be negative); the released function and the usual reading take all k N views (``"all_views"``). The paper sums
over anchors, the code takes their mean (``reduction``). Differs from the released code in: nothing is added to |P(i)|.

SupCon (Khosla et al., NeurIPS 2020, Eq. 2) has every row as an anchor, itself excluded from P and the denominator. The
release trains with it on all views and leaves the averaged-anchor loss uncalled; on the raw views only, it is our
reading of the paper's ablation M3.

In a run of several processes both are over the images of all of them, see `wbcrepro.domains.distributed`.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from wbcrepro.domains.distributed import gather_rows

DENOMINATORS = ("all_views", "raw_views")
REDUCTIONS = ("mean", "sum", "none")


def averaged_anchor_loss(embeddings: Tensor, labels: Tensor, temperature: float = 0.1, *,
                         denominator: str = "all_views", reduction: str = "mean") -> Tensor:
    """Eq. 6 for embeddings (N, k, d) of any length, the raw view first, and labels (N,): a scalar, or (N,) for "none".

    Finite for a class with one image and for k = 1, where an image is its own only positive. Half precision is raised
    to float32. Raises ValueError for shapes that do not fit and unknown names.
    """
    if denominator not in DENOMINATORS:
        raise ValueError(f"denominator must be one of {DENOMINATORS}, got {denominator!r}")
    z, y = _unit_rows(embeddings, labels, temperature, dims=3)
    k = z.shape[1]
    scores = z.mean(1) @ z.flatten(0, 1).T / temperature  # (N, k N)
    compared = scores if denominator == "all_views" else scores[:, ::k]
    positive = (y[:, None] == y.repeat_interleave(k)).to(z.dtype)
    log_ratio = scores - compared.logsumexp(1, keepdim=True)
    return _reduce(-(positive * log_ratio).sum(1) / positive.sum(1), reduction)


def supcon_loss(embeddings: Tensor, labels: Tensor, temperature: float = 0.1, *, reduction: str = "mean") -> Tensor:
    """SupCon of embeddings (M, d) of any length with labels (M,): a scalar, or (M,) for "none".

    A row without another of its class contributes zero, and counts in the mean: as in the release, 1e-6 is added to the
    number of positives. Raises ValueError for shapes that do not fit and unknown names.
    """
    z, y = _unit_rows(embeddings, labels, temperature, dims=2)
    scores = z @ z.T / temperature  # (M, M)
    itself = torch.eye(len(z), dtype=torch.bool, device=z.device)
    positive = (y[:, None] == y) & ~itself
    # The lowest finite number, not -inf: a batch of one row would have -inf - -inf.
    others = scores.masked_fill(itself, torch.finfo(z.dtype).min).logsumexp(1, keepdim=True)
    log_ratio = torch.where(positive, scores - others, 0)
    return _reduce(-log_ratio.sum(1) / (positive.sum(1) + 1e-6), reduction)


def _unit_rows(embeddings: Tensor, labels: Tensor, temperature: float, dims: int) -> tuple[Tensor, Tensor]:
    """Embeddings of unit length in float32 or float64, and labels, of all processes."""
    if embeddings.ndim != dims or labels.shape != embeddings.shape[:1] or not len(labels):
        raise ValueError(f"need embeddings of {dims} dimensions and one label a row, at least one row; got "
                         f"{tuple(embeddings.shape)} and {tuple(labels.shape)}")
    if temperature <= 0:
        raise ValueError(f"the temperature must be positive, got {temperature}")
    z = embeddings if embeddings.dtype == torch.float64 else embeddings.float()
    return F.normalize(gather_rows(z), dim=-1), gather_rows(labels)


def _reduce(losses: Tensor, reduction: str) -> Tensor:
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction must be one of {REDUCTIONS}, got {reduction!r}")
    return {"mean": losses.mean, "sum": losses.sum, "none": lambda: losses}[reduction]()
