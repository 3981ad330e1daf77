"""From a ``head`` cell's configuration to a fitted classifier, and from its stored weights back to a module."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from wbcrepro.errors import UsageError
from wbcrepro.longtail.heads import (
    AdjustedHead,
    CRTConfig,
    NearestMean,
    ScaledHead,
    fit_crt,
    fit_lws,
    fit_ncm,
    fit_tau_norm,
    logit_adjust,
    make_head,
)


@dataclass(frozen=True)
class HeadData:
    """What a classifier may be fitted on.

    ``trained``: stage 1's own head. ``features`` (N, P, D): augmented passes over the training folds; ``plain`` (N, D):
    the same images without augmentation; ``labels`` (N,). ``val_features`` (M, D) and ``val_labels`` (M,) choose
    between epochs or settings and never train.
    """

    trained: nn.Module
    features: Tensor
    plain: Tensor
    labels: Tensor
    val_features: Tensor
    val_labels: Tensor
    classes: int


def _crt_config(options: dict) -> CRTConfig:
    settings = dict(options["optimisation"])
    names = ("beta", "gamma", "lam", "variant")
    loss_options = {name: settings.pop(name) for name in names if name in settings}
    return CRTConfig(**settings, head=options.get("classifier", "linear"), select=options["select"], loss_options=loss_options)


def fit_head(kind: str, data: HeadData, *, options: dict, seed: int, device, log: Callable[[dict], None]) -> nn.Module:
    """Fit the classifier ``kind``: as_trained, crt, lws, tau_norm, ncm or logit_adjustment. In eval mode."""
    common = {"classes": data.classes, "device": device}
    sets = (data.features, data.labels, data.val_features, data.val_labels)
    if kind == "as_trained":
        return data.trained.eval()
    if kind == "crt":
        return fit_crt(*sets, _crt_config(options), seed=seed, log=log, **common)
    if kind == "lws":
        return fit_lws(data.trained, *sets, _crt_config(options), seed=seed, log=log, **common)
    if kind == "tau_norm":
        head = fit_tau_norm(data.trained, data.val_features, data.val_labels.numpy(), log=log)
        log({"chosen_tau": head.tau})
        return head
    if kind == "ncm":
        return fit_ncm(data.plain, data.labels, **common)
    if kind == "logit_adjustment":
        return logit_adjust(data.trained, torch.bincount(data.labels, minlength=data.classes))
    raise UsageError(f"unknown head {kind!r}: expected as_trained, crt, lws, tau_norm, ncm or logit_adjustment")


def _below(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def head_from_state(state: dict[str, Tensor]) -> nn.Module:
    """The classifier whose ``state_dict`` this is, recognised by its names, in eval mode."""
    if "centroids" in state:
        head: nn.Module = NearestMean("cl2n", state["mean"], state["centroids"], state["present"])
    elif "scales" in state:
        head = ScaledHead(head_from_state(_below(state, "linear.")), len(state["scales"]))
    elif "offset" in state:
        head = AdjustedHead(head_from_state(_below(state, "head.")), torch.ones(len(state["offset"])))
    elif "4.weight" in state:
        head = make_head("mlp512bn", state["0.weight"].shape[1], state["4.weight"].shape[0])
    else:
        classes, dim = state["weight"].shape
        head = nn.Linear(dim, classes, bias="bias" in state)
    head.load_state_dict(state)
    return head.eval()
