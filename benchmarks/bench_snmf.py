"""SADA's stain augmentation per core at 224 px: ours against a plain per-image form of the released algorithm.

The plain form (ours, below; a test holds it to the golden file) does what the released code does, an image at a time:
ten multiplicative iterations on all pixels, quantiles, two views, torchvision's ColorJitter. Nothing in it is tuned; it
stores no raw view, which all of ours copy. Peers take turns on the same batch in one thread, so that a busy machine
slows all of them; values are medians, ``speed-up`` rows medians of ratios per round. ``value`` counts processor time,
which waiting for a core does not enter, and ``wall`` is the same from the clock on the wall. Against staintools
(SPAMS): the time to the stain matrix, ours at an objective no higher than theirs on their pixels.
"""

import platform
import time
from functools import partial

import numpy as np
import torch
from torchvision.transforms import ColorJitter

from wbcrepro.data.smears import SmearSource, SmearSpec
from wbcrepro.errors import UsageError
from wbcrepro.memory import keep_freed_memory
from wbcrepro.stain.augmentation import RELEASED, StainAugmentation, stain_views
from wbcrepro.stain.clusters import kmeans_labels
from wbcrepro.stain.colour_jitter import random_colour_jitter
from wbcrepro.stain.snmf import best_densities, separate

try:
    from wbcrepro.stain.colour_jitter_fast import random_colour_jitter_compiled
except UsageError as error:  # the extra is optional: say why its rows are missing
    COMPILED = False
    print(f"without the compiled rows: {error}")
else:
    COMPILED = True

SIZE, IMAGES, K = 224, 48, 3
STAINTOOLS_IMAGES = 6  # it takes a second each
JITTER = (0.2, 0.25, 0.25, 0.15)
SPARSITY = 0.1  # staintools' regulariser


def plain_separate(image: torch.Tensor, iterations: int = 10) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """W (3,2), H (2,P) and B (3,1) of one image (3,H,W) in [0,1], as the released code finds them."""
    light = image.clone()
    light[:, (light < 0.05).all(0)] = 1
    od = (-light.clamp_min(1e-6).flatten(1).log()).clamp_min(1e-6)
    background = torch.quantile(od, 0.01, dim=1, keepdim=True)
    v = od - background
    w = torch.quantile(od, torch.tensor([0.5, 1.0]), dim=1).T
    w = w / w.norm(dim=0)
    h = torch.ones(2, v.shape[1])
    for _ in range(iterations):
        w = w * (v @ h.T) / (w @ h @ h.T + 1e-6)
        w = w / w.norm(dim=0).clamp_min(1e-12)
        below = w.T @ w @ h + 1e-6
        step = h / below
        h = (h * (w.T @ v) / below - 1e-4 * step).clamp_min(0)
    return w, h, background


def plain_views(images: torch.Tensor, generator: torch.Generator, jitter: bool) -> list[list[torch.Tensor]]:
    """K views of each image, one at a time: the raw one, then one with a donor from each other cluster."""
    parts = [plain_separate(image) for image in images]
    vectors = torch.stack([torch.cat([w.flatten(), b.flatten()]) for w, _, b in parts])
    labels = kmeans_labels(vectors, K, generator=generator)
    change = ColorJitter(*JITTER)
    views = []
    for image, (_, h, _), own in zip(images, parts, labels.tolist(), strict=True):
        views.append([image])
        for cluster in range(K):
            members = torch.nonzero(labels == cluster)[:, 0]
            if cluster == own or not len(members):
                continue
            w, donor, b = parts[int(members[torch.randint(len(members), (), generator=generator)])]
            ratio = (torch.quantile(donor, 0.99, dim=1) + 1e-6) / (torch.quantile(h, 0.99, dim=1) + 1e-6)
            view = torch.exp(-(w @ (h * ratio[:, None]) + b)).reshape(image.shape)
            views[-1].append(change(view) if jitter else view)
    return views


def _batch() -> torch.Tensor:
    source = SmearSource(SmearSpec.balanced(IMAGES // 12, size=SIZE, domains=4))
    drawn = np.stack([source.read(row) for row in range(IMAGES)])
    return torch.from_numpy(drawn).permute(0, 3, 1, 2).float().contiguous() / 255


def _interleaved(peers: dict, repeats: int) -> dict[str, np.ndarray]:
    """Seconds (2, repeats) of each call, of the processor and on the wall; the peers take turns, after a warm-up."""
    for function in peers.values():
        function()
    times = {name: [] for name in peers}
    for _ in range(repeats):
        for name, function in peers.items():
            processor, wall = time.process_time(), time.perf_counter()
            function()
            times[name].append((time.process_time() - processor, time.perf_counter() - wall))
    return {name: np.array(values).T for name, values in times.items()}


def _jitter(function, views: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return function(views, JITTER, generator)


def _augmentation(images: torch.Tensor, repeats: int) -> list[dict]:
    draw = lambda: torch.Generator().manual_seed(0)  # noqa: E731
    ours = {
        "fast": (StainAugmentation(), random_colour_jitter),
        "released algorithm, batched": (RELEASED, random_colour_jitter),
    }
    if COMPILED:
        ours["compiled"] = (StainAugmentation(method="compiled"), random_colour_jitter_compiled)
    rows = []
    for words, jittered in (("without jitter", False), ("with jitter", True)):
        peers = {"plain": lambda jittered=jittered: plain_views(images, draw(), jittered)}
        for name, (settings, function) in ours.items():
            jitter = partial(_jitter, function) if jittered else None
            peers[name] = lambda settings=settings, jitter=jitter: stain_views(
                images, k=K, generator=draw(), settings=settings, jitter=jitter
            )
        times = _interleaved(peers, repeats)
        label = f"stain views {SIZE} px {words}"
        for name, seconds in times.items():
            rows.append({"name": f"{label}, {name}", "unit": "images/s"} | _medians(IMAGES / seconds))
        for name in ours:
            ratios = _medians(times["plain"] / times[name])
            rows.append(
                {"name": f"{label}, {name}, speed-up", "unit": "x", "peer": "plain released algorithm"} | ratios
            )
    return rows


def _medians(values: np.ndarray) -> dict[str, float]:
    value, wall = np.median(values, 1).round(2).tolist()
    return {"value": value, "wall": wall}


def _errors(images: torch.Tensor) -> list[dict]:
    fast, ten = separate(images).relative_error, separate(images, method="released").relative_error
    worst = {"name": "SNMF error, fast over 10 released iterations, worst image", "value": float((fast / ten).max())}
    return [
        {"name": "SNMF relative error, fast", "value": float(fast.mean()), "unit": "fraction"},
        {"name": "SNMF relative error, 10 released iterations", "value": float(ten.mean()), "unit": "fraction"},
        {**worst, "unit": "ratio", "peer": "10 released iterations"},
    ]


def _staintools(images: torch.Tensor, repeats: int, method: str) -> list[dict]:
    name = f"SNMF stain matrix {SIZE} px, speed-up at equal objective"
    try:
        import staintools
        from staintools.miscellaneous.optical_density_conversion import convert_RGB_to_OD
        from staintools.tissue_masks.luminosity_threshold_tissue_locator import LuminosityThresholdTissueLocator
    except ImportError as error:
        message = f"not measured: {error}; install the extra `bench`"
        return [{"name": name, "value": None, "unit": "x", "peer": "staintools", "message": message}]
    extractor = staintools.stain_extraction.vahadane_stain_extractor.VahadaneStainExtractor
    tissue_of = LuminosityThresholdTissueLocator.get_tissue_mask
    images = images[:STAINTOOLS_IMAGES]
    arrays = [(image.permute(1, 2, 0) * 255).round().byte().numpy().copy() for image in images]

    def ours():  # on their pixels and their OD: no tissue is white and has none, and a zero counts as one grey level
        tissue = torch.from_numpy(np.stack([tissue_of(array) for array in arrays]))
        white = torch.where(tissue[:, None], images, 1).clamp_min_(1 / 255)
        return separate(white, method=method, sparsity=SPARSITY, background=False).W

    peers = {"staintools": lambda: [extractor.get_stain_matrix(array) for array in arrays], "ours": ours}
    worst = 0.0
    for array, rows, w in zip(arrays, peers["staintools"](), ours(), strict=True):
        v = torch.from_numpy(convert_RGB_to_OD(array).reshape(-1, 3)[tissue_of(array).reshape(-1)].T).float()[None]
        values = [_objective(v, matrix) for matrix in (w[None], torch.from_numpy(rows.T).float()[None])]
        worst = max(worst, values[0] / values[1])
    times = _interleaved(peers, repeats)
    speedup = round(_medians(times["staintools"] / times["ours"])["wall"], 1)  # SPAMS may use further threads
    return [
        {"name": name, "value": speedup, "unit": "x", "peer": "staintools"},
        {"name": "SNMF objective over that of staintools, worst image", "value": worst, "unit": "ratio"},
    ]


def _objective(v: torch.Tensor, w: torch.Tensor) -> float:
    h = best_densities(v, w, SPARSITY)
    return float((0.5 * (v - w @ h).square().sum() + SPARSITY * h.sum()) / v.shape[2])


def run(repeats: int = 3) -> list[dict]:
    """Rows for bench.json: source images per second and core, speed-ups, and the errors they are had at."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    keep_freed_memory()  # as the command line does; it helps both sides
    try:
        images = _batch()
        rows = (
            _augmentation(images, repeats)
            + _errors(images)
            + _staintools(images, repeats, "compiled" if COMPILED else "fast")
        )
    finally:
        torch.set_num_threads(threads)
    common = {"peer": None, "repeats": repeats, "machine": f"{platform.machine()}, 1 thread"}
    return [common | row for row in rows]


if __name__ == "__main__":
    for row in run():
        print(
            f"{row['name']:72s} {row['value']} {row['unit']} {row['peer'] or ''} {row.get('message', '')}"
            + (f" (wall: {row['wall']})" if "wall" in row else "")
        )
