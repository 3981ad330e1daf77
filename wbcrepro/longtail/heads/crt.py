"""Classifier re-training (cRT; Kang et al., ICLR 2020; section 2.2.2 of the paper `decoupled`) on cached features.

The backbone is frozen, so its embeddings of a number P of augmented passes are computed once; epoch e trains on pass
e mod P. All tensors stay in memory and batches are cut from them directly, without a DataLoader.

Differs from the released code of `decoupled`, which decodes and augments every image anew in every epoch and leaves
BatchNorm of the "frozen" backbone in training mode, so that its embeddings are not fixed; and which passes on the last
epoch (``select="last"``) where the text's early stopping implies the best one.
"""

from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from wbcrepro.errors import UsageError
from wbcrepro.longtail.heads.classifiers import make_head
from wbcrepro.longtail.losses import make_loss
from wbcrepro.longtail.samplers import ClassSampler, epoch_indices
from wbcrepro.metrics import scores
from wbcrepro.seeds import derive_seed

Log = Callable[[dict], None]


@dataclass(frozen=True)
class CRTConfig:
    """Defaults are the paper's stage 2; ``weight_decay`` 0 and ``patience`` 10 are from the released code."""

    head: str = "linear"  # or "mlp512bn" (released code)
    epochs: int = 50
    batch_size: int = 256
    lr: float = 1e-3
    weight_decay: float = 0.0
    patience: int = 10
    sampler: str = "class_balanced"
    loss: str = "hybrid"
    loss_options: Mapping = field(default_factory=dict)
    select: str = "best"  # or "last": which epoch's weights are returned


def as_passes(features) -> Tensor:
    """(N, D) or (N, P, D) array or tensor -> tensor (N, P, D)."""
    features = torch.as_tensor(features)
    if features.ndim not in (2, 3):
        raise UsageError(f"features must be (N, D) or (N, P, D), got {tuple(features.shape)}")
    return features[:, None] if features.ndim == 2 else features


@torch.no_grad()
def predict_logits(head: nn.Module, features: Tensor, batch_size: int = 8192) -> Tensor:
    """Logits (..., C) float32 of a head in eval mode for features (..., D) of any float dtype."""
    head.eval()
    flat = features.reshape(-1, features.shape[-1])
    logits = torch.cat([head(part.float()) for part in flat.split(batch_size)])
    return logits.reshape(*features.shape[:-1], -1)


def fit_crt(features, labels, val_features, val_labels, cfg: CRTConfig, *, classes: int, seed: int,
            device: str | torch.device = "cpu", counts=None, log: Log | None = None) -> nn.Module:
    """A new head trained on features (N, P, D) or (N, D) and labels (N,), in eval mode on ``device``.

    Validation is on val_features (M, D) by macro-F1 over ``classes``. ``counts`` (C,) enter the loss; default: those of
    ``labels`` (the released code counts training and validation images). ``log`` receives one dict an epoch.
    """
    features = as_passes(features)
    head = make_head(cfg.head, features.shape[-1], classes, seed=derive_seed("head", seed))
    return retrain(head, features, labels, val_features, val_labels, cfg, classes=classes, seed=seed, device=device,
                   counts=counts, log=log)


def retrain(head: nn.Module, features, labels, val_features, val_labels, cfg: CRTConfig, *, classes: int, seed: int,
            device: str | torch.device = "cpu", counts=None, log: Log | None = None) -> nn.Module:
    """Trains those parameters of ``head`` that require gradients; see `fit_crt`. The result is in eval mode."""
    if cfg.select not in ("best", "last"):
        raise UsageError(f"select must be 'best' or 'last', got {cfg.select!r}")
    features, val_features = as_passes(features).to(device), torch.as_tensor(val_features).to(device)
    labels, val_labels = np.asarray(labels).astype(np.int64), np.asarray(val_labels).astype(np.int64)
    if len(labels) != len(features) or len(val_labels) != len(val_features):
        raise UsageError(f"{len(features)} + {len(val_features)} features, {len(labels)} + {len(val_labels)} labels")
    counts = np.bincount(labels, minlength=classes) if counts is None else np.asarray(counts)
    head, loss = head.to(device), make_loss(cfg.loss, counts, **cfg.loss_options).to(device)
    optimiser = torch.optim.AdamW([p for p in head.parameters() if p.requires_grad], lr=cfg.lr,
                                  weight_decay=cfg.weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, T_max=cfg.epochs)
    sampler, targets = ClassSampler(labels, cfg.sampler), torch.as_tensor(labels, device=device)
    best, best_epoch, best_state = -1.0, -1, deepcopy(head.state_dict())
    for epoch in range(cfg.epochs):
        if hasattr(loss, "set_epoch"):
            loss.set_epoch(epoch)
        order = torch.as_tensor(epoch_indices(sampler, seed, epoch, cfg.epochs), device=device)
        lr = schedule.get_last_lr()[0]
        now = features[:, epoch % features.shape[1]]
        train_loss = _epoch(head, loss, optimiser, now, targets, order, cfg.batch_size)
        schedule.step()
        got = scores(val_labels, predict_logits(head, val_features).argmax(-1).cpu().numpy(), classes)
        if got["macro_f1"] > best:
            best, best_epoch, best_state = got["macro_f1"], epoch, deepcopy(head.state_dict())
        if log is not None:
            log({"epoch": epoch, "lr": lr, "loss": train_loss, "val_macro_f1": got["macro_f1"],
                 "val_balanced_accuracy": got["balanced_accuracy"], "best_epoch": best_epoch})
        if epoch - best_epoch >= cfg.patience:
            break
    if cfg.select == "best":
        head.load_state_dict(best_state)
    return head.eval()


def _epoch(head, loss, optimiser, features, targets, order, batch_size: int) -> float:
    """One epoch over ``order``; the incomplete last batch is dropped (as released), unless it is the only one."""
    head.train()
    batches = order.split(batch_size)
    if len(batches) > 1 and len(batches[-1]) < batch_size:
        batches = batches[:-1]
    total = torch.zeros((), device=features.device)
    for batch in batches:
        value = loss(head(features[batch].float()), targets[batch])
        optimiser.zero_grad(set_to_none=True)
        value.backward()
        optimiser.step()
        total += value.detach()
    return float(total) / len(batches)
