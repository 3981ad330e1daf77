"""Training of the semantic branch of `rescue`: the contrastive head on stored image embeddings.

The text (Section 3.1) trains it "on the fully combined dataset over 15 epochs" and says no more; everything else is
the released code's, which runs 150 epochs: AdamW with a cosine schedule per epoch, Gaussian noise on every coordinate
of the unit-length embeddings (at 0.06 and 1,152 coordinates its length is twice the embedding's, and the sum is *not*
scaled back), rare classes repeated and frequent ones halved once, and the epoch with the highest accuracy on the
training images themselves, the last of equals.

Which images those are is the caller's to say: ``fit_semantic`` reads the rows ``train_rows`` and no others, so that a
head trained without a fold never saw it (the paper's way is to pass every labelled row).

A small dataset makes few steps: 15 epochs of 1,000 images are 60 at batch 256, after which the text's classifier still
gives every class nearly the same probability, though it may rank a rare class well. Profiles for such data set ``lr``
and ``batch_size``; thresholds belong to a head, and are fitted to it.

Differs from the released code in: the accuracy that chooses the epoch is taken without noise and dropout.
"""

import copy
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import nn

from wbcrepro.checkpoints import resume, run_identity, save_checkpoint, save_weights
from wbcrepro.errors import UsageError, WbcreproError
from wbcrepro.rescue.contrastive_head import CLASSIFY, ContrastiveHead, ContrastiveHeadLoss
from wbcrepro.seeds import derive_seed
from wbcrepro.training import batches

RESAMPLING = {"PC": 50.0, "PLY": 50.0, "MMY": 5.0, "BNE": 5.0, "SNE": 0.5, "LY": 0.5}
"""The released code's factors: 50 copies of every plasma cell and prolymphocyte, half of the two largest classes."""
SELECT = ("train_accuracy", "last")
CHECKPOINT_EVERY = 10  # epochs; a checkpoint of the full-size head is 31 MB


@dataclass(frozen=True)
class SemanticSettings:
    """How to train the head; the defaults are the released code's. ``paper`` and ``code`` make the two presets.

    ``classify`` "encoder" or "projection", see `wbcrepro.rescue.contrastive_head`; ``noise`` the standard deviation per
    coordinate; ``resample`` factors by class name, where 2.5 means every image twice and half of them once more.
    ``drop_last`` never drops the only batch. Raises UsageError for values that cannot be.
    """

    classify: str = "encoder"
    epochs: int = 150
    hidden: int = 1024
    latent: int = 512
    projection: int = 256
    dropout: float = 0.05
    supcon_weight: float = 0.3
    temperature: float = 0.07
    gamma: float = 2.0
    lr: float = 1e-4
    weight_decay: float = 1e-5
    batch_size: int = 256
    drop_last: bool = True
    noise: float = 0.06
    resample: dict[str, float] = field(default_factory=lambda: dict(RESAMPLING))
    select: str = "train_accuracy"

    def __post_init__(self):
        if self.classify not in CLASSIFY or self.select not in SELECT:
            raise UsageError(f"The semantic head has classify in {CLASSIFY} and select in {SELECT}; got "
                             f"{self.classify!r} and {self.select!r}.")
        if self.epochs < 1 or self.batch_size < 1 or self.noise < 0:
            raise UsageError(f"The semantic head needs at least one epoch, one image a batch and noise >= 0; got "
                             f"{self.epochs}, {self.batch_size} and {self.noise}.")
        wrong = {name: factor for name, factor in self.resample.items() if not 0 < factor < math.inf}
        if wrong:
            raise UsageError(f"Resampling factors must be positive numbers, got {wrong}. Next step: to leave a class "
                             "out, leave its rows out of train_rows.")

    @classmethod
    def code(cls, **changes) -> "SemanticSettings":
        """The released code: 150 epochs, the classifier on the encoder's output."""
        return cls(**changes)

    @classmethod
    def paper(cls, **changes) -> "SemanticSettings":
        """The text: 15 epochs, the classifier on the normalised latent space; what it leaves open as in the code."""
        return cls(**({"classify": "projection", "epochs": 15} | changes))


def build_head(settings: SemanticSettings, dim: int, classes: int) -> ContrastiveHead:
    """A freshly initialised head of these sizes, for training or to load stored weights into."""
    return ContrastiveHead(dim, classes, hidden=settings.hidden, latent=settings.latent, dropout=settings.dropout,
                           projection=settings.projection, classify=settings.classify)


def resample(labels: np.ndarray, factors: Mapping[int, float], seed: int) -> np.ndarray:
    """Positions of ``labels`` (N,), each as often as the factor of its class asks, int64, sorted.

    The whole part repeats every image; the rest draws that share of them, rounded down, once and without replacement. A
    class that has an image keeps one, and a factor for a class without images does nothing.
    """
    repeats = np.ones(len(labels), dtype=np.int64)
    for code, factor in factors.items():
        members = np.flatnonzero(labels == code)
        whole = int(factor)
        extra = int((factor - whole) * len(members))
        if not whole and not extra and len(members):
            extra = 1
        repeats[members] = whole
        generator = np.random.default_rng(derive_seed("resample", seed, code))
        repeats[generator.choice(members, extra, replace=False)] += 1
    return np.repeat(np.arange(len(labels)), repeats)


def fit_semantic(embeddings: np.ndarray, labels: np.ndarray, train_rows: np.ndarray, settings: SemanticSettings, *,
                 classes: Sequence[str], seed: int = 0, device: str | torch.device = "cpu",
                 folder: Path | None = None, log: Callable[[dict], object] | None = None,
                 ) -> tuple[ContrastiveHead, list[dict]]:
    """Train a head on rows ``train_rows`` of embeddings (N, D), floats of unit length, with codes ``labels`` (N,).

    Returns the head of the chosen epoch on the CPU in eval mode, and one dict an epoch: epoch, lr, loss, supcon, focal,
    train_accuracy (of the resampled images), kept (its weights took the place of those before; the last such epoch is
    the chosen one), seconds. ``log`` is called with each when it is done. ``classes`` are the C names, in the order of
    the codes. No other row is read, the order of ``train_rows`` does not matter, and torch's global generator is left
    as it was. With a ``folder``: a checkpoint every ten epochs, from which the same call goes on to the same bits (on a
    CPU), then head.safetensors and log.jsonl. Raises UsageError for rows, labels, vectors or factors that do not fit.
    """
    device = torch.device(device)
    rows = _checked_rows(embeddings, labels, train_rows, classes)
    data = torch.from_numpy(np.ascontiguousarray(embeddings[rows], dtype=np.float32))
    target = torch.from_numpy(np.asarray(labels)[rows].astype(np.int64))
    drawn = resample(target.numpy(), _factors(settings, classes), seed)
    identity = run_identity(asdict(settings) | {"classes": list(classes), "seed": seed}, rows, target.numpy(),
                            data.numpy().view(np.int32))
    if folder is not None:
        Path(folder).mkdir(parents=True, exist_ok=True)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(derive_seed(seed, "semantic"))
        head = build_head(settings, data.shape[1], len(classes)).to(device)
        best = copy.deepcopy(head)
        optimiser = torch.optim.AdamW(head.parameters(), lr=settings.lr, weight_decay=settings.weight_decay)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, T_max=settings.epochs)
        loss = ContrastiveHeadLoss(len(classes), supcon_weight=settings.supcon_weight, gamma=settings.gamma,
                                   temperature=settings.temperature).to(device)
        parts = {"head": head, "best": best, "optimiser": optimiser, "schedule": schedule}
        history = resume(Path(folder), parts, identity, device) if folder is not None else []
        data, target = data.to(device), target.to(device)
        while len(history) < settings.epochs:
            start = time.perf_counter()
            line = {"epoch": len(history), "lr": schedule.get_last_lr()[0]}
            line |= _epoch(head, loss, optimiser, data, target, drawn, settings, seed, len(history))
            schedule.step()
            line["train_accuracy"] = _accuracy(head, data, target, drawn)
            highest = max((past["train_accuracy"] for past in history), default=0.0)
            line["kept"] = settings.select == "last" or line["train_accuracy"] >= highest
            if line["kept"]:
                best.load_state_dict(head.state_dict())
            history.append(line | {"seconds": round(time.perf_counter() - start, 3)})
            if log is not None:
                log(history[-1])
            if folder is not None and len(history) % CHECKPOINT_EVERY == 0:
                save_checkpoint(Path(folder), parts, identity, history, device)
    best = best.to("cpu").eval()
    if folder is not None:
        save_weights(best, Path(folder) / "head.safetensors")
        text = "".join(json.dumps(line) + "\n" for line in history)
        (Path(folder) / "log.jsonl").write_text(text, encoding="utf-8")
    return best, history


@torch.no_grad()
def predict_semantic(head: ContrastiveHead, embeddings: np.ndarray, *, device: str | torch.device = "cpu",
                     batch_size: int = 4096) -> np.ndarray:
    """P_med: probabilities float32 (n, C) of embeddings (n, D) of unit length, without noise or dropout.

    A row with a NaN is an image without an embedding; its probabilities are NaN. Raises UsageError for another D.
    """
    width = head.encoder[0].in_features
    if embeddings.ndim != 2 or embeddings.shape[1] != width:
        raise UsageError(f"The semantic head takes embeddings (n, {width}), got {embeddings.shape}. Next step: use the "
                         "embedder that it was trained with.")
    head = head.to(device).eval()
    out = np.empty((len(embeddings), head.classifier.out_features), dtype=np.float32)
    for start in range(0, len(embeddings), batch_size):
        piece = np.ascontiguousarray(embeddings[start : start + batch_size], dtype=np.float32)
        out[start : start + batch_size] = head(torch.from_numpy(piece).to(device))[1].softmax(1).cpu().numpy()
    return out


def _checked_rows(embeddings: np.ndarray, labels: np.ndarray, train_rows: np.ndarray,
                  classes: Sequence[str]) -> np.ndarray:
    """``train_rows`` sorted; looks at the shapes of the arrays and at these rows, at nothing else."""
    rows = np.sort(np.asarray(train_rows))
    if embeddings.ndim != 2 or len(embeddings) != len(labels):
        raise UsageError(f"Expected embeddings (N, D) and N labels, got {embeddings.shape} and {len(labels)}.")
    if not len(rows) or rows.dtype.kind not in "iu" or rows[0] < 0 or rows[-1] >= len(labels):
        raise UsageError(f"train_rows must be row numbers from 0 to {len(labels) - 1}, at least one; got {len(rows)} "
                         f"of type {rows.dtype}.")
    if len(np.unique(rows)) != len(rows):
        raise UsageError("train_rows names a row twice. Next step: repeat images with the factors of `resample`.")
    codes = np.asarray(labels)[rows]
    if codes.min() < 0 or codes.max() >= len(classes):
        raise UsageError(f"The labels of train_rows must be codes of the {len(classes)} classes, got {codes.min()} to "
                         f"{codes.max()}.")
    lengths = np.linalg.norm(np.asarray(embeddings[rows], dtype=np.float32), axis=1)
    wrong = rows[~(np.abs(lengths - 1) < 0.01)]  # float16 keeps a length to 1e-3; NaN is wrong too
    if len(wrong):
        raise UsageError(f"Embeddings to train on must have unit length: {len(wrong)} of {len(rows)} rows do not, the "
                         f"first is row {wrong[0]}. Next step: scale them, or leave images without one out.")
    return rows


def _factors(settings: SemanticSettings, classes: Sequence[str]) -> dict[int, float]:
    unknown = sorted(set(settings.resample) - set(classes))
    if unknown:
        raise UsageError(f"Resampling factors for {', '.join(unknown)}, which this dataset has not; it has "
                         f"{', '.join(classes)}. Next step: name factors for its own classes, or none (resample={{}}).")
    return {list(classes).index(name): factor for name, factor in settings.resample.items()}


def _epoch(head: nn.Module, loss: nn.Module, optimiser: torch.optim.Optimizer, data: torch.Tensor,
           target: torch.Tensor, drawn: np.ndarray, settings: SemanticSettings, seed: int, epoch: int) -> dict:
    """One pass over the resampled images in an order of (seed, epoch); the mean of the loss and its two terms."""
    head.train()
    order = drawn[np.random.default_rng(derive_seed("semantic", seed, epoch)).permutation(len(drawn))]
    total, seen = torch.zeros(3, device=data.device), 0
    for batch in batches(order, settings):
        rows = torch.from_numpy(batch).to(data.device)
        x = data[rows]
        terms = loss(*head(x + settings.noise * torch.randn_like(x)), target[rows])
        optimiser.zero_grad(set_to_none=True)
        terms[0].backward()
        optimiser.step()
        total += torch.stack(terms).detach() * len(batch)
        seen += len(batch)
    means = (total / seen).tolist()
    if not math.isfinite(means[0]):
        raise WbcreproError(f"The loss of the semantic head is {means[0]} in epoch {epoch}. Next step: a lower "
                            f"learning rate (lr is {settings.lr}).")
    return dict(zip(("loss", "supcon", "focal"), means, strict=True))


@torch.no_grad()
def _accuracy(head: nn.Module, data: torch.Tensor, target: torch.Tensor, drawn: np.ndarray) -> float:
    """Accuracy on the resampled images; each is scored once and counts as often as it was drawn."""
    head.eval()
    times = torch.from_numpy(np.bincount(drawn, minlength=len(data))).to(data.device)
    correct = 0
    for start in range(0, len(data), 4096):
        part = slice(start, start + 4096)
        correct += int(times[part][head(data[part])[1].argmax(1) == target[part]].sum())
    return correct / len(drawn)
