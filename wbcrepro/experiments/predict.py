"""Predicting new images with finished ``head`` cells: the same stain step, resize, crop and views as in their run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn

from wbcrepro.backbones import Classifier, build_backbone
from wbcrepro.data.decode import DecodeError, decode
from wbcrepro.data.pixels import prepare
from wbcrepro.errors import CellsMissing, DataMissing, UsageError
from wbcrepro.experiments.heads import below, head_from_state
from wbcrepro.experiments.store import Store, StoredCell
from wbcrepro.inference.ensemble import mean_probabilities
from wbcrepro.inference.tta import CODE_WEIGHTS, DIHEDRAL
from wbcrepro.inference.tta import view as make_view
from wbcrepro.stain import normaliser

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"}


@dataclass(frozen=True)
class Predictor:
    """One finished classifier, ready for new images."""

    cell: StoredCell
    model: Classifier
    classes: tuple[str, ...]
    stain: str
    resize: int
    crop: int
    device: torch.device

    @property
    def words(self) -> str:
        """Profile, benchmark and row, as every output must state them."""
        config = self.cell.cell["config"]
        row = f"{config['method']} {config['backbone']} fold {config['fold']} (preset {config['preset']})"
        return f"{row}, profile {config['profile']}, trained on {config['benchmark']}"

    @torch.inference_mode()
    def probabilities(self, images: list[np.ndarray]) -> np.ndarray:
        """Softmax of the eight dihedral views, float32 (N, 8, C), of images uint8 (H, W, 3) of any sizes."""
        pixels = torch.from_numpy(np.stack([self._pixels(image) for image in images])).to(self.device)
        views = torch.stack([make_view(pixels, name) for name in DIHEDRAL], dim=1)
        found = self.model(views.flatten(0, 1)).softmax(-1).float().cpu().numpy()
        return found.reshape(len(images), len(DIHEDRAL), -1)

    def _pixels(self, image: np.ndarray) -> np.ndarray:
        """Network input uint8 (3, S, S): the stain step, which sees one image at its own size, then resize and crop."""
        normalise = normaliser(self.stain)
        if normalise is not None:
            batch = torch.from_numpy(image.transpose(2, 0, 1).copy())[None]
            image = normalise(batch)[0][0].permute(1, 2, 0).cpu().numpy()
        return prepare(image, self.resize, self.crop)


def _ancestor(store: Store, cell: StoredCell, kind: str) -> StoredCell:
    while not cell.id.startswith(f"{kind}-"):
        cell = store.require(cell.cell["parents"][0])
    return cell


def load_predictor(store: Store, cell_id: str, device: torch.device) -> Predictor:
    """Rebuild the classifier of a ``head`` cell. ``CellsMissing`` when it or a parent is not there."""
    if not cell_id.startswith("head-"):
        raise UsageError(f"--run {cell_id}: expected a head cell (head-...); list them with: wbcrepro plan")
    cell = store.require(cell_id)
    train, pixels = _ancestor(store, cell, "train"), _ancestor(store, cell, "pixels")
    classes = tuple(cell.predictions()["classes"].tolist())
    config = train.cell["config"]
    backbone, info = build_backbone(config["backbone"], "random")
    if cell.cell["config"].get("online"):
        state = load_file(_existing(cell.folder / f"{cell.cell['config']['select']}.safetensors"))
        head_state = below(state, "head.")
    else:
        checkpoint = _ancestor(store, cell, "features").cell["config"]["checkpoint"]
        state = load_file(_existing(train.folder / f"{checkpoint}.safetensors"))
        head_state = load_file(_existing(cell.folder / "head.safetensors"))
    backbone.load_state_dict(below(state, "backbone."))
    head: nn.Module = head_from_state(head_state)
    model = Classifier(backbone, head, info).to(device).eval()
    settings = pixels.cell["config"]
    return Predictor(cell, model, classes, settings["stain"], settings["resize"], settings["crop"], device)


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise CellsMissing(f"{path} is missing: weights of this run were not kept. Remove its folder and run it again.")
    return path


def image_files(paths: Iterable[Path]) -> list[Path]:
    """Images among files and folders (searched with their subfolders), sorted; ``DataMissing`` when there is none."""
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            found += sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES)
        elif path.is_file():
            found.append(path)
        else:
            raise DataMissing(f"{path}: expected an image or a folder of images, found nothing there")
    if not found:
        raise DataMissing(f"no image ({', '.join(sorted(SUFFIXES))}) in: {', '.join(map(str, paths))}")
    return found


def predict_files(
    predictors: list[Predictor], paths: Sequence[Path], batch_size: int = 16
) -> Iterator[tuple[Path, np.ndarray | DecodeError]]:
    """Each file with its probabilities (C,), averaged over classifiers and views (Eq. 6), or with why it has none.

    ``batch_size`` images go through a network together, in eight views each.
    """
    for start in range(0, len(paths), batch_size):
        batch = paths[start : start + batch_size]
        decoded = [_decoded(path) for path in batch]
        images = [image for image in decoded if not isinstance(image, DecodeError)]
        members = [predictor.probabilities(images) for predictor in predictors] if images else []
        found = iter(mean_probabilities(members, CODE_WEIGHTS) if images else ())
        for path, image in zip(batch, decoded, strict=True):
            yield path, image if isinstance(image, DecodeError) else next(found)


def _decoded(path: Path) -> np.ndarray | DecodeError:
    try:
        return decode(path.read_bytes()).pixels
    except DecodeError as error:
        return error
