"""The claims ledger: every claim of every paper, the test that was run, effect with interval, and the verdict here.

Beside what the store holds stand the results on real images that travel with the repository. A claim has one line; its
items (columns, metrics, classes) keep their own verdicts, and no verdict is made up for a claim whose items differ.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from wbcrepro.data.benchmarks import datasets_of
from wbcrepro.data.catalog import dataset
from wbcrepro.papers import load_paper
from wbcrepro.report import verdicts
from wbcrepro.report.claims import findings_frame, load_part
from wbcrepro.report.designs import design_of
from wbcrepro.report.predictions import StoredRun
from wbcrepro.report.results import LABELS_MAY_TRAVEL, list_results

IN_STORE, COMMITTED = "store", "committed"
NOT_RUN = verdicts.VALUES["missing"]
DIFFER = "its items differ"
WORDS = (*verdicts.CLAIMS.values(), NOT_RUN)
"""Verdicts on an item."""

TESTS = {
    "difference": "paired difference between two rows, per item, against zero",
    "best": "paired difference to each rival, intervals corrected for their number",
    "over_members": "the average of several networks minus the mean of its networks, paired",
    "recall": "recall of single classes against chance, Wilson interval",
    "majority": "mean recall of the largest classes, row minus row, with a margin",
    "variance": "variance of the probabilities between trainings, after to before, minus 1",
    "robustness": "fall from clean to degraded images, single networks minus ensemble, paired",
    "sweep_best": "the paper's value against every other value of the sweep, intervals corrected",
    "tail_recall": "recall of the smallest classes, row minus row, paired",
    "single_source": "mean recall of the classes of one source only, row minus row, paired",
    "untestable": "none: stored predictions cannot decide it",
}
"""What is done for each kind of claim. A claim's own ``test`` in its YAML says it better."""

COLUMNS = ("paper", "claim", "the paper says", "section", "test", "from", "benchmark", "profile", "images", "item",
           "unit", "paper's effect", "our effect", "low", "high", "folds", "verdict", "note", "command")  # fmt: skip


@dataclass(frozen=True)
class Evidence:
    """The findings of one paper on one benchmark, or why there are none (``findings`` is then empty)."""

    paper: str
    origin: str
    """``IN_STORE`` or ``COMMITTED``."""
    benchmark: str
    profile: str
    caption: str
    synthetic: bool
    findings: pd.DataFrame
    """As `findings_frame` gives it."""
    command: str
    """What makes it, or fills its holes."""
    cells: tuple[str, ...] = ()
    why: str = ""


def test_words(claim: dict) -> str:
    """What is computed for a claim: its own words, or those of its kind."""
    return claim.get("test") or TESTS.get(claim["kind"], claim["kind"].replace("_", " "))


test_words.__test__ = False  # no test of pytest's


def from_store(run: StoredRun, n: int | None = None) -> Evidence:
    """The claims of a paper on its stored predictions. ``n``: bootstrap resamples (None: those of the profile)."""
    paper, evaluate = run.paper["name"], design_of(run.paper["name"]).claims
    done, lacking = [m for m in run.members if m.done], [m for m in run.members if not m.done]
    more = min((getattr(m, "tier", 0) for m in lacking), default=0)
    why = "" if done and evaluate else "no cell of this profile has run" if evaluate else "no test is written for it"
    findings = pd.DataFrame() if why else findings_frame(run, evaluate(run, n=n))
    return Evidence(
        paper, IN_STORE, run.benchmark, run.profile, run.caption, run.synthetic, findings, run.make_command(more),
        tuple(m.id for m in done), why,
    )  # fmt: skip


def from_results(root: Path) -> list[Evidence]:
    """What the committed results say: their ``claims.csv``, which a test rebuilds from their probabilities."""
    found = []
    for folder in list_results(root):
        value = json.loads((folder / "provenance.json").read_text(encoding="utf-8"))
        findings = pd.read_csv(folder / "claims.csv", keep_default_na=False, na_values={c: [""] for c in _NUMBERS})
        found.append(Evidence(
            value["paper"], COMMITTED, value["benchmark"], value["profile"], value["caption"], value["synthetic"],
            findings, value["command"], tuple(c["id"] for c in value["cells"] if c["done"]),
        ))  # fmt: skip
    return found


_NUMBERS = ("paper's effect", "our effect", "low", "high", "folds")


def absent(paper: str, origin: str, why: str = "", profile: str = "") -> Evidence:
    """A hole: nothing is known of a paper from this origin. For committed results, which profile would give them."""
    real = [(name, p["benchmark"]) for name, p in load_paper(paper)["profiles"].items() if datasets_of(p["benchmark"])]
    if origin == COMMITTED and real:
        profile, benchmark = real[0]
        command = f"wbcrepro reproduce --paper {paper} --profile {profile} --data FOLDER_OF_THE_IMAGES"
        refused = [
            name for name in datasets_of(benchmark) if dataset(name).licence["redistribution"] not in LABELS_MAY_TRAVEL
        ]
        why = why or (
            f"none travels with the repository: the labels of {', '.join(refused)} may not be passed on"
            if refused
            else "none has been committed"
        )
        return Evidence(paper, origin, benchmark, profile, "", False, pd.DataFrame(), command, why=why)
    command = f"wbcrepro reproduce --paper {paper} --profile {profile or 'demo'}"
    return Evidence(paper, origin, "", profile, "", False, pd.DataFrame(), command, why=why or "not run")


def ledger_frame(papers: Iterable[str], evidence: Sequence[Evidence]) -> pd.DataFrame:
    """One line per claim, item and run (``COLUMNS``); a claim that a run says nothing of has one line, not run."""
    lines = []
    for paper in papers:
        for claim in load_part(paper, "claims"):
            for found in (e for e in evidence if e.paper == paper):
                about = {"paper": paper, "claim": claim["id"], "the paper says": claim["words"],
                         "section": str(claim["section"]), "test": test_words(claim), "from": found.origin,
                         "benchmark": found.benchmark, "profile": found.profile, "command": found.command,
                         "images": "synthetic" if found.synthetic else "real"}  # fmt: skip
                items = _items(found, claim["id"])
                lines += [about | item for item in items] or [about | _NOTHING | {"note": found.why}]
    return pd.DataFrame(lines, columns=list(COLUMNS))


_NOTHING = {"item": "", "unit": "", **dict.fromkeys(_NUMBERS), "folds": 0, "verdict": NOT_RUN}


def _items(found: Evidence, claim: str) -> list[dict]:
    """The findings on one claim. One without an effect because cells are missing was not run: that is no verdict."""
    if found.findings.empty:
        return []
    shared = ("item", "unit", *_NUMBERS, "verdict", "note")
    rows = found.findings[found.findings["claim"].astype(str) == claim]
    rows = rows.astype(object).where(rows.notna(), None).to_dict("records")
    items = [{key: row[key] for key in shared} | {"note": row["note"] or ""} for row in rows]
    missing = [i for i in items if i["our effect"] is None and "missing" in i["note"]]
    for item in missing:
        item["verdict"] = NOT_RUN
    return items


def verdict_of(items: pd.DataFrame) -> str:
    """The verdict that all items share that could be judged; ``DIFFER`` where they do not, and what holds of all where
    none could."""
    judged = set(items["verdict"]) - {NOT_RUN, verdicts.CLAIMS["not testable"]}
    if len(judged) == 1:
        return judged.pop()
    if judged:
        return DIFFER
    return NOT_RUN if (items["verdict"] == NOT_RUN).any() else verdicts.CLAIMS["not testable"]


def verdict_counts(frame: pd.DataFrame) -> pd.DataFrame:
    """Claims by verdict, one line a paper and run; behind them the verdicts on single items."""
    keys, lines = ["paper", "from", "benchmark", "profile", "images"], []
    for values, rows in frame.groupby(keys, sort=False):
        of_claims = [verdict_of(items) for _, items in rows.groupby("claim", sort=False)]
        line = dict(zip(keys, values, strict=True)) | {"claims": len(of_claims)}
        line |= {words: of_claims.count(words) for words in (*verdicts.CLAIMS.values(), DIFFER, NOT_RUN)}
        line["items"] = int((rows["item"] != "").sum())
        line |= {f"items {words}": int(((rows["verdict"] == words) & (rows["item"] != "")).sum()) for words in WORDS}
        lines.append(line)
    return pd.DataFrame(lines)
