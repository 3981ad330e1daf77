"""Kinds of cells of ``design: rescue`` that read isolated and restored cells, and the rescue itself.

``tta``, ``rescored`` and ``semantic`` store ``predictions.npz`` as trainings and heads do (see `kinds`), with
``<s>_groups`` (N names of patients or slides, empty where unknown) beside each set, and for ``semantic``
``<s>_missing`` (images without an embedding; their probabilities are zeros). ``rescue`` stores ``rules.json``
(every threshold, its criterion and what it rests on), ``trace.npz`` - for s of (oof, test, test_degraded): ``<s>_ids``,
``<s>_labels``, ``<s>_groups`` and the arrays of `wbcrepro.rescue.trace` under ``<s>_`` - and ``predictions.npz`` with
the two branches that it read as views: swin, semantic. "oof" are the training images, each scored by the fold that
never saw it; thresholds are fitted on them and on nothing else.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from wbcrepro import metrics, training
from wbcrepro.data.pixels import PixelCache
from wbcrepro.embedders import (
    MedSigLIPEmbedder,
    TimmEmbedder,
    embedding_source,
    problem_words,
    usable_embeddings,
)
from wbcrepro.errors import DataMissing, UsageError
from wbcrepro.experiments.plan import digest_of_file, embeddings_file
from wbcrepro.experiments.predictions import save_predictions
from wbcrepro.experiments.run import Context, Runner
from wbcrepro.experiments.store import StoredCell, write_json
from wbcrepro.inference.tta import DIHEDRAL, RESCUE_WEIGHTS, combine_views
from wbcrepro.rescue.morphology import BOX_COLUMNS, CODE_COLUMNS, PAPER_COLUMNS, Morphology
from wbcrepro.rescue.rules import RESCUE_CODE, RareClass, Rules
from wbcrepro.rescue.suppress_rescue import suppress_and_rescue
from wbcrepro.rescue.thresholds import FitSettings, fit_thresholds
from wbcrepro.semantic_training import SemanticSettings, fit_semantic, predict_semantic

TESTS = ("test", "test_degraded")


def run_tta(context: Context) -> dict:
    """A trained network's probabilities in eight views, for its validation fold and the test sets."""
    config, train = context.cell.config, context.parent("train")
    rows = _rows(context, config["fold"], config["folds"], config["sets"])
    return _score(context, train, context.parent("restored"), rows, DIHEDRAL)


def run_rescored(context: Context) -> dict:
    """The same network on test images that another method restored: one view."""
    restored = context.store.require(next(p for p in context.cell.parents if p.startswith("restored-")))
    rows = {name: index for name, index in _rows(context, -1, "group", "all").items() if name != "val"}
    return _score(context, context.parent("train"), restored, rows, ("identity",))


def _score(
    context: Context, train: StoredCell, restored: StoredCell, rows: dict[str, np.ndarray], views: tuple[str, ...]
) -> dict:
    from wbcrepro.experiments.kinds import stored_model

    model = stored_model(context, train, context.cell.config["checkpoint"])
    images = PixelCache.open(restored.folder / "pixels").images
    found, options = {}, {"views": views, "device": context.device, "progress": context.progress}
    for name, index in rows.items():
        with context.inference(len(index)):
            found[name] = (index, training.predict(model, images, index, **options))
    return _finish(context, found, views) | {"train_counts": train.metrics["train_counts"]}


def run_embeddings(context: Context) -> dict:
    """Embeddings of every image by a network that this benchmark did not train, or from a file of published ones."""
    wanted = context.cell.config["embedder"]
    if "file" in wanted:
        file = embeddings_file(context.plan.asked.get("data"), context.benchmark.name)
        if file is None or digest_of_file(file) != wanted["file"]:
            raise DataMissing(
                f"{context.cell.id} reads embeddings of sha256 {wanted['file']}..., and DATA/embeddings/"
                f"{context.benchmark.name}.npz (or .parquet) is not that file. Put it there and give --data DATA"
            )
        (rows, report), about = _published(context, file), embedding_source(file)
    else:
        images = PixelCache.open(context.parent("restored").folder / "pixels").images
        medsiglip = wanted["backbone"] == "medsiglip"
        embedder = (MedSigLIPEmbedder(device=context.device) if medsiglip
                    else TimmEmbedder(wanted["backbone"], wanted["weights"], device=context.device))  # fmt: skip
        with context.inference(len(images)):
            rows = np.concatenate([embedder.embed(np.asarray(images[i : i + 256])) for i in range(0, len(images), 256)])
        about, report = {"model": embedder.name, "sha256": embedder.digest}, {}
    np.save(context.folder / "embeddings.npy", rows.astype(np.float32))
    missing = int(np.isnan(rows).any(1).sum())
    return {"images": len(rows), "dimension": rows.shape[1], "missing": missing, "embedder": about} | report


def _published(context: Context, file: Path) -> tuple[np.ndarray, dict]:
    """Embeddings from a file with one row an image id, and how many ids of the file had which problem; a copy that we
    degraded, which shares the id of its pristine twin, is named ``<id>#degraded`` there. Raises UsageError for a file
    without a usable row for any training image."""
    table = context.benchmark.table
    degraded = (table["set"] == "test_degraded") & table["id"].isin(table["id"][table["set"] == "test"])
    ids = (table["id"] + np.where(degraded, "#degraded", "")).tolist()
    rows, problems = usable_embeddings(file, ids)
    words = problem_words(problems)
    if np.isnan(rows[(table["set"] == "train").to_numpy()]).any(1).all():
        raise UsageError(
            f"{file.name} has a usable embedding for none of the training images of {context.benchmark.name}, which "
            f"are called {ids[0]} and so on: {words}. Next step: write the file again with these ids"
        )
    if words:
        tqdm.write(f"{file.name}: {words}. The run goes on: these images have no embedding and are counted, ids that "
                   "the dataset does not have are ignored")  # fmt: skip
    return rows, {"problems": {what: len(names) for what, names in problems.items() if names}}


def run_semantic(context: Context) -> dict:
    """The contrastive head on stored embeddings. Fold -1 trains on all training images, as the paper does, and scores
    them; an image without an embedding is scored by none, and trains none."""
    config, table = context.cell.config, context.benchmark.table
    embeddings = np.load(context.parent("embeddings").folder / "embeddings.npy").astype(np.float32)
    labels, classes = table["label"].to_numpy(np.int64), context.benchmark.classes
    in_train, folds = table["set"].to_numpy() == "train", table["fold"].to_numpy()
    usable = ~np.isnan(embeddings).any(1)
    train = np.flatnonzero(in_train & usable & (folds != config["fold"]))
    if not len(train):
        raise UsageError(f"{context.cell.id}: no training image outside fold {config['fold']} has an embedding")
    known = {name: factor for name, factor in SemanticSettings().resample.items() if name in classes}
    settings = getattr(SemanticSettings, config["head"])(**{"resample": known, **config["settings"]})
    head, history = fit_semantic(
        embeddings, labels, train, settings, classes=classes, seed=config["seed"],
        device=context.device, folder=context.folder,
    )  # fmt: skip
    rows = _rows(context, config["fold"], "group", "all")
    if config["fold"] < 0:
        rows = {"train": np.flatnonzero(in_train), **{name: index for name, index in rows.items() if name != "val"}}
    # An image without an embedding has no probabilities: zeros, and the column that says so.
    found = {n: (i, np.nan_to_num(predict_semantic(head, embeddings[i]))[:, None]) for n, i in rows.items()}
    kept = max(line["epoch"] for line in history if line["kept"])
    report = {"kept_epoch": kept, "epochs": len(history), "train": len(train)}
    return report | _finish(context, found, ("identity",), {"missing": ~usable})


def run_rescue(context: Context) -> dict:
    """Fit every threshold out of fold, then suppress and rescue the training side (out of fold) and the test sets."""
    classes = context.benchmark.classes
    swin = _branch(context, "tta", RESCUE_WEIGHTS)
    semantic = _branch(context, "semantic", None)
    morphology = _morphology(context.parent("morphology", "released_morphology"))
    position = {name: i for i, name in enumerate(_keys(context))}
    rules, trace, arrays, views = None, None, {}, {}
    report: dict = {}
    for name in ("oof", *(s for s in TESTS if s in swin)):
        ids, labels, groups, p_swin = swin[name]
        if not np.array_equal(ids, semantic[name][0]):
            raise ValueError(f"{context.cell.id}: the two branches scored different images of {name}")
        p_semantic = semantic[name][3]
        rows = np.array([position[name if name != "oof" else "train", i] for i in ids])
        cells = morphology.take(rows)
        if rules is None:  # the first set is "oof": nothing that is fitted here has seen a test image
            rules = fit_thresholds(p_swin, p_semantic, cells, labels, rules_template(context), classes,
                                   settings=fit_settings(context),
                                   groups=groups if (groups != "").all() else None)  # fmt: skip
            write_json(context.folder / "rules.json", rules.to_json())
        trace = suppress_and_rescue(p_swin, p_semantic, cells, rules, classes)
        arrays |= {f"{name}_ids": ids, f"{name}_labels": labels, f"{name}_groups": groups}
        arrays |= trace.to_arrays(f"{name}_")
        views[name] = (rows, np.stack([p_swin, np.nan_to_num(p_semantic)], 1))
        report[name] = {
            "counts": trace.counts(),
            **{stage: metrics.scores(labels, codes, len(classes)) for stage, codes in trace.after_phase.items()},
        }
    with (context.folder / ".trace.npz").open("wb") as file:
        np.savez_compressed(file, **arrays)
    (context.folder / ".trace.npz").replace(context.folder / "trace.npz")
    save_predictions(context, views, ("swin", "semantic"), {"groups": _groups(context)})
    return report


def rules_template(context: Context) -> Rules:
    """The rules of the cell for its targets; what is None is to be fitted."""
    config = context.cell.config
    rare = tuple(_rare_class(target, config) for target in config["targets"])
    return Rules(config["mode"], rare, accept=("ok", "several_cells"))  # a second cell in the image is no hindrance


def fit_settings(context: Context) -> FitSettings:
    """How the thresholds of the cell are fitted."""
    return FitSettings(judge=context.cell.config.get("judge", "phase2"))


def _rare_class(target: dict, config: dict) -> RareClass:
    name, against, cue = target["name"], tuple(target["against"]), target["cue"]
    if config["mode"] == "paper":
        columns = PAPER_COLUMNS if cue == "mahalanobis" else ()
        boost = None if config["boost"] == "fitted" else config["boost"]
        return RareClass(name, against=against, boost=boost, cue=cue, columns=columns)
    constants = RESCUE_CODE.of("PLY" if cue == "spikiness" else "PC")  # the released constants belong to the cue
    columns, box = (CODE_COLUMNS, BOX_COLUMNS) if cue == "mahalanobis" else ((), ())
    return RareClass(
        name, against=against, boost=constants.boost, semantic=constants.semantic, cue=cue,
        cue_threshold=constants.cue_threshold, columns=columns, max_prob=constants.max_prob, box_columns=box,
    )  # fmt: skip


def _branch(context: Context, kind: str, weights: tuple | None) -> dict[str, tuple]:
    """``{set: (ids, labels, groups, probabilities (N,C))}``: out of fold over all folds, tests averaged over folds."""
    parents = [context.plan.cell(cell_id) for cell_id in context.cell.parents if cell_id.startswith(f"{kind}-")]
    found: dict[str, list[tuple]] = {}
    for cell in sorted(parents, key=lambda cell: cell.config["fold"]):
        if cell.config["fold"] < 0:
            continue  # trained on every training image: its scores of them are no evidence
        with np.load(context.store.require(cell.id).folder / "predictions.npz") as file:
            for name in ("val", *TESTS):
                if f"{name}_ids" not in file:
                    continue
                p = file[f"{name}_probabilities"]
                p = combine_views(p, weights) if weights else p[:, 0].astype(np.float64)
                if f"{name}_missing" in file:
                    p[file[f"{name}_missing"]] = np.nan
                found.setdefault(name, []).append(
                    (file[f"{name}_ids"], file[f"{name}_labels"].astype(np.int64), file[f"{name}_groups"], p)
                )
    out = {"oof": tuple(np.concatenate(parts) for parts in zip(*found.pop("val"), strict=True))}
    for name, parts in found.items():
        out[name] = (*parts[0][:3], np.mean([part[3] for part in parts], axis=0))
    return out


def _keys(context: Context) -> list[tuple[str, str]]:
    """(set, id) of every row of the table: a degraded copy has the id of its pristine twin."""
    table = context.benchmark.table
    return list(zip(table["set"].tolist(), table["id"].tolist(), strict=True))


def _morphology(stored: StoredCell) -> Morphology:
    with np.load(stored.folder / "morphology.npz") as file:
        return Morphology(file["features"], tuple(file["columns"].tolist()), file["status"])


def _rows(context: Context, fold: int, folds: str, sets: str) -> dict[str, np.ndarray]:
    from wbcrepro.experiments.kinds import fold_rows

    names = context.benchmark.table["set"].to_numpy()
    found = {"val": fold_rows(context, fold, folds)[1]}
    if sets == "all":
        found |= {name: np.flatnonzero(names == name) for name in TESTS if (names == name).any()}
    return found


def _groups(context: Context) -> np.ndarray:
    return context.benchmark.table["group"].to_numpy(str)


def _finish(
    context: Context, found: dict[str, tuple[np.ndarray, np.ndarray]], views: tuple[str, ...], extra: dict | None = None
) -> dict:
    save_predictions(context, found, views, {"groups": _groups(context), **(extra or {})})
    labels = context.benchmark.table["label"].to_numpy()
    scores = {
        name: metrics.scores(labels[rows], p[:, 0].argmax(1), len(context.benchmark.classes))
        for name, (rows, p) in found.items()
    }
    return {"identity": scores}


RUNNERS: dict[str, Runner] = {
    "tta": run_tta,
    "rescored": run_rescored,
    "embeddings": run_embeddings,
    "semantic": run_semantic,
    "rescue": run_rescue,
}
