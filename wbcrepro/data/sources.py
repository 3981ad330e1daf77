"""Image sources: a manifest, and a way to read the image of a row."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import pandas as pd

from wbcrepro.data import catalog, layouts
from wbcrepro.data.decode import DecodeError, decode
from wbcrepro.data.manifest import Manifest
from wbcrepro.data.scan import FileFacts, scan
from wbcrepro.errors import DataMissing, UsageError


class ImageSource(Protocol):
    """What every dataset is to the rest: files of a laboratory and generated smears alike."""

    manifest: Manifest

    def read(self, row: int) -> np.ndarray:
        """Image of manifest row ``row`` as ``uint8 (H, W, 3)`` RGB; raises DecodeError."""
        ...


@dataclass(frozen=True)
class FileSource:
    """Images in files below ``root``."""

    manifest: Manifest
    root: Path

    def read(self, row: int) -> np.ndarray:
        """Image of manifest row ``row`` as ``uint8 (H, W, 3)`` RGB.

        :raises DecodeError: the row is quarantined, or its file has changed since the manifest was made
        """
        record = self.manifest.frame.iloc[row]
        if record["status"] != "ok":
            raise DecodeError(f"{record['path']} is quarantined: {record['reason']}")
        try:
            data = (self.root / record["path"]).read_bytes()
        except OSError as error:
            raise DecodeError(f"{record['path']}: {error.strerror}; it was there when the manifest was made") from error
        if hashlib.sha256(data).hexdigest() != record["sha256"]:
            raise DecodeError(f"{record['path']} has changed since the manifest was made; start again to make it anew")
        return decode(data).pixels


def open_dataset(
    name: str,
    data_root: Path | str | None,
    cache: Path | str,
    *,
    workers: int = 2,
    progress: bool = True,
    mapping: str | None = None,
) -> FileSource:
    """Open a catalogued dataset, ``folder:PATH`` (class folders) or ``csv:PATH`` (see layouts.csv_table).

    :param data_root: the folder that holds the datasets' folders; not needed for ``folder:`` and ``csv:``
    :param cache: where verdicts on files are kept, by size and modification time
    :param mapping: ``wbcbench``, ``five`` or ``thirteen``; default: the dataset's own one in the catalogue. Images
        whose source label has no class there stay in the manifest with an empty label.
    :raises UsageError: unknown name or mapping, impossible CSV
    :raises DataMissing: nothing there; the message says how to get it
    """
    root, rows, classes, labels, domain = _rows(name, data_root, mapping)
    if not rows:
        raise DataMissing(f"{name}: no images below {root}")
    if classes is None:
        classes = tuple(sorted({row["source_label"] for row in rows} - {""}))
        labels = {label: label for label in classes}
    key = hashlib.sha256(str(root.resolve()).encode("utf-8", "surrogateescape")).hexdigest()[:16]
    safe = [row["path"] for row in rows if not row["reason"] and not _refuse(root, row)]
    facts = scan(root, safe, Path(cache) / "scans" / f"{key}.csv", workers=workers, progress=progress)
    records = [_record(row, facts.get(row["path"]), labels, domain) for row in rows]
    return FileSource(Manifest(name.partition(":")[0] if ":" in name else name, classes, pd.DataFrame(records)), root)


def find_layout(entry: catalog.Dataset, data_root: Path | str) -> dict | None:
    """The first published layout of ``entry`` that is there below ``data_root``, or None."""
    folder = Path(data_root) / entry.folder
    return next((layout for layout in entry.layouts if layouts.found(folder, layout)), None)


def _rows(name: str, data_root: Path | str | None, mapping: str | None):
    kind, _, place = name.partition(":")
    if kind in ("folder", "csv") and place:
        if mapping is not None:
            raise UsageError(f"{name} has no mappings; name its folders or labels by the classes that you mean")
        path = Path(place).expanduser()
        if kind == "csv":
            return path.parent, layouts.csv_table(path), None, {}, "csv"
        if not path.is_dir():
            raise DataMissing(f"{path}: no such folder; expected one with a folder of images for each class")
        return path, layouts.class_folders(path, {"bases": [{"path": ".", "split": ""}]}), None, {}, "folder"
    entry = catalog.dataset(name)
    classes, labels = entry.labels_under(mapping or entry.mapping)
    if data_root is None:
        raise DataMissing(f"{name} needs a data root (DATA=path or --data path): the folder that holds {entry.folder}/")
    layout = find_layout(entry, data_root)
    root = Path(data_root) / entry.folder
    if layout is None:
        expected = " or ".join(str(item["name"]) for item in entry.layouts)
        raise DataMissing(f"{name}: {root} does not hold the layout ({expected}).\n{entry.instructions(data_root)}")
    rows = layouts.READERS[layout["kind"]](root, layout)
    known = {label.lower() for table in entry.labels.values() for label in table} | {x.lower() for x in entry.unmapped}
    for row in rows:
        if not row["reason"] and row["source_label"] and row["source_label"].lower() not in known:
            row["reason"] = f"label {row['source_label']!r} is not in the catalogue"
    labels = {label.lower(): target for label, target in labels.items()}  # Basophil, basophil, BASOPHIL
    return root, rows, classes, labels, name


def _refuse(root: Path, row: dict) -> bool:
    row["reason"] = layouts.unsafe(root, row["path"])
    return bool(row["reason"])


def _record(row: dict, facts: FileFacts | None, labels: dict[str, str], domain: str) -> dict:
    label = labels.get(row["source_label"], labels.get(row["source_label"].lower(), ""))
    record = {"domain": domain, "group": "", "split": ""} | row | {"label": label}
    if facts is None:
        return record | {"width": 0, "height": 0, "mode": "", "sha256": "", "status": "quarantined"}
    seen = {"width": facts.width, "height": facts.height, "mode": facts.mode, "sha256": facts.sha256}
    return record | seen | {"status": facts.status, "reason": facts.reason}


@dataclass(frozen=True)
class JoinedSource:
    """Two sources as one. Ids and groups are prefixed with the part's name, which also stands in the split column."""

    manifest: Manifest
    parts: Mapping[str, ImageSource]
    places: tuple[tuple[str, int], ...]

    def read(self, row: int) -> np.ndarray:
        """Image of a row of the joined manifest, uint8 (H, W, 3)."""
        part, inner = self.places[row]
        return self.parts[part].read(inner)


def join_sources(name: str, parts: Mapping[str, ImageSource]) -> JoinedSource:
    """Sources without common images or groups: a training population and a test population."""
    frames = []
    for part, source in parts.items():
        places = [(part, row) for row in range(len(source.manifest.frame))]
        frame = source.manifest.frame.assign(split=part, _place=places)
        for column in ("id", "group"):
            frame[column] = (part + "/" + frame[column]).where(frame[column] != "", "")
        frames.append(frame)
    frame = pd.concat(frames, ignore_index=True).sort_values("id", kind="stable", ignore_index=True)
    places = tuple(frame.pop("_place"))
    return JoinedSource(Manifest(name, next(iter(parts.values())).manifest.classes, frame), dict(parts), places)
