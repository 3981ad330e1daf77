"""Colour jitter of image batches: brightness, contrast, saturation and hue, each image in an order of its own.

Each operation equals that of ``torchvision.transforms.functional`` on a float image with the same factor. Differs from
``torchvision.transforms.ColorJitter`` in: it takes a batch in which every image has its own factors and order.
"""

import math

import numpy as np
import torch
from torch import Tensor

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
LUMA = (0.2989, 0.587, 0.114)
"""The weights of red, green and blue in torchvision's greyscale."""
CACHED = 2**19
"""Values in a chunk that a CPU keeps in its cache: 18 images of 96 px."""


def random_colour_jitter(images: Tensor, strength: tuple[float, ...], generator: torch.Generator) -> Tensor:
    """Jittered copies of images float (N,3,H,W) in [0, 1], all draws from ``generator``.

    ``strength`` of brightness, contrast and saturation, whose factors are uniform in 1 -+ strength, and of hue, turned
    by up to -+ strength of a full circle. Brightness to saturation lie in [0, 1], hue in [0, 0.5].
    """
    factors, orders = draw_jitter(len(images), strength, generator)
    chunk = max(1, CACHED // math.prod(images.shape[1:])) if images.device.type == "cpu" else len(images)
    out = torch.empty_like(images)
    for start in range(0, len(images), chunk):
        part = slice(start, start + chunk)
        out[part] = colour_jitter(images[part], factors[part], orders[part])
    return out


def draw_jitter(n: int, strength: tuple[float, ...], generator: torch.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Factors float32 (n,4) and orders int64 (n,4) of :func:`colour_jitter` for n images."""
    uniform = torch.rand(n, 8, generator=generator, device=generator.device).cpu().numpy()
    factors = (2 * uniform[:, :4] - 1) * np.array(strength, dtype=np.float32)
    factors[:, :HUE] += 1
    return factors, uniform[:, 4:].argsort(1)


def colour_jitter(images: Tensor, factors: np.ndarray, orders: np.ndarray) -> Tensor:
    """Brightness, contrast, saturation and hue of images float (N,3,H,W) in [0, 1], each image in its own order.

    ``factors`` (N,4) of the four; ``orders`` int64 (N,4), the operation at each position. The first three are one
    formula, so each of the four rounds is one pass over the images that are at one of them and one over those at hue.
    """
    for operation in orders.T:
        hues, blends = np.flatnonzero(operation == HUE), np.flatnonzero(operation != HUE)
        out = torch.empty_like(images)
        if len(hues):
            rows = torch.from_numpy(hues).to(images.device)
            out[rows] = shift_hue(images[rows], _column(factors[hues, HUE], images))
        if len(blends):
            rows = torch.from_numpy(blends).to(images.device)
            factor = _column(factors[blends, operation[blends]], images)
            out[rows] = blend(images[rows], factor, operation[blends])
        images = out
    return images


def blend(images: Tensor, factor: Tensor, operation: np.ndarray) -> Tensor:
    """clamp(f x + (1 - f) m), with m black for BRIGHTNESS, the mean grey for CONTRAST, the greyscale for SATURATION.

    images (N,3,H,W) in [0, 1], factor (N,1,1,1), operation (N,).
    """
    grey = greyscale(images)
    contrast = _column(operation == CONTRAST, images)
    saturation = _column(operation == SATURATION, images)
    other = grey * saturation + grey.mean((1, 2, 3), keepdim=True) * contrast
    return torch.addcmul(other * (1 - factor), images, factor).clamp_(0, 1)


def greyscale(images: Tensor) -> Tensor:
    """(N,3,H,W) to (N,1,H,W) with torchvision's weights."""
    red, green, blue = images.split(1, 1)
    return (LUMA[0] * red).add_(green, alpha=LUMA[1]).add_(blue, alpha=LUMA[2])


def shift_hue(images: Tensor, shift: Tensor) -> Tensor:
    """Turn the hue of images (N,3,H,W) in [0, 1] by ``shift`` (N,1,1,1) of a full circle, -0.5 to 0.5.

    Largest and smallest channel stay, so that saturation and value do; with the hue h in circles, each channel is
    smallest + chroma * clamp(|6 frac(h + o) - 3| - 1, 0, 1), o = 0, 2/3, 1/3 for red, green, blue (Smith 1978).
    """
    red, green, blue = images.split(1, 1)
    largest, smallest = images.amax(1, keepdim=True), images.amin(1, keepdim=True)
    chroma = largest - smallest
    scale = 1 / (6 * chroma).clamp(min=1e-12)  # where chroma is 0 the hue is multiplied by 0 below
    hue = torch.where(largest == green, (blue - red) * scale + 1 / 3, (red - green) * scale + 2 / 3)
    hue = torch.where(largest == red, (green - blue) * scale, hue)
    hue = hue + (shift + 1)  # above 0, so that frac is the fraction
    return torch.cat([_channel(hue, offset).mul_(chroma).add_(smallest) for offset in (0, 2 / 3, 1 / 3)], 1)


def _channel(hue: Tensor, offset: float) -> Tensor:
    return (hue + offset).frac_().mul_(6).sub_(3).abs_().sub_(1).clamp_(0, 1)


def _column(values: np.ndarray, images: Tensor) -> Tensor:
    return torch.from_numpy(values).to(images.device, images.dtype).view(-1, 1, 1, 1)
