"""Figures of ``design: rescue`` from frames and tables: sized for the page, light background, colour-blind safe.

Whatever a colour says, a marker, a hatch or a word says too. Callers say in the caption what is synthetic.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from wbcrepro.report.figures import PALETTE, WIDTH
from wbcrepro.report.rescue_frames import ALL, SHARES
from wbcrepro.report.rescue_tables import RescueTable
from wbcrepro.rescue.sensitivity import one_image_effect

MARKERS = "osD^v<>"
INK = "#222222"


def waterfall_figure(table: RescueTable) -> Figure:
    """Rows of Table 2 from top to bottom: the paper's leaderboard value, and ours on each set with its interval.

    Hollow markers are the control. A thin line joins the rows that build on each other.
    """
    rows = [row for row in table.rows if any(e.ours is not None or e.paper for e in row.entries.values())]
    figure, axis = plt.subplots(figsize=(WIDTH, 0.42 * len(rows) + 1.5))
    y = np.arange(len(rows))
    columns = [c for c in table.columns if any(r.entries[c.key].ours is not None for r in rows)]
    offsets = np.linspace(-0.24, 0.24, len(columns) + 1)
    printed = [next((e.paper[0] for e in r.entries.values() if e.paper), np.nan) for r in rows]
    axis.plot(printed, y + offsets[0], "*", color=PALETTE[6], markersize=9, label="paper (leaderboard)")
    colours = {on: PALETTE[i] for i, on in enumerate(dict.fromkeys(c.on for c in columns))}
    for index, column in enumerate(columns):
        found = [(place, r.entries[column.key].ours) for place, r in zip(y, rows, strict=True)]
        found = [(place + offsets[index + 1], ours) for place, ours in found if ours is not None]
        colour = colours[column.on]
        for place, ours in found:
            low, high = (100 * v for v in ours.interval())
            axis.hlines(place, low, high, color=colour, linewidth=1.4, linestyle=":" if column.control else "-")
        fill = "white" if column.control else colour
        axis.plot([100 * o.mean for _, o in found], [p for p, _ in found], MARKERS[index % 7], color=colour,
                  markersize=5.5, markerfacecolor=fill, label=column.words)  # fmt: skip
    axis.set_yticks(y, [row.label for row in rows])
    axis.invert_yaxis()
    axis.set_xlabel("macro-F1, percent, 95 % interval over images")
    figure.legend(loc="outside upper center", ncols=min(3, len(columns) + 1), columnspacing=1.0, handletextpad=0.4)
    return figure


def counts_figure(frame: pd.DataFrame) -> Figure:
    """Images of each class on a logarithmic scale, a panel for the paper and one for every set of ours; columns of
    `rescue_frames.counts_frame`."""
    parts = [c for c in frame.columns if c != "class"]
    figure, axes = plt.subplots(1, len(parts), figsize=(WIDTH, 0.27 * len(frame) + 1.1), squeeze=False, sharey=True)
    y = np.arange(len(frame))
    for index, (axis, part) in enumerate(zip(axes[0], parts, strict=True)):
        counts = frame[part].astype(float)
        axis.barh(y, counts.fillna(0), color=PALETTE[index], log=True)
        for place, count in zip(y, counts, strict=True):
            words = "–" if np.isnan(count) else f"{count:,.0f}"
            axis.text(max(1.0, np.nan_to_num(count)) * 1.12, place, words, va="center", fontsize=7.5, color=INK)
        axis.set_xlim(1, max(10.0, float(counts.max() or 10)) * 9)
        total = counts.sum()
        axis.set(xlabel="images (log scale)", title=f"{part}: {total:,.0f}")
        axis.title.set_fontsize(9.5)
        axis.grid(axis="y", visible=False)
    axes[0, 0].set_yticks(y, frame["class"])
    axes[0, 0].invert_yaxis()
    axes[0, 0].set_ylabel("class")
    return figure


OVERLAP = {
    "both right": ("#0072B2", ""), "only first branch": ("#56B4E9", "//"), "only second branch": ("#E69F00", ".."),
    "both wrong": ("#d9d9d9", "xx"),
}  # fmt: skip


def overlap_figure(frame: pd.DataFrame, names: tuple[str, str] = ("Swin branch", "semantic branch")) -> Figure:
    """Which branch is right, class by class and over all; columns of `rescue_frames.overlap_frame`. The orange part is
    what a perfect choice between the branches could add."""
    figure, axis = plt.subplots(figsize=(WIDTH, 0.32 * len(frame) + 1.3))
    y, left = np.arange(len(frame)), np.zeros(len(frame))
    words = {"both right": "both right", "only first branch": f"only {names[0]}",
             "only second branch": f"only {names[1]}", "both wrong": "both wrong"}  # fmt: skip
    for share in SHARES:
        colour, hatch = OVERLAP[share]
        axis.barh(y, frame[share], left=left, color=colour, hatch=hatch, edgecolor="white", label=words[share])
        for place, (value, start) in enumerate(zip(frame[share], left, strict=True)):
            if value >= 7:
                axis.text(start + value / 2, place, f"{value:.0f}", ha="center", va="center", fontsize=8,
                          color="white" if share == "both right" else INK,
                          bbox={"facecolor": colour, "edgecolor": "none", "pad": 0.8})  # fmt: skip
        left += frame[share].to_numpy(float)
    axis.set_yticks(y, [f"{c} (n = {n})" for c, n in zip(frame["class"], frame["images"], strict=True)])
    axis.invert_yaxis()
    axis.set(xlim=(0, 100), xlabel="percent of the images of the class", ylabel="class")
    axis.grid(visible=False)
    total = frame.loc[frame["class"] == ALL, "oracle gain"]
    title = f"a perfect choice would add {total.iloc[0]:.1f} points of mean recall to the {names[0]}"
    figure.legend(loc="outside upper center", ncols=4, title=title, columnspacing=1.0, handletextpad=0.4)
    return figure


def targets_figure(names: Sequence[str], matrices: Mapping[str, np.ndarray]) -> Figure:
    """Confusion of the rare classes with those that they resemble, one panel a stage; rows are the truth, colour the
    share of the row. As `rescue_frames.target_confusions` gives them."""
    figure, axes = plt.subplots(1, len(matrices), figsize=(WIDTH, 0.36 * len(names) + 1.5), squeeze=False)
    for index, (axis, (title, matrix)) in enumerate(zip(axes[0], matrices.items(), strict=True)):
        support = matrix.sum(1, keepdims=True)
        share = np.divide(matrix, support, out=np.zeros(matrix.shape), where=support > 0)
        axis.imshow(share, vmin=0, vmax=1, cmap="Blues", aspect="auto")
        for (row, column), count in np.ndenumerate(matrix):
            if count:
                colour = "white" if share[row, column] > 0.55 else INK
                axis.text(column, row, f"{count}", ha="center", va="center", fontsize=8, color=colour)
        axis.set_xticks(range(len(names)), names, rotation=90)
        ticks = [f"{n} ({s})" for n, s in zip(names, support[:, 0], strict=True)]
        axis.set_yticks(range(len(names)), ticks if index == 0 else [""] * len(names))
        axis.set(xlabel="predicted", title=title)
        axis.grid(visible=False)
        axis.tick_params(length=0)
    axes[0, 0].set_ylabel("truth (images)")
    return figure


THRESHOLD_WORDS = {
    "boost": "boost B (phase 1)", "semantic": "semantic threshold τ (phase 2)", "cue_threshold": "cue (phase 3)",
}  # fmt: skip


def sensitivity_figure(frame: pd.DataFrame) -> Figure:
    """Final macro-F1 as one threshold moves and the others stay; a row a rare class. The vertical line and the marker
    are the value that was fitted on the training side. Columns of `rescue_frames.sensitivity_frame`."""
    targets = list(dict.fromkeys(frame["class"]))
    figure, axes = plt.subplots(
        len(targets), 3, figsize=(WIDTH, 1.9 * len(targets) + 0.5), squeeze=False, sharey=True
    )
    for line, name in zip(axes, targets, strict=True):
        for axis, (threshold, words) in zip(line, THRESHOLD_WORDS.items(), strict=True):
            part = frame[(frame["class"] == name) & (frame["threshold"] == threshold)]
            if part.empty:
                axis.set_visible(False)
                continue
            fitted = part["fitted"].iloc[0]
            axis.plot(part["value"], part["macro_f1"], color=PALETTE[0], drawstyle="steps-mid")
            axis.axvline(fitted, color=PALETTE[1], linestyle="--", linewidth=1)
            axis.plot(fitted, part.loc[part["value"] == fitted, "macro_f1"], "D", color=PALETTE[1], markersize=5)
            axis.set_xlabel(f"{name}: {words}", fontsize=8.5)
            axis.tick_params(labelsize=8)
            if threshold == "boost":
                axis.set_xscale("log")
        line[0].set_ylabel("macro-F1, percent")
    return figure


def one_image_figure(
    classes: Sequence[str], support: Sequence[int], steps: Mapping[str, float], n_classes: int | None = None
) -> Figure:
    """How much one image of a class moves macro-F1 (points), by the test images of the class; both axes logarithmic.

    The band runs from the first image found to the last one. Markers: the rarest classes of ``support`` (C,), images
    of ``classes``. Horizontal lines: ``steps`` between rows of a table, points by name.
    """
    c = n_classes or len(classes)
    n = np.unique(np.geomspace(1, 5000, 120).round().astype(int))
    band = 100 * one_image_effect(n, [""] * len(n))[["first", "last"]] * len(n) / c
    figure, axis = plt.subplots(figsize=(WIDTH, 3.9))
    axis.fill_between(n, band["last"], band["first"], color=PALETTE[5], alpha=0.45,
                      label="one image more, from the last to the first found")  # fmt: skip
    axis.plot(n, 100 / n / c, color=PALETTE[0], label="mean: a whole F1 over n images")
    order = np.argsort(support, kind="stable")
    shown = [i for i in order if support[i] > 0]
    for value in dict.fromkeys(int(support[i]) for i in shown):
        names = [classes[i] for i in shown if support[i] == value]
        words = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
        axis.plot(value, 100 / value / c, "o", color=PALETTE[0], markersize=5)
        axis.annotate(f"{words} ({value})", (value, 100 / value / c), textcoords="offset points", xytext=(5, 7),
                      fontsize=8, color=INK)  # fmt: skip
    for index, (name, points) in enumerate(steps.items()):
        axis.axhline(points, color=PALETTE[1], linewidth=0.9, linestyle=("--", ":", "-.")[index % 3])
        axis.text(n[-1], points * 1.04, f"{name}: {points:.2f}", ha="right", fontsize=8, color=PALETTE[1])
    axis.set(xscale="log", yscale="log", xlabel="test images of the class", xlim=(1, n[-1]),
             ylabel=f"points of macro-F1 over {c} classes")  # fmt: skip
    axis.legend(loc="lower left")
    return figure


def gallery_figure(images: Sequence[np.ndarray], frame: pd.DataFrame, width: int = 4) -> Figure:
    """Cells of the gallery with their labels below; images uint8 (h, w, 3) in the order of the frame's lines."""
    if len(images) != len(frame):
        raise ValueError(f"{len(images)} images for {len(frame)} lines")
    rows = -(-len(frame) // width)
    size = WIDTH / width
    figure, axes = plt.subplots(rows, width, figsize=(WIDTH, (size + 0.55) * rows), squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, image, (_, line) in zip(axes.flat, images, frame.iterrows(), strict=False):
        axis.imshow(image)
        words = f"{line['kind']}\ntruth {line['truth']}: {line['base']} → {line['final']}"
        axis.set_title(words, fontsize=8, color=INK)
    return figure
