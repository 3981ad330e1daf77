"""Pix2Pix (Isola et al., CVPR 2017): a U-Net that maps degraded to clean images, and a discriminator of patches.

    G* = arg min_G max_D  E[log D(x, y)] + E[log(1 - D(x, G(x)))] + 100 E[|y - G(x)|]          (their Eq. 1, 3, 4)

x: the degraded, y: the clean image, float32 (N,3,H,W) in [-1, 1]. Layers, initialisation and losses are those that
the vendored implementation of `rescue` has by default (`unet_256`, a PatchGAN of 70 x 70, "vanilla" GAN): 54,413,955
and 2,768,705 parameters. G minimises -log D(x, G(x)), the usual non-saturating form; D's loss is halved.

Differs from that implementation in: `levels` follows the image's size instead of being a choice of three names, and an
image whose sides are no multiple of 2^levels is mirrored at its border up to the next one and cut out again, where the
released code resizes 224 px images to 256 and back. With 8 levels a 224 px image is padded to the same 256 px.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

MAX_LEVELS = 8
PATCH, PATCH_AT = 70, 256
"""The paper's discriminator judges patches of 70 px in images of 256."""


def levels_for(size: int) -> int:
    """Halvings from an image of ``size`` px to one pixel, at most 8: 256 and 224 px give 8, 128 and 96 7, 64 6."""
    return min(MAX_LEVELS, max(2, math.ceil(math.log2(size))))


class UNetGenerator(nn.Module):
    """The U-Net; (N,3,H,W) in [-1, 1] to the same shape and range, any H and W that can be mirrored to a multiple.

    ``levels`` convolutions of stride 2 (4 x 4; ngf, 2, 4, 8, 8, ... ngf channels), as many transposed ones back, and
    every one of these but the innermost sees the features of its own scale beside those from below. Batch norm
    everywhere but at both ends; dropout in those of the widest levels that upstream gives it to (levels - 5 of them).
    """

    def __init__(self, levels: int = MAX_LEVELS, ngf: int = 64, dropout: float = 0.5):
        super().__init__()
        if levels < 2:
            raise ValueError(f"a U-Net needs 2 levels or more, got {levels}")
        self.levels, self.ngf = levels, ngf
        width = [min(2**level, 8) * ngf for level in range(levels)]
        self.downs, self.ups = nn.ModuleList([nn.Conv2d(3, ngf, 4, 2, 1, bias=False)]), nn.ModuleList()
        for level in range(1, levels):
            layers = [nn.LeakyReLU(0.2), nn.Conv2d(width[level - 1], width[level], 4, 2, 1, bias=False)]
            innermost = level == levels - 1  # one pixel an image: nothing to normalise over but the batch
            self.downs.append(nn.Sequential(*layers, *([] if innermost else [nn.BatchNorm2d(width[level])])))
        for level in range(levels - 1, 0, -1):
            inputs = width[level] * (1 if level == levels - 1 else 2)
            layers = [nn.ReLU(), nn.ConvTranspose2d(inputs, width[level - 1], 4, 2, 1, bias=False)]
            dropped = 4 <= level < levels - 1
            self.ups.append(nn.Sequential(*layers, nn.BatchNorm2d(width[level - 1]),
                                          *([nn.Dropout(dropout)] if dropped else [])))
        self.ups.append(nn.Sequential(nn.ReLU(), nn.ConvTranspose2d(2 * ngf, 3, 4, 2, 1), nn.Tanh()))
        self.apply(initialise)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        x, (left, top) = pad_to_multiple(x, 2**self.levels)
        features = []
        for down in self.downs:
            x = down(x)
            features.append(x)
        x = self.ups[0](features.pop())
        for up in self.ups[1:]:
            x = up(torch.cat([features.pop(), x], 1))
        return x[..., top : top + height, left : left + width]


def pad_to_multiple(x: Tensor, multiple: int) -> tuple[Tensor, tuple[int, int]]:
    """Mirror (N,C,H,W) at its borders until both sides are multiples; also what was added (left, top).

    Raises ValueError where an image is too small to be mirrored that far.
    """
    height, width = x.shape[-2:]
    extra_h, extra_w = -height % multiple, -width % multiple
    if not extra_h and not extra_w:
        return x, (0, 0)
    left, top = extra_w // 2, extra_h // 2
    if extra_w - left >= width or extra_h - top >= height:
        raise ValueError(f"images of {height} x {width} px are too small for a network whose sides are multiples of "
                         f"{multiple}; choose fewer levels, at most {levels_for(min(height, width))}")
    return F.pad(x, (left, extra_w - left, top, extra_h - top), mode="reflect"), (left, top)


class PatchDiscriminator(nn.Module):
    """Logits (N,1,h,w), one for each overlapping patch, that ``judged`` (N,3,H,W) is the clean image behind ``x``.

    ``layers`` convolutions of stride 2 and two of stride 1; ``receptive_field(layers)`` is the patch's side.
    """

    def __init__(self, layers: int = 3, ndf: int = 64):
        super().__init__()
        width = [min(2**layer, 8) * ndf for layer in range(layers + 1)]
        modules = [nn.Conv2d(6, ndf, 4, 2, 1), nn.LeakyReLU(0.2)]
        for layer in range(1, layers + 1):
            stride = 2 if layer < layers else 1
            modules += [nn.Conv2d(width[layer - 1], width[layer], 4, stride, 1, bias=False),
                        nn.BatchNorm2d(width[layer]), nn.LeakyReLU(0.2)]
        self.net = nn.Sequential(*modules, nn.Conv2d(width[-1], 1, 4, 1, 1))
        self.apply(initialise)

    def forward(self, x: Tensor, judged: Tensor) -> Tensor:
        return self.net(torch.cat([x, judged], 1))


def receptive_field(layers: int) -> int:
    """Side in pixels of what one logit sees: 16, 34 and 70 for 1, 2 and 3 layers."""
    side = 7  # the two convolutions of stride 1
    for _ in range(layers):
        side = (side - 1) * 2 + 4
    return side


def patch_layers_for(size: int) -> int:
    """1 to 3 layers, whose patch is nearest to the paper's share of the image (70 of 256 px) on a log scale."""
    target = PATCH * size / PATCH_AT
    return min((1, 2, 3), key=lambda layers: abs(math.log(receptive_field(layers) / target)))


def initialise(module: nn.Module) -> None:
    """Upstream's start: convolutions N(0, 0.02), scales of batch norm N(1, 0.02), every bias 0."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
    if getattr(module, "bias", None) is not None:
        nn.init.zeros_(module.bias)


def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Half the sum of the cross-entropies of the logits of clean and of restored images."""
    return (F.softplus(-real).mean() + F.softplus(fake).mean()) / 2


def generator_loss(fake: Tensor, restored: Tensor, clean: Tensor, l1_weight: float = 100.0) -> tuple[Tensor, Tensor]:
    """-log D of the logits ``fake`` plus ``l1_weight`` times the L1 distance; also that distance alone, detached."""
    distance = F.l1_loss(restored, clean)
    return F.softplus(-fake).mean() + l1_weight * distance, distance.detach()


def to_network(images: Tensor) -> Tensor:
    """uint8 to float32 in [-1, 1]."""
    return images.float().div_(127.5).sub_(1)


def to_pixels(outputs: Tensor) -> Tensor:
    """[-1, 1] to uint8, rounded."""
    return outputs.add(1).mul_(127.5).round_().clamp_(0, 255).to(torch.uint8)
