"""Images a second of augmentation and of the training loop, each against the same work without our code around it.

Augmentation: against torchvision's transform image by image (on tensors, and on PIL images). The loop (pixels,
RandAugment, normalisation, optimiser): against bare steps of the same network on one random batch, alternating in one
process. On CUDA also ResNet-50 as in the paper's profile: 224 px, batch 256, AMP, the data on the device.
"""

import platform
import tempfile
import time

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F
from torchvision.transforms import RandAugment, v2

from wbcrepro.augment import augment
from wbcrepro.backbones import Classifier, build_backbone
from wbcrepro.training import TrainConfig, autocast, fit


def _pixels(count: int, side: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (count, 3, side, side), dtype=np.uint8)


def _rate(count: int, function) -> float:
    start = time.perf_counter()
    function()
    return count / (time.perf_counter() - start)


def augmentation(side: int, repeats: int, count: int = 512) -> list[dict]:
    """RandAugment of ``count`` images in batches of 64."""
    images = _pixels(count, side)
    tensors = torch.from_numpy(images)
    pictures = [Image.fromarray(image.transpose(1, 2, 0)) for image in images]
    per_tensor, per_picture = v2.RandAugment(), RandAugment()

    def ours():
        for start in range(0, count, 64):
            augment(tensors[start : start + 64], "randaugment", seed=0, epoch=0, index=np.arange(start, start + 64))

    ours()  # makes the look-ups of this size
    times = [(_rate(count, ours), _rate(count, lambda: [per_tensor(image) for image in tensors]),
              _rate(count, lambda: [per_picture(image) for image in pictures])) for _ in range(repeats)]
    rate, tensor_rate, picture_rate = np.median(times, axis=0)
    name, machine = f"RandAugment at {side} px", _machine("cpu")
    rows = [(name, rate, "images/s", None), (f"{name}, speed-up", rate / tensor_rate, "x", "torchvision v2 on tensors"),
            (f"{name}, speed-up, PIL", rate / picture_rate, "x", "torchvision on PIL images, conversions not counted")]
    return [{"name": n, "value": round(float(v), 2), "unit": u, "peer": p, "repeats": repeats, "machine": machine}
            for n, v, u, p in rows]


def loop(backbone: str, side: int, repeats: int, *, device: str = "cpu", batch: int = 32, steps: int = 8) -> list[dict]:
    """One epoch of ``fit`` against bare steps on random tensors that are on the device already."""
    images, labels = _pixels(batch * steps, side), np.arange(batch * steps) % 9
    rates = []
    network, info = build_backbone(backbone, "random")
    model = Classifier(network, nn.Linear(info.dim, 9), info)
    for repeat in range(repeats + 1):
        with tempfile.TemporaryDirectory() as folder:
            cfg = TrainConfig(epochs=1, batch_size=batch, seed=repeat)
            result = fit(model, images, labels, np.arange(len(images)), np.arange(9), cfg, classes=9, folder=folder,
                         device=device, progress=False)
        rates.append((result.history[0]["images_per_second"], _bare(model, side, batch, steps, torch.device(device))))
    ours, bare = np.median(rates[1:], axis=0)  # the first round warms up
    name = f"training {backbone} at {side} px, batch {batch}"
    rows = [(name, ours, "images/s", None), (f"{name}, share of the bare rate", ours / bare, "",
                                             "the same network on random tensors")]
    return [{"name": n, "value": round(float(v), 3), "unit": u, "peer": p, "repeats": repeats,
             "machine": _machine(device)} for n, v, u, p in rows]


def _bare(model: Classifier, side: int, batch: int, steps: int, device: torch.device) -> float:
    """Images a second of forward, backward and AdamW on one fixed random batch, AMP on CUDA, channels last."""
    model.train()
    inputs = torch.randn(batch, 3, side, side, device=device).contiguous(memory_format=torch.channels_last)
    targets = torch.arange(batch, device=device) % 9
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4)
    scaler = torch.amp.GradScaler(device.type, enabled=device.type == "cuda")

    def steps_():
        for _ in range(steps):
            with autocast(device, True):
                logits = model(inputs)
            scaler.scale(F.cross_entropy(logits.float(), targets)).backward()
            scaler.step(optimiser)
            scaler.update()
            optimiser.zero_grad(set_to_none=True)
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return _rate(batch * steps, steps_)


def _machine(device: str) -> str:
    if device == "cuda":
        return torch.cuda.get_device_name()
    return f"{platform.machine()}, {torch.get_num_threads()} threads"


def run(repeats: int = 3) -> list[dict]:
    """Rows for bench.json."""
    rows = augmentation(96, repeats) + augmentation(224, repeats, 128)
    rows += loop("tf_efficientnet_lite0", 64, repeats) + loop("tf_efficientnet_lite0", 96, repeats)
    if torch.cuda.is_available():
        return rows + loop("resnet50", 224, repeats, device="cuda", batch=256, steps=24)
    print("training resnet50 at 224 px, batch 256: skipped, no CUDA device")
    return rows


if __name__ == "__main__":
    for row in run():
        print(row)
