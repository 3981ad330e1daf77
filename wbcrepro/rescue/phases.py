"""What phases 2 and 3 of suppress-and-rescue say about each image, for one rare class, vectorised over N images."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from wbcrepro.rescue.mahalanobis import distance
from wbcrepro.rescue.morphology import Morphology
from wbcrepro.rescue.rules import POOLED, RareClass


@dataclass(frozen=True)
class Phase:
    """``passed`` bool, ``value``, ``limit`` and ``margin`` float64 (NaN = not measurable), ``reason`` text; each (N,).

    ``margin`` is the signed distance of the value to its limit, positive on the side that passes; ``reason`` is empty
    where the phase is passed.
    """

    passed: np.ndarray
    value: np.ndarray
    limit: np.ndarray
    margin: np.ndarray
    reason: np.ndarray


def reasons(n: int, *cases: tuple[np.ndarray, str]) -> np.ndarray:
    """Text (n,): the word of the first case (mask, word) that holds, empty where none does."""
    result = np.full(n, "", dtype="U16")
    for mask, word in reversed(cases):
        result[mask] = word
    return result


def semantic_phase(rule: RareClass, p_med: np.ndarray, *, strict: bool) -> Phase:
    """Phase 2: the second model's probability p_med (N,) of the class against tau; NaN = no embedding, never passes.

    Algorithm 1 passes at p >= tau (``strict=False``), the released code at p > tau.
    """
    p_med = np.asarray(p_med, dtype=np.float64)
    passed = p_med > rule.semantic if strict else p_med >= rule.semantic
    reason = reasons(len(p_med), (np.isnan(p_med), "no_embedding"), (~passed, "semantic"))
    return Phase(passed, p_med, np.full(len(p_med), rule.semantic), p_med - rule.semantic, reason)


def group_keys(keys: Sequence[str], standing: np.ndarray, classes: Sequence[str]) -> np.ndarray:
    """Text (N,): the standing label's name where it is among ``keys``, else `POOLED`."""
    by_class = np.array([name if name in keys else POOLED for name in classes])
    return by_class[standing]


def cue_values(rule: RareClass, morphology: Morphology, standing: np.ndarray, classes: Sequence[str]) -> np.ndarray:
    """The measurement of phase 3, float64 (N,): spikiness, or D_M to the Gaussian of each image's standing label."""
    if rule.cue == "spikiness":
        return morphology.select(["spikiness"])[:, 0]
    features = morphology.select(rule.columns)
    result = np.full(len(morphology), np.nan)
    keys = group_keys(tuple(rule.gaussians), standing, classes)
    for key, gaussian in rule.gaussians.items():
        rows = keys == key
        result[rows] = distance(gaussian, features[rows])
    return result


def in_box(rule: RareClass, morphology: Morphology, standing: np.ndarray, classes: Sequence[str]) -> np.ndarray:
    """Bool (N,): every feature within the box of the standing label's group; True for a rule without boxes."""
    if not rule.boxes:
        return np.ones(len(morphology), dtype=bool)
    result = np.zeros(len(morphology), dtype=bool)
    keys = group_keys(tuple(rule.boxes), standing, classes)
    for key, box in rule.boxes.items():
        rows = keys == key
        result[rows] = box.inside(morphology.select(box.columns)[rows])
    return result


def cue_phase(rule: RareClass, morphology: Morphology, standing: np.ndarray, classes, accept: Sequence[str]) -> Phase:
    """Phase 3: the cell itself. Spikiness passes above its threshold, D_M up to it and inside the box, if there is one.

    ``standing`` (N,) is the label an image keeps if it is not rescued; it chooses the Gaussian. A status outside
    ``accept`` or a NaN never passes ("unmeasurable").
    """
    n = len(morphology)
    nan = np.full(n, np.nan)
    if rule.cue is None:
        return Phase(np.ones(n, dtype=bool), nan, nan, nan, reasons(n))
    if rule.cue == "mahalanobis" and (not rule.gaussians or rule.cue_threshold is None):
        return Phase(np.zeros(n, dtype=bool), nan, nan, nan, np.full(n, "no_parameters"))
    trusted = np.isin(morphology.status, accept)
    value = np.where(trusted, cue_values(rule, morphology, standing, classes), np.nan)
    limit = np.full(n, float(rule.cue_threshold))
    margin = value - limit if rule.cue == "spikiness" else limit - value
    boxed = in_box(rule, morphology, standing, classes)
    right_side = margin > 0 if rule.cue == "spikiness" else margin >= 0
    reason = reasons(n, (np.isnan(value), "unmeasurable"), (~boxed, "box"), (~right_side, "cue"))
    return Phase(boxed & right_side, value, limit, margin, reason)
