"""Measures of a stain normalisation: what failed, what subsampling costs, and whether a stain finds the nucleus."""

from collections.abc import Iterable

import pandas as pd
import torch
from scipy.stats import rankdata

from wbcrepro.stain.macenko import NORMALISED, STATUSES, StainEstimate, macenko_codes
from wbcrepro.stain.reference import StainReference


def status_report(statuses: Iterable[str], groups: Iterable[str] | None = None) -> pd.DataFrame:
    """Counts of every status, zero included: one row "all", and one for each of ``groups`` (domain, class) if given."""
    table = pd.DataFrame({"status": list(statuses)})
    table["group"] = list(groups) if groups is not None else "all"
    if unknown := set(table["status"]) - {*STATUSES, "none"}:
        raise ValueError(f"unknown statuses {sorted(unknown)}; expected {', '.join(STATUSES)} or none")
    columns = [*STATUSES, *(["none"] if "none" in set(table["status"]) else [])]
    counts = pd.crosstab(table["group"], table["status"]).reindex(columns=columns, fill_value=0)
    if groups is not None:
        counts.loc["all"] = counts.sum()
    return counts.rename_axis(index=None, columns=None)


def subsample_error(images: torch.Tensor, subsample: int, reference: StainReference | None = None, **options) -> dict:
    """Grey-level error of ``subsample=s`` against the exact estimate, over the images (N,3,H,W) that both normalise.

    ``mean`` over all values; ``worst_image`` the largest mean of one image; ``largest`` of one value; ``images``
    compared; ``status_changed`` images with another status.
    """
    exact, before = macenko_codes(images, reference, **options)
    quick, after = macenko_codes(images, reference, subsample=subsample, **options)
    both = (before == NORMALISED) & (after == NORMALISED)
    error = (exact[both].int() - quick[both].int()).abs().flatten(1)
    found = {"images": int(both.sum()), "status_changed": int((before != after).sum())}
    if not found["images"]:
        return {**found, "mean": float("nan"), "worst_image": float("nan"), "largest": float("nan")}
    by_image = error.double().mean(1)
    largest = int(error.max())
    return {**found, "mean": float(by_image.mean()), "worst_image": float(by_image.max()), "largest": largest}


def densities(od: torch.Tensor, estimate: StainEstimate) -> torch.Tensor:
    """Density (N,2,P) of both stains in every pixel of OD (N,3,P)."""
    return torch.bmm(estimate.inverse.to(od.dtype), od)


def nucleus_auc(density: torch.Tensor, nucleus: torch.Tensor) -> torch.Tensor:
    """How well each stain alone tells nucleus from the rest: AUC (N,2) of density (N,2,P) against masks (N,P).

    The chance that a random nuclear pixel holds more stain than a random other one; NaN where a mask is empty or full.
    """
    ranked = torch.from_numpy(rankdata(density.cpu().numpy(), axis=-1))
    inside = nucleus.cpu()[:, None].double()
    n, p = inside.sum(2), density.shape[2]
    return ((ranked * inside).sum(2) - n * (n + 1) / 2) / (n * (p - n))
