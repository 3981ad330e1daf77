"""What a notebook calls: the plan, the store, and the cells behind its tables.

Under ``make`` and ``wbcrepro book`` notebooks only read (``WBCREPRO_READ_ONLY=1``) and the ids that they read are noted
in the file that ``WBCREPRO_READS`` names, so that a notebook is executed again when one of them changes. Opened by
hand, ``session.run_missing()`` runs what is missing, with a progress bar.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import wbcrepro
from wbcrepro.experiments.cell import Cell
from wbcrepro.experiments.environment import resolve_device
from wbcrepro.experiments.plan import Plan, make_plan
from wbcrepro.experiments.run import run_plan
from wbcrepro.experiments.store import Store, StoredCell

READ_ONLY = "WBCREPRO_READ_ONLY"
READS = "WBCREPRO_READS"


class RecordingStore(Store):
    """A store that appends what it is asked for to a file, one line each (the contract is in ``wbcrepro.book``)."""

    def __init__(self, path: Path | str, record: Path | None):
        super().__init__(path)
        self.record = record

    def get(self, cell_id: str) -> StoredCell | None:
        """As ``Store.get``, and remembers the id, found or not."""
        self._note(cell_id)
        return super().get(cell_id)

    def cells(self, kind: str | None = None, **config: object) -> list[StoredCell]:
        """As ``Store.cells``, and remembers that the answer depends on which cells of the kind exist."""
        self._note(f"{kind or '*'}-*")
        return super().cells(kind, **config)

    def _note(self, line: str) -> None:
        if self.record:
            with self.record.open("a", encoding="utf-8") as file:
                file.write(f"{line}\n")


@dataclass(frozen=True)
class Session:
    """One paper in one profile, as a notebook sees it."""

    plan: Plan
    store: Store
    data: Path | None
    results: Path

    @property
    def benchmark(self):
        """The benchmark of the plan."""
        return self.plan.benchmark

    @property
    def synthetic(self) -> bool:
        """Whether the images are synthetic: captions must say so."""
        return self.plan.benchmark.synthetic

    def find(self, **labels: object) -> list[tuple[Cell, StoredCell | None]]:
        """Planned cells with these labels, each with its stored result or None."""
        return [(cell, self.store.get(cell.id)) for cell in self.plan.find(**labels)]

    def run_missing(self, device: str = "auto") -> int:
        """Run what is missing and return how many cells are still missing. Under ``make`` it only counts."""
        if os.environ.get(READ_ONLY) != "1":
            run_plan(self.plan, self.store, device=resolve_device(device))
        return sum(self.store.get(cell.id) is None for cell in self.plan.tier(0))


def from_root(path: str | Path) -> Path:
    """A relative path of a notebook opened by hand, whose working folder is ``notebooks/``, is meant from above it."""
    path, parent = Path(path), Path.cwd().parent
    if path.is_absolute() or Path.cwd().name != "notebooks" or not (parent / "pyproject.toml").is_file():
        return path
    return parent / path


def no_results(results: Path) -> str:
    """Why a page shows no real results, in Markdown: none were committed, or the folder is not there (as on Colab)."""
    if Path(results).is_dir():
        return "*No results on real images have been committed yet.*"
    return (
        f"*The folder `{Path(results).name}/` of real results is not beside this notebook. It comes "
        f"with the repository: `git clone {wbcrepro.REPOSITORY}` and open the notebook there.*"
    )


def open_session(
    paper: str,
    profile: str = "demo",
    store: str | Path = "runs",
    data: str | Path | None = None,
    dataset: str | None = None,
    results: str | Path = "results",
    weights: str | None = None,
    accumulate: int | None = None,
) -> Session:
    """Open a paper's plan and store. The arguments are the parameters that papermill injects."""
    record = os.environ.get(READS)
    recording = RecordingStore(from_root(store), Path(record) if record else None)
    root = from_root(data) if data else None
    if weights and from_root(weights).is_file():
        weights = str(from_root(weights))
    plan = make_plan(
        paper, profile, store=recording, data=root, dataset=dataset or None, weights=weights or None,
        accumulate=accumulate or None, progress=False,
    )  # fmt: skip
    return Session(plan, recording, root, from_root(results))
