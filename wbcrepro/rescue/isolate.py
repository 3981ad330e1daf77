"""A cell on a white background: window around its centroid, and the symmetric crop of the white border.

Source: the first and the seventh script of the released code of `rescue` (`prepare_wbc_dataset_cellpose.py`,
`crop.py`); the paper says only that the background is removed. Differs from the released code in: an image without a
cell gives no picture (there, the whole image stands in for the cell, silently); the order of the channels is RGB.
"""

import cv2
import numpy as np

from wbcrepro.rescue.cells import Cell, check_image

WHITE = 255
NEARLY_WHITE = 250  # `crop.py`: from this grey level on a pixel belongs to the border


def isolate(image: np.ndarray, cell: Cell, *, size: int) -> np.ndarray | None:
    """The cell alone, uint8 (size, size, 3), white elsewhere, its centroid at pixel (size // 2, size // 2).

    ``image``: uint8 (H, W, 3) RGB that ``cell`` was found in. Where the window leaves the image it is white. Returns
    None for a cell without a mask: the caller counts it under ``cell.status``. What does not fit into the window is
    cut off; :func:`fits` tells. Raises ``ValueError`` for a wrong dtype or shape, or a size below 1.
    """
    check_image(image)
    if cell.cell.shape != image.shape[:2]:
        raise ValueError(f"the mask is {cell.cell.shape}, the image {image.shape[:2]}; expected the same height, width")
    if size < 1:
        raise ValueError(f"cannot cut a window of {size} pixels; expected at least 1")
    if not cell.cell.any():
        return None
    window = np.full((size, size, 3), WHITE, np.uint8)
    left, top = _corner(cell, size)
    rows, columns = (slice(max(low, 0), min(low + size, n)) for low, n in zip((top, left), image.shape, strict=False))
    inside = cell.cell[rows, columns]
    target = window[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
    target[inside] = image[rows, columns][inside]
    return window


def fits(cell: Cell, size: int) -> bool:
    """Whether a window of ``size`` pixels holds the whole cell; False for a cell without a mask."""
    rows, columns = np.nonzero(cell.cell)
    if not len(rows):
        return False
    left, top = _corner(cell, size)
    return bool(min(rows.min() - top, columns.min() - left) >= 0 and max(rows.max() - top, columns.max() - left) < size)


def border_crop(image: np.ndarray, *, size: int, white: int = NEARLY_WHITE) -> np.ndarray:
    """Remove the white border and resize (Lanczos) to uint8 (size, size, 3).

    All four sides of uint8 (H, W, 3) RGB lose the same number of pixels, the largest that loses none darker than
    ``white`` in grey: the cell stays where it was relative to the middle. An image without such a pixel is only
    resized. Raises ``ValueError`` for a wrong dtype or shape, or a size below 1.
    """
    check_image(image)
    if size < 1:
        raise ValueError(f"cannot resize to {size} pixels; expected at least 1")
    height, width = image.shape[:2]
    rows, columns = np.nonzero(cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2GRAY) < white)
    if len(rows):
        margin = min(rows.min(), columns.min(), height - 1 - rows.max(), width - 1 - columns.max())
        image = image[margin : height - margin, margin : width - margin]
    return cv2.resize(np.ascontiguousarray(image), (size, size), interpolation=cv2.INTER_LANCZOS4)


def _corner(cell: Cell, size: int) -> tuple[int, int]:
    """Column and row of the window's upper left pixel: the released code truncates the centroid."""
    return int(cell.centroid[0]) - size // 2, int(cell.centroid[1]) - size // 2
