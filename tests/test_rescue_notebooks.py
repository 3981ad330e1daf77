"""The chapters of the paper `rescue` run on an empty store, and show holes where numbers would be."""

import ast
from pathlib import Path

import pytest

pytest.importorskip("jupytext")

import IPython.display
import jupytext
import matplotlib
import matplotlib.pyplot as plt

from wbcrepro.session import READ_ONLY

NOTEBOOKS = Path(__file__).resolve().parents[1] / "notebooks"
CHAPTERS = ("rescue", "watch_one_cell", "thresholds", "rescue_results", "rescue_findings")


def run(name: str, store: Path, monkeypatch) -> tuple[dict, list]:
    """The names that a notebook leaves behind, and everything that it shows; in this process, without a kernel."""
    shown: list = []
    monkeypatch.setattr(IPython.display, "display", lambda *values: shown.extend(values))
    monkeypatch.setattr(plt, "show", lambda: plt.close("all"))
    monkeypatch.setenv(READ_ONLY, "1")
    monkeypatch.chdir(store.parent)
    names: dict = {"__name__": "notebook"}
    for cell in jupytext.read(NOTEBOOKS / f"{name}.py").cells:
        if cell.cell_type != "code":
            continue
        tree = ast.parse(cell.source)
        last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, name, "exec"), names)
        if last:
            shown.append(eval(compile(ast.Expression(last.value), name, "eval"), names))
        if "parameters" in cell.metadata.get("tags", []):
            names |= {"PROFILE": "tiny", "STORE": str(store), "RESULTS": str(store.parent / "results")}
    return names, [value for value in shown if value is not None]


@pytest.mark.parametrize("name", CHAPTERS)
def test_chapter_survives_an_empty_store(name, tmp_path, monkeypatch):
    matplotlib.use("Agg")
    with matplotlib.rc_context():
        names, shown = run(name, tmp_path / "runs", monkeypatch)
    assert names["missing"] == len(names["session"].plan.cells)
    assert not (tmp_path / "runs" / "cells").exists(), "a page that only reads ran something"
    text = "".join(str(getattr(value, "data", value)) for value in shown)
    assert text.count("wbc-hole") >= {"rescue": 8, "watch_one_cell": 4, "thresholds": 3}.get(name, 1)
    assert "nan" not in text.lower().split(), "a missing number was printed as one"


def test_cells_to_watch_are_chosen_by_the_stated_rule(tmp_path, monkeypatch):
    """Of images that fit, the first by name, in the first set and rules that have one."""
    import numpy as np

    from wbcrepro.rescue.rules import RESCUE_PAPER

    class Found:
        rules = RESCUE_PAPER

        def __init__(self, base, candidate, final):
            self.base, self.candidate, self.final = (np.array(codes) for codes in (base, candidate, final))

        def __len__(self):
            return len(self.final)

    class Scored:
        def __init__(self, ids, labels):
            self.ids, self.labels = np.array(ids), np.array(labels)

    names, _ = run("watch_one_cell", tmp_path / "runs", monkeypatch)
    ply, pc, ly = (names["classes"].index(n) for n in ("PLY", "PC", "LY"))
    later = Scored(["a", "b"], [ply, pc]), Found([ly, ly], [ply, pc], [ply, pc])
    early = Scored(["d", "c", "e"], [pc, pc, ly]), Found([ly, ly, ly], [-1, -1, pc], [ly, ly, pc])
    names["traces"].update({("paper", "test_degraded"): early, ("paper", "test"): later})
    choose, rules = names["chosen"], {n: names[n] for n in ("rescued", "wrongly_rescued", "stopped", "unseen")}
    assert choose([rules["rescued"]]) == ("paper", "test", 0, 2)
    assert choose([rules["wrongly_rescued"], rules["stopped"]]) == ("paper", "test_degraded", 2, 1)
    assert choose([rules["unseen"]]) == ("paper", "test_degraded", 1, 2), "c comes before d"
    assert choose([rules["stopped"]]) is None
