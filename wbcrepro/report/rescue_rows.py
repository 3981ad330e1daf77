"""How the three kinds of tables of ``design: rescue`` are filled: columns, rows and what the caption must add."""

from __future__ import annotations

from dataclasses import dataclass, replace

from wbcrepro.report import verdicts
from wbcrepro.report.evaluate import Estimate
from wbcrepro.report.rescue_evaluate import Decided, RescueEvaluator, RescueSpec, paired, units_of
from wbcrepro.report.rescue_layout import (
    Line,
    RescueColumn,
    profiles_with,
    waterfall_columns,
    waterfall_lines,
)
from wbcrepro.report.rescue_predictions import TESTS, RescueMember, RescuePredictions
from wbcrepro.report.rescue_validation import absent_classes, cross_validation, gap, image_folds
from wbcrepro.report.tables import Entry

Built = tuple[tuple[RescueColumn, ...], list["RescueRow"], tuple[str, ...]]


@dataclass(frozen=True)
class RescueEntry(Entry):
    """One value. ``step``: ours minus that of the row ``reference``, paired; ``change``: the same fold by fold, which
    the verdict judges. ``number``: a value in the column's unit (dB, a share) and its ``interval``; ``planned``: False
    where nothing is to stand there."""

    step: Estimate | None = None
    change: Estimate | None = None
    number: float | None = None
    interval: tuple[float, float] | None = None
    planned: bool = True


@dataclass(frozen=True)
class RescueRow:
    """One row: entries by column, the ids of the cells that it has and lacks, and what fills its holes."""

    label: str
    entries: dict[str, Entry]
    cells: tuple[str, ...]
    missing: tuple[str, ...]
    command: str
    left_out: bool = False
    """Whether the profile does not plan the row. Then ``command`` makes it in a profile that does, if there is one."""
    difference: bool = False
    """Whether its values are differences between two rows, in points."""
    ours: bool = False
    """Whether the paper has no such row."""
    why: str = ""
    """Why no profile can fill it on these images; empty for any other row."""


def _comparable(predictions: RescuePredictions, definition: dict) -> bool:
    return definition.get("comparable") == {"benchmark": predictions.benchmark, "profile": predictions.profile}


def _printed(definition: dict, label: str, name: str) -> tuple[float, float | None] | None:
    """What the paper prints, in percent, and its standard deviation where it prints one."""
    value = definition["reported"].get(label, {}).get(name)
    if value is None:
        return None
    mean, std = value if isinstance(value, list) else (value, None)
    return 100 * mean, None if std is None else 100 * std


def _row(
    predictions: RescuePredictions, label: str, entries: dict, planned: list[RescueMember], elsewhere: str = "",
    **options: object,
) -> RescueRow:  # fmt: skip
    """A row with what its cells and holes are; ``elsewhere``: the command where this profile plans none of them."""
    planned = list({m.id: m for m in planned}.values())
    missing = tuple(m.id for m in planned if not m.done)
    command = elsewhere if not planned else ""
    if missing:
        lacking = next(m for m in planned if not m.done)
        command = predictions.run_command(lacking) if len(missing) == 1 else predictions.make_command()
    there = tuple(m.id for m in planned if m.done)
    return RescueRow(label, entries, there, missing, command, not planned, **options)


# Table 1


def cross_validation_rows(evaluator: RescueEvaluator, definition: dict, preset: str, on: str | None) -> Built:
    """Each kind of folds, then the gap between them: fold by fold, and with the images of all folds pooled."""
    p = evaluator.predictions
    columns = tuple(RescueColumn(f"val:{m}", name, m, "val") for name, m in definition["metrics"].items())
    rows = []
    for line in definition["rows"]:
        folds = image_folds(evaluator) if line["folds"] == "image" else "group"
        unknown = line["folds"] == "group" and p.grouped() is False
        planned = [] if unknown else p.networks("swin", preset, folds=folds)
        entries = {
            c.key: _validation_entry(evaluator, definition, line["label"], c, folds, preset, bool(planned))
            for c in columns
        }
        elsewhere, why = _elsewhere(p, definition, "swin"), ""
        if unknown:
            elsewhere, why = "", "not possible on these images, whose patients are not known:"
        rows.append(_row(p, line["label"], entries, planned, elsewhere, why=why))
    if p.grouped():
        both = [m for folds in ("image", "group") for m in p.networks("swin", preset, folds=folds)]
        for words, pooled in (("Gap, mean over folds", False), ("Gap, all folds pooled", True)):
            changes = {c.key: gap(evaluator, c.metric, preset, pooled=pooled) for c in columns}
            entries = {key: RescueEntry(None, None, change, "") for key, change in changes.items()}
            rows.append(_row(p, words, entries, both, difference=True, ours=True))
    return columns, rows, _validation_words(evaluator, preset)


def _validation_entry(
    evaluator: RescueEvaluator, definition: dict, label: str, column: RescueColumn, folds: str, preset: str, there: bool
) -> RescueEntry:
    name = next(n for n, m in definition["metrics"].items() if m == column.metric)
    paper = _printed(definition, label, name)
    ours = cross_validation(evaluator, folds, column.metric, preset=preset) if there else None
    if ours is None:
        return RescueEntry(paper, None, None, "missing", planned=there)
    verdict = "not comparable" if paper else ""
    if paper and _comparable(evaluator.predictions, definition):
        verdict = verdicts.same_data(ours, paper[0] / 100, (paper[1] or 0) / 100)
    return RescueEntry(paper, None, ours, verdict)


def _validation_words(evaluator: RescueEvaluator, preset: str) -> tuple[str, ...]:
    p = evaluator.predictions
    if p.grouped() is False:
        return ("No patients are known of these images: all folds here are by image.",)
    words = []
    for folds, name in (("image", "by image"), ("group", "by patient")):
        lacking = [n for n in absent_classes(evaluator, folds, preset).values() if n]
        if lacking:
            words.append(
                f"Folds {name} that lack classes: {len(lacking)} (at most {max(lacking)}), which count as 0 there."
            )
    rarest = "The gap pooled over folds compares the same images and has every class on both sides."
    return (*words, rarest)


def _elsewhere(predictions: RescuePredictions, definition: dict, row: str) -> str:
    found = profiles_with(predictions.paper, definition, row)
    return f"wbcrepro reproduce --paper {predictions.paper['name']} --profile {found[0]}" if found else ""


# Table 2


def waterfall_rows(evaluator: RescueEvaluator, definition: dict, preset: str, on: str | None) -> Built:
    """The paper's rows, the phases under other rules, on every test set and on the controls."""
    p = evaluator.predictions
    columns, lines = waterfall_columns(p, definition, on, preset), waterfall_lines(p, definition, preset)
    specs = {line.label: line for line in lines}
    rows = []
    for line in lines:
        places = dict.fromkeys(c.benchmark for c in columns)
        planned = [m for benchmark in places for m in _cells_of(p, line.spec, benchmark)]
        entries = {c.key: _waterfall_entry(evaluator, definition, specs, line, c) for c in columns}
        rows.append(_row(p, line.label, entries, planned, _elsewhere_in(p, definition, line), ours=not line.printed))
    return columns, rows, _disabled(p, lines)


def _cells_of(predictions: RescuePredictions, spec: RescueSpec, benchmark: str = "") -> list[RescueMember]:
    found = predictions.networks(spec.row, spec.preset, benchmark)
    if spec.stage == "base" or not found:
        return found
    semantic = [m for m in predictions.select("semantic", spec.preset, benchmark) if m.fold >= 0]
    return [*found, *semantic, *predictions.select("rescue", "", benchmark, rules=spec.rules)]


def _elsewhere_in(predictions: RescuePredictions, definition: dict, line: Line) -> str:
    """Only preset ``paper`` trains more than `swin`; then a profile that has the row makes it."""
    return _elsewhere(predictions, definition, line.spec.row) if line.spec.preset == "paper" else ""


def _waterfall_entry(
    evaluator: RescueEvaluator, definition: dict, lines: dict[str, Line], line: Line, column: RescueColumn
) -> RescueEntry:
    spec = replace(line.spec, benchmark=column.benchmark)
    name = next(n for n, m in definition["metrics"].items() if m == column.metric)
    paper = None if column.control else _printed(definition, line.printed, name)
    ours = evaluator.estimate(spec, column.on, column.metric)
    planned = bool(_cells_of(evaluator.predictions, spec, column.benchmark))
    if ours is None:
        return RescueEntry(paper, None, None, "missing" if planned else "", planned=planned)
    before = lines.get(line.reference)
    if before is None:
        return RescueEntry(paper, None, ours, "not comparable" if paper else "")
    other = replace(before.spec, benchmark=column.benchmark)
    base = evaluator.estimate(other, column.on, column.metric)
    step = None if base is None else paired(ours, base)
    change = evaluator.change(spec, other, column.on, column.metric)
    printed = _printed(definition, before.printed, name)
    verdict = ""
    if paper and printed and change is not None:
        verdict = verdicts.direction(change, round(paper[0] - printed[0], 6))
    return RescueEntry(paper, None, ours, verdict, line.reference, step=step, change=change)


def _disabled(predictions: RescuePredictions, lines: list[Line]) -> tuple[str, ...]:
    """Rules that are not in force, with their reason: a phase can only pay for classes whose rule is."""
    found = {}
    for benchmark, where in (("", ""), *((name, " (control)") for name, _ in predictions.controls)):
        for rules in dict.fromkeys(line.spec.rules for line in lines):
            fitted = predictions.rules(rules, benchmark)
            for rare in fitted.rare if fitted else ():
                if rare.disabled:
                    found.setdefault(f"{rare.name} is never rescued, because {rare.disabled}", []).append(rules + where)
    return tuple(f"Rules {', '.join(names)}: {words}." for words, names in found.items())


# Restoration

QUALITY = (("psnr", "PSNR", "dB"), ("cell_psnr", "PSNR in the cell", "dB"), ("ssim", "SSIM", ""),
           ("cell_ssim", "SSIM in the cell", ""))  # fmt: skip


def restoration_rows(evaluator: RescueEvaluator, definition: dict, preset: str, on: str | None) -> Built:
    """Distance to the pristine twins, and macro-F1 of one network on what each method restored."""
    p = evaluator.predictions
    sets = (on,) if on else tuple(reversed(TESTS))
    scores = tuple(RescueColumn(f"f1:{s}", f"Macro-F1, {w}", "macro_f1", s) for s, w in
                   (("test_degraded", "degraded"), ("test", "pristine")) if s in sets)  # fmt: skip
    quality = tuple(RescueColumn(k, words, k, "test_degraded", unit=unit) for k, words, unit in QUALITY)
    rows, plain = [], {c.key: restored_score(evaluator, "none", c.on)[0] for c in scores}
    for line in definition["rows"]:
        restored = [m for m in p.select("restored", method=line["method"])]
        shown = [m for m in restored if preset in m.presets] or restored
        rows.append(_restoration_row(evaluator, definition, line, shown, quality, scores, plain))
        for other in (m for m in restored if m not in shown and line["method"] == "pix2pix"):
            words = f"{line['label']} ({other.noise.replace('_', '-')} noise)"
            rows.append(_restoration_row(evaluator, definition, line | {"label": words}, [other], quality, (), plain,
                                         also=scores))  # fmt: skip
    return (*quality, *scores), rows, _restoration_words(evaluator)


def _restoration_row(
    evaluator: RescueEvaluator, definition: dict, line: dict, restored: list[RescueMember],
    quality: tuple, scores: tuple, plain: dict, also: tuple = (),
) -> RescueRow:  # fmt: skip
    entries: dict[str, RescueEntry] = {}
    about = restored[0].metrics.get("restoration", {}) if restored else {}
    for c in quality:
        number = about.get(f"{c.metric}_before" if line["method"] == "none" else c.metric)
        between = about.get("intervals", {}).get(c.metric)
        entries[c.key] = RescueEntry(None, None, None, "", number=number, interval=between and tuple(between),
                                     planned=bool(restored))  # fmt: skip
    planned = list(restored)
    for c in scores:
        ours, members = restored_score(evaluator, line["method"], c.on)
        planned += members
        step = paired(ours, plain[c.key]) if ours and plain[c.key] and line["method"] != "none" else None
        entries[c.key] = RescueEntry(None, None, ours, "", "No restoration" * (step is not None), step=step,
                                     planned=bool(members))  # fmt: skip
    entries |= {c.key: RescueEntry(None, None, None, "", planned=False) for c in also}
    paper = evaluator.predictions.paper
    runs = [name for name, p in paper["profiles"].items() if line["method"] in ("pix2pix", *p["restorations"])]
    elsewhere = f"wbcrepro reproduce --paper {paper['name']} --profile {runs[0]}" if runs else ""
    return _row(evaluator.predictions, line["label"], entries, planned, elsewhere, ours=True)


def restored_score(
    evaluator: RescueEvaluator, method: str, on: str, metric: str = "macro_f1"
) -> tuple[Estimate | None, list[RescueMember]]:
    """One network's score on what a method restored, and its planned cell. Its own images are Pix2Pix's."""
    p = evaluator.predictions
    folds = [m.fold for m in p.select("rescored")] or [m.fold for m in p.networks("swin", "paper")][:1]
    members = p.select("rescored", method=method)
    if method == "pix2pix":
        members = [m for m in p.networks("swin", "paper") if m.fold in folds]
    scored = next((s for m in members if m.done and (s := p.read(m, on)) is not None), None)
    if scored is None:
        return None, members
    units = units_of(scored.ids, scored.groups)
    decided = {members[0].fold: Decided(scored.ids, scored.labels, scored.probabilities.argmax(1), units)}
    return evaluator.score(decided, metric), members


def _restoration_words(evaluator: RescueEvaluator) -> tuple[str, ...]:
    p = evaluator.predictions
    member = next((m for m in p.select("restored", "paper", method="pix2pix") if m.done), None)
    share = {s: 100 * v for s, v in member.metrics.get("noisy", {}).items()} if member else {}
    favour = "in part on images that Pix2Pix had restored: that favours its row"
    if "train" not in share:
        favour = "on images that Pix2Pix had restored where they were noisy: that can favour its row"
    elif not share["train"]:
        favour = "on images of which none was noisy enough to be restored: no row is favoured"
    words = [f"All rows are scored by one network, trained {favour}, and one training decides nothing."]
    if share:
        listed = ", ".join(f"{v:.0f} % of {name}" for name, v in share.items())
        images = member.metrics.get("restoration", {}).get("images")
        words.append(f"Only images that the noise filter calls noisy are restored: {listed}.")
        words += [f"PSNR and SSIM are means over {images} degraded images with a segmented cell."] if images else []
    return tuple(words)


BUILDERS = {
    "cross_validation": cross_validation_rows, "waterfall": waterfall_rows, "restoration": restoration_rows,
}  # fmt: skip
