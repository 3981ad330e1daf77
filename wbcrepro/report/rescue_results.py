"""Committed results of papers of ``design: rescue``: the arrays, and every table that is rebuilt from them.

``items.npz`` holds ``<benchmark>/<set>/ids, labels, groups`` for the sets train and the test sets. A
``probabilities-<benchmark>-<row or kind>.npz`` holds ``<cell>/<set>/<view>`` (N, C) float16, NaN without an embedding,
and ``<cell>/<set>/rows``, the places of its images among the items (left out where they are all of them, in order).
``rescue-<benchmark>-<rules>.npz`` is the stored trace, ``rules-<benchmark>-<rules>.json`` the fitted thresholds,
``morphology-<benchmark>-<presets>.npz`` what was measured on test cells (``released_morphology-...``: as the released
code does). To stay small, rows beside `swin` keep the average of their views on the test sets, and networks of folds by
image their validation folds.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np

from wbcrepro.papers import load_paper
from wbcrepro.report.archive import Arrays, write_npz
from wbcrepro.report.claims import findings_frame
from wbcrepro.report.rescue_claims import evaluate_rescue_claims
from wbcrepro.report.rescue_evaluate import RescueEvaluator
from wbcrepro.report.rescue_layout import KINDS
from wbcrepro.report.rescue_predictions import (
    MEASURED,
    NETWORKS,
    TESTS,
    RescueMember,
    RescuePredictions,
    RescueReader,
)
from wbcrepro.report.rescue_tables import build_rescue_table
from wbcrepro.report.rescue_validation import fall_frame

SCORED = (*NETWORKS, "rescored", "semantic")


def _kept(member: RescueMember) -> dict[str, tuple[str, ...]]:
    """``{set: views}`` that are kept of a member."""
    if member.kind == "semantic":
        return dict.fromkeys(("val" if member.fold >= 0 else "train", *TESTS), ("identity",))
    if member.kind == "rescored":
        return dict.fromkeys(TESTS, ("identity",))
    if member.folds == "image":
        return {"val": ("identity",)}
    if member.row == "swin":
        return dict.fromkeys(("val", *TESTS), ("identity", "tta"))
    return dict.fromkeys(TESTS, ("tta",))


def _file(member: RescueMember) -> str:
    name = f"{member.row}-{member.folds}" if member.kind in NETWORKS else member.kind
    return f"probabilities-{member.benchmark}-{name}.npz"


def _measured_file(member: RescueMember) -> str:
    return f"{member.kind}-{member.benchmark}-{'-'.join(member.presets)}.npz"


def write_rescue_arrays(
    predictions: RescuePredictions, done: list[RescueMember], folder: Path, views: tuple[str, ...]
) -> dict[str, str]:
    """Write the arrays of finished members and return ``{file: sha256}``.

    Raises ``ValueError`` where two members disagree on the label of an image.
    """
    items = _items(predictions, done)
    files: dict[str, dict[str, np.ndarray]] = {"items.npz": items}
    for member in (m for m in done if m.kind in SCORED):
        arrays = files.setdefault(_file(member), {})
        for on, kept in _kept(member).items():
            for view in (v for v in kept if v in views):
                found = predictions.read(member, on, view)
                if found is None:
                    continue
                ids = items[f"{member.benchmark}/{_home(on)}/ids"]
                rows = _places(ids, found.ids)
                if not np.array_equal(rows, np.arange(len(ids))):
                    arrays[f"{member.id}/{on}/rows"] = rows.astype(np.int32)
                arrays[f"{member.id}/{on}/{view}"] = found.probabilities.astype(np.float16)
    for member in (m for m in done if m.kind in MEASURED):
        part = predictions.part(member, "morphology")
        kept = {k: v for k, v in part.items() if k == "columns" or k.rpartition("_")[0] in TESTS}
        files[_measured_file(member)] = kept
    digests = {}
    for member in (m for m in done if m.kind == "rescue"):
        files[f"rescue-{member.benchmark}-{member.rules}.npz"] = predictions.part(member, "trace")
        name = f"rules-{member.benchmark}-{member.rules}.json"
        text = json.dumps(predictions.part(member, "rules"), indent=1, sort_keys=True) + "\n"
        (folder / name).write_text(text, encoding="utf-8")
        digests[name] = hashlib.sha256(text.encode()).hexdigest()
    return digests | {name: write_npz(folder / name, arrays) for name, arrays in files.items() if arrays}


def _home(on: str) -> str:
    """The set of items that a stored set's images belong to."""
    return on if on in TESTS else "train"


def _items(predictions: RescuePredictions, done: list[RescueMember]) -> dict[str, np.ndarray]:
    known: dict[str, dict[str, tuple[int, str]]] = {}
    for member in (m for m in done if m.kind in SCORED):
        for on, kept in _kept(member).items():
            found = predictions.read(member, on, kept[0])
            if found is None:
                continue
            images = known.setdefault(f"{member.benchmark}/{_home(on)}", {})
            columns = (found.ids.tolist(), found.labels.tolist(), found.groups.tolist())
            for name, label, group in zip(*columns, strict=True):
                if images.setdefault(name, (label, group)) != (label, group):
                    raise ValueError(f"{member.id} gives {name} another label or group than the cells before it")
    items = {}
    for key, images in known.items():
        items |= {
            f"{key}/ids": np.array(list(images)),
            f"{key}/labels": np.array([label for label, _ in images.values()], dtype=np.int16),
            f"{key}/groups": np.array([group for _, group in images.values()]),
        }
    return items


def _places(ids: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    place = {name: i for i, name in enumerate(ids.tolist())}
    return np.array([place[name] for name in wanted.tolist()], dtype=np.int64)


def open_rescue_results(folder: Path, value: dict) -> RescuePredictions:
    """Committed results (``value`` is their ``provenance.json``) as `RescuePredictions`."""
    members = tuple(
        RescueMember(**cell | {"presets": tuple(cell["presets"]), "train_counts": tuple(cell["train_counts"])})
        for cell in value["cells"]
    )
    options = f"--profile {value['profile']} --dataset {value['benchmark']}"
    options += "" if value["synthetic"] else " --data FOLDER_OF_THE_IMAGES"
    return RescuePredictions(
        load_paper(value["paper"]), value["profile"], value["benchmark"], value["caption"], value["synthetic"],
        value["data_digest"], tuple(value["classes"]), members, _reader(folder, members), options,
        tuple(map(tuple, value.get("controls", ()))), tuple(value.get("notes", ())),
    )  # fmt: skip


def _reader(folder: Path, members: tuple[RescueMember, ...]) -> RescueReader:
    by_id, arrays = {m.id: m for m in members}, Arrays(folder)

    def read(member_id: str, part: str) -> dict | None:
        member = by_id[member_id]
        if part == "rules":
            return json.loads((folder / f"rules-{member.benchmark}-{member.rules}.json").read_text(encoding="utf-8"))
        if part == "trace":
            return arrays.get(f"rescue-{member.benchmark}-{member.rules}.npz") or None
        if part == "morphology":
            return arrays.get(_measured_file(member)) or None
        return _predictions(member, arrays) if member.kind in SCORED else None

    return read


def _predictions(member: RescueMember, arrays: Arrays) -> dict | None:
    """As a cell stores them, with the kept averages as views."""
    stored, items, found = arrays.get(_file(member)), arrays.get("items.npz"), {}
    for on, kept in _kept(member).items():
        views = [v for v in kept if f"{member.id}/{on}/{v}" in stored]
        if not views:
            continue
        key = f"{member.benchmark}/{_home(on)}"
        rows = stored.get(f"{member.id}/{on}/rows", slice(None))
        found |= {f"{on}_{c}": items[f"{key}/{c}"][rows] for c in ("ids", "labels", "groups")}
        found[f"{on}_probabilities"] = np.stack([stored[f"{member.id}/{on}/{v}"] for v in views], axis=1)
        found["views"] = np.array(views)
    return found or None


def rebuild_rescue_tables(predictions: RescuePredictions, n: int) -> dict[str, str]:
    """``{file name: CSV text}``: every table under every preset, the fall to the test set, the claims."""
    found: dict[str, str] = {}
    evaluator = RescueEvaluator(predictions, n)
    for name, definition in predictions.paper["tables"].items():
        if definition.get("kind") not in KINDS:
            continue
        for preset in predictions.presets() if definition["kind"] == "waterfall" else ("paper",):
            table = build_rescue_table(predictions, name, preset=preset, evaluator=evaluator)
            if table.any_result:
                found[f"{name}-{preset}.csv"] = table.to_csv()
    for metric in ("macro_f1", "balanced_accuracy"):
        fall = fall_frame(evaluator, metric)
        if len(fall):
            found[f"fall-{metric}.csv"] = fall.to_csv(index=False, float_format="%.2f", lineterminator="\n")
    findings = findings_frame(predictions, evaluate_rescue_claims(predictions, evaluator=evaluator))
    found["claims.csv"] = findings.to_csv(index=False, float_format="%.2f", lineterminator="\n")
    return found
