"""The notebooks that Colab opens: ``notebooks/*.ipynb``, made from the ``.py`` sources: no outputs, the same bytes.

Each starts with a cell that installs this version of the package beside the PyTorch that Colab already has
(``--no-deps``: pip must never replace it), and those of its dependencies that are missing there. A version has its tag
from its release on; where there is none the cell says so and installs the newest state.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import jupytext
import nbformat

import wbcrepro
from wbcrepro.book.clean import set_cell_ids
from wbcrepro.book.layout import Layout

MODULES = {"scikit-learn": "sklearn", "pillow": "PIL", "pyyaml": "yaml"}

INSTALL = """\
# Colab only: install the book's package beside the PyTorch that is already there. Elsewhere this cell does nothing.
import importlib.util
import subprocess
import sys

if "google.colab" in sys.modules and not importlib.util.find_spec("wbcrepro"):
    needs = {needs}
    missing = [package for package, module in needs.items() if importlib.util.find_spec(module) is None]
    package = "wbcrepro @ git+{repository}"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", *missing]
    if subprocess.run([*pip, package + "@v{version}"]).returncode:
        print("Version {version} could not be installed: its tag is made at release. Next: the newest state of")
        print("{repository}, which may not be the one that this page was made with.")
        subprocess.run([*pip, package], check=True)"""


def colab_needs(root: Path) -> dict[str, str]:
    """Package to module: the dependencies in ``pyproject.toml`` and pretrained weights, less PyTorch, Colab's own."""
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    listed = [*project["dependencies"], *project["optional-dependencies"].get("weights", [])]
    names = [re.match(r"[A-Za-z0-9._-]+", requirement)[0] for requirement in listed]
    return {name: MODULES.get(name, name.replace("-", "_")) for name in names if name not in ("torch", "torchvision")}


def _literal(needs: dict[str, str]) -> str:
    lines = [f'        "{package}": "{module}",' for package, module in needs.items()]
    return "\n".join(["{", *lines, "    }"])


def paired_notebook(source: Path, root: Path) -> str:
    """The text of the ``.ipynb`` that belongs to a ``.py`` notebook."""
    notebook = jupytext.read(source)
    install = INSTALL.format(
        needs=_literal(colab_needs(root)), repository=wbcrepro.REPOSITORY, version=wbcrepro.__version__
    )
    notebook.cells.insert(0, nbformat.v4.new_code_cell(install))
    for cell in notebook.cells:
        cell.metadata = nbformat.from_dict({"tags": cell.metadata["tags"]} if cell.metadata.get("tags") else {})
    set_cell_ids(notebook)
    notebook.metadata = nbformat.from_dict(
        {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        }
    )
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    return nbformat.writes(notebook) + "\n"


def write_pairs(layout: Layout) -> list[Path]:
    """Write the notebooks whose text differs, remove those without a source, and return what changed."""
    changed = []
    for source in layout.sources:
        target, text = source.with_suffix(".ipynb"), paired_notebook(source, layout.root)
        if not target.is_file() or target.read_text(encoding="utf-8") != text:
            target.write_text(text, encoding="utf-8")
            changed.append(target)
    for orphan in sorted((layout.root / "notebooks").glob("*.ipynb")):
        if not orphan.with_suffix(".py").is_file():
            orphan.unlink()
            changed.append(orphan)
    return changed
