"""Domain generalisation: one algorithm a file, chosen by name with `make_algorithm`."""

from dataclasses import fields

from torch import Tensor, nn

from wbcrepro.domains.algorithm import Algorithm, Minibatch, Settings
from wbcrepro.domains.boda import BoDA, BoDASettings
from wbcrepro.domains.coral import CORAL, CORALSettings
from wbcrepro.domains.dann import DANN, DANNSettings
from wbcrepro.domains.erm import ERM
from wbcrepro.domains.mixstyle import MixStyle, MixStyleSettings
from wbcrepro.domains.mixup import Mixup, MixupSettings
from wbcrepro.domains.sada import SADA, SADASettings
from wbcrepro.domains.selfreg import SelfReg, SelfRegSettings
from wbcrepro.errors import UsageError

__all__ = ["ALGORITHMS", "Algorithm", "Minibatch", "Settings", "make_algorithm"]

ALGORITHMS: dict[str, tuple[type[Algorithm], type[Settings]]] = {
    "erm": (ERM, Settings),
    "dann": (DANN, DANNSettings),
    "coral": (CORAL, CORALSettings),
    "mixup": (Mixup, MixupSettings),
    "selfreg": (SelfReg, SelfRegSettings),
    "boda": (BoDA, BoDASettings),
    "mixstyle": (MixStyle, MixStyleSettings),
    "sada": (SADA, SADASettings),
}


def make_algorithm(name: str, network: nn.Module, counts: Tensor, **settings) -> Algorithm:
    """The algorithm ``name`` around ``network`` (a `Classifier`) for source counts (D, C); settings by keyword.

    Raises UsageError for an unknown name or setting, and says which there are.
    """
    if name not in ALGORITHMS:
        raise UsageError(f"unknown algorithm {name!r}; known: {', '.join(ALGORITHMS)}")
    algorithm, kind = ALGORITHMS[name]
    known = [field.name for field in fields(kind)]
    if unknown := sorted(set(settings) - set(known)):
        raise UsageError(f"algorithm {name!r} has no setting {', '.join(unknown)}; known: {', '.join(known)}")
    return algorithm(network, counts, kind(**settings))
