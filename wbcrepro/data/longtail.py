"""A long-tailed view of any dataset, with an exponential profile (Cui et al., CVPR 2019, section 5.1)."""

import hashlib
from collections.abc import Sequence

import numpy as np

from wbcrepro.data.manifest import Manifest
from wbcrepro.errors import DataMissing, UsageError


def hash_order(ids: Sequence[str], *salt: object) -> np.ndarray:
    """Positions of ``ids`` in the order of sha256(salt, id): shuffled, but the same on every machine, whatever the row
    order, and an id's rank among others does not change when images are added elsewhere."""
    text = "\x1f".join(map(str, salt))
    keys = [hashlib.sha256(f"{text}\x1f{name}".encode("utf-8", "surrogateescape")).digest() for name in ids]
    return np.array(sorted(range(len(keys)), key=lambda position: (keys[position], ids[position])), dtype=np.int64)


def profile(classes: int, largest: int, ratio: float) -> np.ndarray:
    """Images of each class, head to tail: n_k = largest x ratio^(-k / (C - 1)), rounded; int64 (C,)."""
    if classes < 2 or ratio < 1 or largest < ratio:
        raise UsageError(f"need 2 classes or more and 1 <= ratio <= largest, got {classes}, {ratio} and {largest}")
    return np.rint(largest * float(ratio) ** (-np.arange(classes) / (classes - 1))).astype(np.int64)


def distinct_rows(manifest: Manifest, classes: Sequence[str]) -> np.ndarray:
    """Usable rows of these classes, one per file content, without contents that carry two labels; ascending rows."""
    frame = manifest.frame
    usable = frame[(frame["status"] == "ok") & frame["label"].isin(classes)]
    conflicting = usable.groupby("sha256")["label"].transform("nunique") > 1
    return usable[~conflicting].drop_duplicates("sha256", keep="first").index.to_numpy(np.int64)


def longtail(manifest: Manifest, *, ratio: float, largest: int, order: Sequence[str], seed: int = 42) -> np.ndarray:
    """Rows of a long-tailed subset, in ascending order: ``largest`` of ``order[0]``, 1/``ratio`` of that of the last.

    Which images of a class: the first of `hash_order`, after duplicates and label conflicts are removed.
    :raises DataMissing: a class has fewer images than its place in the profile asks for
    """
    rows = distinct_rows(manifest, order)
    labels, ids = manifest.frame["label"].to_numpy()[rows], manifest.frame["id"].to_numpy()[rows]
    chosen = []
    for name, count in zip(order, profile(len(order), largest, ratio), strict=True):
        of_class = rows[labels == name]
        if len(of_class) < count:
            raise DataMissing(f"{manifest.name}: class {name} has {len(of_class)} distinct images, the profile asks "
                              f"for {count}; lower `largest`, or move the class towards the tail of `order`")
        chosen.append(of_class[hash_order(ids[labels == name], "longtail", seed)[:count]])
    return np.sort(np.concatenate(chosen))
