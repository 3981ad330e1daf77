"""When must a notebook be executed again? When one of these digests differs from the one stored beside its output."""

from __future__ import annotations

import hashlib
import json
import os
from functools import cache
from importlib import metadata
from pathlib import Path

import wbcrepro
from wbcrepro.data.catalog import datasets

LIBRARIES = ("torch", "torchvision", "timm", "numpy", "scipy", "pandas", "scikit-learn", "matplotlib", "seaborn")


def digest(value: object) -> str:
    """The first 16 hex digits of the SHA-256 of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def file_digest(path: Path) -> str:
    """The SHA-256 of a file, or ``missing``."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "missing"


def folder_digest(folder: Path, patterns: tuple[str, ...]) -> str:
    """A digest of the names and contents of the files below a folder that match."""
    paths = sorted({path for pattern in patterns for path in folder.rglob(pattern) if path.is_file()})
    return digest([[path.relative_to(folder).as_posix(), file_digest(path)] for path in paths])


@cache
def package_digest() -> str:
    """A digest of the package's sources and data files."""
    return folder_digest(Path(wbcrepro.__file__).parent, ("*.py", "*.yml", "*.json"))


@cache
def library_digest() -> str:
    """A digest of the versions of the libraries that figures and numbers come from."""
    versions = {d.name: d.version for d in metadata.distributions() if d.name in LIBRARIES}
    return digest(versions)


def cells_digest(store: Path, reads: list[str]) -> str:
    """A digest of the cells that were looked up: of each ``metrics.json``, and of what each glob matches."""
    cells = store / "cells"
    seen: list[list[str]] = []
    for entry in sorted(set(reads)):
        if "*" in entry:
            found = sorted(path.parent.name for path in cells.glob(f"{entry}/metrics.json"))
            seen.append([entry, *found])
        else:
            seen.append([entry, file_digest(cells / entry / "metrics.json")])
    return digest(seen)


@cache
def data_digest(data: Path | None) -> str:
    """A digest of name, size and time of change of each file of the catalogued datasets below the data root; the files
    are too many to read each time."""
    found = []
    for folder in sorted({entry.folder for entry in datasets().values()} if data else ()):
        for root, _, names in os.walk(data / folder):
            stats = {name: os.stat(os.path.join(root, name), follow_symlinks=False) for name in names}
            where = Path(root).relative_to(data).as_posix()
            found += [[where, name, stat.st_size, stat.st_mtime_ns] for name, stat in stats.items()]
    return digest(sorted(found))


def key_parts(
    source: Path, parameters: dict, store: Path, reads: list[str], results: Path, data: Path | None
) -> dict[str, str]:
    """Every digest that an executed notebook depends on, by what a message would call it."""
    return {
        "source": file_digest(source),
        "package": package_digest(),
        "libraries": library_digest(),
        "parameters": digest(parameters),
        "cells": cells_digest(store, reads),
        "results": folder_digest(results, ("*",)),
        "data": data_digest(data),
    }
