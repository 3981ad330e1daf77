"""Synthetic smears as an image source: manifest without drawing, images and ground truth on demand."""

import hashlib
from dataclasses import dataclass

import numpy as np
import pandas as pd

from wbcrepro.data.degrade import degrade
from wbcrepro.data.manifest import COLUMNS, Manifest
from wbcrepro.data.smears import optics, surroundings
from wbcrepro.data.smears.cell import Drawn, draw_cell
from wbcrepro.data.smears.morphology import CLASSES
from wbcrepro.data.smears.population import Individual, individual, population
from wbcrepro.data.smears.spec import DRAWING, SmearSpec
from wbcrepro.data.smears.stains import Laboratory, background, laboratory, stain_matrix, transmit
from wbcrepro.seeds import derive_seed

_FINEST = 0.27  # µm: coarser pixels are drawn twice as fine and averaged, so that granules and filaments survive


@dataclass(frozen=True)
class Truth:
    """What was drawn, at the image's resolution and before optics and noise.

    nucleus, cytoplasm: bool (H, W), disjoint. stain_matrix: (3, 2) unit columns, optical density of azure and eosin.
    densities: float32 (2, H, W). background: (3,) light of the empty slide, 0-255.
    """

    nucleus: np.ndarray
    cytoplasm: np.ndarray
    stain_matrix: np.ndarray
    densities: np.ndarray
    background: np.ndarray
    label: str
    patient: str
    domain: str


@dataclass(frozen=True)
class _Scene:
    densities: np.ndarray
    cell: np.ndarray
    nucleus: np.ndarray
    matrix: np.ndarray
    light: np.ndarray
    lab: Laboratory
    pixel: float
    fold: int  # drawn pixels for one of the image


class SmearSource:
    """An ``ImageSource`` that draws. An image depends on the recipe and its row only: any order, thread, process."""

    def __init__(self, spec: SmearSpec) -> None:
        self.spec = spec
        self._cells = sorted(population(spec), key=lambda cell: self._id(*cell))
        self.manifest = Manifest(spec.name, CLASSES, pd.DataFrame(map(self._row, self._cells), columns=list(COLUMNS)))

    def __len__(self) -> int:
        return len(self._cells)

    def read(self, row: int) -> np.ndarray:
        """uint8 (size, size, 3) RGB with the recipe's degradation."""
        return self.read_degraded(row, self.spec.degradation, self.spec.severity)

    def read_pristine(self, row: int) -> np.ndarray:
        """The image before any degradation."""
        scene = self._scene(row)
        rng = self._rng(row, "optics")
        size = scene.densities.shape[1]
        light = transmit(scene.densities, scene.matrix, scene.light) * optics.illumination(
            rng, size, scene.lab.vignetting
        )
        light = _shrink(optics.photograph(rng, light, scene.lab, scene.pixel), scene.fold)
        return optics.develop(rng, light, scene.lab)

    def read_degraded(self, row: int, kind: str = "mixed", severity: int = 1) -> np.ndarray:
        """The same cell on the same slide as ``read_pristine``, degraded."""
        return degrade(self.read_pristine(row), kind=kind, severity=severity, seed=self._seed(row, "degrade"))

    def truth(self, row: int) -> Truth:
        """The masks, densities and stains behind the image."""
        scene = self._scene(row)
        cell, nucleus = (_shrink(mask[None], scene.fold)[0] >= 0.5 for mask in (scene.cell, scene.nucleus))
        frame = self.manifest.frame.iloc[row]
        densities = _shrink(scene.densities, scene.fold)
        return Truth(
            nucleus,
            cell & ~nucleus,
            scene.matrix,
            densities,
            scene.light,
            frame["label"],
            frame["group"],
            frame["domain"],
        )

    def _id(self, domain: str, label: str, number: int, patient: int) -> str:
        return f"{domain}-{label}-{number:05d}"

    def _row(self, cell: tuple[str, str, int, int]) -> dict:
        domain, label, _, patient = cell
        name, size = self._id(*cell), self.spec.size
        return {
            "id": name, "path": "", "source_label": label, "label": label, "domain": domain,
            "group": f"{domain}-P{patient:03d}", "split": "", "width": size, "height": size, "mode": "RGB",
            "sha256": self._recipe(cell), "status": "ok", "reason": "",
        }  # fmt: skip

    def _recipe(self, cell: tuple[str, str, int, int]) -> str:
        """Hash of all that this image depends on (the other images' numbers are not among it)."""
        s = self.spec
        parts = (
            DRAWING,
            *cell,
            s.seed,
            s.size,
            s.field_um,
            s.cell_scale,
            s.stain_shift,
            s.patient_variation,
            s.red_cells,
        )
        parts += (s.degradation if s.severity else "", s.severity, s.spiky_ply, s.eccentric_pc)
        parts += ("lymphoid_pc",) if s.lymphoid_pc else ()
        return hashlib.sha256("\x1f".join(map(str, parts)).encode()).hexdigest()

    def _seed(self, row: int, purpose: str) -> int:
        return derive_seed("smears", self.spec.seed, *self._cells[row], purpose)

    def _rng(self, row: int, purpose: str) -> np.random.Generator:
        return np.random.default_rng(self._seed(row, purpose))

    def _scene(self, row: int) -> _Scene:
        spec = self.spec
        domain, label, _, patient = self._cells[row]
        lab, person = laboratory(domain), individual(spec, domain, patient)
        pixel = spec.field_um / lab.zoom / spec.size
        fold = 2 if pixel > _FINEST else 1
        size, pixel = spec.size * fold, pixel / fold
        drawn = draw_cell(
            self._rng(row, "cell"), label, size=size, pixel=pixel, scale=spec.cell_scale * person.cell_size,
            granularity=person.granularity, spiky_ply=spec.spiky_ply, eccentric_pc=spec.eccentric_pc,
            lymphoid_pc=spec.lymphoid_pc,
        )  # fmt: skip
        rng = self._rng(row, "slide")
        densities, cell, nucleus = _compose(rng, drawn, lab, person, size, pixel, spec.red_cells)
        gain = person.gain * np.exp(rng.normal(0, 0.07 * spec.patient_variation, 2)) * lab.strength
        densities *= gain.astype(np.float32)[:, None, None]
        matrix = stain_matrix(lab, spec.stain_shift, person.jitter)
        light = np.clip(background(lab, spec.stain_shift) * person.tint * rng.normal(1, 0.015), 40, 255)
        return _Scene(densities, cell, nucleus, matrix, light, lab, pixel, fold)


def _compose(rng, drawn: Drawn, lab: Laboratory, person: Individual, size: int, pixel: float, amount: float):
    """Lay the cell over its surroundings -> densities (2, size, size), coverage of cell and of nucleus (size, size)."""
    half = size * pixel / 2 + 3.6
    number = int(rng.poisson(amount * person.red_number * 0.45 * (2 * half / 7.2) ** 2)) if amount else 0
    hole = (*drawn.centre, drawn.radius)
    red = surroundings.red_cells(
        rng,
        size,
        pixel,
        number=number,
        scale=person.red_size,
        pallor=person.pallor,
        crenated=person.crenated,
        hole=hole,
    )
    densities = np.stack([np.float32(lab.red_cells[0]) * red, np.float32(lab.red_cells[1]) * red])
    if amount:
        densities += surroundings.platelets(rng, size, pixel, int(rng.poisson(0.6)))
        densities[0] += surroundings.deposit(rng, size, pixel, int(rng.poisson(1.5)))
    cell, nucleus = np.zeros((size, size), np.float32), np.zeros((size, size), np.float32)
    cell[drawn.frame.at], nucleus[drawn.frame.at] = drawn.cell, drawn.nucleus
    densities *= 1 - cell
    densities[(slice(None), *drawn.frame.at)] += drawn.densities
    return densities, cell, nucleus


def _shrink(planes: np.ndarray, fold: int) -> np.ndarray:
    """Average (C, H, W) over blocks of ``fold`` pixels."""
    if fold == 1:
        return planes
    channels, height, width = planes.shape
    return planes.reshape(channels, height // fold, fold, width // fold, fold).mean((2, 4), dtype=np.float32)
