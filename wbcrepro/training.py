"""The training loop: stage 1, and stage 2 as the released code of `decoupled` runs it, both through ``fit``.

Images come as one uint8 array (the pixel cache) and are augmented in batches on the device. Each epoch ends with a
checkpoint, written aside and renamed, the one before being kept; the same call goes on from there, and on a CPU ends
with the same bits as if it had never been interrupted. `decoupled` 3.1: AdamW, cosine schedule per epoch, early
stopping on the macro-F1 of the validation images. One device; a second one would wrap ``model.backbone`` below.
"""

import math
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import nn
from tqdm.auto import tqdm

from wbcrepro import metrics
from wbcrepro.augment import augment as augment_batch
from wbcrepro.augment import occurrences
from wbcrepro.backbones import Classifier
from wbcrepro.checkpoints import load_weights, resume, run_identity, save_checkpoint, save_weights
from wbcrepro.errors import UsageError, WbcreproError
from wbcrepro.inference.tta import view
from wbcrepro.longtail.losses import make_loss
from wbcrepro.longtail.samplers import ClassSampler, epoch_indices
from wbcrepro.seeds import derive_seed

__all__ = ["TrainConfig", "TrainResult", "embed", "fit", "load_weights", "predict", "save_weights"]


@dataclass(frozen=True)
class TrainConfig:
    """How to train; the defaults are stage 1 of `decoupled` (weight decay, patience and drop_last from its code).

    ``batch_size`` is the number of images behind one optimiser step; ``accumulate`` splits it into that many passes for
    small cards (batch normalisation then sees the smaller ones). ``backbone_mode`` matters for a frozen backbone only:
    "eval" leaves its buffers alone, "train" lets batch statistics drift and drop-path act, as the released code does.
    ``drop_last`` never drops the only batch of an epoch; a last batch of one image is always dropped.
    """

    epochs: int = 100
    batch_size: int = 256
    accumulate: int = 1
    lr: float = 1e-4
    weight_decay: float = 0.0
    patience: int | None = 10
    sampler: str = "instance"
    loss: str = "cross_entropy"
    loss_options: dict = field(default_factory=dict)
    augment: str = "randaugment"
    drop_last: bool = True
    amp: bool = True
    channels_last: bool = True
    compile: bool = False
    grad_clip: float | None = None
    freeze_backbone: bool = False
    backbone_mode: str = "eval"
    monitor: str = "macro_f1"
    seed: int = 0


@dataclass(frozen=True)
class TrainResult:
    """``history``: one dict an epoch, as in log.jsonl; ``best_state`` and ``last_state``: safetensors files."""

    best_epoch: int
    epochs_run: int
    history: list[dict]
    best_state: Path
    last_state: Path


def fit(model: Classifier, images: np.ndarray, labels: np.ndarray, train_idx: np.ndarray, val_idx: np.ndarray,
        cfg: TrainConfig, *, classes: int, folder: Path, device: str | torch.device = "cpu",
        progress: bool = True) -> TrainResult:
    """Train ``model`` in place (it ends with the last epoch's weights) and write its files into ``folder``.

    images uint8 (N,3,S,S), labels int64 (N,), ``train_idx`` and ``val_idx`` row numbers. Files: checkpoint.pt and
    checkpoint.previous.pt, log.jsonl, best.safetensors (highest ``cfg.monitor`` on validation) and last.safetensors.
    """
    train_idx, val_idx, device, folder = np.asarray(train_idx), np.asarray(val_idx), torch.device(device), Path(folder)
    if len(train_idx) < 2 or len(val_idx) < 1:
        raise UsageError(f"Training needs 2 training and 1 validation images; got {len(train_idx)} and {len(val_idx)}.")
    folder.mkdir(parents=True, exist_ok=True)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(derive_seed(cfg.seed, "fit"))
        _prepare(model, cfg, device)
        sampler = ClassSampler(labels[train_idx], cfg.sampler)
        loss = make_loss(cfg.loss, np.bincount(labels[train_idx], minlength=classes), **cfg.loss_options).to(device)
        optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=cfg.lr,
                                      weight_decay=cfg.weight_decay)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, T_max=cfg.epochs)
        scaler = torch.amp.GradScaler(device.type, enabled=cfg.amp and device.type == "cuda")
        parts = {"model": model, "optimiser": optimiser, "schedule": schedule, "scaler": scaler}
        identity = run_identity(asdict(cfg) | {"classes": classes}, train_idx, val_idx, labels[train_idx],
                                labels[val_idx])
        history = resume(folder, parts, identity, device)
        best = max(history, key=lambda line: line[cfg.monitor], default=None)  # the first of equals
        if best is not None and best is history[-1]:
            save_weights(model, folder / "best.safetensors")  # a kill after this checkpoint may have come before it
        pixels = Pixels(images, np.concatenate([train_idx, val_idx]), device)
        steps = len(batches(train_idx, cfg))
        bar = tqdm(total=cfg.epochs * steps, initial=len(history) * steps, desc="train", unit="step",
                   disable=not progress)
        while len(history) < cfg.epochs and not _stopped(history, best, cfg):
            epoch, start = len(history), time.perf_counter()
            line = {"epoch": epoch, "lr": schedule.get_last_lr()[0]}
            line |= _train_epoch(model, pixels, labels, train_idx, sampler, cfg, loss, optimiser, scaler, epoch, bar)
            schedule.step()
            line |= _validate(model, pixels, labels, val_idx, cfg, classes)
            history.append(line | {"seconds": round(time.perf_counter() - start, 3)})
            # The checkpoint comes first: a device that does not repeat itself may score a lost epoch otherwise again,
            # and the best weights must be those of an epoch that the history has.
            save_checkpoint(folder, parts, identity, history, device)
            if best is None or line[cfg.monitor] > best[cfg.monitor]:
                best = history[-1]
                save_weights(model, folder / "best.safetensors")
            bar.set_postfix(epoch=epoch, loss=f"{line['loss']:.3f}", **{cfg.monitor: f"{line[cfg.monitor]:.3f}"})
        bar.close()
    save_weights(model, folder / "last.safetensors")
    return TrainResult(best["epoch"], len(history), history, folder / "best.safetensors", folder / "last.safetensors")


def _prepare(model: Classifier, cfg: TrainConfig, device: torch.device) -> None:
    model.to(device, memory_format=torch.channels_last if cfg.channels_last else torch.preserve_format)
    model.requires_grad_(True)
    model.backbone.requires_grad_(not cfg.freeze_backbone)
    if cfg.compile:
        model.backbone.compile()


def _stopped(history: list[dict], best: dict | None, cfg: TrainConfig) -> bool:
    return cfg.patience is not None and best is not None and history[-1]["epoch"] - best["epoch"] >= cfg.patience


def batches(order: np.ndarray, cfg: TrainConfig) -> list[np.ndarray]:
    """Cut an epoch into optimiser batches; see ``TrainConfig`` for what happens to the last one."""
    cut = [order[i : i + cfg.batch_size] for i in range(0, len(order), cfg.batch_size)]
    if len(cut) > 1 and (len(cut[-1]) == 1 or (cfg.drop_last and len(cut[-1]) < cfg.batch_size)):
        cut.pop()
    return cut


def _train_epoch(model, pixels, labels, train_idx, sampler, cfg, loss, optimiser, scaler, epoch: int,
                 bar: tqdm) -> dict:
    """One pass; returns the mean loss and images per second. Reads nothing back from the device before its end."""
    model.train()
    if cfg.freeze_backbone and cfg.backbone_mode == "eval":
        model.backbone.eval()
    if hasattr(loss, "set_epoch"):
        loss.set_epoch(epoch)
    order = epoch_indices(sampler, cfg.seed, epoch, cfg.epochs)
    repeat, device, start = occurrences(order), pixels.device, time.perf_counter()
    total, seen, position = torch.zeros((), device=device), 0, 0
    for batch in batches(order, cfg):
        times = repeat[position : position + len(batch)]
        position += len(batch)
        parts = max(1, min(cfg.accumulate, len(batch) // 2))
        for part, again in zip(np.array_split(batch, parts), np.array_split(times, parts), strict=True):
            rows = train_idx[part]
            inputs = augment_batch(pixels[rows], cfg.augment, seed=cfg.seed, epoch=epoch, index=rows, repeat=again)
            inputs = _layout(model.normalise(inputs), cfg)
            with autocast(device, cfg.amp):
                with torch.no_grad() if cfg.freeze_backbone else nullcontext():
                    embeddings = model.embed(inputs)
                logits = model.head(embeddings)
            value = loss(logits.float(), torch.from_numpy(labels[rows]).to(device))
            scaler.scale(value * (len(rows) / len(batch))).backward()
            total += value.detach() * len(rows)
        if cfg.grad_clip is not None:
            scaler.unscale_(optimiser)
            nn.utils.clip_grad_norm_(model.parameters(), cfg.grad_clip)
        scaler.step(optimiser)
        scaler.update()
        optimiser.zero_grad(set_to_none=True)
        seen += len(batch)
        bar.update()
    mean = float(total) / seen
    if not math.isfinite(mean):
        raise WbcreproError(f"The training loss of epoch {epoch} is {mean}. Next step: a lower learning rate (lr is "
                            f"{cfg.lr}), gradient clipping, or amp off.")
    return {"loss": mean, "images_per_second": round(seen / (time.perf_counter() - start), 1)}


def _validate(model, pixels, labels, val_idx, cfg, classes: int) -> dict:
    probabilities = _run(model, pixels, val_idx, ["identity"], _softmax, amp=cfg.amp)[:, 0]
    found = metrics.scores(labels[val_idx], probabilities.argmax(1), classes)
    picked = probabilities[np.arange(len(val_idx)), labels[val_idx]]
    names = {"macro_f1", "balanced_accuracy", "accuracy", cfg.monitor}
    return {"val_loss": float(-np.log(np.maximum(picked, 1e-12)).mean()), **{n: float(found[n]) for n in sorted(names)}}


class Pixels:
    """Rows of a uint8 array (N,3,S,S) as tensors on a device; kept there whole when they fit half its free memory."""

    def __init__(self, images: np.ndarray, rows: np.ndarray, device: torch.device):
        self.images, self.device, self.resident = images, device, None
        needed = len(rows) * int(np.prod(images.shape[1:]))
        if device.type == "cuda" and needed < torch.cuda.mem_get_info(device)[0] / 2:
            rows = np.unique(rows)
            self.position = np.full(len(images), -1)
            self.position[rows] = np.arange(len(rows))
            self.resident = torch.empty((len(rows), *images.shape[1:]), dtype=torch.uint8, device=device)
            for start in range(0, len(rows), 1024):  # in pieces: the host may have less memory than the device
                piece = images[rows[start : start + 1024]]
                self.resident[start : start + len(piece)] = torch.from_numpy(piece).to(device)

    def __getitem__(self, rows: np.ndarray) -> torch.Tensor:
        if self.resident is not None:
            return self.resident[torch.from_numpy(self.position[rows]).to(self.device)]
        return torch.from_numpy(self.images[rows]).to(self.device)


def autocast(device: torch.device, amp: bool):
    """float16 on CUDA; nothing on a CPU, where half precision is several times slower than float32."""
    return torch.autocast("cuda", dtype=torch.float16) if amp and device.type == "cuda" else nullcontext()


def _layout(inputs: torch.Tensor, cfg: TrainConfig) -> torch.Tensor:
    return inputs.contiguous(memory_format=torch.channels_last) if cfg.channels_last else inputs


def _softmax(model: Classifier, inputs: torch.Tensor) -> torch.Tensor:
    return model(inputs).float().softmax(1)


def _embed(model: Classifier, inputs: torch.Tensor) -> torch.Tensor:
    return model.embed(inputs).float()


def predict(model: Classifier, images: np.ndarray, idx: np.ndarray, *, views: Sequence[str] = ("identity",),
            device: str | torch.device = "cpu", batch_size: int = 128, amp: bool = True,
            progress: bool = False) -> np.ndarray:
    """Probabilities float32 (N,V,C) of rows ``idx`` in the named views (``inference.tta.DIHEDRAL``), in eval mode."""
    pixels = Pixels(images, np.asarray(idx), torch.device(device))
    return _run(model.to(device), pixels, idx, views, _softmax, batch_size=batch_size, amp=amp, progress=progress)


def embed(model: Classifier, images: np.ndarray, idx: np.ndarray, *, views: Sequence[str] = ("identity",),
          augment: str = "none", passes: int = 1, seed: int = 0, device: str | torch.device = "cpu",
          batch_size: int = 128, amp: bool = True, progress: bool = False, dtype: type = np.float32) -> np.ndarray:
    """Features (N,V,D) of rows ``idx`` in eval mode, in the named views or in ``passes`` augmented versions.

    ``dtype=np.float16`` halves the memory of the result; every feature is computed in float32 (on CUDA: by AMP).
    """
    pixels, steps = Pixels(images, np.asarray(idx), torch.device(device)), list(views)
    if augment != "none":
        steps = [(augment, derive_seed(seed, "passes"), number) for number in range(passes)]
    return _run(model.to(device), pixels, idx, steps, _embed, batch_size=batch_size, amp=amp, progress=progress,
                dtype=dtype)


@torch.no_grad()
def _run(model: Classifier, pixels: Pixels, idx: np.ndarray, steps: Sequence, function, *, batch_size: int = 128,
         amp: bool = True, progress: bool = False, dtype: type = np.float32) -> np.ndarray:
    """``function`` of every image in every step; a step is the name of a view, or (augmentation, seed, epoch)."""
    model.eval()
    idx, out = np.asarray(idx), []
    for start in tqdm(range(0, len(idx), batch_size), desc="infer", unit="batch", disable=not progress):
        rows = idx[start : start + batch_size]
        images, columns = pixels[rows], []
        for step in steps:
            if isinstance(step, str):
                inputs = view(images, step)
            else:
                inputs = augment_batch(images, step[0], seed=step[1], epoch=step[2], index=rows)
            inputs = model.normalise(inputs).contiguous(memory_format=torch.channels_last)
            with autocast(pixels.device, amp):
                columns.append(function(model, inputs))
        out.append(torch.stack(columns, 1).cpu().numpy().astype(dtype, copy=False))
    return np.concatenate(out)
