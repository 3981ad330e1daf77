"""What each kind of cell does. A runner takes a ``Context``, writes files into the cell's folder and returns metrics.

``predictions.npz`` of ``train`` and ``head`` cells: ``classes`` (C names), ``views`` (V names, 0 is the identity), and
for each set s of (val, test, test_degraded): ``<s>_ids`` (N names), ``<s>_labels`` (int16, N) and
``<s>_probabilities`` (float16, N x V x C). A training stores ``val`` with the identity view only.
"""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from wbcrepro import metrics, training
from wbcrepro.backbones import Classifier, build_backbone
from wbcrepro.data.pixels import PixelCache, Preprocessing, build_pixels
from wbcrepro.data.scale import scaled_reader
from wbcrepro.experiments import kinds_cells, kinds_domains, kinds_rescue, kinds_restoration
from wbcrepro.experiments.heads import below, head_from_state
from wbcrepro.experiments.predictions import save_predictions
from wbcrepro.experiments.run import Context, Runner
from wbcrepro.experiments.store import StoredCell
from wbcrepro.inference.ensemble import mean_probabilities
from wbcrepro.inference.tta import CODE_WEIGHTS, DIHEDRAL
from wbcrepro.longtail.heads import make_head, predict_logits
from wbcrepro.longtail.heads.fit import fit_head
from wbcrepro.stain import normaliser

TEST_SETS = ("test", "test_degraded")


def run_pixels(context: Context) -> dict:
    """Decode, normalise the stain, resize and crop every image of the benchmark once."""
    config, benchmark = context.cell.config, context.benchmark
    read = scaled_reader(benchmark, config["scale"]) if "scale" in config else benchmark.read
    cache = build_pixels(
        read,
        len(benchmark.table),
        Preprocessing(stain=config["stain"], resize=config["resize"], crop=config["crop"]),
        context.folder / "pixels",
        normalise=normaliser(config["stain"]),
        progress=context.progress,
    )
    statuses = {name: dict(Counter(np.asarray(cache.status)[rows])) for name, rows in _sets(context).items()}
    return {"images": len(benchmark.table), "shape": list(cache.images.shape), "status": statuses}


def run_train(context: Context) -> dict:
    """Stage 1: the whole network, on the training folds, stopped by the validation fold."""
    config, benchmark = context.cell.config, context.benchmark
    images, labels = _pixels(context).images, benchmark.table["label"].to_numpy(np.int64)
    model = _build_model(context, config["backbone"], context.weights, config["head"])
    train, val = fold_rows(context, config["fold"], config.get("folds", "group"))
    settings = training.TrainConfig(**config["optimisation"], seed=config["seed"])
    result = training.fit(
        model, images, labels, train, val, settings,
        classes=len(benchmark.classes), folder=context.folder, device=context.device, progress=context.progress,
    )  # fmt: skip
    training.load_weights(model, context.folder / "best.safetensors")
    probabilities = training.predict(model, images, val, views=("identity",), device=context.device)
    save_predictions(context, {"val": (val, probabilities)}, ("identity",))
    scores = metrics.scores(labels[val], probabilities[:, 0].argmax(1), len(benchmark.classes))
    return {
        "best_epoch": result.best_epoch,
        "epochs_run": result.epochs_run,
        "train_images": len(train),
        "train_counts": np.bincount(labels[train], minlength=len(benchmark.classes)).tolist(),
        "val": scores,
    }


def run_features(context: Context) -> dict:
    """Embeddings of a stage-1 network: augmented passes over the training folds; eight views of everything else."""
    config, parent = context.cell.config, context.parent("train")
    images = _pixels(context).images
    model = stored_model(context, parent, config["checkpoint"])
    train, _ = fold_rows(context, config["fold"])
    rows = _scored_rows(context)
    common = {"device": context.device, "dtype": np.float16, "progress": context.progress}
    seed = parent.cell["config"]["seed"]
    augmented = training.embed(
        model, images, train, augment=config["augment"], passes=config["passes"], seed=seed, **common
    )
    np.save(context.folder / "train.npy", augmented)
    for name, found in rows.items():
        with context.inference(len(found)):
            embedded = training.embed(model, images, found, views=DIHEDRAL, **common)
        np.save(context.folder / f"{name}.npy", embedded)
    plain = training.embed(model, images, train, views=("identity",), **common)
    np.save(context.folder / "train_plain.npy", plain[:, 0])
    return {
        "dimension": int(augmented.shape[-1]),
        "passes": config["passes"],
        "images": {k: len(v) for k, v in rows.items()},
    }


def run_head(context: Context) -> dict:
    """A classifier on a stage-1 network's features, and its probabilities for every set and view."""
    config = context.cell.config
    if config.get("online"):
        return _run_online(context)
    parent = context.parent("features")
    rows = _scored_rows(context)
    features = {name: np.load(parent.folder / f"{name}.npy") for name in ("train", "train_plain", *rows)}
    labels = context.benchmark.table["label"].to_numpy(np.int64)
    train, val = fold_rows(context, config["fold"])
    lines: list[dict] = []
    head, chosen = fit_head(
        config["head"],
        trained=_trained_head(context, parent.cell["config"]["checkpoint"]),
        features=torch.from_numpy(features["train"]),
        plain=torch.from_numpy(features["train_plain"]),
        labels=torch.from_numpy(labels[train]),
        val_features=torch.from_numpy(features["val"][:, 0]),
        val_labels=torch.from_numpy(labels[val]),
        classes=len(context.benchmark.classes),
        options={key: config[key] for key in ("classifier", "select", "optimisation") if key in config},
        seed=config["seed"],
        device=context.device,
        log=lines.append,
    )
    (context.folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    head = head.to("cpu").eval()
    save_file({k: v.contiguous() for k, v in head.state_dict().items()}, context.folder / "head.safetensors")
    with torch.inference_mode():
        found = {
            name: (index, predict_logits(head, torch.from_numpy(features[name])).softmax(-1).numpy())
            for name, index in rows.items()
        }
    return _finish_head(context, found, chosen)


def _run_online(context: Context) -> dict:
    """Stage 2 as released: the frozen network sees new augmented images each epoch and its BatchNorm keeps drifting."""
    config, benchmark = context.cell.config, context.benchmark
    parent = context.parent("train")
    images, labels = _pixels(context).images, benchmark.table["label"].to_numpy(np.int64)
    model = stored_model(context, parent, config["checkpoint"])
    torch.manual_seed(config["seed"])
    model.head = make_head(config["classifier"], model.info.dim, len(benchmark.classes)).to(context.device)
    options = dict(config["optimisation"])
    loss_options = {key: options.pop(key) for key in ("beta", "gamma", "lam", "variant")}
    settings = training.TrainConfig(
        **options, loss_options=loss_options, sampler="class_balanced", freeze_backbone=True, backbone_mode="train",
        augment=parent.cell["config"]["optimisation"]["augment"], seed=config["seed"],
    )  # fmt: skip
    train, val = fold_rows(context, config["fold"])
    result = training.fit(
        model, images, labels, train, val, settings,
        classes=len(benchmark.classes), folder=context.folder, device=context.device, progress=context.progress,
    )  # fmt: skip
    training.load_weights(model, context.folder / f"{config['select']}.safetensors")
    found = {
        name: (index, training.predict(model, images, index, views=DIHEDRAL, device=context.device))
        for name, index in _scored_rows(context).items()
    }
    return _finish_head(context, found, {"best_epoch": result.best_epoch, "epochs_run": result.epochs_run})


def _finish_head(context: Context, found: dict[str, tuple[np.ndarray, np.ndarray]], chosen: dict) -> dict:
    save_predictions(context, found, DIHEDRAL)
    labels, classes = context.benchmark.table["label"].to_numpy(), len(context.benchmark.classes)
    train, _ = fold_rows(context, context.cell.config["fold"])
    report: dict = {"chosen": chosen, "train_counts": np.bincount(labels[train], minlength=classes).tolist()}
    for name, (rows, probabilities) in found.items():
        averaged = mean_probabilities([probabilities], CODE_WEIGHTS)
        report[name] = {
            "identity": metrics.scores(labels[rows], probabilities[:, 0].argmax(1), classes),
            "code_views": metrics.scores(labels[rows], averaged.argmax(1), classes),
        }
    return report


def _sets(context: Context) -> dict[str, np.ndarray]:
    table = context.benchmark.table
    return {str(name): np.flatnonzero(table["set"].to_numpy() == name) for name in table["set"].unique()}


def _scored_rows(context: Context) -> dict[str, np.ndarray]:
    """Rows of every set that a classifier is scored on: the cell's validation fold and the benchmark's test sets."""
    sets = _sets(context)
    _, val = fold_rows(context, context.cell.config["fold"])
    return {"val": val} | {name: sets[name] for name in TEST_SETS if name in sets}


def fold_rows(context: Context, fold: int, folds_by: str = "group") -> tuple[np.ndarray, np.ndarray]:
    """Rows that train and rows that validate; ``folds_by`` "image" ignores patients and slides."""
    benchmark = context.benchmark
    in_train = benchmark.table["set"].to_numpy() == "train"
    folds = benchmark.table["fold"].to_numpy() if folds_by == "group" else benchmark.image_folds
    return np.flatnonzero(in_train & (folds != fold)), np.flatnonzero(in_train & (folds == fold))


def _pixels(context: Context) -> PixelCache:
    """What a network reads: isolated and restored cells where the paper has them, else the pixel cache itself."""
    return PixelCache.open(context.parent("restored", "pixels").folder / "pixels")


def _build_model(context: Context, backbone: str, weights: str, head: str) -> Classifier:
    network, info = build_backbone(backbone, weights)
    context.notes |= {"backbone": info.name, "weights": info.weights_used, "weights_digest": info.weights_digest}
    return Classifier(network, make_head(head, info.dim, len(context.benchmark.classes)), info)


def stored_model(context: Context, train: StoredCell, checkpoint: str) -> Classifier:
    """A finished training's network with the weights of ``checkpoint`` (best | last), on the device."""
    config = train.cell["config"]
    model = _build_model(context, config["backbone"], "random", config["head"])
    training.load_weights(model, train.folder / f"{checkpoint}.safetensors")
    context.notes |= {"weights": f"{checkpoint} epoch of {train.id}", "weights_digest": None}
    return model.to(context.device)


def _trained_head(context: Context, checkpoint: str) -> nn.Module:
    train = context.parent("train")
    state = load_file(train.folder / f"{checkpoint}.safetensors")
    return head_from_state(below(state, "head."))


RUNNERS: dict[str, Runner] = {
    "pixels": run_pixels,
    "train": run_train,
    "features": run_features,
    "head": run_head,
    **kinds_domains.RUNNERS,
    **kinds_cells.RUNNERS,
    **kinds_rescue.RUNNERS,
    **kinds_restoration.RUNNERS,
}
