"""``design: rescue``: isolate and restore cells, train by fold, verify, measure, and rescue from stored predictions.

    pixels -> cells -> restorer -> restored -> train -> tta           per row of Table 2, kind of folds, and fold
                                            |        -> features -> head     the decoupled classifier
                                            -> embeddings -> semantic        per preset and fold; fold -1: all images
              cells -----------> morphology                          measured on restored cells, see MEASURED
    tta + semantic (all folds) + morphology -> rescue                per preset: thresholds fitted out of fold, a trace

Folds are by group (patient) where groups are known; the networks of Table 1 are trained on folds by image too.
"""

from __future__ import annotations

import numpy as np

from wbcrepro.data.benchmarks import Benchmark
from wbcrepro.errors import UsageError
from wbcrepro.experiments.cell import Cell
from wbcrepro.experiments.versions import versions_of
from wbcrepro.seeds import derive_seed

BASE_SEED = 42
MEASURED = {"paper": "morphology", "code": "released_morphology"}
"""What the rules of a mode ask about the cell: features from its masks, or the released code's own."""


def plan_rescue(paper: dict, profile: str, settings: dict, benchmark: Benchmark, weights: str) -> list[Cell]:
    """The cells of one benchmark, parents before children. Rules for classes that it does not have are left out; the
    label ``without`` of a rescue says which. Raises ``UsageError`` for folds that it does not have, or no rule left."""
    return _Planner(paper, profile, settings, benchmark, weights).cells()


def _targets(targets: list[dict], benchmark: Benchmark) -> tuple[list[dict], str]:
    """The targets whose class, and one that it is confused with, the benchmark has; and in words what is left out."""
    kept, without = [], []
    for target in targets:
        absent = [name for name in (target["name"], *target["against"]) if name not in benchmark.classes]
        against = [name for name in target["against"] if name not in absent]
        dropped = target["name"] in absent or not against
        if not dropped:
            kept.append(target | {"against": against})
        if absent:
            what = f"no rule for {target['name']}" if dropped else f"{target['name']} only against {', '.join(against)}"
            without.append(f"{what} ({', '.join(absent)} absent)")
    if not kept:
        raise UsageError(
            f"{benchmark.name} has nothing to rescue: {'; '.join(without)}; its classes are "
            f"{', '.join(benchmark.classes)}. Choose another DATASET, or a profile with other targets"
        )
    return kept, "; ".join(without)


class _Planner:
    def __init__(self, paper: dict, profile: str, settings: dict, benchmark: Benchmark, weights: str):
        self.paper, self.profile, self.settings = paper, profile, settings
        self.benchmark, self.weights = benchmark, weights
        there = benchmark.table.loc[benchmark.table["set"] == "train", "fold"].unique()
        self.folds = [fold for fold in settings["folds"] if fold in there]
        if len(self.folds) < 2:
            raise UsageError(
                f"{benchmark.name} has the folds {sorted(map(int, there))} and the profile runs {settings['folds']}: "
                "thresholds are fitted out of fold, which needs two in common. Choose another DATASET"
            )
        self.targets, self.without = _targets(paper["targets"][settings["targets"]], benchmark)

    def cells(self) -> list[Cell]:
        """Everything, the preset `paper` first."""
        pixels = self._cell(
            "pixels",
            {"data_digest": self.benchmark.digest, "stain": "none", **self.settings["pixels"]},
            (),
        )
        cells = {"segmentation": self.settings["segmentation"], "window": self.settings["window"]}
        isolated = self._cell("cells", cells, (pixels,))
        found = [pixels, isolated]
        for preset in self.settings["presets"]:
            found += self._preset(preset, isolated)
        return found

    def _cell(self, kind: str, config: dict, parents: tuple[Cell, ...], **labels: object) -> Cell:
        labels = {"profile": self.profile, "benchmark": self.benchmark.name, **labels}
        config = {"benchmark": self.benchmark.name, **config}
        further = ("cellpose",) if config.get("segmentation") == "cellpose" else ()
        return Cell(kind, config, tuple(parent.id for parent in parents), versions_of(kind, *further), labels)

    def _seed(self, *words: object) -> int:
        return derive_seed(BASE_SEED, self.paper["name"], *words)

    def _preset(self, preset: str, isolated: Cell) -> list[Cell]:
        by = self.settings.get("restored_by", preset)
        noises = {name: self.paper["presets"][name]["noise"] for name in (preset, by)}
        restorers = {name: self._restorer(noise, isolated) for name, noise in noises.items()}
        restored = self._restored("pix2pix", isolated, restorers[by], noise=noises[by])
        found = [*restorers.values(), restored]
        if by != preset:  # restored and scored, but no network is trained on it
            found.append(self._restored("pix2pix", isolated, restorers[preset], noise=noises[preset]))
        trained = {"group": self._networks(preset, "group", restored)}
        if self.settings["image_folds"] and preset == "paper":
            trained["image"] = self._networks(preset, "image", restored, rows=["swin"])
        found += [cell for cells in trained.values() for cell in cells]
        swin = [c for c in trained["group"] if c.kind == "tta" and c.labels["row"] == "swin"]
        if preset == "paper":
            found += self._rescored(isolated, trained["group"])
        embeddings = self._cell("embeddings", {"embedder": self.settings["embedder"]}, (restored,))
        semantic = [self._semantic(preset, embeddings, fold) for fold in (*self.folds, -1)]
        labels = {"preset": preset} | ({"without": self.without} if self.without else {})
        rescues = []
        for name, rules in self.paper["rules"].items():
            if rules["preset"] == preset:
                config = {"mode": rules["mode"], "boost": rules["boost"], "targets": self.targets}
                config |= {"judge": rules["judge"]} if "judge" in rules else {}
                measured = self._cell(MEASURED[rules["mode"]], {}, (isolated, restored))
                rescue = self._cell("rescue", config, (*swin, *semantic, measured), rules=name, **labels)
                rescues += [measured, rescue]
        return [*found, embeddings, *semantic, *rescues]

    def _restorer(self, noise: str, isolated: Cell) -> Cell:
        """``noise``: of the synthetic pairs, or "true_pairs" where the data has them."""
        config = {
            "noise": [noise] if noise == "true_pairs" else self._noises(noise),
            "threshold": self.settings["noise_threshold"],
            "settings": self.settings["restorer"],
            "seed": self._seed("restorer", self.benchmark.name, noise),
        }
        return self._cell("restorer", config, (isolated,), noise=noise)

    def _noises(self, noise: str) -> list[str]:
        return [noise, *self.settings["more_noise"]]

    def _restored(self, name: str, isolated: Cell, restorer: Cell | None, method: str = "", **labels: object) -> Cell:
        noises = self._noises(self.paper["presets"]["paper"]["noise"])  # one filter for all that is compared
        threshold = {"threshold": self.settings["noise_threshold"], "noise": noises}
        config = {"method": name, "input": self.settings["input"], **threshold}
        parents = (isolated, restorer) if restorer is not None else (isolated,)
        return self._cell("restored", config, parents, method=method or name, **labels)

    def _networks(self, preset: str, folds: str, restored: Cell, rows: list[str] | None = None) -> list[Cell]:
        """A training and its scores for each row and fold. Presets with the same backbone share their networks."""
        rows = rows or (self.settings["rows"] if preset == "paper" else ["swin"])
        found = []
        for row in rows:
            if row == "decoupling":
                continue  # a classifier on the features of `swin`
            for fold in self.folds:
                train = self._train(preset, folds, restored, row, fold)
                labels = {"preset": preset, "row": row, "fold": fold, "folds": folds}
                config = {"fold": fold, "folds": folds, "row": row, "checkpoint": "best", "sets": self._sets(folds)}
                found += [train, self._cell("tta", config, (train,), **labels)]
                if row == "swin" and "decoupling" in rows:
                    found += self._decoupled(preset, train, fold)
        return found

    def _sets(self, folds: str) -> str:
        """Folds by image are there for cross-validation alone."""
        return "all" if folds == "group" else "val"

    def _train(self, preset: str, folds: str, restored: Cell, row: str, fold: int) -> Cell:
        network = self.paper["networks"][row]
        backbone = self.settings["backbones"][preset]
        optimisation = {
            **self.paper["common"],
            **self.settings["optimisation"],
            **{key: network[key] for key in ("loss", "loss_options", "sampler")},
        }
        if "deferred" in network:
            start = int(np.ceil(network["deferred"] * optimisation["epochs"]))
            optimisation["loss_options"] = {**network["loss_options"], "drw_start": start}
        config = {
            "fold": fold,
            "folds": folds,
            "backbone": backbone,
            "weights": self.weights,
            "head": network["head"],
            "optimisation": optimisation,
            # One seed for all rows of a fold: the same initial weights.
            "seed": self._seed("stage1", backbone, folds, fold),
        }
        return self._cell("train", config, (restored,), preset=preset, row=row, fold=fold, folds=folds)

    def _decoupled(self, preset: str, train: Cell, fold: int) -> list[Cell]:
        """Kang et al.: the classifier retrained on class-balanced samples of fixed features."""
        labels = {"preset": preset, "row": "decoupling", "fold": fold, "folds": "group"}
        passes = {
            "fold": fold,
            "checkpoint": "best",
            "passes": self.settings["passes"],
            "augment": self.paper["common"]["augment"],
        }
        features = self._cell("features", passes, (train,), **labels)
        config = {
            "fold": fold,
            "head": "crt",
            "classifier": "linear",
            "select": "best",
            "optimisation": {**self.paper["decoupling"], **self.settings["decoupling"]},
            "seed": self._seed("decoupling", fold),
        }
        return [features, self._cell("head", config, (features,), **labels)]

    def _rescored(self, isolated: Cell, networks: list[Cell]) -> list[Cell]:
        """The first fold's network on test images that other methods restored: is a median filter as good?"""
        train = next((c for c in networks if c.kind == "train" and c.labels["row"] == "swin"), None)
        found = []
        for method in self.settings["restorations"]:
            if method == "true_pairs" and (self.benchmark.twins < 0).all():
                continue  # only WBCBench's Hugging Face release has degraded images with their pristine twins
            restorer = self._restorer("true_pairs", isolated) if method == "true_pairs" else None
            found += [restorer] if restorer else []
            restored = self._restored("pix2pix" if restorer else method, isolated, restorer, method=method)
            labels = {"preset": "paper", "row": "swin", "fold": train.labels["fold"], "method": method}
            config = {"fold": train.labels["fold"], "checkpoint": "best", "method": method}
            found += [restored, self._cell("rescored", config, (train, restored), **labels)]
        return found

    def _semantic(self, preset: str, embeddings: Cell, fold: int) -> Cell:
        settings = dict(self.settings["semantic"][preset])
        if "resample" in settings:  # its factors are for the profile's own classes
            factors = settings["resample"].items()
            settings["resample"] = {name: factor for name, factor in factors if name in self.benchmark.classes}
        config = {
            "fold": fold,
            "head": self.paper["presets"][preset]["semantic"],
            "settings": settings,
            "seed": self._seed("semantic", self.paper["presets"][preset]["semantic"], fold),
        }
        return self._cell("semantic", config, (embeddings,), preset=preset, fold=fold)
