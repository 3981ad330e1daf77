"""Benchmarks of several laboratories: one domain a part, all of it to train on or to hold out whole.

A trial t holds one domain out, validates on fold t of each of the others (its sources) and trains on their other
folds, as the paper `sada` (80/20, section IV-A) and the poster `boda` (five folds) do; theirs are drawn by image,
without regard to class. Here the folds of a domain are stratified by class and keep groups (slides, cells filmed
several times, patients) whole. Where one group holds every image of a class in its domain, keeping it whole would take
the class away from the training of one trial and give no other anything to validate on: such a group gets fold -1, so
it always trains and never validates, and a note says so. One file content is one image, in one domain, whatever the
number of its copies.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from wbcrepro.data import splits
from wbcrepro.data.longtail import distinct_rows
from wbcrepro.data.manifest import Manifest
from wbcrepro.data.smears import SmearSource, SmearSpec
from wbcrepro.data.sources import ImageSource, JoinedSource, join_sources, open_dataset
from wbcrepro.errors import DataMissing
from wbcrepro.seeds import derive_seed

_UNEVEN = 2.0  # a fold with this many times its share of a class is worth a note


@dataclass(frozen=True)
class _Relabelled:
    """A source under other class names; rows and images are the same."""

    manifest: Manifest
    source: ImageSource

    def read(self, row: int) -> np.ndarray:
        return self.source.read(row)


def domain_source(settings: Mapping, data_root: Path | None, cache: Path, *, progress: bool = True) -> JoinedSource:
    """All parts of a benchmark as one source; the domain of an image is its part's name.

    A part is a dataset of the catalogue under its own ``mapping``, or, where the settings have ``smears``, the
    laboratory of that name with its ``counts``. ``relabel`` (of the part or of the benchmark) renames classes.

    :raises DataMissing: datasets are not below ``data_root``; the message names all of them and the next step
    """
    classes, parts, missing = tuple(settings["classes"]), {}, {}
    for name, part in settings["parts"].items():
        try:
            if "smears" in settings:
                source = _smears(name, part, settings)
            else:
                source = open_dataset(part["dataset"], data_root, cache, progress=progress, mapping=part["mapping"])
        except DataMissing as error:
            missing[part["dataset"]] = error
            continue
        parts[name] = _relabel(name, source, classes, part.get("relabel", settings.get("relabel")))
    if missing:
        raise DataMissing(f"{', '.join(missing)}: cannot be opened, of {len(settings['parts'])} datasets that this "
                          "benchmark needs. Next step: `wbcrepro data fetch NAME` for each.\n"
                          + "\n".join(map(str, missing.values())))
    return join_sources("domains", parts)


def _smears(name: str, part: Mapping, settings: Mapping) -> ImageSource:
    """One laboratory. All share a seed, so cell n of a class differs between laboratories only by name.

    A variant shows the same cells of a laboratory under another ``stain_shift`` (0: the laboratories' mean stain).
    """
    seed = derive_seed("smears", settings["seed"], "domains") % 2**31
    options = {**settings["smears"], **({"stain_shift": part["stain_shift"]} if "stain_shift" in part else {})}
    name = part.get("variant_of", name)
    return SmearSource(SmearSpec(counts=part["counts"], domains=(name,), seed=seed, **options))


def variants_of(settings: Mapping) -> dict[str, tuple[str, ...]]:
    """``{laboratory: its variants}``: parts that are scored when the laboratory is held out and never train."""
    found: dict[str, tuple[str, ...]] = {}
    for name, part in settings["parts"].items():
        if part and "variant_of" in part:
            found[part["variant_of"]] = (*found.get(part["variant_of"], ()), name)
    return found


def _relabel(domain: str, source: ImageSource, classes: Sequence[str], names: Mapping[str, str] | None) -> _Relabelled:
    label = source.manifest.frame["label"]
    if names is not None:
        label = label.map(names).fillna("")
    frame = source.manifest.frame.assign(domain=domain, label=label.where(label.isin(classes), ""))
    return _Relabelled(Manifest(domain, tuple(classes), frame), source)


def domain_parts(manifest: Manifest, classes: Sequence[str], s: Mapping) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """The protocol: every distinct image is in "train"; its fold is one of ``folds`` within its domain, or -1."""
    rows = distinct_rows(manifest, classes)
    domain = manifest.frame["domain"].to_numpy()[rows]
    fold = np.full(len(rows), -1, dtype=np.int64)
    for name in s["parts"]:
        here = np.flatnonzero(domain == name)
        free = here[~_whole_classes(manifest.frame.iloc[rows[here]])]
        if len(free):
            fold[free] = splits.folds(manifest, s["folds"], rows=rows[free], seed=s["seed"])
    return [("train", rows, fold)]


def _whole_classes(frame: pd.DataFrame) -> np.ndarray:
    """Which rows of one domain lie in a group of several images that holds all of some class; bool (N,).

    A class of one image without company is dealt to a fold like any other: it misses from one trial's training.
    """
    cluster = splits.clusters(frame)
    _, code, size = np.unique(cluster, return_inverse=True, return_counts=True)
    of_class = pd.Series(code).groupby(frame["label"].to_numpy())
    lone = {codes.iloc[0] for _, codes in of_class if codes.nunique() == 1 and size[codes.iloc[0]] > 1}
    return np.isin(code, list(lone))


def domain_notes(table: pd.DataFrame, classes: Sequence[str], domains: Sequence[str]) -> list[str]:
    """Caveats that follow from the table: classes without images or with one, groups, uneven folds."""
    notes = []
    for name in domains:
        part = table[table["domain"] == name]
        counts = np.bincount(part["label"], minlength=len(classes))
        absent = [c for c, n in zip(classes, counts, strict=True) if n == 0]
        single = [c for c, n in zip(classes, counts, strict=True) if n == 1]
        if absent:
            notes.append(f"{name} has no image of {', '.join(absent)}: a score on it is over its other "
                         f"{len(classes) - len(absent)} classes.")
        if single:
            notes.append(f"{name} has one image of {' and one of '.join(single)}, which decides that class's score and "
                         f"with it a share of 1/{len(classes) - len(absent)} of macro-F1.")
        if (part["group"] == "").all():
            notes.append(f"{name} names no patients or slides: its folds are by image.")
        else:
            notes += _fold_notes(name, part, classes)
    return notes


def _fold_notes(name: str, part: pd.DataFrame, classes: Sequence[str]) -> list[str]:
    folds = np.arange(-1, part["fold"].max() + 1)
    counts = pd.crosstab(part["label"], part["fold"]).reindex(columns=folds, fill_value=0)
    notes = []
    whole = [f"{row[-1]} of {classes[label]}" for label, row in counts.iterrows() if row[-1]]
    if whole:
        notes.append(f"{name}: a group that holds every image of a class always trains and never validates "
                     f"({', '.join(whole)}), so validation there misses that class.")
    dealt = counts.drop(columns=-1)
    total, k = dealt.sum(axis=1), dealt.shape[1]
    crowded = dealt[(dealt.max(axis=1) > _UNEVEN * total / k) & (total >= 2 * k)]
    if len(crowded):
        listed = "; ".join(f"{classes[label]} {'/'.join(map(str, row))}" for label, row in crowded.iterrows())
        notes.append(f"{name}: folds keep groups whole, so they are uneven in some classes ({listed}).")
    return notes


def class_counts(benchmark) -> pd.DataFrame:
    """The laboratories and their classes: training images, int64, one row a domain, one column a class.

    For a benchmark without ``domains``, one row for each value of the table's domain column.
    """
    table = benchmark.table[benchmark.table["set"] == "train"]
    domains = list(benchmark.domains) or sorted(set(table["domain"]))
    counts = pd.crosstab(table["domain"], table["label"]).reindex(index=domains, fill_value=0)
    counts = counts.reindex(columns=range(len(benchmark.classes)), fill_value=0).astype(np.int64)
    return counts.set_axis(list(benchmark.classes), axis=1).rename_axis(index="domain", columns="class")
