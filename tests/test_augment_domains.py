"""Each operation against torchvision's on single images, and the draws against torchvision's distributions."""

import numpy as np
import pytest
import torch
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms import functional as tvf

from wbcrepro.augment_domains import KINDS, ORDERS, augment_domains, crop, crop_boxes, draw
from wbcrepro.stain.colour_jitter import (
    BRIGHTNESS,
    CONTRAST,
    HUE,
    SATURATION,
    blend,
    colour_jitter,
    greyscale,
    shift_hue,
)

SIZE = 32
ADJUST = {
    BRIGHTNESS: tvf.adjust_brightness,
    CONTRAST: tvf.adjust_contrast,
    SATURATION: tvf.adjust_saturation,
    HUE: tvf.adjust_hue,
}


def pictures(count: int = 24, size: int = SIZE) -> torch.Tensor:
    """uint8 noise; the first three grey, black and white, the fourth of two colours only (ties between channels)."""
    generator = torch.Generator().manual_seed(3)
    images = torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator)
    images[0] = images[0, :1]
    images[1], images[2] = 0, 255
    images[3] = torch.where(images[3, :1] > 127, torch.tensor([200, 200, 30])[:, None, None], 17)
    return images


def column(values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32).view(-1, 1, 1, 1)


def by_torchvision(image: torch.Tensor, drawn, number: int, jitter: bool) -> torch.Tensor:
    """One uint8 image through torchvision's functions with the parameters that were drawn for it."""
    image = tvf.resized_crop(image / 255, *drawn.boxes[number].tolist(), [SIZE, SIZE], antialias=False)
    image = tvf.hflip(image) if drawn.flip[number] else image
    if jitter:
        for operation in drawn.orders[number]:
            image = ADJUST[operation](image, float(drawn.factors[number, operation]))
        image = tvf.rgb_to_grayscale(image, 3) if drawn.grey[number] else image
    return image


@pytest.mark.parametrize("kind", ["domainbed", "geometric"])
def test_equals_torchvision_image_by_image(kind):
    images, index = pictures(64), np.arange(64)
    got = augment_domains(images, kind, seed=5, step=3, index=index)
    drawn = draw(64, SIZE, seed=5, step=3, index=index)
    assert drawn.grey.any() and drawn.flip.any() and not drawn.flip.all()
    expected = torch.stack([by_torchvision(images[i], drawn, i, kind == "domainbed") for i in range(64)])
    assert got.dtype == torch.float32 and got.shape == images.shape
    torch.testing.assert_close(got, expected, rtol=0, atol=5e-5)
    assert (got - images / 255).abs().mean() > 0.05


@pytest.mark.parametrize("operation", [BRIGHTNESS, CONTRAST, SATURATION])
@pytest.mark.parametrize("factor", [0.7, 1.0, 1.3, 2.5])
def test_blends(operation, factor):
    x = pictures() / 255
    expected = torch.stack([ADJUST[operation](image, factor) for image in x])
    got = blend(x, column([factor] * len(x)), np.full(len(x), operation))
    torch.testing.assert_close(got, expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("shift", [-0.5, -0.3, -0.01, 0.0, 1 / 3, 0.5])
def test_hue(shift):
    x = pictures() / 255
    expected = torch.stack([tvf.adjust_hue(image, shift) for image in x])
    torch.testing.assert_close(shift_hue(x, column([shift] * len(x))), expected, rtol=0, atol=5e-6)
    there_and_back = shift_hue(shift_hue(x, column([shift] * len(x))), column([-shift] * len(x)))
    torch.testing.assert_close(there_and_back, x, rtol=0, atol=1e-5)


def test_greyscale():
    x = pictures() / 255
    torch.testing.assert_close(greyscale(x), tvf.rgb_to_grayscale(x), rtol=0, atol=1e-6)


@pytest.mark.parametrize("box", [(0, 0, SIZE, SIZE), (3, 5, 20, 27), (12, 0, 20, 32), (31, 31, 1, 1)])
@pytest.mark.parametrize("flip", [False, True])
def test_crop(box, flip):
    images = pictures()
    expected = tvf.resized_crop(images / 255, *box, [SIZE, SIZE], antialias=False)
    expected = tvf.hflip(expected) if flip else expected
    got = crop(images, np.array([box] * len(images)), np.full(len(images), flip))
    torch.testing.assert_close(got, expected, rtol=0, atol=2e-5)


def test_nothing_outside_the_box_is_seen():
    images = torch.full((1, 3, SIZE, SIZE), 255, dtype=torch.uint8)
    images[:, :, 8:24, 8:24] = 0
    assert crop(images, np.array([[8, 8, 16, 16]]), np.array([False])).max() < 1e-4


def test_each_image_has_its_own_order():
    x = pictures(9)[8:].expand(24, -1, -1, -1) / 255 * 0.9
    x = x * torch.tensor([1.0, 0.6, 0.4]).view(3, 1, 1)  # coloured, so that every order matters
    factors = np.tile(np.float32([1.3, 1.3, 0.7, 0.3]), (24, 1))
    got = colour_jitter(x, factors, ORDERS)
    for i, order in enumerate(ORDERS):
        expected = x[i]
        for operation in order:
            expected = ADJUST[operation](expected, float(factors[i, operation]))
        torch.testing.assert_close(got[i], expected, rtol=0, atol=1e-5)
    assert len({image.numpy().round(3).tobytes() for image in got}) > 12


def test_draws_are_distributed_as_torchvision_draws_them():
    count = 40_000
    drawn = draw(count, 96, seed=0, step=0, index=np.arange(count))
    top, left, height, width = drawn.boxes.T
    assert min(top.min(), left.min()) >= 0 and (top + height).max() <= 96 and (left + width).max() <= 96
    torch.manual_seed(0)
    image = torch.zeros(1, 96, 96)
    reference = np.array([RandomResizedCrop.get_params(image, (0.7, 1), (3 / 4, 4 / 3)) for _ in range(4000)])
    for mine, theirs in zip(drawn.boxes.T, reference.T, strict=True):
        assert mine.mean() == pytest.approx(theirs.mean(), abs=4 * theirs.std() / 4000**0.5)
        np.testing.assert_allclose(np.quantile(mine, [0.1, 0.5, 0.9]), np.quantile(theirs, [0.1, 0.5, 0.9]), atol=2)
    assert drawn.flip.mean() == pytest.approx(0.5, abs=0.01)
    assert drawn.grey.mean() == pytest.approx(0.1, abs=0.01)
    low, high = drawn.factors.min(0), drawn.factors.max(0)
    np.testing.assert_allclose(low, [0.7, 0.7, 0.7, -0.3], atol=1e-3)
    np.testing.assert_allclose(high, [1.3, 1.3, 1.3, 0.3], atol=1e-3)
    assert np.abs(np.corrcoef(drawn.factors.T) - np.eye(4)).max() < 0.02
    orders, seen = np.unique(drawn.orders, axis=0, return_counts=True)
    assert len(orders) == 24 and seen.min() > 0.9 * count / 24


def test_a_box_that_never_fits_is_the_whole_image():
    never = np.full((10, 1), 0.999)  # nearly the whole area at the most oblong ratio
    np.testing.assert_array_equal(crop_boxes(never, never, never[0], never[0], 96), [[0, 0, 96, 96]])


def test_reproducible_whatever_the_batch():
    images, index = pictures(40), np.arange(100, 140)
    whole = augment_domains(images, "domainbed", seed=1, step=2, index=index)
    assert torch.equal(whole, augment_domains(images, "domainbed", seed=1, step=2, index=index))
    picked = np.array([30, 2, 17])
    part = augment_domains(images[picked], "domainbed", seed=1, step=2, index=index[picked])
    torch.testing.assert_close(part, whole[picked], rtol=0, atol=1e-6)
    for other in ({"seed": 2, "step": 2}, {"seed": 1, "step": 3}):
        assert (augment_domains(images, "domainbed", index=index, **other) - whole).abs().mean() > 0.05


def test_copies_of_an_image_within_a_step_differ():
    images = pictures()[[9, 9, 9]]
    keys = {"seed": 1, "step": 2, "index": np.array([9, 9, 9])}
    same = augment_domains(images, "domainbed", **keys)
    assert torch.equal(same[0], same[1])
    differ = augment_domains(images, "domainbed", **keys, repeat=np.arange(3))
    torch.testing.assert_close(differ[0], same[0], rtol=0, atol=1e-6)
    assert (differ[0] - differ[1]).abs().mean() > 0.01 < (differ[1] - differ[2]).abs().mean()


@pytest.mark.parametrize("kind", KINDS)
def test_range_and_the_input_stays(kind):
    images = pictures()
    before = images.clone()
    got = augment_domains(images, kind, seed=0, step=0, index=np.arange(len(images)))
    assert got.min() >= 0 and got.max() <= 1 + 1e-6 and torch.equal(images, before)
    assert augment_domains(images[:0], kind, seed=0, step=0, index=np.arange(0)).shape == (0, 3, SIZE, SIZE)


def test_none_only_rescales_and_other_kinds_are_refused():
    images = pictures()
    assert torch.equal(augment_domains(images, "none", seed=0, step=0, index=np.arange(24)), images.float() / 255)
    with pytest.raises(ValueError, match="unknown augmentation 'jitter'; expected one of none, domainbed, geometric"):
        augment_domains(images, "jitter", seed=0, step=0, index=np.arange(24))


if torch.cuda.is_available():  # not a skip: machines without a GPU have nothing to test here

    @pytest.mark.parametrize("kind", ["domainbed", "geometric"])
    def test_on_a_gpu(kind):
        images, index = pictures(64), np.arange(64)
        there = augment_domains(images.cuda(), kind, seed=1, step=2, index=index)
        assert there.is_cuda
        here = augment_domains(images, kind, seed=1, step=2, index=index)
        torch.testing.assert_close(there.cpu(), here, rtol=0, atol=1e-4)
