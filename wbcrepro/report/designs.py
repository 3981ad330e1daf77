"""Which report a paper's design has: the same steps for papers of two stages and of unseen laboratories."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from wbcrepro.errors import UsageError
from wbcrepro.papers import load_paper
from wbcrepro.report.claims import Finding, evaluate_claims
from wbcrepro.report.domain_claims import evaluate_domain_claims
from wbcrepro.report.domain_page import domain_table_text
from wbcrepro.report.domain_predictions import DomainPredictions, from_domain_plan
from wbcrepro.report.domain_tables import DomainTable, build_domain_table
from wbcrepro.report.method_scores import Score, domain_scores, two_stage_scores
from wbcrepro.report.predictions import Predictions, from_plan
from wbcrepro.report.rescue_claims import evaluate_rescue_claims
from wbcrepro.report.rescue_page import rescue_table_text
from wbcrepro.report.rescue_predictions import from_rescue_plan
from wbcrepro.report.rescue_scores import rescue_scores
from wbcrepro.report.rescue_tables import build_rescue_table
from wbcrepro.report.tables import Table, build_table
from wbcrepro.report.text import table_text

if TYPE_CHECKING:
    from wbcrepro.experiments.plan import Plan
    from wbcrepro.experiments.store import Store


@dataclass(frozen=True)
class Design:
    """Plan and store to predictions, predictions to a table, a table to text; for the pages that span all papers,
    predictions to findings on the paper's claims and to the scores of its methods (None: a design that has none)."""

    read: Callable[[Plan, Store], Predictions | DomainPredictions]
    build: Callable[..., Table | DomainTable]
    text: Callable[..., str]
    claims: Callable[..., list[Finding]] | None = None
    scores: Callable[..., list[Score]] | None = None


DESIGNS = {
    "two_stage": Design(from_plan, build_table, table_text, evaluate_claims, two_stage_scores),
    "domains": Design(from_domain_plan, build_domain_table, domain_table_text, evaluate_domain_claims, domain_scores),
    "rescue": Design(from_rescue_plan, build_rescue_table, rescue_table_text, evaluate_rescue_claims, rescue_scores),
}


def design_of(paper: str) -> Design:
    """The report of a paper; ``UsageError`` for a design that has none."""
    design = load_paper(paper)["design"]
    if design not in DESIGNS:
        raise UsageError(f"the paper {paper} has the design {design!r}, for which there is no report")
    return DESIGNS[design]
