"""Kinds of cells that look at blood cells one by one, for ``design: rescue``: isolate, restore and measure them.

``cells`` writes ``cells.npz`` - ``ids`` (N), ``status`` (N words), ``cell`` and ``nucleus`` (N x W x W masks in the
window of the isolated cell, packed to bits along the last axis), ``centroid`` (N x 2, in the raw image) and
``other_cells`` (N) - and a pixel cache of the isolated cells on white. An image without a cell is all white there, and
its status says why. ``restored`` writes ``noise.npz`` - ``score`` (N), ``noisy`` (N bool), ``rows`` (n noisy ones) -,
``full.npy`` (those after restoration, uint8 n x 3 x W x W), and the pixel cache that networks read: the white border
cropped. ``morphology`` writes ``morphology.npz``: ``ids``, ``features`` (N x F float32, NaN where not measurable),
``columns``, ``status``.
"""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from wbcrepro.data.benchmarks import Benchmark
from wbcrepro.data.longtail import hash_order
from wbcrepro.data.pixels import PixelCache, Preprocessing, build_pixels, prepare
from wbcrepro.experiments.run import Context, Runner
from wbcrepro.experiments.store import StoredCell
from wbcrepro.rescue.cell_evaluation import iou
from wbcrepro.rescue.cells import Cell, segment
from wbcrepro.rescue.isolate import border_crop, isolate
from wbcrepro.rescue.morphology import collect, morphology
from wbcrepro.rescue.noise import NOISES, fit_threshold, noise_scores
from wbcrepro.rescue.restoration_baselines import restore_with
from wbcrepro.rescue.restoration_evaluation import evaluate, summary
from wbcrepro.restoration_training import RestorationTraining, fit_pix2pix, restore
from wbcrepro.seeds import derive_seed

CHUNK = 64
MASKED = ("ok", "several_cells", "touches_border")
"""Statuses of `wbcrepro.rescue.cells` whose cell has a mask."""
COPIES = 100
"""Training images of which noisy copies are made, to place the noise filter's threshold."""
TRUTHS = 200
"""Synthetic images per set whose masks are compared with what was drawn: enough for a mean, a second to draw."""


class _Segmentation(Dataset):
    """Chunk i of the raw images, segmented, into a file of its own: a killed run goes on with what it lacks."""

    def __init__(self, images: np.ndarray, window: int, folder: Path):
        self.images, self.window, self.folder = images, window, folder

    def __getitem__(self, chunk: int) -> int:
        rows = range(chunk * CHUNK, min((chunk + 1) * CHUNK, len(self.images)))
        found = [_isolated(_channels_last(self.images[row]), self.window) for row in rows]
        part = self.folder / f"part-{chunk:05d}.npz"
        # A name of this process: workers of a killed run may still write the same chunk when the next run begins.
        temporary = part.with_suffix(f".{os.getpid()}.npz")
        np.savez(temporary, **{name: np.stack([one[name] for one in found]) for name in found[0]})
        os.replace(temporary, part)
        return chunk


def _isolated(image: np.ndarray, window: int) -> dict[str, np.ndarray]:
    cell = segment(image)
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
        "images": alone.transpose(2, 0, 1),
    }


def run_cells(context: Context) -> dict:
    """Find the cell in every image, and lay it alone on white."""
    raw = PixelCache.open(context.parent("pixels").folder / "pixels").images
    window, count = context.cell.config["window"], len(raw)
    chunks = -(-count // CHUNK)
    todo = [chunk for chunk in range(chunks) if not (context.folder / f"part-{chunk:05d}.npz").is_file()]
    work = DataLoader(
        _Segmentation(raw, window, context.folder), batch_size=None, sampler=todo, num_workers=2 if len(todo) > 1 else 0
    )
    for _ in tqdm(work, total=len(todo), desc="cells", unit="chunk", disable=not context.progress):
        pass
    parts = [np.load(context.folder / f"part-{chunk:05d}.npz") for chunk in range(chunks)]
    found = {name: np.concatenate([part[name] for part in parts]) for name in parts[0].files}
    images = found.pop("images")
    _cache(context.folder / "pixels", images)
    _save(context.folder / "cells.npz", ids=context.benchmark.table["id"].to_numpy(str), **found)
    for part in context.folder.glob("part-*.npz"):
        part.unlink(missing_ok=True)
    report = {"images": count, "window": window, "status": _counts(context.benchmark, found["status"])}
    truth = _against_truth(context.benchmark, raw, found)
    return report | ({"truth": truth} if truth else {})


def _counts(benchmark: Benchmark, status: np.ndarray) -> dict[str, dict[str, int]]:
    """``{set: {status: images}}``: how many were not isolated, and why."""
    sets = benchmark.table["set"].to_numpy()
    return {str(name): dict(Counter(status[sets == name].tolist())) for name in dict.fromkeys(sets)}


def _against_truth(benchmark: Benchmark, raw: np.ndarray, found: dict) -> dict | None:
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
            cell = segment(_channels_last(raw[item]))
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


def run_restorer(context: Context) -> dict:
    """Pix2Pix, trained on synthetic pairs made from clean *training* images only."""
    config, benchmark = context.cell.config, context.benchmark
    isolated = context.parent("cells")
    images, status = _images(isolated), _status(isolated)
    train = np.flatnonzero(benchmark.table["set"].to_numpy() == "train")
    train = train[np.isin(status[train], MASKED)]
    score = noise_scores(images[train])
    threshold = _threshold(config, images, train, score)
    clean = train[score < threshold]  # noisy training images have no clean version to learn from
    settings = dict(config["settings"])
    wanted = settings.pop("images")
    if wanted is not None and wanted < len(clean):
        chosen = hash_order(list(benchmark.table["id"].iloc[clean]), "restorer", config["seed"])[:wanted]
        clean = np.sort(clean[chosen])
    degraded = None
    if config["noise"] == ["true_pairs"]:
        clean, images, degraded = _true_pairs(context, images, train)
        cfg = RestorationTraining(seed=config["seed"], **settings)
    else:
        cfg = RestorationTraining(noise=tuple(config["noise"]), seed=config["seed"], **settings)
    result = fit_pix2pix(
        images, clean, cfg, degraded=degraded, folder=context.folder, device=context.device, progress=context.progress
    )
    return {"images": len(clean), "threshold": threshold, "epochs": result.epochs_run, "last": result.history[-1],
            "parameters": result.parameters}  # fmt: skip


def _true_pairs(context: Context, images: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows of pairs, pristine twins and degraded images, the twin seen through the degraded image's window and mask."""
    benchmark, settings = context.benchmark, PixelCache.open(context.parent("pixels").folder / "pixels").preprocessing
    paired = rows[benchmark.twins[rows] >= 0]
    masks, centroids = _masks(context.parent("cells"), paired)
    clean = np.lib.format.open_memmap(
        context.folder / "twins.npy", mode="w+", dtype=np.uint8, shape=(len(paired), *images.shape[1:])
    )
    for at, item in enumerate(paired):
        raw = prepare(benchmark.source.read(int(benchmark.twins[item])), settings.resize, settings.crop)
        clean[at] = _window(_channels_last(raw), centroids[at], masks[at]).transpose(2, 0, 1)
    return np.arange(len(paired)), clean, np.asarray(images[paired])


def _masks(isolated: StoredCell, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Masks bool (n, W, W) of cells in their windows, and centroids (n, 2) in the raw images."""
    with np.load(isolated.folder / "cells.npz") as file:
        window = isolated.cell["config"]["window"]
        return np.unpackbits(file["cell"][rows], axis=-1, count=window).astype(bool), file["centroid"][rows]


def _threshold(config: dict, images: np.ndarray, train: np.ndarray, scores: np.ndarray) -> float:
    """The released code's constant, or "fitted": what parts training images from noisy copies of them best."""
    if config["threshold"] != "fitted":
        return float(config["threshold"])
    rng = np.random.default_rng(derive_seed("noise threshold"))
    some = train[np.linspace(0, len(train) - 1, min(COPIES, len(train))).astype(int)]
    names = [name for name in config["noise"] if name in NOISES] or list(NOISES)
    copies = [NOISES[name](_channels_last(images[row]), rng) for row in some for name in names]
    return fit_threshold(scores, noise_scores(np.stack(copies).transpose(0, 3, 1, 2)))


def run_restored(context: Context) -> dict:
    """Restore what the noise filter calls noisy, crop the white border: the images that every network reads."""
    config, benchmark = context.cell.config, context.benchmark
    isolated = context.parent("cells")
    images, sets = _images(isolated), benchmark.table["set"].to_numpy()
    score, masked = noise_scores(images), np.isin(_status(isolated), MASKED)
    train = np.flatnonzero((sets == "train") & masked)
    threshold = _threshold(config, images, train, score[train])
    noisy = np.flatnonzero((score >= threshold) & masked)
    restored = _restore(context, np.asarray(images[noisy])) if len(noisy) else images[noisy]
    position = np.full(len(images), -1)
    position[noisy] = np.arange(len(noisy))

    def read(row: int) -> np.ndarray:
        image = images[row] if position[row] < 0 else restored[position[row]]
        return border_crop(_channels_last(image), size=config["input"])

    side = config["input"]
    build_pixels(
        read, len(images), Preprocessing("none", side, side), context.folder / "pixels", progress=context.progress
    )
    flags = position >= 0
    np.save(context.folder / "full.npy", restored)
    _save(context.folder / "noise.npz", ids=benchmark.table["id"].to_numpy(str), score=score, noisy=flags, rows=noisy)
    report = {"threshold": threshold, "noisy": {str(s): float(flags[sets == s].mean()) for s in dict.fromkeys(sets)}}
    scores = _quality(context, isolated, images, restored, position)
    return report | ({"restoration": scores} if scores else {})


def _restore(context: Context, images: np.ndarray) -> np.ndarray:
    method = context.cell.config["method"]
    if method == "pix2pix":
        generator = context.parent("restorer").folder / "generator.safetensors"
        return restore(generator, images, device=context.device)
    return restore_with(method, images)


def _quality(
    context: Context, isolated: StoredCell, images: np.ndarray, restored: np.ndarray, position: np.ndarray
) -> dict | None:
    """PSNR and SSIM of degraded test images against their pristine twins, in the same window; None without twins."""
    table = context.benchmark.table
    sets, ids = table["set"].to_numpy(), table["id"].to_numpy()
    pristine = {ids[item]: item for item in np.flatnonzero(sets == "test")}
    degraded = np.flatnonzero((sets == "test_degraded") & np.isin(_status(isolated), MASKED))
    if not len(degraded):
        return None
    raw = PixelCache.open(context.parent("pixels").folder / "pixels").images
    masks, centroids = _masks(isolated, degraded)
    clean = [_window(_channels_last(raw[pristine[ids[item]]]), centroid, mask).transpose(2, 0, 1)
             for item, mask, centroid in zip(degraded, masks, centroids, strict=True)]  # fmt: skip
    before = np.asarray(images[degraded])
    after = np.stack([images[i] if position[i] < 0 else restored[position[i]] for i in degraded])
    unrestored = summary(evaluate(before, np.stack(clean), masks))
    named = {f"{name}_before": value for name, value in unrestored.items() if name != "images"}
    return summary(evaluate(after, np.stack(clean), masks)) | named


def _window(image: np.ndarray, centroid: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """What ``isolate`` would show of another image of the same cell: the same window and mask."""
    size = len(mask)
    left, top = int(centroid[0]) - size // 2, int(centroid[1]) - size // 2
    padded = cv2.copyMakeBorder(image, size, size, size, size, cv2.BORDER_CONSTANT, value=(255, 255, 255))
    cut = padded[top + size : top + 2 * size, left + size : left + 2 * size]
    return np.where(mask[..., None], cut, 255).astype(np.uint8)


def run_morphology(context: Context) -> dict:
    """Spikiness and the features of Algorithm 1 for every isolated cell, after restoration."""
    isolated, restored = context.parent("cells"), context.parent("restored")
    images = _images(isolated)
    with np.load(isolated.folder / "cells.npz") as file:
        size = images.shape[-1]
        masks = [np.unpackbits(file[name], axis=-1, count=size).astype(bool) for name in ("cell", "nucleus")]
        status, others = file["status"], file["other_cells"]
    full = np.load(restored.folder / "full.npy", mmap_mode="r")
    with np.load(restored.folder / "noise.npz") as file:
        position = np.full(len(images), -1)
        position[file["rows"]] = np.arange(len(file["rows"]))
    measured = []
    for row in tqdm(range(len(images)), desc="morphology", unit="cell", disable=not context.progress):
        image = images[row] if position[row] < 0 else full[position[row]]
        cell = Cell(str(status[row]), masks[0][row], masks[1][row], (size / 2, size / 2), int(others[row]))
        measured.append(morphology(_channels_last(image), cell))
    found = collect(measured)
    _save(
        context.folder / "morphology.npz",
        ids=context.benchmark.table["id"].to_numpy(str),
        features=found.features,
        columns=np.array(found.columns),
        status=found.status,
    )
    return {"images": len(images), "status": _counts(context.benchmark, found.status)}


def _images(isolated: StoredCell) -> np.ndarray:
    return PixelCache.open(isolated.folder / "pixels").images


def _status(isolated: StoredCell) -> np.ndarray:
    with np.load(isolated.folder / "cells.npz") as file:
        return file["status"]


def _channels_last(image: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(np.asarray(image).transpose(1, 2, 0))


def _cache(folder: Path, images: np.ndarray) -> None:
    side = images.shape[-1]
    build_pixels(
        lambda row: _channels_last(images[row]), len(images), Preprocessing("none", side, side), folder,
        progress=False, workers=0,
    )  # fmt: skip


def _save(path: Path, **arrays: np.ndarray) -> None:
    temporary = path.with_name(f".{path.name}")
    with temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)
    temporary.replace(path)


RUNNERS: dict[str, Runner] = {
    "cells": run_cells,
    "restorer": run_restorer,
    "restored": run_restored,
    "morphology": run_morphology,
}
