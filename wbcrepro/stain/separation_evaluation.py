"""Measures of a stain separation where the truth is known: angles on drawn smears, column order on nucleus masks."""

from collections.abc import Iterable

import numpy as np
import pandas as pd
import torch
from PIL import Image

from wbcrepro.data.smears import SmearSource
from wbcrepro.data.sources import FileSource
from wbcrepro.errors import DataMissing
from wbcrepro.stain.evaluation import nucleus_auc
from wbcrepro.stain.macenko import estimate_stains
from wbcrepro.stain.romanowsky import estimate_romanowsky
from wbcrepro.stain.snmf import SEPARATED, separate, snmf_od
from wbcrepro.stain.stain_order import second_is_nuclear, second_is_redder

CLEAR = 0.02  # difference of two AUCs that lets a mask say which stain is the nucleus's
NUCLEUS = 255  # in the masks of Zheng-18; cytoplasm is 128


def stain_angles(estimated: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Degrees (N,2) between each true stain, a column of (N,3,2), and the estimated one that is matched to it.

    Of the two ways to match the columns the one with the smaller sum counts. Lengths do not matter.
    """
    unit = [m.double() / m.double().norm(dim=1, keepdim=True).clamp_min(1e-12) for m in (estimated, truth)]
    angles = torch.rad2deg((unit[0].mT @ unit[1]).clamp(-1, 1).acos())  # row: estimated, column: true
    straight, crossed = angles.diagonal(dim1=1, dim2=2), angles.flip(1).diagonal(dim1=1, dim2=2)
    return torch.where((crossed.sum(1) < straight.sum(1))[:, None], crossed, straight)


def smear_angles(source: SmearSource, rows=None) -> pd.DataFrame:
    """Angles on drawn smears: one row per image and method, with ``azure`` and ``eosin`` in degrees and the status.

    Methods: Macenko, its Romanowsky variant, SADA's ten iterations, and the fast factorisation.
    """
    rows = range(len(source)) if rows is None else rows
    truths = [source.truth(row) for row in rows]
    truth = torch.from_numpy(np.stack([item.stain_matrix for item in truths]))
    codes = torch.from_numpy(np.stack([source.read(row) for row in rows])).permute(0, 3, 1, 2).contiguous()
    images = codes.float() / 255
    estimates = {"Macenko": estimate_stains(codes), "Macenko, Romanowsky variant": estimate_romanowsky(codes)[0]}
    found = {name: (item.matrix, item.codes) for name, item in estimates.items()}
    for name, method in (("SNMF, 10 released iterations", "released"), ("SNMF, fast", "fast")):
        item = separate(images, method=method)
        found[name] = (item.W, item.codes)
    tables = []
    for name, (matrix, status) in found.items():
        azure, eosin = stain_angles(matrix, truth).unbind(1)
        columns = {"method": name, "domain": [item.domain for item in truths], "label": [t.label for t in truths]}
        tables.append(pd.DataFrame({**columns, "azure": azure, "eosin": eosin, "usable": status == SEPARATED}))
    return pd.concat(tables, ignore_index=True)


def order_accuracy(groups: Iterable[tuple[torch.Tensor, torch.Tensor]], **options) -> dict[str, float]:
    """How often each rule puts the stain of the nucleus first, over groups of images and masks of one size each.

    A group is images float (N,3,H,W) in [0,1] and nuclei bool (N,H,W). The mask's verdict, twice: the stain whose
    density tells nucleus from the rest better (``auc``, and ``clear`` over the images in which the two AUCs differ by
    0.02 or more), and the stain with the larger share of its density inside the nucleus (``share``). Keys: ``images``,
    ``clear_images``, and for "dark_nucleus" and "red" (the usual rule) ``<rule>_auc``, ``<rule>_clear``,
    ``<rule>_share``, as fractions. ``options`` go to :func:`wbcrepro.stain.snmf.separate`.
    """
    table = pd.concat([_verdicts(images, nuclei, options) for images, nuclei in groups], ignore_index=True)
    clear = table[(table["difference"].abs() >= CLEAR)]
    result = {"images": len(table), "clear_images": len(clear)}
    for rule in ("dark_nucleus", "red"):
        result[f"{rule}_auc"] = float((table[rule] == (table["difference"] > 0)).mean())
        result[f"{rule}_clear"] = float((clear[rule] == (clear["difference"] > 0)).mean())
        result[f"{rule}_share"] = float((table[rule] == table["share"]).mean())
    return result


def _verdicts(images: torch.Tensor, nuclei: torch.Tensor, options: dict) -> pd.DataFrame:
    """For every usable image whether the second stain is the nucleus's, by either rule and by the mask."""
    found = separate(images, order="as_fitted", **options)
    inside = nuclei.flatten(1).to(found.H.device)
    auc = nucleus_auc(found.H, inside)
    share = (found.H * inside[:, None]).sum(2) / found.H.sum(2).clamp_min(1e-12)
    columns = {
        "dark_nucleus": second_is_nuclear(snmf_od(images) - found.B, found.H),
        "red": second_is_redder(found.W),
        "share": share[:, 1] > share[:, 0],
        "difference": auc[:, 1] - auc[:, 0],
        "usable": found.codes == SEPARATED,
    }
    table = pd.DataFrame({name: values.cpu().numpy() for name, values in columns.items()})
    return table[table["usable"] & table["difference"].notna()]


def masked_images(source: FileSource, rows: Iterable[int] | None = None) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Groups for :func:`order_accuracy` of Zheng-18, one for each image size: the PNG beside an image is its mask.

    Raises DataMissing where there is none.
    """
    sizes: dict[tuple[int, int], list[tuple[np.ndarray, np.ndarray]]] = {}
    for row in range(len(source.manifest.frame)) if rows is None else rows:
        path = (source.root / source.manifest.frame.iloc[row]["path"]).with_suffix(".png")
        if not path.is_file():
            raise DataMissing(f"{path.name}: no mask beside the image; only Zheng-18 comes with masks")
        image, mask = source.read(row), np.asarray(Image.open(path).convert("L"))
        if mask.shape != image.shape[:2]:
            raise DataMissing(f"{path.name}: the mask has shape {mask.shape}, its image {image.shape[:2]}")
        sizes.setdefault(mask.shape, []).append((image, mask == NUCLEUS))
    return [
        (torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255, torch.from_numpy(np.stack(nuclei)))
        for images, nuclei in (zip(*pairs, strict=True) for pairs in sizes.values())
    ]
