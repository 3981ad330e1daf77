"""Embedders and embedding files: every image gets a row, and what is wrong with a file is said.

MedSigLIP is gated, so its class is tested with a stand-in for transformers (both its old and its new interface), and
where the package is installed with a tiny SigLIP of random weights.
"""

import importlib.util
import sys
import types

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from wbcrepro import embedders
from wbcrepro.backbones import TINY, build_backbone
from wbcrepro.embedders import (
    MedSigLIPEmbedder,
    TimmEmbedder,
    embedding_source,
    problem_words,
    read_embeddings,
    unit_rows,
    usable_embeddings,
)
from wbcrepro.errors import DataMissing, UsageError
from wbcrepro.seeds import derive_seed

TOKEN = "hf_" + "x" * 20
IMAGES = np.random.default_rng(0).integers(0, 256, (5, 3, 40, 40), dtype=np.uint8)


def test_timm_embeddings_are_pooled_features_of_unit_length():
    embedder = TimmEmbedder(TINY, "random", batch_size=2)
    module, info = build_backbone(TINY, "random")
    assert (embedder.dim, embedder.digest) == (info.dim, info.weights_digest) and TINY in embedder.name
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (info.mean, info.std))
    with torch.no_grad():
        expected = F.normalize(module.eval()((torch.from_numpy(IMAGES) / 255 - mean) / std), dim=1)
    found = embedder.embed(IMAGES)
    assert found.dtype == np.float32 and found.shape == (5, info.dim)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
    assert embedder.embed(IMAGES[:0]).shape == (0, info.dim)


def test_the_default_is_pretrained():
    embedder = TimmEmbedder()
    assert embedder.dim == 1280 and "ImageNet weights from the package" in embedder.name
    found = embedder.embed(np.concatenate([IMAGES[:, :, :32, :32], np.full((1, 3, 32, 32), 255, dtype=np.uint8)]))
    assert np.isfinite(found[:-1]).all()
    assert np.isnan(found[-1]).all()  # white: every feature is zero after the last ReLU, so there is no direction


@pytest.mark.parametrize("images", [IMAGES / 255, IMAGES[0], IMAGES.transpose(0, 2, 3, 1), IMAGES[:, :, :0]])
def test_other_arrays_are_refused(images):
    with pytest.raises(ValueError, match=r"uint8 images \(n,3,S,S\)"):
        TimmEmbedder(TINY, "random").embed(images)


def test_rows_without_a_direction_become_nan_and_no_other():
    rows = np.array([[3.0, 4], [0, 0], [np.inf, 1], [np.nan, 1], [1e30, 0]], dtype=np.float32)
    found = unit_rows(rows)
    np.testing.assert_allclose(found[[0, 4]], [[0.6, 0.8], [1, 0]], rtol=1e-6)
    assert np.isnan(found[1:4]).all() and found.dtype == np.float32


class FakeSiglip(torch.nn.Module):
    """What the embedder uses of transformers' SigLIP: averages of the image's halves, and their differences."""

    def __init__(self, output: str):
        super().__init__()
        self.vision_model = torch.nn.Linear(2, 2)
        vision = types.SimpleNamespace(image_size=8, hidden_size=6)
        self.config = types.SimpleNamespace(vision_config=vision, _commit_hash="abc123")
        self.output, self.seen = output, []

    def get_image_features(self, pixel_values):
        self.seen.append(pixel_values)
        found = torch.cat([pixel_values[..., :4].mean((2, 3)), pixel_values[..., 4:].mean((2, 3))], 1)
        return found if self.output == "tensor" else types.SimpleNamespace(pooler_output=found)


def fake_transformers(monkeypatch, load):
    processor = types.SimpleNamespace(image_mean=[0.5, 0.5, 0.5], image_std=[0.5, 0.5, 0.5])
    module = types.ModuleType("transformers")
    module.AutoModel = types.SimpleNamespace(from_pretrained=load)
    module.AutoImageProcessor = types.SimpleNamespace(from_pretrained=lambda *_, **__: processor)
    monkeypatch.setitem(sys.modules, "transformers", module)


@pytest.mark.parametrize("output", ["tensor", "object"])
def test_medsiglip_resizes_scales_and_normalises(monkeypatch, output):
    model, asked = FakeSiglip(output), []
    fake_transformers(monkeypatch, lambda name, **options: asked.append((name, options)) or model)
    embedder = MedSigLIPEmbedder(batch_size=2)
    assert asked == [("google/medsiglip-448", {"revision": None, "use_safetensors": True})]
    assert embedder.name == "google/medsiglip-448 at abc123" and embedder.dim == 6 and len(embedder.digest) == 64
    found = embedder.embed(IMAGES)
    assert [len(batch) for batch in model.seen] == [2, 2, 1]
    # Half-pixel centres without antialiasing: 8 of 40 pixels are columns 2, 7, ..., the middle of each five.
    inputs = torch.cat(model.seen)
    np.testing.assert_allclose(inputs, IMAGES[:, :, 2::5, 2::5] / 255 * 2 - 1, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
    model.seen.clear()
    ramp = np.zeros((1, 3, 16, 16), dtype=np.uint8)
    ramp[..., 1::2] = 1
    embedder.embed(ramp)  # averages of 0 and 1, cut to whole grey levels
    np.testing.assert_allclose(model.seen[0], -1)


def test_without_transformers_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(DataMissing, match=r"wbcrepro\[semantic\]"):
        MedSigLIPEmbedder()


@pytest.mark.parametrize("token", [True, False])
def test_gated_weights_say_how_to_get_them_and_never_the_token(monkeypatch, tmp_path, capfd, token):
    def refuse(name, **options):
        assert TOKEN not in str(options)
        try:
            raise ConnectionError(f"401 for a request with Authorization: Bearer {TOKEN}")
        except ConnectionError as error:
            raise OSError(f"You are trying to access a gated repo. {error}") from error

    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setenv("HF_TOKEN", TOKEN if token else "")
    monkeypatch.delenv("HF_TOKEN_PATH", raising=False)
    fake_transformers(monkeypatch, refuse)
    with pytest.raises(DataMissing) as caught:
        MedSigLIPEmbedder()
    text = str(caught.value)
    for part in ("https://huggingface.co/google/medsiglip-448", "accept the licence", "HF_TOKEN", "settings/tokens",
                 "ConnectionError", "a token was found" if token else "no token was found"):
        assert part in text
    assert caught.value.__cause__ is None and caught.value.__suppress_context__
    assert TOKEN not in text + "".join(capfd.readouterr())


def test_a_local_folder_without_a_model_is_named(monkeypatch, tmp_path):
    def refuse(name, **options):
        raise ValueError("no config")

    fake_transformers(monkeypatch, refuse)
    with pytest.raises(DataMissing, match="preprocessor_config.json"):
        MedSigLIPEmbedder(str(tmp_path))


if importlib.util.find_spec("transformers"):  # the extra `semantic`

    def test_a_tiny_siglip_of_the_real_package(tmp_path):
        from PIL import Image
        from transformers import AutoImageProcessor, SiglipConfig, SiglipImageProcessor, SiglipModel

        layers = {"intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        config = SiglipConfig(text_config={"hidden_size": 16, "vocab_size": 64} | layers,
                              vision_config={"hidden_size": 24, "image_size": 40, "patch_size": 10} | layers)
        torch.manual_seed(derive_seed("siglip"))
        model = SiglipModel(config).eval()
        model.save_pretrained(tmp_path)
        SiglipImageProcessor(size={"height": 40, "width": 40}).save_pretrained(tmp_path)
        embedder = MedSigLIPEmbedder(str(tmp_path), batch_size=2)
        processor = AutoImageProcessor.from_pretrained(tmp_path)
        with torch.no_grad():
            found = model.get_image_features(
                **processor([Image.fromarray(image.transpose(1, 2, 0)) for image in IMAGES], return_tensors="pt")
            )
        expected = F.normalize(getattr(found, "pooler_output", found), dim=1)
        np.testing.assert_allclose(embedder.embed(IMAGES), expected, atol=1e-5)
        assert embedder.embed(IMAGES[:, :, :25, :25]).shape == (5, 24)


IDS = [f"cell{n}" for n in range(6)]
ROWS = np.random.default_rng(3).normal(size=(6, 4)).astype(np.float32)


def write(path, ids=IDS, rows=ROWS, **more):
    """An embedding file of the format that the suffix of ``path`` names."""
    if path.suffix == ".npz":
        np.savez(path, ids=np.array(ids), embeddings=rows, **more)
    else:
        import pandas as pd

        table = pd.DataFrame({"ids": ids, "embeddings": list(rows)} | more)
        table.to_parquet(path)
    return path


SUFFIXES = [".npz"] + ([".parquet"] if importlib.util.find_spec("pyarrow") else [])


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_rows_come_in_the_order_asked_for(tmp_path, suffix, dtype):
    path = write(tmp_path / f"e{suffix}", rows=ROWS.astype(dtype), model="google/medsiglip-448")
    order = [3, 0, 5, 1, 4, 2]
    found = read_embeddings(path, [IDS[n] for n in order])
    np.testing.assert_allclose(found, F.normalize(torch.tensor(ROWS[order]), dim=1), atol=2e-3)
    assert found.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
    source = embedding_source(path)
    assert source["model"] == "google/medsiglip-448" and source["revision"] == "not stated"
    assert len(source["sha256"]) == 64


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_problem_of_a_file_is_said_at_once(tmp_path, suffix):
    rows = np.concatenate([ROWS, ROWS[:1]])
    rows[1, 2], rows[2] = np.nan, 0
    path = write(tmp_path / f"e{suffix}", [*IDS[:4], "stranger", "cell5", "cell0"], rows)
    with pytest.raises(UsageError) as caught:
        read_embeddings(path, [*IDS, "cell3"])
    text = str(caught.value)
    for part in ("1 asked for twice (cell3)", "1 missing from the file (cell4)", "1 twice in the file (cell0)",
                 "1 in the file but not in the dataset (stranger)", "1 with NaN or infinite values (cell1)",
                 "1 all zero (cell2)", "each of the 6 images", f"e{suffix}"):
        assert part in text


@pytest.mark.parametrize("change", ["missing", "twice", "foreign", "nan", "inf", "zero"])
def test_one_problem_is_enough(tmp_path, change):
    ids, rows = list(IDS), ROWS.copy()
    if change == "missing":
        ids, rows = ids[1:], rows[1:]
    elif change == "twice":
        ids, rows = [*ids, "cell2"], np.concatenate([rows, rows[2:3]])
    elif change == "foreign":
        ids, rows = [*ids, "cell2.jpg"], np.concatenate([rows, rows[2:3]])
    else:
        rows[4] = {"nan": np.nan, "inf": np.inf, "zero": 0}[change]
    read_embeddings(write(tmp_path / "good.npz"), IDS)
    with pytest.raises(UsageError, match="got: 1 "):
        read_embeddings(write(tmp_path / "bad.npz", ids, rows), IDS)


@pytest.mark.parametrize("content", [
    {"ids": np.array(IDS), "embeddings": ROWS[:, 0]},
    {"ids": np.array(IDS), "embeddings": ROWS[:4]},
    {"ids": np.array(IDS), "embeddings": ROWS.astype(int)},
    {"ids": np.array(IDS), "embeddings": ROWS[:, :0]},
    {"ids": np.arange(6), "embeddings": ROWS},
    {"ids": np.array(IDS, dtype=object), "embeddings": ROWS},
    {"names": np.array(IDS), "embeddings": ROWS},
    {"ids": np.array(IDS)},
])
def test_other_layouts_are_refused(tmp_path, content):
    np.savez(tmp_path / "e.npz", **content)
    with pytest.raises(UsageError, match=r"e\.npz.*[Ee]xpected ids"):
        read_embeddings(tmp_path / "e.npz", IDS)


def test_files_that_are_none(tmp_path):
    with pytest.raises(DataMissing, match="No embedding file"):
        read_embeddings(tmp_path / "e.npz", IDS)
    (tmp_path / "e.csv").write_text("ids,embeddings\n")
    with pytest.raises(UsageError, match=r"\.npz or \.parquet"):
        read_embeddings(tmp_path / "e.csv", IDS)
    whole = write(tmp_path / "whole.npz").read_bytes()
    for content in (b"", b"text", whole[:200], np.lib.format.magic(1, 0)):
        (tmp_path / "e.npz").write_bytes(content)
        with pytest.raises(UsageError, match="not a readable"):
            read_embeddings(tmp_path / "e.npz", IDS)
    np.save(tmp_path / "single.npy", ROWS)
    (tmp_path / "single.npy").rename(tmp_path / "e.npz")
    with pytest.raises(UsageError, match="not a readable"):
        read_embeddings(tmp_path / "e.npz", IDS)


def test_parquet_without_pyarrow_says_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "e.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DataMissing, match="pip install pyarrow"):
        read_embeddings(tmp_path / "e.parquet", IDS)


def test_the_file_formats_columns_are_those_of_the_docstring():
    assert embedders.COLUMNS == ("ids", "embeddings", "model", "revision")
    for column in embedders.COLUMNS:
        assert column in read_embeddings.__doc__


if importlib.util.find_spec("pyarrow"):

    def test_parquet_files_that_do_not_fit(tmp_path):
        import pandas as pd

        path = tmp_path / "e.parquet"
        for table, message in (
            ({"ids": IDS, "embeddings": [[1.0, 2.0]] * 5 + [[1.0]]}, "one length"),
            ({"ids": IDS, "embeddings": [[1.0, 2.0]] * 5 + [[1.0, None]]}, "NaN"),
            ({"ids": IDS, "embeddings": [[1.0, 2.0]] * 5 + [None]}, r"1 with NaN or infinite values \(cell5\)"),
            ({"ids": IDS, "embeddings": [1.0] * 6}, "lists of floats"),
            ({"ids": IDS, "embeddings": [[1, 2]] * 6}, "lists of floats"),
            ({"ids": [*IDS[:5], None], "embeddings": [[1.0, 2.0]] * 6}, "N texts"),
            ({"ids": IDS, "vector": [[1.0, 2.0]] * 6}, "embeddings not found"),
            ({"ids": [1, 2, 3, 4, 5, 6], "embeddings": [[1.0, 2.0]] * 6}, "N texts"),
        ):
            pd.DataFrame(table).to_parquet(path)
            with pytest.raises(UsageError, match=message):
                read_embeddings(path, IDS)
        path.write_bytes(b"PAR1")
        with pytest.raises(UsageError, match="not a readable parquet"):
            read_embeddings(path, IDS)


def test_gaps_are_rows_of_nan_to_be_counted_and_foreign_ids_are_passed_over(tmp_path):
    path = tmp_path / "e.npz"
    rows = np.eye(6, dtype=np.float32)
    rows[1], rows[2] = np.nan, 0
    np.savez(path, ids=np.array(["a", "b", "c", "d", "a", "stranger"]), embeddings=rows)
    wanted = ["d", "x", "a", "b", "c", "e"]
    found, problems = usable_embeddings(path, wanted)
    assert np.isnan(found).all(1).tolist() == [False, True, True, True, True, True]
    assert np.array_equal(found[0], rows[3])
    assert {what: names for what, names in problems.items() if names} == {
        "missing from the file": ["e", "x"], "twice in the file": ["a"],
        "in the file but not in the dataset": ["stranger"], "with NaN or infinite values": ["b"], "all zero": ["c"],
    }  # fmt: skip
    assert problem_words(problems).startswith("2 missing from the file (e, x); 1 twice in the file (a); ")
    with pytest.raises(UsageError, match="got: 1 asked for twice"):
        usable_embeddings(path, ["a", "a"])
