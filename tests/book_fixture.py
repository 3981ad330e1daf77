"""A small book for the tests: the real prose, configuration and styles, and a notebook with every kind of output."""

import functools
import json
import os
import shutil
import tempfile
from pathlib import Path

from wbcrepro.book.build import build, stage
from wbcrepro.book.execute import execute_due, jobs
from wbcrepro.book.generated import generated
from wbcrepro.book.layout import Inputs, Layout

ROOT = Path(__file__).resolve().parents[1]
CELL = "train-0123456789ab"
BUILT = os.environ.get("WBCREPRO_BOOK")
"""The html folder of a whole book, whose pages are then checked too (in a browser: instead of the small book's)."""

NOTEBOOK = """\
# %% [markdown]
# # A chapter for the tests
#
# Light that meets dye is absorbed: $I = I_0 e^{-\\mathrm{OD}}$, so
#
# $$\\mathrm{OD} = -\\ln \\frac{I}{I_0} = V S \\qquad V \\in \\mathbb{R}^{3 \\times 2}$$ (beer)
#
# and the same again, long enough to be wider than a telephone, to see that it scrolls inside its own box:
#
# $$\\mathcal{L} = (1 - \\lambda)\\left(-\\alpha_y \\log p_y\\right)
# + \\lambda (1 - p_y)^\\gamma \\left(-\\alpha_y \\log p_y\\right)
# + \\sum_{j=1}^{C} \\frac{1 - \\beta}{1 - \\beta^{n_j}} \\max\\left(0, m_j - z_y + z_j\\right)^2$$
#
# See {cite:t}`macenko2009`.

# %% tags=["parameters"]
PROFILE = "demo"  # tiny, demo, mini, paper
STORE = "runs"
DATA = None

# %%
import os
import sys
import warnings
from pathlib import Path

from IPython.display import HTML

from wbcrepro.session import READS, RecordingStore

store = RecordingStore(STORE, Path(os.environ[READS]) if READS in os.environ else None)
cell, absent = store.get("train-0123456789ab"), store.get("train-ffffffffffff")
print(PROFILE, DATA, cell.metrics["macro_f1"], absent, len(store.cells("head")), object(), Path("runs").resolve())
print("to stderr", file=sys.stderr)
warnings.warn("a warning that names a file")

# %%
import matplotlib.pyplot as plt

plt.plot([1, 2, 3])
plt.show()

# %%
folder, address = os.environ.get("WBCREPRO_PAGE_FILES"), os.environ.get("WBCREPRO_PAGE_URL")
link = ""
if folder:
    Path(folder, "table.csv").write_text(f"method,value,{Path.cwd()}\\n")
    link = f'<a href="{address}/table.csv" download>CSV</a>'
columns = "".join(f"<th>{m}</th>" for m in ("MF1", "BAcc", "MP", "MSpec"))
values = "".join(
    f'<td class="wbc-{g}"><b class="wbc-best">7{i}.1 ± 1.0</b><br><small>[70.0, 80.0]</small>'
    f'<br><small class="wbc-verdict">same direction</small></td>' for g in ("paper", "ours") for i in range(4)
)
hole = '<td class="wbc-ours"><span class="wbc-hole" title="wbcrepro reproduce">not run</span></td>'
HTML(
    '<div class="wbc-synthetic">Cells drawn by a program.</div>'
    '<div class="wbc-table"><table><caption>A table that is wider than a telephone</caption>'
    '<thead><tr><th rowspan="2">Method</th><th class="wbc-group" colspan="4">Paper</th>'
    f'<th class="wbc-group" colspan="4">Ours</th></tr><tr>{columns}{columns}</tr></thead>'
    f'<tbody><tr><th scope="row">Supervised (R50)</th>{values}</tr>'
    f'<tr><th scope="row">Ens. (all)</th>{values[: len(values) // 2]}{hole * 4}</tr></tbody></table></div>'
    f'<div class="wbc-source">{link} · command: <code>wbcrepro reproduce</code>'
    '<details><summary>1 cell</summary><code>train-0123456789ab</code></details></div>'
)

# %% [markdown]
# ```{admonition} Summary
# Short.
# ```
#
# ```{admonition} Exercise
# Why?
# ```
#
# ```{admonition} Solution
# :class: dropdown
# Because.
# ```
"""


def make_root(folder: Path, notebooks: dict[str, str]) -> Layout:
    """A checkout in miniature: prose and configuration of the repository, these notebooks, a store with one cell."""
    shutil.copytree(ROOT / "book", folder / "book")
    for name in ("_config.yml", "_toc.yml", "pyproject.toml"):
        shutil.copy(ROOT / name, folder / name)
    (folder / "notebooks").mkdir()
    (folder / "results").mkdir()
    for name, text in notebooks.items():
        (folder / "notebooks" / f"{name}.py").write_text(text, encoding="utf-8")
    cell = folder / "runs" / "cells" / CELL
    cell.mkdir(parents=True)
    config = {"schema": 1, "id": CELL, "kind": "train", "config": {}, "parents": [], "labels": {}}
    env = {"schema": 1, "hardware": "a test's computer", "commit": "0123456789ab", "seconds": 60.0}
    for name, value in {"cell": config, "env": env, "metrics": {"schema": 1, "macro_f1": 0.625}}.items():
        (cell / f"{name}.json").write_text(json.dumps(value), encoding="utf-8")
    return Layout(folder.resolve())


def inputs_of(layout: Layout) -> Inputs:
    """Profile tiny, the store inside the checkout."""
    return Inputs(profile="tiny", store=layout.root / "runs")


@functools.cache
def small_book() -> Layout:
    """The built book, once per process. Tests must leave it as it is."""
    layout = make_root(Path(tempfile.mkdtemp(prefix="wbcrepro-book-")), {"stain": NOTEBOOK})
    inputs = inputs_of(layout)
    execute_due(jobs(layout, inputs))
    stage(layout, generated(layout, inputs.store))
    build(layout)
    return layout
