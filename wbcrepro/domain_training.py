"""The loop of domain generalisation: one minibatch per source domain a step, model selection without the target.

As DomainBed (Gulrajani and Lopez-Paz 2021) and its fork SWAD run it: images are drawn with replacement, the learning
rate is constant, and at step 0, each multiple of ``checkpoint_every`` and the last step every source's validation
images are scored. Three sets of weights come out: *last*; *best*, with the highest mean accuracy over the sources'
validation sets (the first of equals); *swad*, averaged over the valley of their mean cross-entropy (`domains.swad`).

Which images a step sees and how they are augmented are hashes of (seed, domain, step), and each scoring ends with a
checkpoint, written aside and renamed: the same call goes on from there, on a CPU to the same bits as if it had never
been interrupted. Differs from DomainBed in that the last step is scored wherever it falls; 8001 steps end as theirs.
"""

import functools
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from wbcrepro import training
from wbcrepro.augment import occurrences, random_integers
from wbcrepro.augment_domains import augment_domains
from wbcrepro.checkpoints import PREVIOUS, resume, run_identity, save_checkpoint, save_weights
from wbcrepro.domains.algorithm import Algorithm, Minibatch
from wbcrepro.domains.swad import LossValley
from wbcrepro.errors import UsageError, WbcreproError
from wbcrepro.seeds import derive_seed

SAMPLING = ("natural", "class_balanced")


@dataclass(frozen=True)
class DomainTraining:
    """How to train; the defaults are those of the released code of `sada` for its baselines, early stopping aside.

    ``sampling``: "natural" frequencies within a domain, or "class_balanced", each class of a domain equally likely.
    ``augment``: False shows plain images, True the algorithm's own kind of augmentation. ``swad``: n_converge,
    n_tolerance, ratio; ``swad_from_step``: checkpoints before it are not shown to SWAD (SADA: where its stage 2
    begins). ``stop_when_dead``: end when SWAD has left its valley, as the released code does.
    """

    steps: int = 8001
    checkpoint_every: int = 400
    batch_per_domain: int = 32
    sampling: str = "natural"
    augment: bool = True
    swad: tuple[int, int, float] = (4, 6, 0.3)
    swad_from_step: int = 0
    stop_when_dead: bool = False
    channels_last: bool = True
    seed: int = 0


@dataclass(frozen=True)
class DomainResult:
    """``history``: one dict a checkpoint, as in log.jsonl; ``selections``: safetensors of the network by rule.

    ``swad``: segments averaged, first and last step of the window as the reference reports them, start of the valley
    (-1 for none), threshold (None for none), and whether the valley was left.
    """

    history: list[dict]
    selections: dict[str, Path]
    steps_run: int
    swad: dict


def fit_domains(
    algorithm: Algorithm,
    images: np.ndarray,
    labels: np.ndarray,
    train_rows: list[np.ndarray],
    val_rows: list[np.ndarray],
    cfg: DomainTraining,
    *,
    folder: Path,
    device: str | torch.device = "cpu",
    progress: bool = True,
) -> DomainResult:
    """Train ``algorithm`` in place (it ends with the last weights) and write its files into ``folder``.

    images uint8 (N,3,S,S), labels int64 (N,), row numbers of each source domain. Files: checkpoint.pt (and
    checkpoint.previous.pt until the end), log.jsonl, and last, best and swad.safetensors. Raises UsageError for a
    schedule that cannot be, WbcreproError where a loss is not finite.
    """
    device, folder = torch.device(device), Path(folder)
    _check(cfg, train_rows, val_rows)
    folder.mkdir(parents=True, exist_ok=True)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(derive_seed(cfg.seed, "fit_domains"))
        algorithm.to(device, memory_format=torch.channels_last if cfg.channels_last else torch.preserve_format)
        sources = Sources(images, labels, train_rows, val_rows, cfg, algorithm.augmentation, device)
        valley = LossValley(*cfg.swad)
        parts = {"algorithm": algorithm, "valley": valley}
        parts |= {f"optimiser {name}": optimiser for name, optimiser in algorithm.optimisers.items()}
        identity = _identity(algorithm, cfg, labels, train_rows, val_rows)
        history = resume(folder, parts, identity, device)
        best = max(history, key=lambda line: line["val_accuracy"], default=None)  # the first of equals
        if best is not None and best is history[-1]:
            save_weights(algorithm.network, folder / "best.safetensors")  # a kill may have come before it, see below
        step = history[-1]["step"] + 1 if history else 0
        bar = tqdm(total=cfg.steps, initial=step, desc="train", unit="step", disable=not progress)
        while step < cfg.steps and not (cfg.stop_when_dead and valley.dead):
            history.append(_next_checkpoint(algorithm, sources, valley, cfg, step, bar))
            save_checkpoint(folder, parts, identity, history, device)
            if best is None or history[-1]["val_accuracy"] > best["val_accuracy"]:
                best = history[-1]  # after the checkpoint: these weights are then of a line that the history keeps
                save_weights(algorithm.network, folder / "best.safetensors")
            step = history[-1]["step"] + 1
        bar.close()
        if not valley.closed:  # a finished run keeps one checkpoint, without SWAD's queue
            valley.close()
            save_checkpoint(folder, parts, identity, history, device)
        (folder / PREVIOUS).unlink(missing_ok=True)
    selections = {name: folder / f"{name}.safetensors" for name in ("last", "best", "swad")}
    save_weights(algorithm.network, selections["last"])
    return DomainResult(history, selections, step, _save_average(algorithm.network, valley, selections["swad"]))


def _check(cfg: DomainTraining, train_rows: list[np.ndarray], val_rows: list[np.ndarray]) -> None:
    sizes = [(len(train), len(val)) for train, val in zip(train_rows, val_rows, strict=True)]
    if not sizes or min(min(size) for size in sizes) < 1:
        raise UsageError(f"Every source needs training and validation images; got (training, validation) {sizes}.")
    if cfg.sampling not in SAMPLING:
        raise UsageError(f"unknown sampling {cfg.sampling!r}; expected one of {', '.join(SAMPLING)}")
    if min(cfg.steps, cfg.checkpoint_every, cfg.batch_per_domain) < 1 or cfg.swad_from_step >= cfg.steps:
        raise UsageError(f"This schedule cannot be run, or ends before SWAD begins: {cfg}.")


def _identity(algorithm: Algorithm, cfg: DomainTraining, labels: np.ndarray, train_rows, val_rows) -> str:
    settings = asdict(cfg) | {"algorithm": type(algorithm).__name__, "settings": asdict(algorithm.settings)}
    rows = [*train_rows, *val_rows]
    return run_identity(settings, *rows, labels[np.concatenate(rows)])


def _next_checkpoint(
    algorithm: Algorithm, sources: "Sources", valley: LossValley, cfg: DomainTraining, step: int, bar: tqdm
) -> dict:
    """Train from ``step`` to the next one that is scored, and score it: a line of the history."""
    started = time.perf_counter()
    last = min(math.ceil(step / cfg.checkpoint_every) * cfg.checkpoint_every, cfg.steps - 1)
    line = {"step": last, "train": _train(algorithm, sources, valley, range(step, last + 1), bar)}
    seen = len(sources.train_rows) * cfg.batch_per_domain * (last + 1 - step)
    line["images_per_second"] = round(seen / (time.perf_counter() - started), 1)
    line |= _validate(algorithm, sources)
    valley.checkpoint(line["val_loss"] if last >= cfg.swad_from_step else None)
    line["swad_segments"] = valley.average.count if valley.average else 0
    bar.set_postfix(accuracy=f"{line['val_accuracy']:.3f}", val_loss=f"{line['val_loss']:.3f}")
    return line | {"seconds": round(time.perf_counter() - started, 3)}


def _train(algorithm: Algorithm, sources: "Sources", valley: LossValley, steps: range, bar: tqdm) -> dict[str, float]:
    """Run ``steps``; returns the mean of each term that the algorithm reports."""
    algorithm.train()
    weights, reported = floating_weights(algorithm.network), {}
    for step in steps:
        algorithm.before_step(step, functools.partial(sources.passes, step))
        terms = algorithm.update(sources.minibatches(step))
        if not all(math.isfinite(value) for value in terms.values()):
            raise WbcreproError(f"Step {step} gave {terms}. Next step: a lower learning rate, or amp off.")
        valley.add(weights, step)
        for name, value in terms.items():  # adversaries take turns: not every step reports every term
            reported.setdefault(name, []).append(value)
        bar.update()
    return {name: float(np.mean(values)) for name, values in reported.items()}


def _validate(algorithm: Algorithm, sources: "Sources") -> dict:
    """Accuracy and cross-entropy of each source's validation images, and their means over the sources."""
    algorithm.eval()
    scores = [evaluate(algorithm, batches) for batches in sources.validation()]
    accuracy, loss = (list(values) for values in zip(*scores, strict=True))
    if not all(math.isfinite(value) for value in loss):
        raise WbcreproError(f"The cross-entropy of the sources' validation images is {loss}. Next step: a lower "
                            "learning rate, or amp off.")  # fmt: skip
    return {
        "val_accuracy": float(np.mean(accuracy)),
        "val_loss": float(np.mean(loss)),
        "domains": {"val_accuracy": accuracy, "val_loss": loss},
    }


@torch.no_grad()
def evaluate(algorithm: Algorithm, batches: Iterator[Minibatch]) -> tuple[float, float]:
    """Accuracy and mean cross-entropy of ``algorithm.predict`` over batches of images in [0, 1] and labels."""
    correct, loss, count = 0, 0.0, 0
    for x, y in batches:
        logits = algorithm.predict(x).float()
        correct += int((logits.argmax(1) == y).sum())
        loss += float(F.cross_entropy(logits, y, reduction="sum"))
        count += len(y)
    return correct / count, loss / count


def floating_weights(network: nn.Module) -> dict[str, Tensor]:
    """Parameters and floating-point buffers by name: what SWAD averages (buffers matter where norms are not frozen)."""
    return {name: value for name, value in network.state_dict().items() if value.is_floating_point()}


def _save_average(network: nn.Module, valley: LossValley, path: Path) -> dict:
    average = valley.final()
    kept = {name: value.clone() for name, value in network.state_dict().items()}
    network.load_state_dict(kept | average.weights)
    save_weights(network, path)
    network.load_state_dict(kept)
    return {
        "segments": average.count,
        "first_step": average.start,
        "last_step": average.end,
        "start_step": valley.start_step,
        "threshold": None if math.isnan(valley.threshold) else valley.threshold,
        "dead": valley.dead,
    }


class Sources:
    """The source domains' images as batches on the device: float32 (B,3,S,S) in [0, 1] and labels int64 (B,)."""

    def __init__(self, images, labels, train_rows, val_rows, cfg: DomainTraining, kind: str, device: torch.device):
        self.train_rows, self.val_rows = [[np.asarray(rows) for rows in part] for part in (train_rows, val_rows)]
        self.labels, self.cfg, self.kind = np.asarray(labels), cfg, kind if cfg.augment else "none"
        self.pixels = training.Pixels(images, np.concatenate(self.train_rows + self.val_rows), device)
        self.groups = [[rows] for rows in self.train_rows]
        if cfg.sampling == "class_balanced":
            self.groups = [
                [rows[self.labels[rows] == code] for code in np.unique(self.labels[rows])] for rows in self.train_rows
            ]

    def minibatches(self, step: int) -> list[Minibatch]:
        """One augmented minibatch per domain."""
        size, seed = self.cfg.batch_per_domain, self.cfg.seed
        drawn = [draw_rows(groups, size, seed=seed, domain=d, step=step) for d, groups in enumerate(self.groups)]
        x, y = self._batch(np.concatenate(drawn), self.kind, "steps", step)
        return list(zip(x.split(size), y.split(size), strict=True))

    def passes(self, step: int) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Once over all training images, augmented as in training (as BoDA's released code does): domain, x, y."""
        for domain, rows in enumerate(self.train_rows):
            for part in _cut(rows):
                yield domain, *self._batch(part, self.kind, "passes", step)

    def validation(self) -> Iterator[Iterator[Minibatch]]:
        """For each domain its validation images in batches, plain."""
        for rows in self.val_rows:
            yield (self._batch(part, "none", "", 0) for part in _cut(rows))

    def _batch(self, rows: np.ndarray, kind: str, stream: str, step: int) -> Minibatch:
        seed = derive_seed(self.cfg.seed, stream)
        x = augment_domains(self.pixels[rows], kind, seed=seed, step=step, index=rows, repeat=occurrences(rows))
        x = x.contiguous(memory_format=torch.channels_last) if self.cfg.channels_last else x
        return x, torch.from_numpy(self.labels[rows].astype(np.int64)).to(x.device)


def _cut(rows: np.ndarray, size: int = 128) -> Iterator[np.ndarray]:
    return (rows[start : start + size] for start in range(0, len(rows), size))


def draw_rows(groups: list[np.ndarray], count: int, *, seed: int, domain: int, step: int) -> np.ndarray:
    """Row numbers (count,) with replacement: a group, each as likely as the others, then one of its rows.

    A hash of (seed, domain, step): nothing else is drawn, so a resumed run sees the same images.
    """
    seed = derive_seed(seed, "sample", domain)
    group, fine = random_integers((len(groups), 2**32), seed=seed, epoch=step, index=np.arange(count))
    sizes = np.array([len(rows) for rows in groups])
    return np.concatenate(groups)[np.cumsum(sizes)[group] - sizes[group] + (fine * sizes[group] >> 32)]


def predict_domains(
    model: Algorithm | nn.Module, images: np.ndarray, rows: np.ndarray, device: str | torch.device = "cpu", **options
) -> np.ndarray:
    """Probabilities float32 (N, C) of rows of images uint8, in float32; ``options`` of `training.predict`."""
    network = getattr(model, "network", model)
    return training.predict(network, images, rows, device=device, **{"amp": False, **options})[:, 0]


def embed_domains(
    model: Algorithm | nn.Module, images: np.ndarray, rows: np.ndarray, device: str | torch.device = "cpu", **options
) -> np.ndarray:
    """Features float32 (N, D) of rows of images uint8, in float32; ``options`` of `training.embed`."""
    network = getattr(model, "network", model)
    return training.embed(network, images, rows, device=device, **{"amp": False, **options})[:, 0]
