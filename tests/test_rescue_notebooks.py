"""The chapters of the paper `rescue` run on an empty store, and show holes where numbers would be."""

import ast
import re
from dataclasses import dataclass
from pathlib import Path

import pytest

pytest.importorskip("jupytext")

import IPython.display
import jupytext
import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from fake_rescue_store import fake_rescue_plan, fake_rules, fill_rescue_store
from fake_store import FakeBenchmark
from scipy import stats

from wbcrepro.experiments.plan import Plan
from wbcrepro.report.claims import load_part
from wbcrepro.rescue.rules import RESCUE_PAPER
from wbcrepro.session import READ_ONLY, Session

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
    class Found:
        rules = RESCUE_PAPER

        def __init__(self, base, candidate, final):
            self.base, self.candidate, self.final = (np.array(codes) for codes in (base, candidate, final))
            self.nearest = np.full(len(final), pc)  # the rule of PC is in force, or looked at more closely

        def __len__(self):
            return len(self.final)

    class Scored:
        def __init__(self, ids, labels):
            self.ids, self.labels = np.array(ids), np.array(labels)

    names, _ = run("watch_one_cell", tmp_path / "runs", monkeypatch)
    ply, pc, ly = (names["classes"].index(n) for n in ("PLY", "PC", "LY"))
    later = Scored(["a", "b"], [ply, pc]), Found([ly, ly], [ply, pc], [ply, pc])
    early = (Scored(["d", "c", "e", "b"], [pc, pc, ly, ply]),
             Found([ly, ly, ly, ly], [-1, -1, pc, -1], [ly, ly, pc, ly]))  # fmt: skip
    names["traces"].update({("paper", "test_degraded"): early, ("paper", "test"): later})
    choose, rules = names["chosen"], {n: names[n] for n in ("rescued", "wrongly_rescued", "stopped", "unseen")}
    assert choose([rules["rescued"]]) == ("paper", "test", 0, 2)
    assert choose([rules["wrongly_rescued"], rules["stopped"]]) == ("paper", "test_degraded", 2, 1)
    assert choose([rules["unseen"]]) == ("paper", "test_degraded", 1, 2), "c comes before d, b has no rule"
    assert choose([rules["stopped"]]) is None


@dataclass
class DrawnBenchmark(FakeBenchmark):
    """One picture of a cell for every image."""

    def read(self, item):
        y, x = np.mgrid[-24:24, -24:24]
        picture = np.full((48, 48, 3), 225, np.uint8)
        picture[np.hypot(y, x) < 15] = (200, 170, 210)
        picture[np.hypot(y, x + 2) < 8] = (90, 50, 140)
        return picture

    def counts(self, name):
        rows = self.table["set"] == name
        return np.bincount(self.table["label"][rows], minlength=len(self.classes))


@pytest.fixture
def on_made_up_images(tmp_path, monkeypatch):
    """Runs a chapter on a store of made-up predictions in which no rule of `paper` is in force."""

    def rules_off(name, labels, morphology):
        rules = fake_rules(name, labels, morphology)
        why = "no threshold raises it" if name == "paper" else ""
        return rules.replace("PLY", disabled=why or rules.of("PLY").disabled).replace("PC", disabled=why)

    monkeypatch.setattr("fake_rescue_store.fake_rules", rules_off)
    made = fake_rescue_plan("tiny", folds=2)
    plan = Plan("rescue", "tiny", DrawnBenchmark(**vars(made.benchmark)), made.cells, also=made.also)
    no_pictures = {cell.id for cell in made.cells if cell.kind in ("pixels", "cells", "restored")}
    session = Session(plan, fill_rescue_store(tmp_path / "runs", made, skip=no_pictures), None, tmp_path / "results")
    monkeypatch.setattr("wbcrepro.session.open_session", lambda *_: session)
    matplotlib.use("Agg")

    def opened(name):
        with matplotlib.rc_context():
            names, shown = run(name, tmp_path / "runs", monkeypatch)
        return names, [str(getattr(value, "data", value)) for value in shown]

    return opened


def solution(shown, start):
    """The solution of an exercise that has these words."""
    return next(text for text in shown if "admonition} Solution" in text and start in text)


def test_thresholds_of_rules_that_are_off(on_made_up_images, monkeypatch):
    names, shown = on_made_up_images("thresholds")
    ours, classes = names["ours"], names["classes"]
    swin, semantic, cells, scored, trace = names["training_side"]("paper")
    assert not (trace.candidate >= 0).any()

    # the panel of phase 2 shows what the rule would be asked about, and says that it is off
    panels = {}
    monkeypatch.setitem(names, "strip", lambda axis, values, groups, title, log=False: panels.update({title: groups}))
    for rule in ours.rules("paper").rare:
        names["distributions"](rule.name)
        asked = panels[f"second branch: P({rule.name})\n(rule off: what it would be asked)"]
        code, boosted = classes.index(rule.name), swin.copy()
        boosted[:, code] *= rule.boost
        surfaced = boosted.argmax(1) == code
        assert asked[rule.name].sum() == (surfaced & (scored.labels == code)).sum() > 0
        assert asked["others"].sum() == (surfaced & (scored.labels != code)).sum() > 0

    # the promise of tau_M is checked without its rule
    limit = np.sqrt(stats.chi2.ppf(0.95, 3))
    assert re.search(rf"PC: \d+ of 12 cells lie within {limit:.2f} of the cells of other patients \(its rule is off\)",
                     solution(shown, "The quantile"))  # fmt: skip


def test_thresholds_are_held_against_a_guess(on_made_up_images, monkeypatch):
    names, shown = on_made_up_images("thresholds")
    second = names["training_side"]("code")
    first, second = (100 * names["scores"](second[3].labels, p.argmax(1), 5)["macro_f1"] for p in second[:2])
    lines = [text for text in shown if "A guess that is the same" in text]
    assert [line.split("`")[1] for line in lines] == names["MADE"] == ["paper", "fitted", "code"]
    assert f"the first branch alone has a macro-F1 of {first:.1f}, the second {second:.1f}." in lines[2]
    assert lines[0].endswith("all C = 5 classes gives each 1/C = 0.200; no τ is in force.")
    assert lines[1].endswith("1/C = 0.200; τ of PC is 0.300, not below it.")
    rules = names["ours"].rules("fitted").replace("PC", semantic=0.1)
    monkeypatch.setattr(type(names["ours"]), "rules", lambda *_: rules)
    assert names["alone"]("fitted").endswith("τ of PC is 0.100, below it. A τ below 1/C asks for less than a guess.")


def test_captions_of_thresholds_say_what_was_fitted(on_made_up_images):
    _, shown = on_made_up_images("thresholds")
    captions = [text for text in shown if "out-of-fold training images" in text]
    assert ["Fitted on the out-of-fold" in text for text in captions] == [True, True, False]
    assert "What the release gives is kept; effects are counted on the out-of-fold" in captions[2]


def test_other_words_for_a_rule_that_is_off_are_no_other_rules(on_made_up_images):
    decided = on_made_up_images("thresholds")[0]["decided"]
    rules = RESCUE_PAPER.replace("PLY", disabled="so").to_json()
    assert decided(rules) == decided(RESCUE_PAPER.replace("PLY", disabled="or so").to_json())
    assert decided(rules) != decided(RESCUE_PAPER.to_json())
    assert decided(rules) != decided(RESCUE_PAPER.replace("PLY", disabled="so", boost=2.0).to_json())


def test_what_cheating_buys(on_made_up_images):
    names, shown = on_made_up_images("thresholds")
    assert "Here cheating buys " in solution(shown, "Macro-F1 on the degraded")
    assert names["bought"](37.9, 37.7).startswith("Here cheating buys nothing: the criterion is the F1 of one class")
    assert names["bought"](37.9, 37.93).startswith("Here cheating buys nothing")
    assert names["bought"](37.9, 41.0).startswith("Here cheating buys 3.1 points")


def test_rules_of_which_none_is_in_force_are_named(on_made_up_images):
    for page, end in (("watch_one_cell", "."), ("rescue", ", and the comparison of its rows is empty.")):
        _, shown = on_made_up_images(page)
        assert page == "rescue" or any("no rare class with a rule in force surfaced" in text for text in shown)
        said = [text for text in shown if "neither rule is in force" in text]
        assert said == [f"Rules `paper`: neither rule is in force here, so nothing is asked{end}"]


def test_a_guess_is_drawn_where_phase_2_has_room_for_it(on_made_up_images):
    names, _ = on_made_up_images("watch_one_cell")
    trace = names["traces"]["fitted", "oof"][1]
    reached = np.flatnonzero(trace.passed[:, 0])
    for value, drawn in ((0.15, True), (0.29, False)):  # tau is 0.3, 1/C is 0.2
        trace.value[reached[0], 1] = value
        for k in range(3):
            axis = plt.figure().subplots()
            names["draw_phase"](axis, trace, reached[0], k)
            assert (" 1/C" in [text.get_text() for text in axis.texts]) == (drawn and k == 1)
            plt.close("all")


def test_where_candidates_are_stopped_is_answered(on_made_up_images):
    """Sets without candidates have no line; the first with right and wrong ones gives the answer."""
    names, shown = on_made_up_images("watch_one_cell")
    text = solution(shown, "right candidates")
    assert "`paper`" not in text and " of 0 " not in text.split("\n\n")[0]
    assert "Under `fitted`, degraded test images: of the right candidates " in text

    class Found:
        candidate = np.array([3, 3, 3, 4, 4, -1])
        passed = np.array([[1, 0, 0], [1, 0, 0], [1, 1, 0], [1, 1, 0], [1, 1, 1], [0, 0, 0]], dtype=bool)

    class Scored:
        labels = np.array([3, 3, 3, 1, 1, 1])

    assert names["stops"](Found, Scored.labels) == [(3, {2: 2, 3: 1}), (2, {2: 0, 3: 1})]
    assert names["answers"]({("fitted", "oof"): (Scored, Found)}) == [
        "- rules `fitted`, training images, out of fold: of 3 right candidates phase 2 stops 2 and phase 3 1, of 2 "
        "wrong ones 0 and 1.", "",
        "Under `fitted`, training images, out of fold: of the right candidates phase 2 stops more (2 of 3), of the "
        "wrong ones phase 3 stops more (1 of 2): not the same.",
    ]  # fmt: skip
    assert names["where_most"](4, {2: 2, 3: 2}) == (None, "both phases stop 2 of 4")
    assert names["answers"]({}) == ["", "No set here has both right and wrong candidates."]


def test_the_reading_says_what_the_profile_changes(tmp_path, monkeypatch):
    """Epochs and repeats of the second branch, as its cells take them, in the sentence and among the settings."""
    names, shown = run("rescue", tmp_path / "runs", monkeypatch)
    text = [str(getattr(value, "data", value)) for value in shown]
    repeats = "PC × 50, PLY × 50"
    assert any(f"Here: 2 and 3 epochs (paper and code), {repeats}" in one for one in text)
    settings = next(one for one in text if "second branch: repeats" in one)
    assert "<td>15 | 150</td><td>2 | 3</td>" in settings
    assert f"<td>{repeats}" in settings
    semantic = {"paper": {"epochs": 7, "resample": {"PC": 5, "PLY": 3}}, "code": {"resample": {"PC": 5, "PLY": 3}}}
    profile = {"presets": ["paper", "code"], "semantic": semantic}
    assert names["heads_of"](profile, ("PC", "PLY", "LY")) == (["7", "150"], "PC × 5, PLY × 3")
    assert names["heads_of"](profile, ("LY",)) == (["7", "150"], "none")


def test_what_the_reading_says_agrees_with_the_other_chapters():
    """A demoted image may take the other rare class (test_suppress_rescue); C11 has a price for leaving folds out."""
    page = (NOTEBOOKS / "rescue.py").read_text(encoding="utf-8")
    suppress = next(e["code"] for e in load_part("rescue", "discrepancies") if e["topic"] == "Suppress first")
    assert all("(or be the runner-up of the other rare class)" in text for text in (page, suppress))
    assert "at no price" not in page and "(C11)" in page
    assert "C11" in [claim["id"] for claim in load_part("rescue", "claims")]
