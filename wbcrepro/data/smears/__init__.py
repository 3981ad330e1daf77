"""Synthetic peripheral-blood smears, the embedded default: a mechanism to test methods on, not evidence about blood.

``SmearSpec`` says what to draw, ``SmearSource`` draws it and knows the truth behind every image.
"""

from wbcrepro.data.smears.morphology import CLASSES, GRANULOCYTES, LYMPHOID
from wbcrepro.data.smears.sheet import contact_sheet, smear_sheet
from wbcrepro.data.smears.source import SmearSource, Truth
from wbcrepro.data.smears.spec import WBCBENCH_COUNTS, SmearSpec
from wbcrepro.data.smears.stains import LABORATORIES, laboratory

__all__ = [
    "CLASSES", "GRANULOCYTES", "LABORATORIES", "LYMPHOID", "WBCBENCH_COUNTS", "SmearSource", "SmearSpec", "Truth",
    "contact_sheet", "laboratory", "smear_sheet",
]  # fmt: skip
