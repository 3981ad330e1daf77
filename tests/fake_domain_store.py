"""A store of made-up predictions for a plan of ``design: domains``, so that reports can be tested without training."""

from pathlib import Path

import numpy as np
from fake_store import FakeBenchmark, FakePlan

from wbcrepro.experiments.cell import Cell
from wbcrepro.experiments.store import Store, write_json
from wbcrepro.papers import load_paper, profile_of

VIEWS = ("last", "best", "swad")
FIVE = ("neutrophil", "lymphocyte", "monocyte", "eosinophil", "basophil")


def fake_domain_plan(paper="sada", profile="demo", classes=FIVE, *, more=False, held_out=None, trials=None) -> FakePlan:
    """One classifier per preset, method, held-out laboratory and trial of a profile."""
    document = load_paper(paper)
    settings, cells = profile_of(document, profile), []
    benchmark = settings["benchmark"]
    for preset in dict.fromkeys([*settings["presets"], *(settings["more"] if more else ())]):
        for method in [*settings["presets"].get(preset, ()), *(settings["more"].get(preset, ()) if more else ())]:
            entry = document["methods"][method]
            for laboratory in held_out or settings["held_out"]:
                for trial in range(trials or settings["trials"]):
                    labels = {"profile": profile, "preset": preset, "method": method, "held_out": laboratory,
                              "trial": trial, "scale": settings["pixels"]["scale"]}  # fmt: skip
                    config = {**labels, "paper": paper, "benchmark": benchmark, "backbone": settings["backbone"]}
                    config |= {"settings": entry.get("settings", {}), "seed": 7}
                    kind = "domain_head" if "retrain" in entry else "domain_train"
                    cells.append(Cell(kind, config, ("pixels-000000000000",), {}, labels))
    fake = FakeBenchmark(benchmark, tuple(classes), caption="Synthetic laboratories: a mechanism, not evidence.")
    fake.synthetic = profile in ("tiny", "demo")
    return FakePlan(paper, profile, fake, tuple(cells))


def one_hot(codes, classes, sure=0.9):
    """Probabilities (N, V, C) float16 that are sure of these codes whatever the selection."""
    table = np.full((classes, classes), (1 - sure) / max(classes - 1, 1), np.float16)
    np.fill_diagonal(table, sure)
    return np.repeat(table[codes][:, None], len(VIEWS), axis=1)


def noisy(labels, classes, skill, rng):
    """Softmax outputs (N, V, C) float16 whose arg-max is right more often the higher ``skill`` is."""
    logits = rng.normal(size=(len(labels), len(VIEWS), classes)) * 0.3 + rng.normal(size=(len(labels), 1, classes))
    logits[np.arange(len(labels)), :, labels] += skill
    odds = np.exp(logits)
    return (odds / odds.sum(-1, keepdims=True)).astype(np.float16)


def laboratory_rows(name, counts, folds=5):
    """Ids, labels, laboratories and folds of one laboratory with these images per class."""
    labels = np.repeat(np.arange(len(counts)), counts)
    ids = np.array([f"{name}/{i:04d}" for i in range(len(labels))])
    return ids, labels, np.full(len(labels), name), np.arange(len(labels)) % folds


def fill_domain_store(
    path: Path, plan: FakePlan, *, counts=(20, 15, 10, 8, 6), skip=(), skills=None, probabilities=None, seed=0
) -> Store:
    """Write every cell of a plan except ``skip``. ``counts``: images per class, or ``{laboratory: images per class}``;
    ``probabilities(cell, set, labels)`` replaces the random ones."""
    store, classes = Store(path), len(plan.benchmark.classes)
    laboratories = sorted({c.labels["held_out"] for c in plan.cells} | {"source-a", "source-b"})
    per_class = counts if isinstance(counts, dict) else dict.fromkeys(laboratories, tuple(counts)[:classes])
    for index, cell in enumerate(plan.cells):
        if cell.id in skip:
            continue
        labels, rng = cell.labels, np.random.default_rng([seed, index])
        sources = [name for name in laboratories if name != labels["held_out"]]
        test = laboratory_rows(labels["held_out"], per_class.get(labels["held_out"], (5,) * classes))
        parts = [laboratory_rows(name, per_class.get(name, (5,) * classes)) for name in sources]
        val = [np.concatenate(column) for column in zip(*parts, strict=True)]
        chosen = val[3] == labels["trial"] % 5
        views = ("retrained",) if cell.kind == "domain_head" else VIEWS
        arrays = {"classes": np.array(plan.benchmark.classes), "views": np.array(views)}
        for on, rows in (("test", test), ("val", [column[chosen] for column in val])):
            skill = (skills or {}).get(labels["method"], 1.5)
            made = probabilities(cell, on, rows[1]) if probabilities else noisy(rows[1], classes, skill, rng)
            arrays |= {f"{on}_ids": rows[0], f"{on}_labels": rows[1].astype(np.int16), f"{on}_domains": rows[2]}
            arrays |= {f"{on}_groups": np.full(len(rows[0]), ""), f"{on}_folds": rows[3].astype(np.int8)}
            arrays |= {f"{on}_probabilities": made[:, : len(views)]}
        folder = store.folder(cell.id)
        folder.mkdir(parents=True)
        write_json(folder / "cell.json", cell.to_json())
        np.savez_compressed(folder / "predictions.npz", **arrays)
        environment = {"commit": "abc", "hardware": "a machine", "started": "2026-02-03T04:05:06+00:00", "seconds": 1.5}
        write_json(folder / "env.json", environment)
        train = [list(per_class.get(name, (5,) * classes)) for name in sources]
        write_json(folder / "metrics.json", {"schema": 1, "train_counts": train, "sources": sources})
    return store
