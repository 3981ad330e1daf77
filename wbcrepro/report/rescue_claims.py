"""Claims of `rescue`, evaluated on stored predictions: effect, interval, verdict.

The claims are data (``wbcrepro/papers/rescue.claims.yml``); the paper's own effect is computed from its tables. A
verdict takes the images and at least three folds (``verdicts.judge``): each fold's network and second branch go through
the same phases alone. What was measured with one training decides nothing, whatever its interval.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from wbcrepro.report import verdicts
from wbcrepro.report.claims import Finding, load_part
from wbcrepro.report.evaluate import Estimate
from wbcrepro.report.rescue_evaluate import RescueEvaluator, RescueSpec, paired
from wbcrepro.report.rescue_frames import (
    everything_head,
    mixture,
    optimism,
    oracle_gain,
    second_branch,
    targets_of,
)
from wbcrepro.report.rescue_layout import rules_of, waterfall_lines
from wbcrepro.report.rescue_predictions import TESTS, RescuePredictions
from wbcrepro.report.rescue_rows import restored_score
from wbcrepro.report.rescue_validation import cross_validation, gap

SET_WORDS = {"test": "pristine", "test_degraded": "degraded"}
METRIC = "macro_f1"


@dataclass(frozen=True)
class Case:
    """What a claim is evaluated with: ``specs`` are the rows of Table 2 by label."""

    predictions: RescuePredictions
    evaluator: RescueEvaluator
    preset: str
    specs: dict[str, RescueSpec]

    @property
    def rules(self) -> str:
        """The rules behind the rows of phases."""
        return rules_of(self.predictions.paper, self.preset)[0]

    @property
    def sets(self) -> tuple[str, ...]:
        """The test sets, degraded first: it is the one that the paper speaks of."""
        return tuple(reversed(self.predictions.sets() or TESTS))

    def change(self, left: str, right: str, on: str, benchmark: str = "") -> Estimate | None:
        """Row minus row over folds."""
        sides = [replace(self.specs[name], benchmark=benchmark) for name in (left, right)]
        return self.evaluator.change(*sides, on, METRIC)

    def averaged(self, left: str, right: str, on: str) -> str:
        """What the averages of all folds say, in words; empty while they are missing."""
        sides = [self.evaluator.estimate(self.specs[name], on, METRIC) for name in (left, right)]
        if not all(sides):
            return ""
        low, high = (100 * v for v in paired(*sides).interval())
        return f"all folds averaged: {100 * paired(*sides).mean:+.1f} [{low:.1f}, {high:.1f}]"

    def printed(self, row: str) -> float | None:
        """The paper's macro-F1 of a row of Table 2, percent."""
        value = self.predictions.paper["tables"]["table_2"]["reported"].get(row, {}).get("Macro-F1")
        return None if value is None else 100 * value

    def printed_change(self, left: str, right: str) -> float | None:
        """The paper's difference between two rows, points."""
        one, other = self.printed(left), self.printed(right)
        return None if one is None or other is None else round(one - other, 6)


def evaluate_rescue_claims(
    predictions: RescuePredictions, *, preset: str = "paper", n: int | None = None,
    evaluator: RescueEvaluator | None = None,
) -> list[Finding]:  # fmt: skip
    """Every claim of the paper, in order."""
    lines = waterfall_lines(predictions, predictions.paper["tables"]["table_2"], preset)
    case = Case(
        predictions, evaluator or RescueEvaluator(predictions, n), preset, {line.label: line.spec for line in lines}
    )
    claims = load_part(predictions.paper["name"], "claims")
    return [finding for claim in claims for finding in KINDS[claim["kind"]](claim, case)]


def _finding(
    claim: dict, item: str, paper: float | None, ours: Estimate | None, *notes: str, sign: int = 1, margin: float = 0.0
) -> Finding:
    """A finding from a difference of fractions; ``sign=-1``: the claim is that it lies below the margin."""
    words = [note for note in notes if note]
    if ours is None:
        words = words or ["cells missing"]
        return Finding(claim["id"], item, "points", paper, None, None, None, 0, "not testable", "; ".join(words))
    low, high = ours.interval()
    turned = Estimate({k: sign * v for k, v in ours.values.items()}, {k: sign * v for k, v in ours.draws.items()})
    if margin:
        words.append(f"margin {100 * margin:g} points (ours)")
    words += [verdicts.too_few(ours)] if verdicts.too_few(ours) else []
    return Finding(
        claim["id"], item, "points", paper, 100 * ours.mean, 100 * low, 100 * high, ours.folds,
        verdicts.judge(turned, margin=margin), "; ".join(words),
    )  # fmt: skip


def _minus(one: Estimate | None, other: Estimate | None) -> Estimate | None:
    return paired(one, other) if one is not None and other is not None else None


def _off(case: Case, rules: str = "", benchmark: str = "") -> tuple[str, ...]:
    """The rare classes whose rule is not in force."""
    return tuple(r.name for r in targets_of(case.predictions, rules or case.rules, benchmark) if r.disabled)


def _asks_nothing(case: Case, rules: str = "", benchmark: str = "") -> bool:
    """Whether the phases ran with no rule in force: then they cannot change a label, and show nothing."""
    known = case.predictions.rules(rules or case.rules, benchmark)
    return known is not None and known.idle


def _in_force(off: tuple[str, ...]) -> str:
    """Which rules are not, in words: a phase cannot gain by them."""
    return f"not in force, for want of an out-of-fold gain: {', '.join(off)}" if off else ""


def _step(claim: dict, case: Case) -> list[Finding]:
    """Row minus row on every test set; with ``minus`` the change between two further rows is taken off again."""
    found, other = [], claim.get("minus")
    for left in claim.get("pairs") or [claim["left"]]:
        for on in case.sets:
            change = case.change(left, claim["right"], on)
            paper = case.printed_change(left, claim["right"])
            item = f"{left} against {claim['right']}, {SET_WORDS[on]}"
            if other:
                change = _minus(change, case.change(other["left"], other["right"], on))
                less = case.printed_change(other["left"], other["right"])
                paper = None if paper is None or less is None else round(paper - less, 6)
                item = f"gain of {left} minus gain of {other['left']}, {SET_WORDS[on]}"
            words = [] if other else [case.averaged(left, claim["right"], on)]
            if any("Phase" in name for name in (left, claim["right"])):
                words.append(_in_force(_off(case)))
                change = None if _asks_nothing(case) else change
            sign, margin = claim.get("sign", 1), claim.get("margin", 0.0)
            if change is not None and sign < 0 and change.mean < -margin:
                words.append("below the plain average by more than the margin: a loss, not a plateau")
            found.append(_finding(claim, item, paper, change, *words, sign=sign, margin=margin))
    return found


def _specificity(claim: dict, case: Case) -> list[Finding]:
    """Specificity of a guess among C classes is 1 - 1/C; on a scale from a guess to perfection both are alike."""
    classes = len(case.predictions.classes)
    folds = "image" if case.predictions.grouped() else "group"
    high, low = (cross_validation(case.evaluator, folds, metric, preset=case.preset)
                 for metric in ("macro_specificity", "balanced_accuracy"))  # fmt: skip
    printed = case.predictions.paper["tables"]["table_1"]["reported"]["Folds by image"]
    paper = [100 * printed[name][0] for name in ("Macro-specificity", "Balanced accuracy")]
    guess = f"a guess among {classes} classes has a specificity of {100 * (1 - 1 / classes):.1f} %"
    plain = _finding(claim, "specificity - balanced accuracy", round(paper[0] - paper[1], 6), _minus(high, low), guess)
    scaled = [_scaled(high, 1 - 1 / classes), _scaled(low, 1 / classes)]
    thirteen = len(case.predictions.paper["tables"]["figure_1"]["reported"])
    theirs = [(p / 100 - c) / (1 - c) for p, c in zip(paper, (1 - 1 / thirteen, 1 / thirteen), strict=True)]
    words = "0 = a guess, 100 = perfect; on sets with equal classes the two are the same number"
    change = _finding(claim, "the same, chance-corrected", round(100 * (theirs[0] - theirs[1]), 6), _minus(*scaled),
                      words)  # fmt: skip
    return [plain, change]


def _scaled(estimate: Estimate | None, chance: float) -> Estimate | None:
    if estimate is None:
        return None
    return Estimate({k: (v - chance) / (1 - chance) for k, v in estimate.values.items()},
                    {k: (v - chance) / (1 - chance) for k, v in estimate.draws.items()})  # fmt: skip


def _fall(claim: dict, case: Case) -> list[Finding]:
    single = RescueSpec(preset=case.preset, views="identity", folds="each")
    clean, hurt = (case.evaluator.estimate(single, on, METRIC) for on in TESTS)
    degradation = _minus(clean, hurt)
    printed = case.predictions.paper["tables"]["table_1"]["reported"]["Folds by image"]["Macro-F1"][0]
    whole = round(100 * printed - case.printed("Single fold"), 6)
    shared = gap(case.evaluator, METRIC, case.preset)
    pooled = gap(case.evaluator, METRIC, case.preset, pooled=True)
    unknown = "no patients are known here" if case.predictions.grouped() is False else ""
    words = f"pooled over folds: {100 * pooled.mean:+.1f}" if pooled else unknown
    both = _minus(degradation, shared)
    fall = _finding(claim, "degradation: the same images, pristine - degraded", None, degradation,
                    f"the paper's whole fall: {whole:.1f} points",
                    "the copies are degraded by us, with a strength of our choosing")  # fmt: skip
    if shared is None and degradation is not None:  # without the other explanation there is nothing to weigh it against
        fall = replace(fall, verdict="not testable")
    return [
        fall,
        _finding(claim, "shared patients: folds by image - by patient (the claim: nothing)", None, shared, words,
                 sign=-1, margin=claim["margin"]),
        _finding(claim, "degradation minus shared patients", None, both, "" if both else unknown),
    ]  # fmt: skip


def _complementary(claim: dict, case: Case) -> list[Finding]:
    found = []
    for on in case.sets:
        pair = [oracle_gain(case.evaluator, partner, on, case.preset) for partner in ("semantic", "network")]
        alone = case.evaluator.estimate(RescueSpec(preset=case.preset, folds="each"), on, METRIC)
        words = ""
        if all(pair):
            gains = " and ".join(f"{100 * p.mean:.1f}" for p in pair)
            words = f"a perfect choice adds {gains} points of recall; a weak partner errs elsewhere too"
        branches = [alone, second_branch(case.evaluator, on, case.preset)]
        scores = ""
        if all(branches):
            scores = f"macro-F1 of the branches alone: {' and '.join(f'{100 * b.mean:.1f}' for b in branches)} %"
        found.append(_finding(claim, f"second branch against a second network, {SET_WORDS[on]}", None, _minus(*pair),
                              words, scores))  # fmt: skip
        mixed = _minus(mixture(case.evaluator, on, case.preset), alone)
        found.append(_finding(claim, f"mean of both branches - first branch, macro-F1, {SET_WORDS[on]}", None, mixed))
    return found


def _recovery(claim: dict, case: Case) -> list[Finding]:
    found = []
    after = RescueSpec(stage="final", rules=case.rules, preset=case.preset)
    before = replace(after, stage="base")
    targets = case.predictions.paper["profiles"][case.predictions.profile]["targets"]
    for rare in (target["name"] for target in case.predictions.paper["targets"][targets]):
        for on in case.sets:
            off = rare in _off(case)
            change = None
            if rare in case.predictions.classes and not off:
                change = case.evaluator.change(after, before, on, "macro_recall", rare)
            found.append(_finding(claim, f"recall of {rare}, {SET_WORDS[on]}", None, change,
                                  _in_force((rare,) if off else _off(case) if change else ())))  # fmt: skip
    return found


def _control(claim: dict, case: Case) -> list[Finding]:
    """Under every set of rules of the preset: a rule that is off gains nothing for a reason that is not the cue's."""
    if not case.predictions.controls:
        return [_finding(claim, "gain of phase 3, benchmark - control", None, None, "this profile has no control")]
    found = []
    for name, _ in case.predictions.controls:
        for rules in rules_of(case.predictions.paper, case.preset):
            for on in case.sets:
                found += _control_pair(claim, case, name, rules, on)
    return found


def _control_pair(claim: dict, case: Case, control: str, rules: str, on: str) -> list[Finding]:
    where = ("", control)
    here, there = (_gain_of_cue(case, rules, on, benchmark) for benchmark in where)
    off = {benchmark or "here": _in_force(_off(case, rules, benchmark)) for benchmark in where}
    words = [f"{place}: {reason}" if reason else "" for place, reason in off.items()]
    suffix = f", {SET_WORDS[on]}" + f" (rules {rules})" * (rules != case.rules)
    pair = _finding(claim, f"gain of phase 3, benchmark - control{suffix}", None, _minus(here, there), *words)
    alone = _finding(claim, f"gain of phase 3 on the control (the claim: nothing){suffix}", None, there,
                     words[1], sign=-1, margin=claim["margin"])  # fmt: skip
    if alone.verdict == "supported" and pair.verdict != "supported":
        note = "no more is certain to be gained where the cue is, so that nothing follows from nothing"
        alone = replace(alone, verdict="undecided", note="; ".join(filter(None, (alone.note, note))))
    return [pair, alone]


def _gain_of_cue(case: Case, rules: str, on: str, benchmark: str) -> Estimate | None:
    """Macro-F1 after phase 3 minus after phase 2, fold by fold; None where no rule is in force."""
    if _asks_nothing(case, rules, benchmark):
        return None
    final = RescueSpec(stage="final", rules=rules, preset=case.preset, benchmark=benchmark)
    return case.evaluator.change(final, replace(final, stage="phase2"), on, METRIC)


def _restoration(claim: dict, case: Case) -> list[Finding]:
    found = []
    ours = restored_score(case.evaluator, "pix2pix", "test_degraded")[0]
    quality = {m.method: m.metrics.get("restoration", {}).get("cell_psnr") for m in case.predictions.select("restored")
               if m.method != "pix2pix" or case.preset in m.presets}  # fmt: skip
    for words, method in (("images left alone", "none"), ("a median filter", "median_3x3")):
        other = restored_score(case.evaluator, method, "test_degraded")[0]
        known = [quality.get(name) for name in ("pix2pix", method)]
        decibels = f"PSNR in the cell {known[0]:.1f} against {known[1]:.1f} dB" if all(known) else ""
        found.append(_finding(claim, f"Pix2Pix against {words}, degraded", None, _minus(ours, other), decibels))
    return found


def _full_training(claim: dict, case: Case) -> list[Finding]:
    known = optimism(case.evaluator, case.preset)
    words = ""
    if known:
        low, high = (100 * v for v in known["optimism"].interval())
        words = (f"training images: {100 * known['seen'].mean:.1f} % seen, {100 * known['out of fold'].mean:.1f} % out "
                 f"of fold, optimism {100 * known['optimism'].mean:+.1f} [{low:.1f}, {high:.1f}]"
                 + f", {known['left out']} images without an embedding left out" * bool(known["left out"]))  # fmt: skip
    found = []
    for on in case.sets:
        average = everything_head(case.evaluator, on, case.preset, averaged=True)
        less = f"against the average of the folds' heads: {100 * average.mean:+.1f}" if average else ""
        found.append(_finding(claim, f"head trained on everything - on all but a fold, {SET_WORDS[on]}", None,
                              everything_head(case.evaluator, on, case.preset), less, words))  # fmt: skip
    return found


KINDS: dict[str, Callable[[dict, Case], list[Finding]]] = {
    "step": _step, "specificity": _specificity, "fall": _fall, "complementary": _complementary, "recovery": _recovery,
    "control": _control, "restoration": _restoration, "full_training": _full_training,
}  # fmt: skip
