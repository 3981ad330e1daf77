"""Kinds of cells of ``design: domains``: a training with one laboratory held out, a classifier retrained on it, the
embeddings of a trained network, and its Grad-CAM maps. The pixel cache is that of `kinds`, with a physical scale.

``predictions.npz`` of ``domain_train`` and ``domain_head`` cells: ``classes`` (C names), ``views`` (names of the
weights that were scored: last, best, swad; or retrained), and for each set s of (val, test): ``<s>_ids``,
``<s>_labels`` int16, ``<s>_probabilities`` float16 (N, V, C), ``<s>_domains`` (N names), ``<s>_groups`` (N names of
slides, patients or cells filmed several times; empty where unknown) and ``<s>_folds`` int8. "val" holds the sources'
validation images, "test" all images of the targets.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

from wbcrepro import metrics, training
from wbcrepro.backbones import Classifier, build_backbone
from wbcrepro.data.pixels import PixelCache
from wbcrepro.domain_training import DomainTraining, embed_domains, fit_domains, predict_domains
from wbcrepro.domains import make_algorithm
from wbcrepro.experiments.predictions import save_predictions
from wbcrepro.experiments.run import Context, Runner
from wbcrepro.experiments.store import StoredCell
from wbcrepro.longtail.heads import make_head, predict_logits
from wbcrepro.longtail.heads.fit import fit_head

SELECTIONS = ("last", "best", "swad")


def run_domain_train(context: Context) -> dict:
    """One algorithm on all laboratories but one; scored on that one by the last, best and averaged weights."""
    config, table = context.cell.config, context.benchmark.table
    images, labels = _images(context), table["label"].to_numpy(np.int64)
    train, val = source_rows(context, config)
    counts = np.stack([np.bincount(labels[rows], minlength=len(context.benchmark.classes)) for rows in train])
    model = _network(context, context.weights)
    algorithm = make_algorithm(config["algorithm"], model, torch.from_numpy(counts), **config["settings"])
    schedule = DomainTraining(**{**config["schedule"], "swad": tuple(config["schedule"]["swad"])}, seed=config["seed"])
    result = fit_domains(
        algorithm, images, labels, train, val, schedule,
        folder=context.folder, device=context.device, progress=context.progress,
    )  # fmt: skip
    rows = {"val": np.concatenate(val), "test": _target_rows(context, config)}
    found: dict[str, list[np.ndarray]] = {name: [] for name in rows}
    for selection in SELECTIONS:
        training.load_weights(model, result.selections[selection])
        for name, index in rows.items():
            with context.inference(len(index)):
                found[name].append(predict_domains(model, images, index, context.device))
    result.selections["last"].unlink()  # no figure or later cell reads these weights
    return _finish(context, rows, found, SELECTIONS) | {
        "train_counts": counts.tolist(), "steps_run": result.steps_run, "swad": result.swad,
    }  # fmt: skip


def run_domain_head(context: Context) -> dict:
    """BoDA's classifier retrained on class-balanced samples of the sources' fixed features (cRT, Kang et al. 2020)."""
    config, parent = context.cell.config, context.parent("domain_train")
    images, labels = _images(context), context.benchmark.table["label"].to_numpy(np.int64)
    train, val = (np.concatenate(rows) for rows in source_rows(context, config))
    model = trained_network(context, parent, config["selection"])
    rows = {"val": val, "test": _target_rows(context, parent.cell["config"])}
    common = {"device": context.device, "progress": context.progress, "amp": False}
    options = dict(config["optimisation"])
    features = training.embed(model, images, train, augment="dihedral", passes=options.pop("passes"),
                              seed=config["seed"], **common)  # fmt: skip
    embedded = {name: training.embed(model, images, index, **common)[:, 0] for name, index in rows.items()}
    head, chosen = fit_head(
        "crt", trained=model.head, features=torch.from_numpy(features), plain=torch.from_numpy(features[:, 0]),
        labels=torch.from_numpy(labels[train]), val_features=torch.from_numpy(embedded["val"]),
        val_labels=torch.from_numpy(labels[val]), classes=len(context.benchmark.classes),
        options={"classifier": "linear", "select": "best", "optimisation": options},
        seed=config["seed"], device=context.device,
    )  # fmt: skip
    head = head.to("cpu").eval()
    save_file({k: v.contiguous() for k, v in head.state_dict().items()}, context.folder / "head.safetensors")
    found = {name: [predict_logits(head, torch.from_numpy(z)).softmax(-1).numpy()] for name, z in embedded.items()}
    return _finish(context, rows, found, ("retrained",)) | {
        "chosen": chosen, "train_counts": parent.metrics["train_counts"],
    }  # fmt: skip


def run_domain_embeddings(context: Context) -> dict:
    """``embeddings.npz``: features float16 (N, D) of up to ``per_domain`` images of every laboratory, evenly spread
    over the table, with ids, labels, groups and domains; where no training is a parent, of the pretrained network."""
    config, table = context.cell.config, context.benchmark.table
    domains = table["domain"].to_numpy(str)
    rows = np.concatenate([spread(np.flatnonzero(domains == name), config["per_domain"]) for name in config["domains"]])
    if "backbone" in config:
        model = _network(context, context.weights)
    else:
        model = trained_network(context, context.parent("domain_train"), config["selection"])
    features = embed_domains(model, _images(context), rows, context.device, progress=context.progress)
    np.savez_compressed(
        context.folder / "embeddings.npz", features=features.astype(np.float16), domains=domains[rows],
        ids=table["id"].to_numpy(str)[rows], labels=table["label"].to_numpy(np.int16)[rows],
        groups=table["group"].to_numpy(str)[rows],
    )  # fmt: skip
    return {"images": len(rows), "dimension": int(features.shape[1])}


def run_domain_gradcam(context: Context) -> dict:
    """``gradcam.npz``: for chosen images of the held-out laboratory the Grad-CAM map of the predicted class, float16
    (N, S, S) in [0, 1] on the last feature map, with ids, labels and predictions (package grad-cam)."""
    from pytorch_grad_cam import GradCAM

    config, table = context.cell.config, context.benchmark.table
    parent = context.parent("domain_train")
    model = _ShowsMaps(trained_network(context, parent, config["selection"])).eval()
    labels = table["label"].to_numpy(np.int64)
    target = _target_rows(context, parent.cell["config"])
    rows = np.concatenate([spread(target[labels[target] == code], config["per_class"]) for code in np.unique(labels)])
    inputs = model.network.normalise(torch.from_numpy(_images(context)[rows]).to(context.device))
    with GradCAM(model=model, target_layers=[model.maps]) as cam:
        maps = cam(input_tensor=inputs, targets=None)
    with torch.no_grad():
        predicted = model(inputs).argmax(1).cpu().numpy()
    np.savez_compressed(
        context.folder / "gradcam.npz", maps=maps.astype(np.float16), ids=table["id"].to_numpy(str)[rows],
        items=rows, labels=labels[rows], predicted=predicted,
    )  # fmt: skip
    return {"images": len(rows), "correct": int((predicted == labels[rows]).sum())}


class _ShowsMaps(nn.Module):
    """A classifier whose last feature maps pass through a layer that hooks can be put on, whatever the family."""

    def __init__(self, network: Classifier):
        super().__init__()
        self.network, self.maps = network, nn.Identity()

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.network.head(self.network.pool(self.maps(self.network.maps(inputs))))


def source_rows(context: Context, config: Mapping) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Training and validation rows of each source laboratory: fold ``trial`` validates, fold -1 always trains."""
    table = context.benchmark.table
    domains, folds = table["domain"].to_numpy(str), table["fold"].to_numpy()
    train = [np.flatnonzero((domains == name) & (folds != config["trial"])) for name in config["sources"]]
    val = [np.flatnonzero((domains == name) & (folds == config["trial"])) for name in config["sources"]]
    return train, val


def spread(rows: np.ndarray, count: int) -> np.ndarray:
    """At most ``count`` of ``rows``, evenly spaced."""
    if len(rows) <= count:
        return rows
    return rows[np.linspace(0, len(rows) - 1, count).astype(int)]


def trained_network(context: Context, train: StoredCell, selection: str) -> Classifier:
    """The network of a finished training with the weights of a selection rule."""
    model = _network(context, "random", train.cell["config"]["backbone"])
    training.load_weights(model, train.folder / f"{selection}.safetensors")
    context.notes |= {"weights": f"{selection} weights of {train.id}", "weights_digest": None}
    return model.to(context.device)


def _network(context: Context, weights: str, backbone: str | None = None) -> Classifier:
    config = context.cell.config
    seed = config.get("seed", 0)
    network, info = build_backbone(backbone or config["backbone"], weights, seed=seed)
    context.notes |= {"backbone": info.name, "weights": info.weights_used, "weights_digest": info.weights_digest}
    return Classifier(network, make_head("linear", info.dim, len(context.benchmark.classes), seed=seed), info)


def _images(context: Context) -> np.ndarray:
    return PixelCache.open(context.parent("pixels").folder / "pixels").images


def _target_rows(context: Context, config: Mapping) -> np.ndarray:
    return np.flatnonzero(context.benchmark.table["domain"].isin(config["targets"]).to_numpy())


def _finish(context: Context, rows: dict, found: dict[str, list[np.ndarray]], views: tuple[str, ...]) -> dict:
    table, classes = context.benchmark.table, len(context.benchmark.classes)
    labels, domains = table["label"].to_numpy(), table["domain"].to_numpy(str)
    stacked = {name: (rows[name], np.stack(parts, 1)) for name, parts in found.items()}
    columns = {"domains": domains, "folds": table["fold"].to_numpy(np.int8), "groups": table["group"].to_numpy(str)}
    save_predictions(context, stacked, views, extra=columns)
    held_out = domains == context.cell.config["held_out"]
    report: dict = {"sources": context.cell.config["sources"]}
    for name, (index, probabilities) in stacked.items():
        index_kept = held_out[index] if name == "test" else np.ones(len(index), bool)
        report[name] = {
            view: metrics.scores(labels[index][index_kept], probabilities[index_kept, number].argmax(1), classes)
            for number, view in enumerate(views)
        }
    return report


RUNNERS: dict[str, Runner] = {
    "domain_train": run_domain_train,
    "domain_head": run_domain_head,
    "domain_embeddings": run_domain_embeddings,
    "domain_gradcam": run_domain_gradcam,
}
