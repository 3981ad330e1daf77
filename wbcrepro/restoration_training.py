"""Training and use of Pix2Pix (`rescue` 2.2) on pairs of degraded and clean images.

Pairs are made as they are needed: what row r shows in epoch e (flip, noise model, noise) is a hash of (seed, e, r).
Only rows that the caller names are read; the released code makes its pairs from the clean *test* images too. True
pairs (WBCBench's release on Hugging Face has degraded and pristine versions) go in as a second array.

Adam with beta1 0.5, a constant learning rate for ``epochs``, then a linear fall towards 0 over ``decay_epochs``; a
step trains the discriminator first, then the generator. Each epoch ends with a checkpoint, written aside and renamed:
the same call goes on from there, on a CPU to the same bits as if it had never been interrupted.

`restore` runs the generator in eval mode, as the released code does. Isola et al. run it as in training, with dropout
and the statistics of the test batch: ``mode="train"``.
"""

import math
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor
from tqdm.auto import tqdm

from wbcrepro.checkpoints import PREVIOUS, resume, run_identity, save_checkpoint, save_weights
from wbcrepro.errors import DataMissing, UsageError, WbcreproError
from wbcrepro.rescue.noise import NOISES
from wbcrepro.rescue.pix2pix import (
    PatchDiscriminator,
    UNetGenerator,
    discriminator_loss,
    generator_loss,
    levels_for,
    patch_layers_for,
    to_network,
    to_pixels,
)
from wbcrepro.seeds import derive_seed

MODES = ("eval", "train")


@dataclass(frozen=True)
class RestorationTraining:
    """How to train; the defaults are those of the released code's command and of the implementation it vendors.

    ``levels`` and ``patch_layers``: depth of the generator and of the discriminator, None for what fits the image's
    size. ``noise``: names in ``rescue.noise.NOISES``; each pair draws one of them. ``flip``: left-right, half of the
    time. ``learning_rate(epoch)`` is ``lr`` for ``epochs``, then falls linearly for ``decay_epochs``.
    """

    epochs: int = 100
    decay_epochs: int = 100
    batch_size: int = 32
    lr: float = 2e-4
    beta1: float = 0.5
    l1_weight: float = 100.0
    ngf: int = 64
    ndf: int = 64
    levels: int | None = None
    patch_layers: int | None = None
    noise: tuple[str, ...] = ("released",)
    flip: bool = True
    seed: int = 0

    def __post_init__(self):
        if min(self.epochs, self.batch_size, self.ngf, self.ndf) < 1 or self.decay_epochs < 0:
            raise UsageError(f"epochs, batch_size, ngf and ndf are 1 or more, decay_epochs 0 or more; got {self}")
        if not self.noise or (unknown := sorted(set(self.noise) - set(NOISES))):
            raise UsageError(f"noise {unknown if self.noise else '()'}: expected one or more of {', '.join(NOISES)}")

    def learning_rate(self, epoch: int) -> float:
        """The rate of epoch 0, 1, ...; the first of the falling part is already a step lower, the last above 0."""
        return self.lr * (1 - max(0, epoch + 1 - self.epochs) / (self.decay_epochs + 1))


@dataclass(frozen=True)
class RestorationResult:
    """``history``: one dict an epoch, as in log.jsonl; ``generator``: a safetensors file that ``restore`` reads."""

    history: list[dict]
    generator: Path
    epochs_run: int
    parameters: dict[str, int]


def fit_pix2pix(clean: np.ndarray, train_rows: np.ndarray, cfg: RestorationTraining, *,
                degraded: np.ndarray | None = None, folder: Path, device: str | torch.device = "cpu",
                progress: bool = True, workers: int = 0) -> RestorationResult:
    """Train a generator on rows ``train_rows`` of ``clean`` uint8 (N,3,S,S) and write its files into ``folder``.

    ``degraded``: uint8, same shape, row i a degraded copy of row i of ``clean``; replaces the synthetic pairs and
    ``cfg.noise``. ``workers``: threads that make pairs ahead of a GPU; results do not depend on it. Files:
    checkpoint.pt (and checkpoint.previous.pt until the end), log.jsonl, generator.safetensors. Raises UsageError for
    rows or arrays that do not fit, WbcreproError where a loss is not finite.
    """
    rows, device, folder = np.asarray(train_rows), torch.device(device), Path(folder)
    _check(clean, rows, degraded)
    folder.mkdir(parents=True, exist_ok=True)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(derive_seed(cfg.seed, "fit_pix2pix"))
        side = clean.shape[2]
        generator = UNetGenerator(cfg.levels or levels_for(side), cfg.ngf).to(device)
        discriminator = PatchDiscriminator(cfg.patch_layers or patch_layers_for(side), cfg.ndf).to(device)
        adam = [torch.optim.Adam(net.parameters(), cfg.lr, (cfg.beta1, 0.999)) for net in (generator, discriminator)]
        parts = {"generator": generator, "discriminator": discriminator, "adam_g": adam[0], "adam_d": adam[1]}
        identity = run_identity(asdict(cfg) | {"side": side, "true_pairs": degraded is not None}, rows)
        history, total = resume(folder, parts, identity, device), cfg.epochs + cfg.decay_epochs
        pairs = Pairs(clean, degraded, rows, cfg, workers)
        bar = tqdm(total=total * len(rows), initial=len(history) * len(rows), desc="pix2pix", unit="image",
                   disable=not progress)
        while len(history) < total:
            epoch = len(history)
            line = {"epoch": epoch, "lr": cfg.learning_rate(epoch)}
            line |= _train_epoch(generator, discriminator, adam, pairs, cfg, epoch, device, bar)
            history.append(line)
            save_checkpoint(folder, parts, identity, history, device)
        bar.close()
        (folder / PREVIOUS).unlink(missing_ok=True)
    save_weights(generator, folder / "generator.safetensors")
    sizes = {name: sum(p.numel() for p in parts[name].parameters()) for name in ("generator", "discriminator")}
    return RestorationResult(history, folder / "generator.safetensors", len(history), sizes)


def _check(clean: np.ndarray, rows: np.ndarray, degraded: np.ndarray | None) -> None:
    if clean.dtype != np.uint8 or clean.ndim != 4 or clean.shape[1] != 3:
        raise UsageError(f"clean images: expected uint8 (N, 3, S, S), got {clean.dtype} {clean.shape}")
    if degraded is not None and (degraded.dtype != np.uint8 or degraded.shape != clean.shape):
        raise UsageError(f"true pairs: expected degraded images uint8 {clean.shape}, got {degraded.dtype} "
                         f"{degraded.shape}; row i must be a degraded copy of row i of the clean ones")
    if len(rows) < 1:
        raise UsageError("Pix2Pix needs at least one training image; got none. Next step: check the noise threshold, "
                         "which may call every training image noisy.")


def _train_epoch(generator, discriminator, adam, pairs: "Pairs", cfg: RestorationTraining, epoch: int,
                 device: torch.device, bar: tqdm) -> dict:
    """One pass; returns the mean losses and images per second. Reads nothing back from the device before its end."""
    generator.train()
    discriminator.train()
    for optimiser in adam:
        optimiser.param_groups[0]["lr"] = cfg.learning_rate(epoch)
    start, total, seen = time.perf_counter(), torch.zeros(3, device=device), 0
    for x, y in pairs.batches(epoch):
        x, y = (to_network(images.to(device)) for images in (x, y))
        restored = generator(x)

        loss_d = discriminator_loss(discriminator(x, y), discriminator(x, restored.detach()))
        adam[1].zero_grad(set_to_none=True)
        loss_d.backward()
        adam[1].step()

        discriminator.requires_grad_(False)
        loss_g, distance = generator_loss(discriminator(x, restored), restored, y, cfg.l1_weight)
        adam[0].zero_grad(set_to_none=True)
        loss_g.backward()
        adam[0].step()
        discriminator.requires_grad_(True)

        total += torch.stack([loss_g.detach(), loss_d.detach(), distance]) * len(x)
        seen += len(x)
        bar.update(len(x))
    seconds, (loss_g, loss_d, distance) = time.perf_counter() - start, (total / seen).tolist()
    if not math.isfinite(loss_g + loss_d):
        raise WbcreproError(f"Epoch {epoch} of Pix2Pix has the losses {loss_g} (generator) and {loss_d} "
                            f"(discriminator). Next step: a lower learning rate (lr is {cfg.lr}).")
    bar.set_postfix(epoch=epoch, l1=f"{distance:.3f}", d=f"{loss_d:.3f}")
    return {"generator_loss": loss_g, "discriminator_loss": loss_d, "l1": distance,
            "images_per_second": round(seen / seconds, 1), "seconds": round(seconds, 3)}


class Pairs:
    """Batches of (degraded, clean) uint8 (B,3,S,S) in an order and with noise that hash (seed, epoch, row)."""

    def __init__(self, clean: np.ndarray, degraded: np.ndarray | None, rows: np.ndarray, cfg: RestorationTraining,
                 workers: int = 0):
        self.clean, self.degraded, self.rows, self.cfg, self.workers = clean, degraded, rows, cfg, workers

    def pair(self, row: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The pair of one row in one epoch, uint8 (3,S,S) each."""
        rng = np.random.default_rng(derive_seed(self.cfg.seed, "pair", epoch, row))
        step = -1 if self.cfg.flip and rng.random() < 0.5 else 1
        y = self.clean[row][..., ::step]
        if self.degraded is not None:
            return self.degraded[row][..., ::step], y
        noise = NOISES[self.cfg.noise[rng.integers(len(self.cfg.noise))]]
        return noise(np.ascontiguousarray(y.transpose(1, 2, 0)), rng).transpose(2, 0, 1), y

    def batch(self, rows: np.ndarray, epoch: int) -> tuple[Tensor, Tensor]:
        """The pairs of several rows."""
        made = [self.pair(int(row), epoch) for row in rows]
        return tuple(torch.from_numpy(np.stack(images)) for images in zip(*made, strict=True))

    def batches(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """One epoch in its order; with workers, as many batches are made ahead."""
        order = np.random.default_rng(derive_seed(self.cfg.seed, "order", epoch)).permutation(self.rows)
        cut = [order[start : start + self.cfg.batch_size] for start in range(0, len(order), self.cfg.batch_size)]
        if not self.workers:
            yield from (self.batch(rows, epoch) for rows in cut)
            return
        with ThreadPoolExecutor(self.workers) as pool:
            ahead = []
            for rows in cut:
                ahead.append(pool.submit(self.batch, rows, epoch))
                if len(ahead) > self.workers:
                    yield ahead.pop(0).result()
            yield from (batch.result() for batch in ahead)


def load_generator(path: Path) -> UNetGenerator:
    """The generator in a safetensors file, in eval mode; depth and width are read from its weights.

    Raises DataMissing where there is no file, UsageError where it holds something else.
    """
    if not Path(path).is_file():
        raise DataMissing(f"No generator at {path}. Next step: train one with fit_pix2pix.")
    state = load_file(path)
    levels = len({name.split(".")[1] for name in state if name.startswith("downs.")})
    if "downs.0.weight" not in state or levels < 2:
        raise UsageError(f"{path}: expected the weights of a Pix2Pix generator (downs.0.weight, ...), got "
                         f"{', '.join(sorted(state)[:3])}, ... Next step: give the file generator.safetensors.")
    with torch.device("meta"):  # no random start that would be overwritten
        generator = UNetGenerator(levels, len(state["downs.0.weight"]))
    generator.load_state_dict(state, assign=True)
    return generator.eval()


@torch.no_grad()
def restore(generator_file: Path, images: np.ndarray, *, device: str | torch.device = "cpu", batch: int = 64,
            mode: str = "eval", seed: int = 0, progress: bool = False) -> np.ndarray:
    """Restored copies uint8 (N,3,S,S) of ``images``, of any size that ``UNetGenerator`` takes; all that are given.

    ``mode="train"``: dropout (from ``seed``) and batch norm by the statistics of each image alone, as Isola et al. do
    with batches of one; ``batch`` is then 1.
    """
    if mode not in MODES:
        raise UsageError(f"unknown mode {mode!r}; expected one of {', '.join(MODES)}")
    device, out = torch.device(device), np.empty(images.shape, dtype=np.uint8)
    generator = load_generator(generator_file).to(device).train(mode == "train")
    size = 1 if mode == "train" else batch
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(derive_seed(seed, "restore"))
        for start in tqdm(range(0, len(images), size), desc="restore", unit="batch", disable=not progress):
            part = torch.from_numpy(np.ascontiguousarray(images[start : start + size])).to(device)
            out[start : start + size] = to_pixels(generator(to_network(part))).cpu().numpy()
    return out
