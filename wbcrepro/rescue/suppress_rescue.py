"""Suppress-and-rescue, Algorithm 1 of `rescue`, on stored probabilities of N images at once, with a trace for each.

Arrays: first model's probabilities P_Swin (N, C), second model's P_Med (N, C), measurements of the cell (N, F). Nothing
is trained and no image is read here. The numbers in the comments are the lines of Algorithm 1.

A rare class may be named by more than PLY and PC: `wbcrepro.rescue.rules` holds the classes and every threshold.
Differs from the printed algorithm in: tau is one number a class; a rule may have no cue, and then ends with phase 2.
Differs from the released code in almost everything: see `wbcrepro.rescue.suppress_rescue_code`.
"""

from collections.abc import Sequence

import numpy as np

from wbcrepro.rescue.morphology import Morphology
from wbcrepro.rescue.phases import Phase, cue_phase, reasons, semantic_phase
from wbcrepro.rescue.rules import Rules, check_rules
from wbcrepro.rescue.suppress_rescue_code import released_submit
from wbcrepro.rescue.trace import Trace, assemble


def sensitivity_boosting(swin: np.ndarray, rules: Rules, classes: Sequence[str]):
    """Phase 1 (lines 6-13): ``candidate``, the arg-max of boosted P; ``nearest`` rare class; ``rival``; each (N,);
    `Phase`.

    A class whose rule is disabled is neither boosted nor a candidate. Of equal probabilities the first class wins.
    """
    rare = np.array([classes.index(rule.name) for rule in rules.rare if not rule.disabled], dtype=int)
    boosted = swin.astype(np.float64)
    boosted[:, rare] *= [rule.boost for rule in rules.rare if not rule.disabled]  # 7-9
    candidate = boosted.argmax(1)  # 10
    surfaced = np.isin(candidate, rare)  # 11
    common = np.delete(np.arange(len(classes)), rare)
    rows, nan = np.arange(len(swin)), np.full(len(swin), np.nan)
    nearest = rare[boosted[:, rare].argmax(1)] if len(rare) else np.full(len(swin), -1)
    rival = common[boosted[:, common].argmax(1)] if len(common) else np.full(len(swin), -1)
    value = boosted[rows, nearest] if len(rare) else nan
    limit = boosted[rows, rival] if len(common) else nan
    reason = reasons(len(swin), (~surfaced, "no_candidate"))
    return candidate, nearest, rival, Phase(surfaced, value, limit, value - limit, reason)


def algorithm_1(swin, semantic, morphology: Morphology, rules: Rules, classes: Sequence[str]) -> Trace:
    """Algorithm 1 over N images; arguments as in `suppress_and_rescue`, already checked."""
    base = swin.argmax(1)  # 4-5
    candidate, nearest, rival, phase_1 = sensitivity_boosting(swin, rules, classes)  # 6-13
    phase_2, phase_3 = not_reached(len(swin)), not_reached(len(swin))
    for rule in rules.rare:
        code = classes.index(rule.name)
        if rule.disabled or not (rows := phase_1.passed & (candidate == code)).any():
            continue
        put(phase_2, rows, semantic_phase(rule, semantic[rows, code], strict=False))  # 15-18
        cue = cue_phase(rule, morphology.take(rows), base[rows], classes, rules.accept)
        put(phase_3, rows, cue)  # 19-31
    verified = phase_1.passed & phase_2.passed
    return assemble(base=base, standing=base, phase1=np.where(phase_1.passed, candidate, base),
                    phase2=np.where(verified, candidate, base), candidate=np.where(phase_1.passed, candidate, -1),
                    nearest=nearest, rival=rival, phases=(phase_1, phase_2, phase_3), rules=rules, classes=classes)


def not_reached(n: int) -> Phase:
    """A phase that none of n images has reached yet."""
    return Phase(np.zeros(n, dtype=bool), *(np.full(n, np.nan) for _ in range(3)), reasons(n))


def put(whole: Phase, rows: np.ndarray, part: Phase) -> None:
    """Write what a phase said of some rows (N,) bool into the arrays of all images."""
    for name in ("passed", "value", "limit", "margin", "reason"):
        getattr(whole, name)[rows] = getattr(part, name)


def checked(swin, semantic, morphology: Morphology, classes: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Both (N, C) as arrays; a semantic row with any NaN becomes all NaN. Raises ValueError for what does not fit."""
    swin, semantic = np.asarray(swin), np.array(semantic, dtype=np.float64)
    for name, given in (("first", swin), ("second", semantic)):
        if given.ndim != 2 or given.shape != (len(swin), len(classes)):
            expected = f"({len(swin)}, {len(classes)})"
            raise ValueError(f"probabilities of the {name} model are {given.shape}, expected {expected}")
    if len(morphology) != len(swin):
        raise ValueError(f"{len(morphology)} cells measured for {len(swin)} images; need a row for each, in order")
    if not np.isfinite(swin).all():
        bad = int((~np.isfinite(swin)).any(1).sum())
        raise ValueError(f"{bad} images have a probability of the first model that is no number; all need a base label")
    semantic[np.isnan(semantic).any(1)] = np.nan
    return swin, semantic


def suppress_and_rescue(swin, semantic, morphology: Morphology, rules: Rules, classes: Sequence[str]) -> Trace:
    """Labels of N images after suppress-and-rescue, with the trace that led there.

    ``swin`` (N, C): probabilities of the first model. ``semantic`` (N, C): of the second; a row with a NaN = no
    embedding, never rescued. ``morphology``: N rows. ``classes``: the C names. Mode "paper" is Algorithm 1, "code" the
    released behaviour. Raises ValueError for shapes that do not fit or a base probability that is no number, UsageError
    for unfitted rules.
    """
    classes = list(classes)
    check_rules(rules, classes)
    swin, semantic = checked(swin, semantic, morphology, classes)
    run = algorithm_1 if rules.mode == "paper" else released_submit
    return run(swin, semantic, morphology, rules, classes)
