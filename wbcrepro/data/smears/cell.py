"""One white blood cell: draws its morphology from the class's ``Form`` and paints density of azure and eosin."""

from dataclasses import dataclass, replace

import numpy as np

from wbcrepro.data.smears.canvas import ANGLES, Window, around, polar, scatter, soft, texture, waves, window
from wbcrepro.data.smears.morphology import FORMS, OFFSETS, SPIKES, Form, Granules, Range

_DNA_AREA = 62.0  # µm²: a nucleus of this size has the nominal density
_DNA_POWER = 0.7  # how far density makes up for size: the amount of DNA is the same in all these cells
_NUCLEUS = (2.15, 0.35)  # density of (azure, eosin) in chromatin
_CYTOPLASM_GAP = 0.15  # µm of cytoplasm between nucleus and membrane
_LOOKS_LIKE = ("LY", "LY", "VLY")  # what a lymphoid PC is drawn as, in the shares of the rescue test sets


@dataclass(frozen=True)
class Drawn:
    """What a cell adds to the canvas, on its own window: densities (2, h, w), coverage of cell and nucleus (h, w)."""

    frame: Window
    densities: np.ndarray
    cell: np.ndarray
    nucleus: np.ndarray
    centre: tuple[float, float]
    radius: float


def _draw(rng: np.random.Generator, limits: Range) -> float:
    return float(rng.uniform(*limits))


def _outline(rng: np.random.Generator, form: Form, spikes: Range, neighbours: bool) -> np.ndarray:
    """Radius of the membrane over the angle, relative to the cell's radius (512 values)."""
    profile = 1 + waves(rng, np.arange(2, 7), _draw(rng, form.irregular))
    if form.scalloped and neighbours:  # a soft cell moulds itself round the red cells beside it
        for _ in range(rng.integers(0, 4)):
            profile -= (
                form.scalloped * rng.uniform(0.08, 0.24) * _bump(rng.uniform(-np.pi, np.pi), rng.uniform(0.25, 0.5))
            )
    height = _draw(rng, spikes)
    for _ in range(rng.integers(1, 6)):
        profile += height * rng.uniform(0.4, 1) * _bump(rng.uniform(-np.pi, np.pi), rng.uniform(0.07, 0.16))
    return profile.astype(np.float32)


def _bump(angle: float, width: float) -> np.ndarray:
    turn = (ANGLES - angle + np.pi) % (2 * np.pi) - np.pi
    return np.exp(-((turn / width) ** 2))


def _spine(rng: np.random.Generator, form: Form, radius: float) -> tuple[np.ndarray, np.ndarray]:
    """The nucleus as a thick curve: (K, 2) points in µm around their centroid and (K,) radii."""
    lobes = int(rng.integers(form.lobes[0], form.lobes[1] + 1))
    count = 7 * lobes + 4
    s = (np.arange(count) + 0.5) / count
    pinch, bend, length = _draw(rng, form.pinch), _draw(rng, form.bend), _draw(rng, form.length) * radius
    thickness = _draw(rng, form.thickness) * radius
    if form.pinch[0] > 0.7:  # segmented: lobes strung on filaments, smaller and more bent the more there are
        thickness *= (3 / (lobes + 0.5)) ** 0.4
        length, bend = length / radius * thickness * lobes, bend * lobes / 4
    turns = np.cumsum(rng.normal(0, form.wiggle, lobes))[np.minimum((s * lobes).astype(int), lobes - 1)]
    heading = rng.uniform(0, 2 * np.pi) + bend * (s - 0.5) + 0.7 * (turns if form.pinch[0] > 0.7 else _smooth(turns))
    points = np.cumsum(np.stack([np.sin(heading), np.cos(heading)], axis=1), axis=0) * length / count
    swell = np.abs(np.sin(np.pi * lobes * s)) if lobes > 1 else np.ones(count)
    size = np.exp(rng.normal(0, 0.12, lobes))[np.minimum((s * lobes).astype(int), lobes - 1)] if lobes > 1 else 1.0
    radii = np.maximum(thickness * (1 - pinch + pinch * swell) * size, 0.22)
    weights = radii**2
    return points - (points * weights[:, None]).sum(0) / weights.sum(), radii


def _smooth(values: np.ndarray) -> np.ndarray:
    return np.convolve(np.pad(values, 3, mode="edge"), np.full(7, 1 / 7), mode="valid")


def _nucleus(rng: np.random.Generator, form: Form, frame: Window, inside: np.ndarray, radius: float, at) -> np.ndarray:
    """Signed distance (µm, positive inside) to the nucleus's edge; ``inside`` is that to the cell's membrane."""
    points, radii = _spine(rng, form, radius)
    y, x = points[:, 0] + at[0], points[:, 1] + at[1]
    distance = np.full(frame.shape, -99, np.float32)
    for row, column, r in zip(y, x, radii, strict=True):  # few points; each is two small broadcasts
        square = np.square(frame.y - np.float32(row)) + np.square(frame.x - np.float32(column))
        np.maximum(distance, np.float32(r) - np.sqrt(square), out=distance)
    distance += texture(rng, frame.shape, frame.pixel, 2.6) * np.float32(form.lumps * radius)
    return np.minimum(distance, inside - np.float32(_CYTOPLASM_GAP))


def _chromatin(
    rng: np.random.Generator, form: Form, frame: Window, distance: np.ndarray, angle: np.ndarray, area: float
):
    """Density of (azure, eosin) in the nucleus, (2, h, w), not yet cut out."""
    grain, contrast = _draw(rng, form.grain), _draw(rng, form.contrast)
    field = 0.8 * texture(rng, frame.shape, frame.pixel, grain) + 0.5 * texture(
        rng, frame.shape, frame.pixel, 0.45 * grain
    )
    if form.clock_face:  # clumps below the membrane, like the figures of a dial
        spokes = np.cos(angle * rng.integers(6, 10) + rng.uniform(0, 6.28)) * np.clip(1.4 - distance, 0, 1)
        field = field + np.float32(2 * form.clock_face) * spokes.astype(np.float32)
    amount = 1 + np.float32(1.5 * contrast) * np.tanh(1.05 * field)
    amount += 0.14 * np.exp(-np.square((distance - 0.3) / 0.28))  # nuclear membrane
    amount -= np.float32(0.10) * np.clip(1 - distance, 0, 1)  # thinner towards the edge
    azure, eosin = _NUCLEUS
    strength = np.clip((_DNA_AREA / max(area, 1)) ** _DNA_POWER, 0.68, 1.4)
    densities = np.stack([amount * np.float32(azure * strength), amount * np.float32(eosin * strength)])
    number = int(rng.integers(form.nucleoli[0], form.nucleoli[1] + 1))
    rows, columns = np.nonzero(distance > 0.9)
    if number and len(rows):
        for choice in rng.integers(0, len(rows), number):
            place = (frame.y[rows[choice], 0], frame.x[0, columns[choice]])
            size = _draw(rng, form.nucleolus)
            r = np.sqrt(np.square(frame.y - place[0]) + np.square(frame.x - place[1])) / np.float32(size)
            pale = np.exp(-(np.square(r) ** 2))
            ring = np.exp(-np.square((r - 1.25) / 0.3))
            densities[0] *= 1 - 0.34 * pale + 0.10 * ring
            densities[1] *= 1 - 0.62 * pale + 0.10 * ring
    return densities


def _cytoplasm(rng, form: Form, frame: Window, membrane: np.ndarray, nucleus: np.ndarray, radius: float, at, centre):
    """Density of (azure, eosin) in the cytoplasm, (2, h, w), not yet cut out."""
    fine = texture(rng, frame.shape, frame.pixel, 0.55) * np.float32(0.09) + texture(
        rng, frame.shape, frame.pixel, 2.2
    ) * np.float32(0.08)
    depth = np.clip(membrane / np.float32(0.35 * radius), 0, 1)
    edge = _draw(rng, form.edge)
    profile = 0.86 + 0.2 * depth + fine + np.float32(edge) * np.exp(-np.square(membrane / np.float32(0.16 * radius)))
    hof = _draw(rng, form.hof)
    azure = np.float32(_draw(rng, form.azure)) * profile
    if hof > 0.02:  # the pale Golgi zone beside the nucleus, towards the middle of the cell
        away = np.asarray(centre) - np.asarray(at)
        norm = np.hypot(*away)
        unit = away / norm if norm > 0.25 else np.array([np.sin(a := rng.uniform(0, 6.28)), np.cos(a)])
        side = ((frame.y - at[0]) * np.float32(unit[0]) + (frame.x - at[1]) * np.float32(unit[1])) / np.float32(radius)
        zone = np.exp(-np.square((nucleus + np.float32(0.10 * radius)) / np.float32(0.20 * radius))) * np.clip(
            side * 2.2, 0, 1
        )
        azure = azure * (1 - np.float32(hof) * zone)
    return np.stack([azure, np.float32(_draw(rng, form.eosin)) * profile])


def _granules(
    rng: np.random.Generator, kind: Granules, frame: Window, radius: float, centre, gain: float
) -> np.ndarray:
    """Coverage (h, w) by one kind of granule, 0 to 1."""
    number = int(_draw(rng, kind.count) * gain)
    r = radius * np.sqrt(rng.random(number)) * 0.97
    angle = rng.uniform(0, 2 * np.pi, number)
    points = np.stack([centre[0] + r * np.sin(angle), centre[1] + r * np.cos(angle)], axis=1)
    spots = scatter(frame, points, rng.uniform(0.6, 1.5, number), _draw(rng, kind.radius))
    return 1 - np.exp(-1.3 * spots)


def draw_cell(
    rng: np.random.Generator, label: str, *, size: int, pixel: float, scale: float = 1.0, granularity: float = 1.0,
    spiky_ply: float = True, eccentric_pc: bool = True, lymphoid_pc: bool = False,
) -> Drawn:  # fmt: skip
    """Draw a cell of class ``label`` near the middle of a canvas of ``size`` pixels of ``pixel`` µm.

    ``scale`` multiplies its radius, ``granularity`` the number of its granules, ``spiky_ply`` the height of the
    projections of PLY. With a switch off, the cue is drawn from the range that the other classes share, so it says
    nothing about the class. ``lymphoid_pc`` draws PC as LY or VLY with the chromatin of PC.
    """
    form = FORMS[label]
    if label == "PC" and lymphoid_pc:
        other = FORMS[_LOOKS_LIKE[rng.integers(len(_LOOKS_LIKE))]]
        form = replace(other, grain=form.grain, contrast=form.contrast, clock_face=form.clock_face)
    radius = _draw(rng, form.radius) * scale
    centre = tuple(float(c) for c in rng.normal(0, 0.05 * radius, 2))
    spikes = SPIKES["baseline"]
    if label == "PLY" and spiky_ply:
        spikes = tuple(spiky_ply * height for height in SPIKES["PLY"])
    frame = window(size, pixel, centre, max(1.45, 1.1 + spikes[1]) * radius)
    distance, angle = polar(frame, centre)
    profile = _outline(rng, form, spikes, neighbours=True)
    membrane = around(profile * np.float32(radius), angle) - distance
    offset = form.offset
    if label in ("LY", "VLY", "PC"):
        offset = OFFSETS["PC"] if label == "PC" and eccentric_pc else OFFSETS["baseline"]
    shift, direction = _draw(rng, offset) * radius, rng.uniform(0, 2 * np.pi)
    at = (centre[0] + shift * np.sin(direction), centre[1] + shift * np.cos(direction))
    edge = max(pixel, 0.22)
    inside = _nucleus(rng, form, frame, membrane, radius, at)
    cell, nucleus = soft(membrane, edge), soft(inside, edge)
    chromatin = _chromatin(rng, form, frame, inside, angle, float(nucleus.sum()) * pixel**2 / scale**2)
    plasma = _cytoplasm(rng, form, frame, membrane, inside, radius, at, centre)
    covers = []
    for kind in form.granules:
        cover = _granules(rng, kind, frame, radius, centre, granularity)
        covers.append((kind, cover))
        plasma += cover * np.array([kind.azure, kind.eosin], np.float32)[:, None, None]
    number = int(round(_draw(rng, form.vacuoles)))
    if number:
        r, a = radius * rng.uniform(0.4, 0.95, number), rng.uniform(0, 2 * np.pi, number)
        points = np.stack([centre[0] + r * np.sin(a), centre[1] + r * np.cos(a)], axis=1)
        plasma *= np.clip(1 - 0.9 * scatter(frame, points, np.ones(number), _draw(rng, form.vacuole)), 0.1, 1)
    densities = plasma * (1 - nucleus) + chromatin * nucleus
    for kind, cover in covers:
        if kind.over_nucleus:
            densities += (
                nucleus * cover * (kind.over_nucleus * np.array([kind.azure, kind.eosin], np.float32))[:, None, None]
            )
    return Drawn(frame, densities * cell, cell, nucleus * cell, centre, radius)
