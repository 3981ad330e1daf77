"""Stage 2 (50 epochs of classifier re-training) on cached features, against images through the backbone every epoch.

The peer is the usual way: a DataLoader with workers decodes JPEGs, RandAugment, the frozen EfficientNet-Lite0, the
head; validation after each epoch, the same way. One of its epochs is timed and multiplied by 50. Ours is timed whole:
from the pixel cache, the embedding of 1 or 2 augmented passes and of the validation images, then 50 epochs in memory.
The images are smooth synthetic noise, as many as a fold of `acevedo20-lt`: contents do not matter to the time.
"""

import os
import platform
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset, WeightedRandomSampler
from torchvision import transforms

from wbcrepro.backbones import Classifier, build_backbone
from wbcrepro.data.pixels import prepare
from wbcrepro.longtail.heads import make_head
from wbcrepro.longtail.heads.crt import CRTConfig, fit_crt
from wbcrepro.longtail.losses import make_loss
from wbcrepro.training import embed

EPOCHS, SIDE, CLASSES, TRAIN, VAL, BATCH = 50, 96, 9, 640, 160, 64


class Files(Dataset):
    """JPEGs in a folder, transformed one by one."""

    def __init__(self, files: list[Path], labels: np.ndarray, transform):
        self.files, self.labels, self.transform = files, labels, transform

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, row: int):
        return self.transform(Image.open(self.files[row]).convert("RGB")), int(self.labels[row])


def make_images(folder: Path) -> list[Path]:
    """JPEGs of 360 x 363 pixels, the format of Acevedo-20."""
    rng, files = np.random.default_rng(0), []
    for row in range(TRAIN + VAL):
        small = Image.fromarray(rng.integers(0, 256, (20, 20, 3), dtype=np.uint8))
        files.append(folder / f"{row}.jpg")
        small.resize((360, 363), Image.Resampling.BICUBIC).save(files[-1], quality=90)
    return files


def usual_epoch(model: Classifier, files: list[Path], labels: np.ndarray) -> float:
    """Seconds of one epoch as it is usually written; the network is frozen, its forward pass is not avoided."""
    tail = [transforms.ToTensor(), transforms.Normalize(model.info.mean, model.info.std)]
    size = [transforms.Resize((SIDE, SIDE)), transforms.CenterCrop(SIDE)]
    train = Files(files[:TRAIN], labels[:TRAIN], transforms.Compose([*size, transforms.RandAugment(), *tail]))
    val = Files(files[TRAIN:], labels[TRAIN:], transforms.Compose([*size, *tail]))
    weights = 1 / np.bincount(labels[:TRAIN])[labels[:TRAIN]]
    workers = os.cpu_count() or 1
    loader = DataLoader(train, BATCH, sampler=WeightedRandomSampler(weights, TRAIN), num_workers=workers)
    loss = make_loss("hybrid", np.bincount(labels[:TRAIN], minlength=CLASSES))
    head = make_head("linear", model.info.dim, CLASSES)
    optimiser = torch.optim.AdamW(head.parameters(), lr=1e-3)
    start = time.perf_counter()
    for images, targets in loader:
        with torch.no_grad():
            features = model.embed(images.contiguous(memory_format=torch.channels_last))
        value = loss(head(features), targets)
        optimiser.zero_grad()
        value.backward()
        optimiser.step()
    with torch.no_grad():
        for images, _ in DataLoader(val, BATCH, num_workers=workers):
            head(model.embed(images.contiguous(memory_format=torch.channels_last))).argmax(1)
    return time.perf_counter() - start


def cached(model: Classifier, images: np.ndarray, labels: np.ndarray, passes: int) -> tuple[float, float]:
    """Seconds of the embedding and of 50 epochs on the features (early stopping off)."""
    start = time.perf_counter()
    features = embed(model, images, np.arange(TRAIN), augment="randaugment", passes=passes)
    val = embed(model, images, np.arange(TRAIN, TRAIN + VAL))[:, 0]
    middle = time.perf_counter()
    cfg = CRTConfig(epochs=EPOCHS, batch_size=BATCH, patience=EPOCHS)
    fit_crt(features, labels[:TRAIN], val, labels[TRAIN:], cfg, classes=CLASSES, seed=0)
    return middle - start, time.perf_counter() - middle


def run(repeats: int = 3) -> list[dict]:
    """Rows for bench.json; ours and the peer alternate in one process, medians of ``repeats``."""
    network, info = build_backbone("tf_efficientnet_lite0", "random")
    model = Classifier(network, nn.Identity(), info).eval().to(memory_format=torch.channels_last)
    labels = np.random.default_rng(1).choice(CLASSES, TRAIN + VAL, p=0.6 ** np.arange(CLASSES) / sum(
        0.6 ** np.arange(CLASSES)))
    labels[:CLASSES] = labels[TRAIN : TRAIN + CLASSES] = np.arange(CLASSES)
    times = []
    with tempfile.TemporaryDirectory() as folder:
        files = make_images(Path(folder))
        images = np.stack([prepare(np.asarray(Image.open(file)), SIDE, SIDE) for file in files])
        for _ in range(repeats):
            times.append((usual_epoch(model, files, labels), *cached(model, images, labels, 1),
                          *cached(model, images, labels, 2)))
    epoch, embed1, fit1, embed2, fit2 = np.median(times, axis=0)
    name = f"stage 2: {EPOCHS} epochs, {TRAIN} images, EfficientNet-Lite0 at {SIDE} px"
    peer = f"{EPOCHS} x one timed epoch of a DataLoader ({os.cpu_count()} workers) through the frozen backbone"
    common = {"repeats": repeats, "machine": f"{platform.machine()}, {torch.get_num_threads()} threads"}
    rows = [(f"{name}, usual way", EPOCHS * epoch, "s", "one epoch timed, times 50"),
            (f"{name}, cached", embed1 + fit1, "s", None), (f"{name}, only the training on features", fit1, "s", None)]
    rows += [(f"{name}, cached, speed-up", EPOCHS * epoch / (embed1 + fit1), "x", peer),
             (f"{name}, cached with 2 augmented passes, speed-up", EPOCHS * epoch / (embed2 + fit2), "x", peer),
             (f"{name}, features already cached, speed-up", EPOCHS * epoch / fit1, "x", peer)]
    return [{"name": n, "value": round(float(v), 2), "unit": u, "peer": p, **common} for n, v, u, p in rows]


if __name__ == "__main__":
    for row in run():
        print(row)
