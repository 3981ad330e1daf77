"""Who has which cell: a recipe's counts spread over laboratories and patients, and what a patient's cells share."""

from dataclasses import dataclass

import numpy as np

from wbcrepro.data.smears.spec import SmearSpec
from wbcrepro.seeds import derive_seed


@dataclass(frozen=True)
class Individual:
    """What the cells of one patient share: how strongly the slide was stained and how the blood looks."""

    gain: np.ndarray  # (2,) of azure and eosin
    jitter: np.ndarray  # (3, 2) on the stain matrix
    tint: np.ndarray  # (3,) on the background
    cell_size: float
    granularity: float
    red_number: float
    red_size: float
    pallor: float
    crenated: float


def individual(spec: SmearSpec, domain: str, patient: int) -> Individual:
    """The traits of patient number ``patient`` of ``domain``; the same in every recipe with this seed."""
    rng = np.random.default_rng(derive_seed("patient", spec.seed, domain, patient))
    v = spec.patient_variation
    return Individual(
        gain=np.exp(rng.normal(0, [0.18 * v, 0.15 * v])),
        jitter=1 + rng.normal(0, 0.05 * v, (3, 2)),
        tint=1 + rng.normal(0, 0.02 * v, 3),
        cell_size=float(np.exp(rng.normal(0, 0.04 * v))),
        granularity=float(np.exp(rng.normal(0, 0.25 * v))),
        red_number=float(np.exp(rng.normal(0, 0.35 * v))),
        red_size=float(np.exp(rng.normal(0, 0.05 * v))),
        pallor=float(rng.uniform(0.45, 0.95)),
        crenated=float(rng.choice([0.0, 0.05, 0.6], p=[0.62, 0.32, 0.06])),
    )


def _rank(spec: SmearSpec, *parts: object) -> int:
    return derive_seed("rank", spec.seed, *parts)


def confined_to(spec: SmearSpec, label: str) -> list[tuple[str, int]]:
    """The (laboratory, patient) pairs that have cells of a confined class, laboratories in turn."""
    domains = [d for d in spec.domains if spec.prior(d, label) > 0]
    domains.sort(key=lambda d: _rank(spec, label, d))
    chosen, turn = [], 0
    while len(chosen) < min(spec.confined[label], len(domains) * spec.patients):
        domain = domains[turn % len(domains)]
        order = sorted(range(spec.patients), key=lambda p: _rank(spec, label, domain, p))
        chosen.append((domain, order[turn // len(domains)]))
        turn += 1
    return chosen


def _apportion(total: int, weights: list[float]) -> list[int]:
    """Whole numbers that add up to ``total``, as near to the proportions as can be (largest remainder)."""
    exact = np.asarray(weights, float) / sum(weights) * total
    parts = np.floor(exact).astype(int)
    for i in np.argsort(-(exact - parts), kind="stable")[: total - int(parts.sum())]:
        parts[i] += 1
    return parts.tolist()


def population(spec: SmearSpec) -> list[tuple[str, str, int, int]]:
    """One (laboratory, class, number, patient) for every image."""
    rows = []
    for label, total in spec.counts.items():
        pairs = confined_to(spec, label) if label in spec.confined else None
        weights = [spec.prior(d, label) for d in spec.domains]
        if pairs is not None:
            weights = [w * sum(d == domain for d, _ in pairs) for domain, w in zip(spec.domains, weights, strict=True)]
        for domain, number in zip(spec.domains, _apportion(total, weights), strict=True):
            own = [p for d, p in pairs if d == domain] if pairs is not None else range(spec.patients)
            for i in range(number):
                # a confined class goes round its patients, so that even a few cells come from all of them
                pick = i if pairs is not None else _rank(spec, "patient", domain, label, i)
                rows.append((domain, label, i, own[pick % len(own)]))
    return rows
