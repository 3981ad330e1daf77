"""The notebooks for Colab are what their sources say, and the book's contents name what exists."""

import ast
import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from book_fixture import NOTEBOOK, make_root

pytest.importorskip("jupytext")

import jupytext

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


def calls(tree: ast.AST) -> list[ast.Call]:
    """Calls of a notebook's cell, with what is called as text in ``.called``."""
    found = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    for node in found:
        node.called = ast.unparse(node.func)
    return found


def unsourced(cell: str) -> list[str]:
    """What a cell shows without the line that says where it comes from."""
    found = calls(ast.parse(cell))
    lines = sum(call.called in ("source", "figure_source", "show_frame") for call in found)
    shown = sum(call.called == "plt.show" for call in found)
    missing = ["a figure"] * (shown - lines)
    for call in found:
        if call.called == "frame_html" and not {"command", "words"} & {keyword.arg for keyword in call.keywords}:
            missing.append("a table without command or words")
        if call.called == "display" and any(ast.unparse(a).startswith("pd.") for a in call.args):
            missing.append("a bare frame, which has no CSV")
    last = ast.parse(cell).body[-1:]
    if last and isinstance(last[0], ast.Expr) and ast.unparse(last[0]).startswith("pd."):
        missing.append("a bare frame, which has no CSV")
    return missing


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_every_figure_and_table_says_where_it_comes_from(source):
    cells = [cell.source for cell in jupytext.read(source).cells if cell.cell_type == "code"]
    found = {cell.splitlines()[0]: missing for cell in cells if (missing := unsourced(cell))}
    assert not found


def test_what_lacks_its_source_is_seen():
    assert unsourced("plt.plot(x)\nplt.show()") == ["a figure"]
    assert unsourced("plt.show()\nfigure_source('x')") == [] == unsourced("frame_html(f, 'a.csv', words='w')")
    assert unsourced("display(pd.DataFrame(x))") and unsourced("pd.DataFrame(x).T")
    assert unsourced("frame_html(f, 'a.csv')")


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
    assert wbcrepro.REPOSITORY in first and "--no-deps" in first
    needs = colab_needs(layout.root)
    assert needs["scikit-learn"] == "sklearn" and "torchstain" in needs and not {"torch", "torchvision"} & set(needs)
    assert all(not cell.get("outputs") for cell in notebook["cells"])
    (layout.root / "notebooks" / "stain.py").unlink()
    assert write_pairs(layout) == [layout.root / "notebooks" / "stain.ipynb"], "an orphan stays"


@pytest.mark.parametrize("tagged", [True, False])
def test_install_cell_takes_the_version_of_the_page_or_says_that_it_has_no_tag(tmp_path, monkeypatch, capsys, tagged):
    layout = make_root(tmp_path / "root", {"stain": NOTEBOOK})
    first = json.loads(paired_notebook(layout.sources[0], layout.root))["cells"][0]
    asked = []

    def pip(command, check=False):
        asked.append(command[-1])
        return subprocess.CompletedProcess(command, 0 if tagged or not asked[-1].endswith(wbcrepro.__version__) else 1)

    monkeypatch.setitem(sys.modules, "google.colab", None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(subprocess, "run", pip)
    exec("".join(first["source"]), {})
    package = f"wbcrepro @ git+{wbcrepro.REPOSITORY}"
    assert asked == [f"{package}@v{wbcrepro.__version__}"] + ([] if tagged else [package])
    assert ("tag is made at release" in capsys.readouterr().out) != tagged


def test_no_notebook_writes_down_the_width_of_a_network():
    """It depends on the profile's network; a number in the source is right for one of them at most."""
    written = re.compile(r"make_head\([^)]*\bdim=\d")
    assert not [path.name for path in SOURCES if written.search(path.read_text(encoding="utf-8"))]


def test_install_cell_does_nothing_outside_colab(tmp_path):
    layout = make_root(tmp_path / "root", {"stain": NOTEBOOK})
    first = json.loads(paired_notebook(layout.sources[0], layout.root))["cells"][0]
    names: dict = {}
    exec("".join(first["source"]), names)  # would raise, or install, if it did anything
    assert "package" not in names
