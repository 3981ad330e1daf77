# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% tags=["parameters", "hide-cell"]
PROFILE = "demo"  # tiny | demo | mini | paper
STORE = "runs"
DATA = None  # the folder that holds real datasets, or None
DATASET = None  # another benchmark than the profile's, or None
RESULTS = "results"  # real results that came with the repository
WEIGHTS = None  # other first weights than the profile's: package | hub | random | a file, or None
ACCUMULATE = None  # passes that make one batch, or None for the profile's

# %% [markdown]
# # Results of the poster
#
# The poster's two tables and its confusion matrices, and three questions that it leaves open: what becomes of classes
# that only one source laboratory has, what the official code's extra penalty does, and whether the features still
# tell the laboratory. Every value of ours is computed on this page from stored predictions.
#
# How to read our values: mean ± standard deviation over trials says how much training anew matters; the bracket below
# it is a 95 % bootstrap interval over images (those of one slide, patient or filmed cell together) and says how much
# the choice of test images matters. A verdict compares the *direction* of a row against ERM (hover over it). The
# poster's unseen laboratory is private, so no value of ours can be compared with its value.

# %% tags=["hide-input"]
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from IPython.display import Markdown, display

from wbcrepro.domains.dann import DANNSettings
from wbcrepro.metrics import wilson_interval
from wbcrepro.report.domain_claims import class_recall, rarest_class, source_counts
from wbcrepro.report.domain_evaluate import DomainEvaluator, DomainSpec
from wbcrepro.report.domain_figures import confusion_pair_figure, embedding_figure, laboratory_scores_figure
from wbcrepro.report.domain_frames import confusion_of, gains_frame, recall_frame, scoring_frame
from wbcrepro.report.domain_page import domain_table_html
from wbcrepro.report.domain_predictions import from_domain_plan
from wbcrepro.report.domain_tables import build_domain_table
from wbcrepro.report.embeddings import probe_frame, project
from wbcrepro.report.figures import effects_figure, recall_figure, use_style
from wbcrepro.report.page import Html, banner, frame_html, hole, source
from wbcrepro.report.results import list_results, open_results
from wbcrepro.session import no_results, open_session

torch.set_num_threads(1)
use_style()
session = open_session("boda", PROFILE, STORE, DATA, DATASET, RESULTS, WEIGHTS, ACCUMULATE)
missing = session.run_missing()
ours = from_domain_plan(session.plan, session.store)
methods = ours.paper["methods"]
SYNTHETIC = ours.caption if ours.synthetic else ""
SELECTION = ours.paper["tables"]["table_2"]["selection"]
real = [open_results(folder) for folder in list_results(session.results, "boda")]
evaluators = {id(found): DomainEvaluator(found) for found in [ours, *real]}


def table_of(found, name, **options):
    return build_domain_table(found, name, evaluator=evaluators[id(found)], **options)


def show_table(found, name, prefix="", **options):
    table = table_of(found, name, **options)
    return domain_table_html(table, f"{prefix}{name}-{table.preset}-{table.spec.selection}.csv")


def show_frame(frame, name, caption, found):
    if not len(frame):
        return Html(hole(found.make_command()))
    cells = [member.id for member in found.members if member.done]
    return frame_html(
        frame, name, caption=f"{caption}. {found.benchmark}, profile {found.profile}", command=found.make_command(),
        synthetic=found.caption if found.synthetic else "", cells=cells,
    )  # fmt: skip


def done_cells(found, *names):
    """Finished cells of preset `paper`, all or those of some methods."""
    return [m.id for m in found.find(preset="paper", done=True) if not names or m.method in names]


def each_real(show):
    """The same from the results on real images that came with the repository."""
    for found in real:
        display(show(found, f"{found.benchmark}-{found.profile}-"))


banner(ours.synthetic, SYNTHETIC)

# %% tags=["hide-input"]
state = "All cells have been run." if not missing else f"{missing} cells are missing; their values are holes."
Markdown(f"This page: profile `{PROFILE}`, benchmark `{ours.benchmark}`. {state}")

# %% [markdown]
# ## Validation images of the sources
#
# The poster's first table: known laboratories, new images (its headings are missing; the order of its caption and the
# size of the numbers leave no other reading).

# %% tags=["hide-input"]
show_table(ours, "table_1")

# %% [markdown]
# ### The same on real images
#
# Computed on real photographs: the probabilities of every network travel with the repository, and this page recomputed
# the table from them. From here on every table and figure is followed by its counterpart on real images, where there is
# one.

# %% tags=["hide-input"]
if not real:
    display(Markdown(no_results(session.results)))
each_real(lambda found, prefix: show_table(found, "table_1", prefix))

# %% [markdown]
# ## An unseen laboratory
#
# The poster's second table. Its laboratory INT_20 was never published; the caption names the one that stands in for it.

# %% tags=["hide-input"]
show_table(ours, "table_2")

# %% tags=["hide-input"]
schedule = ours.paper["profiles"][PROFILE]["schedule"]
turns = len(range(0, schedule["steps"], 1 + DANNSettings().d_steps))
Markdown(
    f"Rows do not train alike. Of at most {schedule['steps']:,} updates, cross-entropy trains the classifier in all of "
    f"ERM and in {turns:,} of DANN (the others are its discriminator's); `BoDA+` has its retraining in addition."
)

# %% tags=["hide-input"]
each_real(lambda found, prefix: show_table(found, "table_2", prefix))

# %% [markdown]
# The step from the first table to the second is the domain shift: how much each row changes.

# %% tags=["hide-input"]


def step_words(frame):
    """What rows change by, whether that is a loss, and how that compares with the largest difference between rows."""
    lines = []
    for metric, part in frame.groupby("metric", sort=False):
        change, apart = part["ours: change"].round(1), np.ptp(part["ours: unseen"])
        worst, lost = -change.min(), int((change < 0).sum())
        words = "No row loses anything here."
        if lost:
            words = f"{lost} of {len(part)} rows lose{'s' * (lost == 1)} here, {worst:.1f} points at most, "
            words += "more than rows differ by." if worst > apart else "less than rows differ by."
        lines.append(
            f"- {metric}: from the sources to the unseen laboratory rows change by {part['ours: change'].min():+.1f} "
            f"to {part['ours: change'].max():+.1f} points here ({part['poster: change'].min():+.0f} to "
            f"{part['poster: change'].max():+.0f} in the poster); on the unseen laboratory two rows differ by up to "
            f"{apart:.1f} points here. {words}"
        )
    return Markdown("\n".join(lines))


def step_down(found, prefix):
    known, new = (table_of(found, name) for name in ("table_1", "table_2"))
    lines = []
    for before, after in zip(known.rows, new.rows, strict=True):
        for metric, name in (("micro", "F1-micro"), ("macro", "F1-macro")):
            a, b = before.entries["Sources", metric], after.entries["INT_20", metric]
            if a.ours and b.ours:
                paper = b.paper[0] - a.paper[0]
                lines.append({"row": before.label, "metric": name, "poster: change": float(paper),
                              "ours: sources": 100 * a.ours.mean, "ours: unseen": 100 * b.ours.mean,
                              "ours: change": 100 * (b.ours.mean - a.ours.mean)})  # fmt: skip
    display(show_frame(
        pd.DataFrame(lines), f"{prefix}step.csv", "From known laboratories to an unseen one, percent (other images and "
        "in part other classes, so no interval is given)", found,
    ))  # fmt: skip
    return step_words(pd.DataFrame(lines)) if lines else Html("")


step_down(ours, "")

# %% tags=["hide-input"]
each_real(step_down)

# %% [markdown]
# ### Scores with their trials
#
# The poster's differences are one or two standard deviations at most. Here is what the intervals and single trials
# look like on the unseen laboratory, and below them the paired differences to ERM: the same images and the same
# draws of images on both sides.

# %% tags=["hide-input"]


def scores(found, prefix, metric="macro"):
    table = table_of(found, "table_2")
    if not table.any_result:
        return Html(hole(found.make_command()))
    display(banner(found.synthetic, found.caption))
    laboratory_scores_figure(table, metric, title=found.benchmark)
    plt.show()
    return source(done_cells(found), found.make_command())


def gains(found, prefix):
    table = table_of(found, "table_2")
    frames = [
        gains_frame(table, metric).assign(metric=name)
        for metric, name in (("micro", "F1-micro"), ("macro", "F1-macro"))
    ]
    frame = pd.concat(frames, ignore_index=True)
    if not len(frame):
        return Html(hole(found.make_command()))
    frame["step"] = (
        frame["row"] + ", " + frame["metric"] + [f"  (poster {p:+.0f})" if pd.notna(p) else "" for p in frame["paper"]]
    )
    display(banner(found.synthetic, found.caption))
    effects_figure(frame.sort_values(["row", "metric"], kind="stable"), title=f"change against ERM, {found.benchmark}")
    plt.show()
    display(source(done_cells(found), found.make_command()))
    columns = {
        "row": "row",
        "metric": "metric",
        "paper": "poster",
        "change": "ours",
        "low": "low",
        "high": "high",
        "trials": "trials",
    }
    return show_frame(
        frame[list(columns)].rename(columns=columns), f"{prefix}gains.csv",
        "Change against ERM on the unseen laboratory, points, with a paired 95 % interval", found,
    )  # fmt: skip


display(scores(ours, ""))
gains(ours, "")

# %% tags=["hide-input"]
each_real(scores)

# %% tags=["hide-input"]
each_real(gains)

# %% [markdown]
# ### Which weights, which classes
#
# The poster does not say which weights it scores. The same trainings, scored by the last step, by the step that was
# best on the sources (as the official code does, and our tables) and by averaged weights; and with other ideas of
# which classes a macro average is over.

# %% tags=["hide-input"]


def choices(found, prefix):
    if not table_of(found, "table_2").any_result:
        return Html(hole(found.make_command()))
    frame = scoring_frame(found, "table_2", column="INT_20", evaluator=evaluators[id(found)])
    shown = {"the paper's way": "best on the sources (our tables)", "weights of the last step": "last step",
             "averaged weights (SWAD)": "averaged (SWAD)", "classes in truth or prediction": "classes in either",
             "the whole class list": "whole class list",
             "without classes of one image": "without lone images"}  # fmt: skip
    lines = []
    for label, part in frame[frame["mean"].notna()].groupby("row", sort=False):
        value = {line["scoring"]: f"{line['mean']:.1f} ({line['place']:.0f})" for line in part.to_dict("records")}
        lines.append({"row": label, **{words: value.get(key) for key, words in shown.items()}})
    return show_frame(
        pd.DataFrame(lines), f"{prefix}scoring.csv", "F1-macro on the unseen laboratory, other choices of "
        "scoring, percent, and in brackets the place among the rows", found,
    )  # fmt: skip


choices(ours, "")

# %% tags=["hide-input"]
each_real(choices)

# %% [markdown]
# ## Confusion matrices: the smallest class followed
#
# > "Confusion matrices show an improved classification of cells from the lowly populated **lymphocyte_atypical** class
# > with our method compared to the standard ERM model"
#
# ERM beside BoDA. Followed is the poster's class where the benchmark has it, and otherwise the class with the fewest
# training images. Recall has its Wilson interval at the size of one trial's images.

# %% tags=["hide-input"]
NAMED = "lymphocyte_atypical"


def specs_of(on, *names):
    specs = {methods[name]["label"]: DomainSpec(name, selection=SELECTION, on=on) for name in names}
    assert len(specs) == len(names), f"methods share a label: {', '.join(names)}"
    return specs


def followed(found, on, laboratory):
    """The poster's class if trained on and scored, else the rarest class that is; None where nothing has run."""
    spec, evaluator = DomainSpec("erm", selection=SELECTION, on=on), evaluators[id(found)]
    if NAMED in found.classes and class_recall(evaluator, spec, laboratory, np.array([found.classes.index(NAMED)]))[0]:
        return NAMED
    code = rarest_class(found, evaluator, spec, laboratory)
    return found.classes[code] if code >= 0 else None


def matrices(found, prefix, on="test"):
    laboratory = found.held_out()[0]
    specs = specs_of(on, "erm", "boda")
    pair = {name: confusion_of(found, spec, laboratory, evaluators[id(found)]) for name, spec in specs.items()}
    pair = {name: matrix for name, matrix in pair.items() if matrix is not None}
    if not pair:
        return Html(hole(found.make_command()))
    display(banner(found.synthetic, found.caption))
    confusion_pair_figure(pair, found.classes, followed(found, on, laboratory))
    plt.show()
    where = f"unseen laboratory {laboratory}" if on == "test" else "validation rows of the sources"
    return source(
        done_cells(found, "erm", "boda"), found.make_command(), words=f"{where}, {found.benchmark}, mean of trials"
    )


display(matrices(ours, "", "val"))
matrices(ours, "")

# %% tags=["hide-input"]
each_real(lambda found, prefix: matrices(found, prefix, "val"))

# %% tags=["hide-input"]
each_real(matrices)

# %% tags=["hide-input"]


def tail(found, prefix):
    lines, laboratory, evaluator = [], found.held_out()[0], evaluators[id(found)]
    for on, where in (("val", "validation rows"), ("test", f"unseen: {laboratory}")):
        name = followed(found, on, laboratory)
        if name is None:
            continue
        trained = source_counts(found, held_out=laboratory)
        code = np.array([found.classes.index(name)])
        for label, spec in specs_of(on, "erm", "boda", "boda_plus").items():
            estimate, hits, images = class_recall(evaluator, spec, laboratory, code)
            if estimate is None:
                continue
            low, high = (100 * float(v) for v in wilson_interval(hits, images))
            lines.append({"class": name, "training images": int(trained[1][:, code].sum()), "scored on": where,
                          "row": label, "right": hits, "of": images, "recall": 100 * hits / images, "low": low,
                          "high": high, "sd": None if estimate.std is None else 100 * estimate.std})  # fmt: skip
    return show_frame(
        pd.DataFrame(lines), f"{prefix}tail.csv",
        "The followed class: right images (mean of trials), recall with its Wilson interval and its sd over trials, "
        "percent", found,
    )  # fmt: skip


tail(ours, "")

# %% tags=["hide-input"]
each_real(tail)

# %% [markdown]
# A better recall is bought somewhere: a matrix has columns as well. The last classifier, retrained on balanced draws,
# names rare classes more often, right or wrong. How often each row names the followed class on the unseen laboratory,
# and how often that is true:

# %% tags=["hide-input"]


def named(found, prefix):
    laboratory = found.held_out()[0]
    name = followed(found, "test", laboratory)
    lines = []
    for label, spec in specs_of("test", *[m for m in methods if m in {x.method for x in found.members}]).items():
        matrix = confusion_of(found, spec, laboratory, evaluators[id(found)])
        if matrix is None or name is None:
            continue
        code = found.classes.index(name)
        said, right = matrix[:, code].sum(), matrix[code, code]
        low, high = (100 * float(v) for v in wilson_interval(right, said)) if said else (None, None)
        lines.append({"row": label, "class": name, "images": matrix[code].sum(), "named": said, "rightly": right,
                      "precision": 100 * right / said if said else None, "low": low, "high": high})  # fmt: skip
    return show_frame(
        pd.DataFrame(lines), f"{prefix}named.csv", "How often a row names the followed class (mean of trials), and its "
        "precision with a Wilson interval, percent", found,
    )  # fmt: skip


named(ours, "")

# %% tags=["hide-input"]
each_real(named)

# %% [markdown]
# ## A class that one source laboratory has
#
# BoDA has no positive pair for it ([why](boda)). What happens to its cells in a laboratory that neither source has
# seen? Recall of every class on the unseen laboratory, with the number of sources that have it. A class in one source
# can only be learned together with that source's look.

# %% tags=["hide-input"]


def lonely(found, prefix):
    laboratory = found.held_out()[0]
    frame = recall_frame(
        found, specs_of("test", "erm", "coral", "boda", "boda_plus"), laboratory, evaluators[id(found)]
    )
    if not len(frame) or "sources with it" not in frame:
        return Html(hole(found.make_command()))
    frame = frame.sort_values(["sources with it", "class"], kind="stable")
    return show_frame(
        frame, f"{prefix}classes.csv", f"Training images in each source, and recall on the unseen {laboratory} "
        "(percent, mean of trials; – where it has no image of the class)", found,
    )  # fmt: skip


lonely(ours, "")

# %% tags=["hide-input"]
each_real(lonely)

# %% tags=["hide-input"]


def lonely_figure(found, prefix):
    laboratory, evaluator = found.held_out()[0], evaluators[id(found)]
    counts = source_counts(found, preset="paper", held_out=laboratory)
    rows = {
        label: [(d.labels[d.rows], d.codes[d.rows]) for d in evaluator.decided(spec, laboratory).values()]
        for label, spec in specs_of("test", "erm", "boda", "boda_plus").items()
    }
    rows = {label: trials for label, trials in rows.items() if trials}
    if counts is None or not rows:
        return Html(hole(found.make_command()))
    number = (counts[1] > 0).sum(0)
    names = tuple(f"{name}{' (1 source)' if n == 1 else ''}" for name, n in zip(found.classes, number, strict=True))
    display(banner(found.synthetic, found.caption))
    recall_figure(rows, names, counts[1].sum(0))
    plt.show()
    words = f"unseen laboratory {laboratory}, {found.benchmark}; n: training images of all sources"
    return source(done_cells(found, "erm", "boda", "boda_plus"), found.make_command(), words=words)


lonely_figure(ours, "")

# %% tags=["hide-input"]
each_real(lonely_figure)

# %% [markdown]
# And where do its images go? The three answers that ERM and BoDA give most often for images of such classes (and of the
# followed one):

# %% tags=["hide-input"]


def mistaken(found, prefix):
    laboratory = found.held_out()[0]
    counts = source_counts(found, preset="paper", held_out=laboratory)
    lines = []
    if counts is not None:
        single = [found.classes[c] for c in np.flatnonzero((counts[1] > 0).sum(0) == 1)]
        wanted = dict.fromkeys([*single, *filter(None, [followed(found, "test", laboratory)])])
        for name in wanted:
            code = found.classes.index(name)
            for label, spec in specs_of("test", "erm", "boda").items():
                matrix = confusion_of(found, spec, laboratory, evaluators[id(found)])
                if matrix is None or not matrix[code].sum():
                    continue
                share = 100 * matrix[code] / matrix[code].sum()
                top = [c for c in np.argsort(-share, kind="stable")[:3] if share[c] > 0]
                answers = "; ".join(f"{found.classes[c]} {share[c]:.0f} %" for c in top)
                lines.append({"class": name, "sources with it": int((counts[1][:, code] > 0).sum()), "row": label,
                              "images": matrix[code].sum(), "most frequent answers": answers})  # fmt: skip
    if counts is not None and not lines:
        return Markdown(f"*{laboratory} has no image of a class that one source only has.*")
    return show_frame(pd.DataFrame(lines), f"{prefix}answers.csv", f"Answers on the unseen {laboratory}", found)


mistaken(ours, "")

# %% tags=["hide-input"]
each_real(mistaken)

# %% [markdown]
# ## The poster's loss beside the official code's
#
# Preset `paper` has the poster's loss; preset `code` adds the CORAL-like penalty and takes the mean instead of the sum.
# CORAL stands beside them: if the penalty does the work, `code` resembles it.

# %% tags=["hide-input"]


def rows_beside(found, wanted):
    """Micro and macro of (label, preset, method) rows on the unseen laboratory, and their change against ERM."""
    laboratory, evaluator, lines = found.held_out()[0], evaluators[id(found)], []
    erm = DomainSpec("erm", selection=SELECTION)
    for label, preset, method in wanted:
        if not found.find(preset=preset, method=method):
            continue
        spec, line = DomainSpec(method, preset, SELECTION), {"row": label}
        for metric, name in (("micro_f1", "F1-micro"), ("macro_f1", "F1-macro")):
            value = evaluator.estimate(spec, (laboratory,), metric)
            change = evaluator.difference(spec, erm, (laboratory,), metric) if method != "erm" else None
            if value is None:
                command = max((m.tier for m in found.find(preset=preset, method=method)), default=0)
                line |= {name: Html(hole(found.make_command(command))), f"{name} against ERM": None}
                continue
            low, high = (100 * v for v in value.interval())
            spread = f" ± {100 * value.std:.1f}" if value.std is not None else ""
            line[name] = f"{100 * value.mean:.1f}{spread} [{low:.1f}, {high:.1f}]"
            if change:
                low, high = (100 * v for v in change.interval())
                line[f"{name} against ERM"] = f"{100 * change.mean:+.1f} [{low:+.1f}, {high:+.1f}]"
            line["trials"] = value.folds
        lines.append(line)
    columns = ["row", "F1-micro", "F1-micro against ERM", "F1-macro", "F1-macro against ERM", "trials"]
    return pd.DataFrame(lines, dtype=object).reindex(columns=columns)


def presets(found, prefix):
    wanted = [("ERM", "paper", "erm"), ("CORAL", "paper", "coral"), ("BoDA, preset paper", "paper", "boda"),
              ("BoDA, preset code", "code", "boda")]  # fmt: skip
    return show_frame(
        rows_beside(found, wanted), f"{prefix}presets.csv",
        "Two forms of BoDA on the unseen laboratory: percent ± sd over trials [95 %], change in points", found,
    )  # fmt: skip


presets(ours, "")

# %% tags=["hide-input"]
each_real(presets)

# %% tags=["hide-input"]


def penalty_effect(found, prefix):
    laboratory, evaluator = found.held_out()[0], evaluators[id(found)]
    code, poster, coral = (
        DomainSpec(m, p, SELECTION) for m, p in (("boda", "code"), ("boda", "paper"), ("coral", "paper"))
    )
    lines = []
    for words, left, right in (("code - paper", code, poster), ("code - CORAL", code, coral)):
        for metric, name in (("micro_f1", "F1-micro"), ("macro_f1", "F1-macro")):
            change = evaluator.difference(left, right, (laboratory,), metric)
            if change is not None:
                low, high = (100 * v for v in change.interval())
                lines.append({"difference": words, "metric": name, "points": 100 * change.mean, "low": low,
                              "high": high, "trials": change.folds})  # fmt: skip
    return show_frame(
        pd.DataFrame(lines), f"{prefix}penalty.csv", "BoDA with the code's penalty against without, and against CORAL: "
        "paired differences with 95 % intervals", found,
    )  # fmt: skip


penalty_effect(ours, "")

# %% tags=["hide-input"]
each_real(penalty_effect)

# %% [markdown]
# ## All rows
#
# Rows that no table of the poster has: BoDA with the cross-entropy in its printed, binary form, and MixStyle, a method
# that mixes the statistics of features and was added for [the page on adding methods](../book/extend.md). They run when
# asked for (`--more 1`).

# %% tags=["hide-input"]


def all_rows(found, prefix):
    pairs = dict.fromkeys((m.preset, m.method) for m in found.members)
    wanted = []
    for preset, method in pairs:
        wanted.append((methods[method]["label"] + (" (code)" if preset == "code" else ""), preset, method))
    return show_frame(
        rows_beside(found, wanted), f"{prefix}all.csv",
        "Every row on the unseen laboratory: percent ± sd over trials [95 %], change in points", found,
    )  # fmt: skip


all_rows(ours, "")

# %% tags=["hide-input"]
each_real(all_rows)

# %% [markdown]
# ## Can the laboratory still be told from the features?
#
# Alignment promises features that do not tell the laboratory. Below, features of the first trial's networks in two
# dimensions by t-SNE {cite:p}`maaten2008`: before training, after ERM, after BoDA. (Near neighbours mean something,
# the distance between far groups does not.)

# %% tags=["hide-input"]
embedded = {}
for cell, stored in session.find(figure="embeddings"):
    if stored is not None:
        name = cell.labels["method"]
        with np.load(stored.folder / "embeddings.npz") as arrays:
            embedded[methods[name]["label"] if name in methods else "before training"] = dict(arrays), cell
cells = [cell.id for _, cell in embedded.values()]
if embedded:
    panels = {
        name: (project(a["features"]), a["domains"], np.array(ours.classes)[a["labels"]])
        for name, (a, _) in embedded.items()
    }
    size = 9 if min(len(points) for points, *_ in panels.values()) > 100 else 30
    embedding_figure(panels, next(iter(embedded.values()))[1].labels["held_out"], size)
    plt.show()
source(cells, session.plan.make_command(), words=ours.benchmark) if cells else Html(hole(session.plan.make_command()))

# %% [markdown]
# A picture can deceive; a probe counts. A linear classifier is fitted on the features to name the laboratory, and
# another one to name the class, both scored by cross-validation. Laboratories hold different classes, so some of the
# laboratory can be told from the true class alone: that column is the floor that no alignment can be asked to go below.

# %% tags=["hide-input"]
if embedded:
    frame = probe_frame({name: a for name, (a, _) in embedded.items()})
    lines = []
    for line in frame.to_dict("records"):
        told = {w: f"{line[w]:.0f} [{line[f'{w}, low']:.0f}, {line[f'{w}, high']:.0f}]"
                for w in ("laboratory", "laboratory from the class", "class")}  # fmt: skip
        lines.append({"features": line["features"], "laboratory": told["laboratory"],
                      "laboratory, from the class alone": told["laboratory from the class"],
                      "largest laboratory": line["largest laboratory"], "class": told["class"],
                      "images": line["images"]})  # fmt: skip
    shown = frame_html(
        pd.DataFrame(lines), "probe.csv", synthetic=SYNTHETIC, command=session.plan.make_command(), cells=cells,
        caption="What a linear probe can tell from features: percent right [95 % Wilson interval]",
    )  # fmt: skip
else:
    shown = Html(hole(session.plan.make_command()))
display(shown)

# %% [markdown]
# :::{admonition} Summary
# :class: tip
# - What each row changes by on the step to an unseen laboratory has to be seen beside what the rows differ by: both are
#   counted below the tables.
# - Five trials share one test set. Their spread is no interval for the class with a dozen images; its Wilson
#   interval is.
# - What a class that lives in one source gains has to be looked at by itself, with what it costs in precision.
# - Which form of the loss ran (sum or mean, with or without the penalty) belongs beside every number.
# - Whether the poster's claims hold here is the subject of the [next chapter](boda_findings).
# :::
#
# ## Exercises
#
# **1.** Eleven images of a class, five folds: how many does a validation fold have, and what does one more right
# image do to the class's recall, and to a macro-F1 over thirteen classes (roughly)?

# %% tags=["hide-input"]
fold = 11 / 5
low, high = (100 * float(v) for v in wilson_interval(1, 2))
Markdown(f""":::{{admonition}} Solution
:class: dropdown
About {fold:.0f}. One more right image moves the recall by {100 / round(fold):.0f} points, and the macro-F1 by up to a
thirteenth of that, {100 / round(fold) / 13:.1f} points: more than most differences between rows. The Wilson interval of
1 of 2 runs from {low:.0f} % to {high:.0f} %.
:::""")

# %% [markdown]
# **2.** `BoDA+` and `BoDA` have the same features. Which columns of the confusion matrix must grow if only the
# classifier's prior changes?

# %% tags=["hide-input"]


def retrained_words(runs):
    """What retraining does to the F1-micro where the frequencies are those of training; empty where nothing has run."""
    parts, rises = [], False
    for found in runs:
        rows = {row.label: row.entries["Sources", "micro"].ours for row in table_of(found, "table_1").rows}
        before, after = rows["BoDA"], rows["BoDA+"]
        if before and after:
            parts.append(f"from {100 * before.mean:.1f} to {100 * after.mean:.1f} % on `{found.benchmark}`")
            rises |= after.mean > before.mean
    words = f" On the sources' own validation rows it goes {' and '.join(parts)}." if parts else ""
    why = " Here it rises: the first classifier was not trained to the end, so more than the prior has changed."
    return words + why * rises


Markdown(f""":::{{admonition}} Solution
:class: dropdown
Those of classes that are rarer in training than on average: with balanced draws the classifier no longer counts
them as unlikely beforehand. Their recall grows and their precision falls, and the F1-micro, which the frequent
classes decide, falls wherever the sources' frequencies hold.{retrained_words([ours, *real])}
:::""")

# %% [markdown]
# **3.** A probe tells the laboratory in 70 % of images and the class alone in 60 %. A second network's features
# give 60 %. Is it better aligned? Is it necessarily better on an unseen laboratory?
#
# :::{admonition} Solution
# :class: dropdown
# Better aligned, as far as a linear probe sees and if the difference is not noise. Not necessarily better: features
# that say nothing at all are perfectly aligned. Look at the class column too; and an unseen laboratory may differ
# in a direction in which the sources did not.
# :::
