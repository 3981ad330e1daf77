"""From transmitted light to the stored image: uneven light, point spread, colour fringes, sensor noise, JPEG."""

import io

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter1d

from wbcrepro.data.smears.stains import Laboratory


def illumination(rng: np.random.Generator, size: int, vignetting: float) -> np.ndarray:
    """Relative light (size, size): darker towards the corners, with a slight gradient across the field."""
    axis = np.linspace(-1, 1, size, dtype=np.float32)
    y, x = axis[:, None], axis[None, :]
    tilt = rng.normal(0, 0.02, 2).astype(np.float32)
    return 1 - np.float32(0.5 * vignetting) * (y * y + x * x) + tilt[0] * y + tilt[1] * x


def _displace(channel: np.ndarray, shift: float, axis: int) -> np.ndarray:
    """Move by a fraction of a pixel with linear interpolation, the border repeated."""
    if abs(shift) < 0.02:
        return channel
    whole = int(np.floor(shift))
    part = np.float32(shift - whole)
    size = channel.shape[axis]
    index = np.arange(size)
    near = np.take(channel, np.clip(index - whole, 0, size - 1), axis)
    far = np.take(channel, np.clip(index - whole - 1, 0, size - 1), axis)
    return near + part * (far - near)


def photograph(rng: np.random.Generator, light: np.ndarray, lab: Laboratory, pixel: float) -> np.ndarray:
    """(3, H, W) light in 0-255 -> the same after the lens: some defocus, and red and blue that do not quite meet."""
    sigma = float(np.hypot(lab.blur, abs(rng.normal(0, 0.07)))) / pixel
    if sigma > 0.3:
        light = gaussian_filter1d(light, sigma, axis=1, mode="nearest", truncate=3)
        light = gaussian_filter1d(light, sigma, axis=2, mode="nearest", truncate=3)
    if lab.chromatic:
        shift = lab.chromatic / pixel * rng.uniform(0.3, 1.2)
        light = np.stack([_displace(light[0], shift, 1), light[1], _displace(light[2], -shift, 0)])
    return light


def develop(rng: np.random.Generator, light: np.ndarray, lab: Laboratory) -> np.ndarray:
    """(3, H, W) light -> uint8 (H, W, 3): shot noise grows with the root of the light; stored as JPEG."""
    grain = rng.standard_normal(light.shape, dtype=np.float32)
    light = light + grain * (np.float32(lab.noise * 0.5) + np.float32(lab.noise * 0.05) * np.sqrt(np.maximum(light, 0)))
    return jpeg(np.clip(light.transpose(1, 2, 0) + 0.5, 0, 255).astype(np.uint8), lab.jpeg)


def jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    """The uint8 (H, W, 3) image after JPEG with ``quality``."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=int(quality), subsampling=0)
    return np.asarray(Image.open(file))
