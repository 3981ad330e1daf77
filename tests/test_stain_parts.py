"""The parts of stain normalisation, each against NumPy, LAPACK or a count by hand."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from stain_cases import smear

from wbcrepro.stain.closed_forms import closed_form_eigenvectors, least_squares_inverse
from wbcrepro.stain.evaluation import densities, nucleus_auc
from wbcrepro.stain.macenko import (
    order_by_red,
    point_along,
)
from wbcrepro.stain.optical_density import darkest_kept_value, optical_density, stained
from wbcrepro.stain.percentiles import ranks, value_at
from wbcrepro.stain.romanowsky import background_light, estimate_romanowsky


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**31), scale=st.sampled_from([1e-12, 1e-3, 1.0, 1e6]), flat=st.booleans())
def test_closed_form_eigenvectors_agree_with_lapack(seed, scale, flat):
    values = np.sort(np.random.default_rng(seed).uniform(0.01, 1, 3))[::-1]
    values = values * [1, 0.5, 0 if flat else 0.1]
    basis = np.linalg.qr(np.random.default_rng(seed + 1).normal(size=(3, 3)))[0]
    matrix = torch.from_numpy(basis * values @ basis.T * scale)[None]
    matrix = (matrix + matrix.mT) / 2
    found, vectors = closed_form_eigenvectors(matrix)
    np.testing.assert_allclose(found[0] / scale, values, atol=1e-9)
    overlap = (vectors[0].numpy() * basis).sum(0)
    np.testing.assert_allclose(np.abs(overlap), 1, atol=1e-9)


@pytest.mark.parametrize("matrix", [torch.zeros(1, 3, 3), torch.eye(3)[None], torch.ones(1, 3, 3)])
def test_closed_form_eigenvectors_of_degenerate_matrices_are_finite(matrix):
    values, vectors = closed_form_eigenvectors(matrix.double())
    assert values.isfinite().all() and vectors.isfinite().all()


def test_eigenvector_signs_do_not_reach_the_result():
    vectors = torch.linalg.qr(torch.randn(4, 3, 3, dtype=torch.float64)).Q[:, :, :2]
    mean = torch.rand(4, 3, dtype=torch.float64) + 0.1
    flips = torch.tensor([[1.0, -1.0], [-1.0, 1.0]], dtype=torch.float64)
    for flip in flips:
        assert torch.equal(point_along(vectors * flip, mean), point_along(vectors, mean))
    assert ((point_along(vectors, mean) * mean[:, :, None]).sum(1) >= 0).all()


def test_stain_order_is_by_red_and_independent_of_the_input_order():
    a, b = torch.tensor([[0.6, 0.7, 0.3]]), torch.tensor([[0.2, 0.9, 0.4]])
    assert torch.equal(order_by_red(a, b), order_by_red(b, a)) and torch.equal(order_by_red(b, a)[0, :, 0], a[0])


def test_least_squares_inverse_is_the_pseudo_inverse():
    matrix = torch.rand(5, 3, 2, dtype=torch.float64)
    torch.testing.assert_close(least_squares_inverse(matrix)[0], torch.linalg.pinv(matrix))


@pytest.mark.parametrize("quantile", [0.0, 0.01, 0.05])
def test_masked_percentiles_equal_numpy(quantile):
    rng = np.random.default_rng(1)
    values, mask = rng.normal(size=(3, 400)), rng.random((3, 400)) < [[0.2], [0.5], [1.0]]
    masked = torch.where(torch.from_numpy(mask), torch.from_numpy(values), torch.inf)
    rank = ranks(quantile, torch.from_numpy(mask.sum(1)), "linear")
    expected = [np.quantile(v[m], quantile) for v, m in zip(values, mask, strict=True)]
    np.testing.assert_allclose(value_at(masked, rank, 25), expected, rtol=1e-12)


def test_nearest_ranks_round_halves_to_even():
    assert ranks(0.5, torch.tensor([2, 4, 6]), "nearest").tolist() == [0, 2, 2]


@pytest.mark.parametrize(("io", "beta"), [(240, 0.15), (255, 0.05), (240, 0.0), (200, 1.0), (240, 9.0)])
def test_byte_mask_equals_the_mask_by_density(io, beta):
    images = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16).expand(1, 3, 16, 16)
    expected = (optical_density(images, io) >= beta).all(1)
    assert torch.equal(stained(images, io, beta), expected)
    assert darkest_kept_value(io, beta) == int(expected.sum()) - 1


def test_background_light_and_order_of_the_variant():
    image, nucleus, _ = smear(light=210.0)
    assert (background_light(image[None])[0] - 210).abs().max() <= 3
    estimate, od = estimate_romanowsky(image[None])
    auc = nucleus_auc(densities(od, estimate), torch.from_numpy(nucleus).reshape(1, -1))[0]
    assert auc[0] > 0.95 and auc[0] > auc[1]


def test_auc_counts_pairs():
    density = torch.tensor([[[1.0, 2.0, 3.0, 3.0], [4.0, 3.0, 2.0, 1.0]]])
    nucleus = torch.tensor([[False, True, False, True]])
    assert nucleus_auc(density, nucleus)[0].tolist() == [0.625, 0.25]
    assert nucleus_auc(density, torch.zeros(1, 4, dtype=torch.bool)).isnan().all()
