"""How near a restored image is to its pristine twin: PSNR and SSIM, over the whole image and inside the cell.

Both are scikit-image's: PSNR with a range of 255 over all channels; SSIM as Wang et al. (2004) define it (Gaussian
window of sigma 1.5, biased covariance), the mean over the channels, over the whole image without a border of half a
window. An isolated cell stands on white, which every
method returns right: the whole image flatters, the cell is what a classifier looks at.
"""

import numpy as np
import pandas as pd
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from wbcrepro.rescue.noise import cell_pixels

COLUMNS = ("psnr", "ssim", "cell_psnr", "cell_ssim")


def compare(restored: np.ndarray, pristine: np.ndarray, cell: np.ndarray | None = None) -> dict[str, float]:
    """The four ``COLUMNS`` of one image, both uint8 RGB (H,W,3), sides of 11 px or more.

    ``cell``: bool (H,W), by default where ``pristine`` is darker than the background. PSNR in dB, infinite for equal
    images; the values of the cell are NaN where it has no pixel. Raises ValueError for another shape or dtype.
    """
    if restored.shape != pristine.shape or restored.dtype != np.uint8 or pristine.dtype != np.uint8:
        raise ValueError(f"expected two uint8 images of one shape, got {restored.dtype} {restored.shape} and "
                         f"{pristine.dtype} {pristine.shape}")
    cell = cell_pixels(pristine) if cell is None else cell
    mean, local = structural_similarity(pristine, restored, channel_axis=2, data_range=255, gaussian_weights=True,
                                        sigma=1.5, use_sample_covariance=False, full=True)
    inside = {"cell_psnr": np.nan, "cell_ssim": np.nan}
    if cell.any():
        inside = {"cell_psnr": _psnr(pristine[cell], restored[cell]), "cell_ssim": float(local[cell].mean())}
    return {"psnr": _psnr(pristine, restored), "ssim": float(mean), **inside}


def _psnr(pristine: np.ndarray, restored: np.ndarray) -> float:
    if np.array_equal(pristine, restored):
        return np.inf  # scikit-image says so too, with a warning
    return float(peak_signal_noise_ratio(pristine, restored, data_range=255))


def evaluate(restored: np.ndarray, pristine: np.ndarray, cells: np.ndarray | None = None) -> pd.DataFrame:
    """``COLUMNS`` for each image of uint8 (N,3,H,W); ``cells``: bool (N,H,W) or None as in ``compare``."""
    lines = [
        compare(a.transpose(1, 2, 0), b.transpose(1, 2, 0), None if cells is None else cells[i])
        for i, (a, b) in enumerate(zip(restored, pristine, strict=True))
    ]
    return pd.DataFrame(lines, columns=list(COLUMNS))


def summary(scores: pd.DataFrame) -> dict[str, float]:
    """Means of ``evaluate``'s columns, and two counts: ``images``, and ``identical`` to their twin.

    A PSNR is averaged over the images that differ (an infinite one has no place in a mean), the cell's values over
    those that have a cell; NaN where there is none.
    """
    finite = scores.replace([np.inf, -np.inf], np.nan)
    means = {name: float(finite[name].mean()) for name in COLUMNS}
    return means | {"images": len(scores), "identical": int(np.isinf(scores["psnr"]).sum())}


def intervals(
    restored: pd.DataFrame, unrestored: pd.DataFrame, groups: np.ndarray, *, draws: int = 2000, seed: int = 0
) -> dict[str, list[float]]:
    """95 % percentile intervals of the means of ``restored``, and of their gains over ``unrestored`` ("psnr_gain").

    Both are from ``evaluate``, row i of the same image. ``groups`` (N,): patients, drawn whole with replacement; images
    alone where no patient is known. An image that equals its twin enters no mean of PSNR; NaN where nothing is left.
    """
    _, code = np.unique(np.asarray(groups), return_inverse=True)
    if not code.any():
        code = np.arange(len(restored))
    units = code.max() + 1
    weights = np.random.default_rng(seed).multinomial(units, np.full(units, 1 / units), size=draws)[:, code]
    found = {}
    for name in COLUMNS:
        after, before = (frame[name].replace([np.inf, -np.inf], np.nan).to_numpy() for frame in (restored, unrestored))
        for key, values in ((name, after), (f"{name}_gain", after - before)):
            known = np.isfinite(values)
            total = weights[:, known].sum(1)
            with np.errstate(invalid="ignore", divide="ignore"):
                means = weights[:, known] @ values[known] / total
            found[key] = [float(v) for v in np.nanquantile(means, [0.025, 0.975])] if known.any() else [np.nan] * 2
    return found
