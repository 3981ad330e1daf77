"""SADA's losses against the golden file, loops over the paper's formulas, and themselves in two processes."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import multiprocessing, nn
from torch.nn import functional as F

from wbcrepro.domains.contrastive import averaged_anchor_loss, supcon_loss
from wbcrepro.domains.local_alignment import alignment_head, local_alignment_loss, mean_form_beta

DTYPES = [(torch.float32, "", 1e-5, 1e-4), (torch.float64, "64", 1e-6, 1e-6)]


def value_and_gradient(loss, x, dtype=torch.float64) -> tuple[float, np.ndarray]:
    x = torch.as_tensor(x).to(dtype).requires_grad_()
    value = loss(x)
    value.backward()
    assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    return value.item(), x.grad.double().numpy()


def assert_same(got, expected, tolerance, gradient_tolerance):
    """(value, gradient) pairs: relative for the value, of the largest entry for the gradient."""
    assert got[0] == pytest.approx(float(expected[0]), rel=tolerance)
    assert np.abs(got[1] - expected[1]).max() <= gradient_tolerance * np.abs(expected[1]).max()


@pytest.mark.parametrize(("dtype", "suffix", "tolerance", "of_gradient"), DTYPES)
def test_golden_contrastive_losses(golden, dtype, suffix, tolerance, of_gradient):
    file = golden("sada_losses")
    k, tau, y = int(file["k"]), float(file["temperature"]), torch.tensor(file["y"])

    def anchors(reduction, denominator="all_views"):
        return lambda x: averaged_anchor_loss(x.unflatten(0, (-1, k)), y[::k], tau, denominator=denominator,
                                              reduction=reduction)

    for loss, key in ((lambda x: supcon_loss(x, y, tau), "supcon"), (anchors("mean"), "proxy")):
        expected = file[f"{key}_loss{suffix}"], file[f"{key}_grad{suffix}"]
        assert_same(value_and_gradient(loss, file["x"], dtype), expected, tolerance, of_gradient)
    raw = value_and_gradient(lambda x: supcon_loss(x, y[::k], tau), file["x"][::k], dtype)
    assert_same(raw, (file["supcon_raw_loss"], file["supcon_raw_grad"]), 1e-5, 1e-4)
    for denominator, key in (("all_views", "paper_disc"), ("raw_views", "paper_disc_rawden")):
        got = value_and_gradient(anchors("sum", denominator), file["x"], dtype)
        assert_same(got, (file[f"{key}_sum"], file[f"{key}_sum_grad"]), tolerance, of_gradient)
        each = anchors("none", denominator)(torch.tensor(file["x"], dtype=dtype))
        largest = np.abs(file[f"{key}_per_anchor"]).max()  # a literal denominator can bring an anchor close to zero
        np.testing.assert_allclose(each, file[f"{key}_per_anchor"], rtol=tolerance, atol=tolerance * largest)


@pytest.mark.parametrize(("dtype", "suffix", "tolerance", "of_gradient"), DTYPES)
def test_golden_local_alignment(golden, dtype, suffix, tolerance, of_gradient):
    file = golden("sada_losses")
    (hidden, channels), out = file["la_w1"].shape, len(file["la_w2"])
    n, others, h, w = file["paper_la_map"].shape
    head = alignment_head(channels, hidden, out).to(dtype)
    state = {"0.weight": file["la_w1"][..., None, None], "0.bias": file["la_b1"],
             "2.weight": file["la_w2"][..., None, None], "2.bias": file["la_b2"]}
    head.load_state_dict({key: torch.tensor(value) for key, value in state.items()})

    def loss(form):
        return lambda maps: local_alignment_loss(head(maps).unflatten(0, (n, others + 1)), form)

    mean = value_and_gradient(loss("mean"), file["la_maps"], dtype)
    assert_same(mean, (file["la_loss"], file["la_grad"]), 1e-5, 1e-4)
    for layer, key in ((head[0], "la_grad_w1"), (head[2], "la_grad_w2")):
        got, expected = layer.weight.grad.flatten(1).numpy(), file[key]
        assert np.abs(got - expected).max() <= 1e-4 * np.abs(expected).max()
    total = value_and_gradient(loss("sum"), file["la_maps"], dtype)
    assert_same(total, (file["paper_la_loss"], file["paper_la_grad"]), tolerance, 1e-4)
    assert total[0] / mean[0] == pytest.approx(n * out * h * w, rel=1e-6)
    assert total[0] / mean[0] == pytest.approx(float(file["la_paper_over_code"]), rel=1e-6)


def loop_disc(z: np.ndarray, y: list[int], tau: float, denominator: str) -> list[float]:
    """Eq. 6, one value an anchor, with loops over images and views."""
    z = z / np.linalg.norm(z, axis=-1, keepdims=True)
    n, k, _ = z.shape
    values = []
    for i in range(n):
        anchor = sum(z[i, t] for t in range(k)) / k
        seen = k if denominator == "all_views" else 1
        below = sum(math.exp(anchor @ z[m, t] / tau) for m in range(n) for t in range(seen))
        ratios = [math.log(math.exp(anchor @ z[j, t] / tau) / below)
                  for j in range(n) for t in range(k) if y[j] == y[i]]
        values.append(-sum(ratios) / len(ratios))
    return values


def loop_supcon(z: np.ndarray, y: list[int], tau: float) -> list[float]:
    z = z / np.linalg.norm(z, axis=-1, keepdims=True)
    values = []
    for i in range(len(z)):
        below = sum(math.exp(z[i] @ z[m] / tau) for m in range(len(z)) if m != i)
        ratios = [math.log(math.exp(z[i] @ z[j] / tau) / below) for j in range(len(z)) if j != i and y[j] == y[i]]
        values.append(-sum(ratios) / len(ratios) if ratios else 0.0)
    return values


def loop_alignment(e: np.ndarray) -> float:
    """Eq. 4-5."""
    n, k, _, h, w = e.shape
    total = 0.0
    for i in range(n):
        for p in range(h):
            for q in range(w):
                unit = [e[i, t, :, p, q] / np.linalg.norm(e[i, t, :, p, q]) for t in range(k)]
                total += sum(((unit[0] - unit[t]) ** 2).sum() for t in range(1, k)) / (k - 1)
    return total


@pytest.mark.parametrize("n", [1, 2, 5, 12])
@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize(("d", "classes", "tau"), [(2, 1, 0.5), (16, 4, 0.1), (7, 12, 0.07)])
def test_losses_are_the_loops(n, k, d, classes, tau):
    rng = np.random.default_rng([n, k, d])
    z, y = rng.normal(0, 3, (n, k, d)), rng.integers(0, classes, n).tolist()
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 2e-4)):
        for denominator in ("all_views", "raw_views"):
            got = averaged_anchor_loss(torch.tensor(z, dtype=dtype), torch.tensor(y), tau, denominator=denominator,
                                       reduction="none")
            np.testing.assert_allclose(got, loop_disc(z, y, tau, denominator), rtol=tolerance, atol=tolerance)
        views, labels = z.reshape(n * k, d), np.repeat(y, k)
        got = supcon_loss(torch.tensor(views, dtype=dtype), torch.tensor(labels), tau, reduction="none")
        expected = loop_supcon(views, labels.tolist(), tau)
        np.testing.assert_allclose(got, expected, rtol=max(tolerance, 1.1e-6), atol=tolerance)
        for reduction, numpy in (("sum", np.sum), ("mean", np.mean)):
            reduced = supcon_loss(torch.tensor(views, dtype=dtype), torch.tensor(labels), tau, reduction=reduction)
            assert float(reduced) == pytest.approx(numpy(expected), rel=max(tolerance, 1.1e-6), abs=tolerance * n * k)


@pytest.mark.parametrize(("n", "k", "d", "h", "w"), [(1, 2, 3, 1, 1), (3, 3, 5, 2, 4), (2, 4, 8, 7, 7)])
def test_local_alignment_is_the_loop(n, k, d, h, w):
    e = np.random.default_rng([n, k]).normal(0, 2, (n, k, d, h, w))
    expected = loop_alignment(e)
    assert float(local_alignment_loss(torch.tensor(e), "sum")) == pytest.approx(expected, rel=1e-9)
    assert float(local_alignment_loss(torch.tensor(e), "mean")) == pytest.approx(expected / (n * d * h * w), rel=1e-9)
    assert float(local_alignment_loss(torch.tensor(e).float(), "sum")) == pytest.approx(expected, rel=1e-5)


def test_a_beta_of_the_sums_is_converted_to_the_means():
    rng = np.random.default_rng(5)
    n, k, d, h, w = 4, 3, 6, 2, 3
    y, w_z = torch.tensor([0, 1, 0, 2]), torch.tensor(rng.normal(size=(d, 5)))

    def loss(reduction, form, beta):
        return lambda e: (averaged_anchor_loss(e.mean((3, 4)) @ w_z, y, reduction=reduction)
                          + beta * local_alignment_loss(e, form))

    e = rng.normal(size=(n, k, d, h, w))
    sums = value_and_gradient(loss("sum", "sum", 0.1), e)
    means = value_and_gradient(loss("mean", "mean", mean_form_beta(0.1, d, h, w)), e)
    assert_same((sums[0] / n, sums[1] / n), means, 1e-12, 1e-12)
    assert mean_form_beta(0.1, 128, 7, 7) == pytest.approx(627.2)


@st.composite
def batches(draw):
    n, k, d = draw(st.integers(1, 6)), draw(st.integers(1, 4)), draw(st.integers(2, 5))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    return torch.tensor(rng.normal(size=(n, k, d))), torch.tensor(rng.integers(0, 3, n)), rng


@given(batches(), st.sampled_from(["all_views", "raw_views"]))
def test_order_of_images_and_length_of_embeddings_do_not_matter(batch, denominator):
    z, y, rng = batch
    order = torch.tensor(rng.permutation(len(z)))
    lengths = torch.tensor(10.0 ** rng.uniform(-6, 6, z.shape[:2]))[..., None]
    each = averaged_anchor_loss(z, y, denominator=denominator, reduction="none")
    again = averaged_anchor_loss((z * lengths)[order], y[order], denominator=denominator, reduction="none")
    torch.testing.assert_close(again, each[order])
    rows, labels = z.flatten(0, 1), y.repeat_interleave(z.shape[1])
    mixed = torch.tensor(rng.permutation(len(rows)))
    torch.testing.assert_close(supcon_loss((rows * lengths.flatten(0, 1))[mixed], labels[mixed]),
                               supcon_loss(rows, labels))


@given(batches())
def test_order_of_views_does_not_matter(batch):
    z, y, _ = batch
    torch.testing.assert_close(averaged_anchor_loss(z.roll(1, dims=1), y), averaged_anchor_loss(z, y))


def test_the_raw_denominator_knows_which_view_is_raw():
    z, y = torch.tensor(np.random.default_rng(0).normal(size=(4, 3, 5))), torch.tensor([0, 1, 0, 2])
    first, last = (averaged_anchor_loss(v, y, denominator="raw_views") for v in (z, z.roll(1, dims=1)))
    assert abs(first - last) > 1e-3


@given(batches())
def test_bounds(batch):
    z, y, _ = batch
    n, k, _ = z.shape
    assert float(averaged_anchor_loss(z, y)) >= -1e-12
    assert float(supcon_loss(z.flatten(0, 1), y.repeat_interleave(k))) >= -1e-12
    maps = z[..., None, None].expand(-1, -1, -1, 2, 3)
    assert float(local_alignment_loss(maps, "sum")) <= 4 * n * 6 + 1e-9
    assert float(local_alignment_loss(maps[:, :1].expand(-1, k, -1, -1, -1), "sum")) == 0
    if k > 1:
        opposite = torch.stack([z[:, 0], *[-z[:, 0]] * (k - 1)], 1)[..., None, None]
        assert float(local_alignment_loss(opposite, "sum")) == pytest.approx(4 * n)


def losses_of(z, y):
    """Every loss of a batch (N, k, d), by name."""
    k = z.shape[1]
    maps = z[..., None, None]
    return {"disc": averaged_anchor_loss(z, y), "raw": averaged_anchor_loss(z, y, denominator="raw_views"),
            "supcon": supcon_loss(z.flatten(0, 1), y.repeat_interleave(k)), "supcon_raw": supcon_loss(z[:, 0], y),
            "sum": local_alignment_loss(maps, "sum"), "mean": local_alignment_loss(maps, "mean")}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("scale", [0.0, 1e-3, 1.0, 6e4])
@pytest.mark.parametrize(("n", "k", "classes"), [(1, 1, 1), (1, 3, 1), (2, 1, 2), (4, 3, 1), (4, 2, 4)])
def test_degenerate_batches_are_finite(n, k, classes, dtype, scale):
    y = torch.arange(n) % classes
    rng = np.random.default_rng([n, k])
    for values in (rng.choice([-1.0, 1.0], (n, k, 4)), np.ones((n, k, 4))):
        z = torch.tensor(scale * values, dtype=dtype, requires_grad=True)
        for name, value in losses_of(z, y).items():
            assert value.isfinite(), name
            (gradient,) = torch.autograd.grad(value, z)
            assert gradient.isfinite().all(), name


def test_cold_temperatures_are_finite():
    z, y = torch.randn(6, 3, 8, generator=torch.Generator().manual_seed(0)), torch.arange(6) // 2
    for loss in (lambda x: averaged_anchor_loss(x, y, 1e-4), lambda x: supcon_loss(x[:, 0], y, 1e-4)):
        value, gradient = value_and_gradient(loss, z, torch.float32)
        assert 0 < value < math.inf and np.isfinite(gradient).all()


def test_lonely_images_and_single_views():
    z = torch.tensor(np.random.default_rng(1).normal(size=(3, 1, 4)))
    y = torch.tensor([0, 1, 2])
    assert supcon_loss(z[:, 0], y) == 0  # no positives anywhere
    u = F.normalize(z[:, 0], dim=1)
    expected = F.cross_entropy(u @ u.T / 0.1, torch.arange(3))  # with itself as the only positive
    torch.testing.assert_close(averaged_anchor_loss(z, y), expected)
    assert local_alignment_loss(z[..., None, None]) == 0


def test_wrong_inputs_are_named():
    z, y = torch.zeros(4, 2, 3), torch.zeros(4, dtype=torch.int64)
    for loss, message in ((lambda: averaged_anchor_loss(z, y, denominator="raw"), "denominator"),
                          (lambda: averaged_anchor_loss(z, y, reduction="max"), "reduction"),
                          (lambda: averaged_anchor_loss(z, y[:2]), r"\(2,\)"),
                          (lambda: averaged_anchor_loss(z[:0], y[:0]), "at least one row"),
                          (lambda: supcon_loss(z, y), "2 dimensions"),
                          (lambda: supcon_loss(z[:, 0], y, 0.0), "temperature"),
                          (lambda: local_alignment_loss(z), r"\(N, k, D_e, h, w\)"),
                          (lambda: local_alignment_loss(z[..., None, None], "max"), "max")):
        with pytest.raises(ValueError, match=message):
            loss()


# --- two processes -----------------------------------------------------------------------------------------------

PARTS = {"equal": [3, 3], "unequal": [4, 2]}


def _objective(case: str, z, maps, y):
    """``z`` (N, k, d) and ``maps`` (N, k, D, h, w) of one process."""
    if case == "eq7":
        return averaged_anchor_loss(z, y, reduction="sum") + 0.1 * local_alignment_loss(maps, "sum")
    if case == "eq7_mean":
        return averaged_anchor_loss(z, y) + 30 * local_alignment_loss(maps, "mean")
    if case == "literal":
        return averaged_anchor_loss(z, y, denominator="raw_views", reduction="sum")
    if case == "supcon":
        return supcon_loss(z.flatten(0, 1), y.repeat_interleave(z.shape[1]))
    return supcon_loss(z[:, 0], y, reduction="sum")


CASES = [("eq7", "equal"), ("eq7", "unequal"), ("eq7_mean", "equal"), ("literal", "unequal"), ("supcon", "equal"),
         ("supcon", "unequal"), ("supcon_raw", "unequal")]


def _gradients(case: str, rows: slice, wrap=lambda module: module) -> tuple[float, torch.Tensor]:
    """The loss and the gradient of a projector's weights on these rows of a fixed batch of six images, two views."""
    rng = np.random.default_rng(7)
    x, y = torch.tensor(rng.normal(size=(6, 2, 5, 2, 2))), torch.tensor([0, 1, 0, 2, 1, 0])
    torch.manual_seed(3)
    module = wrap(nn.Sequential(nn.Conv2d(5, 7, 1), nn.ReLU(), nn.Conv2d(7, 4, 1)).double())
    maps = module(x[rows].flatten(0, 1)).unflatten(0, (-1, 2))
    loss = _objective(case, maps.mean((3, 4)), maps, y[rows])
    loss.backward()
    return loss.item(), torch.cat([p.grad.flatten() for p in module.parameters()])


def _process(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    starts = {name: [0, sizes[0], sum(sizes)] for name, sizes in PARTS.items()}
    ddp = nn.parallel.DistributedDataParallel
    found = {case: _gradients(case[0], slice(*starts[case[1]][rank : rank + 2]), ddp) for case in CASES}
    torch.save(found, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.skipif(not (torch.distributed.is_available() and torch.distributed.is_gloo_available()),
                    reason="this build of torch has no gloo, so no second process can be compared with the first")
def test_two_processes_give_the_gradients_of_one(tmp_path):
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_process, args=(rank, str(tmp_path)), daemon=True) for rank in (0, 1)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=180)
    alive = [worker for worker in workers if worker.is_alive()]
    for worker in alive:
        worker.kill()
    assert not alive and [worker.exitcode for worker in workers] == [0, 0]
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    for case in CASES:
        value, expected = _gradients(case[0], slice(None))
        for _, gradient in (first[case], second[case]):  # DistributedDataParallel has averaged them
            torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-12, msg=lambda m, c=case: f"{c}: {m}")
        assert (first[case][0] + second[case][0]) / 2 == pytest.approx(value, rel=1e-12)
    alone, whole = _gradients("supcon", slice(0, 3))[1], _gradients("supcon", slice(None))[1]
    assert (alone - whole).abs().max() > 1e-3  # half of the images alone give another gradient
