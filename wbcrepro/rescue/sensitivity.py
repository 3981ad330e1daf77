"""How much one threshold, or one image, moves the macro-F1 of suppress-and-rescue."""

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd

from wbcrepro.errors import UsageError
from wbcrepro.metrics import scores
from wbcrepro.rescue.morphology import Morphology
from wbcrepro.rescue.rules import Rules
from wbcrepro.rescue.suppress_rescue import suppress_and_rescue

THRESHOLDS = ("boost", "semantic", "cue_threshold")


def sensitivity(
    swin, semantic, morphology: Morphology, labels, rules: Rules, classes: Sequence[str],
    *, name: str, threshold: str, values: Iterable[float],
) -> pd.DataFrame:
    """One row a value of one ``threshold`` of the rare class ``name``, all others fixed.

    Columns: ``value``, ``macro_f1`` (over all C classes), ``f1`` (of the class), ``rescued`` and ``rescued_right``
    (images). Arguments as in `suppress_and_rescue`, with ``labels`` (N,) codes. Raises UsageError for another threshold
    or a disabled rule.
    """
    if threshold not in THRESHOLDS:
        raise UsageError(f"threshold must be one of {', '.join(THRESHOLDS)}, got {threshold!r}")
    if rules.of(name).disabled:
        raise UsageError(f"the rule of {name} is disabled: {rules.of(name).disabled}")
    code, rows, labels = list(classes).index(name), [], np.asarray(labels)
    for value in values:
        changed = rules.replace(name, **{threshold: float(value)})
        trace = suppress_and_rescue(swin, semantic, morphology, changed, classes)
        result = scores(labels, trace.final, len(classes))
        taken = (trace.reason == "rescued") & (trace.final == code)
        rows.append({"value": float(value), "macro_f1": result["macro_f1"], "f1": result["per_class"]["f1"][code],
                     "rescued": int(taken.sum()), "rescued_right": int((taken & (labels == code)).sum())})
    return pd.DataFrame(rows, columns=["value", "macro_f1", "f1", "rescued", "rescued_right"])


def one_image_effect(support: Sequence[int], classes: Sequence[str]) -> pd.DataFrame:
    """How much one image of each class moves macro-F1 when n = ``support`` (C,) images of the class are tested.

    Columns, fractions of macro-F1: ``first`` (0 -> 1 of n found, F1 = 2 / (n + 1)), ``mean`` (1 / n of the way from 0
    to 1), ``last`` (n - 1 -> n found, F1 rises by 1 / (2 n - 1)), ``false_alarm`` (one image of another class called
    this one while all n are found: F1 falls by 1 / (2 n + 1)). The image's own class loses or gains too, which is not
    counted. NaN for a class without test images.
    """
    n = np.asarray(support, dtype=np.float64)
    if n.shape != (len(classes),) or (n < 0).any():
        raise ValueError(f"expected {len(classes)} supports that are not negative, got {list(support)}")
    n_or_nan, c = np.where(n > 0, n, np.nan), len(classes)
    return pd.DataFrame({"class": list(classes), "support": n.astype(int), "first": 2 / (n_or_nan + 1) / c,
                         "mean": 1 / n_or_nan / c, "last": 1 / (2 * n_or_nan - 1) / c,
                         "false_alarm": 1 / (2 * n_or_nan + 1) / c})
