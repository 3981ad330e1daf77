"""Where the book's inputs and outputs lie, and what a notebook is told."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from wbcrepro.errors import DataMissing

PARAMETERS_CELL = re.compile(
    r'^# %%[^\n]*tags=\[[^\]\n]*"parameters"[^\]\n]*\][^\n]*\n(?P<body>.*?)(?=^# %%|\Z)', re.M | re.S
)


@dataclass(frozen=True)
class Layout:
    """The folders of a checkout: ``book/`` and ``notebooks/`` go in, everything below ``build/`` comes out."""

    root: Path

    @classmethod
    def find(cls, start: Path | None = None) -> Layout:
        """The checkout around the working directory, or the one that the package was installed from."""
        candidates = [start or Path.cwd(), *(start or Path.cwd()).parents, Path(__file__).resolve().parents[2]]
        for folder in candidates:
            if (folder / "_toc.yml").is_file() and (folder / "notebooks").is_dir():
                return cls(folder.resolve())
        raise DataMissing(
            f"no checkout of the book found from {Path.cwd()}: expected a folder with _toc.yml, book/ and notebooks/. "
            "Clone the repository and run this inside it; an installed package alone has no notebooks."
        )

    @property
    def sources(self) -> list[Path]:
        """The notebooks as ``.py`` files, by name."""
        return sorted((self.root / "notebooks").glob("*.py"))

    @property
    def executed(self) -> Path:
        """Executed notebooks, their records and the files that they offer for download."""
        return self.root / "build" / "notebooks"

    @property
    def staged(self) -> Path:
        """What Sphinx reads."""
        return self.root / "build" / "book-src"

    @property
    def html(self) -> Path:
        """What a reader opens."""
        return self.root / "build" / "book" / "html"

    @property
    def doctrees(self) -> Path:
        """Sphinx's cache, beside the pages so that it is not published with them."""
        return self.root / "build" / "book" / "doctrees"


@dataclass(frozen=True)
class Inputs:
    """What ``wbcrepro book`` was asked for. Paths are relative to the working directory or absolute."""

    profile: str = "demo"
    store: Path = Path("runs")
    data: Path | None = None
    dataset: str | None = None
    results: Path | None = None
    weights: str | None = None
    accumulate: int | None = None

    def parameters(self, root: Path) -> dict[str, str | int | None]:
        """What is injected into a notebook, which runs in ``root``: paths below it are given relative to it.

        A file of weights is named by its digest, as in the cells: pages only read, and another file makes others.
        """
        from wbcrepro.experiments.plan import named_weights

        def shown(path: Path | None) -> str | None:
            if path is None:
                return None
            path = path.resolve()
            return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)

        return {
            "PROFILE": self.profile,
            "STORE": shown(self.store),
            "DATA": shown(self.data),
            "DATASET": self.dataset,
            "RESULTS": shown(self.results or root / "results"),
            "WEIGHTS": named_weights(self.weights)[0] if self.weights else None,
            "ACCUMULATE": self.accumulate,
        }


def declared_parameters(source: str) -> set[str]:
    """The names that a notebook's cell tagged ``parameters`` assigns; a notebook without one takes none."""
    cell = PARAMETERS_CELL.search(source)
    return set(re.findall(r"^([A-Z][A-Z0-9_]*)\s*(?::[^=\n]+)?=", cell["body"], re.M)) if cell else set()
