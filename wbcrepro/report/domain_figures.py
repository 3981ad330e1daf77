"""Figures of unseen laboratories from frames and arrays: sized for the page, light background, colour-blind safe.

Whatever a colour says, a marker, a line style or a word says too. Callers say in the caption what is synthetic.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from wbcrepro.metrics import wilson_interval
from wbcrepro.report.domain_tables import DomainTable
from wbcrepro.report.figures import PALETTE, WIDTH

MARKERS = "osD^v<>"
STYLES = ("-", "--", ":", "-.")
SLANTED = {"rotation": 40, "ha": "right", "rotation_mode": "anchor"}
TAIL = "#D55E00"
"""Colour of what is followed through a figure; it is framed or written as well."""
METRIC_WORDS = {"micro": "F1-micro", "macro": "F1-macro", "accuracy": "accuracy"}


def laboratories_figure(counts: Mapping[str, np.ndarray], classes: Sequence[str], title: str = "") -> Figure:
    """Laboratories by class: images in each cell, colour on a logarithmic scale, the rarest filled class framed.

    ``counts``: ``{laboratory: images per class (C,)}``. A class that a laboratory lacks is blank, a dash.
    """
    table = np.array([counts[name] for name in counts])
    figure, axis = plt.subplots(figsize=(WIDTH, 0.42 * len(table) + 0.09 * max(map(len, classes)) + 0.9))
    shown = np.ma.masked_equal(table, 0)
    image = axis.imshow(shown, cmap="Blues", norm=LogNorm(1, max(int(table.max()), 2)), aspect="auto")
    axis.grid(False)
    for (row, column), value in np.ndenumerate(table):
        dark = value > 0 and image.norm(value) > 0.6
        axis.text(column, row, f"{value:,}" if value else "–", ha="center", va="center", fontsize=9,
                  color="white" if dark else "#222222")  # fmt: skip
    for row, line in enumerate(table):
        filled = line[line > 0]  # a laboratory whose classes are all alike has no rarest one
        rarest = np.flatnonzero(line == filled.min()) if len(filled) and filled.min() < filled.max() else []
        for column in rarest:
            axis.add_patch(
                Rectangle((column - 0.48, row - 0.46), 0.96, 0.92, fill=False, edgecolor=TAIL, linewidth=1.6)
            )
    axis.set_xticks(range(len(classes)), classes, **SLANTED)
    axis.set_yticks(range(len(table)), [f"{name} ({line.sum():,})" for name, line in zip(counts, table, strict=True)])
    axis.set(ylabel="laboratory (images)", title=title or "framed: the rarest class of a laboratory")
    _bare(axis)
    figure.colorbar(image, ax=axis, shrink=0.9, pad=0.02).set_label("images")
    return figure


def laboratory_scores_figure(table: DomainTable, metric: str = "macro", title: str = "") -> Figure:
    """Scores of every method per held-out laboratory with their intervals; small ticks are single trials, a hollow
    marker is a method with one trial only."""
    columns = [c for c in table.columns if c.laboratories]
    rows = [r for r in table.rows if any(r.entries[c.label, metric].ours for c in columns)]
    figure, axis = plt.subplots(figsize=(WIDTH, max(2.4, 0.17 * len(columns) * (len(rows) + 1.5) + 0.9)))
    offsets = np.linspace(-0.36, 0.36, len(rows)) if len(rows) > 1 else [0.0]
    for index, (row, offset) in enumerate(zip(rows, offsets, strict=True)):
        colour, marker, label = PALETTE[index % 7], MARKERS[index % 7], row.label
        for place, column in enumerate(columns):
            ours = row.entries[column.label, metric].ours
            if ours is None:
                continue
            low, high = (100 * v for v in ours.interval())
            axis.hlines(place + offset, low, high, color=colour, linewidth=1.4)
            trials = [100 * v for v in ours.values.values()]
            if len(trials) > 1:
                axis.plot(trials, [place + offset] * len(trials), "|", color=colour, markersize=5)
            fill = colour if len(trials) > 1 else "white"  # one trial: nothing is known of a second training
            axis.plot(
                100 * ours.mean, place + offset, marker, color=colour, markersize=5, markerfacecolor=fill, label=label
            )
            label = None
    for place in range(len(columns) - 1):
        axis.axhline(place + 0.5, color="#cccccc", linewidth=0.8)
    names = [
        c.label if c.label in c.laboratories or len(c.laboratories) > 1 else f"{c.label}\n({c.ours})" for c in columns
    ]
    axis.set_yticks(range(len(columns)), names)
    axis.tick_params(axis="y", length=0)
    axis.yaxis.grid(False)
    axis.invert_yaxis()
    axis.set(
        xlabel=f"{METRIC_WORDS.get(metric, metric)}, percent (95 % interval; ticks: trials; hollow: one trial)",
        title=title,
    )
    axis.set_ylabel("held-out laboratory")
    figure.legend(loc="outside upper center", ncols=min(len(rows), 7), handletextpad=0.2, columnspacing=1.0)
    return figure


def confusion_pair_figure(
    matrices: Mapping[str, np.ndarray], classes: Sequence[str], follow: str | None = None
) -> Figure:
    """Two confusion matrices on the same axes, the row of one class framed and its recall written with its interval.

    ``matrices``: ``{method: (C, C), rows = truth}`` of one laboratory (means over trials may be fractional). Classes
    that neither occur nor are predicted are left out; a class that does not occur has no row.
    """
    stack = np.array(list(matrices.values()))
    rows = np.flatnonzero(stack.sum((0, 2)) > 0)
    columns = np.flatnonzero((stack.sum((0, 1)) > 0) | (stack.sum((0, 2)) > 0))
    beside = len(columns) <= 6
    shape = (1, len(stack)) if beside else (len(stack), 1)
    words = 0.06 * max(len(classes[c]) for c in columns) + 0.4
    height = (0.42 * len(rows) + 0.6) if beside else (0.34 * len(rows) + 0.5) * len(stack)
    figure, axes = plt.subplots(*shape, figsize=(WIDTH, height + words), squeeze=False)
    for index, (axis, (name, matrix)) in enumerate(zip(axes.flat, matrices.items(), strict=True)):
        _matrix(axis, np.asarray(matrix, float)[np.ix_(rows, columns)])
        below = [classes[c] for c in columns] if beside or index == len(stack) - 1 else []
        axis.set_xticks(range(len(columns)), below or [""] * len(columns), **SLANTED)
        support = np.asarray(matrix).sum(1)
        axis.set_yticks(range(len(rows)), [f"{classes[r]} ({support[r]:.0f})" for r in rows])
        if beside and index:
            axis.set_yticklabels([])
        axis.set(xlabel="predicted" if below else "", ylabel="" if beside and index else "truth (images)")
        words = name
        if follow in classes and list(classes).index(follow) in rows:
            code = list(classes).index(follow)
            words += f"\n{_recall_words(follow, matrix[code, code], support[code])}"
            _frame_row(axis, int(np.flatnonzero(rows == code)[0]), len(columns))
        axis.set_title(words, fontsize=9.5)
    return figure


def _matrix(axis: Axes, matrix: np.ndarray) -> None:
    support = matrix.sum(1, keepdims=True)
    share = np.divide(matrix, support, out=np.zeros(matrix.shape), where=support > 0)
    axis.imshow(share, vmin=0, vmax=1, cmap="Blues", aspect="auto")
    axis.grid(False)
    for (row, column), value in np.ndenumerate(matrix):
        if value > 0:
            text = f"{value:.0f}" if value == round(value) or value >= 10 else f"{value:.1f}"
            axis.text(column, row, text, ha="center", va="center", fontsize=8,
                      color="white" if share[row, column] > 0.55 else "#222222")  # fmt: skip
    _bare(axis)


def _frame_row(axis: Axes, row: int, width: int) -> None:
    axis.add_patch(Rectangle((-0.5, row - 0.5), width, 1, fill=False, edgecolor=TAIL, linewidth=2.2, clip_on=False))
    axis.get_yticklabels()[row].set_color(TAIL)


def _recall_words(name: str, hits: float, images: float) -> str:
    low, high = (100 * float(v) for v in wilson_interval(hits, images))
    return f"recall of {name}: {100 * hits / images:.0f} % [{low:.0f}, {high:.0f}]"


def sweep_figure(frame: pd.DataFrame, words: Mapping[str, str] | None = None) -> Figure:
    """Scores against a hyper-parameter, one panel a parameter; columns of `domain_frames.sweep_frame`. Values are
    evenly spaced. The paper's best point is a star; values that were not run are named below the axis."""
    parameters = list(dict.fromkeys(frame["parameter"]))
    words = words or {"k": "number of clusters k", "beta": "weight β of local alignment"}
    figure, axes = plt.subplots(1, len(parameters), figsize=(WIDTH, 3.3), squeeze=False, sharey=True)
    for axis, parameter in zip(axes[0], parameters, strict=True):
        part = frame[frame.parameter == parameter]
        values = sorted(set(part.value))
        places = {v: i for i, v in enumerate(values)}
        for index, metric in enumerate(dict.fromkeys(part.metric)):
            found = part[(part.metric == metric) & part["mean"].notna()].sort_values("value")
            x = found.value.map(places).astype(float) + 0.06 * (2 * index - 1)
            label = METRIC_WORDS.get(metric, metric)
            axis.vlines(x, found.low, found.high, color=PALETTE[index], linewidth=1.4)
            style = {"marker": MARKERS[index], "linestyle": STYLES[index], "markersize": 5}
            axis.plot(x, found["mean"].astype(float), color=PALETTE[index], label=label, **style)
            paper = part[(part.metric == metric) & part.paper.notna()]
            axis.plot(paper.value.map(places), paper.paper.astype(float), "*", color=PALETTE[index], markersize=13,
                      markerfacecolor="white", label=f"{label}, paper's best")  # fmt: skip
        missing = [f"{v:g}" for v in values if part[part.value == v]["mean"].isna().all()]
        note = f"\nnot run: {', '.join(missing)}" if missing else ""
        axis.set_xticks(range(len(values)), [f"{v:g}" for v in values])
        axis.set(xlabel=f"{words.get(parameter, parameter)}{note}", xlim=(-0.4, len(values) - 0.6))
    axes[0, 0].set_ylabel("percent, 95 % interval")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=4, columnspacing=1.0, handletextpad=0.4)
    return figure


def shift_figure(frame: pd.DataFrame, ylabel: str = "accuracy on the unseen laboratory, percent") -> Figure:
    """Accuracy as the stain of the unseen laboratory moves away from the sources' mean; one line a method.

    Columns of `domain_frames.shift_frame`; one panel a laboratory, bars are 95 % intervals.
    """
    laboratories = list(dict.fromkeys(frame["laboratory"]))
    figure, axes = plt.subplots(1, len(laboratories), figsize=(WIDTH, 3.6), squeeze=False, sharey=True)
    shifts = sorted(set(frame["shift"]))
    step = 0.012 * (shifts[-1] - shifts[0] or 1)
    for axis, laboratory in zip(axes[0], laboratories, strict=True):
        part = frame[(frame.laboratory == laboratory) & frame["mean"].notna()]
        methods = list(dict.fromkeys(part.method))
        for index, method in enumerate(methods):
            found = part[part.method == method].sort_values("shift")
            x = found["shift"] + step * (index - (len(methods) - 1) / 2)
            colour = PALETTE[index % 7]
            axis.vlines(x, found.low, found.high, color=colour, linewidth=1.1, alpha=0.8)
            axis.plot(x, found["mean"], color=colour, marker=MARKERS[index % 7], linestyle=STYLES[index % 4],
                      markersize=5, label=method)  # fmt: skip
        axis.set_xticks(shifts, [f"{s:g}" for s in shifts])
        axis.set(xlabel="stain shift (0: mean of the laboratories, 1: its own)", title=laboratory)
    axes[0, 0].set_ylabel(ylabel)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=min(max(len(labels), 1), 7), columnspacing=1.0)
    return figure


def embedding_figure(
    panels: Mapping[str, tuple[np.ndarray, np.ndarray, np.ndarray]], held_out: str = "", size: float = 9
) -> Figure:
    """Two-dimensional embeddings, a row each, coloured by laboratory (left) and by class (right).

    ``panels``: ``{title: (points (N, 2), laboratories (N,), classes (N,))}``; the names are text. Axes have no unit;
    distances between far groups mean little. The held-out laboratory has larger, dark-edged points.
    """
    figure, axes = plt.subplots(len(panels), 2, figsize=(WIDTH, 2.7 * len(panels) + 1.1), squeeze=False)
    keys = [sorted({str(v) for p in panels.values() for v in p[column]}) for column in (1, 2)]
    for line, (title, (points, *names)) in zip(axes, panels.items(), strict=True):
        unseen = np.asarray(names[0], str) == held_out
        for axis, labels, known, words in zip(line, names, keys, ("laboratory", "class"), strict=True):
            for index, name in enumerate(known):
                chosen = np.asarray(labels, str) == name
                for part, scale, edge in ((chosen & ~unseen, 1, "none"), (chosen & unseen, 2.2, "#222222")):
                    axis.scatter(*points[part].T, s=size * scale, **_mark(index),
                                 edgecolors=edge, linewidths=0.5, alpha=0.8)  # fmt: skip
            axis.set(xticks=[], yticks=[], title=f"{title}, by {words}")
            axis.grid(False)
    for side, (known, words) in enumerate(zip(keys, ("laboratory", "class"), strict=True)):
        handles = [
            plt.Line2D([], [], **_mark(i), linestyle="", label=name + " (unseen)" * (name == held_out))
            for i, name in enumerate(known)
        ]
        axes[-1, side].legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, -0.02), ncols=2, title=words,
                              handletextpad=0.1, columnspacing=0.8)  # fmt: skip
    return figure


def _mark(index: int) -> dict[str, str]:
    """Marker and colour of the n-th group; no pair comes twice among the first 49."""
    return {"marker": MARKERS[(index + index // 7) % 7], "color": PALETTE[index % 7]}


def gradcam_figure(
    images: np.ndarray, maps: Mapping[str, np.ndarray], names: Sequence[str],
    predicted: Mapping[str, Sequence[str]] | None = None,
) -> Figure:  # fmt: skip
    """The same cells under every method: a row a cell, its image first, then the saliency of each method over it.

    images uint8 (N, h, w, 3); ``maps``: ``{method: (N, h, w) in [0, 1]}``; ``names``: classes of the cells;
    ``predicted``: ``{method: predicted classes}``, written below each map, marked where wrong.
    """
    size = WIDTH / (len(maps) + 1)
    figure, axes = plt.subplots(
        len(images), len(maps) + 1, figsize=(WIDTH, (size + 0.2 * bool(predicted)) * len(images) + 0.6), squeeze=False
    )
    picture = None
    for row, (line, image) in enumerate(zip(axes, images, strict=True)):
        line[0].imshow(image)
        line[0].set_ylabel(names[row], fontsize=9)
        for axis, (method, heat) in zip(line[1:], maps.items(), strict=True):
            axis.imshow(image.mean(-1), cmap="gray", vmin=0, vmax=255)
            picture = axis.imshow(heat[row], cmap="viridis", vmin=0, vmax=1, alpha=0.55)
            if predicted:
                found = predicted[method][row]
                right = found == names[row]
                axis.set_xlabel(found if right else f"✗ {found}", fontsize=7.5, color="#222222" if right else TAIL)
    for axis, title in zip(axes[0], ["image", *maps], strict=True):
        axis.set_title(title, fontsize=9.5)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
        _bare(axis)
    if picture is not None:
        bar = figure.colorbar(picture, ax=axes, orientation="horizontal", shrink=0.5, aspect=40, pad=0.02)
        bar.set_label("Grad-CAM of the predicted class (low to high, each map scaled on its own)")
    return figure


def _bare(axis: Axes) -> None:
    axis.grid(False)
    axis.tick_params(length=0)
    for side in axis.spines.values():
        side.set_visible(False)
