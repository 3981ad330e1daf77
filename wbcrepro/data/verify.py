"""Compare a dataset on disk with what the catalogue says of it."""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from wbcrepro.data import catalog
from wbcrepro.data.manifest import Manifest
from wbcrepro.data.sources import FileSource

SUMS = "SHA256SUMS"


@dataclass(frozen=True)
class Report:
    """What a check found: ``missing`` may be accepted by who works with a part, ``wrong`` never."""

    name: str
    images: int
    expected: int | None
    missing: tuple[str, ...]
    wrong: tuple[str, ...]
    sums_checked: int
    quarantined: pd.DataFrame
    duplicates: pd.DataFrame
    conflicts: pd.DataFrame

    @property
    def verdict(self) -> str:
        """``wrong``, ``incomplete``, ``complete`` or, where nothing is known to compare with, ``readable``."""
        if self.wrong or len(self.quarantined):
            return "wrong"
        if self.missing:
            return "incomplete"
        return "complete" if self.expected is not None else "readable"


def check(name: str, source: FileSource, data_root: Path | None) -> Report:
    """Check counts by class and split, and sha256 of every image that a SHA256SUMS file beside the data lists."""
    manifest = source.manifest
    usable = manifest.frame[manifest.frame["status"] == "ok"]
    missing, wrong, expected = [], [], None
    if ":" not in name:
        entry = catalog.dataset(name)
        expected = entry.images["total"]
        # WBCBench is counted as Kaggle has it: without the degraded copies and the test labels of the other release.
        counted = usable[usable["domain"] == "pristine"] if "original_id" in usable else usable
        for what, known, column in (
            ("class", entry.counts, counted["source_label"][counted["split"] != "phase2_test"]),
            ("folder", entry.source_counts, counted["path"].map(lambda path: Path(path).parent.name)),
            ("split", entry.split_counts, counted["split"]),
            ("all", {"images": expected} if expected is not None else {}, counted["status"].map({"ok": "images"})),
        ):
            have = column.value_counts()
            for key, count in known.items():
                _compare(f"{what} {key}", int(have.get(key, 0)), count, missing, wrong)
    checked, changed = _compare_sums(manifest, source.root, data_root)
    wrong += [f"{path}: other content than {SUMS} says" for path in changed]
    return Report(
        name, len(usable), expected, tuple(missing), tuple(wrong), checked, manifest.quarantined(),
        manifest.duplicates(), manifest.conflicts(),
    )  # fmt: skip


def _compare(what: str, have: int, count: int, missing: list[str], wrong: list[str]) -> None:
    if have < count:
        missing.append(f"{what}: {have} of {count}")
    elif have > count:
        wrong.append(f"{what}: {have}, but only {count} were published")


def _compare_sums(manifest: Manifest, root: Path, data_root: Path | None) -> tuple[int, list[str]]:
    listed: dict[Path, str] = {}
    for folder in {root, Path(data_root) if data_root else root}:
        if (folder / SUMS).is_file():
            for line in (folder / SUMS).read_text("utf-8").splitlines():
                digest, _, path = line.partition("  ")
                listed[folder / path.removeprefix("*")] = digest.lower()
    seen = {root / path: (path, digest) for path, digest in manifest.frame[["path", "sha256"]].itertuples(index=False)}
    both = [(*seen[path], listed[path]) for path in seen if path in listed]
    return len(both), [path for path, digest, expected in both if digest != expected]
