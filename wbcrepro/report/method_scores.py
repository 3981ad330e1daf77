"""What each design hands to the page that compares all papers: one score a method and test set, with its cells.

All are macro-F1 in the way in which the design scores its own tables. What can be compared is decided by
``one_benchmark``: scores on different images, or under different rules of scoring, never stand in one column.
"""

from __future__ import annotations

from dataclasses import dataclass

from wbcrepro.report.domain_evaluate import DomainEvaluator, DomainSpec
from wbcrepro.report.domain_predictions import DomainPredictions
from wbcrepro.report.evaluate import Estimate, Evaluator, Spec, members_of
from wbcrepro.report.predictions import Predictions
from wbcrepro.report.tables import SET_WORDS, row_spec

METRIC = "macro_f1"
HELD_OUT_SET, HELD_OUT_LABORATORY = "held-out test set", "unseen laboratory"
"""Protocols: what the scored images are to the training ones."""


@dataclass(frozen=True)
class Score:
    """Macro-F1 of one method on one set of images, or the hole where it will stand."""

    method: str
    """What its row is called; unique within paper and preset for one set of networks."""
    preset: str
    protocol: str
    part: str
    """Which images of the benchmark: a set in words, or the laboratory that was held out."""
    networks: tuple[str, ...]
    """What is averaged: one network, or several for an ensemble."""
    estimate: Estimate | None
    members: tuple[str, ...]
    """Ids of the planned cells that it is computed from (one or more for each fold or trial)."""
    missing: tuple[str, ...] = ()
    tier: int = 0
    """What ``--more`` must be to fill the hole."""


def two_stage_scores(predictions: Predictions, n: int | None = None) -> list[Score]:
    """Every planned classifier of every network, on the image as it is (no views), and the paper's averages of several
    networks with its views, on each test set. ``n``: bootstrap resamples."""
    rows = {}
    for m in predictions.members:
        rows.setdefault((m.method, m.preset, m.backbone), (m.method, Spec(m.method, (m.backbone,), m.preset, "none")))
    for name, definition in predictions.paper["tables"].items():
        for line in definition.get("rows", ()):
            for preset in dict.fromkeys(m.preset for m in predictions.members):
                if len(line["backbones"]) > 1:
                    spec = row_spec(predictions.paper, name, line["label"], preset)
                    rows.setdefault((line["label"], preset, ""), (f"{line['label']}, views", spec))
    there = {(m.preset, m.method, m.backbone) for m in predictions.members}
    planned = [r for r in rows.values() if all((r[1].preset, r[1].method, b) in there for b in r[1].backbones)]
    found = []
    for on in predictions.sets() or (predictions.scored_set("test"),):
        evaluator = Evaluator(predictions, on, n)
        for label, spec in planned:
            found.append(_two_stage_score(evaluator, label, spec))
    return found


def _two_stage_score(evaluator: Evaluator, label: str, spec: Spec) -> Score:
    members = members_of(evaluator.predictions, spec)
    networks = tuple(dict.fromkeys(m.network for m in members))
    return Score(
        label, spec.preset, HELD_OUT_SET, SET_WORDS.get(evaluator.on, evaluator.on).rstrip(","), networks,
        evaluator.estimate(spec, METRIC), tuple(m.id for m in members), tuple(m.id for m in members if not m.done),
    )  # fmt: skip


def domain_scores(predictions: DomainPredictions, n: int | None = None) -> list[Score]:
    """Every planned method on every laboratory held out: all its images, the classes that occur there, the weights
    that the paper's table of the unseen laboratory selects. ``n``: bootstrap resamples."""
    evaluator, paper = DomainEvaluator(predictions, n), predictions.paper
    selection = next(t["selection"] for t in paper["tables"].values() if t.get("kind") in ("lodo", "external"))
    first = {}
    for method, entry in paper["methods"].items():
        first.setdefault(entry.get("label"), method)
    found = []
    for laboratory in predictions.held_out():
        for preset, method in dict.fromkeys((m.preset, m.method) for m in predictions.find(held_out=laboratory)):
            spec = DomainSpec(method, preset, selection)
            members = evaluator.members(spec, laboratory)
            label = paper["methods"][method].get("label", method)
            label = label if first.get(label, method) == method else f"{label} ({method})"
            found.append(Score(
                label, preset, HELD_OUT_LABORATORY, laboratory,
                _networks(predictions, members), evaluator.estimate(spec, (laboratory,), METRIC),
                tuple(m.id for m in members), tuple(m.id for m in members if not m.done),
                min((m.tier for m in members if not m.done), default=0),
            ))  # fmt: skip
    return found


def _networks(predictions: DomainPredictions, members: list) -> tuple[str, ...]:
    """A retrained classifier's cell names no network: it is that of the plan."""
    return tuple(dict.fromkeys(m.network for m in members if m.network)) or predictions.networks()
