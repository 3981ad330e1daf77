"""What ``design: rescue`` hands to the page that compares all papers: single networks, and the rows of its waterfall.

A single network stands where those of other papers do; an average of folds is an average of several networks, and
after phase 1 the embedding's network has its part in it.
"""

from __future__ import annotations

from wbcrepro.report.method_scores import HELD_OUT_SET, METRIC, Score
from wbcrepro.report.rescue_evaluate import RescueEvaluator, RescueSpec
from wbcrepro.report.rescue_layout import waterfall_lines
from wbcrepro.report.rescue_predictions import TESTS, RescueMember, RescuePredictions
from wbcrepro.report.tables import SET_WORDS


def rescue_scores(predictions: RescuePredictions, n: int | None = None) -> list[Score]:
    """Every network alone on the image as it is, then the paper's averages of folds and views with their phases, on
    each test set of the run's own benchmark. ``n``: bootstrap resamples."""
    evaluator = RescueEvaluator(predictions, n)
    definition = next(t for t in predictions.paper["tables"].values() if t.get("kind") == "waterfall")
    specs: dict[RescueSpec, str] = {}
    alone: set[tuple[str, ...]] = set()  # presets may share their networks
    for preset in predictions.presets():
        for line in definition["rows"]:
            members = tuple(m.id for m in predictions.networks(line["row"], preset))
            if members and members not in alone:
                alone.add(members)
                specs[RescueSpec(line["row"], preset=preset, views="identity", folds="each")] = line["row"]
        for line in waterfall_lines(predictions, definition, preset):
            there = predictions.networks(line.spec.row, preset)
            if line.spec.preset == preset and line.spec.folds != "each" and there:
                specs[line.spec] = line.label
    sets = predictions.sets() or TESTS[:1]
    return [_score(evaluator, label, spec, on) for on in sets for spec, label in specs.items()]


def _score(evaluator: RescueEvaluator, label: str, spec: RescueSpec, on: str) -> Score:
    p = evaluator.predictions
    members = _members(p, spec)
    return Score(
        label, spec.preset, HELD_OUT_SET, SET_WORDS[on], _networks(p, spec), evaluator.estimate(spec, on, METRIC),
        tuple(m.id for m in members), tuple(m.id for m in members if not m.done),
    )  # fmt: skip


def _members(predictions: RescuePredictions, spec: RescueSpec) -> list[RescueMember]:
    found = predictions.networks(spec.row, spec.preset)
    if spec.stage == "base":
        return found
    semantic = [m for m in predictions.select("semantic", spec.preset) if m.fold >= 0]
    return [*found, *semantic, *predictions.select("rescue", rules=spec.rules)]


def _networks(predictions: RescuePredictions, spec: RescueSpec) -> tuple[str, ...]:
    members = predictions.networks(spec.row, spec.preset)
    names = list(dict.fromkeys(m.network for m in members if m.network))
    if spec.folds == "each":
        return tuple(names)
    found = [f"{name} ({len(members)} folds)" for name in names]
    embedder = predictions.paper["profiles"][predictions.profile]["embedder"]["backbone"]
    return (*found, f"{embedder} (embedding)") if spec.stage != "base" else tuple(found)
