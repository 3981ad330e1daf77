"""The manifest: one row an image, all that the rest of the project knows of a dataset."""

import hashlib
import io
import json
import os
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from wbcrepro.errors import DataMissing, UsageError

COLUMNS = (
    "id", "path", "source_label", "label", "domain", "group", "split", "width", "height", "mode", "sha256", "status",
    "reason",
)  # fmt: skip
"""id: unique and the same on every machine; path: relative to the dataset's folder; source_label: what the dataset
says; label: one of ``classes`` or empty; group: patient, slide or cell, never to be split apart, or empty; split: the
official one or empty; mode: that of the file; status: ``ok`` or ``quarantined``, then reason says why."""

_INTEGERS = ("width", "height")
_DIGESTED = ("id", "label", "domain", "group", "split", "sha256", "status")
_SCHEMA = 1


@dataclass(frozen=True)
class Manifest:
    """A dataset's rows, sorted by id with a RangeIndex. Columns after ``COLUMNS`` are extras of one dataset (severity).

    :raises UsageError: a column is missing, ids repeat, or a label is not in ``classes``
    """

    name: str
    classes: tuple[str, ...]
    frame: pd.DataFrame

    def __post_init__(self) -> None:
        frame = self.frame
        missing = [column for column in COLUMNS if column not in frame.columns]
        if missing:
            raise UsageError(f"manifest of {self.name}: columns {', '.join(missing)} are missing; expected {COLUMNS}")
        extras = [column for column in frame.columns if column not in COLUMNS]
        frame = frame[[*COLUMNS, *extras]].sort_values("id", kind="stable", ignore_index=True)
        frame = frame.astype({column: int if column in _INTEGERS else str for column in frame.columns})
        repeated = frame["id"][frame["id"].duplicated()]
        if len(repeated):
            raise UsageError(f"manifest of {self.name}: {len(repeated)} ids repeat, the first is {repeated.iloc[0]}")
        unknown = set(frame["label"]) - set(self.classes) - {""}
        if unknown:
            raise UsageError(f"manifest of {self.name}: labels {sorted(unknown)} are not among {self.classes}")
        object.__setattr__(self, "frame", frame)
        object.__setattr__(self, "classes", tuple(self.classes))

    def __len__(self) -> int:
        return len(self.frame)

    @property
    def digest(self) -> str:
        """sha256 over what a result can depend on: no path, no order, no host."""
        rows = self.frame[list(_DIGESTED)].to_numpy().tolist()
        text = json.dumps([list(self.classes), sorted(rows)], ensure_ascii=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def counts(self) -> dict[str, int]:
        """Usable images of each class, in the order of ``classes`` (a class without images counts 0)."""
        usable = self.frame["label"][self.frame["status"] == "ok"].value_counts()
        return {name: int(usable.get(name, 0)) for name in self.classes}

    def duplicates(self) -> pd.DataFrame:
        """The usable rows whose file content occurs more than once, equal contents together."""
        frame = self.frame[self.frame["status"] == "ok"]
        return frame[frame["sha256"].duplicated(keep=False)].sort_values(["sha256", "id"])

    def conflicts(self) -> pd.DataFrame:
        """The duplicates to which the dataset itself gives different labels (a missing label is no conflict)."""
        frame = self.duplicates()
        labelled = frame[frame["source_label"] != ""]
        return labelled[labelled.groupby("sha256")["source_label"].transform("nunique") > 1]

    def quarantined(self) -> pd.DataFrame:
        """The rows that cannot be used, with their reason."""
        return self.frame[self.frame["status"] != "ok"]

    def save(self, path: Path) -> None:
        """Write as CSV under one comment line of JSON (name, classes, digest); atomic."""
        header = {"wbcrepro_manifest": _SCHEMA, "name": self.name, "classes": self.classes, "digest": self.digest}
        text = "# " + json.dumps(header) + "\n" + self.frame.to_csv(index=False, lineterminator="\n")
        write_atomically(path, text.encode("utf-8", "surrogateescape"))

    @classmethod
    def load(cls, path: Path) -> "Manifest":
        """Read what ``save`` wrote.

        :raises DataMissing: no such file, another format, or rows that do not give the digest of the header
        """
        try:
            first, _, rest = Path(path).read_text("utf-8", "surrogateescape").partition("\n")
            header = json.loads(first.removeprefix("# "))
            if header["wbcrepro_manifest"] != _SCHEMA:
                raise ValueError(f"schema {header['wbcrepro_manifest']}, expected {_SCHEMA}")
            frame = pd.read_csv(io.StringIO(rest), dtype=str, keep_default_na=False)
            manifest = cls(header["name"], tuple(header["classes"]), frame)
        except FileNotFoundError:
            raise DataMissing(f"{path}: no such manifest; make it with `wbcrepro data verify NAME`") from None
        except (ValueError, KeyError, TypeError, UsageError, pd.errors.ParserError) as error:
            raise DataMissing(f"{path}: no manifest of this version ({error}); delete it and make it anew") from error
        if manifest.digest != header["digest"]:
            raise DataMissing(f"{path}: its rows were changed after it was written; delete it and make it anew")
        return manifest


def write_atomically(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path`` so that a reader sees the old content or the new one, never a part."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with open(partial, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
