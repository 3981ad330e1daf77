"""The stain reference that images are normalised to: two vectors, two maxima, and where they come from."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

COMMITTED = Path(__file__).with_name("reference.json")


@dataclass(frozen=True)
class StainReference:
    """Stain matrix (3 RGB rows x 2 stains, unit columns, nuclear stain first) and 99th-percentile densities (2,)."""

    matrix: tuple[tuple[float, float], ...]
    maxima: tuple[float, float]
    provenance: str = ""

    def __post_init__(self):
        matrix, maxima = np.asarray(self.matrix, float), np.asarray(self.maxima, float)
        if matrix.shape != (3, 2) or maxima.shape != (2,):
            raise ValueError(f"a stain reference is a 3x2 matrix and 2 maxima, got {matrix.shape} and {maxima.shape}")
        if not (np.isfinite(matrix).all() and np.isfinite(maxima).all() and (maxima > 0).all()):
            raise ValueError("a stain reference must be finite, with positive maxima")
        # Plain nested tuples: hashable, comparable and JSON-able whatever array type the caller had.
        object.__setattr__(self, "matrix", tuple(tuple(row) for row in matrix.tolist()))
        object.__setattr__(self, "maxima", tuple(maxima.tolist()))

    def save(self, path: Path | str) -> None:
        """Write the reference as JSON."""
        Path(path).write_text(json.dumps(asdict(self), indent=2) + "\n")

    @classmethod
    def load(cls, path: Path | str) -> "StainReference":
        """Read what ``save`` wrote; ``ValueError`` for a matrix that is not 3 x 2."""
        return cls._from_dict(json.loads(Path(path).read_text()))

    @classmethod
    def _from_dict(cls, entry: dict) -> "StainReference":
        return cls(entry["matrix"], entry["maxima"], entry.get("provenance", ""))


def default_reference(method: str = "macenko") -> StainReference:
    """The committed reference of ``method`` ("macenko" or "romanowsky"), from ``reference.json``."""
    entries = json.loads(COMMITTED.read_text())
    if method not in entries:
        raise ValueError(f"no committed reference for {method!r}; there is one for {', '.join(sorted(entries))}")
    return StainReference._from_dict(entries[method])
