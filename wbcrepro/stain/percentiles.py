"""Percentiles of a masked part of each row, near either end, without reading a count back from the device."""

import numpy as np
import torch


def ranks(quantile: float, counts: torch.Tensor, percentile: str) -> torch.Tensor:
    """Rank (N,) of a quantile among ``counts`` (N,) sorted values: whole for "nearest" (halves to even), else real."""
    if percentile not in ("nearest", "linear"):
        raise ValueError(f'percentile is "nearest" or "linear", got {percentile!r}')
    rank = quantile * (counts.to(torch.float64) - 1).clamp_min(0)
    return rank.round() if percentile == "nearest" else rank


def _lowest(values: torch.Tensor, k: int) -> torch.Tensor:
    """The ``k`` lowest values along the last axis, ascending."""
    if values.device.type == "cpu":  # shares memory; NumPy's vectorised selection is several times faster than topk
        part = np.partition(values.numpy(), k - 1, axis=-1)[..., :k]
        return torch.from_numpy(np.sort(part, axis=-1))
    return values.topk(k, dim=-1, largest=False, sorted=True).values


def from_low_end(values: torch.Tensor, rank: torch.Tensor, k: int) -> torch.Tensor:
    """Values (N,2) at ranks floor(rank) and floor(rank) + 1 of the rows of (N,P); floor(rank) + 1 lies below ``k``.

    Entries that do not take part must hold +inf. Where a row has too few values the result is +inf, not an error.
    """
    below = rank.floor().long()
    return _lowest(values, k).gather(1, torch.stack([below, below + 1], 1).clamp(0, k - 1))


def from_high_end(values: torch.Tensor, rank: torch.Tensor, k: int, counts: torch.Tensor) -> torch.Tensor:
    """The same for ranks within ``k`` of the highest of ``counts`` (N,) values; unused entries must hold -inf."""
    below = rank.floor().long()
    from_top = counts[:, None] - 1 - torch.stack([below, below + 1], 1)
    return -_lowest(-values, k).gather(1, from_top.clamp(0, k - 1))


def between(pair: torch.Tensor, rank: torch.Tensor) -> torch.Tensor:
    """Linear interpolation (N,) of a pair (N,2) at the fraction of ``rank``; an infinite pair gives 0."""
    low, high = torch.nan_to_num(pair, 0, 0, 0).unbind(1)
    return low + (high - low) * (rank - rank.floor()).to(low.dtype)


def pseudo_angle(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Grows with atan2(y, x) for one division: 0 at angle 0, 1 at 90 degrees, 2 at 180, negative below the axis."""
    length = (x.abs() + y.abs()).clamp_min(torch.finfo(x.dtype).tiny)
    return torch.copysign(1 - x / length, y)


def true_angle(pseudo: torch.Tensor) -> torch.Tensor:
    """The angle in radians that a pseudo-angle stands for."""
    x = 1 - pseudo.abs()
    return torch.atan2(torch.copysign(1 - x.abs(), pseudo), x)
