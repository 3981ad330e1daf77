"""Scores against scikit-learn's golden values, intervals against their definitions."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wbcrepro import metrics


def test_golden_scores(golden):
    file = golden("metrics")
    names = {"macro_recall_13": "macro_recall", "balanced_accuracy_sklearn": "balanced_accuracy",
             "micro_f1": "accuracy", "macro_f1_labels_present": "macro_f1_present"}
    n_classes = file["confusion"].shape[-1]
    for case in range(len(file["names"])):
        true, pred = file[f"true_{case}"], file[f"pred_{case}"]
        got = metrics.scores(true, pred, n_classes)
        for column, value in zip(file["columns"], file["values"][case], strict=True):
            assert got[names.get(str(column), str(column))] == pytest.approx(value, abs=1e-9), (case, column)
        for row, name in enumerate(["f1", "precision", "recall", "specificity", "support"]):
            np.testing.assert_allclose(got["per_class"][name], file["per_class"][case, row], atol=1e-9)
        np.testing.assert_array_equal(metrics.confusion(true, pred, n_classes), file["confusion"][case])


def test_confusion_refuses_foreign_codes_and_lengths():
    with pytest.raises(ValueError, match="predicted codes span 0..3"):
        metrics.confusion([0, 1], [0, 3], 3)
    with pytest.raises(ValueError, match="2 labels but 1"):
        metrics.confusion([0, 1], [0], 3)


@pytest.mark.parametrize("options", [{}, {"stratified": True}, {"groups": True}])
def test_bootstrap_is_the_loop(options):
    """The vectorised replicates equal scores computed one resample at a time."""
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 4, 60)
    labels[labels == 3] = 2  # class 3 never occurs in the truth
    sets = [np.where(rng.random(60) < 0.6, labels, rng.integers(0, 4, 60)) for _ in range(3)]
    groups = rng.integers(0, 9, 60) if options.pop("groups", False) else None
    for metric in metrics.MACRO:
        draws = metrics.bootstrap_draws(sets, labels, metric, 20, 7, n_classes=4, groups=groups, **options)
        weights = metrics._draw_weights(labels, groups, options.get("stratified", False), 20,
                                        np.random.default_rng(7)).astype(int)
        for b in range(20):
            rows = np.repeat(np.arange(60), weights[:, b])
            for k, pred in enumerate(sets):
                expected = metrics.scores(labels[rows], pred[rows], 4)[metric]
                assert draws[b, k] == pytest.approx(expected, abs=1e-12)


def test_bootstrap_of_some_rows_and_classes_is_the_loop():
    """One resample of all items; each set is scored on its own rows, the macro average over its own classes."""
    rng = np.random.default_rng(5)
    labels = np.repeat([0, 1, 3], 12)
    sets = [np.where(rng.random(36) < 0.5, labels, rng.integers(0, 4, 36)) for _ in range(2)]
    rows = [np.arange(36) % 5 != 0, labels != 1]
    over = [np.array([0, 1, 3]), np.array([0, 3])]
    for metric in ("macro_f1", "macro_recall", "micro_f1"):
        draws = metrics.bootstrap_draws(sets, labels, metric, 15, 7, n_classes=4, stratified=True, rows=rows,
                                        average_over=over)
        weights = metrics._draw_weights(labels, None, True, 15, np.random.default_rng(7)).astype(int)
        for b in range(15):
            for k, pred in enumerate(sets):
                drawn = np.repeat(np.arange(36), weights[:, b] * rows[k])
                per_class = metrics.scores(labels[drawn], pred[drawn], 4)["per_class"]
                name = {"macro_f1": "f1", "macro_recall": "recall"}.get(metric)
                parts = np.array(per_class[name])[over[k]] if name else labels[drawn] == pred[drawn]
                assert draws[b, k] == pytest.approx(parts.mean(), abs=1e-12)


def test_a_score_over_some_classes():
    true, pred = np.array([0, 0, 1, 1]), np.array([0, 2, 1, 1])
    assert metrics.score(true, pred, "macro_f1", 3) == pytest.approx((2 / 3 + 1 + 0) / 3)
    assert metrics.score(true, pred, "macro_f1", 3, average_over=np.array([0, 1])) == pytest.approx((2 / 3 + 1) / 2)
    assert metrics.score(true, pred, "micro_f1", 3, average_over=np.array([0, 1])) == 0.75
    with pytest.raises(ValueError, match="leaves out a class that has images"):
        metrics.score(true, pred, "macro_f1", 3, average_over=np.array([0]))


def test_bootstrap_schemes_resample_what_they_say():
    labels = np.repeat([0, 1, 2], [50, 8, 2])
    rng = np.random.default_rng
    plain = metrics._draw_weights(labels, None, False, 500, rng(0))
    kept = metrics._draw_weights(labels, None, True, 500, rng(0))
    assert (plain.sum(0) == 60).all() and plain[labels == 2].sum(0).std() > 0
    for code, count in enumerate([50, 8, 2]):
        assert (kept[labels == code].sum(0) == count).all()
    groups = np.arange(60) // 6
    whole = metrics._draw_weights(labels, groups, False, 500, rng(0))
    assert all((whole[groups == g] == whole[groups == g][0]).all() for g in range(10))
    both = metrics._draw_weights(labels, groups, True, 500, rng(0))  # group 8 lies in two classes: there, two units
    for unit in {(g, c) for g, c in zip(groups, labels, strict=True) if c != 2}:  # class 2 has one group only
        rows = both[(groups == unit[0]) & (labels == unit[1])]
        assert (rows == rows[0]).all()


def test_bootstrap_interval_has_the_right_width_and_seed():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 1000)
    pred = np.where(rng.random(1000) < 0.8, labels, 1 - labels)
    low, high = metrics.bootstrap([pred], labels, "accuracy", 4000, 1, n_classes=2)
    p = (pred == labels).mean()
    assert high - low == pytest.approx(2 * 1.96 * np.sqrt(p * (1 - p) / 1000), rel=0.06)
    assert low < p < high
    assert (low, high) == metrics.bootstrap([pred], labels, "accuracy", 4000, 1, n_classes=2)
    one, other = (metrics.bootstrap_draws([pred], labels, "accuracy", 10, seed, n_classes=2) for seed in (1, 2))
    assert (one != other).any()


def test_bootstrap_is_fast_enough_for_every_table_value():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 13, 600)
    sets = [rng.integers(0, 13, 600) for _ in range(10)]
    times = []
    for _ in range(3):
        start = time.process_time()
        metrics.bootstrap(sets, labels, "macro_f1", 2000, 0, n_classes=13)
        times.append(time.process_time() - start)
    assert min(times) < 1.0, times


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 200), st.integers(0, 200))
def test_wilson_solves_its_equation(k, extra):
    n = k + extra
    low, high = metrics.wilson_interval(k, n)
    assert 0 <= low <= high <= 1
    if n == 0:
        assert (low, high) == (0, 1)
        return
    p = k / n
    for end in (float(low), float(high)):
        if 0 < end < 1:  # the interval's ends solve |p - end| = z sqrt(end (1 - end) / n)
            assert abs(p - end) == pytest.approx(1.959963985 * np.sqrt(end * (1 - end) / n), rel=1e-6, abs=1e-9)


def test_wilson_on_arrays_matches_known_values():
    low, high = metrics.wilson_interval(np.array([2, 11]), np.array([3, 18]))
    np.testing.assert_allclose(low, [0.2077, 0.3862], atol=2e-4)
    np.testing.assert_allclose(high, [0.9385, 0.7969], atol=2e-4)


def test_images_of_a_group_are_resampled_together_within_their_class():
    labels = np.array([0, 0, 0, 0, 1, 1, 1, 1])
    groups = np.array(list("aabbccdd"))
    right = [np.array([0, 0, 1, 1, 1, 1, 0, 0])]  # group a right, b wrong; c right, d wrong
    options = {"n_classes": 2, "stratified": True, "seed": 3, "n": 400}
    by_group = metrics.bootstrap_draws(right, labels, "accuracy", groups=groups, **options)[:, 0]
    by_image = metrics.bootstrap_draws(right, labels, "accuracy", **options)[:, 0]
    assert set(np.round(by_group * 4, 9)) == {0, 1, 2, 3, 4}  # two groups drawn of each class, right or wrong as one
    assert by_group.std() > 1.3 * by_image.std()  # sqrt 2 for pairs
    alone = metrics.bootstrap_draws(right, labels, "accuracy", groups=np.arange(8), **options)[:, 0]
    assert np.array_equal(alone, by_image)


def test_a_class_of_one_group_has_an_interval():
    labels, groups = np.repeat([0, 1], 40), np.repeat(["slide", *"abcdefgh"], [40, *[5] * 8])
    half = np.arange(80) % 2  # class 0, all of one slide: half of it right
    draws = metrics.bootstrap_draws([half], labels, "macro_recall", 400, 3, n_classes=2, stratified=True, groups=groups,
                                    rows=[labels == 0], average_over=[np.array([0])])[:, 0]
    assert draws.std() == pytest.approx(np.sqrt(0.25 / 40), rel=0.15)
