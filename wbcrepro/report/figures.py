"""Figures from stored predictions and logs, sized for the page, with a light background for dark pages too.

Colours are from the Okabe-Ito palette, which colour-blind readers can tell apart; nothing is said by colour alone.
"""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from wbcrepro.metrics import confusion, wilson_interval

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
WIDTH = 7.2
"""Inches: the width of the book's column."""


def use_style() -> None:
    """Set matplotlib's defaults for the book: readable sizes, an opaque light background with padding."""
    plt.rcParams.update(
        {
            "figure.figsize": (WIDTH, 3.6), "figure.dpi": 110, "savefig.dpi": 110,
            "figure.constrained_layout.use": True,
            "figure.facecolor": "white", "savefig.facecolor": "white", "axes.facecolor": "white",
            "savefig.bbox": "tight", "savefig.pad_inches": 0.12, "savefig.transparent": False,
            "font.size": 10, "axes.titlesize": 11, "axes.labelsize": 10, "legend.fontsize": 9, "legend.frameon": False,
            "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": "#e3e3e3",
            "grid.linewidth": 0.7, "axes.axisbelow": True, "axes.prop_cycle": plt.cycler(color=PALETTE),
            "image.cmap": "viridis", "svg.fonttype": "path", "svg.hashsalt": "wbcrepro",
        }
    )  # fmt: skip


def confusion_figure(
    folds: list[tuple[np.ndarray, np.ndarray]], classes: tuple[str, ...], title: str = ""
) -> Figure:
    """Rows are the truth. Colour: share of the row; number: images; right margin: recall with its Wilson interval.

    ``folds``: ``[(labels, predicted codes) of each fold]``. Images are means over folds, so intervals are at the size
    of one test set.
    """
    matrix = np.mean([confusion(labels, codes, len(classes)) for labels, codes in folds], axis=0)
    support = matrix.sum(1)
    share = np.divide(matrix, support[:, None], out=np.zeros(matrix.shape), where=support[:, None] > 0)
    size = max(4.6, 0.46 * len(classes) + 1.2)
    figure, axis = plt.subplots(figsize=(max(WIDTH, size + 1.6), size))
    image = axis.imshow(share, vmin=0, vmax=1, cmap="Blues")
    axis.grid(False)
    for (row, column), count in np.ndenumerate(matrix):
        if count:
            colour = "white" if share[row, column] > 0.55 else "#222222"
            axis.text(column, row, f"{round(count, 1):g}", ha="center", va="center", fontsize=8, color=colour)
    low, high = wilson_interval(np.diag(matrix), support)
    for row, total in enumerate(support):
        words = f"{100 * share[row, row]:.0f} % [{100 * low[row]:.0f}, {100 * high[row]:.0f}]" if total else "absent"
        axis.text(len(classes) - 0.35, row, words, va="center", fontsize=8, color="#222222")
    ticks = [f"{name} ({round(total, 1):g})" for name, total in zip(classes, support, strict=True)]
    axis.set_xticks(range(len(classes)), classes, rotation=90)
    axis.set_yticks(range(len(classes)), ticks)
    axis.set(xlabel="predicted", ylabel="truth (images)", title=title)
    axis.text(len(classes) - 0.35, -0.8, "recall [95 %]", fontsize=8, color="#222222")
    for side in axis.spines.values():
        side.set_visible(False)
    bar = figure.colorbar(image, ax=axis, shrink=0.6, pad=0.22)
    bar.set_label("share of the row")
    return figure


def recall_figure(
    rows: dict[str, list[tuple[np.ndarray, np.ndarray]]], classes: tuple[str, ...], counts: np.ndarray | None = None
) -> Figure:
    """Recall of each class with Wilson intervals at the size of one test set, for several rows side by side.

    ``rows``: ``{name: [(labels, predicted codes) of each fold]}``. Classes from the most to the rarest training images.
    """
    order = np.argsort(-counts, kind="stable") if counts is not None else np.arange(len(classes))
    figure, axis = plt.subplots(figsize=(WIDTH, 0.36 * len(classes) + 1.3))
    offsets = np.linspace(-0.22, 0.22, len(rows)) if len(rows) > 1 else [0.0]
    markers = "osD^v<>"
    for index, ((name, folds), offset) in enumerate(zip(rows.items(), offsets, strict=True)):
        matrices = np.array([confusion(true, pred, len(classes)) for true, pred in folds], dtype=float).mean(0)
        hits, support = np.diag(matrices)[order], matrices.sum(1)[order]
        low, high = wilson_interval(hits, support)
        recall = np.divide(hits, support, out=np.full(len(order), np.nan), where=support > 0)
        y = np.arange(len(order)) + offset
        present = support > 0
        axis.hlines(y[present], low[present], high[present], color=PALETTE[index], linewidth=1.4)
        axis.plot(recall[present], y[present], markers[index % 7], color=PALETTE[index], markersize=5, label=name)
    words = [classes[i] + (f" (n = {counts[i]})" if counts is not None else "") for i in order]
    axis.set_yticks(range(len(order)), words)
    axis.invert_yaxis()
    axis.set(xlim=(-0.02, 1.02), xlabel="recall, 95 % Wilson interval")
    axis.set_ylabel("class (training images)" if counts is not None else "class")
    axis.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(rows))
    return figure


CURVES = {
    "loss": "training loss",
    "val_loss": "validation loss",
    "macro_f1": "validation macro-F1",
    "val_macro_f1": "validation macro-F1",
}


def training_figure(logs: dict[str, list[dict]], curves: tuple[str, ...] = ("loss", "macro_f1")) -> Figure:
    """Curves from ``log.jsonl``, one panel a quantity, one line a run; a quantity that no log holds is left out."""
    found = [c for c in curves if any(c in row for log in logs.values() for row in log)]
    figure, axes = plt.subplots(1, max(len(found), 1), figsize=(WIDTH, 3.0), squeeze=False)
    styles = ("-", "--", ":", "-.", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 4)))  # another number than colours: pairs differ
    for axis, curve in zip(axes[0], found, strict=False):
        for index, (name, log) in enumerate(logs.items()):
            points = [(row.get("epoch", i), row[curve]) for i, row in enumerate(log) if row.get(curve) is not None]
            if points:
                colour, style = PALETTE[index % len(PALETTE)], styles[index % len(styles)]
                axis.plot(*zip(*points, strict=True), linestyle=style, color=colour, label=name)
        axis.set(xlabel="epoch", ylabel=CURVES.get(curve, curve.replace("_", " ")))
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    if found:
        handles, labels = axes[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=min(3, len(logs)))
    return figure


def calibration(labels: np.ndarray, probabilities: np.ndarray, bins: int = 10) -> tuple[np.ndarray, float]:
    """Reliability of the highest probability: rows (confidence, accuracy, images) of the filled bins, and the expected
    calibration error, the mean gap weighted by images (Naeini et al., 2015). Probabilities (N, C)."""
    confidence, right = probabilities.max(1), probabilities.argmax(1) == labels
    index = np.minimum((confidence * bins).astype(int), bins - 1)
    rows = np.array(
        [(confidence[index == b].mean(), right[index == b].mean(), (index == b).sum()) for b in np.unique(index)]
    )
    return rows, float(np.abs(rows[:, 0] - rows[:, 1]) @ rows[:, 2] / len(labels))


def reliability_figure(models: dict[str, tuple[np.ndarray, np.ndarray]], bins: int = 10) -> Figure:
    """Accuracy against confidence; ``{name: (labels, probabilities)}``. Below the diagonal: overconfident."""
    figure, axis = plt.subplots(figsize=(WIDTH, 4.2))
    axis.plot([0, 1], [0, 1], color="#888888", linewidth=1, label="perfectly calibrated")
    for index, (name, (labels, probabilities)) in enumerate(models.items()):
        rows, error = calibration(labels, probabilities, bins)
        marker = "osD^v<>"[index % 7]
        axis.plot(
            rows[:, 0], rows[:, 1], marker=marker, color=PALETTE[index % 7], label=f"{name}: ECE {100 * error:.1f} %"
        )
    axis.set(xlim=(0, 1.03), ylim=(0, 1.03), xlabel="mean confidence in the bin", ylabel="accuracy in the bin")
    axis.set_aspect("equal")
    axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def effects_figure(frame, label: str = "step", title: str = "", unit: str = "points") -> Figure:
    """Forest plot of paired differences: columns ``label``, change, low, high; the line at zero is "no effect".

    Filled markers have an interval that leaves zero out. With a column ``trials`` or ``folds`` those of a single
    training are hollow all the same: their interval knows nothing of what training anew would change.
    """
    figure, axis = plt.subplots(figsize=(WIDTH, 0.32 * len(frame) + 1.0))
    y = np.arange(len(frame))
    sure = ((frame["low"] > 0) | (frame["high"] < 0)).to_numpy()
    count = next((frame[name] for name in ("trials", "folds") if name in frame), None)
    words = "filled: zero outside"
    if count is not None and (count == 1).any():
        sure, words = sure & (count > 1).to_numpy(), "filled: zero outside, more than one training"
    for chosen, colour, fill in ((sure, PALETTE[0], PALETTE[0]), (~sure, "#777777", "white")):
        axis.hlines(y[chosen], frame["low"][chosen], frame["high"][chosen], color=colour, linewidth=1.6)
        axis.plot(frame["change"][chosen], y[chosen], "o", color=colour, markerfacecolor=fill, markersize=6)
    axis.axvline(0, color="#222222", linewidth=0.9)
    axis.set_yticks(y, frame[label])
    axis.invert_yaxis()
    axis.set(xlabel=f"difference in {unit}, 95 % interval ({words})", title=title)
    return figure
