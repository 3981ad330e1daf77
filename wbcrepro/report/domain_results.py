"""Committed results of papers of ``design: domains``: the arrays, and every table that is rebuilt from them.

``items-test.npz`` holds ``<laboratory>/ids, labels, domains, folds, groups``; ``items-val.npz`` the same per laboratory
and trial (``<laboratory>-<trial>/ids``). A ``probabilities-<set>-<preset>-<method>.npz`` holds ``<cell>/<selection>``
(N, C) float16. To stay small, ablations and sweeps keep only the selection of their tables, the rows of the other
tables all that are asked for; validation rows are kept for the selection of the tables that need them.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from wbcrepro.papers import load_paper
from wbcrepro.report.archive import Arrays, write_npz
from wbcrepro.report.claims import findings_frame
from wbcrepro.report.domain_claims import evaluate_domain_claims
from wbcrepro.report.domain_evaluate import DomainEvaluator
from wbcrepro.report.domain_layout import KINDS
from wbcrepro.report.domain_page import csv_name
from wbcrepro.report.domain_predictions import (
    SELECTIONS,
    DomainMember,
    DomainPredictions,
    DomainReader,
    DomainScored,
)
from wbcrepro.report.domain_tables import build_domain_table

COLUMNS = ("ids", "labels", "domains", "folds", "groups")
VARIANTS = (
    {},
    {"selection": "last"},
    {"rows": "in_split"},
    {"classes": "occurring"},
    {"without_lone": True},
    {"rows": "all"},
)
"""How the table of laboratories is scored besides the paper's way, each beside it as a CSV."""


def _items_key(member: DomainMember, on: str) -> str:
    return member.held_out if on == "test" else f"{member.held_out}-{member.trial}"


def write_domain_arrays(
    predictions: DomainPredictions, done: list[DomainMember], folder: Path, selections: tuple[str, ...]
) -> dict[str, str]:
    """Write the arrays of finished members and return ``{file: sha256}``.

    Raises ``ValueError`` where two members of one laboratory (and, for validation rows, trial) predict other images.
    """
    tables = [t for t in predictions.paper["tables"].values() if t.get("kind") in KINDS]
    val = {t["selection"] for t in tables if t["kind"] == "validation"}
    compared = {row["method"] for t in tables if t["kind"] not in ("ablation", "sweep") for row in t["rows"]}
    tabled = {t["selection"] for t in tables}
    digests: dict[str, str] = {}
    for on, wanted in (("test", selections), ("val", tuple(s for s in SELECTIONS if s in val))):
        items: dict[str, np.ndarray] = {}
        groups: dict[str, dict[str, np.ndarray]] = {}
        for member in done:
            for selection in wanted if member.method in compared else tabled & set(wanted) or wanted[:1]:
                found = predictions.stored(member, on, selection)
                if found is not None:
                    _add_items(items, _items_key(member, on), found, member.id)
                    group = groups.setdefault(f"probabilities-{on}-{member.preset}-{member.method}.npz", {})
                    group[f"{member.id}/{selection}"] = found.probabilities.astype(np.float16)
        if items:
            digests[f"items-{on}.npz"] = write_npz(folder / f"items-{on}.npz", items)
        digests |= {name: write_npz(folder / name, arrays) for name, arrays in groups.items()}
    return digests


def _add_items(items: dict[str, np.ndarray], key: str, found: DomainScored, cell: str) -> None:
    dtypes = {"ids": str, "labels": np.int16, "domains": str, "folds": np.int8, "groups": str}
    for column in COLUMNS:
        values = getattr(found, column).astype(dtypes[column])
        if not np.array_equal(items.setdefault(f"{key}/{column}", values), values):
            raise ValueError(f"{cell} predicts other images of {key} than the cells before it")


def open_domain_results(folder: Path, value: dict) -> DomainPredictions:
    """Committed results (``value`` is their ``provenance.json``) as `DomainPredictions`."""
    members = tuple(
        DomainMember(
            **cell | {"train_counts": tuple(map(tuple, cell["train_counts"])), "sources": tuple(cell["sources"])}
        )
        for cell in value["cells"]
    )
    options = f"--profile {value['profile']} --dataset {value['benchmark']}"
    options += "" if value["synthetic"] else " --data FOLDER_OF_THE_IMAGES"
    return DomainPredictions(
        load_paper(value["paper"]), value["profile"], value["benchmark"], value["caption"], value["synthetic"],
        value["data_digest"], tuple(value["classes"]), members, _reader(Arrays(folder), members), options,
        tuple(value.get("notes", ())),
    )  # fmt: skip


def _reader(arrays: Arrays, members: tuple[DomainMember, ...]) -> DomainReader:
    by_id = {m.id: m for m in members}

    def read(member_id: str, on: str, selection: str) -> DomainScored | None:
        member = by_id[member_id]
        items, key = arrays.get(f"items-{on}.npz"), _items_key(member, on)
        stored = arrays.get(f"probabilities-{on}-{member.preset}-{member.method}.npz")
        found = stored.get(f"{member_id}/{selection}")
        if found is None or f"{key}/ids" not in items:
            return None
        ids, labels, domains, folds, groups = (items[f"{key}/{column}"] for column in COLUMNS)
        return DomainScored(
            ids, labels.astype(np.int64), found.astype(np.float64), domains, folds.astype(np.int64), groups
        )

    return read


def rebuild_domain_tables(predictions: DomainPredictions, n: int) -> dict[str, str]:
    """``{file name: CSV text}``: every table under every preset, variants of the table of laboratories, the claims."""
    found: dict[str, str] = {}
    evaluator = DomainEvaluator(predictions, n)
    for name, definition in predictions.paper["tables"].items():
        if definition.get("kind") not in KINDS:
            continue
        for preset in dict.fromkeys(m.preset for m in predictions.members):
            for options in VARIANTS if definition["kind"] == "lodo" else VARIANTS[:1]:
                table = build_domain_table(predictions, name, preset=preset, evaluator=evaluator, **options)
                if table.any_result:
                    found[f"{csv_name(table)}.csv"] = table.to_csv()
    findings = findings_frame(predictions, evaluate_domain_claims(predictions, n=n, evaluator=evaluator))
    found["claims.csv"] = findings.to_csv(index=False, float_format="%.2f", lineterminator="\n")
    return found
