"""Kinds of cells that look at blood cells one by one, for ``design: rescue``: isolate and measure them.

``cells`` writes ``cells.npz`` - ``ids`` (N), ``status`` (N words), ``cell`` and ``nucleus`` (N x W x W masks in the
window of the isolated cell, packed to bits along the last axis), ``centroid`` (N x 2, in the raw image),
``other_cells`` (N) and ``cut`` (N bool: the window does not hold the whole cell; no status says so, the metrics count
them) - and a pixel cache of the isolated cells on white. An image without a cell is all white there, and its status
says why. ``morphology`` writes ``morphology.npz``: ``ids``, ``features`` (N x F float32, NaN where not measurable),
``columns``, ``status``; ``released_morphology`` writes the same file with the features of the released code, which asks
for no mask. Between isolation and measuring stand the cells of `kinds_restoration`.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from wbcrepro.data.benchmarks import Benchmark
from wbcrepro.data.pixels import PixelCache, Preprocessing, build_pixels
from wbcrepro.errors import UsageError
from wbcrepro.experiments.run import Context, Runner
from wbcrepro.experiments.store import StoredCell
from wbcrepro.rescue.cell_evaluation import iou
from wbcrepro.rescue.cells import Cell, segment
from wbcrepro.rescue.cells_cellpose import load_cellpose
from wbcrepro.rescue.isolate import border_crop, fits, isolate
from wbcrepro.rescue.morphology import collect, morphology, released_morphology

CHUNK = 64
Find = Callable[[np.ndarray], Cell]
"""A segmentation: uint8 (H, W, 3) to its cell."""
RELEASED_SIDE = 224
"""Side of the border-cropped images on which the released code measures spikiness, whatever the networks read."""
TRUTHS = 200
"""Synthetic images per set whose masks are compared with what was drawn: enough for a mean, a second to draw."""


class _Segmentation(Dataset):
    """Chunk i of the raw images, segmented, into a file of its own: a killed run goes on with what it lacks."""

    def __init__(self, images: np.ndarray, window: int, folder: Path, find: Find = segment):
        self.images, self.window, self.folder, self.find = images, window, folder, find

    def __getitem__(self, chunk: int) -> int:
        rows = range(chunk * CHUNK, min((chunk + 1) * CHUNK, len(self.images)))
        found = [_isolated(channels_last(self.images[row]), self.window, self.find) for row in rows]
        part = self.folder / f"part-{chunk:05d}.npz"
        # A name of this process: workers of a killed run may still write the same chunk when the next run begins.
        temporary = part.with_suffix(f".{os.getpid()}.npz")
        np.savez(temporary, **{name: np.stack([one[name] for one in found]) for name in found[0]})
        os.replace(temporary, part)
        return chunk


def _isolated(image: np.ndarray, window: int, find: Find) -> dict[str, np.ndarray]:
    cell = find(image)
    alone = isolate(image, cell, size=window)
    inside = np.zeros((2, window, window), dtype=bool)
    if alone is None:
        alone = np.full((window, window, 3), 255, np.uint8)
    else:  # the masks move with the window: what is black there lay in the mask
        for at, mask in enumerate((cell.cell, cell.nucleus)):
            drawn = np.repeat(np.where(mask, 0, 255).astype(np.uint8)[..., None], 3, axis=2)
            inside[at] = isolate(drawn, cell, size=window)[..., 0] == 0
    return {
        "status": np.array(cell.status, dtype="U16"),
        "cell": np.packbits(inside[0], axis=-1),
        "nucleus": np.packbits(inside[1], axis=-1),
        "centroid": np.array(cell.centroid, dtype=np.float32),
        "other_cells": np.array(cell.other_cells),
        "cut": np.array(bool(cell.cell.any()) and not fits(cell, window)),
        "images": alone.transpose(2, 0, 1),
    }


def run_cells(context: Context) -> dict:
    """Find the cell in every image, and lay it alone on white. Raises ``DataMissing`` where Cellpose is to do it and
    is not there."""
    find, workers = _segmentation(context)
    raw = PixelCache.open(context.parent("pixels").folder / "pixels").images
    window, count = context.cell.config["window"], len(raw)
    chunks = -(-count // CHUNK)
    todo = [chunk for chunk in range(chunks) if not (context.folder / f"part-{chunk:05d}.npz").is_file()]
    work = DataLoader(
        _Segmentation(raw, window, context.folder, find), batch_size=None, sampler=todo,
        num_workers=workers if len(todo) > 1 else 0,
    )  # fmt: skip
    for _ in tqdm(work, total=len(todo), desc="cells", unit="chunk", disable=not context.progress):
        pass
    parts = [np.load(context.folder / f"part-{chunk:05d}.npz") for chunk in range(chunks)]
    found = {name: np.concatenate([part[name] for part in parts]) for name in parts[0].files}
    images = found.pop("images")
    _cache(context.folder / "pixels", images)
    save_arrays(context.folder / "cells.npz", ids=context.benchmark.table["id"].to_numpy(str), **found)
    for part in context.folder.glob("part-*.npz"):
        part.unlink(missing_ok=True)
    report = {"images": count, "window": window, "status": _counts(context.benchmark, found["status"])}
    sets = context.benchmark.table["set"].to_numpy()
    report["cut_by_window"] = {str(name): int(found["cut"][sets == name].sum()) for name in dict.fromkeys(sets)}
    truth = _against_truth(context.benchmark, raw, find)
    return report | ({"truth": truth} if truth else {})


def _segmentation(context: Context) -> tuple[Find, int]:
    """What finds the cells of a ``cells`` cell, and in how many processes beside this one."""
    wanted = context.cell.config["segmentation"]
    if wanted == "default":
        return segment, 2
    if wanted != "cellpose":
        raise UsageError(f"{context.cell.id}: segmentation must be default or cellpose, got {wanted!r}")
    find = load_cellpose(gpu=context.device.type == "cuda")
    context.notes["segmentation"] = f"Cellpose {find.version}"
    return find, 0  # the network takes the cores that it wants, and a graphics card does not survive a fork


def _counts(benchmark: Benchmark, status: np.ndarray) -> dict[str, dict[str, int]]:
    """``{set: {status: images}}``: how many were not isolated, and why."""
    sets = benchmark.table["set"].to_numpy()
    return {str(name): dict(Counter(status[sets == name].tolist())) for name in dict.fromkeys(sets)}


def _against_truth(benchmark: Benchmark, raw: np.ndarray, find: Find) -> dict | None:
    """IoU with what was drawn, for synthetic smears that were not resized; None where no truth is known."""
    source = benchmark.source
    parts = getattr(source, "parts", {})
    if not parts or not all(hasattr(part, "truth") for part in parts.values()):
        return None
    sets, rows = benchmark.table["set"].to_numpy(), benchmark.table["row"].to_numpy()
    report = {}
    for name in dict.fromkeys(sets):
        items = np.flatnonzero(sets == name)
        items = items[np.linspace(0, len(items) - 1, min(TRUTHS, len(items))).astype(int)]
        scores = []
        for item in items:
            part, inner = source.places[rows[item]]
            truth = parts[part].truth(inner)
            if truth.nucleus.shape != raw.shape[2:]:
                return None
            cell = find(channels_last(raw[item]))
            scores.append((iou(cell.cell, truth.nucleus | truth.cytoplasm), iou(cell.nucleus, truth.nucleus)))
        whole, nucleus = np.array(scores).T
        report[str(name)] = {
            "images": len(items),
            "cell_iou_mean": float(whole.mean()),
            "cell_iou_p10": float(np.quantile(whole, 0.1)),
            "nucleus_iou_mean": float(nucleus.mean()),
            "nucleus_iou_p10": float(np.quantile(nucleus, 0.1)),
        }
    return report


def run_morphology(context: Context) -> dict:
    """Spikiness and the features of Algorithm 1 for every isolated cell, after restoration."""
    with np.load(context.parent("cells").folder / "cells.npz") as file:
        size = context.parent("cells").cell["config"]["window"]
        masks = [np.unpackbits(file[name], axis=-1, count=size).astype(bool) for name in ("cell", "nucleus")]
        status, others = file["status"], file["other_cells"]

    def measure(row: int, image: np.ndarray) -> tuple[np.ndarray, str]:
        cell = Cell(str(status[row]), masks[0][row], masks[1][row], (size / 2, size / 2), int(others[row]))
        return morphology(image, cell)

    return _measure(context, measure)


def run_released_morphology(context: Context) -> dict:
    """The same features as the released code measures them, from the restored cell on white alone: the cell is what is
    not white, its nucleus the darker of two groups of grey levels; spikiness after the white border is cropped."""
    return _measure(context, lambda _, image: released_morphology(image, border_crop(image, size=RELEASED_SIDE)))


def _measure(context: Context, measure: Callable[[int, np.ndarray], tuple[np.ndarray, str]]) -> dict:
    """Measure every isolated cell - restored, where it was noisy - by its row and image (H, W, 3), and store it."""
    images, restored = isolated_images(context.parent("cells")), context.parent("restored")
    full = np.load(restored.folder / "full.npy", mmap_mode="r")
    with np.load(restored.folder / "noise.npz") as file:
        position = np.full(len(images), -1)
        position[file["rows"]] = np.arange(len(file["rows"]))
    measured = []
    for row in tqdm(range(len(images)), desc="morphology", unit="cell", disable=not context.progress):
        image = images[row] if position[row] < 0 else full[position[row]]
        measured.append(measure(row, channels_last(image)))
    found = collect(measured)
    save_arrays(
        context.folder / "morphology.npz",
        ids=context.benchmark.table["id"].to_numpy(str),
        features=found.features,
        columns=np.array(found.columns),
        status=found.status,
    )
    return {"images": len(images), "status": _counts(context.benchmark, found.status)}


def isolated_images(isolated: StoredCell) -> np.ndarray:
    """Isolated cells on white, uint8 (N, 3, W, W), of a ``cells`` cell."""
    return PixelCache.open(isolated.folder / "pixels").images


def statuses(isolated: StoredCell) -> np.ndarray:
    """Words of `wbcrepro.rescue.cells` (N,), of a ``cells`` cell."""
    with np.load(isolated.folder / "cells.npz") as file:
        return file["status"]


def channels_last(image: np.ndarray) -> np.ndarray:
    """An image (3, H, W) of a cache as (H, W, 3)."""
    return np.ascontiguousarray(np.asarray(image).transpose(1, 2, 0))


def _cache(folder: Path, images: np.ndarray) -> None:
    side = images.shape[-1]
    build_pixels(
        lambda row: channels_last(images[row]), len(images), Preprocessing("none", side, side), folder,
        progress=False, workers=0,
    )  # fmt: skip


def save_arrays(path: Path, **arrays: np.ndarray) -> None:
    """Write a compressed npz file whole or not at all."""
    temporary = path.with_name(f".{path.name}")
    with temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)
    temporary.replace(path)


RUNNERS: dict[str, Runner] = {
    "cells": run_cells,
    "morphology": run_morphology,
    "released_morphology": run_released_morphology,
}
