"""Batched augmentation against torchvision's functions, and its independence of batches."""

import functools

import numpy as np
import pytest
import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms.autoaugment import RandAugment, _apply_op

from wbcrepro.augment import (
    BINS,
    MAGNITUDE,
    augment,
    equalize,
    equalize_on_device,
    occurrences,
    operations,
    random_integers,
)
from wbcrepro.inference.tta import DIHEDRAL, view

SIGNED = [(name, k) for name, variants in operations(8, 8).items() for k in range(len(variants))]


@functools.cache
def _images(side: int, count: int = 6) -> torch.Tensor:
    """Noise, smooth, dark, constant and two-valued images."""
    rng = np.random.default_rng(side)
    images = rng.integers(0, 256, (count, 3, side, side), dtype=np.uint8)
    images[1] = np.linspace(20, 200, side).astype(np.uint8)
    images[2] //= 8
    images[3] = 77
    images[4] = np.where(images[4] > 128, 255, 3)
    return torch.from_numpy(images)


def test_there_are_23_operations():
    assert len(SIGNED) == 23


@pytest.mark.parametrize("side", [32, 33, 64])
@pytest.mark.parametrize("name, sign", SIGNED)
def test_each_operation_equals_torchvision(name, sign, side):
    images = _images(side)
    magnitudes, _ = RandAugment()._augmentation_space(BINS, (side, side))[name]
    magnitude = float(magnitudes[MAGNITUDE]) if magnitudes.ndim else 0.0
    magnitude = -magnitude if sign else magnitude
    expected = torch.stack([_apply_op(i, name, magnitude, InterpolationMode.NEAREST, None) for i in images])
    found = operations(side, side)[name][sign](images)
    assert found.dtype == torch.uint8
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_equalize_of_every_short_histogram():
    """Small images of few levels: the step is 0 for some channels and the last level is left out of it."""
    images = torch.from_numpy(np.random.default_rng(5).integers(0, 3, (40, 3, 24, 24), dtype=np.uint8) * 100)
    images[:10, :, :20] = 0
    expected = torch.stack([_apply_op(i, "Equalize", 0.0, InterpolationMode.NEAREST, None) for i in images])
    torch.testing.assert_close(equalize(images), expected, rtol=0, atol=0)


def test_the_forms_for_gpus_give_the_same():
    """Bytes are looked up by numpy on a CPU and by torch elsewhere; the latter is run here on a CPU."""
    images = torch.cat([_images(32), _images(32)[:, :, :8].repeat(1, 1, 4, 1) // 100])
    torch.testing.assert_close(equalize_on_device(images), equalize(images), rtol=0, atol=0)
    for gather in operations(32, 32)["Rotate"] + operations(32, 32)["ShearY"]:
        torch.testing.assert_close(gather.on_device(images), gather(images), rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["randaugment", "dihedral"])
def test_independent_of_batches_and_order(kind):
    images, index = _images(32, 60), np.arange(1000, 1060)
    whole = augment(images, kind, seed=3, epoch=2, index=index)
    order = np.random.default_rng(0).permutation(60)
    pieces = [augment(images[part], kind, seed=3, epoch=2, index=index[part]) for part in np.array_split(order, 7)]
    torch.testing.assert_close(torch.cat(pieces), whole[order], rtol=0, atol=0)
    assert not torch.equal(whole, augment(images, kind, seed=3, epoch=3, index=index))
    assert not torch.equal(whole, augment(images, kind, seed=4, epoch=2, index=index))


def test_repeats_of_one_image_differ():
    images = _images(32, 6)[:1].repeat(200, 1, 1, 1)
    index = np.zeros(200, dtype=int)
    same = augment(images, "randaugment", seed=0, epoch=0, index=index)
    assert len({i.numpy().tobytes() for i in same}) == 1
    different = augment(images, "randaugment", seed=0, epoch=0, index=index, repeat=occurrences(index))
    assert len({i.numpy().tobytes() for i in different}) > 50


def test_two_operations_in_sequence_with_torchvision():
    """The whole transform, replayed image by image with the drawn operations."""
    images, index, side = _images(48, 64), np.arange(64), 48
    names = list(operations(side, side))
    draws = random_integers((len(names), 2, len(names), 2), seed=9, epoch=1, index=index)
    space, expected = RandAugment()._augmentation_space(BINS, (side, side)), []
    for image, (first, sign1, second, sign2) in zip(images, draws.T, strict=True):
        for number, sign in ((first, sign1), (second, sign2)):
            magnitudes, signed = space[names[number]]
            magnitude = float(magnitudes[MAGNITUDE]) if magnitudes.ndim else 0.0
            magnitude *= -1 if signed and sign else 1
            image = _apply_op(image, names[number], magnitude, InterpolationMode.NEAREST, None)
        expected.append(image)
    found = augment(images, "randaugment", seed=9, epoch=1, index=index)
    torch.testing.assert_close(found, torch.stack(expected), rtol=0, atol=0)


def test_draws_are_uniform_and_uncorrelated():
    n = 140_000
    draws = random_integers((14, 2, 14, 2), seed=1, epoch=0, index=np.arange(n))
    for row, size in zip(draws, (14, 2, 14, 2), strict=True):
        counts = np.bincount(row, minlength=size)
        assert len(counts) == size
        chi2 = ((counts - n / size) ** 2 / (n / size)).sum()
        assert chi2 < size - 1 + 5 * np.sqrt(2 * size)
    joint = np.bincount(draws[0] * 14 + draws[2], minlength=196)
    assert ((joint - n / 196) ** 2 / (n / 196)).sum() < 195 + 5 * np.sqrt(2 * 195)
    assert abs(np.corrcoef(draws[0][:-1], draws[0][1:])[0, 1]) < 0.015


def test_dihedral_draws_all_eight_views():
    image = _images(32)[:1]
    found = augment(image.repeat(200, 1, 1, 1), "dihedral", seed=0, epoch=0, index=np.arange(200))
    assert {i.numpy().tobytes() for i in found} == {view(image[0], name).numpy().tobytes() for name in DIHEDRAL}


def test_none_and_unknown():
    images = _images(32)
    assert augment(images, "none", seed=0, epoch=0, index=np.arange(6)) is images
    with pytest.raises(ValueError, match="unknown augmentation 'cutmix'"):
        augment(images, "cutmix", seed=0, epoch=0, index=np.arange(6))


def test_occurrences():
    assert occurrences(np.array([7, 3, 7, 7, 3, 1])).tolist() == [0, 0, 1, 2, 1, 0]
    assert occurrences(np.array([], dtype=int)).tolist() == []


@pytest.mark.parametrize("device", ["cpu", *(["cuda"] if torch.cuda.is_available() else [])])
def test_leaves_its_input_alone_and_agrees_between_devices(device):
    images, index = _images(64, 60), np.arange(60)
    before = images.clone()
    here = augment(images, "randaugment", seed=3, epoch=2, index=index)
    there = augment(images.to(device), "randaugment", seed=3, epoch=2, index=index).cpu()
    assert torch.equal(images, before)
    difference = (here.int() - there.int()).abs()  # float rounding before the cast to uint8 may differ by one level
    assert difference.max() <= 1 and (difference > 0).float().mean() < 0.01


def test_flips_and_rotations_of_the_rescue_paper_are_exact_at_quarter_turns_and_mirrors():
    from wbcrepro.augment_rescue import flips_rotation_jitter

    image = torch.randint(0, 256, (1, 3, 12, 12), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    keep = [0.9, 0.9, 0.9, 0.5, 0.9, 0.5, 0.5]

    def changed(**at):
        uniform = np.array(keep)[:, None].copy()
        for position, value in at.items():
            uniform[int(position[1:]), 0] = value
        return flips_rotation_jitter(image, uniform)

    assert torch.equal(changed(), image)
    assert torch.equal(changed(u0=0.1), image.flip(-1))
    assert torch.equal(changed(u1=0.1), image.flip(-2))
    turned = changed(u2=0.1, u3=0.0)
    assert torch.equal(turned, image.rot90(1, (-2, -1))) or torch.equal(turned, image.rot90(-1, (-2, -1)))
    brighter = changed(u4=0.1, u6=0.999)
    assert (brighter.int() - image.int()).min() >= 0 and brighter.float().mean() > image.float().mean() + 10
    flat = changed(u4=0.1, u5=0.0)
    assert flat.float().std() < image.float().std()


def test_corners_that_a_rotation_uncovers_are_white():
    from wbcrepro.augment_rescue import flips_rotation_jitter

    black = torch.zeros((1, 3, 32, 32), dtype=torch.uint8)
    turned = flips_rotation_jitter(black, np.array([0.9, 0.9, 0.1, 0.75, 0.9, 0.5, 0.5])[:, None])  # 45 degrees
    assert turned[0, :, 0, 0].tolist() == [255, 255, 255] and turned[0, :, 16, 16].tolist() == [0, 0, 0]
