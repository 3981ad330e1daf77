"""Execute the notebooks whose inputs changed: ``.py`` -> ``.ipynb`` -> papermill -> a clean copy below ``build/``.

Beside each ``build/notebooks/<name>.ipynb`` lie ``<name>.json`` (its record: the digests of all that it depends on, the
cells that it read, time, hardware, versions), ``<name>.log`` (stderr) and ``files/<name>/`` (downloads). What a
notebook is told, and how it says which cells it read, is in the docstring of ``wbcrepro.book``.

A notebook is executed in a process of its own, in the root of the checkout, with one thread. A cell that raises, or
that prints a traceback, stops the build: the message names notebook, cell and error, and no record is written.
With ``WBCREPRO_FORBID_EXECUTION=1`` a notebook that is due is an error: the tests prove with it that nothing is.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import jupytext
import nbformat
import yaml

from wbcrepro.book import clean
from wbcrepro.book.keys import file_digest, key_parts
from wbcrepro.book.layout import Inputs, Layout, declared_parameters
from wbcrepro.errors import UsageError, WbcreproError

FORBID = "WBCREPRO_FORBID_EXECUTION"
TEXT_FILES = {".csv", ".json", ".txt", ".md", ".py"}


@dataclass(frozen=True)
class Job:
    """One notebook with everything that its execution needs."""

    name: str
    source: Path
    layout: Layout
    inputs: Inputs

    @property
    def output(self) -> Path:
        """The executed notebook."""
        return self.layout.executed / f"{self.name}.ipynb"

    @property
    def record(self) -> Path:
        """What is known of its last execution."""
        return self.layout.executed / f"{self.name}.json"

    @property
    def files(self) -> Path:
        """What it offers for download."""
        return self.layout.executed / "files" / self.name

    def parameters(self) -> dict:
        """Those of the book's inputs that the notebook declares."""
        declared = declared_parameters(self.source.read_text(encoding="utf-8"))
        offered = self.inputs.parameters(self.layout.root)
        return {name: value for name, value in offered.items() if name in declared}

    def key(self, reads: list[str]) -> dict[str, str]:
        """The digests that decide whether it is due."""
        results = self.inputs.results or self.layout.root / "results"
        return key_parts(self.source, self.parameters(), self.inputs.store, reads, results, self.inputs.data)

    def due(self) -> list[str]:
        """Why it must be executed: the names of the inputs that changed, or ``first time``; empty when it need not."""
        try:
            record = json.loads(self.record.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return ["first time"]
        if file_digest(self.output) != record.get("output"):
            return ["output"]
        now, before = self.key(record["reads"]), record["key"]
        return [part for part in now if now[part] != before.get(part)]


def jobs(layout: Layout, inputs: Inputs, only: str | None = None) -> list[Job]:
    """One job a notebook; ``only`` picks one by name (with or without folder and ending)."""
    found = [Job(path.stem, path, layout, inputs) for path in layout.sources]
    if only is None:
        return found
    chosen = [job for job in found if job.name == Path(only).stem]
    if not chosen:
        raise UsageError(f"--only {only}: no such notebook; there are {', '.join(job.name for job in found) or 'none'}")
    return chosen


def _environment(work: Path, job: Job) -> dict[str, str]:
    """The environment of the process: read-only, one thread, no user configuration of Jupyter or IPython."""
    return os.environ | {
        "WBCREPRO_READ_ONLY": "1",
        "WBCREPRO_READS": str(work / "reads.txt"),
        "WBCREPRO_PAGE_FILES": str(job.files),
        "WBCREPRO_PAGE_URL": f"../_static/pages/{job.name}",
        "OMP_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "PASSIVE",
        "PYTHONHASHSEED": "0",
        "TQDM_DISABLE": "1",
        "IPYTHONDIR": str(work / "ipython"),
        "JUPYTER_CONFIG_DIR": str(work / "config"),
        "JUPYTER_RUNTIME_DIR": str(work / "runtime"),
        "JUPYTER_PREFER_ENV_PATH": "1",
        "JUPYTER_PLATFORM_DIRS": "1",
    }


def _papermill(job: Job, work: Path) -> tuple[nbformat.NotebookNode, str]:
    """Run papermill; return the notebook that it left and what it said."""
    notebook = jupytext.read(job.source)
    notebook.metadata["kernelspec"] = {"display_name": "Python 3", "language": "python", "name": "python3"}
    clean.set_cell_ids(notebook)
    source, target = work / "source.ipynb", work / "executed.ipynb"
    nbformat.write(notebook, source)
    command = [sys.executable, "-m", "papermill", str(source), str(target), "--kernel", "python3"]
    command += ["--no-progress-bar", "--cwd", str(job.layout.root)]
    if job.parameters():
        command += ["--parameters_yaml", yaml.safe_dump(job.parameters())]
    done = subprocess.run(command, env=_environment(work, job), cwd=job.layout.root, capture_output=True, text=True)
    if not target.is_file():
        raise WbcreproError(f"{job.source.name} could not be executed: {done.stderr.strip()[-2000:]}")
    left = clean.without_papermill_cells(nbformat.read(target, as_version=4))
    if done.returncode and clean.first_error(left) is None:
        raise WbcreproError(f"{job.source.name} could not be executed: {done.stderr.strip()[-2000:]}")
    return left, done.stderr


def _replace(path: Path, text: str) -> None:
    """Write a text file so that a reader sees the old one or the whole new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def _refuse_errors(job: Job, notebook: nbformat.NotebookNode) -> None:
    """Raise when a cell failed, and keep the failed notebook for whoever mends it."""
    error = clean.first_error(notebook)
    failed = job.output.with_suffix(".failed.ipynb")
    if error is None:
        failed.unlink(missing_ok=True)
        return
    nbformat.write(notebook, failed)
    index, source, words = error
    lines = [line for line in source.splitlines() if line.strip()]
    raise WbcreproError(
        f"notebook {job.source.name} failed in cell {index} ({lines[0] if lines else 'empty'}): {words}. "
        f"The notebook as it stopped: {failed.relative_to(job.layout.root)}. No page is built from it."
    )


def execute(job: Job) -> dict:
    """Execute one notebook and return its record."""
    from wbcrepro.experiments.environment import hardware, versions

    started = time.monotonic()
    # Digests of source and package are those from before: a file that changes meanwhile makes the notebook due again.
    before = job.key([])
    work = job.layout.executed / f".work-{job.name}"
    for folder in (work, job.files):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    job.record.unlink(missing_ok=True)
    try:
        notebook, _ = _papermill(job, work)
        reads_file = work / "reads.txt"
        reads = sorted(set(reads_file.read_text(encoding="utf-8").split())) if reads_file.is_file() else []
    finally:
        shutil.rmtree(work, ignore_errors=True)
    job.output.with_suffix(".log").write_text(clean.stderr_of(notebook), encoding="utf-8")
    _refuse_errors(job, notebook)
    rules = clean.path_rules(job.layout.root, job.inputs.store, job.inputs.data, job.inputs.dataset)
    _replace(job.output, nbformat.writes(clean.clean_notebook(notebook, rules)) + "\n")
    for path in sorted(job.files.rglob("*")):
        if path.suffix in TEXT_FILES:
            path.write_text(clean.clean_text(path.read_text(encoding="utf-8"), rules), encoding="utf-8")
    record = {
        "schema": 1,
        "notebook": job.name,
        "key": before | {"cells": job.key(reads)["cells"]},
        "reads": reads,
        "output": file_digest(job.output),
        "profile": job.inputs.profile,
        "seconds": round(time.monotonic() - started, 1),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "hardware": hardware("cpu"),
        "versions": versions(),
    }
    _replace(job.record, json.dumps(record, indent=1, sort_keys=True) + "\n")
    return record


def execute_due(todo: list[Job], *, force: bool = False, workers: int = 2) -> list[str]:
    """Execute the jobs that are due, and return their names. All are tried before a failure is raised."""
    due = {job.name: ["forced"] if force else job.due() for job in todo}
    run = [job for job in todo if due[job.name]]
    if run and os.environ.get(FORBID) == "1":
        listed = "; ".join(f"{job.name} ({', '.join(due[job.name])})" for job in run)
        raise WbcreproError(f"{FORBID}=1 is set, but these notebooks are due for execution: {listed}")

    def attempt(job: Job) -> WbcreproError | None:
        print(f"executing notebooks/{job.source.name} ({', '.join(due[job.name])})", flush=True)
        try:
            record = execute(job)
        except WbcreproError as error:
            return error
        print(f"executed  notebooks/{job.source.name} in {record['seconds']:.0f} s", flush=True)
        return None

    with ThreadPoolExecutor(max_workers=max(1, workers)) as pool:
        failures = [error for error in pool.map(attempt, run) if error is not None]
    if failures:
        raise WbcreproError("\n".join(str(error) for error in failures))
    return [job.name for job in run]
