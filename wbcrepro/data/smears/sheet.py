"""Contact sheets: rows of cells with their names, as one picture."""

from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw


def contact_sheet(rows: Mapping[str, Sequence[np.ndarray]], *, side: int = 96, margin: int = 44) -> np.ndarray:
    """uint8 (H, W, 3): one row a name, its images beside it, each scaled to ``side`` pixels on a white sheet."""
    columns = max(len(images) for images in rows.values())
    sheet = Image.new("RGB", (margin + columns * (side + 2), len(rows) * (side + 2)), "white")
    pen = ImageDraw.Draw(sheet)
    for i, (name, images) in enumerate(rows.items()):
        pen.text((4, i * (side + 2) + side // 2 - 5), name, fill="black")
        for j, image in enumerate(images):
            sheet.paste(
                Image.fromarray(image).resize((side, side), Image.LANCZOS), (margin + j * (side + 2), i * (side + 2))
            )
    return np.asarray(sheet)


def smear_sheet(source, *, columns: int = 8, classes: Sequence[str] | None = None, side: int = 96) -> np.ndarray:
    """Contact sheet of a ``SmearSource``: ``columns`` cells of every class, from its laboratories in turn."""
    frame = source.manifest.frame
    rows = {}
    for label in classes or source.manifest.classes:
        own = frame[frame["label"] == label]
        own = own.assign(turn=own.groupby("domain").cumcount()).sort_values(["turn", "domain"], kind="stable")
        if len(own):
            rows[label] = [source.read(row) for row in own.index[:columns]]
    return contact_sheet(rows, side=side)
