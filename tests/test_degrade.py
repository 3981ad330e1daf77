"""Degradations: identity at severity 0, growing damage, determinism, and refusals."""

import numpy as np
import pytest

from wbcrepro.data.degrade import KINDS, degrade
from wbcrepro.errors import UsageError


@pytest.fixture(scope="module")
def image():
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:72, :64]
    disc = ((y - 36) ** 2 + (x - 32) ** 2 < 400)[..., None]
    return np.where(disc, (90, 50, 130), (225, 200, 205)).astype(np.uint8) + rng.integers(0, 6, (72, 64, 3), np.uint8)


def distance(a, b):
    return np.abs(a.astype(float) - b).mean()


@pytest.mark.parametrize("kind", [*KINDS, "mixed"])
def test_severity_zero_is_an_exact_copy_and_inputs_stay(image, kind):
    before = image.copy()
    result = degrade(image, kind=kind, severity=0, seed=1)
    assert np.array_equal(result, image) and result is not image
    degrade(image, kind=kind, severity=3, seed=1)
    assert np.array_equal(image, before)


@pytest.mark.parametrize("kind", KINDS)
def test_damage_grows_with_severity(image, kind):
    def damage_at(severity):
        return np.mean([distance(image, degrade(image, kind=kind, severity=severity, seed=i)) for i in range(20)])

    damage = [damage_at(severity) for severity in range(4)]
    assert damage[0] == 0 and all(low * 1.3 < high for low, high in zip(damage[1:], damage[2:], strict=False))


def test_the_seed_decides_and_nothing_else(image):
    a = degrade(image, kind="mixed", severity=2, seed=5)
    assert np.array_equal(a, degrade(image, kind="mixed", severity=2, seed=5))
    assert any(not np.array_equal(a, degrade(image, kind="mixed", severity=2, seed=s)) for s in (6, 7))


def test_mixed_uses_all_three_kinds(image):
    seen = set()
    for seed in range(40):
        mixed = degrade(image, kind="mixed", severity=2, seed=seed)
        seen |= {k for k in KINDS if np.array_equal(mixed, degrade(image, kind=k, severity=2, seed=seed))}
    assert seen == set(KINDS)


def test_noise_has_the_stated_size_and_blur_keeps_the_mean():
    grey = np.full((96, 96, 3), 128, np.uint8)
    noisy = degrade(grey, kind="noise", severity=2, seed=0).astype(float)
    assert abs(noisy.std() - 18) < 0.7 and abs(noisy.mean() - 128) < 0.5
    rng = np.random.default_rng(0)
    texture = rng.integers(60, 200, (96, 96, 3), np.uint8)
    blurred = degrade(texture, kind="blur", severity=3, seed=0)
    assert abs(blurred.mean() - texture.mean()) < 1.5 and blurred.std() < texture.std() / 2


def test_refusals(image):
    for bad in ({"kind": "rain", "severity": 1}, {"kind": "noise", "severity": 4}, {"kind": "noise", "severity": -1}):
        with pytest.raises(UsageError, match="expected one of"):
            degrade(image, seed=0, **bad)
    with pytest.raises(ValueError, match="uint8"):
        degrade(image.astype(float), kind="noise", severity=1, seed=0)
