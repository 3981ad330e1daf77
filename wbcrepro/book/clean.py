"""Make an executed notebook the same on every machine and in every run, and fit to be published."""

from __future__ import annotations

import hashlib
import re
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

import nbformat

TEXT_TYPES = ("text/plain", "text/html", "text/markdown", "text/latex", "image/svg+xml")
WIDGET = "application/vnd.jupyter.widget-view+json"
ADDRESS = re.compile(r"\b0x[0-9a-fA-F]{8,}\b")
KERNEL_FILE = re.compile(r"\S*ipykernel_\d+/\d+\.py")


def path_rules(root: Path, store: Path, data: Path | None, dataset: str | None = None) -> list[tuple[str, str]]:
    """Pairs (this machine's path, what the page says instead), longest first."""
    named = [(root, "."), (Path(sys.prefix), "VENV"), (Path.home(), "~"), (Path(tempfile.gettempdir()), "TMP")]
    if not store.resolve().is_relative_to(root):
        named.append((store, "STORE"))
    if data is not None and not data.resolve().is_relative_to(root):
        named.append((data, "DATA"))
    if dataset and ":" in dataset:
        named.append((Path(dataset.partition(":")[2]), "PATH"))
    rules = {str(form): word for path, word in named for form in (path.absolute(), path.resolve())}
    rules.pop("/", None)
    rules = {**{f"{path}/": f"{word}/" if word != "." else "" for path, word in rules.items()}, **rules}
    return sorted(rules.items(), key=lambda rule: -len(rule[0]))


def clean_text(text: str, rules: Iterable[tuple[str, str]]) -> str:
    """Replace paths of this machine and memory addresses."""
    text = KERNEL_FILE.sub("cell", text)
    for path, word in rules:
        text = text.replace(path, word)
    return ADDRESS.sub("0x…", text)


def _clean_outputs(outputs: list, rules: list[tuple[str, str]]) -> list:
    """Merge neighbouring streams, drop stderr (it goes to the log) and widgets, clean text."""
    kept: list = []
    for output in outputs:
        if output.output_type == "stream":
            if output.name == "stderr":
                continue
            if kept and kept[-1].output_type == "stream":
                kept[-1].text += output.text
                continue
        elif output.output_type in ("display_data", "execute_result"):
            output.metadata = {}
            if WIDGET in output.data:
                continue
        kept.append(output)
    for output in kept:
        if output.output_type == "stream":
            output.text = clean_text(output.text, rules)
        for kind in TEXT_TYPES:
            if kind in output.get("data", {}):
                output.data[kind] = clean_text(output.data[kind], rules)
    return kept


def set_cell_ids(notebook: nbformat.NotebookNode) -> None:
    """Ids that depend on place and source only."""
    for index, cell in enumerate(notebook.cells):
        cell.id = hashlib.sha256(f"{index}\n{cell.source}".encode()).hexdigest()[:8]


def stderr_of(notebook: nbformat.NotebookNode) -> str:
    """What the cells wrote to stderr: warnings for whoever builds the book, not for its readers."""
    return "".join(
        output.text
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if output.output_type == "stream" and output.name == "stderr"
    )


def first_error(notebook: nbformat.NotebookNode) -> tuple[int, str, str] | None:
    """(cell number from 0, its source, the error) of the first cell whose output is an error or a printed traceback."""
    for index, cell in enumerate(notebook.cells):
        for output in cell.get("outputs", []):
            if output.output_type == "error":
                return index, cell.source, f"{output.ename}: {output.evalue}"
            text = output.get("text", "") + str(output.get("data", {}).get("text/plain", ""))
            if output.get("name") != "stderr" and "Traceback (most recent call last)" in text:
                return index, cell.source, "its output holds a traceback: " + text.strip().splitlines()[-1]
    return None


def without_papermill_cells(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Drop the markers of a failure that papermill inserts, so that cell numbers are those of the source."""
    notebook.cells = [
        cell for cell in notebook.cells if "papermill-error-cell-tag" not in cell.metadata.get("tags", [])
    ]
    return notebook


def _show_values(notebook: nbformat.NotebookNode) -> None:
    """Write the injected values into the ``parameters`` cell and drop papermill's own: a page shows what was run."""
    injected = [cell for cell in notebook.cells if "injected-parameters" in cell.metadata.get("tags", [])]
    declared = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    values = dict(re.findall(r"^(\w+) = (.*)$", "\n".join(cell.source for cell in injected), re.M))
    for cell in declared:
        for name, value in values.items():
            line = re.compile(rf"^({name}\s*(?::[^=\n]+)?=\s*)[^#\n]*?([ \t]*#.*)?$", re.M)
            cell.source = line.sub(lambda m, value=value: f"{m[1]}{value}{m[2] or ''}", cell.source)
    if declared:
        notebook.cells = [cell for cell in notebook.cells if cell not in injected]
    for number, cell in enumerate((cell for cell in notebook.cells if cell.get("execution_count")), start=1):
        cell.execution_count = number
        for output in cell.outputs:
            if output.output_type == "execute_result":
                output.execution_count = number


def _title_first(notebook: nbformat.NotebookNode) -> None:
    """A page begins with its title: where the ``parameters`` cell comes before it in the source, it follows here."""
    cells = notebook.cells
    if len(cells) > 1 and "parameters" in cells[0].metadata.get("tags", []) and cells[1].cell_type == "markdown":
        cells[0], cells[1] = cells[1], cells[0]


def clean_notebook(notebook: nbformat.NotebookNode, rules: list[tuple[str, str]]) -> nbformat.NotebookNode:
    """The notebook in its published form: changed in place and returned."""
    notebook.metadata = nbformat.from_dict(
        {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
        | {"language_info": {"name": "python"}}
    )
    _show_values(notebook)
    _title_first(notebook)
    for cell in notebook.cells:
        cell.metadata.pop("papermill", None)
        cell.metadata.pop("execution", None)
        if not cell.metadata.get("tags"):
            cell.metadata.pop("tags", None)
        if "parameters" in cell.metadata.get("tags", []):
            cell.source = clean_text(cell.source, rules)
        if cell.cell_type == "code":
            cell.outputs = _clean_outputs(cell.outputs, rules)
    set_cell_ids(notebook)
    return notebook
