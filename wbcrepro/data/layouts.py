"""Readers of published layouts: each lists a dataset's images with what the dataset says of them, and opens none.

A reader takes the dataset's folder and its layout entry (from catalog.yml) and returns rows: ``path`` (relative,
posix), ``source_label``, ``id``, ``reason`` and, where known, ``domain, group, split`` and extra columns. A row with a
reason is quarantined unopened. Paths that lead out of the folder (absolute, ``..``, through a link) are never followed.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import pandas as pd

from wbcrepro.errors import DataMissing, UsageError

_SIDECARS = {".csv", ".tsv", ".txt", ".md", ".json", ".jsonl", ".xml", ".yml", ".html", ".db", ".ini", ".parquet"}
"""Files beside images that nobody means as images. Anything else is looked at, and quarantined if it is none."""

Row = dict[str, str]


def class_folders(folder: Path, layout: dict) -> list[Row]:
    """``<base>/<class>/<file>``. Options: ``bases`` ({path, split}; those that exist are read), ``label_regex`` (finer
    label in the name, checked against ``folder_of``), ``group_regex``, ``table`` ({file, path, group} of a CSV)."""
    groups = _table_groups(folder, layout.get("table"))
    rows = []
    for base in layout["bases"]:
        for path in images_below(folder, folder / base["path"]):
            inside = PurePosixPath(path).relative_to(PurePosixPath(base["path"]))
            row = {"path": path, "id": path, "source_label": inside.parts[0], "split": base["split"], "reason": ""}
            if (folder / path).is_dir():
                row["reason"] = "a folder that is a link, which is not followed; put the files themselves here"
            elif len(inside.parts) == 1:
                row |= {"source_label": "", "reason": "lies in no class folder"}
            elif "label_regex" in layout:
                _finer_label(row, inside, layout)
            if "group_regex" in layout:
                found = re.search(layout["group_regex"], inside.name)
                row["group"] = found["group"] if found else ""
            if groups is not None:
                row["group"] = groups.get(path, "")
                if not row["group"]:
                    row["reason"] = f"has no row in {layout['table']['file']}, so its group is unknown"
            rows.append(row)
    if groups is not None:
        present = {row["path"] for row in rows}
        rows += [_absent(path, layout["table"]["file"]) for path in groups if path not in present]
    return rows


def numbered_table(folder: Path, layout: dict) -> list[Row]:
    """Zheng-18: a CSV of numbers and class codes, images ``<images>/<number><suffix>``; PNGs beside them are masks."""
    base = folder / layout["base"]
    table = read_table(base / layout["table"], (layout["id_column"], layout["label_column"]))
    rows, codes = [], layout["codes"]
    for number, code in zip(table[layout["id_column"]], table[layout["label_column"]].str.strip(), strict=True):
        name = f"{number.strip().zfill(layout['digits'])}{layout['suffix']}"
        path = (PurePosixPath(layout["base"]) / layout["images"] / name).as_posix()
        reason = "" if code in codes else f"class code {code!r} is not one of {sorted(codes)}"
        row = {"path": path, "id": path, "source_label": codes.get(code, ""), "reason": reason}
        rows.append(checked(folder, row))
    listed = {row["path"] for row in rows}
    for path in images_below(folder, base / layout["images"]):
        if path.endswith(layout["suffix"]) and path not in listed:
            rows.append({"path": path, "id": path, "source_label": "", "reason": f"has no row in {layout['table']}"})
    return rows


def wbcbench_kaggle(folder: Path, layout: dict) -> list[Row]:
    """The Kaggle files of WBCBench 2026. Some label files carry unnamed empty columns; the test file has empty labels.

    Phase 1 is pristine, phase 2 degraded by an amount that Kaggle does not tell. No patients are named.
    """
    rows = []
    for table, images, split in (
        ("phase1_label.csv", "phase1", "phase1_train"),
        ("phase2_train.csv", "phase2/train", "phase2_train"),
        ("phase2_eval.csv", "phase2/eval", "phase2_eval"),
        ("phase2_test.csv", "phase2/test", "phase2_test"),
    ):
        if not (folder / table).is_file() and split != "phase1_train":
            continue
        frame = read_table(folder / table, ("ID", "labels"))
        for record in frame.to_dict("records"):
            name = record["ID"].strip()
            said = record.get("split", "").strip() or split
            reason = "" if said == split else f"{table} says split {said!r}, expected {split!r}"
            row = {"id": name, "path": f"{images}/{name}", "source_label": record["labels"].strip(), "split": split}
            row |= {"domain": "pristine" if images == "phase1" else "degraded", "severity": "", "reason": reason}
            rows.append(checked(folder, row))
    return rows


def wbcbench_hf(folder: Path, layout: dict) -> list[Row]:
    """An export of the Hugging Face release: ``pristine|degraded/<split>/metadata.csv`` with the columns ``file_name,
    image_id, label, wbcbench_split, severity, original_image_id, patient_hash``; the images beside it or below."""
    needed = ("file_name", "image_id", "label", "wbcbench_split", "severity", "original_image_id", "patient_hash")
    tables = [p for domain in ("pristine", "degraded") for p in sorted((folder / domain).glob("*/metadata.csv"))]
    if not tables:
        if any(folder.rglob("*.parquet")):
            raise UsageError(
                f"{folder} holds parquet files, which need a library that this project does not install; export them "
                "to image folders with a metadata.csv as `wbcrepro data fetch wbcbench2026` describes"
            )
        raise DataMissing(f"{folder}: no pristine/<split>/metadata.csv; see `wbcrepro data fetch wbcbench2026`")
    rows = []
    for table in tables:
        where = table.parent.relative_to(folder).as_posix()
        for record in read_table(table, needed).to_dict("records"):
            row = {"id": f"{where}/{record['image_id']}", "path": f"{where}/{record['file_name']}"}
            row |= {"source_label": record["label"], "domain": where.split("/")[0], "split": record["wbcbench_split"]}
            row |= {"group": record["patient_hash"], "severity": record["severity"], "reason": ""}
            rows.append(checked(folder, row | {"original_id": record["original_image_id"] or record["image_id"]}))
    return rows


def csv_table(file: Path) -> list[Row]:
    """Any CSV with the columns ``path,label`` and maybe ``id,group,domain,split``; paths are relative to its folder."""
    frame = read_table(file, ("path", "label"))
    kept = [column for column in ("id", "group", "domain", "split") if column in frame.columns]
    rows = []
    for record in frame.to_dict("records"):
        path = record["path"].strip().replace("\\", "/")
        row = {"path": path, "id": path, "source_label": record["label"].strip(), "reason": ""}
        rows.append(checked(file.parent, row | {column: record[column].strip() for column in kept}))
    return rows


READERS = {
    "class_folders": class_folders,
    "numbered_table": numbered_table,
    "wbcbench_kaggle": wbcbench_kaggle,
    "wbcbench_hf": wbcbench_hf,
}


def found(folder: Path, layout: dict) -> bool:
    """Whether ``folder`` holds this layout (by its marker, table or base folders); opens nothing."""
    if layout["kind"] == "class_folders":
        based = any((folder / base["path"]).is_dir() for base in layout["bases"])
        return based and ("marker" not in layout or (folder / layout["marker"]).exists())
    if layout["kind"] == "numbered_table":
        return (folder / layout["base"] / layout["table"]).is_file()
    return (folder / layout["marker"]).exists()


def images_below(root: Path, base: Path) -> list[str]:
    """Paths relative to ``root`` of all files below ``base`` but sidecars and hidden ones, and of linked folders."""
    return sorted(_walk(root, base)) if base.is_dir() else []


def _walk(root: Path, base: Path) -> Iterator[str]:
    for place, folders, files in os.walk(base):  # does not enter folders that are links
        folders[:] = [name for name in folders if not name.startswith(".")]
        links = [name for name in folders if (Path(place) / name).is_symlink()]
        images = [name for name in files if Path(name).suffix.lower() not in _SIDECARS and not name.startswith(".")]
        for name in links + images:
            yield (Path(place) / name).relative_to(root).as_posix()


def checked(root: Path, row: Row) -> Row:
    """``row``, with a reason if its path is unsafe or not there. An unsafe path is shown, but never opened."""
    if not row["reason"]:
        there = "" if unsafe(root, row["path"]) or (root / row["path"]).is_file() else "listed, but no such file"
        row["reason"] = unsafe(root, row["path"]) or there
    return row


def unsafe(root: Path, path: str) -> str:
    """Why ``path`` may not be opened below ``root``; empty if it may."""
    pure = PurePosixPath(path)
    if not path or pure.is_absolute() or ".." in pure.parts or "\0" in path or re.match(r"[A-Za-z]:", path):
        return "path leads out of the dataset's folder; use one relative to it, without '..'"
    if not (root / path).resolve().is_relative_to(root.resolve()):
        return "a link that leads out of the dataset's folder; copy the file instead"
    return ""


def read_table(file: Path, columns: tuple[str, ...]) -> pd.DataFrame:
    """A CSV as text, without unnamed columns and empty lines.

    :raises DataMissing: no such file, or no CSV
    :raises UsageError: a column is missing
    """
    try:
        frame = pd.read_csv(file, dtype=str, keep_default_na=False, encoding="utf-8-sig", index_col=False)
    except FileNotFoundError:
        raise DataMissing(f"{file}: no such file; expected a CSV with the columns {','.join(columns)}") from None
    except (ValueError, OSError) as error:
        raise DataMissing(f"{file}: is no CSV ({error}); expected the columns {','.join(columns)}") from error
    frame = frame.rename(columns=str.strip)
    frame = frame[[name for name in frame.columns if name and not name.startswith("Unnamed:")]]
    missing = [name for name in columns if name not in frame.columns]
    if missing:
        raise UsageError(f"{file}: no column {', '.join(missing)}; it has {', '.join(frame.columns)}")
    return frame[(frame != "").any(axis=1)]


def _finer_label(row: Row, inside: PurePosixPath, layout: dict) -> None:
    match = re.search(layout["label_regex"], inside.name)
    label = match["label"] if match else ""
    if label not in layout["folder_of"]:
        row["reason"] = f"file name begins with none of {', '.join(layout['folder_of'])}, so its class is unknown"
    elif layout["folder_of"][label] != inside.parts[0]:
        row["reason"] = f"file name says {label}, but it lies in {inside.parts[0]}"
    row["source_label"] = label if label in layout["folder_of"] else inside.parts[0]


def _table_groups(folder: Path, table: dict | None) -> dict[str, str] | None:
    if table is None:
        return None
    frame = read_table(folder / table["file"], (table["path"], table["group"]))
    return dict(zip(frame[table["path"]], frame[table["group"]], strict=True))


def _absent(path: str, table: str) -> Row:
    reason = f"in {table}, but no such file"
    return {"path": path, "id": path, "source_label": PurePosixPath(path).parts[0], "reason": reason}
