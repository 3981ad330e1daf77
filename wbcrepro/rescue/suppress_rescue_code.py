"""Suppress-and-rescue as the released submit.py of `rescue` does it, on stored probabilities of N images at once.

In the order of the release:
1. *Suppress*: an image whose arg-max is rare is relabelled with its second class; ``max_prob`` is that class's
   probability.
2. *Surface*: class c is a candidate if P[c] * B_c > max_prob. Several classes can be.
3. *Verify*: P_Med[c] > tau_c. A missing embedding counts as -1.
4. *Filter*: the standing label is one of ``against``; max_prob below ``max_prob`` (PLY); then spikiness above its
   threshold (PLY), or inside the box *and* within the Mahalanobis distance of the standing label's group (PC).
Classes are asked in the order of the rules (PLY, then PC); an image that one has taken is not offered to the next.

So a rare label can only come from the rescue (or be the runner-up of another rare one), and with its Gaussians missing
(their file is not published) no PC is ever rescued. Algorithm 1 demotes nothing, and takes the arg-max of the boosted
vector.
Differs from the release in: Gaussians and boxes are fitted (`wbcrepro.rescue.thresholds`); a group with too few cells
uses all.
"""

from collections.abc import Sequence

import numpy as np

from wbcrepro.rescue.morphology import Morphology
from wbcrepro.rescue.phases import Phase, cue_phase, reasons, semantic_phase
from wbcrepro.rescue.rules import RareClass, Rules
from wbcrepro.rescue.trace import Trace, assemble


def suppress(swin: np.ndarray, rules: Rules, classes: Sequence[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """``base`` (N,), ``standing`` (N,) after the demotion, and ``max_prob`` (N,) of the standing label.

    The runner-up may itself be rare (PC above PLY): the release keeps it, so do we. Ties: the first class.
    """
    base, rows = swin.argmax(1), np.arange(len(swin))
    demoted = np.isin(base, [classes.index(rule.name) for rule in rules.rare])
    without = swin.astype(np.float64)
    without[rows[demoted], base[demoted]] = -np.inf
    standing = without.argmax(1)
    return base, standing, without[rows, standing]


def surface(rule: RareClass, p: np.ndarray, max_prob: np.ndarray) -> Phase:
    """Phase 1 for one class: P[c] (N,) times its boost, strictly above max_prob (N,). Disabled: nothing surfaces."""
    if rule.disabled:
        nan = np.full(len(p), np.nan)
        return Phase(np.zeros(len(p), dtype=bool), nan, nan, nan, np.full(len(p), "no_candidate"))
    value = p.astype(np.float64) * rule.boost
    passed = value > max_prob
    return Phase(passed, value, max_prob, value - max_prob, reasons(len(p), (~passed, "no_candidate")))


def label_allows(rule: RareClass, standing: np.ndarray, max_prob: np.ndarray, classes) -> tuple[np.ndarray, np.ndarray]:
    """Two bool (N,): the standing label is one that the class is confused with; its probability is low enough."""
    confused = np.isin(standing, [classes.index(name) for name in rule.against])
    return confused, max_prob < (np.inf if rule.max_prob is None else rule.max_prob)


def filter_cell(rule, morphology, standing, max_prob, classes, accept) -> Phase:
    """Phase 3 for one class: conditions on the standing label, then the cell."""
    cue = cue_phase(rule, morphology, standing, classes, accept)
    confused, unsure = label_allows(rule, standing, max_prob, classes)
    other = ~confused | ~unsure
    reason = reasons(len(standing), (~confused, "not_confused"), (~unsure, "too_sure"),
                     *((cue.reason == word, word) for word in np.unique(cue.reason) if word))
    value, limit, margin = (np.where(other, np.nan, part) for part in (cue.value, cue.limit, cue.margin))
    return Phase(cue.passed & ~other, value, limit, margin, reason)


def first_at(depth: np.ndarray, at_least: int, codes: np.ndarray, standing: np.ndarray) -> np.ndarray:
    """Labels (N,): the first class, in the order of the rules, that passed ``at_least`` phases; depth is (R, N)."""
    reached = depth >= at_least
    return np.where(reached.any(0), codes[reached.argmax(0)], standing)


def released_submit(swin, semantic, morphology: Morphology, rules: Rules, classes: Sequence[str]) -> Trace:
    """The released chain over N images; arguments as in `suppress_and_rescue`, already checked.

    Where several classes surface, the trace tells of the one that came furthest, the first of equals.
    """
    base, standing, max_prob = suppress(swin, rules, classes)
    codes = np.array([classes.index(rule.name) for rule in rules.rare], dtype=int)
    chains = []
    for rule, code in zip(rules.rare, codes, strict=True):
        first = surface(rule, swin[:, code], max_prob)
        if rule.disabled:
            chains.append((first, first, first))
            continue
        second = semantic_phase(rule, semantic[:, code], strict=True)
        chains.append((first, second, filter_cell(rule, morphology, standing, max_prob, classes, rules.accept)))
    # (R, N): number of phases passed before the first that stopped the image
    depth = np.array([np.logical_and.accumulate([phase.passed for phase in chain]).sum(0) for chain in chains])
    closeness = np.array([np.nan_to_num(chain[0].margin, nan=-np.inf) for chain in chains])
    which = np.where(depth.any(0), depth.argmax(0), closeness.argmax(0))
    rows = np.arange(len(swin))
    phases = [Phase(*(np.stack([getattr(chain[k], name) for chain in chains])[which, rows]
                      for name in ("passed", "value", "limit", "margin", "reason"))) for k in range(3)]
    surfaced = depth.any(0)
    nearest = np.where(np.isfinite(closeness[which, rows]), codes[which], -1)
    return assemble(base=base, standing=standing, phase1=first_at(depth, 1, codes, standing),
                    phase2=first_at(depth, 2, codes, standing), candidate=np.where(surfaced, codes[which], -1),
                    nearest=nearest, rival=standing, phases=phases, rules=rules, classes=classes)
