"""Macenko normalisation per core at the paper's 368 px, against torchstain's two backends in one process.

Peers take turns image by image, so that a busy or throttled machine slows all of them; values are medians. ``ratio``
rows are the median over the rounds of torchstain's time over ours. torchstain returns no separate stain images here.
"""

import platform
import time
from collections.abc import Callable

import numpy as np
import torch

from wbcrepro.data.smears import SmearSource, SmearSpec
from wbcrepro.stain.macenko import macenko_codes
from wbcrepro.stain.reference import default_reference

SIZE, IMAGES, SUBSAMPLE = 368, 8, 4


def _peers(images: torch.Tensor) -> dict[str, Callable[[], object]]:
    """Functions that normalise all ``images``, by name; those with "torchstain" in it are the peers."""
    import torchstain

    reference = default_reference("macenko")
    stain_torch, stain_numpy = (torchstain.normalizers.MacenkoNormalizer(backend=b) for b in ("torch", "numpy"))
    stain_torch.HERef, stain_torch.maxCRef = torch.tensor(reference.matrix), torch.tensor(reference.maxima)
    stain_numpy.HERef, stain_numpy.maxCRef = np.array(reference.matrix), np.array(reference.maxima)
    arrays = [image.permute(1, 2, 0).numpy().copy() for image in images]
    found = {
        "torchstain torch": lambda: [stain_torch.normalize(image, stains=False) for image in images],
        "torchstain numpy": lambda: [stain_numpy.normalize(array, stains=False) for array in arrays],
        "batched, nearest": lambda: macenko_codes(images, reference),
        "batched, linear": lambda: macenko_codes(images, reference, percentile="linear"),
        f"batched, subsample {SUBSAMPLE}": lambda: macenko_codes(images, reference, subsample=SUBSAMPLE),
    }
    try:
        from wbcrepro.stain.macenko_fast import macenko_fast_codes
    except Exception as error:  # the extra is optional: say why its rows are missing
        print(f"without the compiled rows: {error}")
    else:
        found["fast, nearest"] = lambda: macenko_fast_codes(images, reference)
        found["fast, linear"] = lambda: macenko_fast_codes(images, reference, percentile="linear")
        found[f"fast, subsample {SUBSAMPLE}"] = lambda: macenko_fast_codes(images, reference, subsample=SUBSAMPLE)
    return found


def run(repeats: int = 15) -> list[dict]:
    """Rows for bench.json: milliseconds an image, and speed-ups over both backends of torchstain."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        source = SmearSource(SmearSpec.balanced(1, size=SIZE, domains=4))
        drawn = np.stack([source.read(row) for row in range(IMAGES)])
        images = torch.from_numpy(drawn).permute(0, 3, 1, 2).contiguous()
        peers = _peers(images)
        for function in peers.values():
            function()  # compile, warm caches
        times = {name: [] for name in peers}
        for _ in range(repeats):
            for name, function in peers.items():
                start = time.perf_counter()
                function()
                times[name].append((time.perf_counter() - start) / IMAGES)
    finally:
        torch.set_num_threads(threads)
    return _rows({name: np.array(values) for name, values in times.items()}, repeats)


def _rows(times: dict[str, np.ndarray], repeats: int) -> list[dict]:
    common = {"repeats": repeats, "machine": f"{platform.machine()}, 1 thread"}
    label = f"Macenko {SIZE} px, {{}}"
    rows = [
        {"name": label.format(name), "value": round(float(np.median(t)) * 1e3, 3), "unit": "ms", "peer": None, **common}
        for name, t in times.items()
    ]
    ours = {name: t for name, t in times.items() if not name.startswith("torchstain")}
    for name, t in ours.items():
        for peer in ("torchstain torch", "torchstain numpy"):
            speedup = {"value": round(float(np.median(times[peer] / t)), 1), "unit": "x", "peer": peer}
            rows.append({"name": label.format(name) + ", speed-up", **speedup, **common})
    return rows


if __name__ == "__main__":
    for row in run():
        print(f"{row['name']:52s} {row['value']:8} {row['unit']:3s} {row['peer'] or ''}")
