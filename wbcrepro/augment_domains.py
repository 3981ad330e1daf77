"""Training augmentations of the domain-generalisation papers, in batches on the images' device, reproducible by hash.

``domainbed`` is that of DomainBed (Gulrajani and Lopez-Paz 2021): a random resized crop of scale 0.7 to 1, a
horizontal flip, a colour jitter of 0.3 in brightness, contrast, saturation and hue in random order, grey for one image
in ten. ``geometric`` is its crop and flip alone, as the released code of `sada` loads images for its own method.
Each operation equals that of ``torchvision.transforms.functional`` on a float image with the same parameters.

Differs from DomainBed in: images are resized to the network's size first (the pixel cache), the crop is not
antialiased, values are not rounded to 8 bits between the operations, and which image gets which parameters is a hash
of (seed, step, index, repeat), so it does not depend on batches or workers.
"""

import itertools
import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from wbcrepro.augment import random_integers
from wbcrepro.stain.colour_jitter import CACHED, HUE, colour_jitter, greyscale

KINDS = ("none", "domainbed", "geometric")
SCALE, RATIO, TRIES = (0.7, 1.0), (3 / 4, 4 / 3), 10
JITTER, GREY = 0.3, 0.1
ORDERS = np.array(list(itertools.permutations(range(4))))


@dataclass(frozen=True)
class Parameters:
    """What is done to each of N images: boxes int64 (N,4) top, left, height, width; flip bool (N,).

    factors float32 (N,4) of brightness, contrast, saturation and hue; orders int64 (N,4), the operation at each of
    four positions; grey bool (N,).
    """

    boxes: np.ndarray
    flip: np.ndarray
    factors: np.ndarray
    orders: np.ndarray
    grey: np.ndarray


def augment_domains(
    images: Tensor, kind: str, *, seed: int, step: int, index: np.ndarray, repeat: np.ndarray | None = None
) -> Tensor:
    """Augmented copies in [0, 1], float32, of images uint8 (N,3,S,S), on their device.

    ``index`` (N,) names the images within the data set; ``repeat`` (N,) says how often each was already drawn in this
    step (sampling with replacement). ``kind``: none, domainbed or geometric. Raises ValueError for another one.
    """
    if kind not in KINDS:
        raise ValueError(f"unknown augmentation {kind!r}; expected one of {', '.join(KINDS)}")
    if kind == "none":
        return images.float() / 255
    drawn = draw(len(images), images.shape[-1], seed=seed, step=step, index=index, repeat=repeat)
    out = torch.empty(images.shape, device=images.device)
    # On a CPU as many images at a time as stay in its cache, on other devices all.
    chunk = max(1, CACHED // math.prod(images.shape[1:]) if images.device.type == "cpu" else len(images))
    for start in range(0, len(images), chunk):
        part = slice(start, start + chunk)
        some = crop(images[part], drawn.boxes[part], drawn.flip[part])
        if kind == "domainbed":
            some = colour_jitter(some, drawn.factors[part], drawn.orders[part])
            some = greyscale_some(some, drawn.grey[part])
        out[part] = some
    return out


def draw(
    count: int, size: int, *, seed: int, step: int, index: np.ndarray, repeat: np.ndarray | None = None
) -> Parameters:
    """Parameters for ``count`` square images of ``size`` pixels, each a hash of (seed, step, index, repeat)."""
    fine = 2**32
    sizes = (fine,) * (2 * TRIES + 2 + 4) + (2, len(ORDERS), fine)
    raw = random_integers(sizes, seed=seed, epoch=step, index=index, repeat=repeat)
    uniform = raw / fine
    boxes = crop_boxes(uniform[:TRIES], uniform[TRIES : 2 * TRIES], uniform[2 * TRIES], uniform[2 * TRIES + 1], size)
    factors = (2 * uniform[2 * TRIES + 2 : 2 * TRIES + 6].T - 1) * JITTER
    factors[:, :HUE] += 1
    return Parameters(boxes, raw[-3] == 1, factors.astype(np.float32), ORDERS[raw[-2]], uniform[-1] < GREY)


def crop_boxes(area: np.ndarray, ratio: np.ndarray, top: np.ndarray, left: np.ndarray, size: int) -> np.ndarray:
    """Boxes int64 (N,4) as torchvision's RandomResizedCrop draws them, from uniform numbers in [0, 1).

    ``area`` and ``ratio`` (tries, N): the first try whose box fits is taken; where none does, the whole image.
    """
    area = size**2 * (SCALE[0] + (SCALE[1] - SCALE[0]) * area)
    low, high = np.log(RATIO)
    ratio = np.exp(low + (high - low) * ratio)
    width, height = np.rint(np.sqrt(area * ratio)), np.rint(np.sqrt(area / ratio))
    fits = (width > 0) & (width <= size) & (height > 0) & (height <= size)
    first, column = fits.argmax(0), np.arange(fits.shape[1])
    width = np.where(fits.any(0), width[first, column], size)
    height = np.where(fits.any(0), height[first, column], size)
    top, left = np.floor(top * (size - height + 1)), np.floor(left * (size - width + 1))
    return np.stack([top, left, height, width], 1).astype(np.int64)


def crop(images: Tensor, boxes: np.ndarray, flip: np.ndarray) -> Tensor:
    """Boxes of images uint8 (N,3,S,S), resized to S x S (bilinear), mirrored where ``flip``; float32 in [0, 1]."""
    size = images.shape[-1]
    box = torch.from_numpy(boxes).to(images.device, torch.float32)
    rows, columns = positions(box[:, 0], box[:, 2], size), positions(box[:, 1], box[:, 3], size)
    mirrored = torch.from_numpy(flip).to(images.device)
    columns = torch.where(mirrored[:, None], columns.flip(1), columns)
    shape = (len(images), size, size)
    grid = torch.stack([columns[:, None, :].expand(shape), rows[:, :, None].expand(shape)], -1)
    grid = (2 * grid + 1) / size - 1  # grid_sample's coordinates: -1 and 1 are the outer edges
    return F.grid_sample(images / 255, grid, mode="bilinear", padding_mode="border", align_corners=False)


def positions(start: Tensor, length: Tensor, size: int) -> Tensor:
    """Where ``size`` samples of each interval lie (N, size), in pixels; never between a box and what is outside it."""
    at = (torch.arange(size, device=start.device) + 0.5) * (length[:, None] / size) - 0.5
    return start[:, None] + at.clamp(min=0).minimum(length[:, None] - 1)


def greyscale_some(images: Tensor, chosen: np.ndarray) -> Tensor:
    """The images (N,3,H,W) with those ``chosen`` (N,) made grey, in place."""
    if chosen.any():
        rows = torch.from_numpy(np.flatnonzero(chosen)).to(images.device)
        images[rows] = greyscale(images[rows]).expand(-1, 3, -1, -1)
    return images
