"""Which training images an epoch draws: five samplers, exact at any size.

A weighted draw over N images is made in two exact steps, first the class (C probabilities), then a uniform index
within it, so neither the 2^24 categories of ``torch.multinomial`` nor float32 sums over N weights limit it. Class
probabilities (Kang et al., ICLR 2020, Eq. 1 and 2; n_c = training images of class c):

    instance        p_c ~ n_c, each image once an epoch, shuffled     (stage 1 of `decoupled`, Eq. 1)
    class_balanced  p_c ~ 1                                            (stage 2 of `decoupled`, weights 1/n)
    square_root     p_c ~ sqrt(n_c)                                    (in the released code of `decoupled`, unused)
    log1p           p_c ~ n_c / (log(1 + n_c) + 1e-5)                  (the released code of `rescue`; very mild)
    progressive     (1 - t) instance + t class_balanced, t from 0 to 1 over the training

All but ``instance`` draw with replacement. Generators may be numpy's or torch's; results are int64 numpy arrays.
"""

import numpy as np
import torch

from wbcrepro.errors import UsageError
from wbcrepro.seeds import derive_seed

KINDS = ("instance", "class_balanced", "square_root", "log1p", "progressive")
Generator = np.random.Generator | torch.Generator


def _per_image(counts: np.ndarray, kind: str) -> np.ndarray:
    """Weight of one image of each class, float64 (C,); 0 for a class without images."""
    n = np.asarray(counts, dtype=np.float64)
    safe = np.where(n > 0, n, 1)
    if kind == "instance":
        weight = np.ones_like(n)
    elif kind == "class_balanced":
        weight = 1 / safe
    elif kind == "square_root":
        weight = 1 / np.sqrt(safe)
    elif kind == "log1p":
        weight = 1 / (np.log1p(safe) + 1e-5)
    else:
        raise UsageError(f"unknown sampler {kind!r}; known: {', '.join(KINDS)}")
    return np.where(n > 0, weight, 0.0)


def sample_weights(labels: np.ndarray, kind: str) -> np.ndarray:
    """The weight of every image, float64 (N,), neither normalised nor clipped, as a WeightedRandomSampler takes it."""
    labels = np.asarray(labels).astype(np.int64, copy=False)
    return _per_image(np.bincount(labels), kind)[labels]


def class_shares(counts: np.ndarray, kind: str, progress: float = 0.0) -> np.ndarray:
    """Expected share of each class in the draws, float64 (C,), sum 1; ``progress`` in [0, 1] is for progressive."""
    n = np.asarray(counts, dtype=np.float64)
    if not n.sum() > 0:
        raise ValueError("no class has an image")
    if kind == "progressive":
        if not 0 <= progress <= 1:
            raise ValueError(f"progress must lie in [0, 1], got {progress}")
        return (1 - progress) * class_shares(n, "instance") + progress * class_shares(n, "class_balanced")
    mass = n * _per_image(n, kind)
    return mass / mass.sum()


def _uniform(num: int, generator: Generator) -> np.ndarray:
    """float64 in [0, 1) with 53 random bits from either library's generator."""
    if isinstance(generator, np.random.Generator):
        return generator.random(num)
    return torch.rand(num, dtype=torch.float64, generator=generator).numpy()


class ClassSampler:
    """Draws from one label array; sorts it once, so an epoch costs only its draws.

    ``labels`` (N,) integer codes >= 0. ``draw`` is the two-step draw of the module's docstring.
    """

    def __init__(self, labels: np.ndarray, kind: str):
        if kind not in KINDS:
            raise UsageError(f"unknown sampler {kind!r}; known: {', '.join(KINDS)}")
        labels = np.asarray(labels)
        if not len(labels):
            raise ValueError("cannot sample from no images")
        self.kind, self.counts = kind, np.bincount(labels)
        # numpy sorts 16-bit integers by radix: a tenth of the time at 10 million labels
        small = labels.astype(np.uint16) if len(self.counts) <= 65536 else labels
        self._order = np.argsort(small, kind="stable")
        self._start = np.concatenate([[0], np.cumsum(self.counts)[:-1]])

    def draw(self, num: int, generator: Generator, progress: float = 0.0) -> np.ndarray:
        """``num`` image indices with replacement, int64 (num,), a function of the generator's state alone."""
        present = np.flatnonzero(self.counts)
        edges = np.cumsum(class_shares(self.counts, self.kind, progress)[present])
        classes = present[np.searchsorted(edges[:-1], _uniform(num, generator), side="right")]
        within = (_uniform(num, generator) * self.counts[classes]).astype(np.int64)
        return self._order[self._start[classes] + within]


def instance_balanced(labels: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """Every image once, in an order that depends on (seed, epoch) alone; int64 (N,)."""
    return np.random.default_rng(derive_seed("instance", seed, epoch)).permutation(len(labels))


def class_balanced(labels: np.ndarray, num: int, generator: Generator) -> np.ndarray:
    """``num`` indices with every class equally likely; see the module's docstring."""
    return ClassSampler(labels, "class_balanced").draw(num, generator)


def square_root(labels: np.ndarray, num: int, generator: Generator) -> np.ndarray:
    """``num`` indices with classes drawn in proportion to the root of their counts."""
    return ClassSampler(labels, "square_root").draw(num, generator)


def log1p(labels: np.ndarray, num: int, generator: Generator) -> np.ndarray:
    """``num`` indices with the mild weights 1 / (log(1 + n) + 1e-5)."""
    return ClassSampler(labels, "log1p").draw(num, generator)


def progressive(labels: np.ndarray, num: int, generator: Generator, *, epoch: int, epochs: int) -> np.ndarray:
    """Epoch 0 of ``epochs`` is instance-balanced (with replacement), the last one class-balanced."""
    return ClassSampler(labels, "progressive").draw(num, generator, epoch / max(1, epochs - 1))


def epoch_indices(sampler: ClassSampler, seed: int, epoch: int, epochs: int) -> np.ndarray:
    """The indices of one epoch, as many as there are images; resumable, because only (seed, epoch) enters."""
    total = int(sampler.counts.sum())
    if sampler.kind == "instance":
        return instance_balanced(sampler._order, seed, epoch)
    generator = np.random.default_rng(derive_seed(sampler.kind, seed, epoch))
    return sampler.draw(total, generator, epoch / max(1, epochs - 1))
