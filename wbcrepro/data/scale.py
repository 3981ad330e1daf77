"""A common physical scale: the same number of cell diameters across every image, whatever the camera and the crop.

The laboratories' images show fields of 1.4 to 2.6 cell diameters (medians), so a resize to one size gives a network
cells of different sizes, and size alone tells the laboratory (the poster `boda` lists micrometres per pixel that differ
by 38 % and says nothing of a correction). Here the centre of each image is cropped to ``field`` cell diameters of its
domain, one number of pixels a domain; `pixels` then resizes. Differences of size between cells of one domain stay.

Cell diameter of one image (`cell_diameter`), after shrinking to 112 pixels:

1. optical density relative to the background, the per-channel median of the brightest 40 % of pixels;
2. nucleus: Otsu's threshold on the density of red and green (eosin and yellow light change blue), then the connected
   component with the most weight near the centre;
3. from its centroid, 72 rays; on each, beyond the nucleus, the first point whose distance from the background in
   density falls below 12 % of the nucleus's, or below 1.5 times the median of the background pixels (faint stains);
4. twice the median length of the rays. The median ignores red cells that touch less than half of the outline.

A domain's diameter is the mean over classes of the median over images: classes differ in size and in number.
`scale.yml` has the numbers that were measured, and how well this does where masks are known.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import yaml
from PIL import Image
from scipy import ndimage

from wbcrepro.data.benchmarks import Benchmark
from wbcrepro.data.longtail import hash_order
from wbcrepro.data.smears import laboratory
from wbcrepro.errors import DataMissing, UsageError

SCALES = ("common", "native")
_SIDE = 112  # of the shrunken image, pixels
_BRIGHT = 60  # percentile of brightness from which a pixel counts as background
_EDGE, _NOISE = 0.12, 1.5
_RAYS = np.linspace(0, 2 * np.pi, 72, endpoint=False)


@cache
def measured() -> dict:
    """``scale.yml``: ``field`` in cell diameters, ``images_per_class``, and for each domain what is known of it."""
    return yaml.safe_load(Path(__file__).with_name("scale.yml").read_text(encoding="utf-8"))


def cell_diameter(image: np.ndarray) -> float:
    """Diameter in pixels of the cell at the centre of uint8 (H, W, 3); NaN where no cell stands out."""
    height, width = image.shape[:2]
    factor = max(height, width) / _SIDE
    size = (max(round(width / factor), 1), max(round(height / factor), 1))
    small = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BOX), dtype=float)
    bright = small.sum(2) >= np.percentile(small.sum(2), _BRIGHT)
    density = -np.log((small + 1) / 256)
    density -= np.median(density[bright], axis=0)
    nucleus = _central_dark(ndimage.gaussian_filter(density[..., :2].mean(2), 1))
    if nucleus is None:
        return float("nan")
    distance = np.linalg.norm(ndimage.gaussian_filter(density, (0.7, 0.7, 0)), axis=2)
    edge = max(_EDGE * np.median(distance[nucleus]), _NOISE * np.median(distance[bright]))
    return float(2 * np.median(_ray_lengths(distance < edge, distance, edge, nucleus)) * factor)


def _central_dark(dark: np.ndarray) -> np.ndarray | None:
    """Mask (h, w) of the dark component with the most weight near the centre, or None."""
    y, x = (np.arange(n) - (n - 1) / 2 for n in dark.shape)
    radius = np.hypot(y[:, None], x[None, :]) / min(dark.shape)
    central = dark[radius < 0.35]
    if np.ptp(central) < 0.02:  # 2 % of the light: nothing there
        return None
    components, number = ndimage.label(dark > _otsu(central))
    if not number:
        return None
    weight = ndimage.sum_labels(np.exp(-((radius / 0.25) ** 2)), components, np.arange(1, number + 1))
    return components == 1 + int(np.argmax(weight))


def _otsu(values: np.ndarray, bins: int = 128) -> float:
    """The threshold with the largest variance between the two sides (Otsu 1979)."""
    counts, edges = np.histogram(values, bins)
    centres = (edges[1:] + edges[:-1]) / 2
    below, mass = np.cumsum(counts)[:-1], np.cumsum(counts * centres)[:-1]
    between = (mass - below * values.mean()) ** 2 / np.maximum(below * (values.size - below), 1)
    return float(centres[np.argmax(between)])


def _ray_lengths(background: np.ndarray, distance: np.ndarray, edge: float, nucleus: np.ndarray) -> np.ndarray:
    """Length (72,) of each ray from the nucleus's centroid to the first background beyond the nucleus, in pixels."""
    centre = ndimage.center_of_mass(nucleus)
    length = np.arange(0, 0.5 * max(nucleus.shape), 0.5)
    points = [c + length[:, None] * f(_RAYS) for c, f in zip(centre, (np.sin, np.cos), strict=True)]
    outside = ndimage.map_coordinates(distance, points, order=1, cval=0) < edge  # beyond the image is background
    inside = ndimage.map_coordinates(nucleus.astype(float), points, order=1) > 0.5
    last = np.where(inside.any(0), len(length) - 1 - np.argmax(inside[::-1], axis=0), 0)
    outside &= np.arange(len(length))[:, None] > last
    return np.where(outside.any(0), length[np.argmax(outside, axis=0)], length[-1])


def measure_diameters(benchmark: Benchmark, domain: str, images_per_class: int | None = None) -> dict[str, float]:
    """Median diameter in pixels of each class of a domain, from the first images of each class in hash order.

    :raises DataMissing: no cell stands out in any of them
    """
    number = images_per_class or measured()["images_per_class"]
    table = benchmark.table[benchmark.table["domain"] == domain]
    found = {}
    for code, name in enumerate(benchmark.classes):
        own = table[table["label"] == code]
        chosen = own["item"].to_numpy()[hash_order(own["id"].to_list(), "scale")[:number]]
        diameters = np.array([cell_diameter(benchmark.read(int(item))) for item in chosen])
        if np.isfinite(diameters).any():
            found[name] = float(np.nanmedian(diameters))
    if not found:
        raise DataMissing(f"{domain}: no cell stands out from its background in {len(table)} images, so they have no "
                          "common scale. Next step: scale native")
    return found


def domain_diameter(benchmark: Benchmark, domain: str) -> float:
    """Cell diameter in pixels of a domain: known for smears, else from `scale.yml`, else measured on its images.

    :raises DataMissing: as `measure_diameters`
    """
    spec = _smear_spec(benchmark, domain)
    if spec is not None:
        micrometres_across = spec.field_um / laboratory(spec.domains[0]).zoom
        return measured()["smears"]["diameter_um"] * spec.cell_scale * spec.size / micrometres_across
    known = measured()["domains"].get(domain, {})
    if "diameter" in known:
        return float(known["diameter"])
    if "px_per_um" in known:
        reference = measured()["domains"][measured()["reference"]]
        return reference["diameter"] / reference["px_per_um"] * known["px_per_um"]
    return float(np.mean(list(measure_diameters(benchmark, domain).values())))


def _smear_spec(benchmark: Benchmark, domain: str):
    parts = getattr(benchmark.source, "parts", {})
    return getattr(getattr(parts.get(domain), "source", None), "spec", None)


def field_crop(image: np.ndarray, side: int) -> np.ndarray:
    """The central ``side`` x ``side`` pixels of uint8 (H, W, 3); where the image is smaller its border is repeated.

    :raises UsageError: ``side`` is not positive
    """
    if side < 1:
        raise UsageError(f"cannot crop a field of {side} pixels")
    for axis in (0, 1):
        size = image.shape[axis]
        start = max((size - side) // 2, 0)
        image = np.take(image, np.arange(start, start + min(side, size)), axis)
        before = max((side - size) // 2, 0)
        margin = [(0, 0)] * image.ndim
        margin[axis] = (before, max(side - size, 0) - before)
        image = np.pad(image, margin, mode="edge")
    return image


def field_sides(benchmark: Benchmark) -> dict[str, int]:
    """Side in pixels of the common field of each domain (variants included)."""
    field = measured()["field"]
    domains = [*benchmark.domains, *(name for several in benchmark.variants.values() for name in several)]
    return {domain: round(field * domain_diameter(benchmark, domain)) for domain in domains}


@dataclass(frozen=True)
class _Cropped:
    """Reads an item and crops it to the field of its domain."""

    benchmark: Benchmark
    sides: dict[str, int]
    domains: tuple[str, ...]  # of each item

    def __call__(self, item: int) -> np.ndarray:
        return field_crop(self.benchmark.read(item), self.sides[self.domains[item]])


def scaled_reader(benchmark: Benchmark, scale: str = "common") -> Callable[[int], np.ndarray]:
    """What reads an item of the table as uint8 (H, W, 3): ``native`` as it is, ``common`` cropped to the common field.

    :raises UsageError: unknown scale, or a benchmark without domains
    :raises DataMissing: the scale of a domain is not known and cannot be measured
    """
    if scale not in SCALES:
        raise UsageError(f"unknown scale {scale!r}; expected one of {', '.join(SCALES)}")
    if scale == "native":
        return benchmark.read
    if not benchmark.domains:
        raise UsageError(f"benchmark {benchmark.name} has no domains to bring to a common scale; use scale native")
    return _Cropped(benchmark, field_sides(benchmark), tuple(benchmark.table["domain"]))
