"""Benchmarks: which images of a dataset train, in which fold, and which test, pristine and degraded.

`load_benchmark` reads `benchmarks.yml`, or applies the paper `decoupled`'s protocol (20 % held out, five folds on the
rest, by group where groups are known) to any catalogued dataset, ``folder:PATH`` or ``csv:PATH``.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache as cached
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
import yaml

from wbcrepro.data import catalog, domain_benchmarks, splits
from wbcrepro.data.degrade import degrade
from wbcrepro.data.longtail import distinct_rows, hash_order, longtail
from wbcrepro.data.manifest import Manifest
from wbcrepro.data.smears import SmearSource, SmearSpec
from wbcrepro.data.sources import ImageSource, JoinedSource, join_sources, open_dataset
from wbcrepro.errors import DataMissing, UsageError
from wbcrepro.seeds import derive_seed

Part = tuple[str, np.ndarray, np.ndarray | int]  # set, manifest rows, fold of each row


PUBLISHED = "published"
"""``degraded`` of a benchmark whose test images were published degraded, at least some of them."""


@dataclass(frozen=True)
class Benchmark:
    """``table`` has one row an item: item (0..N-1), id, row (of the manifest), label (code into ``classes``), set
    ("train" | "test" | "test_degraded"), fold (-1 outside train, and for images that always train), group, domain. A
    degraded copy that this package makes has the id of its image. ``classes`` run from head to tail. ``degraded``: how
    copies are degraded, or `PUBLISHED`. ``notes`` are caveats that belong next to every number. ``domains``: the
    laboratories of protocol `domains` in order, each of which can be held out; ``variants``: further domains that are
    scored with a held-out one and never train (the same cells, other stains)."""

    name: str
    source: ImageSource
    classes: tuple[str, ...]
    synthetic: bool
    caption: str
    notes: tuple[str, ...]
    table: pd.DataFrame
    degraded: Mapping | str | None = None
    domains: tuple[str, ...] = ()
    variants: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @cached_property
    def digest(self) -> str:
        """sha256 over the manifest's digest, the classes, the table (without row numbers) and the degradation."""
        columns = ["id", "label", "set", "fold", "group", "domain"]
        content = [self.source.manifest.digest, self.classes, self.table[columns].to_numpy().tolist(), self.degraded]
        return hashlib.sha256(json.dumps(content, ensure_ascii=True, default=int).encode()).hexdigest()

    @cached_property
    def image_folds(self) -> np.ndarray:
        """Fold of each row by image alone, int64 (N,), -1 outside train: as many folds as ``fold`` has, patients and
        slides ignored. What cross-validation by image looks like where cells of one person are on both sides."""
        folds = np.full(len(self.table), -1, dtype=np.int64)
        train = np.flatnonzero((self.table["set"] == "train") & (self.table["fold"] >= 0))
        rows, count = self.table["row"].to_numpy()[train], int(self.table["fold"].max()) + 1
        folds[train] = splits.folds(self.source.manifest, count, rows=rows, seed=42, by_group=False)
        return folds

    @cached_property
    def twins(self) -> np.ndarray:
        """Manifest row of the pristine twin of each published degraded image, int64 (N,), -1 where there is none: the
        pairs of WBCBench's Hugging Face release. Copies that this package degrades are not among them."""
        return _twins(self.source.manifest.frame, self.table["row"].to_numpy())

    def read(self, item: int) -> np.ndarray:
        """Image of a table row, uint8 (H, W, 3); items of "test_degraded" are degraded by a seed from their id, where
        they were not published degraded."""
        row, severity = self.table.iloc[item], self.severity(item)
        image = self.source.read(int(row["row"]))
        if not severity:
            return image
        seed = derive_seed("degraded", self.degraded["seed"], row["id"])
        return degrade(image, kind=self.degraded["kind"], severity=severity, seed=seed)

    def severity(self, item: int) -> int:
        """Severity by which this package degrades an item: 0 if not at all, otherwise one of the benchmark's
        severities, from a hash of its id."""
        row = self.table.iloc[item]
        if row["set"] != "test_degraded" or self.degraded == PUBLISHED:
            return 0
        choices = self.degraded["severities"]
        return choices[derive_seed("severity", self.degraded["seed"], row["id"]) % len(choices)]

    def counts(self, name: str = "train") -> np.ndarray:
        """Images of each class in a set, int64 (C,)."""
        return np.bincount(self.table["label"][self.table["set"] == name], minlength=len(self.classes))


@cached
def _document() -> dict:
    return yaml.safe_load(Path(__file__).with_name("benchmarks.yml").read_text(encoding="utf-8"))


def names() -> tuple[str, ...]:
    """The benchmarks that `benchmarks.yml` fixes."""
    return tuple(_document()["benchmarks"])


def datasets_of(name: str) -> tuple[str, ...]:
    """The catalogued datasets that the images of a benchmark come from; () where they are synthetic, or none of them is
    in the catalogue (``folder`` and ``csv``, whose images only their owner knows)."""
    entry = _document()["benchmarks"].get(name, {"dataset": name})
    parts = entry["parts"].values() if "parts" in entry else [entry]
    return tuple(part["dataset"] for part in parts if part.get("dataset") in catalog.datasets())


def load_benchmark(name: str, *, data_root: Path | None, cache: Path, progress: bool = True) -> Benchmark:
    """Open a benchmark of `benchmarks.yml`, a catalogued dataset, ``folder:PATH`` or ``csv:PATH``.

    :raises UsageError: unknown name
    :raises DataMissing: its images are not below ``data_root`` (the message says how to get them), or are too few
    """
    document = _document()
    entry = document["benchmarks"].get(name)
    if entry is None:
        if name not in catalog.datasets() and not name.startswith(("folder:", "csv:")):
            raise UsageError(f"unknown benchmark {name!r}; known: {', '.join(names())}, a dataset of `wbcrepro data "
                             "list`, folder:PATH or csv:PATH")
        entry = {"dataset": name, "protocol": "held_out", "fraction": 0.2, "by_group": True, "notes": []}
        name = name.partition(":")[0]  # the path stays out of everything that is stored
        entry["caption"] = f"{name}: 20 % held out and five folds on the rest"
    settings = document["defaults"] | entry
    if settings["protocol"] == "smears":
        source = smear_source(settings)
    elif settings["protocol"] == "domains":
        source = domain_benchmarks.domain_source(settings, data_root, cache, progress=progress)
    else:
        source = open_dataset(settings["dataset"], data_root, cache, progress=progress)
    return build(name, source, settings)


def build(name: str, source: ImageSource, settings: Mapping) -> Benchmark:
    """A benchmark from an open source and the settings of one entry of `benchmarks.yml` (with its defaults)."""
    manifest = source.manifest
    classes = tuple(settings.get("classes") or _by_frequency(manifest))
    parts = PROTOCOLS[settings["protocol"]](manifest, classes, settings)
    in_domains = settings["protocol"] == "domains"
    variants = domain_benchmarks.variants_of(settings) if in_domains else {}
    domains = tuple(p for p in settings["parts"] if not any(p in v for v in variants.values())) if in_domains else ()
    degraded = None if domains else settings["degraded"]
    if degraded == PUBLISHED:
        parts = [piece for part in parts for piece in (_published(manifest, part[1]) if part[0] == "test" else [part])]
    elif degraded is not None:
        parts = [*parts, *(("test_degraded", rows, -1) for part, rows, _ in parts if part == "test")]
    table = _table(manifest, classes, parts)
    notes = domain_benchmarks.domain_notes(table, classes, domains) if domains else []
    benchmark = Benchmark(name, source, classes, "smears" in settings, settings["caption"],
                          (*settings["notes"], *_notes(manifest, table), *notes), table, degraded, domains, variants)
    empty = [c for c, n in zip(classes, benchmark.counts(), strict=True) if n == 0]
    if empty:
        raise DataMissing(f"benchmark {name}: no training image of {', '.join(empty)} in {len(manifest.frame)} rows of "
                          "the manifest; a class whose images all share one group cannot be on both sides of a split")
    return benchmark


def _published(manifest: Manifest, rows: np.ndarray) -> list[Part]:
    """Test rows as two sets: those that were published degraded, and the pristine ones with the twins of the former."""
    hurt = manifest.frame["domain"].to_numpy()[rows] == "degraded"
    twins = _twins(manifest.frame, rows[hurt])
    pristine = np.union1d(rows[~hurt], twins[twins >= 0])
    if not hurt.any() or not len(pristine):
        raise DataMissing(f"{manifest.name}: expected pristine and degraded test images, got {len(pristine)} and "
                          f"{hurt.sum()}. Next step: both phases of the release")  # fmt: skip
    return [("test", pristine, -1), ("test_degraded", rows[hurt], -1)]


def _twins(frame: pd.DataFrame, rows: np.ndarray) -> np.ndarray:
    """Manifest rows int64 (N,) of the pristine twins of published degraded images ``rows`` (N,), -1 without one."""
    found = np.full(len(rows), -1, dtype=np.int64)
    if "original_id" not in frame:
        return found
    pristine = frame.index[(frame["domain"] == "pristine") & (frame["status"] == "ok")]
    row_of = dict(zip(frame["original_id"].loc[pristine], pristine, strict=True))
    domains, originals = frame["domain"].to_numpy()[rows], frame["original_id"].to_numpy()[rows]
    for place in np.flatnonzero(domains == "degraded"):
        found[place] = row_of.get(originals[place], -1)
    return found


def _table(manifest: Manifest, classes: Sequence[str], parts: Sequence[Part]) -> pd.DataFrame:
    columns = ["id", "label", "group", "domain"]
    frames = [manifest.frame.iloc[rows][columns].assign(row=rows, set=part, fold=fold) for part, rows, fold in parts]
    table = pd.concat(frames, ignore_index=True)
    code = {label: position for position, label in enumerate(classes)}
    table["label"] = table["label"].map(code).astype(np.int64)
    table = table.astype({"row": np.int64, "fold": np.int64}).rename_axis("item").reset_index()
    return table[["item", "id", "row", "label", "set", "fold", "group", "domain"]]


def _by_frequency(manifest: Manifest) -> list[str]:
    counts = {name: n for name, n in manifest.counts().items() if n}
    return sorted(counts, key=lambda name: (-counts[name], name))


def _notes(manifest: Manifest, table: pd.DataFrame) -> list[str]:
    notes = []
    if len(manifest.quarantined()):
        notes.append(f"{len(manifest.quarantined())} files could not be used; the dataset report says why.")
    if (table["group"] == "").all() and not table.empty:
        notes.append("No image here has a patient or group identity: the split is by image, and cells of one person "
                     "may be on both sides.")
    return notes


def _rows(manifest: Manifest, classes: Sequence[str]) -> np.ndarray:
    """Usable rows, one per file content, without label conflicts. WBCBench as Kaggle, the paper's source, has it: of
    phase 2, which the Hugging Face release holds twice, the degraded images; of its test split, which that release
    labels, none."""
    frame = manifest.frame.iloc[distinct_rows(manifest, classes)]
    again = (frame["domain"] == "pristine") & frame["split"].str.startswith("phase2")
    return frame.index[~again & (frame["split"] != "phase2_test")].to_numpy(np.int64)


def _longtail(manifest: Manifest, classes: Sequence[str], s: Mapping) -> list[Part]:
    """Training: the long-tailed view, in folds. Test: the same number of every class from what is left."""
    train = longtail(manifest, ratio=s["ratio"], largest=s["largest"], order=classes, seed=s["seed"])
    rest = np.setdiff1d(distinct_rows(manifest, classes), train)
    labels, ids = manifest.frame["label"].to_numpy()[rest], manifest.frame["id"].to_numpy()[rest]
    test = []
    for name in classes:
        left = rest[labels == name]
        if len(left) < s["test_per_class"]:
            raise DataMissing(f"{manifest.name}: {len(left)} images of {name} are left for the test set, "
                              f"expected {s['test_per_class']}")
        test.append(left[hash_order(ids[labels == name], "test", s["seed"])[: s["test_per_class"]]])
    return [("train", train, splits.folds(manifest, s["folds"], rows=train, seed=s["seed"])),
            ("test", np.concatenate(test), -1)]


def _held_out(manifest: Manifest, classes: Sequence[str], s: Mapping) -> list[Part]:
    if s.get("needs_groups") and (manifest.frame["group"] == "").all():
        raise DataMissing(f"{manifest.name}: these files name no patients, by which this benchmark splits. Next step: "
                          f"the release that does (wbcrepro data fetch {manifest.name}), or a benchmark split by image")
    options = {"seed": s["seed"], "by_group": s["by_group"]}
    train, test = splits.held_out(manifest, s["fraction"], rows=_rows(manifest, classes), **options)
    return [("train", train, splits.folds(manifest, s["folds"], rows=train, **options)), ("test", test, -1)]


def _single(manifest: Manifest, classes: Sequence[str], s: Mapping) -> list[Part]:
    """One split: fold 0 stops the training and is reported; fold -1 only trains, in every plan. No test set."""
    options = {"seed": s["seed"], "by_group": s["by_group"]}
    train, val = splits.held_out(manifest, s["fraction"], rows=_rows(manifest, classes), **options)
    return [("train", train, -1), ("train", val, 0)]


def _official(manifest: Manifest, classes: Sequence[str], s: Mapping) -> list[Part]:
    train, test = splits.official(manifest, s["train_splits"], s["test_splits"])
    allowed = _rows(manifest, classes)
    train, test = np.intersect1d(train, allowed), np.intersect1d(test, allowed)
    return [("train", train, splits.folds(manifest, s["folds"], rows=train, seed=s["seed"])), ("test", test, -1)]


def _smears(manifest: Manifest, classes: Sequence[str], s: Mapping) -> list[Part]:
    side = manifest.frame["split"].to_numpy()
    train, test = (np.flatnonzero(side == name) for name in ("train", "test"))
    return [("train", train, splits.folds(manifest, s["folds"], rows=train, seed=s["seed"])), ("test", test, -1)]


PROTOCOLS = {"longtail": _longtail, "held_out": _held_out, "single": _single, "official": _official, "smears": _smears,
             "domains": domain_benchmarks.domain_parts}


def smear_source(settings: Mapping) -> JoinedSource:
    """Long-tailed training smears and test smears of other patients: as many of each class, but for ``test_more``."""
    order, options = tuple(settings["classes"]), settings["smears"]
    seeds = {part: derive_seed("smears", settings["seed"], part) % 2**31 for part in ("train", "test")}
    tail = SmearSpec.longtail(settings["largest"], settings["ratio"], smallest=settings["smallest"], order=order,
                              seed=seeds["train"], **options)
    counts = dict.fromkeys(order, settings["test_per_class"]) | settings.get("test_more", {})
    test = SmearSpec(counts=counts, seed=seeds["test"], **options)
    return join_sources("smears", {"train": SmearSource(tail), "test": SmearSource(test)})
