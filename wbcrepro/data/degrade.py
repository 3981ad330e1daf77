"""Degradations of a cell image: noise, blur and illumination in severities 0 to 3.

WBCBench 2026 describes its degraded phase by these three names and four levels; the numbers behind them are not public.
**The numbers here are ours.** They are relative to the image side, so that one severity looks alike at any size.
"""

from __future__ import annotations

import numpy as np
from scipy.ndimage import gaussian_filter

from wbcrepro.errors import UsageError
from wbcrepro.seeds import derive_seed

KINDS = ("noise", "blur", "illumination")
NOISE_SIGMA = (0.0, 8.0, 18.0, 32.0)
"""Standard deviation of the additive Gaussian noise, in grey levels of 255, independent per pixel and channel."""
BLUR_SIGMA = (0.0, 0.004, 0.009, 0.016)
"""Standard deviation of the Gaussian blur, as a fraction of the shorter side (1.4, 3.2 and 5.8 px at 360 px)."""
ILLUMINATION = (0.0, 0.12, 0.25, 0.40)
"""Largest relative change of brightness: a global gain, a gradient across the image, and a third of it per channel."""


def degrade(image: np.ndarray, *, kind: str, severity: int, seed: int) -> np.ndarray:
    """A degraded copy of ``image`` (uint8, H x W x 3); severity 0 is an exact copy.

    ``kind``: noise, blur, illumination, or mixed (one of the three, chosen by ``seed``). The same arguments give the
    same bytes. Raises ``UsageError`` for another kind or severity and ``ValueError`` for another array.
    """
    if kind not in (*KINDS, "mixed") or severity not in range(4):
        raise UsageError(
            f"degradation {kind!r} of severity {severity!r}: expected one of {', '.join(KINDS)}, mixed, and 0 to 3"
        )
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"expected uint8 (H, W, 3), got {image.dtype} {image.shape}")
    if severity == 0:
        return image.copy()
    if kind == "mixed":
        kind = KINDS[derive_seed("kind", seed) % len(KINDS)]
    rng = np.random.default_rng(derive_seed("degrade", kind, seed))
    changed = {"noise": _noise, "blur": _blur, "illumination": _illumination}[kind](image, severity, rng)
    return np.clip(np.rint(changed), 0, 255).astype(np.uint8)


def _noise(image: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    return image + rng.normal(0, NOISE_SIGMA[severity], image.shape)


def _blur(image: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    sigma = BLUR_SIGMA[severity] * min(image.shape[:2])
    return gaussian_filter(image.astype(np.float32), (sigma, sigma, 0), mode="nearest")


def _illumination(image: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    size = ILLUMINATION[severity]
    height, width = image.shape[:2]
    angle = rng.uniform(0, 2 * np.pi)
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    gradient = (x * np.cos(angle) + y * np.sin(angle)) * size / 2
    gain = rng.choice((-1.0, 1.0)) * rng.uniform(size / 2, size)
    cast = rng.uniform(-size / 3, size / 3, 3)
    return image * (1 + gain + gradient[..., None]) * (1 + cast)
