"""Mahalanobis distances: against numpy's plain formula, in any units, and with covariances that have no inverse."""

import json

import numpy as np
import pytest
from scipy import stats

from wbcrepro.rescue.mahalanobis import Gaussian, distance, fit_gaussian

COLUMNS = ("Area", "NC_Ratio", "Offset")


def cells(n, seed=0):
    """Three correlated features in very different units."""
    z = np.random.default_rng(seed).normal(size=(n, 3)) @ np.array([[1, 0.5, 0], [0, 1, 0.3], [0, 0, 1]])
    return z * [900, 0.1, 0.02] + [5000, 0.6, 0.1]


def test_without_shrinkage_it_is_the_plain_formula():
    x, new = cells(200), cells(50, seed=1)
    gaussian = fit_gaussian(x, COLUMNS, shrink=False)
    precision = np.linalg.inv(np.cov(x, rowvar=False))
    expected = [np.sqrt((v - x.mean(0)) @ precision @ (v - x.mean(0))) for v in new]
    np.testing.assert_allclose(distance(gaussian, new), expected, rtol=1e-9)
    assert gaussian.shrinkage == 0 and gaussian.n == 200 and gaussian.note == ""


def test_shrinkage_vanishes_with_many_cells_and_matters_with_few():
    assert fit_gaussian(cells(2000), COLUMNS).shrinkage < 0.02
    assert fit_gaussian(cells(6), COLUMNS).shrinkage > 0.1


def test_distances_do_not_depend_on_the_units():
    units = np.array([1e-3, 100, 7])
    x, new = cells(12), cells(5, seed=1)
    one = distance(fit_gaussian(x, COLUMNS), new)
    two = distance(fit_gaussian(x * units, COLUMNS), new * units)
    np.testing.assert_allclose(one, two, rtol=1e-8)


def test_a_chi_square_quantile_keeps_the_share_that_it_says():
    gaussian = fit_gaussian(cells(5000), COLUMNS)
    new = distance(gaussian, cells(20000, seed=1))
    assert (new**2 <= stats.chi2.ppf(0.95, 3)).mean() == pytest.approx(0.95, abs=0.01)


@pytest.mark.parametrize("n", [2, 3])
def test_fewer_cells_than_features_are_shrunk_and_said(n):
    gaussian = fit_gaussian(cells(n), COLUMNS)
    assert f"{n} cells for 3 features" in gaussian.note and gaussian.shrinkage > 0
    assert np.isfinite(distance(gaussian, cells(5, seed=1))).all()
    assert np.linalg.eigvalsh(gaussian.precision).min() > 0


@pytest.mark.parametrize("shrink", [True, False])
def test_a_doubled_feature_has_a_singular_covariance(shrink):
    x = cells(500)
    x[:, 2] = x[:, 1] * 2 + 1
    gaussian = fit_gaussian(x, COLUMNS, shrink=shrink)
    assert "singular" in gaussian.note and gaussian.shrinkage > 0
    assert np.isfinite(distance(gaussian, x)).all()
    off_the_line = x.mean(0) + [0, 0, 0.2]
    assert distance(gaussian, off_the_line[None])[0] > distance(gaussian, x).max()


def test_a_constant_feature_is_named():
    x = cells(50)
    x[:, 1] = 0.5
    gaussian = fit_gaussian(x, COLUMNS)
    assert "no spread in NC_Ratio" in gaussian.note
    assert np.isfinite(distance(gaussian, cells(5))).all()


def test_equal_cells_have_distance_zero_to_themselves_and_more_to_others():
    x = np.repeat(cells(1), 4, axis=0)
    gaussian = fit_gaussian(x, COLUMNS)
    assert "all cells are equal" in gaussian.note
    np.testing.assert_allclose(distance(gaussian, x), 0, atol=1e-9)
    assert distance(gaussian, x * 1.1)[0] > 0


def test_unmeasured_cells_are_left_out_and_counted():
    x = cells(30)
    x[3, 1] = np.nan
    gaussian = fit_gaussian(x, COLUMNS)
    assert gaussian.n == 29 and "1 cells could not be measured" in gaussian.note
    np.testing.assert_allclose(gaussian.mean, np.delete(x, 3, 0).mean(0))
    assert np.isnan(distance(gaussian, x)[3]) and np.isfinite(np.delete(distance(gaussian, x), 3)).all()


@pytest.mark.parametrize("x", [np.zeros((0, 3)), cells(1), np.full((5, 3), np.nan)])
def test_a_spread_needs_two_cells(x):
    with pytest.raises(ValueError, match="at least two"):
        fit_gaussian(x, COLUMNS)


def test_columns_and_features_must_agree():
    with pytest.raises(ValueError, match="expected features"):
        fit_gaussian(cells(9), COLUMNS[:2])


def test_json_and_back():
    gaussian = fit_gaussian(cells(3), COLUMNS)
    again = Gaussian.from_json(json.loads(json.dumps(gaussian.to_json(), allow_nan=False)))
    np.testing.assert_array_equal(distance(again, cells(5)), distance(gaussian, cells(5)))
    assert (again.columns, again.n, again.note) == (gaussian.columns, gaussian.n, gaussian.note)
