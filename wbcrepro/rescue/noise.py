"""Whether an image is noisy, and how clean images are made noisy: the noise filter and noise models of `rescue` 2.2.

The *noise score* of an image is the mean over its cell pixels of |grey - median of the 3x3 neighbourhood|, in grey
levels; cell pixels are those darker than 245 (the background of an isolated cell is white). The released code calls
20 and more noisy; the paper names neither number.

The paper injects "salt-and-pepper noise" and gives no amount. The released code has no salt and no pepper in it: it
adds dense, coloured Gaussian noise whose standard deviation grows with brightness, and darkens the cell by 30 %.
Both are here, and both leave every other pixel as it is.

Two things to know about the score. It grows as images get smaller, because texture moves into the 3x3 window: a
threshold belongs to a size. And a pixel turned white by salt leaves the mask, so only pepper is counted.

Differs from the released code in: which random numbers an image gets follows from a generator that the caller seeds
(there, only the order of the files is seeded); grey levels are rounded, not truncated.
"""

from collections.abc import Callable

import cv2
import numpy as np

from wbcrepro.data.degrade import degrade

CELL_GREY = 245
"""Pixels of a lower grey level belong to the cell."""
NOISY = 20.0
"""Images with at least this noise score are noisy (released code; measured there on 224 px images). Weaker noise, such
as all of ``data.degrade``, stays below it: ``fit_threshold`` finds the one for a size and a noise."""
SALT_AND_PEPPER = (0.1, 0.4)
"""Share of cell pixels replaced; each image draws its own, uniformly. Ours: the paper states none."""


def grey_levels(image: np.ndarray) -> np.ndarray:
    """Grey levels uint8 (H,W) of uint8 RGB (H,W,3): 0.299 R + 0.587 G + 0.114 B, rounded. ValueError otherwise."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"expected uint8 (H, W, 3), got {image.dtype} {image.shape}")
    return cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2GRAY)


def cell_pixels(image: np.ndarray) -> np.ndarray:
    """Bool (H,W): the pixels of uint8 RGB (H,W,3) that are darker than ``CELL_GREY``."""
    return grey_levels(image) < CELL_GREY


def noise_score_of_grey(grey: np.ndarray) -> float:
    """Noise score of grey levels uint8 (H,W), in grey levels; 0 where no pixel belongs to a cell."""
    cell = grey < CELL_GREY
    residual = cv2.absdiff(grey, cv2.medianBlur(grey, 3))  # its border is replicated, as in the released code
    return float(residual[cell].mean()) if cell.any() else 0.0


def noise_score(image: np.ndarray) -> float:
    """Noise score of uint8 RGB (H,W,3), in grey levels."""
    return noise_score_of_grey(grey_levels(image))


def noise_scores(images: np.ndarray) -> np.ndarray:
    """Noise scores float64 (N,) of a cache uint8 (N,3,H,W)."""
    return np.array([noise_score(image.transpose(1, 2, 0)) for image in images], dtype=np.float64)


def fit_threshold(clean: np.ndarray, noisy: np.ndarray) -> float:
    """The threshold t that parts the scores of clean (N,) from those of noisy (M,) images best, noisy being >= t.

    Best is the highest mean of both recalls; of equal ones the middle of the lowest gap. Give it training images and
    noisy copies of them: ``NOISY`` belongs to another size and another noise. Raises ValueError where one is empty.
    """
    clean, noisy = np.sort(clean), np.sort(noisy)
    if not len(clean) or not len(noisy):
        raise ValueError(f"a threshold needs clean and noisy images, got {len(clean)} and {len(noisy)}")
    scores = np.unique(np.concatenate([clean, noisy]))
    between = np.concatenate([[scores[0]], (scores[1:] + scores[:-1]) / 2])
    kept, found = np.searchsorted(clean, between), len(noisy) - np.searchsorted(noisy, between)
    return float(between[np.argmax(kept * len(noisy) + found * len(clean))])  # in whole numbers, so that ties are ties


def salt_and_pepper(image: np.ndarray, amount: float, rng: np.random.Generator) -> np.ndarray:
    """A copy of uint8 RGB (H,W,3) with a share ``amount`` in [0, 1] of the cell's pixels black or white, equally often.

    A pixel changes in all channels at once. Raises ValueError for another amount.
    """
    if not 0 <= amount <= 1:
        raise ValueError(f"the amount of salt and pepper is a share of the pixels in [0, 1], got {amount}")
    draws = rng.random(image.shape[:2])
    hit = cell_pixels(image) & (draws < amount)
    noisy = image.copy()
    noisy[hit] = np.where(draws[hit] < amount / 2, 0, 255)[:, None]
    return noisy


def released_noise(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """What the released code adds to uint8 RGB (H,W,3) x: with g in [0, 1] its grey level, on cell pixels

        0.7 (x + 1.7 m n),  n ~ N(0, (80 (0.6 + 0.8 g))^2) for each channel,  m = 1 on 95 to 99 % of the pixels, else 0

    clipped to [0, 255]. The share of m is drawn once an image.
    """
    grey, cell = grey_levels(image), cell_pixels(image)
    noise = rng.standard_normal(image.shape, dtype=np.float32) * (80 * (0.6 + 0.8 * grey / np.float32(255)))[..., None]
    chosen = rng.random(grey.shape) < rng.uniform(0.95, 0.99)
    noisy = np.clip(np.rint(0.7 * (image + 1.7 * noise * chosen[..., None])), 0, 255)
    return np.where(cell[..., None], noisy, image).astype(np.uint8)


def _random_salt_and_pepper(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return salt_and_pepper(image, rng.uniform(*SALT_AND_PEPPER), rng)


def _gaussian(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    noisy = degrade(image, kind="noise", severity=3, seed=int(rng.integers(2**63)))
    return np.where(cell_pixels(image)[..., None], noisy, image)


NOISES: dict[str, Callable[[np.ndarray, np.random.Generator], np.ndarray]] = {
    "salt_and_pepper": _random_salt_and_pepper,
    "released": released_noise,
    "gaussian": _gaussian,
}
"""Noise models by name, ``(image uint8 (H,W,3), rng) -> noisy copy``: the paper's word, its released code, and the
strongest noise of ``data.degrade`` on cell pixels, which is what an isolated cell of a degraded image shows."""
