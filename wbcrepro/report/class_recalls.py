"""Fig. 2, class by class: recalls that the paper prints, those of the released code's log, and ours, in columns."""

from __future__ import annotations

from html import escape

import numpy as np
import pandas as pd

from wbcrepro.metrics import wilson_interval
from wbcrepro.report import verdicts
from wbcrepro.report.evaluate import Estimate, Evaluator, Spec, members_of
from wbcrepro.report.page import Html, banner, download, source
from wbcrepro.report.tables import SET_WORDS, sentence

SOURCES = ("paper", "log", "ours")


def recalls_frame(evaluator: Evaluator, spec: Spec) -> pd.DataFrame:
    """One line a class: ``<s>_correct``, ``<s>_of``, ``<s>_recall``, ``<s>_low``, ``<s>_high`` (percent, 95 % Wilson)
    of each source s, ``folds`` and ``verdict``.

    Ours is the mean number of correct images over folds that share a test set, so its interval is that of one test set.
    The verdict is on ours beside the paper's value; empty where the paper prints none.
    """
    predictions = evaluator.predictions
    definition = predictions.paper["tables"]["figure_2"]
    printed, logged = definition["reported"], definition["code_log"]["recalls"]
    decided = evaluator.decided(spec)
    lines = []
    for name in dict.fromkeys([*logged, *predictions.classes]):
        per_fold = _per_fold(decided, predictions.classes, name)
        ours = tuple(np.mean(list(per_fold.values()), axis=0)) if per_fold else None
        counts = dict(zip(SOURCES, (printed.get(name), logged.get(name), ours), strict=True))
        line = {"class": name}
        for of, pair in counts.items():
            line |= _columns(of, pair)
        line |= {"folds": len(per_fold), "verdict": _verdict(evaluator, bool(decided), per_fold, printed.get(name))}
        lines.append(line)
    return pd.DataFrame(lines)


def _per_fold(decided: dict, classes: tuple[str, ...], name: str) -> dict[object, tuple[int, int]]:
    """``{fold: (correct, images)}`` of one class; empty where the data do not have it."""
    if name not in classes:
        return {}
    code = classes.index(name)
    found = {f: (int(((true == code) & (pred == code)).sum()), int((true == code).sum())) for f, (true, pred) in
             decided.items()}  # fmt: skip
    return {fold: pair for fold, pair in found.items() if pair[1]}


def _columns(of: str, pair: tuple[float, float] | None) -> dict[str, float | None]:
    names = ("correct", "of", "recall", "low", "high")
    if pair is None:
        return {f"{of}_{name}": None for name in names}
    correct, size = pair
    low, high = (100 * float(v) for v in wilson_interval(correct, size))
    return {f"{of}_{n}": v for n, v in zip(names, (correct, size, 100 * correct / size, low, high), strict=True)}


def _verdict(evaluator: Evaluator, ran: bool, per_fold: dict, printed: tuple[int, int] | None) -> str:
    """In the project's words. On the paper's data a printed k of n is taken with its binomial standard deviation."""
    predictions = evaluator.predictions
    if printed is None:
        return ""
    if not per_fold:
        return verdicts.CLAIMS["not testable"] if ran else verdicts.VALUES["missing"]
    where = {"benchmark": predictions.benchmark, "profile": predictions.profile}
    if where != predictions.paper["tables"]["figure_2"]["comparable"]:
        return verdicts.VALUES["not comparable"]
    p = printed[0] / printed[1]
    ours = Estimate({fold: hit / size for fold, (hit, size) in per_fold.items()}, {})
    return verdicts.VALUES[verdicts.same_data(ours, p, (p * (1 - p) / printed[1]) ** 0.5)]


def recalls_html(evaluator: Evaluator, spec: Spec, label: str, name: str) -> Html:
    """The frame as a table in three groups of columns, with its CSV, cells and command below. ``label``: our row."""
    predictions, frame = evaluator.predictions, recalls_frame(evaluator, spec)
    log = predictions.paper["tables"]["figure_2"]["code_log"]
    head = (
        "<tr><th>class</th>" + "".join(f'<th class="wbc-group">{escape(words)}</th>' for words in (
            "Paper", "Released code’s log", f"Ours: {predictions.benchmark}")) + "<th>verdict</th></tr>"
    )  # fmt: skip
    body = "".join(
        f'<tr><th scope="row">{escape(line["class"])}</th>'
        + "".join(f'<td class="wbc-{"code" if s == "log" else s}">{_cell(line, s)}</td>' for s in SOURCES)
        + f'<td class="wbc-verdict">{line["verdict"]}</td></tr>'
        for line in frame.astype(object).where(frame.notna(), None).to_dict("records")
    )
    caption = (
        f"Correct images of each class and recall with its 95 % Wilson interval. Paper: the two that it prints. Log: "
        f"{log['words']}. Ours: {label}, {SET_WORDS.get(evaluator.on, evaluator.on)} of {predictions.benchmark}, "
        f"profile {predictions.profile}, mean over folds. {sentence(predictions.caption)}"
    )
    members = members_of(predictions, spec)
    csv = frame.to_csv(index=False, float_format="%.2f", lineterminator="\n")
    return Html(
        f"{banner(predictions.synthetic, predictions.caption)}<p>{escape(caption)}</p>"
        f'<div class="wbc-table"><table><thead>{head}</thead><tbody>{body}</tbody></table></div>'
        f"{source([m.id for m in members if m.done], predictions.make_command(), [download(name, csv, 'CSV')])}"
    )


def _cell(line: dict, of: str) -> str:
    if line[f"{of}_of"] is None:
        return "–"
    correct, size = (f"{round(line[f'{of}_{part}'], 1):g}" for part in ("correct", "of"))
    return (
        f"{correct} of {size}: {line[f'{of}_recall']:.0f} %"
        f"<br><small>[{line[f'{of}_low']:.0f}, {line[f'{of}_high']:.0f}]</small>"
    )
