"""Stain: optical density, Macenko normalisation and its variant for Romanowsky stains."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from wbcrepro.errors import UsageError

if TYPE_CHECKING:
    import torch


def normaliser(name: str) -> Callable[[torch.Tensor], tuple[torch.Tensor, list[str]]] | None:
    """The stain step of a preprocessing by name: None for ``none``, else a function of uint8 (N, 3, H, W).

    The function returns the images and a status for each. ``macenko`` is the faithful method with nearest-rank
    percentiles (torchstain's torch backend, as in the released code); ``romanowsky`` is the variant of
    ``wbcrepro.stain.romanowsky``. Both normalise to the committed reference.
    """
    if name == "none":
        return None
    if name == "macenko":
        from wbcrepro.stain.macenko import macenko_normalise

        return macenko_normalise
    if name == "romanowsky":
        from wbcrepro.stain.romanowsky import romanowsky_normalise

        return romanowsky_normalise
    raise UsageError(f"unknown stain normalisation {name!r}; expected none, macenko or romanowsky")
