"""A cell: one step of one row of a table, identified by what it computes and from what.

The identity of a cell is the hash of its kind, configuration, parents, data digest and the versions of the algorithms
it uses. No path, host, device or position in a plan enters it, so the same cell has the same id on every machine.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field

SCHEMA = 1
"""Version of ``cell.json`` and of ``wbcrepro plan --json``."""


def canonical_json(value: object) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text. Raises ``ValueError`` on NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


@dataclass(frozen=True)
class Cell:
    """One step. ``config`` and ``parents`` decide the identity; ``labels`` only say where a table uses it."""

    kind: str
    config: dict
    parents: tuple[str, ...] = ()
    versions: dict = field(default_factory=dict)
    labels: dict = field(default_factory=dict, compare=False)

    @property
    def id(self) -> str:
        """``<kind>-<12 hexadecimal digits>``."""
        identity = {
            "kind": self.kind,
            "config": self.config,
            "parents": sorted(self.parents),
            "versions": self.versions,
        }
        return f"{self.kind}-{hashlib.sha256(canonical_json(identity).encode()).hexdigest()[:12]}"

    def to_json(self) -> dict:
        """What ``cell.json`` holds."""
        return {
            "schema": SCHEMA,
            "id": self.id,
            "kind": self.kind,
            "config": self.config,
            "parents": list(self.parents),
            "algorithm_versions": self.versions,
            "labels": self.labels,
        }

    @classmethod
    def from_json(cls, value: dict) -> Cell:
        """The inverse of ``to_json``. Raises ``ValueError`` when the stored id is not the id of the content."""
        cell = cls(
            value["kind"], value["config"], tuple(value["parents"]), value["algorithm_versions"], value["labels"]
        )
        if cell.id != value["id"]:
            raise ValueError(f"cell.json says id {value['id']}, but its content hashes to {cell.id}")
        return cell
