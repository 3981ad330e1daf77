"""Samplers: the released code's weights, the expected shares, exactness beyond 2^24, and determinism."""

import numpy as np
import pytest
import torch
from scipy import stats

from wbcrepro.errors import UsageError
from wbcrepro.longtail import samplers
from wbcrepro.longtail.samplers import ClassSampler, class_shares, epoch_indices, sample_weights

KINDS = ("class_balanced", "square_root", "log1p")


def test_golden_weights_and_shares(golden):
    file = golden("samplers")
    for split in range(len(file["count_names"])):
        labels = file[f"set{split}_labels"]
        for kind in KINDS:
            np.testing.assert_allclose(sample_weights(labels, kind), file[f"set{split}_{kind}"], rtol=1e-12)
            np.testing.assert_allclose(class_shares(file[f"set{split}_counts"], kind),
                                       file[f"set{split}_{kind}_share"], rtol=1e-12)


def test_golden_class_aware_sampler_has_our_statistics(golden):
    """The reference deals classes in rounds; its class counts are exactly uniform, ours uniform in expectation."""
    file = golden("classifier_balancing")
    num = int(file["sampler1_len"])
    expected = file["sampler1_class_draws"] / num
    drawn = samplers.class_balanced(file["train_labels"], 200_000, np.random.default_rng(0))
    got = np.bincount(file["train_labels"][drawn], minlength=len(expected)) / 200_000
    np.testing.assert_allclose(got, expected, atol=0.005)


@pytest.mark.parametrize("kind", [*KINDS, "progressive"])
@pytest.mark.parametrize("generator", ["numpy", "torch"])
def test_draws_follow_the_shares_and_are_uniform_within_a_class(kind, generator):
    labels = np.random.default_rng(0).permutation(np.repeat([0, 1, 3], [600, 50, 7]))  # class 2 has no image
    make = {"numpy": lambda: np.random.default_rng(5), "torch": lambda: torch.Generator().manual_seed(5)}[generator]
    sampler = ClassSampler(labels, kind)
    drawn = sampler.draw(100_000, make(), progress=0.3)
    assert drawn.dtype == np.int64 and (drawn == sampler.draw(100_000, make(), progress=0.3)).all()
    observed = np.bincount(labels[drawn], minlength=4)
    expected = class_shares(np.bincount(labels), kind, 0.3) * 100_000
    assert observed[2] == expected[2] == 0
    present = [0, 1, 3]
    assert stats.chisquare(observed[present], expected[present]).pvalue > 1e-3
    for code in present:
        visits = np.bincount(drawn, minlength=len(labels))[labels == code]
        assert stats.chisquare(visits).pvalue > 1e-3 and visits.min() > 0


def test_instance_balanced_visits_every_image_once():
    labels = np.arange(1000) % 7
    one = samplers.instance_balanced(labels, seed=1, epoch=0)
    assert sorted(one) == list(range(1000))
    assert (one == samplers.instance_balanced(labels, 1, 0)).all()
    for seed, epoch in ((1, 1), (2, 0)):
        assert (one != samplers.instance_balanced(labels, seed, epoch)).any()


def test_progressive_goes_from_instance_to_class_balanced():
    counts = [900, 90, 10]
    np.testing.assert_allclose(class_shares(counts, "progressive", 0), [0.9, 0.09, 0.01])
    np.testing.assert_allclose(class_shares(counts, "progressive", 1), 1 / 3)
    labels = np.repeat([0, 1, 2], counts)
    share = [np.mean(labels[samplers.progressive(labels, 20_000, np.random.default_rng(0), epoch=e, epochs=5)] == 2)
             for e in range(5)]  # fmt: skip
    np.testing.assert_allclose(share, np.linspace(0.01, 1 / 3, 5), atol=0.02)
    with pytest.raises(ValueError, match="progress"):
        class_shares(counts, "progressive", 1.2)


def test_more_than_2_to_the_24_images_reach_the_last_one():
    """torch.multinomial refuses this size, and a float32 running sum would never reach the last images."""
    n = 2**24 + 1000
    with pytest.raises(RuntimeError, match="2\\^24"):
        torch.multinomial(torch.ones(n), 1)
    labels = np.zeros(n, dtype=np.int8)
    labels[-500:] = 1
    drawn = samplers.class_balanced(labels, 20_000, np.random.default_rng(0))
    tail = drawn[drawn >= n - 500]
    assert len(tail) == pytest.approx(10_000, abs=400)
    assert len(np.unique(tail)) == 500
    assert drawn.max() == n - 1 and (drawn < n - 2**23).any()


def test_labels_may_be_any_integer_array():
    for dtype in (np.int8, np.uint8, np.int32, np.int64):
        labels = np.array([0, 0, 12, 5], dtype=dtype)
        drawn = samplers.class_balanced(labels, 3000, np.random.default_rng(0))
        np.testing.assert_allclose(np.bincount(labels[drawn])[[0, 5, 12]] / 3000, 1 / 3, atol=0.04)
        np.testing.assert_allclose(sample_weights(labels, "class_balanced"), [0.5, 0.5, 1, 1])


def test_epochs_depend_on_seed_and_number_only():
    labels = np.repeat([0, 1], [300, 20])
    for kind in samplers.KINDS:
        one, two = ClassSampler(labels, kind), ClassSampler(labels, kind)
        epoch_indices(one, 3, 0, 10)
        later = epoch_indices(one, 3, 4, 10)
        assert len(later) == 320 and (later == epoch_indices(two, 3, 4, 10)).all(), kind
        assert (later != epoch_indices(two, 3, 5, 10)).any()


def test_unknown_kinds_and_empty_sets_are_refused():
    with pytest.raises(UsageError, match="square_root"):
        ClassSampler(np.zeros(3, int), "sqrt")
    with pytest.raises(UsageError, match="square_root"):
        sample_weights(np.zeros(3, int), "sqrt")
    with pytest.raises(ValueError, match="no images"):
        ClassSampler(np.zeros(0, int), "log1p")
