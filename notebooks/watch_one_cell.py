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
# # Watch one cell
#
# A table says how many cells were rescued. This page shows three of them on their way through the
# [pipeline](rescue) of `rescue` {cite:p}`nguyen2026rescue`: one that was rightly relabelled, one on which the rules
# were wrong, and one rare cell that nobody noticed. For each: the picture at every stage, what both branches said, and
# how far it was from each threshold. It is the paper's Fig. 2 with a real image in each of its boxes, where the data
# are real.

# %% tags=["hide-input"]
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from IPython.display import Markdown, display

from wbcrepro.data.pixels import PixelCache
from wbcrepro.report.figures import PALETTE, use_style
from wbcrepro.report.page import Html, banner, frame_html, hole, source
from wbcrepro.report.rescue_frames import phases_frame
from wbcrepro.report.rescue_predictions import from_rescue_plan
from wbcrepro.rescue.trace import CUE_NAMES, REASONS, explain
from wbcrepro.session import open_session

torch.set_num_threads(1)
use_style()
session = open_session("rescue", PROFILE, STORE, DATA, DATASET, RESULTS, WEIGHTS, ACCUMULATE)
missing = session.run_missing()
benchmark, classes = session.benchmark, list(session.benchmark.classes)
table = benchmark.table
ours = from_rescue_plan(session.plan, session.store)
paper = ours.paper
SYNTHETIC = benchmark.caption if session.synthetic else ""
command = session.plan.make_command()
SETS = ("test_degraded", "test", "oof")
SET_WORDS = {"test_degraded": "degraded test images", "test": "test images", "oof": "training images, out of fold"}
RULES = [name for name in ("paper", "fitted", "code") if ours.rescue_of(name)]
traces = {(name, on): ours.trace(name, on) for name in RULES for on in SETS}
traces = {key: found for key, found in traces.items() if found}
banner(session.synthetic, SYNTHETIC)

# %% [markdown]
# ## What can become of an image
#
# A trace ends with a reason. Here is how often each occurs, under Algorithm 1 with its boosts by inverse log-frequency
# (`paper`), the same with fitted boosts (`fitted`), and the released script (`code`).

# %% tags=["hide-input"]
lines = {}
for name in RULES:
    for row in phases_frame(ours, name).itertuples(index=False):
        line = lines.setdefault((name, row[1]), {"rules": name, "ended with": row[1].replace("_", " "),
                                                 "meaning": REASONS[row[1]], **dict.fromkeys(SET_WORDS.values(), "0")})
        line[SET_WORDS[row[0]]] = f"{row[2]} ({row[3]})"
display(frame_html(
    pd.DataFrame(lines.values()), "reasons.csv", synthetic=SYNTHETIC, command=command,
    caption="How every image's way ended: images, and in brackets how many of them have their true label at the end",
    cells=[ours.rescue_of(name).id for name in RULES],
) if lines else Html(hole(command)))  # fmt: skip
for name in RULES:
    if ours.rules(name).idle:
        display(Markdown(f"Rules `{name}`: neither rule is in force here, so nothing is asked."))

# %% [markdown]
# ## How the three cells were chosen
#
# By this rule, so that nobody picked the pretty ones. Rules are tried in the order `paper`, `fitted`, `code`; within
# each the degraded test images, the test images, the training images out of fold; within those the order of their
# names. The *first* image is taken that fits:
#
# - **rescued**: a rare cell that was called something else and has its own name at the end;
# - **wrong**: another cell that was made rare; if there is none, a rare cell that surfaced as what it is and was
#   stopped;
# - **missed**: a rare cell that stayed below the limit of phase 1; if there is none, one that surfaced and was stopped,
#   and last one whose class has no rule in force ([why](thresholds) a rule is switched off).

# %%
def chosen(kinds):
    """(rules, set, position, how many there were) of the first image for which one of the conditions holds."""
    for condition in kinds:
        for (name, on), (scored, trace) in traces.items():
            rows = np.flatnonzero(condition(trace, scored.labels))
            if len(rows):
                return name, on, int(rows[np.argsort(scored.ids[rows], kind="stable")][0]), len(rows)
    return None


def rare(trace, codes):
    return np.isin(codes, [classes.index(rule.name) for rule in trace.rules.rare])


def rescued(t, y):
    return rare(t, y) & (t.final == y) & (t.base != y)


def wrongly_rescued(t, y):
    return rare(t, t.final) & (t.final != y) & (t.base != t.final)


def stopped(t, y):
    return rare(t, y) & (t.candidate == y) & (t.final != y)


def unseen(t, y):
    return rare(t, y) & (t.final != y) & (t.candidate != y) & (t.nearest == y)


def unruled(t, y):
    return rare(t, y) & (t.final != y)


choices = {"rescued": chosen([rescued]), "wrong": chosen([wrongly_rescued, stopped]),
           "missed": chosen([unseen, stopped, unruled])}  # fmt: skip

# %% tags=["hide-input"]
def ancestor(cell_id, kind):
    """The nearest stored ancestor of a kind."""
    pending = [cell_id]
    while pending:
        here = pending.pop(0)
        if here.startswith(f"{kind}-"):
            return session.store.get(here)
        pending += session.plan.cell(here).parents
    return None


def pictures(member, item):
    """Everything that the store has of one image: raw, isolated, restored, what networks see, masks in the window."""
    cells, restored = ancestor(member.id, "cells"), ancestor(member.id, "restored")
    pixels = ancestor(member.id, "pixels")
    if not (cells and restored and pixels):
        return None
    raw, alone, seen = (
        np.ascontiguousarray(PixelCache.open(found.folder / "pixels").images[item].transpose(1, 2, 0))
        for found in (pixels, cells, restored)
    )
    with np.load(cells.folder / "cells.npz") as file:
        size = len(alone)
        masks = [np.unpackbits(file[k][item], axis=-1, count=size).astype(bool) for k in ("cell", "nucleus")]
        centroid, status = file["centroid"][item], str(file["status"][item])
    with np.load(restored.folder / "noise.npz") as file:
        place, score = np.flatnonzero(file["rows"] == item), float(file["score"][item])
    whole = np.load(restored.folder / "full.npy", mmap_mode="r")[place[0]].transpose(1, 2, 0) if len(place) else None
    return {"raw": raw, "isolated": alone, "restored": whole, "seen": seen, "cell": masks[0], "nucleus": masks[1],
            "centroid": centroid, "status": status, "score": score,
            "noisy from": restored.metrics["threshold"]}  # fmt: skip


def outline(axis, mask, colour, offset=(0, 0)):
    if mask.any():
        rows, columns = np.arange(mask.shape[0]) + offset[1], np.arange(mask.shape[1]) + offset[0]
        axis.contour(columns, rows, mask, levels=[0.5], colors=[colour], linewidths=1.4)


def draw_pictures(axes, found):
    size = len(found["isolated"])
    axes[0].imshow(found["raw"])
    if np.isfinite(found["centroid"]).all():
        offset = found["centroid"].astype(int) - size // 2
        limits = axes[0].axis()
        outline(axes[0], found["cell"], "#111111", offset)
        outline(axes[0], found["nucleus"], PALETTE[4], offset)
        axes[0].axis(limits)
    axes[1].imshow(found["isolated"])
    if found["restored"] is None:
        axes[2].text(0.5, 0.5, "left as it is:\nnot noisy", ha="center", va="center", fontsize=8, color="#444444",
                     transform=axes[2].transAxes)  # fmt: skip
    else:
        axes[2].imshow(found["restored"])
    axes[3].imshow(found["seen"])
    axes[4].imshow(found["isolated"] if found["restored"] is None else found["restored"])
    if found["cell"].any() and found["nucleus"].any():
        outline(axes[4], found["cell"], "#111111")
        outline(axes[4], found["nucleus"], PALETTE[4])
        (ny, nx), (cy, cx) = (np.argwhere(found[k]).mean(0) for k in ("nucleus", "cell"))
        edge = np.argwhere(found["cell"])
        far = edge[np.hypot(edge[:, 0] - cy, edge[:, 1] - cx).argmax()]
        axes[4].plot([cx, far[1]], [cy, far[0]], color=PALETTE[1], lw=1.4)
        axes[4].plot([cx, nx], [cy, ny], color="white", lw=2.4, marker="o", ms=4)
        axes[4].plot([cx, nx], [cy, ny], color="black", lw=1.0, marker="o", ms=2)
    heads = (f"raw ({found['status'].replace('_', ' ')})", "isolated",
             f"restored\n(noise {found['score']:.1f}, from {found['noisy from']:.1f})", "cropped: what\nnetworks see",
             "measured")  # fmt: skip
    for axis, words in zip(axes, heads, strict=True):
        axis.set_title(words, fontsize=8)
        axis.set_axis_off()


def draw_branches(axis, both, trace, i, label):
    place = np.arange(len(classes))
    for k, (name, colour) in enumerate((("first branch", PALETTE[0]), ("second branch", PALETTE[4]))):
        axis.barh(place - 0.2 + 0.4 * k, both[k], 0.38, color=colour, label=name, edgecolor="#333333", lw=0.4,
                  hatch=(None, "////")[k])  # fmt: skip
    marks = {label: "truth", int(trace.base[i]): "base", int(trace.final[i]): "final"}
    words = {c: [w for w, code in (("truth", label), ("base", trace.base[i]), ("final", trace.final[i])) if code == c]
             for c in marks}  # fmt: skip
    for code, said in words.items():
        axis.text(max(both[0, code], both[1, code]) + 0.02, code, ", ".join(said), va="center", fontsize=8)
    axis.set_yticks(place, classes, fontsize=8)
    axis.set(xlim=(0, 1.32), xlabel="probability")
    axis.set_xticks([0, 0.25, 0.5, 0.75, 1])
    axis.invert_yaxis()
    axis.legend(loc="lower center", bbox_to_anchor=(0.45, 1.0), ncols=2, fontsize=8, columnspacing=1)


def phase_words(trace, i, k):
    name = classes[trace.nearest[i]] if trace.nearest[i] >= 0 else "no rule in force"
    return (f"Phase 1: boosted P({name}) against the best common class",
            f"Phase 2: second branch's P({name}) against τ",
            f"Phase 3: {CUE_NAMES[trace.rules.of(name).cue] if trace.nearest[i] >= 0 else ''} against its limit")[k]


def draw_phase(axis, trace, i, k):
    value, limit, margin = (float(getattr(trace, n)[i, k]) for n in ("value", "limit", "margin"))
    axis.set_yticks([])
    axis.grid(False)
    axis.spines["left"].set_visible(False)
    axis.tick_params(axis="x", labelsize=8)
    axis.set_title(phase_words(trace, i, k), fontsize=8.5, loc="left")
    reached = k == 0 or trace.passed[i, :k].all()
    if not reached or np.isnan(value) or np.isnan(limit):
        axis.set_xticks([])
        axis.text(0.5, 0.5, "not measurable" if reached else "not reached", ha="center", va="center", color="#555555",
                  transform=axis.transAxes, fontsize=9)  # fmt: skip
        axis.spines["bottom"].set_visible(False)
        return
    low, high = min(value, limit), max(value, limit)
    if high > 20 * max(low, 1e-12) and low > 0:
        axis.set_xscale("log")
        left, right = low / 3, high * 3
    else:
        pad = max(0.35 * (high - low), 0.08 * abs(high), 1e-3)
        left, right = low - pad, high + pad
        left = max(left, 0) if low >= 0 else left
    axis.set_xlim(left, right)
    above = margin >= 0 and value >= limit or margin < 0 and value < limit
    axis.axvspan(*((limit, right) if above else (left, limit)), color=PALETTE[5], alpha=0.35, lw=0)
    axis.text(0.99 if above else 0.01, 0.83, "passes", transform=axis.transAxes, ha="right" if above else "left",
              fontsize=8, color="#0b4a6b")  # fmt: skip
    axis.axvline(limit, color="black", lw=1.5)
    guess = 1 / len(classes)
    if k == 1 and left < guess < right:
        axis.axvline(guess, color="#555555", lw=0.9, ls=":")
        axis.text(guess, 0.04, " 1/C", fontsize=7, color="#555555")
    axis.plot(value, 0.4, marker="D" if trace.passed[i, k] else "X", ms=9, color=PALETTE[1], mec="black", mew=0.7,
              clip_on=False)  # fmt: skip
    axis.set_ylim(0, 1)
    verdict = "passed" if trace.passed[i, k] else "stopped"
    axis.set_xlabel(f"value {value:.4g}, limit {limit:.4g}, margin {margin:+.2g}: {verdict}", fontsize=8)


def watch(choice):
    """One cell's way in one figure; below it, the trace in words and in numbers."""
    name, on, i, among = choice
    scored, trace = traces[name, on]
    member, label = ours.rescue_of(name), int(scored.labels[i])
    table_set = "train" if on == "oof" else on
    item = int(np.flatnonzero((table["set"] == table_set) & (table["id"] == scored.ids[i]))[0])
    found = pictures(member, item)
    both = ours.part(member, "predictions")[f"{on}_probabilities"][i].astype(float)
    fig = plt.figure(figsize=(7.2, 6.4))
    top, below = fig.subfigures(2, 1, height_ratios=(1, 2.75))
    axes = top.subplots(1, 5)
    if found is None:
        for axis in axes:
            axis.set_axis_off()
        axes[2].text(0.5, 0.5, "the store has no pictures of it", ha="center", transform=axes[2].transAxes)
    else:
        draw_pictures(axes, found)
    left, right = below.subfigures(1, 2, width_ratios=(1, 1.25))
    draw_branches(left.subplots(), both, trace, i, label)
    for k, axis in enumerate(right.subplots(3, 1)):
        draw_phase(axis, trace, i, k)
    display(banner(session.synthetic, SYNTHETIC))
    plt.show()
    cells = [s.id for s in (ancestor(member.id, k) for k in ("pixels", "cells", "restored")) if s] + [member.id]
    display(source(cells, command, words=f"{scored.ids[i]} of the {SET_WORDS[on]}, rules {name}"))
    many = f"{among} such image{'s' * (among > 1)} in that set"
    display(Markdown(f"`{scored.ids[i]}`, a {classes[label]} ({SET_WORDS[on]}; rules `{name}`; {many}).\n\n"
                     + "\n".join(f"- {line}" for line in explain(trace, i))))  # fmt: skip


def shown(kind):
    if choices[kind]:
        watch(choices[kind])
    elif traces:
        n = sum(len(trace) for _, trace in traces.values())
        display(Markdown(f"*There is no such image: {n} traces were searched (three sets of images, "
                         f"{len(RULES)} sets of rules).*"))  # fmt: skip
    else:
        display(Html(hole(command)))


# %% [markdown]
# In each figure below: the raw image with the outlines that were found (black: cell, orange: nucleus); the cell alone;
# what the restoration painted, if the noise filter asked for it; what the networks read; and what is measured (orange
# line: largest distance from the centroid; black line: from the cell's centroid to the nucleus's). Below, the
# probabilities of both branches, and each phase as a line: the value, the limit, and the side on which it passes. The
# dotted line of phase 2, where it lies within the axis, is a guess that is the same for all $C$ classes.
#
# ## A cell that was rescued

# %% tags=["hide-input"]
shown("rescued")

# %% [markdown]
# ## A cell on which the rules were wrong

# %% tags=["hide-input"]
shown("wrong")

# %% [markdown]
# ## A cell that was missed

# %% tags=["hide-input"]
shown("missed")

# %% [markdown]
# ## Any other cell
#
# `watch((rules, set, position, 1))` draws any image of the store, for instance the first of a class:

# %%
def nth(label, name, on, n=0):
    """What `watch` takes for the n-th image of a class."""
    rows = np.flatnonzero(traces[name, on][0].labels == classes.index(label))
    return name, on, int(rows[n]), len(rows)


# watch(nth("PC", "fitted", "test"))

# %% [markdown]
# ## Summary
#
# - A trace says more than a label: which question stopped the cell, and how closely.
# - Phase 1 compares probabilities of one model with each other, phase 2 a probability with a constant, phase 3 a
#   measurement with a constant. Their margins have different units.
# - A measurement is made on the restored picture, with the mask of the picture before it. If either is wrong, phase 3
#   answers a question about another cell.
#
# ## Exercises
#
# **1.** How many images carry a rare label that Algorithm 1 never questioned? How many of those are right?

# %% tags=["hide-input"]
lines = []
for (name, on), (scored, trace) in traces.items():
    if trace.rules.mode == "paper":
        kept = rare(trace, trace.base) & (trace.final == trace.base)
        checked = kept & (trace.reason == "confirmed")
        right = int((kept & ~checked & (trace.final == scored.labels)).sum())
        lines.append(f"- rules `{name}`, {SET_WORDS[on]}: {int((kept & ~checked).sum())} kept a rare base label "
                     f"although a phase said no, or without being asked; {right} of them rightly.")  # fmt: skip
Markdown(""":::{admonition} Solution
:class: dropdown
Algorithm 1 returns `y_base` whenever a phase fails, also where that is PLY or PC.

""" + ("\n".join(lines) or "(The cells are missing.)") + "\n:::")

# %% [markdown]
# **2.** Which threshold stops most of the rare cells that had surfaced? Is that also where most of the wrong candidates
# are stopped?

# %% tags=["hide-input"]
def stops(trace, labels):
    """For right and for wrong candidates: (how many there are, {phase: how many it stops})."""
    surfaced = trace.candidate >= 0
    right = surfaced & (trace.candidate == labels)
    here = {k + 1: trace.passed[:, k - 1] & ~trace.passed[:, k] for k in (1, 2)}
    return [(int(rows.sum()), {k: int((mask & rows).sum()) for k, mask in here.items()})
            for rows in (right, surfaced & ~right)]  # fmt: skip


def where_most(n, stopped):
    """The phase that stops more of ``n`` candidates, or None, and that in words."""
    if stopped[2] == stopped[3]:
        return None, f"both phases stop {stopped[2]} of {n}"
    phase = max(stopped, key=stopped.get)
    return phase, f"phase {phase} stops more ({stopped[phase]} of {n})"


def answers(traces):
    """A line for each set with candidates, and an answer from the first that has right and wrong ones."""
    lines, answer = [], "No set here has both right and wrong candidates."
    found = {key: stops(trace, scored.labels) for key, (scored, trace) in traces.items() if key[1] != "test"}
    for (name, on), ((n, right), (m, wrong)) in found.items():
        if n + m:
            lines.append(f"- rules `{name}`, {SET_WORDS[on]}: of {n} right candidates phase 2 stops {right[2]} and "
                         f"phase 3 {right[3]}, of {m} wrong ones {wrong[2]} and {wrong[3]}.")  # fmt: skip
    for (name, on), (right, wrong) in found.items():
        if right[0] and wrong[0]:
            (a, of_right), (b, of_wrong) = where_most(*right), where_most(*wrong)
            end = "cannot be said" if None in (a, b) else "the same phase" if a == b else "not the same"
            answer = (f"Under `{name}`, {SET_WORDS[on]}: of the right candidates {of_right}, of the wrong ones "
                      f"{of_wrong}: {end}.")  # fmt: skip
            break
    return [*lines, "", answer]


Markdown(""":::{admonition} Solution
:class: dropdown
""" + ("\n".join(answers(traces)) if traces else "(The cells are missing.)") + "\n:::")

# %% [markdown]
# **3.** The outline comes from the image *before* restoration, the grey levels from the image after it. When could that
# matter, and for which of the two cues?
#
# :::{admonition} Solution
# :class: dropdown
# Noise at the border of the cell frays the outline. That raises the largest radius and hence the spikiness, whatever
# the restoration does later, so degraded LY can look like PLY. The Mahalanobis features use areas and centroids, which
# average over many pixels, and grey levels, which the restoration does change. One can measure it: compare the
# spikiness of each test image with that of its degraded copy.
# :::
