"""Splits of a manifest's rows. No group (patient, slide) and no file content (sha256) is ever on two sides.

Images that share a group or a content are tied into one cluster; clusters are dealt to the parts so that every class
comes as close as possible to its target. Order comes from hashes of ids and a seed, so a split does not depend on row
order or on a library's random generator. All functions take row indices of a manifest and return int64 arrays.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from wbcrepro.data.longtail import hash_order
from wbcrepro.data.manifest import Manifest
from wbcrepro.errors import DataMissing, UsageError


def clusters(frame: pd.DataFrame, by_group: bool = True) -> np.ndarray:
    """A code for each row, equal for rows tied by sha256 or by group, directly or through others; int64 (N,).

    An empty hash or group ties nothing. A group is one person whatever the domain: the two releases of a WBCBench
    image, pristine and degraded, are different domains of one patient.
    """
    n = len(frame)
    keys = [frame["sha256"].to_numpy(str)] + ([frame["group"].to_numpy(str)] if by_group else [])
    ends = []
    for key in keys:
        codes, _ = pd.factorize(pd.Series(key).where(key != ""))
        rows = np.flatnonzero(codes >= 0)
        first = np.full(codes.max(initial=-1) + 1, -1)
        first[codes[rows][::-1]] = rows[::-1]
        ends.append((rows, first[codes[rows]]))
    left, right = (np.concatenate(side) for side in zip(*ends, strict=True))
    graph = coo_array((np.ones(len(left), dtype=bool), (left, right)), shape=(n, n))
    return connected_components(graph, directed=False)[1].astype(np.int64)


def deal(ids: Sequence[str], labels: np.ndarray, cluster: np.ndarray, shares: Sequence[float], seed: int) -> np.ndarray:
    """The part (0..len(shares)-1) of each row, int64 (N,); parts get ``shares`` (summing to 1) of every class.

    Clusters of several images go first, those that hold most of a rare class before others, each to the part where it
    lowers sum_c,p ((n_cp - target_cp) / n_c)^2 most; single images then fill what each class still lacks.
    """
    shares = np.asarray(shares, dtype=float)
    if not np.isclose(shares.sum(), 1) or (shares <= 0).any():
        raise UsageError(f"shares must be positive and sum to 1, got {shares}")
    _, label = np.unique(labels, return_inverse=True)
    _, cluster, size = np.unique(cluster, return_inverse=True, return_counts=True)
    totals = np.bincount(label).astype(float)
    target, got = totals[:, None] * shares, np.zeros((len(totals), len(shares)))
    part = np.full(len(label), -1, dtype=np.int64)
    order = hash_order(list(ids), "deal", seed)
    for rows in _large_clusters(order, cluster, size, label, totals):
        k = np.bincount(label[rows], minlength=len(totals))[:, None]
        chosen = int(np.argmin((k * (2 * (got - target) + k) / totals[:, None] ** 2).sum(0)))
        part[rows] = chosen
        got[:, chosen] += k[:, 0]
    single = order[size[cluster[order]] == 1]
    for code in range(len(totals)):
        rows = single[label[single] == code]
        part[rows] = np.repeat(np.arange(len(shares)), _fill(len(rows), target[code] - got[code], got.sum(0) / shares))
        got[code] += np.bincount(part[rows], minlength=len(shares))
    return part


def _large_clusters(order, cluster, size, label, totals) -> list[np.ndarray]:
    """Rows of each cluster of two images or more, the one with the largest share of any class first, ties by hash."""
    members: dict[int, list[int]] = {}
    for row in order[size[cluster[order]] > 1]:
        members.setdefault(int(cluster[row]), []).append(int(row))
    found = [np.array(rows) for rows in members.values()]
    return sorted(found, key=lambda rows: -(np.bincount(label[rows], minlength=len(totals)) / totals).max())


def _fill(n: int, lack: np.ndarray, load: np.ndarray) -> np.ndarray:
    """Split n images over parts that lack ``lack``: largest remainders, ties to the part with the smallest load."""
    lack = np.clip(lack, 0, None)
    ideal = lack * (n / lack.sum()) if lack.sum() > 0 else np.full(len(lack), n / len(lack))
    whole = np.floor(ideal + 1e-9)
    first = np.lexsort((load, -np.round(ideal - whole, 9)))
    whole[first[: int(n - whole.sum())]] += 1
    return whole.astype(np.int64)


def _usable(manifest: Manifest, rows) -> tuple[pd.DataFrame, np.ndarray]:
    frame = manifest.frame
    rows = np.flatnonzero((frame["status"] == "ok") & (frame["label"] != "")) if rows is None else np.asarray(rows)
    if not len(rows):
        raise DataMissing(f"{manifest.name}: there is no usable labelled image to split")
    return frame.iloc[rows], rows.astype(np.int64)


def folds(manifest: Manifest, k: int = 5, *, rows=None, seed: int = 42, by_group: bool = True) -> np.ndarray:
    """Fold 0..k-1 of each of ``rows`` (default: all usable labelled rows), stratified by label; int64 (len(rows),).

    ``by_group=False`` ignores groups (the image-level folds of the paper `decoupled`); identical files stay together.
    """
    frame, rows = _usable(manifest, rows)
    return deal(frame["id"].to_list(), frame["label"].to_numpy(str), clusters(frame, by_group), [1 / k] * k, seed)


def stratified_folds(manifest: Manifest, k: int = 5, *, rows=None, seed: int = 42) -> np.ndarray:
    """Image-level folds; see `folds`."""
    return folds(manifest, k, rows=rows, seed=seed, by_group=False)


def group_folds(manifest: Manifest, k: int = 5, *, rows=None, seed: int = 42) -> np.ndarray:
    """Patient- or group-level folds; see `folds`. :raises UsageError: no row has a group"""
    frame, _ = _usable(manifest, rows)
    if (frame["group"] == "").all():
        raise UsageError(f"{manifest.name} names no groups; patient-level folds are impossible, use stratified_folds")
    return folds(manifest, k, rows=rows, seed=seed)


def held_out(manifest: Manifest, fraction: float = 0.2, *, rows=None, seed: int = 42,
             by_group: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """(training rows, held-out rows), stratified; with `folds` on the first this is the protocol of `decoupled`."""
    frame, rows = _usable(manifest, rows)
    cluster = clusters(frame, by_group)
    part = deal(frame["id"].to_list(), frame["label"].to_numpy(str), cluster, [1 - fraction, fraction], seed)
    return rows[part == 0], rows[part == 1]


def leave_one_domain_out(manifest: Manifest, domain: str, *, rows=None) -> tuple[np.ndarray, np.ndarray]:
    """(rows of the other domains, rows of ``domain``). Training rows whose content also occurs in the held-out domain
    are dropped. :raises UsageError: unknown domain, or the only one"""
    frame, rows = _usable(manifest, rows)
    here = (frame["domain"] == domain).to_numpy()
    if not here.any() or here.all():
        raise UsageError(f"{manifest.name}: cannot hold out domain {domain!r} of {sorted(set(frame['domain']))}")
    return rows[_apart(frame, ~here, here)], rows[here]


def official(manifest: Manifest, train: Sequence[str], test: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """(rows whose ``split`` is in ``train``, in ``test``), e.g. WBCBench's phase1_train + phase2_train to phase2_eval.

    Training rows that share a patient or a file with the test side are dropped. :raises DataMissing: a side is empty
    """
    frame, rows = _usable(manifest, None)
    learn, held = (frame["split"].isin(list(names)).to_numpy() for names in (train, test))
    for names, side in ((train, learn), (test, held)):
        if not side.any():
            raise DataMissing(f"{manifest.name}: no labelled image has a split among {list(names)}; "
                              f"found {sorted(set(frame['split']))}")
    return rows[_apart(frame, learn, held)], rows[held]


def _apart(frame: pd.DataFrame, learn: np.ndarray, held: np.ndarray) -> np.ndarray:
    cluster = clusters(frame)
    return learn & ~np.isin(cluster, cluster[held])
