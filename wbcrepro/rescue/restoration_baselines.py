"""What a restoration network must beat: doing nothing, and denoisers of OpenCV and scikit-image with fixed parameters.

The parameters are one setting for every image and noise, chosen before any comparison, as a user would who does not
know the noise; none is tuned on the images that are scored. BM3D itself is in neither library (OpenCV's is in a
contributed module, the usual Python package is not free); non-local means, from which it grew, stands for it.
"""

from collections.abc import Callable

import cv2
import numpy as np
from skimage.restoration import denoise_tv_chambolle

NL_MEANS = {"h": 20, "hColor": 20, "templateWindowSize": 5, "searchWindowSize": 15}
"""OpenCV's fastNlMeansDenoisingColored, in Lab: filter strength of lightness and of colour, patch, search window."""
TV_WEIGHT = 0.15
"""Of Chambolle's total variation, for an image in [0, 1]: larger is smoother (scikit-image's default is 0.1)."""


def unchanged(image: np.ndarray) -> np.ndarray:
    """A copy: no restoration."""
    return image.copy()


def median_3x3(image: np.ndarray) -> np.ndarray:
    """Median of 3 x 3 pixels, each channel alone."""
    return cv2.medianBlur(np.ascontiguousarray(image), 3)


def median_5x5(image: np.ndarray) -> np.ndarray:
    """Median of 5 x 5 pixels, each channel alone."""
    return cv2.medianBlur(np.ascontiguousarray(image), 5)


def nl_means(image: np.ndarray) -> np.ndarray:
    """Non-local means (Buades et al. 2005) with ``NL_MEANS``."""
    bgr = cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2BGR)  # it reads its input as BGR
    return cv2.cvtColor(cv2.fastNlMeansDenoisingColored(bgr, None, **NL_MEANS), cv2.COLOR_BGR2RGB)


def total_variation(image: np.ndarray) -> np.ndarray:
    """Total variation (Rudin et al. 1992, by Chambolle 2004) with ``TV_WEIGHT``, the channels together."""
    restored = denoise_tv_chambolle(image.astype(np.float32) / 255, weight=TV_WEIGHT, channel_axis=2)
    return np.clip(np.rint(restored * 255), 0, 255).astype(np.uint8)


BASELINES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "none": unchanged,
    "median_3x3": median_3x3,
    "median_5x5": median_5x5,
    "nl_means": nl_means,
    "total_variation": total_variation,
}
"""Restorations by name, uint8 RGB (H,W,3) to the same shape and type."""


def restore_with(name: str, images: np.ndarray) -> np.ndarray:
    """Copies uint8 (N,3,H,W) of ``images``, each restored by the baseline ``name``; KeyError for another name."""
    method = BASELINES[name]
    return np.stack([method(image.transpose(1, 2, 0)).transpose(2, 0, 1) for image in images])
