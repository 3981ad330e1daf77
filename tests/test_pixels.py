"""The pixel cache: right pixels, written once, whole or not at all."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from wbcrepro.data import pixels
from wbcrepro.data.pixels import CHUNK, PixelCache, Preprocessing, build_pixels
from wbcrepro.errors import DataMissing, UsageError

PLAIN = Preprocessing("none", 40, 32)
COUNT = 3 * CHUNK + 5


def read(row: int) -> np.ndarray:
    """A small image of its own; three sizes, not all square."""
    height, width = [(40, 40), (50, 44), (33, 61)][row // 3 % 3]
    return np.random.default_rng(row).integers(0, 256, (height, width, 3), dtype=np.uint8)


def invert(images: torch.Tensor) -> tuple[torch.Tensor, list[str]]:
    """Stands for a stain normaliser; calls an image whose first value is even too poor in stain."""
    poor = images[:, 0, 0, 0] % 2 == 0
    out = torch.where(poor[:, None, None, None], images, 255 - images)
    return out, ["too_few_pixels" if p else "normalised" for p in poor.tolist()]


def expected(row: int, side: int = 40, crop: int = 32) -> np.ndarray:
    transform = v2.Compose([v2.Resize((side, side)), v2.CenterCrop(crop)])
    return np.asarray(transform(Image.fromarray(read(row)))).transpose(2, 0, 1)


@pytest.mark.parametrize("workers", [0, 2])
def test_pixels_equal_the_papers_transform(tmp_path, workers):
    cache = build_pixels(read, COUNT, PLAIN, tmp_path, progress=False, workers=workers)
    assert cache.images.shape == (COUNT, 3, 32, 32) and cache.images.dtype == np.uint8
    assert isinstance(cache.images, np.memmap) and not cache.images.flags.writeable
    for row in (0, 3, 6, COUNT - 1):
        np.testing.assert_array_equal(cache.images[row], expected(row))
    assert cache.status == ["none"] * COUNT and cache.preprocessing == PLAIN
    assert sorted(os.listdir(tmp_path)) == ["images.npy", "pixels.json"]


@pytest.mark.parametrize("side, crop", [(37, 32), (40, 33), (368, 224)])
def test_odd_margins_crop_as_torchvision(side, crop):
    np.testing.assert_array_equal(pixels.prepare(read(4), side, crop), expected(4, side, crop))


def test_an_image_of_the_right_size_is_not_resampled():
    np.testing.assert_array_equal(pixels.prepare(read(0), 40, 40), read(0).transpose(2, 0, 1))


def test_normalises_before_resizing_and_keeps_every_status(tmp_path):
    settings = Preprocessing("macenko", 40, 32)
    cache = build_pixels(read, COUNT, settings, tmp_path, normalise=invert, progress=False, workers=2)
    for row in range(COUNT):
        image = read(row)
        poor = image[0, 0, 0] % 2 == 0
        assert cache.status[row] == ("too_few_pixels" if poor else "normalised")
        np.testing.assert_array_equal(cache.images[row], pixels.prepare(image if poor else 255 - image, 40, 32))


def test_built_once(tmp_path):
    build_pixels(read, 10, PLAIN, tmp_path, progress=False)

    def forbidden(row):
        raise AssertionError("read again")

    again = build_pixels(forbidden, 10, PLAIN, tmp_path, progress=False)
    np.testing.assert_array_equal(again.images[9], expected(9))


def test_another_preprocessing_in_the_same_folder_is_refused(tmp_path):
    build_pixels(read, 10, PLAIN, tmp_path, progress=False)
    with pytest.raises(UsageError, match="holds a pixel cache of"):
        build_pixels(read, 10, Preprocessing("none", 40, 24), tmp_path, progress=False)
    with pytest.raises(UsageError, match="holds a pixel cache of"):
        build_pixels(read, 11, PLAIN, tmp_path, progress=False)


def test_an_error_in_reading_stops_and_the_next_call_goes_on(tmp_path):
    calls = []

    def broken(row):
        calls.append(row)
        if row == 2 * CHUNK:
            raise OSError("damaged")
        return read(row)

    with pytest.raises(OSError, match="damaged"):
        build_pixels(broken, COUNT, PLAIN, tmp_path, progress=False, workers=0)
    with pytest.raises(DataMissing, match="No pixel cache"):
        PixelCache.open(tmp_path)
    calls.clear()
    cache = build_pixels(lambda row: calls.append(row) or read(row), COUNT, PLAIN, tmp_path, progress=False, workers=0)
    assert calls == list(range(2 * CHUNK, COUNT))
    np.testing.assert_array_equal(cache.images[5], expected(5))


def test_half_a_progress_line_and_foreign_progress(tmp_path):
    with pytest.raises(ZeroDivisionError):
        build_pixels(lambda row: read(row) if row < 2 * CHUNK else 1 / 0, COUNT, PLAIN, tmp_path, progress=False,
                     workers=0)
    progress = tmp_path / "progress.jsonl"
    progress.write_text(progress.read_text()[:-3])  # the last finished chunk is no longer said to be finished
    calls = []
    build_pixels(lambda row: calls.append(row) or read(row), COUNT, PLAIN, tmp_path, progress=False, workers=0)
    assert calls[0] == CHUNK

    with pytest.raises(ZeroDivisionError):
        build_pixels(lambda row: read(row) if row < CHUNK else 1 / 0, COUNT, PLAIN, tmp_path / "b", progress=False,
                     workers=0)
    calls.clear()
    other = Preprocessing("none", 40, 24)
    build_pixels(lambda row: calls.append(row) or read(row), COUNT, other, tmp_path / "b", progress=False, workers=0)
    assert calls == list(range(COUNT))


def test_killed_between_the_two_last_renames(tmp_path, monkeypatch):
    def killed_at_the_second(source, target, real=os.replace):
        if target.name == "pixels.json":
            raise KeyboardInterrupt
        real(source, target)

    monkeypatch.setattr(pixels.os, "replace", killed_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        build_pixels(read, COUNT, PLAIN, tmp_path, progress=False, workers=0)
    assert (tmp_path / "images.npy").is_file()
    monkeypatch.undo()
    cache = build_pixels(lambda row: 1 / 0, COUNT, PLAIN, tmp_path, progress=False, workers=0)
    np.testing.assert_array_equal(cache.images[COUNT - 1], expected(COUNT - 1))


SCRIPT = """
import sys, time
sys.path.insert(0, sys.argv[2])
import test_pixels as t
def slow(row):
    time.sleep(0.004)
    return t.read(row)
t.build_pixels(slow, t.COUNT, t.Preprocessing("macenko", 40, 32), sys.argv[1], normalise=t.invert, progress=False)
"""


def test_sigkill_then_resume_gives_the_same_bytes(tmp_path):
    settings = Preprocessing("macenko", 40, 32)
    build_pixels(read, COUNT, settings, tmp_path / "whole", normalise=invert, progress=False)
    here, kills = os.path.dirname(os.path.abspath(__file__)), 0
    for chunks in (1, 2):
        process = subprocess.Popen([sys.executable, "-c", SCRIPT, str(tmp_path / "cut"), here], start_new_session=True)
        progress, deadline = tmp_path / "cut" / "progress.jsonl", time.time() + 120
        while time.time() < deadline and process.poll() is None:
            if progress.is_file() and progress.read_text().count("\n") > chunks:
                os.killpg(process.pid, signal.SIGKILL)
                kills += process.wait() == -signal.SIGKILL
                break
            time.sleep(0.002)
    assert kills >= 1 and not (tmp_path / "cut" / "pixels.json").exists()
    build_pixels(read, COUNT, settings, tmp_path / "cut", normalise=invert, progress=False)
    for name in ("images.npy", "pixels.json"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_disk_too_small(tmp_path, monkeypatch):
    with pytest.raises(UsageError, match=r"needs .* GiB in .*, where only 0.00 GiB are free"):
        build_pixels(read, COUNT, PLAIN, tmp_path, progress=False, free_space=lambda folder: 1000)
    assert not (tmp_path / "images.npy.part").exists()

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(UsageError, match="Next step: free space"):
        build_pixels(read, COUNT, PLAIN, tmp_path, progress=False)
    assert not (tmp_path / "images.npy.part").exists()


def test_a_truncated_array_is_noticed(tmp_path):
    build_pixels(read, COUNT, PLAIN, tmp_path, progress=False)
    with open(tmp_path / "images.npy", "r+b") as file:
        file.truncate(5000)
    with pytest.raises(DataMissing, match="Next step"):
        PixelCache.open(tmp_path)


def test_an_error_for_the_user_comes_out_of_a_worker_as_it_is(tmp_path):
    def damaged(row):
        if row == CHUNK:
            raise DataMissing("image 7.jpg: expected a JPEG, got a text file")
        return read(row)

    with pytest.raises(DataMissing) as caught:
        build_pixels(damaged, COUNT, PLAIN, tmp_path, progress=False, workers=2)
    assert str(caught.value) == "image 7.jpg: expected a JPEG, got a text file"


def test_wrong_requests(tmp_path):
    with pytest.raises(UsageError, match="Cannot crop 50 px"):
        Preprocessing("none", 40, 50)
    with pytest.raises(UsageError, match="Unknown stain"):
        Preprocessing("reinhard", 40, 40)
    with pytest.raises(UsageError, match="do not agree"):
        build_pixels(read, 3, Preprocessing("macenko", 40, 32), tmp_path, progress=False)
    with pytest.raises(UsageError, match=r"image 0: expected uint8 \(H, W, 3\), got uint8 \(40, 40\)"):
        build_pixels(lambda row: read(row)[..., 0], 3, PLAIN, tmp_path, progress=False, workers=0)
