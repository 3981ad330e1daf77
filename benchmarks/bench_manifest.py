"""How long the manifest of a dataset as large as Acevedo-20 takes: 17,092 JPEGs of 360 x 363 pixels.

The files are synthetic (noise over a smooth field, about the size of the real ones) and are made in a temporary folder.
Each is read, hashed, fully decoded. The peer is the plain way: one process, hash and decode after one another.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import os
import platform
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from wbcrepro.data.sources import open_dataset

FILES = 17_092
_DRAWN = 16


def make_files(root: Path, files: int) -> None:
    """``files`` different JPEGs below ``root/<class>``: a few drawn images, each copy with its own comment."""
    generator = np.random.default_rng(0)
    y, x = np.mgrid[0:363, 0:360]
    smooth = 200 - 0.002 * ((x - 180) ** 2 + (y - 180) ** 2)
    drawn = [
        Image.fromarray((smooth[..., None] + generator.normal(0, 6, (363, 360, 3))).clip(0, 255).astype(np.uint8))
        for _ in range(_DRAWN)
    ]
    encoded = []
    for image in drawn:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=85)
        encoded.append(file.getvalue())
    for number in range(8):
        (root / f"class{number}").mkdir(parents=True)
    for number in range(files):
        data = encoded[number % _DRAWN]
        comment = b"\xff\xfe" + (2 + 8).to_bytes(2, "big") + f"{number:08d}".encode()
        (root / f"class{number % 8}" / f"{number}.jpg").write_bytes(data[:2] + comment + data[2:])


def run(repeats: int = 1, files: int = FILES) -> list[dict]:
    """Rows {name, value, unit, peer, repeats, machine}; the best of ``repeats``."""
    workers = os.cpu_count() or 1
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "images"
        make_files(root, files)
        fresh, again, plain = [], [], []
        for repeat in range(repeats):
            cache = Path(folder) / f"cache{repeat}"
            for times in (fresh, again):
                start = time.perf_counter()
                manifest = open_dataset(f"folder:{root}", None, cache, workers=workers, progress=False).manifest
                times.append(time.perf_counter() - start)
            assert len(manifest) == files and not len(manifest.quarantined())
            start = time.perf_counter()
            for path in sorted(root.rglob("*.jpg"))[: files // 10]:
                hashlib.sha256(path.read_bytes()).hexdigest()
                np.asarray(Image.open(path).convert("RGB"))
            plain.append((time.perf_counter() - start) * files / (files // 10))
    machine = f"{platform.machine()}, {workers} cores"
    common = {"unit": "s", "repeats": repeats, "machine": machine}
    peer = f"one by one: {min(plain):.1f} s"
    return [
        {"name": f"manifest of {files} JPEGs, first time", "value": min(fresh), "peer": peer} | common,
        {"name": f"manifest of {files} JPEGs, nothing changed", "value": min(again), "peer": None} | common,
    ]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--files", type=int, default=FILES)
    for row in run(**vars(parser.parse_args())):
        print(f"{row['name']}: {row['value']:.1f} {row['unit']} (peer: {row['peer']}; {row['machine']})")
