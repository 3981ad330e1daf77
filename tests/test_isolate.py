"""Isolation: window, white background, symmetric border crop; shapes and dtypes that are refused."""

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wbcrepro.rescue.cells import Cell
from wbcrepro.rescue.isolate import border_crop, fits, isolate


def cell_at(shape, rows, columns):
    mask = np.zeros(shape, bool)
    mask[rows, columns] = True
    y, x = np.nonzero(mask)
    return Cell("ok", mask, mask, (float(x.mean()), float(y.mean())))


def noise(shape, seed=0):
    return np.random.default_rng(seed).integers(0, 200, (*shape, 3)).astype(np.uint8)


def test_only_the_cell_is_left_and_its_centroid_is_in_the_middle():
    image, cell = noise((60, 80)), cell_at((60, 80), slice(10, 31), slice(40, 61))
    out = isolate(image, cell, size=32)
    assert out.shape == (32, 32, 3) and out.dtype == np.uint8
    inside = (out < 255).any(axis=2)
    assert inside.sum() == cell.cell.sum()
    y, x = np.nonzero(inside)
    assert abs(y.mean() - 16) < 1 and abs(x.mean() - 16) < 1
    assert np.array_equal(out[inside], image[cell.cell])


@given(st.integers(1, 90), st.integers(0, 39), st.integers(0, 49), st.integers(1, 12))
def test_any_window_anywhere_is_white_around_pixels_of_the_cell(size, row, column, side):
    image, cell = noise((40, 50)), cell_at((40, 50), slice(row, row + side), slice(column, column + side))
    out = isolate(image, cell, size=size)
    assert out.shape == (size, size, 3)
    shown = int((out < 255).any(axis=2).sum())
    assert shown <= cell.cell.sum() and (shown == cell.cell.sum()) == fits(cell, size)


def test_a_window_larger_than_the_image_is_padded_with_white():
    image, cell = noise((20, 20)), cell_at((20, 20), slice(0, 20), slice(0, 20))
    out = isolate(image, cell, size=64)
    assert (out < 255).any(axis=2).sum() == 400 and (out[:20] == 255).all() and (out[:, :20] == 255).all()


def test_no_cell_gives_no_picture():
    assert isolate(noise((20, 20)), Cell.empty("no_cell", (20, 20)), size=16) is None
    assert not fits(Cell.empty("blank", (20, 20)), 16)


def test_isolate_refuses_what_does_not_belong_together():
    cell = cell_at((20, 20), slice(5, 9), slice(5, 9))
    with pytest.raises(ValueError, match="same height"):
        isolate(noise((20, 21)), cell, size=8)
    with pytest.raises(ValueError, match="at least 1"):
        isolate(noise((20, 20)), cell, size=0)
    with pytest.raises(ValueError, match="uint8"):
        isolate(noise((20, 20)).astype(float), cell, size=8)


def test_border_crop_removes_the_same_from_all_sides_and_nothing_dark():
    image = np.full((40, 60, 3), 255, np.uint8)
    image[12:20, 9:50] = 100  # 12 above, 20 below, 9 left, 10 right
    expected = cv2.resize(image[9:31, 9:51], (24, 24), interpolation=cv2.INTER_LANCZOS4)
    assert np.array_equal(border_crop(image, size=24), expected)


@given(st.integers(1, 255), st.integers(0, 19), st.integers(0, 29))
def test_border_crop_keeps_the_outermost_pixel_darker_than_white(level, row, column):
    image = np.full((20, 30, 3), 255, np.uint8)
    image[row, column] = level
    margin = min(row, column, 19 - row, 29 - column) if level < 250 else 0
    cropped = image[margin : 20 - margin, margin : 30 - margin]
    assert np.array_equal(
        border_crop(image, size=16), cv2.resize(cropped, (16, 16), interpolation=cv2.INTER_LANCZOS4)
    )


def test_border_crop_of_nothing_and_of_wrong_input():
    assert (border_crop(np.full((9, 9, 3), 255, np.uint8), size=4) == 255).all()
    with pytest.raises(ValueError, match="at least 1"):
        border_crop(noise((9, 9)), size=0)
    with pytest.raises(ValueError, match="channels stand last"):
        border_crop(np.zeros((3, 9, 9), np.uint8), size=4)
