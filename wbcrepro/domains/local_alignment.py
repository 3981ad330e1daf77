"""SADA's local alignment (Eq. 4-5): the same place of the same cell has the same embedding whatever its stain.

The last feature maps F of the backbone, before pooling, go through 1x1 convolution, ReLU, 1x1 convolution to E, and E
is scaled to unit length u at each of the h x w positions p. With the raw view u_i and the k - 1 re-stained views u_i^t:

    L_LA = sum_i sum_p 1/(k-1) sum_t || u_{i,p} - u_{i,p}^t ||^2            (``form="sum"``, the paper)

The released code takes the mean of squares over images, embedding channels and positions (``form="mean"``), so

    sum = N D_e h w mean      (1,960 in the golden file; 128 x 49 = 6,272 an image for ResNet-50 at 224 px)

and at most 4 / D_e in all where the paper's is at most 4 h w an image. A beta means nothing without its form: since
Eq. 6 is summed over the N images too, L_DISC + beta L_LA with sums has N times the gradient of the means with
``mean_form_beta(beta, D_e, h, w)`` = beta D_e h w (627 for the paper's 0.1 in that case). The release ships beta = 0.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wbcrepro.domains.distributed import processes

FORMS = ("sum", "mean")


def alignment_head(channels: int, hidden: int | None = None, out: int = 128) -> nn.Sequential:
    """f_l of the paper: (M, channels, h, w) to (M, out, h, w); ``hidden`` is ``channels`` (2048) in the release."""
    hidden = hidden or channels
    return nn.Sequential(nn.Conv2d(channels, hidden, 1), nn.ReLU(), nn.Conv2d(hidden, out, 1))


def local_alignment_loss(embedded: Tensor, form: str = "sum") -> Tensor:
    """Eq. 5 for embedded maps (N, k, D_e, h, w) of any length over D_e, the raw view first: a scalar, 0 for k = 1.

    Gradients flow into the raw view as well. Half precision is raised to float32. Images are not compared with each
    other, so each of several processes sums over its own; "sum" is multiplied by their number because gradients are
    averaged over them. Raises ValueError for another shape or an unknown form.
    """
    if form not in FORMS or embedded.ndim != 5:
        raise ValueError(f"need form in {FORMS} and maps (N, k, D_e, h, w), got {form!r} and {tuple(embedded.shape)}")
    n, k, channels, height, width = embedded.shape
    unit = F.normalize(embedded if embedded.dtype == torch.float64 else embedded.float(), dim=2)
    total = (unit[:, :1] - unit[:, 1:]).square().sum() / max(k - 1, 1)
    return total * processes() if form == "sum" else total / (n * channels * height * width)


def mean_form_beta(beta: float, channels: int, height: int, width: int) -> float:
    """The beta of the mean forms that does what ``beta`` does in Eq. 7 with both losses summed, as printed."""
    return beta * channels * height * width
