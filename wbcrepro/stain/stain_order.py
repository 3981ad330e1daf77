"""Which of two stains is the nucleus's, decided by what the stain does in the image.

The usual rule (torchstain, staintools) calls the stain that absorbs more red haematoxylin and puts it first. That is a
rule for haematoxylin and eosin. A factorisation of Romanowsky-stained blood often returns one column for the dark
purple of the nucleus and one for the grey or pink of everything else, and the latter may well be the redder absorber.
Here the nuclear stain is the one whose density is concentrated in the darkest pixels: nuclei are the darkest things
in a smear. Both rules are measured on masks by :func:`wbcrepro.stain.separation_evaluation.order_accuracy`.
"""

import math

import torch

from wbcrepro.stain.percentiles import ranks, value_at

DARKEST = 0.10


def darkest_pixels(od: torch.Tensor, share: float = DARKEST) -> torch.Tensor:
    """True (N,P) for the ``share`` of the pixels of OD (N,3,P) whose mean over the channels is highest (ties too)."""
    darkness = od.mean(1)
    n, p = darkness.shape
    rank = p - 1 - ranks(1 - share, torch.full((n,), p, device=od.device), "nearest")
    limit = -value_at(-darkness, rank, min(p, math.ceil(share * p) + 2))
    return darkness >= limit[:, None].to(darkness.dtype)


def second_is_nuclear(od: torch.Tensor, densities: torch.Tensor) -> torch.Tensor:
    """True (N,) where stain 1, not stain 0, of densities (N,2,P) has more of itself in the darkest tenth of OD (N,3,P).

    Compared is the share of each stain's total density that lies there, so that the scale of a stain does not count.
    """
    dark = darkest_pixels(od)[:, :, None].to(densities.dtype)
    total = densities.sum(2)
    share = torch.bmm(densities, dark)[:, :, 0] / torch.where(total > 0, total, 1)
    return share[:, 1] > share[:, 0]


def second_is_redder(stains: torch.Tensor) -> torch.Tensor:
    """The usual rule: True (N,) where column 1 of stain matrices (N,3,2) absorbs more red than column 0."""
    return stains[:, 0, 1] > stains[:, 0, 0]
