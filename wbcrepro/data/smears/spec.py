"""The recipe of a synthetic data set: which cells, of which patients, in which laboratories, drawn how."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

from wbcrepro.data.smears.morphology import CLASSES, FORMS
from wbcrepro.data.smears.stains import LABORATORIES, laboratory
from wbcrepro.errors import UsageError

WBCBENCH_COUNTS: dict[str, int] = {
    "SNE": 17354, "LY": 10801, "MO": 3661, "BL": 2683, "EO": 1148, "MY": 588, "BA": 554, "BNE": 522, "VLY": 488,
    "MMY": 480, "PMY": 152, "PC": 90, "PLY": 14,
}  # fmt: skip
"""Labelled images of WBCBench 2026 (both training phases and the evaluation set), the most frequent class first."""

DRAWING = 2
"""Version of the drawing. Raise it whenever an image of an unchanged recipe changes: it enters every hash."""


@dataclass(frozen=True)
class SmearSpec:
    """All parameters of the generator; JSON-able. A cell depends on ``seed``, laboratory, patient, class and its number
    within class and laboratory, never on how many others there are.

    counts: images of each class over all laboratories.
    size: side of the image in pixels; field_um: the same in µm at zoom 1.
    domains: laboratories, or their number (the four named ones first, then others with the same stains).
    patients: number in each laboratory.
    priors: laboratory -> class -> relative frequency (1 where not named, 0 for a class that it lacks).
    confined: class -> number of patients over all laboratories that have such cells at all.
    cell_scale: multiplies the radius of every white cell. stain_shift: 0 for equal laboratories, 1 as named.
    patient_variation: of stain, light and cell size between patients and slides, 1 = as observed, 0 = none.
    red_cells: density of red cells, 1 as in a thin smear, 0 none.
    degradation, severity: applied by ``read``; severity 0 leaves the pristine image.
    spiky_ply, eccentric_pc: whether the two cues of the rescue rules carry information; a number for the first
        makes the projections of PLY so many times as high. Without ``eccentric_pc`` PC still differ from LY and VLY in
        the share and the staining of nucleus and cytoplasm.
    lymphoid_pc: PC have the size, shape and staining of LY (two of three) or VLY. Only their chromatin is their own:
        coarse clumps, like the figures of a dial.
    """

    counts: Mapping[str, int] = field(default_factory=lambda: dict.fromkeys(CLASSES, 10))
    size: int = 128
    field_um: float = 26.0
    seed: int = 0
    domains: tuple[str, ...] | int = 4
    patients: int = 12
    priors: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    confined: Mapping[str, int] = field(default_factory=lambda: {"PLY": 3})
    cell_scale: float = 1.0
    stain_shift: float = 1.0
    patient_variation: float = 1.0
    red_cells: float = 1.0
    degradation: str = "mixed"
    severity: int = 0
    spiky_ply: float = True
    eccentric_pc: bool = True
    lymphoid_pc: bool = False
    name: str = "smears"

    def __post_init__(self) -> None:
        names = list(LABORATORIES)
        domains = self.domains
        if isinstance(domains, int):
            domains = [names[i % 4] + ("" if i < 4 else f"#{i // 4 + 1}") for i in range(domains)]
        object.__setattr__(self, "domains", tuple(domains))
        named = [*self.counts, *self.confined, *(c for p in self.priors.values() for c in p)]
        if unknown := sorted(set(named) - set(CLASSES)):
            raise UsageError(f"smears: unknown classes {unknown}; expected some of {', '.join(CLASSES)}")
        # one canonical form, so that equal recipes have equal digests
        object.__setattr__(self, "counts", {name: int(self.counts[name]) for name in FORMS if self.counts.get(name)})
        object.__setattr__(self, "priors", {lab: dict(sorted(p.items())) for lab, p in sorted(self.priors.items())})
        object.__setattr__(self, "confined", dict(sorted(self.confined.items())))
        self._check()

    def _check(self) -> None:
        if not self.domains or len(set(self.domains)) != len(self.domains):
            raise UsageError(f"smears: domains must be one or more different laboratories, got {self.domains!r}")
        for lab in self.domains:
            laboratory(lab)
        if unknown := sorted(set(self.priors) - set(self.domains)):
            raise UsageError(f"smears: priors for {unknown}, which are not among the domains {self.domains}")
        for label in self.counts:
            if sum(self.prior(lab, label) for lab in self.domains) <= 0:
                raise UsageError(
                    f"smears: {self.counts[label]} cells of {label} asked for, but every laboratory's prior is 0"
                )
        if self.size < 16 or self.patients < 1 or min([0, *self.counts.values()]) < 0 or self.severity not in range(4):
            raise UsageError("smears: expected size >= 16, patients >= 1, counts >= 0 and severity 0, 1, 2 or 3")
        if not 0 <= self.spiky_ply <= 3:
            raise UsageError(f"smears: spiky_ply is off, on or a factor of at most 3, got {self.spiky_ply!r}")
        if min([1, *self.confined.values()]) < 1:
            raise UsageError(f"smears: a confined class needs at least one patient, got {self.confined}")

    def prior(self, domain: str, label: str) -> float:
        """Relative frequency of ``label`` in ``domain``."""
        return float(self.priors.get(domain, {}).get(label, 1.0))

    @property
    def digest(self) -> str:
        """sha256 of the recipe and of the version of the drawing."""
        text = json.dumps([DRAWING, asdict(self)], sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    @classmethod
    def balanced(cls, per_class: int, classes: tuple[str, ...] = CLASSES, **options) -> "SmearSpec":
        """The same number of every class."""
        return cls(counts=dict.fromkeys(classes, per_class), **options)

    @classmethod
    def longtail(
        cls, largest: int, ratio: float, *, smallest: int = 1, order=tuple(WBCBENCH_COUNTS), **options
    ) -> "SmearSpec":
        """An exponential profile over ``order``, from ``largest`` to ``largest / ratio``, never below ``smallest``."""
        steps = max(len(order) - 1, 1)
        counts = {label: max(round(largest * ratio ** (-i / steps)), smallest) for i, label in enumerate(order)}
        return cls(counts=counts, **options)

    @classmethod
    def wbcbench(cls, scale: float = 1.0, *, smallest: int = 1, **options) -> "SmearSpec":
        """The counts of WBCBench 2026 times ``scale``, never below ``smallest``."""
        return cls(counts={label: max(round(n * scale), smallest) for label, n in WBCBENCH_COUNTS.items()}, **options)
