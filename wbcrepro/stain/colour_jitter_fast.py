"""Colour jitter compiled for one CPU core (extra ``fast``: numba): :mod:`wbcrepro.stain.colour_jitter`, same draws.

An image of training size stays in the cache while its four operations pass over it, and no intermediate is stored.
"""

import numpy as np
import torch

from wbcrepro.errors import UsageError
from wbcrepro.stain.colour_jitter import BRIGHTNESS, CONTRAST, HUE, LUMA, draw_jitter

try:
    from numba import njit
except ImportError as error:
    raise UsageError(
        'colour_jitter_fast needs numba, which is not installed; run: pip install "wbcrepro[fast]", or use '
        "wbcrepro.stain.colour_jitter, which needs torch only"
    ) from error

FAST = {"reassoc", "contract", "arcp", "nsz", "nnan"}  # images in [0, 1] hold no NaN
RED, GREEN, BLUE = (np.float32(weight) for weight in LUMA)
ZERO, ONE = np.float32(0), np.float32(1)


@njit(cache=True, nogil=True, fastmath=FAST)
def _mean_grey(r, g, b):
    total = 0.0
    for start in range(0, r.size, 1024):
        part = ZERO
        for i in range(start, min(start + 1024, r.size)):
            part += RED * r[i] + GREEN * g[i] + BLUE * b[i]
        total += part
    return total / max(r.size, 1)


@njit(cache=True, nogil=True, fastmath=FAST)
def _scale(values, factor, shift):
    for i in range(values.size):
        values[i] = min(max(factor * values[i] + shift, ZERO), ONE)


@njit(cache=True, nogil=True, fastmath=FAST)
def _saturate(r, g, b, factor):
    rest = ONE - factor
    for i in range(r.size):
        grey = rest * (RED * r[i] + GREEN * g[i] + BLUE * b[i])
        r[i] = min(max(factor * r[i] + grey, ZERO), ONE)
        g[i] = min(max(factor * g[i] + grey, ZERO), ONE)
        b[i] = min(max(factor * b[i] + grey, ZERO), ONE)


@njit(cache=True, nogil=True, fastmath=FAST)
def _turn(r, g, b, shift):
    third, six, three = np.float32(1 / 3), np.float32(6), np.float32(3)
    for i in range(r.size):
        x, y, z = r[i], g[i], b[i]
        largest, smallest = max(x, y, z), min(x, y, z)
        chroma = largest - smallest
        scale = ONE / max(six * chroma, np.float32(1e-12))
        hue = (z - x) * scale + third if largest == y else (x - y) * scale + third + third
        hue = (y - z) * scale if largest == x else hue
        hue += shift + ONE
        p, q, s = hue, hue + third + third, hue + third
        p, q, s = six * (p - np.floor(p)), six * (q - np.floor(q)), six * (s - np.floor(s))
        r[i] = min(max(abs(p - three) - ONE, ZERO), ONE) * chroma + smallest
        g[i] = min(max(abs(q - three) - ONE, ZERO), ONE) * chroma + smallest
        b[i] = min(max(abs(s - three) - ONE, ZERO), ONE) * chroma + smallest


@njit(cache=True, nogil=True)
def _jitter(image, factors, order):
    """The four operations on one image float32 (3,P), in place."""
    r, g, b = image[0], image[1], image[2]
    for operation in order:
        factor = factors[operation]
        if operation == HUE:
            _turn(r, g, b, factor)
        elif operation == BRIGHTNESS or operation == CONTRAST:
            shift = ZERO if operation == BRIGHTNESS else np.float32((ONE - factor) * _mean_grey(r, g, b))
            _scale(r, factor, shift)
            _scale(g, factor, shift)
            _scale(b, factor, shift)
        else:
            _saturate(r, g, b, factor)


def colour_jitter_compiled(images: torch.Tensor, factors: np.ndarray, orders: np.ndarray) -> torch.Tensor:
    """As :func:`wbcrepro.stain.colour_jitter.colour_jitter`, for images float32 (N,3,H,W) on the CPU."""
    out = images.clone(memory_format=torch.contiguous_format)
    for image, row, order in zip(out.numpy(), factors.astype(np.float32), orders, strict=True):
        _jitter(image.reshape(3, -1), row, order)
    return out


def random_colour_jitter_compiled(
    images: torch.Tensor, strength: tuple[float, ...], generator: torch.Generator
) -> torch.Tensor:
    """As :func:`wbcrepro.stain.colour_jitter.random_colour_jitter`, with the same draws; float32 on the CPU."""
    return colour_jitter_compiled(images, *draw_jitter(len(images), strength, generator))
