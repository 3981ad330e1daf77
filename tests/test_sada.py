"""SADA's two stages on a tiny network: every variant, the switch, resuming, and what it shares with ERM."""

import copy

import pytest
import torch
from torch import nn
from torchvision.transforms import functional as tvf

from wbcrepro.backbones import TINY, Classifier, build_backbone
from wbcrepro.domains.algorithm import Settings
from wbcrepro.domains.contrastive import averaged_anchor_loss, supcon_loss
from wbcrepro.domains.erm import ERM
from wbcrepro.domains.local_alignment import local_alignment_loss
from wbcrepro.domains.sada import JITTER, SADA, SADASettings
from wbcrepro.errors import UsageError
from wbcrepro.stain.colour_jitter import random_colour_jitter

CLASSES, SIZE = 3, 32
COUNTS = torch.tensor([[5, 4, 3], [6, 0, 2]])
RELEASED = {"contrastive": "supcon", "beta": 0.0, "reduction": "mean", "alignment": "mean", "projector": "mlp",
            "background": True, "jitter": "released", "separation": "released"}
VARIANTS = {
    "paper": {},
    "code": RELEASED,
    "code_with_beta": RELEASED | {"beta": 0.1},
    "m1": {"contrastive": "none", "beta": 0.0},
    "m2": {"beta": 0.0},
    "m3": {"contrastive": "supcon_raw", "beta": 0.0},
    "literal": {"denominator": "raw_views"},
    "only_alignment": {"contrastive": "none"},
    "supcon_raw_with_alignment": {"contrastive": "supcon_raw", "alignment": "mean"},
    "one_view": {"k": 1},
    "two_views": {"k": 2},
    "five_views": {"k": 5, "background": True},
    "jitter": {"jitter": "released"},
}


def network(seed: int = 0) -> Classifier:
    backbone, info = build_backbone(TINY, "random", seed=seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Classifier(backbone, nn.Linear(info.dim, CLASSES), info)


def cells(count: int, generator: torch.Generator, size: int = SIZE) -> torch.Tensor:
    """Images in [0, 1] of two made-up stains on white: discs of random places, sizes and colours, with grain."""
    axis = torch.linspace(-1, 1, size)
    density = torch.zeros(count, 2, size, size)
    for stain, radius in ((0, 0.3), (1, 0.7)):
        centre = 0.4 * torch.rand(count, 2, 1, 1, generator=generator) - 0.2
        away = (axis[:, None] - centre[:, :1]) ** 2 + (axis - centre[:, 1:]) ** 2
        density[:, stain] = (away[:, 0] < radius**2) * (0.6 + 0.8 * torch.rand(count, size, size, generator=generator))
    colours = torch.tensor([[0.7, 0.6, 0.3], [0.2, 0.8, 0.5]]) + 0.2 * torch.rand(count, 2, 3, generator=generator)
    return (-torch.einsum("nshw,nsc->nchw", density, colours)).exp()


def minibatches(sizes=(5, 4), seed: int = 0, size: int = SIZE) -> list:
    generator = torch.Generator().manual_seed(seed)
    return [(cells(n, generator, size), torch.randint(0, CLASSES, (n,), generator=generator)) for n in sizes]


def algorithm(stage1_steps: int = 2, **settings) -> SADA:
    torch.manual_seed(11)
    return SADA(network(), COUNTS, SADASettings(lr=1e-3, stage1_steps=stage1_steps, **settings))


def state(module: nn.Module) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in module.state_dict().items()}


def changed(before: dict, after: dict, prefix: str) -> bool:
    return any(not torch.equal(before[key], after[key]) for key in before if key.startswith(prefix))


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_learns_in_both_stages(name):
    sada = algorithm(**VARIANTS[name])
    stages = [2, 2, 2] if name == "m1" else [1, 1, 2]
    for step, stage in enumerate(stages):
        before = state(sada)
        assert sada.stage == stage
        values = sada.update(minibatches(seed=step))
        after = state(sada)
        assert all(torch.tensor(value).isfinite() for value in values.values())
        assert all(value.isfinite().all() for value in after.values())
        assert changed(before, after, "network.backbone")  # in stage 2 as well
        assert changed(before, after, "network.head") == (stage == 2)
        for part, key in ((sada.projector, "projector"), (sada.alignment, "alignment")):
            assert part is None or changed(before, after, key) == (stage == 1), key
        learns = {"contrastive": sada.projector, "alignment": sada.alignment}
        assert set(values) == {"loss"} | {key for key, part in learns.items() if part is not None and stage == 1}
    assert sada.eval().predict(minibatches()[0][0]).shape == (5, CLASSES)


@pytest.mark.parametrize("name", ["m1", "one_view", "paper"])
def test_the_classifier_is_trained_as_by_erm(name):
    """A run of stage 2 alone is ERM bit by bit; so is a run that has no loss for stage 1."""
    steps = 2 if name == "m1" else 0
    sada = algorithm(stage1_steps=steps, **VARIANTS[name])
    erm = ERM(network(), COUNTS, Settings(lr=1e-3)).train()
    for step in range(3):
        assert sada.update(minibatches(seed=step)) == erm.update(minibatches(seed=step))
    for key, value in erm.network.state_dict().items():
        assert torch.equal(sada.network.state_dict()[key], value), key


def test_after_stage_1_the_next_update_is_that_of_erm_with_the_same_optimiser_state():
    sada = algorithm(stage1_steps=2)
    for step in range(2):
        sada.update(minibatches(seed=step))
    erm = ERM(copy.deepcopy(sada.network), COUNTS, Settings(lr=1e-3)).train()
    names = {id(p): name for name, p in sada.network.named_parameters()}
    mine = dict(erm.network.named_parameters())
    for parameter, moments in sada.optimisers["network"].state.items():
        if id(parameter) in names:
            erm.optimisers["network"].state[mine[names[id(parameter)]]] = copy.deepcopy(moments)
    batch = minibatches(seed=9)
    assert sada.update(batch) == erm.update(batch)
    for key, value in erm.network.state_dict().items():
        assert torch.equal(sada.network.state_dict()[key], value), key


@pytest.mark.parametrize("name", ["paper", "code", "code_with_beta", "jitter"])
@pytest.mark.parametrize("stopped", [1, 2, 3])
def test_a_run_resumed_from_its_state_ends_with_the_same_bits(name, stopped):
    batches = [minibatches(seed=step) for step in range(4)]
    whole = algorithm(**VARIANTS[name])
    for step, batch in enumerate(batches):
        if step == stopped:
            kept = copy.deepcopy((whole.state_dict(), {k: o.state_dict() for k, o in whole.optimisers.items()},
                                  torch.get_rng_state()))
        whole.update(batch)
    resumed = SADA(network(seed=5), COUNTS, SADASettings(lr=1e-3, stage1_steps=2, **VARIANTS[name]))
    resumed.load_state_dict(kept[0])
    for key, optimiser in resumed.optimisers.items():
        optimiser.load_state_dict(kept[1][key])
    torch.set_rng_state(kept[2])
    assert resumed.stage == (1 if stopped < 2 else 2)
    for batch in batches[stopped:]:
        resumed.update(batch)
    for key, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[key], value), key


def test_equation_7_is_its_parts():
    """The objective against the network's own parts, called one by one."""
    sada = algorithm(beta=0.3)
    batch = minibatches()
    torch.manual_seed(3)
    terms = sada.objective(batch)
    torch.manual_seed(3)
    views = sada.views(torch.cat([x for x, _ in batch]))
    y = torch.cat([y for _, y in batch])
    z = torch.stack([sada.projector(sada.features(views[:, t])) for t in range(3)], 1)
    local = torch.stack([sada.alignment(sada.network.maps(sada.inputs(views[:, t]))) for t in range(3)], 1)
    disc = averaged_anchor_loss(z, y, 0.1, reduction="sum")
    aligned = local_alignment_loss(local, "sum")
    torch.testing.assert_close(terms["contrastive"], disc)
    torch.testing.assert_close(terms["alignment"], aligned)
    torch.testing.assert_close(terms["loss"], disc + 0.3 * aligned)
    raw = algorithm(contrastive="supcon_raw", beta=0.0)
    torch.testing.assert_close(raw.contrastive_loss(z, y), supcon_loss(z[:, 0], y, 0.1, reduction="sum"))
    code = algorithm(**RELEASED)
    expected = supcon_loss(z.flatten(0, 1), y.repeat_interleave(3), 0.1)
    torch.testing.assert_close(code.contrastive_loss(z, y), expected)


@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("separation", ["fast", "released"])
def test_views_are_other_stains_of_the_same_cells(background, separation):
    sada = algorithm(background=background, separation=separation)
    x = torch.cat([x for x, _ in minibatches((6, 6))])
    views = sada.views(x)
    assert views.shape == (12, 3, 3, SIZE, SIZE) and 0 <= views.min() and views.max() <= 1
    assert torch.equal(views[:, 0], x)
    assert ((views[:, 1:] - views[:, :1]).abs().amax((2, 3, 4)) > 0.01).float().mean() > 0.8
    jittered = algorithm(background=background, separation=separation, jitter="released")
    torch.manual_seed(4)
    plain = sada.views(x)
    torch.manual_seed(4)
    new = jittered.views(x)
    assert torch.equal(new[:, 0], x)  # the raw view is not jittered
    assert ((new[:, 1:] - plain[:, 1:]).abs().amax((2, 3, 4)) > 0.01).all()


@pytest.mark.parametrize("settings", [{"k": 1}, VARIANTS["m3"]])
def test_no_stains_are_separated_where_no_loss_needs_views(settings, monkeypatch):
    monkeypatch.setattr("wbcrepro.domains.sada.stain_views", None)
    sada = algorithm(**settings)
    assert sada.views(torch.rand(4, 3, SIZE, SIZE)).shape == (4, 1, 3, SIZE, SIZE)
    assert torch.tensor(sada.update(minibatches())["loss"]).isfinite()


@pytest.mark.parametrize("name", ["paper", "code_with_beta"])
@pytest.mark.parametrize(("sizes", "size"), [((1,), 32), ((1, 1), 32), ((2,), 48), ((7, 2), 40)])
def test_small_batches_and_any_size(name, sizes, size):
    sada = algorithm(**VARIANTS[name])
    for step in range(3):
        values = sada.update(minibatches(sizes, step, size))
        assert torch.tensor(list(values.values())).isfinite().all()


@pytest.mark.parametrize("blank", [0.0, 1.0, 0.5])
def test_blank_images_are_finite(blank):
    sada = algorithm(background=True)
    x = torch.full((4, 3, SIZE, SIZE), blank)
    values = sada.update([(x, torch.zeros(4, dtype=torch.int64))])
    assert torch.tensor(list(values.values())).isfinite().all()
    assert all(p.isfinite().all() for p in sada.parameters())


def test_batch_norms_do_not_move_and_nothing_else_is_frozen():
    sada = algorithm()
    before = state(sada.network)
    for step in range(3):
        sada.update(minibatches(seed=step))
    after = state(sada.network)
    buffers = [key for key in before if "running_" in key]
    assert buffers and all(torch.equal(before[key], after[key]) for key in buffers)
    assert all(not torch.equal(before[name], after[name]) for name, _ in sada.network.named_parameters())


def test_frozen_stages_stay():
    sada = algorithm(frozen_stages=2)
    frozen = [p for layer in sada.network.early_layers(2) for p in layer.parameters()]
    before = [p.clone() for p in frozen]
    for step in range(3):
        sada.update(minibatches(seed=step))
    assert frozen and all(torch.equal(a, b) for a, b in zip(before, frozen, strict=True))


@pytest.mark.parametrize(("settings", "message"), [
    ({"contrastive": "simclr"}, "contrastive must be one of disc, supcon"), ({"projector": "deep"}, "linear, mlp"),
    ({"denominator": "raw"}, "raw_views"), ({"alignment": "max"}, "sum, mean"), ({"reduction": "none"}, "reduction"),
    ({"jitter": "some"}, "released"), ({"separation": "slow"}, "fast"), ({"k": 0}, "k >= 1"),
    ({"beta": -0.1}, "beta >= 0"), ({"temperature": 0.0}, "temperature > 0")])
def test_wrong_settings_are_named(settings, message):
    with pytest.raises(UsageError, match=message):
        algorithm(**settings)


def test_colour_jitter_keeps_to_its_strengths():
    images = cells(40, torch.Generator().manual_seed(1))
    out = random_colour_jitter(images, JITTER, torch.Generator().manual_seed(2))
    again = random_colour_jitter(images, JITTER, torch.Generator().manual_seed(2))
    assert torch.equal(out, again) and 0 <= out.min() and out.max() <= 1
    assert torch.equal(random_colour_jitter(images, (0, 0, 0, 0), torch.Generator()).sub(images).abs() < 1e-5,
                       torch.ones_like(images, dtype=torch.bool))
    for position, (strength, middle, adjust) in enumerate((
            (0.2, 1, tvf.adjust_brightness), (0.25, 1, tvf.adjust_contrast), (0.25, 1, tvf.adjust_saturation),
            (0.15, 0, tvf.adjust_hue))):
        only = tuple(strength if n == position else 0.0 for n in range(4))
        out = random_colour_jitter(images, only, torch.Generator().manual_seed(position))
        factors = torch.linspace(middle - strength, middle + strength, 201).tolist()
        found = []
        for image, jittered in zip(images[:12], out, strict=False):
            errors = [float((adjust(image, factor) - jittered).abs().mean()) for factor in factors]
            found.append(errors.index(min(errors)))
            assert min(errors) < 0.002
        assert min(found) < 80 and max(found) > 120  # on both sides of doing nothing
