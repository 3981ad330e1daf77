"""The store: one folder a cell, read by everything that comes after a run.

``STORE/cells/<id>/`` holds ``cell.json`` (what it is), ``env.json`` (where and when it ran), ``log.jsonl``,
``predictions.npz``, weights as safetensors where kept, and ``metrics.json``, which is written last and by rename: a
cell is done when, and only when, that file exists.
"""

from __future__ import annotations

import json
import os
import shlex
import tempfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from wbcrepro.errors import CellsMissing, WbcreproError


def write_json(path: Path, value: object) -> None:
    """Write JSON so that a reader sees the old file or the whole new one, also after a crash."""
    text = json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n"
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def read_json(path: Path) -> dict:
    """Parse a JSON file; a damaged one raises an error that names it and says what to do."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise WbcreproError(
            f"{path} should hold JSON but cannot be parsed ({error}). Remove its folder and run the cell again."
        ) from None


@dataclass(frozen=True)
class StoredCell:
    """A finished cell, read from its folder."""

    folder: Path

    @property
    def id(self) -> str:
        """The cell's id."""
        return self.folder.name

    @cached_property
    def cell(self) -> dict:
        """``cell.json``: kind, config, parents, algorithm versions."""
        return read_json(self.folder / "cell.json")

    @cached_property
    def metrics(self) -> dict:
        """``metrics.json``."""
        return read_json(self.folder / "metrics.json")

    @cached_property
    def env(self) -> dict:
        """``env.json``: versions, device, commit, data digest, start and duration."""
        return read_json(self.folder / "env.json")

    def predictions(self) -> dict[str, np.ndarray]:
        """The arrays of ``predictions.npz`` (see ``wbcrepro.experiments.kinds`` for the keys)."""
        path = self.folder / "predictions.npz"
        if not path.is_file():
            raise WbcreproError(f"{path} is missing: a cell of kind {self.cell['kind']} stores no predictions.")
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}

    def log(self) -> list[dict]:
        """The lines of ``log.jsonl``; empty when the cell keeps no log."""
        path = self.folder / "log.jsonl"
        if not path.is_file():
            return []
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


class Store:
    """A folder of cells. ``reads`` collects every id that was asked for, found or not."""

    def __init__(self, path: Path | str):
        self.path = Path(path)
        self.reads: set[str] = set()

    @property
    def cache(self) -> Path:
        """Where manifests and drawn data may be cached; nothing in it is a result."""
        return self.path / "cache"

    def folder(self, cell_id: str) -> Path:
        """The folder of a cell, whether it exists or not."""
        return self.path / "cells" / cell_id

    def done(self, cell_id: str) -> bool:
        """Whether the cell has finished."""
        return (self.folder(cell_id) / "metrics.json").is_file()

    def get(self, cell_id: str) -> StoredCell | None:
        """The finished cell, or None."""
        self.reads.add(cell_id)
        return StoredCell(self.folder(cell_id)) if self.done(cell_id) else None

    def require(self, cell_id: str) -> StoredCell:
        """The finished cell; ``CellsMissing`` names the command that makes it."""
        found = self.get(cell_id)
        if found is None:
            raise CellsMissing(f"cell {cell_id} is not in the store {self.path}. {self._advice(cell_id)}")
        return found

    def _advice(self, cell_id: str) -> str:
        """The command that makes a cell, from the plans that the store has seen."""
        path = self.path / "plan.json"
        for plan in read_json(path)["plans"] if path.is_file() else []:
            if any(cell["id"] == cell_id for cell in plan["cells"]):
                told = f"--paper {plan['paper']} {plan.get('options') or '--profile ' + plan['profile']}"
                return f"Make it with: wbcrepro run-cell {cell_id} {told} --store {shlex.quote(str(self.path))}"
        return (
            "No plan that this store has seen names it. List the cells of a plan with: wbcrepro plan --paper PAPER "
            f"--profile PROFILE --store {shlex.quote(str(self.path))}"
        )

    def cells(self, kind: str | None = None, **config: object) -> list[StoredCell]:
        """Finished cells of a kind whose configuration has these values, in order of id."""
        folder = self.path / "cells"
        found = []
        for path in sorted(folder.iterdir()) if folder.is_dir() else []:
            if kind and not path.name.startswith(f"{kind}-") or not (path / "metrics.json").is_file():
                continue
            stored = StoredCell(path)
            if all(stored.cell["config"].get(key) == value for key, value in config.items()):
                self.reads.add(stored.id)
                found.append(stored)
        return found
