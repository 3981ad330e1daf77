"""Morphological vector V(X) of Algorithm 1 of `rescue`: what a plasma cell shows, measured two ways.

| column | meaning | unit |
|---|---|---|
| spikiness | largest over median radius of the outline (`wbcrepro.rescue.spikiness`) | ratio, >= 1 |
| Area | pixels of the cell | pixels of the image at hand |
| Intensity, StdDev | mean and population standard deviation of the grey level in the cell | grey levels |
| RB_Ratio | mean red over mean blue in the cell | ratio |
| NC_Ratio | pixels of the nucleus over pixels of the cell | 0..1 |
| Offset | distance of the centroids of nucleus and cell over sqrt(Area / pi) | radii |
| Cyto_Int | mean grey level of the cytoplasm | grey levels |

`pc_features` and `released_morphology` follow the released code: a cell on white is its grey levels <= 245, its nucleus
the darker group of a 2-means of them. `morphology` takes both masks from the segmentation instead.

Differs from the released code in: 2-means in one dimension has an exact solution (the threshold that Otsu's method
finds), taken here, while there ten steps from random centres make NC_Ratio, Offset and Cyto_Int depend on a seed;
centroids of `morphology` keep their fractions. The paper names three of the columns (NC_Ratio, Intensity, Offset), the
code uses six.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import cv2
import numpy as np

from wbcrepro.rescue.spikiness import released_foreground, spikiness

if TYPE_CHECKING:
    from wbcrepro.rescue.cells import Cell

PC_COLUMNS = ("Area", "Intensity", "StdDev", "RB_Ratio", "NC_Ratio", "Offset", "Cyto_Int")
COLUMNS = ("spikiness", *PC_COLUMNS)
PAPER_COLUMNS = ("NC_Ratio", "Intensity", "Offset")
CODE_COLUMNS = ("Area", "Intensity", "RB_Ratio", "NC_Ratio", "Offset", "Cyto_Int")
BOX_COLUMNS = ("Area", "Intensity", "StdDev", "RB_Ratio", "NC_Ratio")
CELL_GRAY = 245
MIN_PIXELS = 10


@dataclass(frozen=True)
class Morphology:
    """Measurements of N cells: ``features`` float (N, F), NaN where not measurable, ``columns`` (F,), ``status`` (N,).

    A status is "ok" or the word that says why a cell could not (or only partly) be measured.
    """

    features: np.ndarray
    columns: tuple[str, ...]
    status: np.ndarray

    def __post_init__(self):
        if self.features.shape != (len(self.status), len(self.columns)):
            raise ValueError(f"features are {self.features.shape}, expected ({len(self.status)}, {len(self.columns)})")

    def __len__(self) -> int:
        return len(self.status)

    def select(self, columns: Iterable[str]) -> np.ndarray:
        """The named columns, float64 (N, k). Raises ValueError for a column that was not measured."""
        names = list(columns)
        unknown = [name for name in names if name not in self.columns]
        if unknown:
            raise ValueError(f"no column {', '.join(unknown)}; measured: {', '.join(self.columns)}")
        return self.features[:, [self.columns.index(name) for name in names]].astype(np.float64)

    def take(self, rows: np.ndarray) -> "Morphology":
        """The same for some rows (indices or a bool mask)."""
        return Morphology(self.features[rows], self.columns, self.status[rows])


def two_means(values: np.ndarray) -> tuple[float, float] | None:
    """Both centres, darker first, of the exact 2-means of grey levels uint8 (n,); None if there is only one level."""
    if len(values) == 0 or values.min() == values.max():
        return None
    threshold, _ = cv2.threshold(values.reshape(-1, 1), 0, 255, cv2.THRESH_BINARY | cv2.THRESH_OTSU)
    dark = values <= threshold
    return float(values[dark].mean()), float(values[~dark].mean())


def _centroid(mask: np.ndarray) -> np.ndarray:
    moments = cv2.moments(mask.view(np.uint8), binaryImage=True)
    return np.array([moments["m10"], moments["m01"]]) / moments["m00"]


def _describe(image: np.ndarray, gray: np.ndarray, cell: np.ndarray, nucleus: np.ndarray, whole: bool) -> np.ndarray:
    """``PC_COLUMNS`` (7,) from bool masks; the last three NaN without a nucleus or cytoplasm."""
    area, levels = int(cell.sum()), gray[cell]
    red, _, blue = image[cell].mean(0)
    shape = np.full(3, np.nan)
    cytoplasm = cell & ~nucleus
    if nucleus.any() and cytoplasm.any():
        ends = [_centroid(nucleus), _centroid(cell)]
        if whole:
            ends = [end.astype(int) for end in ends]
        distance = np.linalg.norm(ends[0] - ends[1])
        shape = [nucleus.sum() / area, distance / np.sqrt(area / np.pi), gray[cytoplasm].mean()]
    return np.array([area, levels.mean(), levels.std(), red / blue if blue else np.nan, *shape])


def _check(image: np.ndarray) -> None:
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f"expected an RGB image uint8 (H, W, 3), got {image.dtype} {image.shape}")


def pc_features(image: np.ndarray) -> np.ndarray | None:
    """``PC_COLUMNS`` float64 (7,) of a cell on white, RGB uint8 (H, W, 3), the released way; None below 10 pixels.

    A cell of a single grey level has no two groups: its last three columns are NaN.
    """
    _check(image)
    gray = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    cell = gray <= CELL_GRAY
    if cell.sum() < MIN_PIXELS:
        return None
    centres = two_means(gray[cell])
    nucleus = cell & (gray <= int(sum(centres) / 2)) if centres else np.zeros_like(cell)
    return _describe(image, gray, cell, nucleus, whole=True)


def released_morphology(image: np.ndarray, cropped: np.ndarray | None = None) -> tuple[np.ndarray, str]:
    """``COLUMNS`` float64 (8,) and a status, the released way, of a cell on white, RGB uint8 (H, W, 3).

    ``cropped``: the border-cropped copy on which the released code measures spikiness; by default ``image`` itself.
    Status "ok", "no_cell", "too_small" (below 10 pixels, or no contour), "no_nucleus" (one grey level).
    """
    pc = pc_features(image)
    seen = image if cropped is None else cropped
    _check(seen)
    spiky = spikiness(released_foreground(cv2.cvtColor(seen, cv2.COLOR_RGB2GRAY)))
    if pc is None:
        empty = (cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) > CELL_GRAY).all()
        return np.array([spiky, *[np.nan] * len(PC_COLUMNS)]), "no_cell" if empty else "too_small"
    return np.array([spiky, *pc]), "too_small" if np.isnan(spiky) else "no_nucleus" if np.isnan(pc).any() else "ok"


def morphology(image: np.ndarray, cell: "Cell") -> tuple[np.ndarray, str]:
    """``COLUMNS`` float64 (8,) and a status, from the masks of a segmented cell in its RGB image uint8 (H, W, 3).

    The status is the cell's own where that is not "ok"; what its masks allow is measured all the same.
    """
    _check(image)
    if cell.cell.shape != image.shape[:2]:
        raise ValueError(f"the mask is {cell.cell.shape}, the image {image.shape[:2]}")
    if cell.cell.sum() < MIN_PIXELS:
        status = "too_small" if cell.cell.any() else "no_cell"
        return np.full(len(COLUMNS), np.nan), cell.status if cell.status != "ok" else status
    pc = _describe(image, cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cell.cell, cell.nucleus & cell.cell, whole=False)
    spiky = spikiness(cell.cell)
    status = "too_small" if np.isnan(spiky) else "no_nucleus" if np.isnan(pc).any() else "ok"
    return np.array([spiky, *pc]), cell.status if cell.status != "ok" else status


def collect(measured: Iterable[tuple[np.ndarray, str]]) -> Morphology:
    """`Morphology` (float32) of the results of `morphology` or `released_morphology`, one an image, in order."""
    rows = list(measured)
    features = np.array([values for values, _ in rows], dtype=np.float32).reshape(len(rows), len(COLUMNS))
    return Morphology(features, COLUMNS, np.array([status for _, status in rows], dtype=str))
