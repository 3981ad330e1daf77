"""The notebooks for Colab are what their sources say, and the book's contents name what exists."""

import ast
import json
import re
from pathlib import Path

import pytest
import yaml
from book_fixture import NOTEBOOK, make_root

pytest.importorskip("jupytext")

import wbcrepro
from wbcrepro.book.build import toc_files
from wbcrepro.book.layout import Layout, declared_parameters
from wbcrepro.book.pair import colab_needs, paired_notebook, write_pairs

ROOT = Path(__file__).resolve().parents[1]
SOURCES = Layout(ROOT).sources


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_committed_pair_is_what_its_source_gives(source):
    pair = source.with_suffix(".ipynb")
    assert pair.is_file(), f"{pair.name} is missing: run `wbcrepro book --pair`"
    assert pair.read_text(encoding="utf-8") == paired_notebook(source, ROOT), f"{pair.name}: run `wbcrepro book --pair`"


def test_no_pair_without_a_source():
    assert {path.stem for path in (ROOT / "notebooks").glob("*.ipynb")} == {path.stem for path in SOURCES}


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_notebook_declares_the_parameters_of_the_book(source):
    assert {"PROFILE", "STORE", "DATA", "DATASET"} <= declared_parameters(source.read_text(encoding="utf-8"))


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_notebook_takes_its_folders_from_the_session(source):
    """Opened by hand it runs in notebooks/, where a bare ``Path("results")`` names nothing."""
    text = source.read_text(encoding="utf-8")
    assert not re.search(r"Path\((?:STORE|RESULTS|DATA)\)", text)
    if "run_missing(" in text:  # its numbers come from cells, which have other names under other weights
        assert {"RESULTS", "WEIGHTS", "ACCUMULATE"} <= declared_parameters(text)
        assert re.search(r"open_session\([^)]*DATASET, RESULTS, WEIGHTS, ACCUMULATE\)", text)


def test_contents_name_every_notebook_and_page_and_nothing_else():
    listed = toc_files(yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8")))
    notebooks = [f"notebooks/{path.stem}" for path in SOURCES]
    pages = [f"book/{path.stem}" for path in (ROOT / "book").glob("*.md")]
    assert sorted(listed) == sorted(notebooks + pages)


def test_first_cell_installs_the_pinned_package_beside_the_torch_that_is_there(tmp_path):
    layout = make_root(tmp_path / "root", {"stain": NOTEBOOK})
    assert write_pairs(layout) == [layout.root / "notebooks" / "stain.ipynb"]
    assert write_pairs(layout) == [], "the second writing changed something"
    notebook = json.loads((layout.root / "notebooks" / "stain.ipynb").read_text(encoding="utf-8"))
    first = "".join(notebook["cells"][0]["source"])
    ast.parse(first)
    assert f"git+{wbcrepro.REPOSITORY}@v{wbcrepro.__version__}" in first and "--no-deps" in first
    needs = colab_needs(layout.root)
    assert needs["scikit-learn"] == "sklearn" and "torchstain" in needs and not {"torch", "torchvision"} & set(needs)
    assert all(not cell.get("outputs") for cell in notebook["cells"])
    (layout.root / "notebooks" / "stain.py").unlink()
    assert write_pairs(layout) == [layout.root / "notebooks" / "stain.ipynb"], "an orphan stays"


def test_install_cell_does_nothing_outside_colab(tmp_path):
    layout = make_root(tmp_path / "root", {"stain": NOTEBOOK})
    first = json.loads(paired_notebook(layout.sources[0], layout.root))["cells"][0]
    names: dict = {}
    exec("".join(first["source"]), names)  # would raise, or install, if it did anything
    assert "package" not in names
