"""Named laboratories (stain matrix, background, microscope) and the Beer-Lambert law that turns density into light.

The vectors were chosen so that the optical densities of nuclei, red cells and cytoplasm come near the medians measured
on public images of the same stain (May Grünwald-Giemsa: Acevedo-20; Giemsa: Raabin-WBC; rapid: Zheng-18);
Wright-Giemsa is a bluer neighbour of the first. Azure alone is blue to violet (RNA, cytoplasm), eosin alone pink
(haemoglobin, eosinophil granules), much azure with a little eosin purple (DNA).
"""

from dataclasses import dataclass, replace

import numpy as np

from wbcrepro.errors import UsageError
from wbcrepro.seeds import derive_seed


@dataclass(frozen=True)
class Laboratory:
    """One domain. ``azure``, ``eosin``: direction in optical density (R, G, B); ``background``: (R, G, B), 0-255."""

    name: str
    stain: str
    azure: tuple[float, float, float]
    eosin: tuple[float, float, float]
    background: tuple[float, float, float]
    strength: float  # of the staining as a whole
    red_cells: tuple[float, float]  # density of (azure, eosin) in a red cell
    zoom: float  # magnification relative to the nominal field
    blur: float  # point spread, standard deviation in µm
    vignetting: float  # loss of light in the corners, fraction
    chromatic: float  # displacement of red against blue, µm
    noise: float  # read noise, grey levels
    jpeg: int  # quality


LABORATORIES: dict[str, Laboratory] = {
    lab.name: lab
    for lab in (
        Laboratory("mgg", "May Grünwald-Giemsa", (0.62, 0.77, 0.13), (0.09, 0.80, 0.59), (253, 230, 205),
                   1.0, (0.25, 0.22), 1.0, 0.07, 0.02, 0.03, 1.5, 92),
        Laboratory("wright-giemsa", "Wright-Giemsa", (0.68, 0.71, 0.17), (0.14, 0.86, 0.49), (236, 231, 238),
                   0.85, (0.16, 0.28), 1.08, 0.11, 0.07, 0.08, 2.5, 88),
        Laboratory("giemsa", "Giemsa", (0.51, 0.82, 0.24), (0.10, 0.88, 0.46), (222, 186, 175),
                   0.95, (0.45, 0.24), 0.95, 0.13, 0.12, 0.12, 3.0, 85),
        Laboratory("rapid", "rapid stain", (0.49, 0.84, 0.23), (0.16, 0.86, 0.49), (254, 249, 190),
                   1.0, (0.06, 0.10), 1.02, 0.11, 0.04, 0.06, 2.0, 95),
    )
}  # fmt: skip
"""The four named laboratories, in the order in which ``SmearSpec(domains=n)`` takes them."""

_MEAN_AZURE = np.mean([lab.azure for lab in LABORATORIES.values()], axis=0)
_MEAN_EOSIN = np.mean([lab.eosin for lab in LABORATORIES.values()], axis=0)
_MEAN_BACKGROUND = np.mean([lab.background for lab in LABORATORIES.values()], axis=0)


def laboratory(name: str) -> Laboratory:
    """The laboratory called ``name``; ``"giemsa#2"`` is another with that stain, its optics drawn from the name.

    Raises UsageError for a stain that is not known.
    """
    base, _, variant = name.partition("#")
    if base not in LABORATORIES:
        raise UsageError(
            f"unknown laboratory {name!r}; expected one of {', '.join(LABORATORIES)}, or one with '#2', '#3' ..."
        )
    lab = LABORATORIES[base]
    if not variant:
        return lab
    rng = np.random.default_rng(derive_seed("laboratory", name))
    shift = lambda values, sd: tuple(float(v) for v in np.asarray(values) * rng.normal(1, sd, 3))  # noqa: E731
    return replace(
        lab, name=name, azure=shift(lab.azure, 0.10), eosin=shift(lab.eosin, 0.08),
        background=tuple(np.clip(shift(lab.background, 0.06), 120, 255)), strength=lab.strength * rng.uniform(0.8, 1.2),
        zoom=rng.uniform(0.9, 1.1), blur=rng.uniform(0.08, 0.2), vignetting=rng.uniform(0, 0.15),
        chromatic=rng.uniform(0, 0.15), noise=rng.uniform(1, 3.5), jpeg=int(rng.integers(80, 96)),
    )  # fmt: skip


def stain_matrix(lab: Laboratory, shift: float, jitter: np.ndarray) -> np.ndarray:
    """(3, 2), unit columns (azure, eosin). ``shift`` 0: the laboratories' mean, 1: the own, above: exaggerated.

    ``jitter`` (3, 2) multiplies the entries: the difference between patients of one laboratory.
    """
    azure = _MEAN_AZURE + shift * (np.asarray(lab.azure) - _MEAN_AZURE)
    eosin = _MEAN_EOSIN + shift * (np.asarray(lab.eosin) - _MEAN_EOSIN)
    matrix = np.maximum(np.stack([azure, eosin], axis=1) * jitter, 0.01)
    return (matrix / np.linalg.norm(matrix, axis=0)).astype(np.float32)


def background(lab: Laboratory, shift: float) -> np.ndarray:
    """(3,) light that passes an empty slide, 0-255, between the laboratories' mean and the laboratory's own."""
    return np.clip(_MEAN_BACKGROUND + shift * (np.asarray(lab.background) - _MEAN_BACKGROUND), 60, 255)


def transmit(densities: np.ndarray, matrix: np.ndarray, light: np.ndarray) -> np.ndarray:
    """Beer-Lambert: light * exp(-matrix @ densities). (2, H, W), (3, 2), (3,) or (3, H, W) -> (3, H, W) in 0-255."""
    height, width = densities.shape[1:]
    optical_density = (matrix @ densities.reshape(2, -1)).reshape(3, height, width)
    light = np.asarray(light, np.float32)
    return (light[:, None, None] if light.ndim == 1 else light) * np.exp(-optical_density)
