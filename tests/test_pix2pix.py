"""The two networks against the published sizes, a plain transcription, and the patches that they see."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from wbcrepro.rescue.pix2pix import (
    PatchDiscriminator,
    UNetGenerator,
    discriminator_loss,
    generator_loss,
    levels_for,
    pad_to_multiple,
    patch_layers_for,
    receptive_field,
    to_network,
    to_pixels,
)


@pytest.fixture(autouse=True)
def one_thread_and_seed():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield
    torch.set_num_threads(threads)


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_sizes_of_the_published_networks():
    """54.414 M and 2.769 M are what the public implementation prints for unet_256 and its default discriminator."""
    with torch.device("meta"):
        assert count(UNetGenerator(8, 64)) == 54_413_955
        assert count(PatchDiscriminator(3, 64)) == 2_768_705
        # unet_128: one level of 512 channels less (two 4 x 4 convolutions, 512 and 1024 wide, and two batch norms)
        assert count(UNetGenerator(7, 64)) == 54_413_955 - 16 * (512 * 512 + 1024 * 512) - 2 * 2 * 512


@pytest.mark.parametrize("size, levels, layers", [(32, 5, 1), (64, 6, 1), (96, 7, 2), (128, 7, 2), (224, 8, 3),
                                                  (256, 8, 3), (368, 8, 3)])
def test_depth_follows_the_size(size, levels, layers):
    assert (levels_for(size), patch_layers_for(size)) == (levels, layers)


@pytest.mark.parametrize("levels, dropped", [(5, 0), (6, 1), (7, 2), (8, 3)])
def test_dropout_sits_in_the_inner_levels(levels, dropped):
    net = UNetGenerator(levels, ngf=2)
    where = [i for i, up in enumerate(net.ups) if any(isinstance(m, nn.Dropout) for m in up)]
    assert where == list(range(1, dropped + 1))


def transcription(x: torch.Tensor, state: dict) -> torch.Tensor:
    """A U-Net of 4 levels written out, in eval mode and with fresh statistics (mean 0, variance 1)."""
    def norm(value, name):
        scale = state[f"{name}.weight"] / (1 + 1e-5) ** 0.5
        return value * scale[None, :, None, None] + state[f"{name}.bias"][None, :, None, None]

    d0 = F.conv2d(x, state["downs.0.weight"], None, 2, 1)
    d1 = norm(F.conv2d(F.leaky_relu(d0, 0.2), state["downs.1.1.weight"], None, 2, 1), "downs.1.2")
    d2 = norm(F.conv2d(F.leaky_relu(d1, 0.2), state["downs.2.1.weight"], None, 2, 1), "downs.2.2")
    d3 = F.conv2d(F.leaky_relu(d2, 0.2), state["downs.3.1.weight"], None, 2, 1)
    u = norm(F.conv_transpose2d(d3.relu(), state["ups.0.1.weight"], None, 2, 1), "ups.0.2")
    u = norm(F.conv_transpose2d(torch.cat([d2, u], 1).relu(), state["ups.1.1.weight"], None, 2, 1), "ups.1.2")
    u = norm(F.conv_transpose2d(torch.cat([d1, u], 1).relu(), state["ups.2.1.weight"], None, 2, 1), "ups.2.2")
    last = torch.cat([d0, u], 1).relu()
    return F.conv_transpose2d(last, state["ups.3.1.weight"], state["ups.3.1.bias"], 2, 1).tanh()


def test_forward_equals_a_plain_transcription():
    net = UNetGenerator(4, ngf=3).eval()
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randn_like(p) * 0.3)
    x = torch.randn(2, 3, 32, 16)
    torch.testing.assert_close(net(x), transcription(x, net.state_dict()), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("height, width", [(64, 64), (96, 96), (90, 70), (33, 64), (17, 17)])
def test_any_size_comes_back_in_its_place(height, width):
    net = UNetGenerator(levels_for(min(height, width)), ngf=2).eval()
    x = torch.rand(1, 3, height, width) * 2 - 1
    out = net(x)
    assert out.shape == x.shape and out.abs().max() <= 1
    padded, (left, top) = pad_to_multiple(x, 2**net.levels)
    assert padded.shape[-1] % 2**net.levels == 0 and padded.shape[-2] % 2**net.levels == 0
    assert torch.equal(padded[..., top : top + height, left : left + width], x)
    torch.testing.assert_close(out, net(padded)[..., top : top + height, left : left + width])


def test_padding_mirrors_and_refuses_what_it_cannot_mirror():
    row = torch.arange(6.0).view(1, 1, 1, 6).repeat(1, 1, 8, 1)
    assert pad_to_multiple(row, 8)[0][0, 0, 0].tolist() == [1, 0, 1, 2, 3, 4, 5, 4]
    with pytest.raises(ValueError, match="too small.*at most 4"):
        UNetGenerator(6, ngf=2)(torch.zeros(1, 3, 16, 16))
    with pytest.raises(ValueError, match="2 levels or more"):
        UNetGenerator(1)


@pytest.mark.parametrize("layers, side", [(1, 16), (2, 34), (3, 70)])
def test_a_logit_sees_its_patch_and_nothing_else(layers, side):
    assert receptive_field(layers) == side
    net = PatchDiscriminator(layers, ndf=4).eval()
    x = torch.zeros(1, 3, 128, 128)
    judged = torch.randn(1, 3, 128, 128, requires_grad=True)
    logits = net(x, judged)
    assert logits.shape == (1, 1, 128 // 2**layers - 2, 128 // 2**layers - 2)
    middle = logits.shape[-1] // 2
    logits[0, 0, middle, middle].backward()
    seen = judged.grad.abs().sum((0, 1)) > 0
    rows, columns = seen.any(1).nonzero().flatten(), seen.any(0).nonzero().flatten()
    assert (len(rows), len(columns)) == (side, side) and rows[-1] - rows[0] == side - 1


def test_start_of_the_weights():
    net = UNetGenerator(6, ngf=32).requires_grad_(False)
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            assert float(module.weight.std()) == pytest.approx(0.02, rel=0.1)
        if isinstance(module, nn.BatchNorm2d):
            assert abs(module.weight.mean() - 1) < 0.02 and 0.01 < module.weight.std() < 0.03
    assert net.ups[-1][1].bias.abs().max() == 0


def test_losses_are_those_of_the_paper():
    real, fake = torch.randn(2, 1, 3, 3), torch.randn(2, 1, 3, 3)
    sigma = torch.sigmoid
    expected = -(torch.log(sigma(real)).mean() + torch.log(1 - sigma(fake)).mean()) / 2
    torch.testing.assert_close(discriminator_loss(real, fake), expected)
    restored, clean = torch.rand(2, 3, 4, 4), torch.rand(2, 3, 4, 4)
    loss, distance = generator_loss(fake, restored, clean, 100)
    torch.testing.assert_close(distance, (restored - clean).abs().mean())
    torch.testing.assert_close(loss, -torch.log(sigma(fake)).mean() + 100 * distance)
    far = discriminator_loss(torch.tensor([-200.0]), torch.tensor([200.0]))
    assert far == pytest.approx(200)  # where log(sigmoid) has underflowed


def test_pixels_to_the_network_and_back():
    images = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    inputs = to_network(images)
    assert inputs.min() == -1 and inputs.max() == 1
    assert torch.equal(to_pixels(inputs), images)
    assert to_pixels(torch.tensor([-1.0, 1.0, 0.999])).tolist() == [0, 255, 255]
