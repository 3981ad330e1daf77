"""The noise score against the reference, and what both noise models do to which pixels."""

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wbcrepro.rescue import noise
from wbcrepro.rescue.noise import (
    CELL_GREY,
    NOISES,
    NOISY,
    fit_threshold,
    grey_levels,
    noise_score,
    noise_score_of_grey,
    noise_scores,
    released_noise,
    salt_and_pepper,
)


def cell_on_white(size: tuple[int, int] = (90, 120), grey: int = 120) -> tuple[np.ndarray, np.ndarray]:
    """A grey disc on white, and its mask."""
    y, x = np.mgrid[: size[0], : size[1]]
    cell = np.hypot(y - size[0] / 2, x - size[1] / 2) < 0.4 * min(size)
    return np.where(cell, grey, 255).astype(np.uint8)[..., None].repeat(3, 2), cell


def test_score_equals_the_released_one(golden):
    data = golden("morphology")
    for kind in ("", "noisy_"):
        scores = [noise_score_of_grey(grey) for grey in data[f"{kind}gray"]]
        np.testing.assert_allclose(scores, data["noisy_score" if kind else "noise_score"], atol=1e-6)
    degenerate = [noise_score(image) for image in data["degenerate_images"]]
    np.testing.assert_allclose(degenerate, data["degenerate_noise"], atol=1e-6)


def test_score_of_colour_images(golden):
    data = golden("morphology")
    for image, grey in zip(data["images"], data["gray"], strict=True):
        assert np.abs(grey_levels(image).astype(int) - grey).max() <= 1
    scores = noise_scores(data["images"].transpose(0, 3, 1, 2))
    np.testing.assert_allclose(scores, data["noise_score_colourfile"], rtol=0.02, atol=0.05)
    # The split of the release: clean images far below 20, those with strong noise above.
    assert scores.max() < 2 and (data["noisy_score"] >= NOISY).sum() == 3


def test_score_by_loops_over_pixels():
    grey = np.random.default_rng(0).integers(100, 256, (9, 7)).astype(np.uint8)
    padded, residuals = np.pad(grey, 1, mode="edge").astype(int), []
    for y, x in zip(*np.nonzero(grey < CELL_GREY), strict=True):
        residuals.append(abs(int(grey[y, x]) - np.median(padded[y : y + 3, x : x + 3])))
    assert noise_score_of_grey(grey) == pytest.approx(np.mean(residuals))
    assert noise_score_of_grey(np.full((5, 5), CELL_GREY, np.uint8)) == 0


@pytest.mark.parametrize("name", NOISES)
@given(height=st.integers(3, 40), width=st.integers(3, 40), seed=st.integers(0, 2**32))
def test_every_model_changes_cell_pixels_only_and_repeats_itself(name, height, width, seed):
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)
    before = image.copy()
    noisy = NOISES[name](image, np.random.default_rng(seed))
    assert noisy.dtype == np.uint8 and noisy.shape == image.shape and np.array_equal(image, before)
    background = grey_levels(image) >= CELL_GREY
    assert np.array_equal(noisy[background], image[background])
    assert np.array_equal(noisy, NOISES[name](image, np.random.default_rng(seed)))
    if (~background).sum() > 100:
        assert not np.array_equal(noisy, NOISES[name](image, np.random.default_rng(seed + 1)))


def test_salt_and_pepper_has_the_amount_and_halves_it():
    image, cell = cell_on_white((400, 400))
    noisy = salt_and_pepper(image, 0.2, np.random.default_rng(1))
    assert set(np.unique(noisy[cell])) == {0, 120, 255} and (noisy == noisy[..., :1]).all()
    assert (noisy[cell, 0] == 0).mean() == pytest.approx(0.1, abs=0.005)
    assert (noisy[cell, 0] == 255).mean() == pytest.approx(0.1, abs=0.005)
    assert np.array_equal(salt_and_pepper(image, 0, np.random.default_rng(1)), image)
    assert set(np.unique(salt_and_pepper(image, 1, np.random.default_rng(1))[cell])) == {0, 255}
    with pytest.raises(ValueError, match=r"in \[0, 1\], got 20"):
        salt_and_pepper(image, 20, np.random.default_rng(1))


def test_a_threshold_belongs_to_a_size_and_a_noise(golden):
    """What the module says: the score of a clean image grows as it shrinks, and 20 misses the noise of data.degrade."""
    images = golden("morphology")["images"]
    scores = [[noise_score(cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA)) for image in images]
              for side in (120, 60, 30)]
    assert np.mean(scores[0]) < 0.8 * np.mean(scores[1]) < 0.64 * np.mean(scores[2])
    noisy = [noise_score(NOISES["gaussian"](image, np.random.default_rng(i))) for i, image in enumerate(images)]
    assert max(noisy) < NOISY and max(scores[0]) < fit_threshold(np.array(scores[0]), np.array(noisy)) < min(noisy)


def test_salt_leaves_the_mask_of_the_score():
    """What the module says: only pepper is counted."""
    image, cell = cell_on_white((400, 400))
    noisy = salt_and_pepper(image, 0.05, np.random.default_rng(1))
    salt = noisy[..., 0] == 255
    without = np.where((cell & salt)[..., None], 120, noisy).astype(np.uint8)
    assert noise_score(noisy) == pytest.approx(noise_score(without), rel=0.05)
    assert noise_score(noisy) == pytest.approx(0.025 * 120, rel=0.1)


@pytest.mark.parametrize("grey", [110, 130])
def test_released_noise_follows_its_formula(grey):
    """Of a flat cell: mean 0.7 x, standard deviation 0.7 * 1.7 * 80 (0.6 + 0.8 g), before clipping, on 95-99 %."""
    image, cell = cell_on_white((600, 600), grey)
    values = released_noise(image, np.random.default_rng(3))[cell].astype(float)
    dark = 0.7 * grey
    untouched = (values == round(dark)).all(1).mean()
    assert 0.01 < untouched < 0.055
    sigma = 0.7 * 1.7 * 80 * (0.6 + 0.8 * grey / 255)
    normal = dark + sigma * np.random.default_rng(0).standard_normal((400_000, 3))
    normal[: int(untouched * len(normal))] = dark
    expected = np.clip(np.rint(normal), 0, 255)
    assert values.mean() == pytest.approx(expected.mean(), rel=0.01)
    assert values.std() == pytest.approx(expected.std(), rel=0.01)
    assert (values == 0).mean() == pytest.approx((expected == 0).mean(), rel=0.03)
    assert abs(np.corrcoef(values.T)[0, 1]) < 0.02  # coloured: the channels are independent


def test_released_noise_grows_with_brightness_and_darkens():
    spreads = []
    for grey in (100, 180):
        image, cell = cell_on_white((300, 300), grey)
        channel = released_noise(image, np.random.default_rng(0))[cell].astype(float)
        inner = channel[(channel > 0) & (channel < 255)]
        spreads.append(np.abs(inner - 0.7 * grey).mean())
        assert np.median(channel) == pytest.approx(0.7 * grey, abs=3)
    assert spreads[1] > spreads[0]


def test_most_images_with_released_noise_are_noisy_and_clean_ones_are_not():
    image, _ = cell_on_white((64, 64))
    assert noise_score(image) < NOISY <= noise_score(released_noise(image, np.random.default_rng(0)))


def test_an_image_without_a_cell_stays_as_it_is():
    white = np.full((20, 30, 3), 255, np.uint8)
    for model in NOISES.values():
        assert np.array_equal(model(white, np.random.default_rng(0)), white)
    assert noise_score(white) == 0


def test_salt_and_pepper_of_the_registry_draws_its_amount():
    image, cell = cell_on_white((200, 200))
    shares = [(NOISES["salt_and_pepper"](image, np.random.default_rng(s))[cell, 0] != 120).mean() for s in range(60)]
    low, high = noise.SALT_AND_PEPPER
    assert low - 0.02 < min(shares) < low + 0.06 and high - 0.06 < max(shares) < high + 0.02


def test_threshold_that_parts_two_sets_best():
    assert fit_threshold(np.array([1.0, 2, 3]), np.array([5.0, 9])) == 4
    assert fit_threshold(np.array([3.0, 1, 6]), np.array([5.0, 9, 7])) == 4  # one clean image is lost, no noisy one
    rng = np.random.default_rng(0)
    clean, noisy = rng.normal(0, 1, 300), rng.normal(3, 1, 40)
    found = fit_threshold(clean, noisy)
    best = max((clean < t).mean() + (noisy >= t).mean() for t in np.linspace(-3, 6, 5000))
    assert (clean < found).mean() + (noisy >= found).mean() >= best - 1e-9 and found == pytest.approx(1.5, abs=0.5)
    with pytest.raises(ValueError, match="got 3 and 0"):
        fit_threshold(np.ones(3), np.zeros(0))


@pytest.mark.parametrize("image", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((3, 4, 4), np.uint8)])
def test_other_arrays_are_refused(image):
    with pytest.raises(ValueError, match=r"expected uint8 \(H, W, 3\)"):
        noise_score(image)
