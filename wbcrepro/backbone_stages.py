"""What is inside a backbone, the same for every family: its last feature maps, its pooling, its stages.

The families: ResNet, Swin and ConvNeXt of torchvision, EfficientNet (Lite0-2 and the tiny one of the tests) of timm,
and whatever else in timm has the same attributes.
"""

import torch
from torch import nn

from wbcrepro.errors import UsageError


def feature_maps(backbone: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """The last maps (N,K,h,w) before pooling; raises UsageError for a network that has none (ViT)."""
    if hasattr(backbone, "forward_features"):  # timm
        maps = backbone.forward_features(images)
        maps = maps.permute(0, 3, 1, 2) if maps.ndim == 4 and channels_last(backbone) else maps
    elif hasattr(backbone, "layer4"):
        maps = images
        for layer in (*_stem(backbone), backbone.layer1, backbone.layer2, backbone.layer3, backbone.layer4):
            maps = layer(maps)
    elif hasattr(backbone, "features"):
        maps = backbone.features(images)
        maps = backbone.permute(backbone.norm(maps)) if channels_last(backbone) else maps
    else:
        maps = None
    if maps is None or maps.ndim != 4:
        raise UsageError(f"{type(backbone).__name__} has no feature maps. Next step: use a ResNet, EfficientNet, "
                         "ConvNeXt or Swin.")
    return maps


def pool_maps(backbone: nn.Module, maps: torch.Tensor) -> torch.Tensor:
    """Pooled features (N,D) of what `feature_maps` gives."""
    if hasattr(backbone, "forward_head"):
        return backbone.forward_head(maps.permute(0, 2, 3, 1) if channels_last(backbone) else maps)
    pooled = backbone.avgpool(maps)
    return backbone.classifier(pooled) if hasattr(backbone, "classifier") else pooled.flatten(1)


def stages(backbone: nn.Module) -> list[nn.Module]:
    """The stages after the stem, first to last: 4 in ResNet, Swin and ConvNeXt, 5 or 7 in EfficientNet.

    Raises UsageError for a family whose stages are not known here.
    """
    if hasattr(backbone, "layer4"):
        return [backbone.layer1, backbone.layer2, backbone.layer3, backbone.layer4]
    if hasattr(backbone, "conv_stem"):
        return list(backbone.blocks)
    if hasattr(backbone, "features"):  # torchvision's Swin and ConvNeXt: stem, stage, downsampling, stage, ...
        return list(backbone.features)[1::2]
    if hasattr(backbone, "stem") and hasattr(backbone, "stages"):
        return list(backbone.stages)
    raise UsageError(f"The stages of {type(backbone).__name__} are not known. Next step: freeze no stages, or use a "
                     "ResNet, EfficientNet, ConvNeXt or torchvision Swin.")


def early_layers(backbone: nn.Module, n: int) -> list[nn.Module]:
    """The stem and the first ``n`` stages, with what stands between them; nothing for n = 0. UsageError beyond."""
    if n == 0:
        return []
    found = stages(backbone)
    if not 0 < n <= len(found):
        raise UsageError(f"{type(backbone).__name__} has {len(found)} stages; {n} cannot be frozen.")
    if hasattr(backbone, "features"):
        return list(backbone.features)[: 2 * n]
    return [*_stem(backbone), *found[:n]]


def _stem(backbone: nn.Module) -> list[nn.Module]:
    """What comes before the first stage, in order."""
    names = ("stem", "conv_stem", "conv1", "bn1", "act1", "relu", "maxpool")
    return [getattr(backbone, name) for name in names if hasattr(backbone, name)]


def channels_last(backbone: nn.Module) -> bool:
    """Whether the stages of a backbone put out (N,h,w,K) instead of (N,K,h,w)."""
    return hasattr(backbone, "permute") or getattr(backbone, "output_fmt", "NCHW") == "NHWC"
