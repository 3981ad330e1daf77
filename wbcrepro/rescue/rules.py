"""Rules of suppress-and-rescue: which classes are rare, what they are confused with, and every threshold, as data.

`RESCUE_PAPER` and `RESCUE_CODE` are the configuration of the paper `rescue` for prolymphocytes (PLY; the paper writes
"Polymphocytes", which is no cell) and plasma cells (PC). Any other rare classes and confusion pairs make rules of their
own. A threshold that is None is one that neither text nor code gives a value or a derivation for:
`wbcrepro.rescue.thresholds` fits it on out-of-fold predictions of the training side, and the rules travel as JSON
(``rules.json``).
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace

import numpy as np

from wbcrepro.errors import UsageError
from wbcrepro.rescue.mahalanobis import Gaussian
from wbcrepro.rescue.morphology import BOX_COLUMNS, CODE_COLUMNS, PAPER_COLUMNS

MODES = ("paper", "code")
CUES = ("spikiness", "mahalanobis", None)
POOLED = "*"
"""Key of the Gaussian for images whose standing label has none of its own."""


@dataclass(frozen=True)
class Box:
    """Per-feature bounds, inclusive: ``low`` and ``high`` (k,) of ``columns`` (k,)."""

    columns: tuple[str, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]

    def inside(self, features: np.ndarray) -> np.ndarray:
        """Bool (N,) of ``features`` (N, k); a NaN is outside."""
        return ((features >= np.array(self.low)) & (features <= np.array(self.high))).all(1)


@dataclass(frozen=True)
class Fitted:
    """How a threshold came about: its ``criterion`` in words, ``n`` cells behind it, its out-of-fold ``effect``."""

    threshold: str
    value: float | None
    criterion: str
    n: int
    effect: dict = field(default_factory=dict)


@dataclass(frozen=True)
class RareClass:
    """One rare class ``name``, the classes it is confused with (``against``), and its thresholds.

    ``boost``: B_c, a number, "log_ratio" or "log_literal" (`inverse_log_frequency`), or None = fit. ``semantic``: tau,
    in 0..1. ``cue``: "spikiness" (passes above ``cue_threshold``), "mahalanobis" (passes up to it; ``gaussians`` by
    standing label, and `POOLED`) or None. ``max_prob``, ``box_columns`` and ``boxes`` exist in the released code only.
    ``disabled``: why the class is never rescued; empty = it may be.
    """

    name: str
    against: tuple[str, ...]
    boost: float | str | None = None
    semantic: float | None = None
    cue: str | None = None
    cue_threshold: float | None = None
    columns: tuple[str, ...] = ()
    gaussians: dict[str, Gaussian] = field(default_factory=dict)
    max_prob: float | None = None
    box_columns: tuple[str, ...] = ()
    boxes: dict[str, Box] = field(default_factory=dict)
    disabled: str = ""
    fitted: tuple[Fitted, ...] = ()

    def __post_init__(self):
        if self.cue not in CUES:
            raise UsageError(f"{self.name}: cue must be one of {CUES}, got {self.cue!r}")
        if isinstance(self.boost, str) and self.boost not in BOOSTS:
            raise UsageError(f"{self.name}: boost must be a number, None or one of {', '.join(BOOSTS)}, got "
                             f"{self.boost!r}")
        if self.cue == "mahalanobis" and not self.columns:
            raise UsageError(f"{self.name}: a Mahalanobis distance needs columns")


@dataclass(frozen=True)
class Rules:
    """All rare classes in the order in which they are asked; ``mode`` "paper" (Algorithm 1) or "code" (released
    submit.py).

    ``accept``: morphology statuses whose measurements count; a cell of any other status is not measurable.
    """

    mode: str
    rare: tuple[RareClass, ...]
    accept: tuple[str, ...] = ("ok",)

    def __post_init__(self):
        if self.mode not in MODES:
            raise UsageError(f"mode must be one of {', '.join(MODES)}, got {self.mode!r}")
        if len({rule.name for rule in self.rare}) < len(self.rare) or not self.rare:
            raise UsageError("rules need at least one rare class, and one rule for each")

    @property
    def idle(self) -> bool:
        """Whether no rule is in force: then the phases change no label."""
        return all(rule.disabled for rule in self.rare)

    def of(self, name: str) -> RareClass:
        """The rule of one class. Raises UsageError if it has none."""
        for rule in self.rare:
            if rule.name == name:
                return rule
        raise UsageError(f"no rule for {name!r}; rare classes: {', '.join(rule.name for rule in self.rare)}")

    def replace(self, name: str, **changes) -> "Rules":
        """The same rules with some fields of one class changed."""
        changed = replace(self.of(name), **changes)
        return replace(self, rare=tuple(changed if rule.name == name else rule for rule in self.rare))

    def to_json(self) -> dict:
        """Plain numbers and text; `from_json` is the inverse."""
        value = asdict(self)
        for plain, rule in zip(value["rare"], self.rare, strict=True):
            plain["gaussians"] = {key: gaussian.to_json() for key, gaussian in rule.gaussians.items()}
        return json.loads(json.dumps(value, allow_nan=False))

    @classmethod
    def from_json(cls, value: dict) -> "Rules":
        """Rules from what `to_json` gave, possibly by way of a file."""
        return cls(value["mode"], tuple(_rare_class(rule) for rule in value["rare"]), tuple(value["accept"]))


def _rare_class(value: dict) -> RareClass:
    lists = ("against", "columns", "box_columns")
    return RareClass(**{
        **value,
        **{key: tuple(value[key]) for key in lists},
        "gaussians": {key: Gaussian.from_json(g) for key, g in value["gaussians"].items()},
        "boxes": {key: Box(*(tuple(box[part]) for part in ("columns", "low", "high")))
                  for key, box in value["boxes"].items()},
        "fitted": tuple(Fitted(**fitted) for fitted in value["fitted"]),
    })


def inverse_log_frequency(counts: Sequence[int], code: int, reading: str = "log_ratio") -> float:
    """Boost B_c of class ``code`` from training ``counts`` (C,), in two readings of "scale by inverse log-frequency".

    "log_literal": 1 / log(1 + n_c), which is *below* 1 from two images on, so that it would lower every rare class.
    "log_ratio": log(1 + n_max) / log(1 + n_c), relative to the largest class, never below 1. Raises ValueError for n_c
    = 0.
    """
    if reading not in BOOSTS:
        raise ValueError(f"reading must be one of {', '.join(BOOSTS)}, got {reading!r}")
    if counts[code] < 1:
        raise ValueError("a class without training images has no log-frequency")
    head = 1.0 if reading == "log_literal" else math.log1p(max(counts))
    return head / math.log1p(counts[code])


BOOSTS = ("log_ratio", "log_literal")

RESCUE_PAPER = Rules("paper", (
    RareClass("PLY", against=("LY",), boost="log_ratio", cue="spikiness"),
    RareClass("PC", against=("LY", "VLY"), boost="log_ratio", cue="mahalanobis", columns=PAPER_COLUMNS),
))
"""Algorithm 1 with its boosts; the text gives no value for tau, tau_S and tau_M."""

RESCUE_FITTED = Rules("paper", tuple(replace(rule, boost=None) for rule in RESCUE_PAPER.rare))
"""Algorithm 1 with fitted boosts as well."""

RESCUE_CODE = Rules("code", (
    RareClass("PLY", against=("LY",), boost=150.0, semantic=0.35, cue="spikiness", cue_threshold=1.35, max_prob=0.8),
    RareClass("PC", against=("LY", "VLY"), boost=3750.0, semantic=0.01, cue="mahalanobis", columns=CODE_COLUMNS,
              box_columns=BOX_COLUMNS),
))
"""The released constants. Its Gaussians and boxes come from an unpublished file; without them no PC is ever rescued."""


def check_rules(rules: Rules, classes: Sequence[str]) -> None:
    """Raise UsageError for a class that does not exist or a threshold that is still to be fitted.

    Missing Gaussians are an error in mode "paper"; in mode "code" they are the published state and reject every
    candidate.
    """
    for rule in rules.rare:
        unknown = [name for name in (rule.name, *rule.against) if name not in classes]
        if unknown:
            raise UsageError(f"the rule of {rule.name} names {', '.join(unknown)}; classes: {', '.join(classes)}")
        if rule.disabled:
            continue
        missing = [name for name in ("boost", "semantic") if not isinstance(getattr(rule, name), int | float)]
        incomplete = rule.cue == "spikiness" or (rule.cue == "mahalanobis" and rules.mode == "paper")
        if incomplete and rule.cue_threshold is None:
            missing.append("cue_threshold")
        if rule.cue == "mahalanobis" and rules.mode == "paper" and not rule.gaussians:
            missing.append("gaussians")
        if missing:
            raise UsageError(f"the rule of {rule.name} has no {', '.join(missing)}; fit_thresholds fills them in from "
                             "out-of-fold predictions")
