"""Kinds of cells that restore images, for ``design: rescue``.

``restorer`` trains Pix2Pix and writes ``generator.safetensors``. ``restored`` writes ``noise.npz`` - ``score`` (N),
``noisy`` (N bool), ``rows`` (n noisy ones) -, ``full.npy`` (those after restoration, uint8 n x 3 x W x W), and the
pixel cache that networks read: the white border cropped.
"""

from __future__ import annotations

import cv2
import numpy as np

from wbcrepro.data.benchmarks import Benchmark
from wbcrepro.data.longtail import hash_order
from wbcrepro.data.pixels import PixelCache, Preprocessing, build_pixels, prepare
from wbcrepro.experiments.kinds_cells import channels_last, isolated_images, save_arrays, statuses
from wbcrepro.experiments.run import Context, Runner
from wbcrepro.experiments.store import StoredCell
from wbcrepro.rescue.isolate import border_crop
from wbcrepro.rescue.noise import NOISES, fit_threshold, noise_scores
from wbcrepro.rescue.restoration_baselines import restore_with
from wbcrepro.rescue.restoration_evaluation import evaluate, intervals, summary
from wbcrepro.restoration_training import RestorationTraining, fit_pix2pix, restore
from wbcrepro.seeds import derive_seed

MASKED = ("ok", "several_cells", "touches_border")
"""Statuses of `wbcrepro.rescue.cells` whose cell has a mask."""
COPIES = 100
"""Training images of which noisy copies are made, to place the noise filter's threshold."""


def run_restorer(context: Context) -> dict:
    """Pix2Pix, trained on synthetic pairs made from clean *training* images only."""
    config, benchmark = context.cell.config, context.benchmark
    isolated = context.parent("cells")
    images, status = isolated_images(isolated), statuses(isolated)
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
    paired = rows[context.benchmark.twins[rows] >= 0]
    masks, centroids = _masks(context.parent("cells"), paired)
    settings = PixelCache.open(context.parent("pixels").folder / "pixels").preprocessing
    clean = np.lib.format.open_memmap(
        context.folder / "twins.npy", mode="w+", dtype=np.uint8, shape=(len(paired), *images.shape[1:])
    )
    for at, item in enumerate(paired):
        clean[at] = _window(_twin(context.benchmark, item, settings), centroids[at], masks[at]).transpose(2, 0, 1)
    return np.arange(len(paired)), clean, np.asarray(images[paired])


def _twin(benchmark: Benchmark, item: int, settings: Preprocessing) -> np.ndarray:
    """The published pristine twin of a degraded image, uint8 (H, W, 3), prepared like the pixels at hand."""
    return channels_last(prepare(benchmark.source.read(int(benchmark.twins[item])), settings.resize, settings.crop))


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
    copies = [NOISES[name](channels_last(images[row]), rng) for row in some for name in names]
    return fit_threshold(scores, noise_scores(np.stack(copies).transpose(0, 3, 1, 2)))


def run_restored(context: Context) -> dict:
    """Restore what the noise filter calls noisy, crop the white border: the images that every network reads."""
    config, benchmark = context.cell.config, context.benchmark
    isolated = context.parent("cells")
    images, sets = isolated_images(isolated), benchmark.table["set"].to_numpy()
    score, masked = noise_scores(images), np.isin(statuses(isolated), MASKED)
    train = np.flatnonzero((sets == "train") & masked)
    threshold = _threshold(config, images, train, score[train])
    noisy = np.flatnonzero((score >= threshold) & masked)
    restored = _restore(context, np.asarray(images[noisy])) if len(noisy) else images[noisy]
    position = np.full(len(images), -1)
    position[noisy] = np.arange(len(noisy))

    def read(row: int) -> np.ndarray:
        image = images[row] if position[row] < 0 else restored[position[row]]
        return border_crop(channels_last(image), size=config["input"])

    side = config["input"]
    build_pixels(
        read, len(images), Preprocessing("none", side, side), context.folder / "pixels", progress=context.progress
    )
    flags = position >= 0
    np.save(context.folder / "full.npy", restored)
    save_arrays(
        context.folder / "noise.npz", ids=benchmark.table["id"].to_numpy(str), score=score, noisy=flags, rows=noisy
    )
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
    """PSNR and SSIM of degraded test images against their pristine twins, in the same window; None without twins.

    The twins are the published ones where the release has them, else the images that our copies were made of.
    """
    table = context.benchmark.table
    sets, ids = table["set"].to_numpy(), table["id"].to_numpy()
    pristine = {ids[item]: item for item in np.flatnonzero(sets == "test")}
    published = context.benchmark.twins >= 0
    paired = published if published.any() else (sets == "test_degraded") & table["id"].isin(list(pristine)).to_numpy()
    degraded = np.flatnonzero(paired & (sets != "train") & np.isin(statuses(isolated), MASKED))
    if not len(degraded):
        return None
    raw = PixelCache.open(context.parent("pixels").folder / "pixels")
    masks, centroids = _masks(isolated, degraded)
    twins = (_twin(context.benchmark, item, raw.preprocessing) if published[item]
             else channels_last(raw.images[pristine[ids[item]]]) for item in degraded)  # fmt: skip
    clean = [_window(twin, centroid, mask).transpose(2, 0, 1)
             for twin, mask, centroid in zip(twins, masks, centroids, strict=True)]  # fmt: skip
    after = np.stack([images[i] if position[i] < 0 else restored[position[i]] for i in degraded])
    scores = evaluate(after, np.stack(clean), masks)
    unrestored = evaluate(np.asarray(images[degraded]), np.stack(clean), masks)
    named = {f"{name}_before": value for name, value in summary(unrestored).items() if name != "images"}
    groups = table["group"].to_numpy(str)[degraded]
    return summary(scores) | named | {"intervals": intervals(scores, unrestored, groups)}


def _window(image: np.ndarray, centroid: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """What ``isolate`` would show of another image of the same cell: the same window and mask."""
    size = len(mask)
    left, top = int(centroid[0]) - size // 2, int(centroid[1]) - size // 2
    padded = cv2.copyMakeBorder(image, size, size, size, size, cv2.BORDER_CONSTANT, value=(255, 255, 255))
    cut = padded[top + size : top + 2 * size, left + size : left + 2 * size]
    return np.where(mask[..., None], cut, 255).astype(np.uint8)


RUNNERS: dict[str, Runner] = {
    "restorer": run_restorer,
    "restored": run_restored,
}
