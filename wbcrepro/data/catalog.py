"""The catalogue of datasets: ``catalog.yml`` as frozen dataclasses."""

from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from wbcrepro.errors import UsageError

ACCESS = {
    "open": "anyone may download it",
    "manual": "public, but downloaded by hand",
    "gated": "after accepting an agreement; never redistributed",
    "private": "not published",
}


@dataclass(frozen=True)
class Mapping:
    """A named list of classes onto which several datasets can be mapped."""

    name: str
    title: str
    classes: tuple[str, ...]


@dataclass(frozen=True)
class Dataset:
    """One entry. ``labels[mapping][source label] -> class``; a source label that is not there has no class.

    ``folder`` is relative to the data root; ``mapping`` the default one; ``layouts`` the published arrangements of
    files, tried in order (see layouts.py); ``downloads`` the archives, with sha256 or None where nobody computed it.
    """

    name: str
    title: str
    papers: tuple[str, ...]
    licence: dict[str, str]
    citation: str
    source: str | None
    access: str
    images: dict[str, Any]
    stain: str
    folder: str
    mapping: str
    layouts: tuple[dict, ...]
    labels: dict[str, dict[str, str]]
    steps: str
    notes: tuple[str, ...] = ()
    counts: dict[str, int] = field(default_factory=dict)
    source_counts: dict[str, int] = field(default_factory=dict)
    split_counts: dict[str, int] = field(default_factory=dict)
    patients: dict[str, int] = field(default_factory=dict)
    unmapped: tuple[str, ...] = ()
    downloads: tuple[dict, ...] = ()

    @property
    def private(self) -> bool:
        """Whether the images cannot be had by anyone outside the laboratory that owns them."""
        return self.access == "private"

    def instructions(self, data_root: Path | str) -> str:
        """The manual steps, with the folder that the files have to end in."""
        return self.steps.format(source=self.source, folder=Path(data_root) / self.folder).rstrip()

    def labels_under(self, mapping: str) -> tuple[tuple[str, ...], dict[str, str]]:
        """The classes of ``mapping`` that this dataset has, in the mapping's order, and source label -> class."""
        if mapping not in self.labels:
            raise UsageError(
                f"{self.name} has no mapping {mapping!r}; it has: {', '.join(self.labels)} (default {self.mapping})"
            )
        labels = self.labels[mapping]
        return tuple(name for name in mappings()[mapping].classes if name in labels.values()), dict(labels)


@cache
def _read() -> dict[str, Any]:
    return yaml.safe_load((Path(__file__).parent / "catalog.yml").read_text("utf-8"))


@cache
def mappings() -> dict[str, Mapping]:
    """The named class lists."""
    return {
        name: Mapping(name, entry["title"], tuple(entry["classes"])) for name, entry in _read()["mappings"].items()
    }


@cache
def datasets() -> dict[str, Dataset]:
    """All datasets by name, in the order of the file."""
    return {name: _dataset(name, entry) for name, entry in _read()["datasets"].items()}


def dataset(name: str) -> Dataset:
    """The entry called ``name``.

    :raises UsageError: no such dataset; the message lists what there is
    """
    try:
        return datasets()[name]
    except KeyError:
        raise UsageError(
            f"no dataset {name!r}; there are: {', '.join(datasets())}, folder:PATH (class folders) and csv:PATH"
        ) from None


def _dataset(name: str, entry: dict) -> Dataset:
    lists = {key: tuple(value) for key, value in entry.items() if isinstance(value, list)}
    return Dataset(name=name, **(entry | lists))
