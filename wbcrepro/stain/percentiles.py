"""Percentiles of a masked part of each row, near either end, without reading a count back from the device."""

import numpy as np
import torch

DTYPES = {"nearest": torch.float32, "linear": torch.float64}  # as torchstain's torch and NumPy backends


def precision(percentile: str) -> torch.dtype:
    """The dtype that goes with a kind of percentile; ``ValueError`` for an unknown kind."""
    if percentile not in DTYPES:
        raise ValueError(f'percentile is "nearest" or "linear", got {percentile!r}')
    return DTYPES[percentile]


def ranks(quantile: float, counts: torch.Tensor, percentile: str) -> torch.Tensor:
    """Rank (N,) of a quantile among ``counts`` (N,) sorted values: whole for "nearest" (halves to even), else real."""
    rank = quantile * (counts.to(torch.float64) - 1).clamp_min(0)
    return rank.round() if percentile == "nearest" else rank


def value_at(values: torch.Tensor, rank: torch.Tensor, k: int) -> torch.Tensor:
    """Value (N,), float64, at a real ``rank`` (N,) of each row of (N,P), interpolated between its two neighbours.

    ``k`` bounds floor(rank) + 2 for every row, so that only the ``k`` lowest values are ever sorted. Values that do not
    take part must hold +inf; a row with none left gives 0, never an error. May reorder ``values``. For a rank near the
    upper end, negate the values and count from the top.
    """
    if values.device.type == "cpu":
        array = values.numpy()  # shares memory; NumPy's vectorised selection is five times faster than topk
        array.partition(k - 1, axis=-1)  # (and slow on many equal *lowest* values, hence +inf and no upper end)
        lowest = torch.from_numpy(np.sort(array[..., :k], axis=-1))
    else:
        lowest = values.topk(k, dim=-1, largest=False, sorted=True).values
    below = rank.floor()
    pair = lowest.gather(1, torch.stack([below, below + 1], 1).long().clamp(0, k - 1)).double()
    low, high = torch.nan_to_num(pair, 0, 0, 0).unbind(1)
    return low + (high - low) * (rank - below)
