"""Stain normalisation against torchstain (golden files and side by side), and on images that break it."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wbcrepro.errors import UsageError
from wbcrepro.stain import normaliser
from wbcrepro.stain.closed_forms import closed_form_eigenvectors, least_squares_inverse
from wbcrepro.stain.evaluation import densities, nucleus_auc, status_report, subsample_error
from wbcrepro.stain.macenko import (
    STATUSES,
    StainEstimate,
    estimate_stains,
    fit_macenko,
    macenko_codes,
    macenko_normalise,
    order_by_red,
    point_along,
    reference_from,
    status_names,
)
from wbcrepro.stain.optical_density import darkest_kept_value, optical_density, precheck_count, stained
from wbcrepro.stain.percentiles import ranks, value_at
from wbcrepro.stain.reference import StainReference, default_reference
from wbcrepro.stain.romanowsky import background_light, estimate_romanowsky, fit_romanowsky, romanowsky_normalise

torch.set_num_threads(1)
FAST = pytest.param("fast", marks=pytest.mark.filterwarnings("ignore"))


def method(name):
    if name == "fast":
        pytest.importorskip("numba", reason="the extra `fast` (numba) is not installed")
        from wbcrepro.stain.macenko_fast import macenko_fast

        return macenko_fast
    return {"macenko": macenko_normalise, "romanowsky": romanowsky_normalise}[name]


def smear(seed=0, size=64, azure=(0.73, 0.65, 0.2), eosin=(0.1, 0.9, 0.42), light=235.0):
    """A cell with nucleus, cytoplasm and red cells by Beer-Lambert: uint8 (3,H,W), nucleus (H,W), stains (3,2)."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size] / size - 0.5
    distance = np.hypot(y, x)
    nucleus, cell = distance < 0.2, distance < 0.33
    density = np.zeros((2, size, size))
    density[:, cell] = [[0.35], [0.25]]
    density[:, nucleus] = [[1.3], [0.55]]
    density[1][np.abs(distance - 0.45) < 0.08] = 0.7
    density *= rng.gamma(30, 1 / 30, density.shape)
    matrix = np.stack([azure, eosin], 1) / np.linalg.norm([azure, eosin], axis=1)
    image = light * np.exp(-np.einsum("ck,khw->chw", matrix, density)) + rng.normal(0, 1, (3, size, size))
    return torch.from_numpy(np.clip(image, 0, 255).astype(np.uint8)), nucleus, matrix


def batch(n=3, **options):
    return torch.stack([smear(seed, **options)[0] for seed in range(n)])


def hwc(images):
    return images.permute(0, 2, 3, 1).numpy()


# --- the golden file: torchstain on real blood cells -------------------------------------------------------------


@pytest.mark.parametrize("name", ["macenko", FAST])
@pytest.mark.parametrize(
    ("backend", "percentile", "rtol", "grey", "equal"),
    [("np", "linear", 1e-6, 1, 0.999), ("torch", "nearest", 2e-3, 1, 0.97)],
)
def test_golden_macenko(golden, name, backend, percentile, rtol, grey, equal):
    file = golden("macenko")
    target = torch.from_numpy(file["target"]).permute(2, 0, 1)
    sources = torch.from_numpy(file["sources"]).permute(0, 3, 1, 2).contiguous()
    io, alpha, beta = file["params"].tolist()
    options = {"io": io, "alpha": alpha, "beta": beta, "percentile": percentile}
    reference = fit_macenko(target, **options)
    np.testing.assert_allclose(reference.matrix, file[f"{backend}_target_HE"], rtol=rtol)
    np.testing.assert_allclose(reference.maxima, file[f"{backend}_target_maxC"], rtol=rtol)
    estimate = estimate_stains(sources, **options)
    np.testing.assert_allclose(estimate.matrix, file[f"{backend}_HE"], rtol=rtol)
    np.testing.assert_allclose(estimate.maxima, file[f"{backend}_maxC"], rtol=rtol)
    np.testing.assert_array_equal(estimate.pixels, file["n_od_pixels"])
    np.testing.assert_array_equal(precheck_count(sources), file["n_valid_001"])
    out, status = method(name)(sources, reference, **options)
    difference = np.abs(hwc(out).astype(int) - file[f"{backend}_normalized"])
    assert set(status) == {"normalised"}
    assert difference.max() <= grey and (difference == 0).mean() >= equal


def test_golden_blank_image_raises_there_and_returns_here(golden):
    file = golden("macenko")
    assert file["blank_torch_raises"] and file["blank_numpy_raises"]
    blank = torch.from_numpy(file["blank"]).permute(2, 0, 1)[None]
    assert precheck_count(blank).item() == file["blank_n_valid_001"]
    out, status = macenko_normalise(blank)
    assert status == ["too_few_pixels"] and torch.equal(out, blank)


# --- torchstain itself as oracle ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["macenko", FAST])
@pytest.mark.parametrize(("backend", "percentile", "equal"), [("numpy", "linear", 0.999), ("torch", "nearest", 0.97)])
def test_against_torchstain_on_synthetic_cells(name, backend, percentile, equal):
    torchstain = pytest.importorskip("torchstain")
    images = torch.cat([batch(3), batch(2, azure=(0.5, 0.8, 0.3), light=215.0)])
    target = smear(seed=9, eosin=(0.2, 0.85, 0.5))[0]
    peer = torchstain.normalizers.MacenkoNormalizer(backend=backend)
    as_peer = (lambda image: image) if backend == "torch" else (lambda image: image.permute(1, 2, 0).numpy())
    peer.fit(as_peer(target))
    expected = np.stack([np.asarray(peer.normalize(as_peer(image), stains=False)[0]) for image in images])
    reference = StainReference(np.asarray(peer.HERef), np.asarray(peer.maxCRef))
    ours = fit_macenko(target, percentile=percentile)
    np.testing.assert_allclose(ours.matrix, reference.matrix, rtol=1e-3, atol=1e-4)
    out, status = method(name)(images, reference, percentile=percentile)
    difference = np.abs(hwc(out).astype(int) - expected)
    assert status == ["normalised"] * 5 and difference.max() <= 1 and (difference == 0).mean() >= equal


def test_the_variant_finds_the_stains_that_were_drawn_where_the_mask_hides_one_from_the_faithful_method():
    image, _, truth = smear(light=240.0)
    angle = lambda matrix: np.degrees(np.arccos(np.sum(matrix[0].numpy() * truth, axis=0)))  # noqa: E731
    faithful, (variant, _) = estimate_stains(image[None]), estimate_romanowsky(image[None])
    assert (angle(variant.matrix) < 10).all()
    assert angle(faithful.matrix)[1] > 15  # pure eosin lets red through and fails "every channel reaches beta"


def test_an_image_normalised_to_its_own_stains_hardly_changes():
    image = smear()[0]
    out, status = macenko_normalise(image[None], fit_macenko(image))
    coloured = stained(image[None])[0].reshape(64, 64)
    assert status == ["normalised"] and (out[0].int() - image.int()).abs()[:, coloured].float().mean() < 3


# --- images that break the method --------------------------------------------------------------------------------


def few_pixels(n):
    image = torch.full((3, 32, 32), 250, dtype=torch.uint8)
    for i in range(n):
        image[:, i, 2 * i] = torch.tensor([90 + 20 * i, 40 + 30 * i, 130 - 10 * i], dtype=torch.uint8)
    return image


def rank_one():
    density = torch.linspace(0.2, 2, 32 * 32).reshape(1, 32, 32)
    return (240 * torch.exp(-torch.tensor([0.6, 0.7, 0.4])[:, None, None] * density)).to(torch.uint8)


def constant(*grey):
    return torch.tensor(grey, dtype=torch.uint8)[:, None, None].expand(3, 32, 32)


BROKEN = {
    "white": (constant(255, 255, 255), "too_few_pixels"),
    "black": (constant(0, 0, 0), "degenerate"),
    "constant purple": (constant(120, 60, 150), "degenerate"),
    "constant grey": (constant(128, 128, 128), "degenerate"),
    "one stain": (rank_one(), "degenerate"),
    "grey ramp": (torch.arange(1024).div(5).to(torch.uint8).reshape(1, 32, 32).expand(3, 32, 32), "degenerate"),
    "one stained pixel": (few_pixels(1), "too_few_pixels"),
    "two stained pixels": (few_pixels(2), "too_few_pixels"),
    "three stained pixels": (few_pixels(3), "too_few_pixels"),
}


@pytest.mark.parametrize("case", BROKEN)
@pytest.mark.parametrize("name", ["macenko", FAST])
@pytest.mark.parametrize("percentile", ["linear", "nearest"])
def test_broken_images_come_back_unchanged_with_the_reason(case, name, percentile):
    image, reason = BROKEN[case]
    out, status = method(name)(image[None], percentile=percentile)
    assert status == [reason] and torch.equal(out[0], image)


@pytest.mark.parametrize("case", BROKEN)
def test_romanowsky_leaves_broken_images_alone(case):
    out, status = romanowsky_normalise(BROKEN[case][0][None])
    assert status[0] in ("too_few_pixels", "degenerate") and torch.equal(out[0], BROKEN[case][0])


@pytest.mark.parametrize("name", ["macenko", "romanowsky", FAST])
def test_a_broken_image_does_not_touch_its_neighbours(name):
    good = batch(2, size=32)
    mixed = torch.stack([good[0], *(image for image, _ in BROKEN.values()), good[1]])
    out, status = method(name)(mixed)
    alone, _ = method(name)(good)
    assert status[0] == status[-1] == "normalised" and "normalised" not in status[1:-1]
    assert torch.equal(out[[0, -1]], alone)


IMAGES = st.tuples(
    st.sampled_from(["noise", "dark", "few levels", "sparse", "channel", "one hue"]),
    st.integers(0, 2**31), st.integers(1, 24), st.integers(1, 24),
)  # fmt: skip


def strange(kind, seed, height, width):
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (3, height, width))
    if kind == "dark":
        image = rng.integers(0, 3, image.shape)
    elif kind == "few levels":
        image = rng.choice(rng.integers(0, 256, 2), image.shape)
    elif kind == "sparse":
        image = np.where(rng.random((1, height, width)) < 0.1, image, 255)
    elif kind == "channel":
        image[rng.integers(3)] = rng.choice([0, 255])
    elif kind == "one hue":
        image = np.minimum(image[:1] // np.array([1, 2, 3])[:, None, None] + rng.integers(0, 2, image.shape), 255)
    return torch.from_numpy(image.astype(np.uint8))


@settings(max_examples=120, deadline=None)
@given(spec=IMAGES, percentile=st.sampled_from(["linear", "nearest"]), alpha=st.sampled_from([0, 0.1, 1, 5, 50]))
def test_no_image_raises_or_gives_nan(spec, percentile, alpha):
    image = strange(*spec)[None]
    results = [macenko_normalise(image, percentile=percentile, alpha=alpha, min_pixels=n) for n in (1, 50)]
    results.append(romanowsky_normalise(image, percentile=percentile, alpha=alpha))
    try:
        results += [method("fast")(image, percentile=percentile, alpha=alpha, min_pixels=n) for n in (1, 50)]
    except pytest.skip.Exception:
        pass
    for out, status in results:
        assert out.dtype == torch.uint8 and out.shape == image.shape and status[0] in STATUSES
        assert status[0] == "normalised" or torch.equal(out, image)
    estimate = estimate_stains(image, percentile=percentile, alpha=alpha)
    if estimate.codes[0] == 0:
        assert estimate.matrix.isfinite().all() and estimate.maxima.isfinite().all() and (estimate.maxima > 0).all()


@settings(max_examples=40, deadline=None)
@given(spec=IMAGES)
def test_fast_agrees_with_batched_on_strange_images(spec):
    image = strange(*spec)[None]
    slow, a = macenko_normalise(image, percentile="linear")
    fast, b = method("fast")(image, percentile="linear")
    assert a == b
    if spec[0] != "one hue":  # there the second eigenvalue may lie on the border between one stain and two
        assert (slow.int() - fast.int()).abs().max() <= 1


def test_non_finite_is_reported(monkeypatch):
    from wbcrepro.stain import macenko

    monkeypatch.setattr(macenko, "maximal_densities", lambda od, inverse, percentile: inverse.sum(2) * float("nan"))
    out, status = macenko_normalise(batch(2))
    assert status == ["non_finite"] * 2 and torch.equal(out, batch(2))


# --- the parts ---------------------------------------------------------------------------------------------------


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


# --- contract ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["macenko", "romanowsky"])
@pytest.mark.parametrize("chunk", [1, 2, 100])
def test_chunks_do_not_change_the_result(name, chunk):
    images = batch(5, size=40)
    whole, part = method(name)(images), method(name)(images, chunk=chunk)
    assert (whole[0].int() - part[0].int()).abs().max() <= 1 and whole[1] == part[1]
    assert (whole[0] == part[0]).float().mean() > 0.999  # a batched product may sum in another order


@pytest.mark.parametrize("name", ["macenko", "romanowsky", FAST])
def test_inputs_stay_as_they_were_and_any_layout_will_do(name):
    images = batch(2, size=40)
    before = images.clone()
    out, _ = method(name)(images)
    assert torch.equal(images, before) and out.data_ptr() != images.data_ptr()
    strided = images.contiguous(memory_format=torch.channels_last)
    assert torch.equal(method(name)(strided)[0], out)
    empty, status = method(name)(images[:0])
    assert empty.shape == (0, 3, 40, 40) and status == []


@pytest.mark.parametrize("percentile", ["linear", "nearest"])
@pytest.mark.parametrize("subsample", [None, 2])
def test_no_value_is_read_back_from_the_device(percentile, subsample):
    images = torch.empty((3, 3, 32, 32), dtype=torch.uint8, device="meta")  # reading a value of it raises
    out, codes = macenko_codes(images, percentile=percentile, subsample=subsample)
    assert (out.device.type, out.dtype, out.shape) == ("meta", torch.uint8, images.shape) and codes.shape == (3,)
    from wbcrepro.stain.romanowsky import romanowsky_codes

    assert romanowsky_codes(images, percentile=percentile)[1].device.type == "meta"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", ["macenko", "romanowsky"])
def test_cuda_gives_the_cpu_result(name):
    images = torch.cat([batch(4, size=48), torch.full((1, 3, 48, 48), 255, dtype=torch.uint8)])
    there, status = method(name)(images.cuda())
    here, expected = method(name)(images)
    assert there.is_cuda and status == expected
    difference = (there.cpu().int() - here.int()).abs()
    assert difference.max() <= 1 and (difference == 0).float().mean() > 0.97


@pytest.mark.parametrize(
    "wrong", [torch.zeros(1, 3, 4, 4), torch.zeros(3, 4, 4).byte(), torch.zeros(1, 4, 4, 3).byte()]
)
@pytest.mark.parametrize("name", ["macenko", "romanowsky", FAST])
def test_wrong_images_are_refused_with_what_was_expected(name, wrong):
    with pytest.raises(ValueError, match=r"uint8 images of shape \(N, 3, H, W\)"):
        method(name)(wrong)


@pytest.mark.parametrize("name", ["macenko", "romanowsky", FAST])
def test_an_unknown_percentile_is_refused(name):
    with pytest.raises(ValueError, match="nearest"):
        method(name)(batch(1), percentile="median")


def test_subsampling_reports_its_error_and_is_small():
    images = torch.cat([batch(3, size=128), BROKEN["white"][0].repeat(1, 4, 4)[None]])
    error = subsample_error(images, 2)
    assert error["images"] == 3 and error["status_changed"] == 0
    assert 0 < error["mean"] <= error["worst_image"] < 4 and error["worst_image"] <= error["largest"]
    assert subsample_error(images, 1)["largest"] == 0
    assert np.isnan(subsample_error(images[3:], 2)["mean"])


def test_fast_and_batched_subsamples_agree():
    images = batch(2, size=96)
    slow, a = macenko_normalise(images, subsample=3, percentile="linear")
    fast, b = method("fast")(images, subsample=3, percentile="linear")
    assert a == b and (slow.int() - fast.int()).abs().max() <= 1


def test_status_report_counts_every_status_and_group():
    report = status_report(["normalised", "degenerate", "normalised"], ["a", "b", "b"])
    assert report.loc["all", list(STATUSES)].tolist() == [2, 0, 1, 0] and report.loc["b", "degenerate"] == 1
    assert status_report([]).empty or status_report([]).to_numpy().sum() == 0
    with pytest.raises(ValueError, match="lost"):
        status_report(["lost"])


def test_references_travel_through_json(tmp_path):
    for kind in ("macenko", "romanowsky"):
        reference = default_reference(kind)
        reference.save(tmp_path / "reference.json")
        assert StainReference.load(tmp_path / "reference.json") == reference and reference.provenance
        np.testing.assert_allclose(np.linalg.norm(reference.matrix, axis=0), 1, atol=1e-3)
    with pytest.raises(ValueError, match="macenko, romanowsky"):
        default_reference("vahadane")
    with pytest.raises(ValueError, match="3x2"):
        StainReference([[1, 2]], [1, 2])
    with pytest.raises(ValueError, match="positive"):
        StainReference(np.eye(3)[:, :2], [1, 0])


def test_a_fit_needs_two_stains():
    with pytest.raises(ValueError, match="too_few_pixels"):
        fit_macenko(constant(255, 255, 255))
    with pytest.raises(ValueError, match="another target"):
        fit_romanowsky(constant(9, 9, 9))
    many = fit_macenko(torch.stack([smear(0)[0], constant(255, 255, 255).repeat(1, 2, 2)]))
    np.testing.assert_allclose(many.matrix, fit_macenko(smear(0)[0]).matrix, rtol=1e-5)
    estimate = StainEstimate(*(torch.ones(s) for s in ((1, 3, 2), (1, 2, 3), (1, 2))), torch.zeros(1).long(), None)
    assert np.allclose(np.linalg.norm(reference_from(estimate).matrix, axis=0), 1)


def test_normalisers_by_name():
    images = batch(1)
    assert normaliser("none") is None
    assert torch.equal(normaliser("macenko")(images)[0], macenko_normalise(images)[0])
    assert normaliser("romanowsky")(images)[1] == ["normalised"]
    with pytest.raises(UsageError, match="none, macenko or romanowsky"):
        normaliser("reinhard")


def test_fast_says_how_to_get_numba(monkeypatch):
    import importlib
    import sys

    monkeypatch.setitem(sys.modules, "numba", None)
    monkeypatch.delitem(sys.modules, "wbcrepro.stain.macenko_fast", raising=False)
    with pytest.raises(UsageError, match=r"wbcrepro\[fast\]"):
        importlib.import_module("wbcrepro.stain.macenko_fast")


def test_status_names():
    assert status_names(torch.tensor([0, 3, 2, 1])) == ["normalised", "non_finite", "degenerate", "too_few_pixels"]


# --- real masks --------------------------------------------------------------------------------------------------


def test_the_variant_finds_nuclei_better_on_real_masks(real_data):
    from PIL import Image

    folder = real_data / "zheng18" / "segmentation_WBC" / "Dataset 1"
    if not folder.is_dir():
        pytest.skip("Zheng-18 Dataset 1 is not among the real images")
    faithful, variant = [], []
    for path in sorted(folder.glob("*.bmp"))[::10]:
        image = torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1)[None]
        nucleus = torch.from_numpy(np.array(Image.open(path.with_suffix(".png"))) == 255).reshape(1, -1)
        faithful.append(nucleus_auc(densities(optical_density(image), estimate_stains(image)), nucleus)[0])
        estimate, od = estimate_romanowsky(image)
        variant.append(nucleus_auc(densities(od, estimate), nucleus)[0])
    faithful, variant = torch.stack(faithful).nanmean(0), torch.stack(variant).nanmean(0)
    assert faithful[0] < faithful[1], "on blood, the 'haematoxylin' of the faithful method finds nuclei worse"
    assert variant[0] > 0.97 and variant[0] > faithful.max()
