"""What the result chapters of unseen laboratories say of their numbers, asked of the functions in their sources."""

import ast
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from fake_domain_store import fake_domain_plan, fill_domain_store, one_hot

pytest.importorskip("jupytext")

import jupytext
from IPython.display import Markdown

from wbcrepro.papers import load_paper
from wbcrepro.report.domain_evaluate import DomainEvaluator, DomainSpec
from wbcrepro.report.domain_frames import confusion_of
from wbcrepro.report.domain_predictions import from_domain_plan
from wbcrepro.report.domain_tables import build_domain_table

NOTEBOOKS = Path(__file__).resolve().parents[1] / "notebooks"


def functions(chapter: str, *names: str, **given) -> dict:
    """These functions of a chapter, compiled beside the names that they are given."""
    cells = [c.source for c in jupytext.read(NOTEBOOKS / f"{chapter}.py").cells if c.cell_type == "code"]
    found = [n for cell in cells for n in ast.parse(cell).body if isinstance(n, ast.FunctionDef) and n.name in names]
    assert len(found) == len(names)
    space = {"np": np, "pd": pd, "Markdown": Markdown, "DomainSpec": DomainSpec, **given}
    exec(compile(ast.Module(found, []), chapter, "exec"), space)
    return space


def run_of(path, paper, more=False, missing=(), **options):
    plan = fake_domain_plan(paper, more=more)
    skip = {c.id for c in plan.cells if c.labels["method"] in missing}
    return from_domain_plan(plan, fill_domain_store(path, plan, skip=skip, **options))


def test_labels_of_boda_are_unique():
    labels = [entry["label"] for entry in load_paper("boda")["methods"].values()]
    assert len(labels) == len(set(labels))


def test_a_method_that_has_not_run_takes_no_other_row_away(tmp_path):
    found = run_of(tmp_path, "boda", more=True, missing=("boda_binary", "mixstyle"))
    shown = []
    space = functions(
        "boda_results", "specs_of", "named", methods=dict(found.paper["methods"]), SELECTION="best",
        confusion_of=confusion_of, evaluators={id(found): DomainEvaluator(found, 20)},
        followed=lambda *_: found.classes[0], show_frame=lambda frame, *_: shown.append(frame),
        wilson_interval=lambda *_: (0.0, 1.0),
    )  # fmt: skip
    space["named"](found, "")
    assert shown[0]["row"].tolist() == ["ERM", "DANN", "CORAL", "BoDA", "BoDA+"]
    space["methods"]["boda_binary"] = {"label": "BoDA"}
    with pytest.raises(AssertionError, match="share a label"):
        space["specs_of"]("test", "boda", "boda_binary")


def test_nothing_is_called_lost_that_is_not():
    step_words = functions("boda_results", "step_words")["step_words"]
    frame = pd.DataFrame({"metric": "F1-macro", "ours: change": [0.2, -0.02, 0.6], "ours: unseen": [39.4, 17.7, 31.7],
                          "poster: change": -30.0})  # fmt: skip
    assert "No row loses anything here." in step_words(frame).data
    frame["ours: change"] = [0.2, -1.4, 0.6]
    assert "1 of 3 rows loses here, 1.4 points at most, less than rows differ by." in step_words(frame).data
    frame["ours: change"] = [-30.0, -31.0, -32.0]
    assert "3 of 3 rows lose here, 32.0 points at most, more than rows differ by." in step_words(frame).data


@pytest.mark.parametrize("rises", [True, False])
def test_retraining_is_said_to_raise_the_f1_only_where_it_does(tmp_path, rises):
    found = run_of(tmp_path, "boda", skills={"boda": 0.2 if rises else 6.0, "boda_plus": 6.0 if rises else 0.2})
    table = build_domain_table(found, "table_1", evaluator=DomainEvaluator(found, 20))
    words = functions("boda_results", "retrained_words", table_of=lambda *_: table)["retrained_words"]([found])
    assert "on `boda-smears`" in words and ("Here it rises" in words) == rises


def test_a_class_that_goes_with_the_left_out_fifth_is_named(tmp_path):
    counts = {"rapid": (20, 15, 10, 8, 1), "mgg": (20, 15, 10, 8, 6)}  # the 54th image: fold 3
    words = functions("sada_results", "left_out_words")["left_out_words"]
    assert words(run_of(tmp_path / "a", "sada", counts=counts)) == "", "trial 0 leaves fold 0 out"
    counts["rapid"] = (20, 15, 10, 5, 1)  # fold 0
    found = run_of(tmp_path / "b", "sada", counts=counts, probabilities=lambda cell, on, y: one_hot(y * (y < 4), 5))
    said = words(found)
    assert said.startswith("- The fifth that trial 0 leaves out of `rapid` holds the only image of basophil.")
    assert said.count("- The fifth") == 1 and "4 classes in place of 5" in said and "gains 25 % of its value" in said
    evaluator = DomainEvaluator(found, 20)
    whole, part = (evaluator.estimate(DomainSpec("erm", rows=r), ("rapid",), "macro_f1") for r in ("all", "in_split"))
    assert part.mean / whole.mean == pytest.approx(1.25, abs=0.02), "the stated gain of a row that missed the image"


def test_the_probe_is_quoted_as_it_came_out():
    words = functions("sada_results", "told_words")["told_words"]
    assert words({"SADA": 48.2, "ERM": 38.1}) == (
        "*It is so here: 48 % from the features of SADA, 38 % from those of ERM.*"
    )
    assert words({"SADA": 30.0, "ERM": 38.0}).startswith("*It is not so here") and words({}) == ""
