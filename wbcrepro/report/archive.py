"""Compressed arrays whose bytes depend on their values only, so that committed results can be compared."""

from __future__ import annotations

import hashlib
import io
import zipfile
from pathlib import Path

import numpy as np


def write_npz(path: Path, arrays: dict[str, np.ndarray]) -> str:
    """A compressed ``.npz`` whose bytes depend on the arrays only (sorted names, fixed times). Returns its sha256."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name in sorted(arrays):
            content = io.BytesIO()
            np.lib.format.write_array(content, np.ascontiguousarray(arrays[name]), allow_pickle=False)
            entry = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            entry.compress_type, entry.external_attr, entry.create_system = zipfile.ZIP_DEFLATED, 0o644 << 16, 3
            archive.writestr(entry, content.getvalue())
    path.write_bytes(buffer.getvalue())
    return hashlib.sha256(buffer.getvalue()).hexdigest()


class Arrays:
    """The ``.npz`` files of a folder, each read once when it is first asked for."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._loaded: dict[str, dict[str, np.ndarray]] = {}

    def get(self, name: str) -> dict[str, np.ndarray]:
        """The arrays of one file; empty where it is not there."""
        if name not in self._loaded and (self.folder / name).is_file():
            with np.load(self.folder / name, allow_pickle=False) as file:
                self._loaded[name] = {key: file[key] for key in file.files}
        return self._loaded.get(name, {})
