"""The pixel cache: decode, normalise the stain, resize and crop once; train from one memory-mapped uint8 array.

Order, as in `decoupled` 2.1: read, stain-normalise at full size, resize to ``resize`` x ``resize`` (bilinear with
antialiasing as in Pillow; the aspect ratio of a non-square image is not kept, as with ``Resize((r, r))`` of
torchvision), centre crop. A resize to the size that an image already has does nothing. What is cached is what
training reads: the 224 px crop of WBCBench's 55,012 images is 7.7 GiB, the full 368 px would be 20.8.
"""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from wbcrepro.errors import DataMissing, UsageError, WbcreproError

CHUNK = 32
STAINS = ("none", "macenko", "romanowsky")
Normalise = Callable[[torch.Tensor], tuple[torch.Tensor, list[str]]]


@dataclass(frozen=True)
class Preprocessing:
    """Stain normalisation by name, then the side to resize to, then the side of the centre crop, in pixels."""

    stain: str
    resize: int
    crop: int

    def __post_init__(self):
        if self.stain not in STAINS:
            raise UsageError(f"Unknown stain normalisation {self.stain!r}; expected one of {', '.join(STAINS)}.")
        if not 0 < self.crop <= self.resize:
            raise UsageError(f"Cannot crop {self.crop} px from an image resized to {self.resize} px.")


@dataclass(frozen=True)
class PixelCache:
    """``images``: read-only memory map uint8 (N,3,S,S); ``status``: what the stain normaliser said of each image."""

    images: np.memmap
    status: list[str]
    preprocessing: Preprocessing

    @classmethod
    def open(cls, folder: Path) -> "PixelCache":
        """Open a finished cache; DataMissing where there is none or its array is not what its description says."""
        folder = Path(folder)
        try:
            facts = json.loads((folder / "pixels.json").read_text())
            images = np.load(folder / "images.npy", mmap_mode="r")
        except (OSError, ValueError) as error:
            raise DataMissing(f"No pixel cache in {folder}: {error}. Next step: run its cell again.") from error
        side = facts["preprocessing"]["crop"]
        expected = (len(facts["status"]), 3, side, side)
        if images.shape != expected or images.dtype != np.uint8:
            raise DataMissing(f"{folder / 'images.npy'}: expected uint8 {expected}, got {images.dtype} {images.shape}. "
                              "Next step: delete the folder and run its cell again.")
        return cls(images, facts["status"], Preprocessing(**facts["preprocessing"]))


def prepare(image: np.ndarray, resize: int, crop: int) -> np.ndarray:
    """Resize and centre-crop one image: uint8 (H,W,3) to uint8 (3,crop,crop)."""
    if image.shape[:2] != (resize, resize):
        image = np.asarray(Image.fromarray(image).resize((resize, resize), Image.Resampling.BILINEAR))
    start = round((resize - crop) / 2)  # torchvision's rounding of an odd margin
    return image[start : start + crop, start : start + crop].transpose(2, 0, 1)


class _Chunks(Dataset):
    """Chunk i: images [i * CHUNK, ...) are read, normalised and written in place; what comes back is their statuses.

    Workers write into the shared file themselves, so no image travels between processes and /dev/shm may be small.
    """

    def __init__(self, read, count: int, preprocessing: Preprocessing, normalise: Normalise | None, path: Path):
        self.read, self.count, self.preprocessing = read, count, preprocessing
        self.normalise, self.path = normalise, path

    def __getitem__(self, chunk: int) -> tuple[int, list[str] | WbcreproError]:
        try:
            return chunk, self._write(chunk)
        except WbcreproError as error:  # as a value: raised in a worker it would arrive wrapped in a traceback
            return chunk, error

    def _write(self, chunk: int) -> list[str]:
        rows = range(chunk * CHUNK, min((chunk + 1) * CHUNK, self.count))
        images, status = self._normalised([_checked(self.read(row), row) for row in rows])
        target = np.load(self.path, mmap_mode="r+")
        for row, image in zip(rows, images, strict=True):
            target[row] = prepare(image, self.preprocessing.resize, self.preprocessing.crop)
        target.flush()
        return status

    def _normalised(self, images: list[np.ndarray]) -> tuple[list[np.ndarray], list[str]]:
        """Stain-normalise runs of equal size together."""
        if self.normalise is None:
            return images, ["none"] * len(images)
        out, status, start = [], [], 0
        for stop in range(1, len(images) + 1):
            if stop < len(images) and images[stop].shape == images[start].shape:
                continue
            batch = torch.from_numpy(np.stack(images[start:stop]).transpose(0, 3, 1, 2).copy())
            normalised, words = self.normalise(batch)
            out += list(normalised.permute(0, 2, 3, 1).cpu().numpy())
            status += words
            start = stop
        return out, status


def _checked(image: np.ndarray, row: int) -> np.ndarray:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise UsageError(f"image {row}: expected uint8 (H, W, 3), got {image.dtype} {image.shape}")
    return image


def build_pixels(read: Callable[[int], np.ndarray], count: int, preprocessing: Preprocessing, folder: Path, *,
                 normalise: Normalise | None = None, progress: bool = True, workers: int = 2,
                 free_space: Callable[[Path], int] = lambda folder: shutil.disk_usage(folder).free) -> PixelCache:
    """Build the cache in ``folder``, or open it where it is complete, or go on where a killed process stopped.

    ``read(row)`` gives uint8 (H,W,3); ``normalise`` maps uint8 (n,3,H,W) of one size to the same and n statuses. Both
    run in ``workers`` forked processes (0: in this one, which a normaliser on CUDA needs). Chunks are fixed, so a
    resumed build is bit-identical to an uninterrupted one. Raises UsageError where the disk is too small.
    """
    folder = Path(folder)
    if (folder / "pixels.json").is_file():
        cache = PixelCache.open(folder)
        if (cache.preprocessing, len(cache.status)) != (preprocessing, count):
            raise UsageError(f"{folder} holds a pixel cache of {len(cache.status)} images with {cache.preprocessing}; "
                             f"asked for {count} with {preprocessing}. Next step: use another folder.")
        return cache
    if (normalise is None) != (preprocessing.stain == "none"):
        raise UsageError(f"stain {preprocessing.stain!r} and the normaliser that was passed do not agree")
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / "images.npy.part"
    if (folder / "images.npy").is_file():  # killed between the two renames at the end
        os.replace(folder / "images.npy", part)
    done = _finished(folder, count, preprocessing)
    if not done:
        _allocate(part, count, preprocessing.crop, free_space)
    todo = [chunk for chunk in range(-(-count // CHUNK)) if chunk not in done]
    chunks = _Chunks(read, count, preprocessing, normalise, part)
    loader = DataLoader(chunks, batch_size=None, sampler=todo, num_workers=workers if len(todo) > 1 else 0)
    bar = tqdm(total=count, initial=count - _images(todo, count), desc="pixels", unit="image", disable=not progress)
    with bar, open(folder / "progress.jsonl", "a") as log:
        for chunk, status in loader:
            if isinstance(status, WbcreproError):
                raise status
            log.write(json.dumps({"chunk": chunk, "status": status}) + "\n")
            log.flush()
            done[chunk] = status
            bar.update(len(status))
    return _finish(folder, part, [word for chunk in sorted(done) for word in done[chunk]], preprocessing)


def _images(chunks: list[int], count: int) -> int:
    return sum(min((chunk + 1) * CHUNK, count) - chunk * CHUNK for chunk in chunks)


def _finished(folder: Path, count: int, preprocessing: Preprocessing) -> dict[int, list[str]]:
    """Chunks that an earlier process finished; none unless its first line says that it made the same thing."""
    header = json.dumps({"count": count, "chunk": CHUNK, "preprocessing": asdict(preprocessing)})
    path = folder / "progress.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.is_file() else []
    if not lines or lines[0].strip() != header or not (folder / "images.npy.part").is_file():
        path.write_text(header + "\n")
        return {}
    lines = [line for line in lines if line.endswith("\n")]  # a kill can leave half a last line
    path.write_text("".join(lines))
    entries = [json.loads(line) for line in lines[1:]]
    return {entry["chunk"]: entry["status"] for entry in entries}


def _allocate(part: Path, count: int, side: int, free_space: Callable[[Path], int]) -> None:
    """Create the array file with its blocks reserved: a disk that fills up later would kill the process by SIGBUS."""
    part.unlink(missing_ok=True)
    needed, free = count * 3 * side * side, free_space(part.parent)
    too_small = UsageError(f"The pixel cache needs {needed / 2**30:.2f} GiB in {part.parent}, where only "
                           f"{free / 2**30:.2f} GiB are free. Next step: free space there, or choose another STORE.")
    if needed > free:
        raise too_small
    with open(part, "wb") as file:
        header = {"descr": "|u1", "fortran_order": False, "shape": (count, 3, side, side)}
        np.lib.format.write_array_header_1_0(file, header)
        file.flush()
        try:
            os.posix_fallocate(file.fileno(), file.tell(), max(needed, 1))
        except OSError as error:  # a quota, or another process that took the space meanwhile
            part.unlink()
            raise too_small from error


def _finish(folder: Path, part: Path, status: list[str], preprocessing: Preprocessing) -> PixelCache:
    """Rename the array into place, then write the description last, by rename: its presence means complete."""
    os.replace(part, folder / "images.npy")
    temporary = folder / "pixels.json.part"
    temporary.write_text(json.dumps({"preprocessing": asdict(preprocessing), "status": status}))
    os.replace(temporary, folder / "pixels.json")
    (folder / "progress.jsonl").unlink()
    return PixelCache.open(folder)
