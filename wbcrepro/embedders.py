"""Image embeddings for the semantic branch of `rescue`: a backbone of this package, MedSigLIP, or a user's own file.

An embedder gives every image one row of unit length and drops none: a row of features without a direction (not finite
or all zero, as EfficientNet-Lite0 gives for a small white image) comes back as NaN, which is read everywhere as "no
embedding" and counted. The release skips an image whose embedding raises an error, without a word.
"""

import hashlib
import zipfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from wbcrepro.backbones import Classifier, build_backbone, state_digest
from wbcrepro.data.tokens import PLACES, credential
from wbcrepro.errors import DataMissing, UsageError
from wbcrepro.training import embed as embed_rows

MEDSIGLIP = "google/medsiglip-448"
COLUMNS = ("ids", "embeddings", "model", "revision")


class Embedder(Protocol):
    """``name`` for readers, ``dim`` D, ``digest`` of the weights (sha256)."""

    name: str
    dim: int
    digest: str

    def embed(self, images: np.ndarray) -> np.ndarray:
        """uint8 (n,3,S,S) to float32 (n,D), rows of unit length, or NaN where there is no direction."""
        ...


class TimmEmbedder:
    """Pooled features of a backbone (`wbcrepro.backbones`) with its ImageNet weights, at the size of the images.

    ``weights`` as in ``build_backbone``; the default backbone's come from a pip package. A stand-in for MedSigLIP that
    has seen no medical image.
    """

    def __init__(self, backbone: str = "tf_efficientnet_lite0", weights: str | Path = "auto", *,
                 device: str | torch.device = "cpu", batch_size: int = 128):
        module, info = build_backbone(backbone, weights)
        self.name, self.dim, self.digest = f"{backbone}, {info.weights_used}", info.dim, info.weights_digest
        self._model, self._device, self._batch_size = Classifier(module, nn.Identity(), info), device, batch_size

    def embed(self, images: np.ndarray) -> np.ndarray:
        """See ``Embedder``. Computed in float32 on every device."""
        _check_images(images)
        if not len(images):
            return np.empty((0, self.dim), dtype=np.float32)
        features = embed_rows(self._model, images, np.arange(len(images)), device=self._device, amp=False,
                              batch_size=self._batch_size)
        return unit_rows(features[:, 0])


class MedSigLIPEmbedder:
    """``get_image_features`` of MedSigLIP (or another SigLIP) through transformers, the extra ``semantic``.

    As in the release: bilinear resize to the model's 448 pixels without antialiasing, cut to whole grey levels, scaled
    by the processor's mean and standard deviation. ``model`` is a name on the Hugging Face hub or a local folder;
    the hub's own client reads the user's token from where it always does, and this class never holds it. Raises
    DataMissing, with the steps to licence and token, where package or weights cannot be had.
    """

    def __init__(self, model: str = MEDSIGLIP, *, revision: str | None = None, device: str | torch.device = "cpu",
                 batch_size: int = 16):
        try:
            from transformers import AutoImageProcessor, AutoModel
        except ImportError as error:
            raise DataMissing(f"{model} needs the package transformers ({error}). Next step: pip install "
                              "'wbcrepro[semantic]', or use another embedder or a file of embeddings.") from error
        try:
            network = AutoModel.from_pretrained(model, revision=revision, use_safetensors=True)
            processor = AutoImageProcessor.from_pretrained(model, revision=revision)
        except (OSError, ValueError) as error:  # the hub client's errors are OSErrors; a broken folder is a ValueError
            raise DataMissing(_how_to_get(model, error)) from None  # the chain may quote a request and its headers
        self._model, self._device, self._batch_size = network.to(device).eval(), device, batch_size
        self._mean, self._std = processor.image_mean, processor.image_std
        vision = network.config.vision_config
        revision = revision or getattr(network.config, "_commit_hash", None)  # the hub's client says what it took
        self.name = f"{model} at {revision}" if revision else model
        self.size, self.dim = vision.image_size, vision.hidden_size
        self.digest = state_digest(network.vision_model.state_dict())

    @torch.no_grad()
    def embed(self, images: np.ndarray) -> np.ndarray:
        """See ``Embedder``."""
        _check_images(images)
        out = np.empty((len(images), self.dim), dtype=np.float32)
        mean, std = (torch.tensor(v, device=self._device).view(1, 3, 1, 1) for v in (self._mean, self._std))
        for start in range(0, len(images), self._batch_size):
            piece = torch.from_numpy(images[start : start + self._batch_size]).to(self._device).float()
            resized = F.interpolate(piece, (self.size, self.size), mode="bilinear", antialias=False).floor()
            found = self._model.get_image_features(pixel_values=(resized / 255 - mean) / std)
            found = getattr(found, "pooler_output", found)  # transformers 5 gives an output object, 4 the tensor
            out[start : start + self._batch_size] = found.float().cpu().numpy()
        return unit_rows(out)


def unit_rows(features: np.ndarray) -> np.ndarray:
    """Rows (n,D) scaled to unit length, float32; NaN where a row is all zero or not finite."""
    features = np.asarray(features, dtype=np.float64)  # float32 squares overflow before the length does
    with np.errstate(invalid="ignore", divide="ignore"):
        rows = features / np.linalg.norm(features, axis=1, keepdims=True)
    rows[~np.isfinite(rows).all(1)] = np.nan  # inf / inf leaves zeros beside its NaN
    return rows.astype(np.float32)


def read_embeddings(path: str | Path, ids: Sequence[str]) -> np.ndarray:
    """Pre-extracted embeddings of the images ``ids``, float32 (N,D) in their order, scaled to unit length.

    The file holds each image once: in a .npz the arrays ``ids`` (N texts) and ``embeddings`` (N,D), in a .parquet the
    columns ``ids`` (text) and ``embeddings`` (lists of D numbers); ``model`` and ``revision`` (texts) may be added. One
    is made by ``numpy.savez(path, ids=numpy.array(names), embeddings=rows, model="google/medsiglip-448")``.

    Raises DataMissing for no file, or parquet without pyarrow; UsageError for another layout, and one that lists all of
    them for ids that are missing, doubled or foreign and for rows that are not finite or all zero.
    """
    return _matched(Path(path), ids, tolerant=False)[0]


def usable_embeddings(path: str | Path, ids: Sequence[str]) -> tuple[np.ndarray, dict[str, list[str]]]:
    """What `read_embeddings` gives, of a file that may have faults; and ``{what: ids}`` of its faults, every kind.

    An image without a usable row (missing, doubled, not finite, all zero) is a row of NaN, for the caller to count, and
    foreign ids are passed over. Raises as `read_embeddings` does for files that cannot be read and doubled ``ids``.
    """
    return _matched(Path(path), ids, tolerant=True)


def _matched(path: Path, ids: Sequence[str], *, tolerant: bool) -> tuple[np.ndarray, dict[str, list[str]]]:
    wanted = [str(name) for name in ids]
    found, rows, _ = _read(path)
    problems = _problems(found, rows, wanted)
    refused = {"asked for twice": problems["asked for twice"]} if tolerant else problems
    if said := problem_words(refused):
        raise UsageError(f"{path.name}: expected one finite embedding for each of the {len(set(wanted))} images of the "
                         f"dataset, got: {said}. Next step: write the file again for exactly these images.")
    position, doubled = {name: number for number, name in enumerate(found)}, set(problems["twice in the file"])
    out = np.full((len(wanted), rows.shape[1]), np.nan)
    known_rows = [number for number, name in enumerate(wanted) if name in position and name not in doubled]
    out[known_rows] = rows[[position[wanted[number]] for number in known_rows]]
    return unit_rows(out), problems


def problem_words(problems: dict[str, list[str]]) -> str:
    """The problems in words, with the first three ids of each; empty where there are none."""
    said = [f"{len(names)} {what} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
            for what, names in problems.items() if names]
    return "; ".join(said)


def _problems(found: list[str], rows: np.ndarray, wanted: list[str]) -> dict[str, list[str]]:
    known = set(wanted)
    zero, finite = ~rows.any(1), np.isfinite(rows).all(1)
    return {
        "asked for twice": _twice(wanted),
        "missing from the file": sorted(known - set(found)),
        "twice in the file": _twice(found),
        "in the file but not in the dataset": sorted(set(found) - known),
        "with NaN or infinite values": [name for name, good in zip(found, finite, strict=True) if not good],
        "all zero": [name for name, bad in zip(found, zero, strict=True) if bad],
    }


def embedding_source(path: str | Path) -> dict[str, str]:
    """``model`` and ``revision`` as an embedding file states them ("not stated" otherwise), and its ``sha256``."""
    stated = _read(Path(path))[2]
    return stated | {"sha256": hashlib.sha256(Path(path).read_bytes()).hexdigest()}


def _check_images(images: np.ndarray) -> None:
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape[2:]:
        raise ValueError(f"expected uint8 images (n,3,S,S), got {images.dtype} {images.shape}")


def _twice(names: list[str]) -> list[str]:
    return sorted(name for name, times in Counter(names).items() if times > 1)


def _how_to_get(model: str, error: Exception) -> str:
    """The steps to the weights. Of the error only the class names are told, never a text that the hub wrote."""
    kinds = [type(error).__name__]
    while (error := error.__cause__ or error.__context__) is not None:
        kinds.append(type(error).__name__)
    cause = " from ".join(dict.fromkeys(kinds))
    if Path(model).is_dir():
        return (f"The folder {model} holds no SigLIP model that can be loaded ({cause}). Expected config.json, "
                "model.safetensors and preprocessor_config.json. Next step: download the model's files again.")
    token = "a token was found" if credential("huggingface") else "no token was found"
    return (f"The weights of {model} cannot be loaded ({cause}; {token}). Next steps: 1. "
            f"sign in and accept the licence on https://huggingface.co/{model}; 2. make a read token on "
            f"https://huggingface.co/settings/tokens; 3. put it where the hub's client looks ({PLACES['huggingface']}) "
            "and run again with a network, once. Without the model: another embedder, or a file of embeddings.")


def _read(path: Path) -> tuple[list[str], np.ndarray, dict[str, str]]:
    """ids, embeddings float32 (N,D) and what is stated about them, from a file of either format."""
    if not path.is_file():
        raise DataMissing(f"No embedding file {path}. Next step: check the path, or use an embedder.")
    if path.suffix not in (".npz", ".parquet"):
        raise UsageError(f"{path.name}: embeddings are read from .npz or .parquet files.")
    columns = _read_npz(path) if path.suffix == ".npz" else _read_parquet(path)
    ids, rows = columns["ids"], columns["embeddings"]
    if ids.ndim != 1 or ids.dtype.kind != "U" or rows.ndim != 2 or rows.dtype.kind != "f" or len(ids) != len(rows) \
            or not rows.size:
        raise UsageError(f"{path.name}: expected ids (N texts) and embeddings (N,D) of floats, got ids {ids.shape} of "
                         f"type {ids.dtype} and embeddings {rows.shape} of type {rows.dtype}.")
    stated = {key: ", ".join(sorted({str(v) for v in np.atleast_1d(columns[key])})) if key in columns else "not stated"
              for key in COLUMNS[2:]}
    return ids.tolist(), rows.astype(np.float32), stated


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    try:
        if not zipfile.is_zipfile(path):  # numpy would read a .npy of that name
            raise ValueError("it is no zip archive")
        with np.load(path, allow_pickle=False) as file:
            return _complete(path, {key: file[key] for key in COLUMNS if key in file})
    except (ValueError, OSError, zipfile.BadZipFile) as error:  # objects, damage, another format
        raise UsageError(f"{path.name} is not a readable .npz ({error}). Expected ids as texts (a numpy array of type "
                         "U, not object) and embeddings as numbers.") from error


def _read_parquet(path: Path) -> dict[str, np.ndarray]:
    """A row without a list is a row of NaN, so that it is named with the others."""
    try:
        import pyarrow
        from pyarrow import compute, parquet
    except ImportError as error:
        raise DataMissing(f"{path.name}: parquet files need the package pyarrow ({error}). Next step: pip install "
                          "pyarrow, or store the embeddings as .npz.") from error
    try:
        table = parquet.read_table(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise UsageError(f"{path.name} is not a readable parquet file ({error}).") from error
    columns = _complete(path, {key: table[key].combine_chunks() for key in COLUMNS if key in table.column_names})
    lists = columns["embeddings"]
    inner = getattr(lists.type, "value_type", None)
    lengths = compute.list_value_length(lists).drop_null().unique().to_pylist() if inner else []
    if not inner or not pyarrow.types.is_floating(inner) or len(lengths) != 1:
        raise UsageError(f"{path.name}: expected embeddings as lists of floats of one length, got {lists.type} of "
                         f"lengths {sorted(lengths)}.")
    values = lists.drop_null().flatten().to_numpy(zero_copy_only=False)
    rows = np.full((len(lists), lengths[0]), np.nan, dtype=values.dtype)
    rows[lists.is_valid().to_numpy(zero_copy_only=False)] = values.reshape(-1, lengths[0])
    return {key: np.array(column.to_pylist()) for key, column in columns.items() if column is not lists} | {
        "embeddings": rows}


def _complete(path: Path, columns: dict) -> dict:
    absent = [key for key in ("ids", "embeddings") if key not in columns]
    if absent:
        raise UsageError(f"{path.name}: expected ids and embeddings, {' and '.join(absent)} not found.")
    return columns
