"""What each of the 13 WBCBench classes looks like, as data. Ranges are drawn uniformly; lengths in radii.

The shapes follow the usual definitions (ICSH 2015, grading of peripheral blood cell features): a band has no filament
and its nucleus is never narrower than a third of its width; a metamyelocyte's indentation is less than half of the
nucleus; a myelocyte has none; a promyelocyte has azurophilic granules and nucleoli. Neighbouring classes have
neighbouring ranges that do not overlap in the defining quantity, so a label is never wrong, only hard to see.
"""

from dataclasses import dataclass, field

CLASSES = ("BA", "BL", "BNE", "EO", "LY", "MMY", "MO", "MY", "PC", "PLY", "PMY", "SNE", "VLY")
"""The 13 classes in the alphabetical order of WBCBench 2026."""

GRANULOCYTES = ("PMY", "MY", "MMY", "BNE", "SNE")
LYMPHOID = ("LY", "VLY", "PLY", "PC", "BL")

Range = tuple[float, float]


@dataclass(frozen=True)
class Granules:
    """A kind of granule: number in a cell, radius in µm, densities of the stains, how much it covers the nucleus."""

    count: Range
    radius: Range
    azure: float
    eosin: float
    over_nucleus: float = 0.0


@dataclass(frozen=True)
class Form:
    """The morphology of one class. ``radius`` in µm, other lengths as a fraction of it, angles in radians."""

    radius: Range
    # nucleus: a thick curve (spine) with a radius profile
    thickness: Range
    length: Range
    bend: Range
    lobes: tuple[int, int] = (1, 1)  # with pinch above 0.7 ``length`` is that of one lobe, in thicknesses
    pinch: Range = (0.0, 0.0)
    wiggle: float = 0.1
    lumps: float = 0.02
    offset: Range = (0.0, 0.14)
    # chromatin
    grain: Range = (0.4, 0.7)
    contrast: Range = (0.10, 0.22)
    nucleoli: tuple[int, int] = (0, 0)
    nucleolus: Range = (0.6, 0.9)
    clock_face: float = 0.0
    # cytoplasm
    azure: Range = (0.3, 0.6)
    eosin: Range = (0.1, 0.25)
    edge: Range = (0.0, 0.1)
    hof: Range = (0.0, 0.0)
    vacuoles: Range = (0.0, 0.0)
    vacuole: Range = (0.3, 0.6)
    granules: tuple[Granules, ...] = field(default=())
    # outline
    irregular: Range = (0.01, 0.04)
    scalloped: float = 0.0


_SPECIFIC = Granules((90, 220), (0.16, 0.26), 0.10, 0.22)
_SPECIFIC_FEW = Granules((30, 140), (0.16, 0.26), 0.12, 0.22)
_AZUROPHIL = Granules((45, 130), (0.22, 0.36), 0.8, 0.3, 0.45)
_AZUROPHIL_FEW = Granules((0, 40), (0.20, 0.32), 0.6, 0.25, 0.3)

FORMS: dict[str, Form] = {
    "PMY": Form(
        radius=(5.9, 7.9),
        thickness=(0.62, 0.74),
        length=(0.05, 0.35),
        bend=(0, 0.3),
        offset=(0.02, 0.22),
        grain=(0.35, 0.55),
        contrast=(0.08, 0.17),
        nucleoli=(1, 3),
        nucleolus=(0.55, 0.95),
        azure=(0.40, 0.68),
        eosin=(0.12, 0.28),
        hof=(0.0, 0.4),
        granules=(_AZUROPHIL,),
        irregular=(0.01, 0.08),
    ),
    "MY": Form(
        radius=(5.7, 7.7),
        thickness=(0.58, 0.70),
        length=(0.10, 0.45),
        bend=(0, 0.4),
        offset=(0.05, 0.25),
        grain=(0.45, 0.7),
        contrast=(0.12, 0.22),
        azure=(0.38, 0.65),
        eosin=(0.15, 0.30),
        hof=(0.0, 0.3),
        granules=(_AZUROPHIL_FEW, _SPECIFIC_FEW),
        irregular=(0.01, 0.08),
    ),
    "MMY": Form(
        radius=(5.7, 7.6),
        thickness=(0.42, 0.52),
        length=(0.62, 1.00),
        bend=(1.3, 2.3),
        offset=(0.04, 0.24),
        wiggle=0.15,
        grain=(0.5, 0.8),
        contrast=(0.14, 0.25),
        azure=(0.32, 0.55),
        eosin=(0.16, 0.32),
        granules=(Granules((0, 12), (0.2, 0.3), 0.5, 0.4), _SPECIFIC),
        irregular=(0.01, 0.08),
    ),
    "BNE": Form(
        radius=(5.7, 7.4),
        thickness=(0.27, 0.36),
        length=(1.35, 2.1),
        bend=(1.8, 4.0),
        lobes=(2, 3),
        pinch=(0.05, 0.50),
        wiggle=0.5,
        offset=(0.0, 0.16),
        grain=(0.55, 0.85),
        contrast=(0.16, 0.28),
        azure=(0.27, 0.47),
        eosin=(0.14, 0.30),
        granules=(_SPECIFIC,),
        irregular=(0.01, 0.08),
        lumps=0.03,
    ),
    "SNE": Form(
        radius=(5.7, 7.4),
        thickness=(0.27, 0.34),
        length=(2.2, 2.8),
        bend=(2.4, 6.0),
        lobes=(2, 5),
        pinch=(0.82, 0.97),
        wiggle=0.8,
        offset=(0.0, 0.16),
        grain=(0.55, 0.9),
        contrast=(0.16, 0.28),
        azure=(0.26, 0.46),
        eosin=(0.14, 0.30),
        granules=(_SPECIFIC,),
        irregular=(0.01, 0.08),
        lumps=0.03,
    ),
    "EO": Form(
        radius=(5.8, 7.4),
        thickness=(0.33, 0.42),
        length=(1.9, 2.35),
        bend=(1.5, 4.5),
        lobes=(2, 3),
        pinch=(0.82, 0.97),
        wiggle=0.5,
        offset=(0.05, 0.22),
        grain=(0.55, 0.9),
        contrast=(0.15, 0.25),
        azure=(0.18, 0.32),
        eosin=(0.25, 0.40),
        granules=(Granules((110, 230), (0.34, 0.48), 0.13, 0.70, 0.06),),
        irregular=(0.02, 0.06),
        lumps=0.03,
    ),
    "BA": Form(
        radius=(5.0, 6.8),
        thickness=(0.42, 0.56),
        length=(0.7, 1.4),
        bend=(0.6, 3.0),
        lobes=(2, 3),
        pinch=(0.25, 0.75),
        wiggle=0.5,
        offset=(0.0, 0.18),
        grain=(0.6, 1.0),
        contrast=(0.12, 0.22),
        azure=(0.28, 0.48),
        eosin=(0.15, 0.3),
        granules=(Granules((90, 220), (0.32, 0.55), 1.4, 0.4, 0.55),),
        irregular=(0.02, 0.07),
        lumps=0.04,
        vacuoles=(0, 3),
    ),
    "MO": Form(
        radius=(6.4, 8.8),
        thickness=(0.42, 0.58),
        length=(0.7, 1.4),
        bend=(0.8, 3.4),
        lobes=(2, 3),
        pinch=(0.0, 0.35),
        wiggle=0.8,
        offset=(0.02, 0.22),
        grain=(0.5, 0.9),
        contrast=(0.16, 0.28),
        azure=(0.40, 0.62),
        eosin=(0.10, 0.22),
        vacuoles=(0, 9),
        vacuole=(0.25, 0.7),
        granules=(Granules((20, 120), (0.14, 0.2), 0.18, 0.2),),
        irregular=(0.03, 0.10),
        lumps=0.06,
    ),
    "LY": Form(
        radius=(4.3, 6.6),
        thickness=(0.68, 0.80),
        length=(0.05, 0.35),
        bend=(0, 0.4),
        grain=(0.65, 1.0),
        contrast=(0.16, 0.28),
        azure=(0.38, 0.75),
        eosin=(0.05, 0.16),
        granules=(Granules((0, 6), (0.22, 0.34), 0.5, 0.5),),
        irregular=(0.01, 0.05),
    ),
    "VLY": Form(
        radius=(5.4, 8.2),
        thickness=(0.50, 0.64),
        length=(0.15, 0.60),
        bend=(0, 1.4),
        lumps=0.05,
        grain=(0.5, 0.85),
        contrast=(0.14, 0.26),
        azure=(0.40, 0.80),
        eosin=(0.05, 0.16),
        edge=(0.15, 0.6),
        nucleoli=(0, 1),
        nucleolus=(0.5, 0.8),
        vacuoles=(0, 4),
        vacuole=(0.25, 0.5),
        granules=(Granules((0, 10), (0.22, 0.34), 0.5, 0.5),),
        irregular=(0.04, 0.11),
        scalloped=0.7,
    ),
    "PLY": Form(
        radius=(5.0, 7.2),
        thickness=(0.64, 0.76),
        length=(0.05, 0.30),
        bend=(0, 0.4),
        grain=(0.5, 0.8),
        contrast=(0.12, 0.22),
        nucleoli=(1, 1),
        nucleolus=(0.85, 1.3),
        azure=(0.40, 0.75),
        eosin=(0.05, 0.16),
        irregular=(0.01, 0.05),
    ),
    "PC": Form(
        radius=(5.0, 7.6),
        thickness=(0.48, 0.60),
        length=(0.05, 0.40),
        bend=(0, 0.3),
        offset=(0.0, 0.14),
        grain=(0.8, 1.15),
        contrast=(0.24, 0.36),
        clock_face=0.5,
        azure=(0.55, 0.95),
        eosin=(0.12, 0.26),
        hof=(0.45, 0.85),
        vacuoles=(0, 2),
        irregular=(0.02, 0.06),
    ),
    "BL": Form(
        radius=(5.2, 8.2),
        thickness=(0.72, 0.84),
        length=(0.05, 0.35),
        bend=(0, 0.8),
        grain=(0.26, 0.42),
        contrast=(0.07, 0.14),
        nucleoli=(1, 4),
        nucleolus=(0.5, 0.95),
        azure=(0.45, 0.85),
        eosin=(0.05, 0.18),
        lumps=0.03,
        irregular=(0.01, 0.05),
    ),
}

SPIKES: dict[str, Range] = {"baseline": (0.0, 0.12), "PLY": (0.05, 0.31)}
"""Height of the projections of the outline: with the switch on PLY has its own range, with it off the baseline."""

OFFSETS: dict[str, Range] = {"baseline": (0.0, 0.14), "PC": (0.04, 0.22)}
"""Distance from the centre of the nucleus to that of the cell, by the same rule for PC."""
