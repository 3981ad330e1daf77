"""How well cells are found where masks are known: Zheng-18 (masks by people) and synthetic smears (drawn truth).

``python -m wbcrepro.rescue.cell_evaluation FOLDER_OF_THE_DATASETS results/cells-zheng18.csv`` writes the committed
table of Zheng-18 anew.
"""

import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
from PIL import Image

from wbcrepro.data.smears import SmearSource
from wbcrepro.data.sources import FileSource, ImageSource, open_dataset
from wbcrepro.errors import DataMissing
from wbcrepro.rescue.cells import Cell, segment

NUCLEUS, CYTOPLASM = 255, 128  # grey levels in the masks of Zheng-18
COLUMNS = ("image", "status", "cell_iou", "nucleus_iou")
_HEADER = """\
# Written by `python -m wbcrepro.rescue.cell_evaluation FOLDER_OF_THE_DATASETS FILE`: intersection over union of the
# default segmentation (wbcrepro.rescue.cells.segment) with the masks of Zheng-18, Dataset 1 (Zheng et al., Micron 2018;
# GPL-3 repository; acknowledged: Jiangxi Tecom). Settings were chosen on the even-numbered images ("tuning"), so that
# only the odd-numbered ones ("test") measure anything.
"""

Masks = Callable[[int], tuple[np.ndarray, np.ndarray]]


def iou(first: np.ndarray, second: np.ndarray) -> float:
    """Intersection over union of two masks bool (H, W): 0 to 1, and 1 where both are empty."""
    union = (first | second).sum()
    return float((first & second).sum() / union) if union else 1.0


def zheng18_masks(source: FileSource) -> Masks:
    """The masks (cell, nucleus), bool (H, W), of a manifest row of Zheng-18: the PNG beside the image.

    The function that is returned raises DataMissing where there is none.
    """

    def masks(row: int) -> tuple[np.ndarray, np.ndarray]:
        path = (source.root / source.manifest.frame.iloc[row]["path"]).with_suffix(".png")
        if not path.is_file():
            raise DataMissing(f"{path.name}: no mask beside the image; only Zheng-18 comes with masks")
        grey = np.asarray(Image.open(path).convert("L"))
        return grey >= CYTOPLASM, grey == NUCLEUS

    return masks


def smear_masks(source: SmearSource) -> Masks:
    """The drawn masks (cell, nucleus), bool (H, W), of a manifest row of synthetic smears."""

    def masks(row: int) -> tuple[np.ndarray, np.ndarray]:
        truth = source.truth(row)
        return truth.nucleus | truth.cytoplasm, truth.nucleus

    return masks


def evaluate(
    source: ImageSource,
    masks: Masks,
    *,
    rows: Iterable[int] | None = None,
    find: Callable[[np.ndarray], Cell] = segment,
) -> pd.DataFrame:
    """One line an image: ``image`` (its id), ``status``, ``cell_iou`` and ``nucleus_iou`` (0 where none was found).

    ``rows``: rows of the manifest, default all. ``find``: a segmentation.
    """
    lines = []
    for row in range(len(source.manifest.frame)) if rows is None else rows:
        found, (cell, nucleus) = find(source.read(row)), masks(row)
        scores = iou(found.cell, cell), iou(found.nucleus, nucleus)
        lines.append((source.manifest.frame["id"].iloc[row], found.status, *scores))
    return pd.DataFrame(lines, columns=list(COLUMNS))


def evaluate_zheng18(data_root: Path | str, cache: Path | str) -> pd.DataFrame:
    """`evaluate` on Zheng-18 with the column ``part``: ``tuning`` (even numbers) or ``test`` (odd ones).

    :raises DataMissing: the dataset or a mask is not there
    """
    source = open_dataset("zheng18", data_root, cache, workers=0, progress=False)
    table = evaluate(source, zheng18_masks(source))
    table["image"] = [Path(name).name for name in table["image"]]
    odd = np.array([int(Path(name).stem) % 2 for name in table["image"]])
    table.insert(1, "part", np.where(odd, "test", "tuning"))
    return table.sort_values("image", ignore_index=True)


def summary(table: pd.DataFrame, by: str) -> pd.DataFrame:
    """Mean and tenth percentile of both scores, number of images and of those without a cell, for each ``by``."""
    rows = {}
    for name, part in table.groupby(by):
        scores = {f"{kind}_{what}": value for kind in ("cell", "nucleus") for what, value in
                  (("mean", part[f"{kind}_iou"].mean()), ("tenth", part[f"{kind}_iou"].quantile(0.1)))}  # fmt: skip
        rows[name] = {"images": len(part), "no_cell": int((part["cell_iou"] == 0).sum()), **scores}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis(by)


def main(arguments: list[str]) -> None:
    """Write the table of Zheng-18 to the second argument, the first being the folder that holds ``zheng18``."""
    if len(arguments) != 2:
        raise SystemExit("usage: python -m wbcrepro.rescue.cell_evaluation FOLDER_OF_THE_DATASETS FILE")
    with TemporaryDirectory() as cache:
        table = evaluate_zheng18(arguments[0], cache)
    Path(arguments[1]).write_text(_HEADER + table.to_csv(index=False, float_format="%.4f"), encoding="utf-8")
    print(summary(table, "part").round(3).to_string())


if __name__ == "__main__":
    main(sys.argv[1:])
