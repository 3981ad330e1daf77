"""Images for the stain tests: cells by Beer-Lambert, images that break the method, and strange ones at random."""

import numpy as np
import pytest
import torch
from hypothesis import strategies as st

from wbcrepro.stain.macenko import macenko_normalise
from wbcrepro.stain.romanowsky import romanowsky_normalise

torch.set_num_threads(1)
FAST = pytest.param("fast", marks=pytest.mark.filterwarnings("ignore"))


def method(name):
    if name == "fast":
        pytest.importorskip("numba", reason="the extra `fast` (numba) is not installed")
        from wbcrepro.stain.macenko_fast import macenko_fast

        return macenko_fast
    return {"macenko": macenko_normalise, "romanowsky": romanowsky_normalise}[name]


def smear(seed=0, size=64, azure=(0.73, 0.65, 0.2), eosin=(0.1, 0.9, 0.42), light=235.0):
    """A cell with nucleus, cytoplasm and red cells by Beer-Lambert: uint8 (3,H,W), nucleus (H,W), stains (3,2)."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size] / size - 0.5
    distance = np.hypot(y, x)
    nucleus, cell = distance < 0.2, distance < 0.33
    density = np.zeros((2, size, size))
    density[:, cell] = [[0.35], [0.25]]
    density[:, nucleus] = [[1.3], [0.55]]
    density[1][np.abs(distance - 0.45) < 0.08] = 0.7
    density *= rng.gamma(30, 1 / 30, density.shape)
    matrix = np.stack([azure, eosin], 1) / np.linalg.norm([azure, eosin], axis=1)
    image = light * np.exp(-np.einsum("ck,khw->chw", matrix, density)) + rng.normal(0, 1, (3, size, size))
    return torch.from_numpy(np.clip(image, 0, 255).astype(np.uint8)), nucleus, matrix


def batch(n=3, **options):
    return torch.stack([smear(seed, **options)[0] for seed in range(n)])


def hwc(images):
    return images.permute(0, 2, 3, 1).numpy()


def few_pixels(n):
    image = torch.full((3, 32, 32), 250, dtype=torch.uint8)
    for i in range(n):
        image[:, i, 2 * i] = torch.tensor([90 + 20 * i, 40 + 30 * i, 130 - 10 * i], dtype=torch.uint8)
    return image


def rank_one():
    density = torch.linspace(0.2, 2, 32 * 32).reshape(1, 32, 32)
    return (240 * torch.exp(-torch.tensor([0.6, 0.7, 0.4])[:, None, None] * density)).to(torch.uint8)


def constant(*grey):
    return torch.tensor(grey, dtype=torch.uint8)[:, None, None].expand(3, 32, 32)


BROKEN = {
    "white": (constant(255, 255, 255), "too_few_pixels"),
    "black": (constant(0, 0, 0), "degenerate"),
    "constant purple": (constant(120, 60, 150), "degenerate"),
    "constant grey": (constant(128, 128, 128), "degenerate"),
    "one stain": (rank_one(), "degenerate"),
    "grey ramp": (torch.arange(1024).div(5).to(torch.uint8).reshape(1, 32, 32).expand(3, 32, 32), "degenerate"),
    "one stained pixel": (few_pixels(1), "too_few_pixels"),
    "two stained pixels": (few_pixels(2), "too_few_pixels"),
    "three stained pixels": (few_pixels(3), "too_few_pixels"),
}


IMAGES = st.tuples(
    st.sampled_from(["noise", "dark", "few levels", "sparse", "channel", "one hue"]),
    st.integers(0, 2**31), st.integers(1, 24), st.integers(1, 24),
)  # fmt: skip


def strange(kind, seed, height, width):
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (3, height, width))
    if kind == "dark":
        image = rng.integers(0, 3, image.shape)
    elif kind == "few levels":
        image = rng.choice(rng.integers(0, 256, 2), image.shape)
    elif kind == "sparse":
        image = np.where(rng.random((1, height, width)) < 0.1, image, 255)
    elif kind == "channel":
        image[rng.integers(3)] = rng.choice([0, 255])
    elif kind == "one hue":
        image = np.minimum(image[:1] // np.array([1, 2, 3])[:, None, None] + rng.integers(0, 2, image.shape), 255)
    return torch.from_numpy(image.astype(np.uint8))
