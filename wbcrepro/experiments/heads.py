"""Classifier heads from their stored weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from wbcrepro.longtail.heads import AdjustedHead, NearestMean, ScaledHead, make_head


def below(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The part of a state dict whose names begin with ``prefix``, without it."""
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def head_from_state(state: dict[str, Tensor]) -> nn.Module:
    """The classifier whose ``state_dict`` this is, recognised by its names, in eval mode."""
    if "centroids" in state:
        head: nn.Module = NearestMean("cl2n", state["mean"], state["centroids"], state["present"])
    elif "scales" in state:
        head = ScaledHead(head_from_state(below(state, "linear.")), len(state["scales"]))
    elif "offset" in state:
        head = AdjustedHead(head_from_state(below(state, "head.")), torch.ones(len(state["offset"])))
    elif "4.weight" in state:
        head = make_head("mlp512bn", state["0.weight"].shape[1], state["4.weight"].shape[0])
    else:
        classes, dim = state["weight"].shape
        head = nn.Linear(dim, classes, bias="bias" in state)
    head.load_state_dict(state)
    return head.eval()
