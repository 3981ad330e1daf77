"""A contact sheet: some images of each class in one picture, to look at before anything is trained."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from wbcrepro.data.sources import ImageSource

_GAP = 4


def contact_sheet(source: ImageSource, *, per_class: int = 8, size: int = 96) -> Image.Image:
    """One row a class, ``per_class`` images each, at most ``size`` pixels a side, class and count beside.

    Images are taken in the order of their sha256, which depends on nothing but content. Rows without a class
    (their source label has none in the mapping) come last.
    """
    frame = source.manifest.frame
    usable = frame[frame["status"] == "ok"].sort_values("sha256")
    names = [*source.manifest.classes, *([""] if (usable["label"] == "").any() else [])]
    font = ImageFont.load_default(size=13)
    margin = 20 + max(int(font.getlength(_caption(name, len(usable)))) for name in names)
    sheet = Image.new("RGB", (margin + per_class * (size + _GAP), len(names) * (size + _GAP) + _GAP), "white")
    draw = ImageDraw.Draw(sheet)
    for line, name in enumerate(names):
        rows = usable.index[usable["label"] == name]
        top = _GAP + line * (size + _GAP)
        draw.text((8, top + size // 2 - 8), _caption(name, len(rows)), fill="black", font=font)
        for column, row in enumerate(rows[:per_class]):
            sheet.paste(_thumbnail(source.read(int(row)), size), (margin + column * (size + _GAP), top))
    return sheet


def save_sheet(sheet: Image.Image, path: Path) -> Path:
    """Write as PNG; the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path, "PNG")
    return path


def _caption(name: str, count: int) -> str:
    return f"{name or 'no class'} ({count})"


def _thumbnail(pixels: np.ndarray, size: int) -> Image.Image:
    image = Image.fromarray(pixels)
    scale = size / max(image.size)
    return image.resize([max(1, round(scale * side)) for side in image.size], Image.Resampling.LANCZOS)
