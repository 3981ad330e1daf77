"""Augmentation of uint8 image batches on their device, reproducible from (seed, epoch, index).

``randaugment`` is torchvision's RandAugment with its defaults (Cubuk et al. 2020; 14 operations, 2 of them in
sequence, magnitude 9 of 31 bins, nearest neighbour, black fill), as `decoupled` uses it. With one magnitude there are
only 23 distinct operations, so each is applied once to all images of the batch that drew it; every result equals that
of ``torchvision.transforms.functional`` on the same tensor.

Differs from torchvision's transform in: which image gets which operation is a hash of (seed, epoch, index, repeat), so
it does not depend on batches, workers or the order of an epoch.
"""

import functools
import math

import numpy as np
import torch
from torchvision.transforms import functional as tvf
from torchvision.transforms.autoaugment import RandAugment

from wbcrepro.augment_rescue import UNIFORMS, flips_rotation_jitter
from wbcrepro.inference.tta import DIHEDRAL, view
from wbcrepro.seeds import derive_seed

KINDS = ("none", "dihedral", "randaugment", "flips_rotation_jitter")
NUM_OPS, MAGNITUDE, BINS = 2, 9, 31
GEOMETRIC = ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate")


def augment(images: torch.Tensor, kind: str, *, seed: int, epoch: int, index: np.ndarray,
            repeat: np.ndarray | None = None) -> torch.Tensor:
    """Augmented copies of images uint8 (N,3,S,S), same shape and device.

    ``index`` (N,) names the images within the data set; ``repeat`` (N,) says how often each was already drawn in this
    epoch (oversampling), so that copies of a rare image differ. ``kind``: none, dihedral (one of 8 flips and quarter
    turns, square images), randaugment, or flips_rotation_jitter (that of the paper `rescue`).
    """
    if kind == "none":
        return images
    if kind == "dihedral":
        draws = random_integers((len(DIHEDRAL),), seed=seed, epoch=epoch, index=index, repeat=repeat)[0]
        return _apply(images, [functools.partial(view, name=name) for name in DIHEDRAL], draws)
    if kind == "randaugment":
        table = operations(*images.shape[-2:])
        names = list(table)
        sizes = (len(names), 2) * NUM_OPS
        draws = random_integers(sizes, seed=seed, epoch=epoch, index=index, repeat=repeat)
        for operation, sign in zip(draws[::2], draws[1::2], strict=True):
            variants = [variant for name in names for variant in table[name]]
            start = np.cumsum([0] + [len(table[name]) for name in names])[:-1]
            signed = np.array([len(table[name]) == 2 for name in names])
            images = _apply(images, variants, start[operation] + sign * signed[operation])
        return images
    if kind == "flips_rotation_jitter":
        draws = random_integers((2**32,) * UNIFORMS, seed=seed, epoch=epoch, index=index, repeat=repeat)
        return flips_rotation_jitter(images, draws / 2**32)
    raise ValueError(f"unknown augmentation {kind!r}; expected one of {', '.join(KINDS)}")


def random_integers(sizes: tuple[int, ...], *, seed: int, epoch: int, index: np.ndarray,
                    repeat: np.ndarray | None = None) -> np.ndarray:
    """Integers (len(sizes), N), row k uniform in [0, sizes[k]), each a hash of (seed, epoch, index, repeat, k)."""
    key = np.uint64(derive_seed(seed, "augment", epoch))
    counter = np.asarray(index).astype(np.uint64) << np.uint64(32)
    if repeat is not None:
        counter = counter | np.asarray(repeat).astype(np.uint64)
    state = _mix(_mix(counter) ^ key)
    rows = [_mix(state + np.uint64(0x9E3779B97F4A7C15 * (k + 1) % 2**64)) for k in range(len(sizes))]
    # 32 bits times a small size, high word: a bias below 2**-28
    return np.stack([((row >> np.uint64(32)) * np.uint64(size) >> np.uint64(32)).astype(np.int64)
                     for row, size in zip(rows, sizes, strict=True)])


def _mix(x: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64 (Steele et al. 2014): a bijection of 64-bit words that passes statistical tests."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def occurrences(order: np.ndarray) -> np.ndarray:
    """How often each entry of ``order`` (N,) has come before: [7, 3, 7, 7] gives [0, 0, 1, 2]."""
    by_value = np.argsort(order, kind="stable")
    values = order[by_value]
    first = np.flatnonzero(np.r_[True, values[1:] != values[:-1]]) if len(order) else np.zeros(0, np.int64)
    out = np.empty(len(order), dtype=np.int64)
    out[by_value] = np.arange(len(order)) - np.repeat(first, np.diff(np.r_[first, len(order)]))
    return out


def _apply(images: torch.Tensor, variants: list, choice: np.ndarray) -> torch.Tensor:
    """Apply variants[choice[i]] to image i, each variant once to all images that chose it.

    The batch is sorted by choice first: a group is then a slice, which costs a copy and no scattered writes.
    """
    order = np.argsort(choice, kind="stable")
    present, starts = np.unique(choice[order], return_index=True)
    images = images.index_select(0, torch.from_numpy(order).to(images.device))
    out = torch.empty_like(images)  # not in place: some variants are views of their input
    for variant, start, stop in zip(present, starts, [*starts[1:], len(order)], strict=True):
        out[start:stop] = variants[variant](images[start:stop])
    return out.index_select(0, torch.from_numpy(np.argsort(order)).to(images.device))


@functools.lru_cache(maxsize=8)
def operations(height: int, width: int) -> dict[str, tuple]:
    """RandAugment's operations at this size: name to (plus, minus), or (one,) where the sign does not matter.

    The magnitudes come from torchvision's own table, the arithmetic from its functional module.
    """
    space = RandAugment()._augmentation_space(BINS, (height, width))
    table = {}
    for name, (magnitudes, signed) in space.items():
        value = float(magnitudes[MAGNITUDE]) if magnitudes.ndim else 0.0
        values = (value, -value) if signed else (value,)
        if name in GEOMETRIC:
            table[name] = tuple(Gather(name, v, height, width) for v in values)
        else:
            table[name] = tuple(functools.partial(COLOUR[name], amount=v) for v in values)
    return table


class Gather:
    """A geometric operation with nearest neighbour, as a look-up of pixel positions made once per size.

    The positions are what torchvision's operation does to an image of pixel numbers (exact in float32 below 2**24).
    """

    def __init__(self, name: str, magnitude: float, height: int, width: int):
        numbers = torch.arange(1, height * width + 1, dtype=torch.float32).view(1, 1, height, width)
        source = geometric(numbers, name, magnitude).view(-1).long() - 1  # -1 where the source lies outside
        self.inside, self.source = source >= 0, source.clamp(min=0)

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        if images.device.type == "cpu":  # numpy looks bytes up eight times as fast as torch
            moved = torch.from_numpy(images.flatten(2).numpy().take(self.source.cpu().numpy(), axis=2))
            return (moved * self.inside.cpu()).view(images.shape)
        return self.on_device(images)

    def on_device(self, images: torch.Tensor) -> torch.Tensor:
        """The same with torch's indexing, for GPUs."""
        if self.source.device != images.device:
            self.source, self.inside = self.source.to(images.device), self.inside.to(images.device)
        return (images.flatten(2)[..., self.source] * self.inside).view(images.shape)


def geometric(images: torch.Tensor, name: str, magnitude: float) -> torch.Tensor:
    """torchvision's RandAugment geometry: shear about the corner, shift by whole pixels, rotation about the centre."""
    if name == "Rotate":
        return tvf.rotate(images, magnitude)
    degrees, shift = np.degrees(np.arctan(magnitude)), int(magnitude)
    settings = {
        "ShearX": {"shear": [degrees, 0.0], "translate": [0, 0], "center": [0, 0]},
        "ShearY": {"shear": [0.0, degrees], "translate": [0, 0], "center": [0, 0]},
        "TranslateX": {"shear": [0.0, 0.0], "translate": [shift, 0]},
        "TranslateY": {"shear": [0.0, 0.0], "translate": [0, shift]},
    }[name]
    return tvf.affine(images, angle=0.0, scale=1.0, **settings)


def equalize(images: torch.Tensor, amount: float = 0.0) -> torch.Tensor:
    """Histogram equalisation of uint8 (N,3,H,W), each channel alone; equals torchvision's, which loops over images."""
    channels = images.flatten(2).flatten(0, 1)
    if images.device.type == "cpu":  # bytes one channel after another, without copies to 64 bits
        histogram = torch.stack([torch.bincount(channel, minlength=256) for channel in channels])
        pairs = zip(equalize_levels(histogram).numpy(), channels.numpy(), strict=True)
        return torch.from_numpy(np.stack([levels.take(channel) for levels, channel in pairs])).view(images.shape)
    return equalize_on_device(images)


def equalize_on_device(images: torch.Tensor) -> torch.Tensor:
    """The same in a fixed number of kernels, for GPUs."""
    channels = images.flatten(2).flatten(0, 1)
    codes = channels.long() + 256 * torch.arange(len(channels), device=images.device)[:, None]
    histogram = torch.bincount(codes.view(-1), minlength=256 * len(channels)).view(-1, 256)
    return equalize_levels(histogram).view(-1)[codes].view(images.shape)


def equalize_levels(histogram: torch.Tensor) -> torch.Tensor:
    """New grey levels uint8 (M,256) from histograms (M,256); a channel of too few levels keeps its own."""
    last = 255 - (histogram != 0).flip(1).long().argmax(1)  # the highest level that occurs is left out of the step
    step = (histogram.sum(1, keepdim=True) - histogram.gather(1, last[:, None])) // 255
    levels = ((histogram.cumsum(1) - histogram + step // 2) // step.clamp(min=1)).clamp(0, 255)
    return torch.where(step > 0, levels, torch.arange(256, device=histogram.device)).to(torch.uint8)


def sharpness(images: torch.Tensor, amount: float) -> torch.Tensor:
    """torchvision's sharpening of uint8 (N,3,H,W) with sums of 16-bit integers in place of a grouped convolution.

    The blur is a 3x3 mean with a centre of 5 over 13, rounded (a 13th is never a tie); the rim is not blurred.
    """
    wide = images.to(torch.int16)
    rows = wide[..., :-2] + wide[..., 1:-1] + wide[..., 2:]
    total = (rows[..., :-2, :] + rows[..., 1:-1, :] + rows[..., 2:, :]).add_(wide[..., 1:-1, 1:-1], alpha=4)
    blurred, ratio = images.float(), 1 + amount
    blurred[..., 1:-1, 1:-1] = total.float().div_(13).round_()
    return (images * ratio).add_(blurred.mul_(1 - ratio)).clamp_(0, 255).to(torch.uint8)


def solarize(images: torch.Tensor, amount: float) -> torch.Tensor:
    """Invert the values that reach the threshold: 255 - x is x with all bits flipped; much faster than a selection."""
    return images ^ -(images >= math.ceil(amount)).view(torch.uint8)


COLOUR = {
    "Identity": lambda images, amount: images,
    "Brightness": lambda images, amount: tvf.adjust_brightness(images, 1 + amount),
    "Color": lambda images, amount: tvf.adjust_saturation(images, 1 + amount),
    "Contrast": lambda images, amount: tvf.adjust_contrast(images, 1 + amount),
    "Sharpness": sharpness,
    "Posterize": lambda images, amount: tvf.posterize(images, int(amount)),
    "Solarize": solarize,
    "AutoContrast": lambda images, amount: tvf.autocontrast(images),
    "Equalize": equalize,
}
