"""The claims ledger: every claim of every paper has its line, whatever has run, and no verdict is made up."""

import json
import re

import numpy as np
import pandas as pd
import pytest
from fake_domain_store import fake_domain_plan, fill_domain_store
from fake_store import fake_plan, fill_store

from wbcrepro.papers import paper_names
from wbcrepro.report import ledger, verdicts
from wbcrepro.report.claims import evaluate_claims, load_part
from wbcrepro.report.designs import design_of
from wbcrepro.report.ledger import COMMITTED, DIFFER, IN_STORE, NOT_RUN, absent, from_results, from_store, ledger_frame
from wbcrepro.report.ledger_page import ledger_html
from wbcrepro.report.results import export_results

SUPPORTED, CONTRADICTED, UNDECIDED, UNTESTABLE = verdicts.CLAIMS.values()


def decoupled(path, folds=(0, 1, 2), **options):
    plan = fake_plan(folds=list(folds))
    return design_of("decoupled").read(plan, fill_store(path, plan, per_class=30, **options))


@pytest.fixture(scope="module")
def evidence(tmp_path_factory):
    """Both designs in the store, `decoupled` also exported, `boda` without a run."""
    path = tmp_path_factory.mktemp("store")
    run = decoupled(path / "a", skills={"supervised": 0.5, "decoupled": 2.5})
    plan = fake_domain_plan("sada")
    sada = design_of("sada").read(plan, fill_domain_store(path / "b", plan))
    export_results(run, path / "results")
    return [
        from_store(run, 100), from_store(sada, 100), absent("boda", IN_STORE, profile="demo"),
        *from_results(path / "results"), absent("sada", COMMITTED), absent("boda", COMMITTED),
    ]  # fmt: skip


@pytest.fixture(scope="module")
def frame(evidence):
    return ledger_frame(("boda", "decoupled", "sada"), evidence)


def test_every_claim_has_a_line_for_each_origin(frame):
    for paper in ("boda", "decoupled", "sada"):
        for claim in load_part(paper, "claims"):
            rows = frame[(frame["paper"] == paper) & (frame["claim"] == claim["id"])]
            assert set(rows["from"]) == {IN_STORE, COMMITTED} and set(rows["the paper says"]) == {claim["words"]}
    assert set(frame["verdict"]) <= set(ledger.WORDS)


def test_the_stores_verdicts_are_those_of_the_findings_page(tmp_path):
    run = decoupled(tmp_path, skills={"supervised": 0.5, "decoupled": 2.5})
    found = evaluate_claims(run, n=100)
    frame = ledger_frame(["decoupled"], [from_store(run, 100)])
    assert frame["item"].tolist() == [f.item for f in found]
    effects = [np.nan if f.effect is None else f.effect for f in found]
    assert frame["our effect"].tolist() == pytest.approx(effects, nan_ok=True)
    assert frame["verdict"].tolist() == [verdicts.CLAIMS[f.verdict] for f in found]


def test_committed_claims_stand_beside_the_store(frame):
    """They are the same probabilities here, in half precision and with other resamples."""
    rows = frame[(frame["paper"] == "decoupled") & (frame["claim"] == "C1")]
    store, committed = (rows[rows["from"] == origin].reset_index() for origin in (IN_STORE, COMMITTED))
    assert committed["item"].tolist() == store["item"].tolist() and len(store) == 3
    assert committed["our effect"].to_numpy(float) == pytest.approx(store["our effect"].to_numpy(float), abs=1.5)
    assert set(committed["verdict"]) == {SUPPORTED} == set(store["verdict"])


def test_a_paper_without_a_run_is_a_hole_with_its_command(frame):
    rows = frame[(frame["paper"] == "boda") & (frame["from"] == IN_STORE)]
    assert set(rows["verdict"]) == {NOT_RUN} and rows["our effect"].isna().all()
    assert set(rows["command"]) == {"wbcrepro reproduce --paper boda --profile demo"}
    real = frame[(frame["paper"] == "boda") & (frame["from"] == COMMITTED)]
    assert set(real["command"]) == {"wbcrepro reproduce --paper boda --profile mini --data FOLDER_OF_THE_IMAGES"}
    assert set(real["benchmark"]) == {"boda-real"}


def test_an_empty_store_gives_holes_and_no_verdict(tmp_path):
    plan = fake_plan()
    run = design_of("decoupled").read(plan, fill_store(tmp_path, plan, skip={c.id for c in plan.cells}))
    found = ledger_frame(["decoupled"], [from_store(run)])
    assert set(found["verdict"]) == {NOT_RUN} and len(found) == len(load_part("decoupled", "claims"))
    assert set(found["note"]) == {"no cell of this profile has run"}


def test_missing_cells_are_holes_and_absent_classes_are_no_holes(tmp_path, frame):
    plan = fake_plan(folds=[0, 1, 2])
    swin = {c.id for c in plan.cells if c.labels["backbone"] == "swin"}
    run = design_of("decoupled").read(plan, fill_store(tmp_path, plan, per_class=30, skip=swin))
    found = ledger_frame(["decoupled"], [from_store(run, 50)]).set_index(["claim", "item"])["verdict"]
    assert found["C2", "Swin"] == NOT_RUN and found["C2", "R50"] != NOT_RUN
    whole = frame[(frame["paper"] == "decoupled") & (frame["from"] == IN_STORE)].set_index("item")["verdict"]
    assert whole["recall of PLY"] == UNTESTABLE


def test_a_hole_of_ablations_names_the_switch_that_runs_them(tmp_path):
    plan = fake_domain_plan("sada", more=True)
    for cell in plan.cells:
        cell.labels["tier"] = int(cell.labels["method"] in ("m2", "m3"))
    skip = {c.id for c in plan.cells if c.labels["tier"]}
    found = from_store(design_of("sada").read(plan, fill_domain_store(tmp_path, plan, skip=skip)), 50)
    assert found.command.endswith("--more 1")
    frame = ledger_frame(["sada"], [found])
    assert set(frame[frame["claim"] == "S6"]["verdict"]) == {NOT_RUN}


@pytest.mark.parametrize(
    ("items", "whole"),
    [
        ([SUPPORTED, SUPPORTED], SUPPORTED),
        ([SUPPORTED, NOT_RUN, UNTESTABLE], SUPPORTED),
        ([SUPPORTED, UNDECIDED], DIFFER),
        ([SUPPORTED, CONTRADICTED], DIFFER),
        ([CONTRADICTED], CONTRADICTED),
        ([UNTESTABLE, NOT_RUN], NOT_RUN),
        ([UNTESTABLE], UNTESTABLE),
    ],
)
def test_a_claim_has_a_verdict_only_if_its_items_agree(items, whole):
    assert ledger.verdict_of(pd.DataFrame({"verdict": items})) == whole


def test_counts_add_up_to_the_claims_and_the_items(frame):
    counts = ledger.verdict_counts(frame)
    assert len(counts) == 6
    assert (counts[[*verdicts.CLAIMS.values(), DIFFER, NOT_RUN]].sum(axis=1) == counts["claims"]).all()
    assert (counts[[f"items {w}" for w in ledger.WORDS]].sum(axis=1) == counts["items"]).all()
    assert counts["items"].sum() == (frame["item"] != "").sum()


def test_page_has_a_row_a_claim_and_links_to_the_findings(frame, evidence):
    html = ledger_html(frame, evidence, "ledger.csv", {"sada": "sada_findings.html"})
    claims = [c for paper in ("boda", "decoupled", "sada") for c in load_part(paper, "claims")]
    assert html.count('<th scope="row"') == len(claims)
    assert html.count('href="sada_findings.html"') == 1 + len(load_part("sada", "claims"))
    assert "boda_findings" not in html and "synthetic" in html and "wbc-hole" in html
    assert "wbcrepro reproduce --paper boda --profile demo" in html and "[" in html


def test_the_csv_of_the_page_is_the_frame(frame, evidence, tmp_path, monkeypatch):
    monkeypatch.setenv("WBCREPRO_PAGE_FILES", str(tmp_path))
    monkeypatch.setenv("WBCREPRO_PAGE_URL", "x")
    ledger_html(frame, evidence, "ledger.csv")
    written = pd.read_csv(tmp_path / "ledger.csv")
    assert list(written) == list(ledger.COLUMNS) and len(written) == len(frame)


@pytest.mark.parametrize("paper", paper_names())
def test_every_kind_of_claim_says_what_is_tested(paper):
    kinds = {c["id"]: c for c in load_part(paper, "claims")}
    silent = [name for name, c in kinds.items() if not c.get("test") and c["kind"] not in ledger.TESTS]
    assert not silent, f"{paper}: write `test:` (what is computed) for {', '.join(silent)}"


def test_the_code_names_no_paper():
    from pathlib import Path

    for module in ("ledger", "ledger_page", "one_benchmark", "one_benchmark_page", "costs"):
        text = (Path(ledger.__file__).parent / f"{module}.py").read_text(encoding="utf-8")
        assert not re.findall("|".join(rf"\b{name}\b" for name in paper_names()), text), module


def test_results_without_claims_are_an_error_that_names_the_file(tmp_path):
    folder = tmp_path / "decoupled" / "x-mini"
    folder.mkdir(parents=True)
    (folder / "provenance.json").write_text(json.dumps({}), encoding="utf-8")
    with pytest.raises(FileNotFoundError, match="claims.csv"):
        from_results(tmp_path)
