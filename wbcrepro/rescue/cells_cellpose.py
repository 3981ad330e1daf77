"""Cells by Cellpose (optional extra `cells`), with the same result as `wbcrepro.rescue.cells.segment`.

Two generations share the package's name and differ in what they are:

* version 3: ``cyto3``, a U-Net, with a second network that estimates the diameter; called by
  ``models.Cellpose(model_type="cyto3")``; ``eval`` takes ``channels`` and returns four things, masks first.
* version 4: ``cpsam``, Cellpose-SAM, a large vision transformer that needs no diameter; called by
  ``models.CellposeModel(pretrained_model="cpsam")``; the class ``Cellpose`` is gone, ``eval`` returns three things.

`rescue` cites Cellpose3; its released code calls ``cpsam`` and names version 4.0.8. Both generations fetch their
weights from the network at first use. cpsam is meant for a GPU.

Differs from the released code in: among Cellpose's masks, the one nearest the centre *that holds a nucleus* is the
cell (there, the nearest of all, which may be a red one); no mask is a status (there, the whole image is kept). The
nucleus is found inside the mask by colour, as in the default segmentation: Cellpose returns no nuclei.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from wbcrepro.errors import DataMissing
from wbcrepro.rescue.cells import Cell, SegmentSettings, cell_from_labels, check_image, unusable

INSTALL = "pip install 'wbcrepro[cells]' (Cellpose 4), or pip install 'cellpose<4' for the one that the paper cites"


@dataclass(frozen=True)
class CellposeSegmenter:
    """A loaded Cellpose; called with uint8 (H, W, 3) RGB it returns a :class:`Cell`. ``version`` is 3 or 4."""

    model: Any
    version: int
    settings: SegmentSettings = field(default_factory=SegmentSettings)

    def __call__(self, image: np.ndarray) -> Cell:
        """Segment one image; raises ``ValueError`` for a wrong dtype or shape only."""
        check_image(image)
        if status := unusable(image, self.settings):
            return Cell.empty(status, image.shape)
        return cell_from_labels(image, self.labels(image), self.settings)

    def labels(self, image: np.ndarray) -> np.ndarray:
        """Cellpose's own answer for uint8 (H, W, 3) RGB: int (H, W), 0 outside, 1, 2 ... in its masks."""
        if self.version == 3:  # [0, 0]: segment the grey image, there is no separate nuclear stain
            masks = self.model.eval(image, diameter=None, channels=[0, 0])[0]
        else:
            masks = self.model.eval(image, diameter=None, normalize=True)[0]
        return np.asarray(masks)


def load_cellpose(*, gpu: bool = False, settings: SegmentSettings | None = None) -> CellposeSegmenter:
    """The installed generation of Cellpose with the network of the table above.

    :raises DataMissing: Cellpose is not installed, or its weights are neither here nor within reach
    """
    try:
        from cellpose import models
    except ImportError as error:
        raise DataMissing(f"Cellpose cannot be imported ({error}). Next step: {INSTALL}; or use the default "
                          "segmentation, which needs neither Cellpose nor weights") from error
    version = 3 if hasattr(models, "Cellpose") else 4
    try:
        if version == 3:
            model = models.Cellpose(gpu=gpu, model_type="cyto3")
        else:
            model = models.CellposeModel(gpu=gpu, pretrained_model="cpsam")
    except OSError as error:  # urllib's errors are OSErrors too
        raise DataMissing(f"Cellpose {version} has no weights here and could not fetch them ({error}). Next step: load "
                          "it once on a machine with a network and copy ~/.cellpose/models") from error
    return CellposeSegmenter(model, version, settings or SegmentSettings())
