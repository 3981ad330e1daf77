"""What every domain-generalisation algorithm shares: settings, frozen layers, one optimiser step, prediction.

An algorithm sees one minibatch per source domain and the held-out domain never. A new one is a file with an
``objective``: see `erm`, the shortest, and `mixstyle`, the worked example of adding a method.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from wbcrepro.errors import UsageError, WbcreproError

Minibatch = tuple[Tensor, Tensor]
"""Images float32 (B,3,S,S) in [0, 1], augmented and not normalised, with labels int64 (B,), of one source domain."""

Passes = Callable[[], Iterable[tuple[int, Tensor, Tensor]]]
"""Called, it goes once over the whole source training set: (domain, images as in a minibatch, labels)."""


@dataclass(frozen=True)
class Settings:
    """What all algorithms share; the defaults are DomainBed's for pretrained backbones.

    ``freeze_batchnorm``: batch norms of the network stay in eval mode (their scale and shift still train).
    ``frozen_stages``: 0 trains everything, n freezes stem and first n stages. ``amp``: bfloat16 on CUDA only.
    """

    lr: float = 5e-5
    weight_decay: float = 0.0
    freeze_batchnorm: bool = True
    frozen_stages: int = 0
    amp: bool = False


class Algorithm(nn.Module):
    """Base of all algorithms; a subclass defines ``objective`` (or, where one loss is not enough, ``update``).

    ``network`` has ``normalise`` (images in 0..255), ``embed``, ``maps``, ``pool``, ``head``, ``stages()``,
    ``early_layers(n)`` and ``info.dim``: a `Classifier`. ``counts`` int64 (D, C): source training images of each
    (domain, class), 0 where there are none. A ``state_dict`` together with those of ``optimisers`` and torch's global
    generator (the only source of randomness here) is all that a run needs to go on bit by bit.
    """

    augmentation = "domainbed"
    """The kind of training augmentation that the loop applies: "domainbed", or "geometric" (crop and flip only)."""

    def __init__(self, network: nn.Module, counts: Tensor, settings: Settings):
        super().__init__()
        self.network, self.settings = network, settings
        self.register_buffer("counts", torch.as_tensor(counts, dtype=torch.int64))
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))  # updates done = index of the next one
        if self.counts.ndim != 2 or (self.counts < 0).any() or (self.counts.sum(1) == 0).any():
            raise UsageError(f"counts must be (domains, classes), not negative, no domain empty; got {counts}")
        for layer in network.early_layers(settings.frozen_stages):
            layer.requires_grad_(False)
        self.optimisers = {"network": self.adam(network.parameters())}

    def adam(self, parameters: Iterable[nn.Parameter], **options) -> torch.optim.Adam:
        """Adam with this algorithm's learning rate and weight decay over those parameters that are not frozen."""
        options = {"lr": self.settings.lr, "weight_decay": self.settings.weight_decay} | options
        return torch.optim.Adam([p for p in parameters if p.requires_grad], **options)

    def train(self, mode: bool = True) -> "Algorithm":
        """As ``nn.Module.train``; frozen stages and, if set, all batch norms of the network stay in eval mode."""
        super().train(mode)
        for layer in self.network.early_layers(self.settings.frozen_stages):
            layer.eval()
        if self.settings.freeze_batchnorm:
            for layer in self.network.modules():
                if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                    layer.eval()
        return self

    def inputs(self, x: Tensor) -> Tensor:
        """Images (N,3,S,S) in [0, 1], normalised for the network."""
        return self.network.normalise(255 * x)

    def autocast(self, x: Tensor):
        """bfloat16 where the settings ask for it and ``x`` is on CUDA; a CPU is several times slower with it."""
        return torch.autocast(x.device.type, torch.bfloat16, enabled=self.settings.amp and x.is_cuda)

    def features(self, x: Tensor) -> Tensor:
        """Pooled features (N, D) of images (N,3,S,S) in [0, 1]; never in half precision, so losses are not either."""
        with self.autocast(x):
            z = self.network.embed(self.inputs(x))
        return z.float() if z.dtype == torch.bfloat16 else z

    def logits(self, z: Tensor) -> Tensor:
        """Logits (N, C) of pooled features (N, D)."""
        return self.network.head(z)

    def predict(self, x: Tensor) -> Tensor:
        """Logits (N, C) of images (N,3,S,S) in [0, 1]; the caller sets eval mode and turns gradients off."""
        return self.logits(self.features(x))

    def before_step(self, step: int, passes: Passes) -> None:
        """Called before each update with its index: the place to refresh statistics of the whole training set."""

    @property
    def turn(self) -> str:
        """Which of ``optimisers`` the next update steps; only adversarial algorithms have more than one."""
        return "network"

    def objective(self, minibatches: list[Minibatch]) -> dict[str, Tensor]:
        """Scalars by name; ``"loss"`` is what is minimised, the others are reported beside it."""
        raise NotImplementedError

    def update(self, minibatches: list[Minibatch]) -> dict[str, float]:
        """One optimiser step on one minibatch per source domain; the terms of the objective as floats.

        Raises WbcreproError, before the weights change, where the loss is not finite.
        """
        self.train()
        values = self.descend(self.objective(minibatches), self.optimisers[self.turn])
        self.step += 1
        return values

    def descend(self, terms: dict[str, Tensor], optimiser: torch.optim.Optimizer) -> dict[str, float]:
        """Step along the gradient of ``terms["loss"]``; returns the terms, read from the device at once."""
        values = dict(zip(terms, torch.stack([v.detach().float() for v in terms.values()]).tolist(), strict=True))
        if not math.isfinite(values["loss"]):
            raise WbcreproError(f"The training loss of step {int(self.step)} is not finite: {values}. Next step: a "
                                f"lower learning rate (lr is {self.settings.lr}) or amp off.")
        optimiser.zero_grad(set_to_none=True)
        terms["loss"].backward()
        optimiser.step()
        return values


def join(minibatches: list[Minibatch]) -> tuple[Tensor, Tensor, Tensor]:
    """All images (N,3,S,S), labels (N,) and domain numbers (N,) of the minibatches, in order."""
    x, y = (torch.cat(parts) for parts in zip(*minibatches, strict=True))
    sizes = torch.tensor([len(labels) for _, labels in minibatches], device=y.device)
    return x, y, torch.arange(len(sizes), device=y.device).repeat_interleave(sizes, output_size=len(y))


def mean_over_domains(loss: Callable[[Tensor, Tensor], Tensor], logits: Tensor, minibatches: list[Minibatch]) -> Tensor:
    """The mean over domains of ``loss(logits, labels)`` of each; ``logits`` (N,C) in the order of `join`."""
    parts = logits.split([len(y) for _, y in minibatches])
    return torch.stack([loss(part, y) for part, (_, y) in zip(parts, minibatches, strict=True)]).mean()
