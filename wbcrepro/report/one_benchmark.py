"""One benchmark: every method of every paper by every test set, from stored predictions, with cost and budget.

A column is one set of images under one protocol (the same benchmark, digest and part of it, in one profile). Scores of
different columns are never compared; within one, `OneBenchmark.differing` names the rows that had another budget.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import pandas as pd

from wbcrepro.papers import load_paper
from wbcrepro.report.costs import Chain, Cost, cost_of
from wbcrepro.report.designs import design_of
from wbcrepro.report.evaluate import Estimate
from wbcrepro.report.method_scores import HELD_OUT_LABORATORY, Score
from wbcrepro.report.predictions import StoredRun


@dataclass(frozen=True)
class Run:
    """Predictions of one paper on one benchmark, with the chains of their cells where the store is at hand.

    ``own``: whether the benchmark is that of the paper's profile (or a committed one). Others only fill columns.
    """

    predictions: StoredRun
    chains: Mapping[str, Chain] = field(default_factory=dict)
    own: bool = True


@dataclass(frozen=True)
class Column:
    """One set of images under one protocol, in one profile."""

    benchmark: str
    digest: str
    profile: str
    part: str
    protocol: str
    synthetic: bool = field(compare=False)
    caption: str = field(compare=False)

    @property
    def group(self) -> tuple[str, str, str]:
        """Benchmark, digest and profile: the columns of one data set stand side by side."""
        return self.benchmark, self.digest, self.profile

    @property
    def words(self) -> str:
        """What its images are called."""
        return f"{self.part} held out" if self.protocol == HELD_OUT_LABORATORY else self.part


@dataclass(frozen=True)
class Entry:
    """One method of one paper in one column: an estimate with its cost, or a hole with the command that fills it."""

    paper: str
    method: str
    preset: str
    networks: tuple[str, ...]
    column: Column
    estimate: Estimate | None
    cost: Cost
    cells: tuple[str, ...]
    command: str

    @property
    def row(self) -> tuple[str, str, str, tuple[str, ...]]:
        """Paper, preset, method and networks."""
        return self.paper, self.preset, self.method, self.networks

    @property
    def state(self) -> str:
        """``scored``; ``not run``, with a command; or ``ran, not stored here``: of committed results some views."""
        return "scored" if self.estimate is not None else "not run" if self.command else "ran, not stored here"

    @property
    def label(self) -> str:
        """The row's words: the paper's name, the method, and the preset where it is not the paper's."""
        return f"{self.paper}: {self.method}" + (f" ({self.preset})" if self.preset != "paper" else "")


@dataclass(frozen=True)
class OneBenchmark:
    """All entries, columns in order."""

    entries: tuple[Entry, ...]
    columns: tuple[Column, ...]

    def networks(self) -> dict[tuple[str, ...], int]:
        """``{networks: papers}`` of entries with a value (of all, where none has), those that most share first."""
        there = [e for e in self.entries if e.estimate is not None] or [e for e in self.entries if e.networks]
        papers: dict[tuple[str, ...], set] = {}
        sizes: Counter = Counter()
        for entry in there:
            papers.setdefault(entry.networks, set()).add(entry.paper)
            sizes[entry.networks] += 1
        order = sorted(papers, key=lambda n: (-len(papers[n]), -sizes[n], n))
        return {networks: len(papers[networks]) for networks in order}

    def of(self, networks: tuple[str, ...] | None = None) -> OneBenchmark:
        """Only the rows with these networks (None: those that most papers share), and holes of unplanned papers."""
        chosen = networks if networks is not None else next(iter(self.networks()), None)
        return OneBenchmark(tuple(e for e in self.entries if e.networks in (chosen, ())), self.columns)

    def other_networks(self, networks: tuple[str, ...] | None = None) -> OneBenchmark:
        """The rows that `of` leaves out."""
        chosen = networks if networks is not None else next(iter(self.networks()), None)
        return OneBenchmark(tuple(e for e in self.entries if e.networks not in (chosen, ())), self.columns)

    def groups(self) -> dict[tuple[str, str, str], list[Column]]:
        """Columns by data set and profile, those that have an entry."""
        there = {e.column for e in self.entries}
        found: dict[tuple[str, str, str], list[Column]] = {}
        for column in self.columns:
            if column in there:
                found.setdefault(column.group, []).append(column)
        return found

    def rows(self, columns: Iterable[Column] | None = None) -> list[tuple]:
        """Distinct rows with an entry in these columns, by paper, in the order of the plans."""
        wanted = set(self.columns if columns is None else columns)
        order = list(dict.fromkeys(e.paper for e in self.entries))
        found = dict.fromkeys(e.row for e in self.entries if e.column in wanted)
        return sorted(found, key=lambda row: order.index(row[0]))

    def entry(self, row: tuple, column: Column) -> Entry | None:
        """The entry of a row in a column; None where nothing of the row is planned on these images."""
        return next((e for e in self.entries if e.row == row and e.column == column), None)

    def differing(self, columns: Sequence[Column]) -> tuple[str, list[str]]:
        """The budget that most rows of a data set share, and the labels of the rows with a value that had another."""
        there = {e.row: e for e in self.entries if e.column in columns and e.estimate is not None and e.cost.budget}
        counts = Counter((e.cost.budget, e.cost.side) for e in there.values())
        if not counts:
            return "", []
        usual = counts.most_common(1)[0][0]
        words = f"{usual[0]}, {usual[1]} px" if usual[1] else usual[0]
        return words, [e.label for e in there.values() if (e.cost.budget, e.cost.side) != usual]

    def frame(self) -> pd.DataFrame:
        """One line per row and column (the CSV); percent, seconds, milliseconds; empty where nothing is stored."""
        return pd.DataFrame([_line(entry) for entry in self.entries])

    def holes(self) -> list[tuple[str, str]]:
        """Pairs of which rows have holes where, in words, and the command that fills them."""
        groups: dict[tuple[str, str], list[str]] = {}
        for e in self.entries:
            if e.command:
                groups.setdefault((e.command, f"{e.column.benchmark} ({e.column.profile})"), []).append(e.label)
        return [(f"{where}: {', '.join(dict.fromkeys(found))}", command) for (command, where), found in groups.items()]


def _line(entry: Entry) -> dict:
    ours, column = entry.estimate, entry.column
    low, high = (100 * v for v in ours.interval()) if ours else (None, None)
    return {
        "paper": entry.paper, "method": entry.method, "preset": entry.preset, "networks": " + ".join(entry.networks),
        "benchmark": column.benchmark, "profile": column.profile, "images": "synthetic" if column.synthetic else "real",
        "part": column.part, "protocol": column.protocol, "macro_f1": 100 * ours.mean if ours else None,
        "std": 100 * ours.std if ours and ours.std is not None else None, "low": low, "high": high,
        "state": entry.state, "trainings": ours.folds if ours else 0, "seconds_per_training": entry.cost.seconds,
        "seconds_in_all": entry.cost.total_seconds, "images_drawn": entry.cost.drawn, "side_px": entry.cost.side,
        "inference_ms": entry.cost.inference, "budget": entry.cost.budget, "hardware": "; ".join(entry.cost.hardware),
        "command": entry.command,
    }  # fmt: skip


def collect(runs: Sequence[Run], n: int | None = None) -> OneBenchmark:
    """Score every method of every run. A row has one entry a column: of several runs the first that has a value.

    ``n``: bootstrap resamples (None: those of each profile). Designs without scores are left out.
    """
    entries: dict[tuple, Entry] = {}
    columns: dict[Column, None] = {}
    scored = [(run, _scores(run, n)) for run in runs]
    for run, scores in scored:
        for score in scores:
            column = _column(run, score)
            if run.own:
                columns.setdefault(column)
    for run, scores in scored:
        for score in scores:
            entry = _entry(run, score)
            before = entries.get((entry.row, entry.column))
            if entry.column in columns and (before is None or (before.estimate is None and entry.estimate is not None)):
                entries[entry.row, entry.column] = entry
    order = sorted(columns, key=lambda c: (not c.synthetic, [*columns].index(c)))
    return OneBenchmark((*entries.values(), *_never_planned(runs, entries, order)), tuple(order))


def _scores(run: Run, n: int | None) -> list[Score]:
    score = design_of(run.predictions.paper["name"]).scores
    return score(run.predictions, n) if score else []


def _column(run: Run, score: Score) -> Column:
    p = run.predictions
    return Column(p.benchmark, p.data_digest, p.profile, score.part, score.protocol, p.synthetic, p.caption)


def _entry(run: Run, score: Score) -> Entry:
    p = run.predictions
    done = [i for i in score.members if i not in score.missing]
    found = [run.chains[i] for i in (done or score.members) if i in run.chains]
    cost = cost_of(found, score.estimate.folds if score.estimate else 1)
    command = p.make_command(score.tier) if score.missing else ""
    return Entry(
        p.paper["name"], score.method, score.preset, score.networks, _column(run, score), score.estimate, cost,
        tuple(done), command,
    )  # fmt: skip


def _never_planned(runs: Sequence[Run], entries: Mapping[tuple, Entry], columns: Sequence[Column]) -> list[Entry]:
    """Holes in columns that no plan at hand has for a paper (the store has another profile, or no images): its methods
    there are not known before they are planned, so one line stands for all of them."""
    there = {(e.paper, e.column.group) for e in entries.values()}
    papers = {run.predictions.paper["name"]: {e.column.protocol for e in entries.values()
              if e.paper == run.predictions.paper["name"]} for run in runs}  # fmt: skip
    found = []
    for paper, protocols in papers.items():
        for column in columns:
            if column.protocol in protocols and (paper, column.group) not in there and _holds_out(paper, column):
                found.append(Entry(paper, "all its methods", "paper", (), column, None, cost_of([], 1), (),
                                   fill_command(paper, column)))  # fmt: skip
    return found


def _holds_out(paper: str, column: Column) -> bool:
    profile = load_paper(paper)["profiles"].get(column.profile)
    if profile is None:
        return False
    return column.protocol != HELD_OUT_LABORATORY or column.part in profile["held_out"]


def fill_command(paper: str, column: Column) -> str:
    """The command that runs a paper on another's data, in the profile of the column."""
    command = f"wbcrepro reproduce --paper {paper} --profile {column.profile} --dataset {column.benchmark}"
    return command if column.synthetic else f"{command} --data FOLDER_OF_THE_IMAGES"
