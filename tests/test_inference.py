"""Views, probability averaging and the quota step, against the released code's own results (golden ``tta``)."""

import numpy as np
import pytest
import torch

from wbcrepro.data.pixels import prepare
from wbcrepro.data.smears.spec import WBCBENCH_COUNTS
from wbcrepro.inference.ensemble import mean_probabilities, predict_classes
from wbcrepro.inference.quota import quota_floors, rare_class_quota
from wbcrepro.inference.tta import (
    CODE_WEIGHTS,
    DIHEDRAL,
    EQUAL_WEIGHTS,
    IDENTITY_WEIGHTS,
    RESCUE_WEIGHTS,
    combine_views,
    view,
)

CODE_VIEWS = ("identity", "identity", "hflip", "vflip", "rot180", "rot90", "rot180", "rot270")
RESCUE_VIEWS = ("identity", "hflip", "vflip", "rot180", "rot270", "rot180", "rot90", "transpose")


def _views(image: np.ndarray, names) -> np.ndarray:
    tensor = torch.from_numpy(image.transpose(2, 0, 1).copy())
    return np.stack([view(tensor, name).numpy().transpose(1, 2, 0) for name in names])


def test_views_of_both_released_codes(golden):
    tta = golden("tta")
    np.testing.assert_array_equal(_views(tta["image"], CODE_VIEWS), tta["views001"])
    found = _views(tta["image"], RESCUE_VIEWS)
    np.testing.assert_array_equal(found, tta["views002"])
    same = [[np.array_equal(a, b) for b in found] for a in found]
    np.testing.assert_array_equal(same, tta["same002"] == 1)


def test_the_eight_views_are_distinct_and_the_codes_have_six_and_seven():
    image = np.random.default_rng(0).integers(0, 256, (9, 9, 3), dtype=np.uint8)
    assert len({v.tobytes() for v in _views(image, DIHEDRAL)}) == 8
    assert len({v.tobytes() for v in _views(image, CODE_VIEWS)}) == 6
    assert DIHEDRAL[0] == "identity"
    for name in DIHEDRAL:
        assert CODE_WEIGHTS[DIHEDRAL.index(name)] == CODE_VIEWS.count(name) / 8
        assert RESCUE_WEIGHTS[DIHEDRAL.index(name)] == RESCUE_VIEWS.count(name) / 8
    assert len({v.tobytes() for v in _views(image, RESCUE_VIEWS)}) == np.count_nonzero(RESCUE_WEIGHTS) == 7


def test_full_path_resize_and_crop(golden):
    tta = golden("tta")
    side = tta["full001_view0"].shape[0]
    ours = prepare(tta["full_image"], 368, side)
    assert np.abs(ours.transpose(1, 2, 0).astype(int) - tta["full001_view0"]).max() <= 1
    turned = view(torch.from_numpy(ours.copy()), "rot90").numpy().transpose(1, 2, 0)
    assert np.abs(turned.astype(int) - tta["full001_view5"]).max() <= 1


def test_averaging_equals_the_released_code(golden):
    tta = golden("tta")
    softmax = torch.from_numpy(tta["logits"]).softmax(-1).numpy()  # (model, image, the code's view, class)
    stored = [np.zeros((member.shape[0], 8, member.shape[2])) for member in softmax]
    for ours, member in zip(stored, softmax, strict=True):
        # The golden logits differ even for views that are the same image: each stored view gets their mean.
        for position, name in enumerate(DIHEDRAL):
            same = [k for k, other in enumerate(CODE_VIEWS) if other == name]
            if same:
                ours[:, position] = member[:, same].mean(1)
    for ours, expected in zip(stored, tta["prob_single"], strict=True):
        np.testing.assert_allclose(combine_views(ours, CODE_WEIGHTS), expected, atol=1e-6)
    for weights, key in (((1, 1), "prob_ens_1_1"), ((1, 3), "prob_ens_1_3")):
        found = mean_probabilities(stored, CODE_WEIGHTS, weights)
        np.testing.assert_allclose(found, tta[key], atol=1e-6)
        np.testing.assert_array_equal(predict_classes(found), tta[key].argmax(1))


def test_mean_probabilities_is_the_plain_mean_of_equation_6():
    members = np.random.default_rng(1).dirichlet(np.ones(5), size=(3, 7, 8)).astype(np.float16)
    expected = np.zeros((7, 5))
    for model in range(3):
        for k in range(8):
            expected += members[model, :, k].astype(np.float64) / 24
    np.testing.assert_allclose(mean_probabilities(list(members), EQUAL_WEIGHTS), expected, atol=1e-12)
    one = mean_probabilities([members[0]], IDENTITY_WEIGHTS)
    np.testing.assert_array_equal(one, members[0][:, 0].astype(np.float64))


def test_averaging_refuses_what_does_not_belong_together():
    with pytest.raises(ValueError, match="at least one"):
        mean_probabilities([])
    with pytest.raises(ValueError, match="different images"):
        mean_probabilities([np.ones((4, 8, 3)), np.ones((5, 8, 3))])
    with pytest.raises(ValueError, match="2 members but 1"):
        mean_probabilities([np.ones((4, 8, 3))] * 2, member_weights=[1.0])
    with pytest.raises(ValueError, match=r"expected probabilities \(N, 8, C\)"):
        combine_views(np.ones((4, 6, 3)))


def test_quota_equals_the_released_code(golden):
    tta = golden("tta")
    probabilities, counts = tta["quota_probs"], tta["quota_counts"]
    np.testing.assert_array_equal(probabilities.argmax(1), tta["quota_before"])
    np.testing.assert_array_equal(rare_class_quota(probabilities, counts), tta["quota_after"])
    np.testing.assert_array_equal(rare_class_quota(probabilities, counts, 0.3, 0.005), tta["quota_after_default"])


def test_quota_floors():
    """By hand, and the floors of the challenge's 16,477 test images (classes in alphabetical order)."""
    counts = np.array([WBCBENCH_COUNTS[name] for name in sorted(WBCBENCH_COUNTS)])
    challenge = [47, 229, 44, 98, 923, 41, 313, 50, 7, 1, 12, 1484, 41]
    assert quota_floors(counts, 16477).tolist() == challenge
    assert quota_floors(np.array([800, 199, 1]), 1000, 0.2).tolist() == [160, 39, 1]


def test_quota_respects_the_threshold_and_fills_the_floor():
    probabilities = np.full((100, 3), 0.0)
    probabilities[:, 0], probabilities[:, 1], probabilities[:, 2] = 0.9, 0.0995, 0.0005
    found = rare_class_quota(probabilities, np.array([1, 1, 1]), fraction=0.5)
    assert np.bincount(found, minlength=3).tolist() == [84, 16, 0]
