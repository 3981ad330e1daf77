"""What the caption of a table of ``design: rescue`` says: which numbers, measured where, and what they do not show."""

from __future__ import annotations

from typing import TYPE_CHECKING

from wbcrepro.report.tables import sentence

if TYPE_CHECKING:
    from wbcrepro.report.rescue_tables import RescueTable


def caption(table: RescueTable) -> str:
    """All sentences, in the order: what, where, with which networks, with which uncertainty, and what else holds."""
    p = table.predictions
    networks = dict.fromkeys(m.network for m in p.networks("swin", table.preset) if m.network)
    return " ".join(
        [
            f"{table.title}, preset {table.preset!r}, profile {p.profile!r} on {p.benchmark}, "
            f"network {', '.join(networks) or 'not planned'}.",
            sentence(p.caption),
            *WORDS[table.kind](table),
            *table.words,
            f"Profiles of this table: {', '.join(p.paper['tables'][table.name]['profiles'])}.",
        ]
    )


def _together(table: RescueTable) -> str:
    known = table.predictions.grouped()
    words = {True: "; images of one patient are drawn together", False: "; no patients are known"}
    return words.get(known, "")


def _interval(table: RescueTable) -> str:
    return f"the 95 % bootstrap interval over images ({table.bootstrap} resamples within classes{_together(table)})"


def _validation(table: RescueTable) -> list[str]:
    return [
        "Every fold is scored by the network that did not train on it, without views, after the epoch that was best on "
        "that same fold.",
        f"Ours: mean ± standard deviation over folds, in brackets {_interval(table)}.",
    ]


def _waterfall(table: RescueTable) -> list[str]:
    words = [
        "The paper's column is the private leaderboard, one submission a row; our test sets hold other images.",
        f"Ours in brackets: {_interval(table)}. The single fold is the mean ± standard deviation of every fold alone; "
        "other rows average the probabilities of all folds in the views of the released code, so that they are one "
        "number.",
        "Δ: paired difference to the row that is named. Its verdict asks for every fold's network and second branch "
        "alone, with the same rules, as well as for the images; so their mean difference stands beside it. A gain of "
        "phase 3 over phase 2 may only repair what phase 2 did: what the whole is worth is its distance to the average "
        "of folds and views.",
    ]
    folds = len({m.fold for m in table.predictions.networks("swin", table.preset)})
    if folds and folds != 5:
        words.append(f"Rows named after five folds have {folds} here.")
    if table.predictions.controls:
        words.append("Control: " + " ".join(sentence(words) for _, words in table.predictions.controls))
    return words


def _restoration(table: RescueTable) -> list[str]:
    return [
        "Distances are to the pristine twins of the degraded test images, on the isolated cell over white and inside "
        "the cell alone.",
        "Distances in brackets: 95 % interval of the mean over images, patients drawn whole.",
        f"Macro-F1 in brackets: {_interval(table)}. Δ: paired difference to no restoration.",
    ]


WORDS = {"cross_validation": _validation, "waterfall": _waterfall, "restoration": _restoration}
