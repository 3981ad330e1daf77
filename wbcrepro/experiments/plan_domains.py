"""``design: domains``: leave one laboratory out, for every row (method), held-out laboratory and trial.

Trial t validates on fold t of every source laboratory (20 %), trains on the rest and tests on all images of the
held-out one; the benchmark's ``variants`` of a held-out laboratory (the same cells under other stains) are tested too.
Cells come in the order in which a reader wants them: the rows of the tables first, trial by trial; what has the label
``tier`` 1 (ablations, sweeps) or 2 (further trials) runs when it is asked for (``--more``).
"""

from __future__ import annotations

from wbcrepro.data.benchmarks import Benchmark
from wbcrepro.errors import UsageError
from wbcrepro.experiments.cell import Cell
from wbcrepro.experiments.versions import versions_of
from wbcrepro.seeds import derive_seed

BASE_SEED = 42


def plan_domains(paper: dict, profile: str, settings: dict, benchmark: Benchmark, weights: str) -> list[Cell]:
    """The cells of a paper of this design, parents before children. Raises ``UsageError`` for unknown laboratories."""
    unknown = [name for name in settings["held_out"] if name not in benchmark.domains]
    if unknown:
        raise UsageError(
            f"{paper['name']}, profile {profile}: {benchmark.name} has no laboratory {', '.join(unknown)}; "
            f"it has {', '.join(benchmark.domains)}. Choose another DATASET"
        )
    pixels: dict[str, Cell] = {}
    cells: list[Cell] = []
    for tier, trial, chosen in _rounds(settings):
        for preset, methods in chosen.items():
            for held_out in settings["held_out"]:
                for method in methods:
                    labels = {"profile": profile, "preset": preset, "method": method, "held_out": held_out,
                              "trial": trial, "tier": tier}  # fmt: skip
                    cells += _row(paper, settings, benchmark, weights, pixels, labels)
    return cells + _figures(settings, benchmark, weights, cells)


def _figures(settings: dict, benchmark: Benchmark, weights: str, cells: list[Cell]) -> list[Cell]:
    """Embeddings (also those before any training) and Grad-CAM maps of the first trial's networks, preset `paper`."""
    found = []
    for figure, wanted in settings.get("figures", {}).items():
        config = {key: value for key, value in wanted.items() if key not in {"methods", "held_out"}}
        labels = {"preset": "paper", "held_out": wanted["held_out"], "trial": 0, "tier": 0, "figure": figure}
        trained = {c.labels["method"]: c for c in cells if c.kind == "domain_train" and c.labels["preset"] == "paper"
                   and c.labels["held_out"] == wanted["held_out"] and c.labels["trial"] == 0}  # fmt: skip
        parents = [(trained[name], name) for name in wanted["methods"]]
        kind = f"domain_{figure}"
        if figure == "embeddings":
            first = parents[0][0]
            config["domains"] = [*first.config["sources"], wanted["held_out"]]
            before = {**config, "backbone": settings["backbone"], "weights": weights}
            found.append(Cell(kind, before, first.parents, versions_of(kind), {**labels, "method": "pretrained"}))
        for parent, name in parents:
            chosen = {**config, "selection": "swad"}
            found.append(Cell(kind, chosen, (parent.id,), versions_of(kind), {**labels, "method": name}))
    return found


def _rounds(settings: dict) -> list[tuple[int, int, dict]]:
    """(tier, trial, ``{preset: methods}``): the rows of the first trials, then what was left out, then more trials.

    ``first_trials`` of a profile (1 where it does not say) belong to tier 0.
    """
    first, more = settings.get("first_trials", 1), settings.get("more") or {}
    rounds = [(0, trial, settings["presets"]) for trial in range(first)]
    rounds += [(1, trial, more) for trial in range(first)]
    for trial in range(first, settings["trials"]):
        rounds += [(2, trial, settings["presets"]), (2, trial, more)]
    return rounds


def _row(
    paper: dict, settings: dict, benchmark: Benchmark, weights: str, pixels: dict[str, Cell], labels: dict
) -> list[Cell]:
    """The pixel cache, the training, and for a retrained row the classifier of one method, laboratory and trial."""
    method = paper["methods"][labels["method"]]
    trained = paper["methods"][method["retrain"]] if "retrain" in method else method
    scale = trained.get("scale", settings["pixels"]["scale"])
    if scale not in pixels:
        pixels[scale] = Cell(
            "pixels",
            {
                "benchmark": benchmark.name,
                "data_digest": benchmark.digest,
                "stain": "none",
                **settings["pixels"],
                "scale": scale,
            },
            versions=versions_of("scaled_pixels"),
            labels={"profile": labels["profile"], "scale": scale, "tier": labels["tier"]},
        )
    labels = {**labels, "scale": scale}
    name = method.get("retrain", labels["method"])
    train = _training(paper, settings, benchmark, weights, pixels[scale], trained, {**labels, "method": name})
    if "retrain" not in method:
        return [pixels[scale], train]
    config = {
        key: train.config[key] for key in ("paper", "profile", "preset", "benchmark", "held_out", "sources", "trial")
    }
    head = Cell(
        "domain_head",
        {
            **config,
            "method": labels["method"],
            "selection": paper["tables"]["table_1"]["selection"],
            "optimisation": {**paper["retraining"], **settings.get("retraining", {})},
            "seed": derive_seed(BASE_SEED, paper["name"], "retrain", labels["held_out"], labels["trial"]),
        },
        (train.id,),
        versions_of("domain_head"),
        labels,
    )
    return [pixels[scale], train, head]


def _training(
    paper: dict, settings: dict, benchmark: Benchmark, weights: str, pixels: Cell, method: dict, labels: dict
) -> Cell:
    algorithm, held_out, trial = method["algorithm"], labels["held_out"], labels["trial"]
    variants = {name for names in benchmark.variants.values() for name in names}
    schedule = {key: value for key, value in settings["schedule"].items() if key != "stage1_steps"}
    options = {**paper["common"], **settings["common"], **settings.get("algorithms", {}).get(algorithm, {})}
    if "preset_settings" in method:
        options |= paper["presets"][labels["preset"]][method["preset_settings"]]
    options |= method.get("settings", {})
    if algorithm == "sada":
        options["stage1_steps"] = settings["schedule"]["stage1_steps"]
        schedule["swad_from_step"] = settings["schedule"]["stage1_steps"]
    return Cell(
        "domain_train",
        {
            "paper": paper["name"],
            "profile": labels["profile"],
            "preset": labels["preset"],
            "benchmark": benchmark.name,
            "held_out": held_out,
            "sources": [name for name in benchmark.domains if name != held_out and name not in variants],
            "targets": [held_out, *benchmark.variants.get(held_out, ())],
            "trial": trial,
            "method": labels["method"],
            "algorithm": algorithm,
            "settings": options,
            "backbone": settings["backbone"],
            "weights": weights,
            "schedule": {**schedule, "swad": paper["swad"].get(algorithm, paper["swad"]["default"])},
            # One seed for all methods of a laboratory and trial: the same initial weights, the same images.
            "seed": derive_seed(BASE_SEED, paper["name"], held_out, trial),
        },
        (pixels.id,),
        versions_of("domain_train", algorithm),
        labels,
    )
