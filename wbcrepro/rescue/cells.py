"""Find the white cell nearest the centre of an image, its nucleus and its cytoplasm, without a trained model.

Not from the paper, which runs Cellpose (`wbcrepro.rescue.cells_cellpose`). On a copy of 128 pixels a side:

1. optical density of red, green, blue relative to the background, the median of the brighter 40 % of pixels;
2. nucleus, roughly: Otsu's threshold on the channel of density that shows it best, the central component and the
   lobes beside it (`nucleus.central_nucleus`);
3. outline: dynamic programming in polar coordinates; red cells are told from cytoplasm by their colour where the two
   differ, and everywhere by the shape (`outline.cell_mask`, `red_cells.evidence`);
4. nucleus, exactly: Otsu's threshold within the cell (`nucleus.nucleus_within`).

Numbers in `SegmentSettings` and `OutlineSettings` were chosen on the even-numbered images of Zheng-18, on synthetic
smears of seed 7 and by looking at real images of three other laboratories; `results/cells-zheng18.csv` has the
odd-numbered ones.
"""

from dataclasses import dataclass, field

import cv2
import numpy as np

from wbcrepro.rescue.nucleus import Nucleus, central_nucleus, nuclei_outside, nucleus_within
from wbcrepro.rescue.outline import OutlineSettings, cell_mask

STATUSES = ("ok", "no_cell", "no_nucleus", "several_cells", "touches_border", "too_small", "blank")
"""ok: one white cell, whole. several_cells: the one nearest the centre is given, ``other_cells`` counts the others.
touches_border: the cell is given, but cut by the image's edge (others may be there too, see ``other_cells``).
Without masks: blank: black, white or of one colour. too_small: fewer pixels than ``SegmentSettings.smallest`` a side.
no_cell: nothing stands out from the background. no_nucleus: something does, but nothing as dark and blue as a nucleus
(red cells, dirt). One status an image: the first that holds of too_small, blank, no_cell, no_nucleus, touches_border,
several_cells."""


@dataclass(frozen=True)
class SegmentSettings:
    """``side``: pixels of the longer side that the work is done at. ``smallest``: shorter side of an image, pixels.

    ``contrast``: standard deviation (grey levels, of the most varied channel) below which an image is blank.
    ``bright``: percentile of brightness from which pixels are background. ``blur``: standard deviation in pixels.
    ``stands_out``: optical density that something must have. A nucleus has at least ``azure`` (density of azure times
    its share of all density) and ``clear`` times the background's scatter; at most ``along_edge`` times the root of
    its area lies on the image's edge. ``cut``: share of the outline on the image's edge, from which a cell is cut.
    """

    side: int = 128
    smallest: int = 16
    contrast: float = 2.0
    bright: float = 60
    blur: float = 0.7
    stands_out: float = 0.10
    azure: float = 0.17
    clear: float = 1.9
    along_edge: float = 1.2
    cut: float = 0.05
    outline: OutlineSettings = field(default_factory=OutlineSettings)


@dataclass(frozen=True)
class Cell:
    """One cell in an image of H x W pixels.

    status: one of ``STATUSES``. cell, nucleus: bool (H, W), the nucleus a subset of the cell; both empty where there
    is none. centroid: (x, y) of the cell mask in pixels, NaN without one. other_cells: nuclei of further white cells.
    """

    status: str
    cell: np.ndarray
    nucleus: np.ndarray
    centroid: tuple[float, float]
    other_cells: int = 0

    @classmethod
    def empty(cls, status: str, shape: tuple[int, ...]) -> "Cell":
        """No masks, for an image of ``shape`` (H, W, ...)."""
        return cls(status, np.zeros(shape[:2], bool), np.zeros(shape[:2], bool), (float("nan"), float("nan")))


def check_image(image: np.ndarray) -> None:
    """Raise ``ValueError`` unless ``image`` is uint8 of shape (H, W, 3) with at least one pixel."""
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8:
        got = getattr(image, "dtype", type(image).__name__)
        raise ValueError(f"expected a uint8 array (H, W, 3) of RGB, got {got}")
    if image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise ValueError(f"expected the shape (H, W, 3), got {image.shape}; channels stand last")


def unusable(image: np.ndarray, settings: SegmentSettings) -> str:
    """``too_small`` or ``blank`` for an image that nothing can be looked for in, else the empty text."""
    if min(image.shape[:2]) < settings.smallest:
        return "too_small"
    return "blank" if cv2.meanStdDev(np.ascontiguousarray(image))[1].max() < settings.contrast else ""


def segment(image: np.ndarray, settings: SegmentSettings | None = None) -> Cell:
    """The cell nearest the centre of uint8 (H, W, 3) RGB. Never raises for what an image shows: that is a status.

    Raises ``ValueError`` for another dtype or shape.
    """
    check_image(image)
    settings = settings or SegmentSettings()
    if status := unusable(image, settings):
        return Cell.empty(status, image.shape)
    density, noise = optical_density(_shrunk(image, settings.side), settings)
    found = _nucleus_or_status(density, noise, settings)
    if isinstance(found, str):
        return Cell.empty(found, image.shape)
    mask = cell_mask(density, noise, found.mask, settings.outline)
    if not mask.any():
        return Cell.empty("no_cell", image.shape)
    others = nuclei_outside(found, mask)
    return _cell(image.shape, mask, nucleus_within(density, mask), others, settings)


def cell_from_labels(image: np.ndarray, labels: np.ndarray, settings: SegmentSettings | None = None) -> Cell:
    """The cell among the masks of another method, the nucleus by colour.

    ``labels``: int (H, W) of the image uint8 (H, W, 3) RGB, 0 outside, 1, 2 ... in the masks. Of those that hold a
    nucleus the one whose centroid is nearest the image's centre is taken; the others with a nucleus are counted.
    Raises ``ValueError`` for a wrong dtype or shape.
    """
    check_image(image)
    settings = settings or SegmentSettings()
    if labels.shape != image.shape[:2]:
        raise ValueError(f"labels have the shape {labels.shape}, the image {image.shape[:2]}")
    if status := unusable(image, settings):
        return Cell.empty(status, image.shape)
    names = np.setdiff1d(np.unique(labels), [0])
    if not len(names):
        return Cell.empty("no_cell", image.shape)
    density, noise = optical_density(_shrunk(image, settings.side), settings)
    found = _nucleus_or_status(density, noise, settings)
    if isinstance(found, str):
        return Cell.empty("no_nucleus", image.shape)
    dark = _resized(found.dark, image.shape)
    masks = [labels == name for name in names]
    white = [mask for mask in masks if (mask & dark).sum() >= 0.05 * mask.sum()]
    if not white:
        return Cell.empty("no_nucleus", image.shape)
    centre = np.array([(n - 1) / 2 for n in image.shape[1::-1]])
    nearest = min(white, key=lambda mask: np.hypot(*(np.array(_centroid(mask)) - centre)))
    small = _resized(nearest, density.shape)
    nucleus = _resized(nucleus_within(density, small), image.shape) & nearest if small.any() else np.zeros_like(nearest)
    status = _status(nearest, len(white) - 1, settings)
    return Cell(status, nearest, nucleus, _centroid(nearest), len(white) - 1)


def optical_density(image: np.ndarray, settings: SegmentSettings) -> tuple[np.ndarray, float]:
    """Density float32 (H, W, 3) of uint8 (H, W, 3) relative to its background, and the background's own scatter.

    The scatter is the median length of the density vectors of the background pixels.
    """
    light = image.astype(np.float32) + 1
    brightness = light.sum(axis=2)
    bright = brightness >= np.percentile(brightness, settings.bright)
    density = cv2.GaussianBlur(np.log(np.median(light[bright], axis=0)) - np.log(light), (0, 0), settings.blur)
    return density, float(np.median(np.linalg.norm(density[bright], axis=1)))


def _nucleus_or_status(density: np.ndarray, noise: float, settings: SegmentSettings) -> Nucleus | str:
    if np.percentile(np.linalg.norm(density, axis=2), 99) < max(settings.stands_out, 3 * noise):
        return "no_cell"
    found = central_nucleus(density)
    if found is None or found.azure < settings.azure or found.strength < settings.clear * noise:
        return "no_nucleus"
    return found if found.at_edge <= settings.along_edge else "no_nucleus"


def _shrunk(image: np.ndarray, side: int) -> np.ndarray:
    factor = side / max(image.shape[:2])
    size = [max(round(n * factor), 1) for n in image.shape[1::-1]]
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR)


def _resized(mask: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Mask (h, w) at another size, its edge interpolated."""
    return cv2.resize(mask.astype(np.float32), shape[1::-1], interpolation=cv2.INTER_LINEAR) > 0.5


def _centroid(mask: np.ndarray) -> tuple[float, float]:
    weights = mask.sum(axis=0), mask.sum(axis=1)
    return tuple(float(w @ np.arange(len(w)) / w.sum()) for w in weights)


def _cell(shape, mask: np.ndarray, nucleus: np.ndarray, others: int, settings: SegmentSettings) -> Cell:
    cell = _resized(mask, shape)
    if not cell.any():
        return Cell.empty("no_cell", shape)
    return Cell(_status(cell, others, settings), cell, _resized(nucleus, shape) & cell, _centroid(cell), others)


def _status(mask: np.ndarray, others: int, settings: SegmentSettings) -> str:
    edge = mask[0].sum() + mask[-1].sum() + mask[:, 0].sum() + mask[:, -1].sum()
    if edge > settings.cut * 2 * np.sqrt(np.pi * mask.sum()):
        return "touches_border"
    return "several_cells" if others else "ok"
