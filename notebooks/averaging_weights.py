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

# %% [markdown]
# # Averaging weights
#
# A training run is thousands of networks, one a step, and a table shows one of them. Which? The *last*; or the *best*
# on validation images, which come from the source laboratories, as none of the unseen one may be looked at; or, as
# `sada` does for all of its methods, the *average of the weights* over a stretch of the run that SWAD
# {cite:p}`cha2021swad` chooses. This choice alone can move a row by as much as the methods differ. So the tables of
# this book say which of the three they show, and this chapter takes the third apart: a short algorithm with many
# corners.

# %% tags=["hide-input"]
import warnings

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from IPython.display import Markdown, display
from torch import nn
from torch.nn import functional as F

from wbcrepro.domains.swad import LossValley
from wbcrepro.report.domain_figures import MARKERS
from wbcrepro.report.figures import PALETTE, use_style
from wbcrepro.report.page import banner, drawn_words, figure_source, frame_html

warnings.filterwarnings("ignore", message=".*IProgress.*")
torch.set_num_threads(1)
use_style()
SMALL = PROFILE == "tiny"
AGAIN = f"wbcrepro book --only averaging_weights --profile {PROFILE}"
BLUE, VERMILION, GREEN, PINK, ORANGE, SKY, BLACK = PALETTE
MADE_UP = "made-up losses"


def caption(words):
    display(Markdown(f"*{words}*"))


banner(True, "Synthetic: loss surfaces, loss curves and points that this page makes up.")

# %% [markdown]
# ## A valley
#
# Why should an *average of weights* be any good? Networks are not linear. Here is the picture behind the idea, with two
# weights instead of millions. The training loss is a long valley with steep walls. A step follows the slope of one
# minibatch, whose valley lies a little elsewhere, so the run bounces from wall to wall while it drifts along the floor.
# The valley of a few validation images is displaced a little, that of an unseen laboratory more; we do not know
# whither.

# %%
def loss(w, where=(0.0, 0.0)):
    """A curved valley: steep across, shallow along. ``w`` (..., 2)."""
    x, y = w[..., 0] - where[0], w[..., 1] - where[1]
    return 2.2 * np.tanh(1.5 * (y - 0.25 * np.sin(1.2 * x)) ** 2) + 0.05 * (x - 2.0) ** 2


def slope(w, where, h=1e-5):
    around = loss(w + h * np.array([[1, 0], [-1, 0], [0, 1], [0, -1]]), where)
    return (around[::2] - around[1::2]) / (2 * h)


def bounce(seed, steps=240):
    """A run: each step follows the slope of one minibatch, whose valley lies elsewhere by chance."""
    rng, path = np.random.default_rng(seed), [np.array([-2.6, 0.5])]
    for _ in range(steps):
        path.append(path[-1] - 0.16 * slope(path[-1], rng.normal(0, [0.25, 0.22])))
    return np.array(path)


FROM = 120


def three(path, validation):
    """The last point, the best on validation, and the average from step FROM on."""
    best = path[loss(path, validation).argmin()]
    return {"last": path[-1], "best on validation": best, "average": path[FROM:].mean(0)}


bounces = []
for seed in range(6 if SMALL else 40):
    rng = np.random.default_rng(1000 + seed)
    bounces.append((bounce(seed), rng.normal(0, [0.15, 0.1]), rng.normal(0, [0.4, 0.2])))
table = pd.DataFrame([{(name, place): float(loss(w, where)) for name, w in three(path, validation).items()
                       for place, where in (("validation", validation), ("unseen", unseen))}
                      for path, validation, unseen in bounces])  # fmt: skip

# %% tags=["hide-input"]
gx, gy = np.meshgrid(np.linspace(-3.2, 4.2, 200), np.linspace(-1.1, 1.2, 120))
grid = np.stack([gx, gy], -1)
fig, axes = plt.subplots(2, 1, figsize=(7.2, 4.4), sharex=True)
path, validation, unseen = bounces[0]
for axis, where, title in zip(axes, (validation, unseen), ("validation images", "unseen laboratory"), strict=True):
    axis.contourf(gx, gy, loss(grid, where), levels=np.linspace(0, 3.6, 15), cmap="Greys", extend="max")
    axis.plot(*path.T, color=SKY, lw=0.8, label="the run")
    choices = three(path, validation).items()
    for (name, w), marker, colour in zip(choices, "s^o", (VERMILION, ORANGE, BLUE), strict=True):
        axis.plot(*w, marker, color=colour, ms=8, mec="black", ls="", label=name)
    axis.set(title=f"loss, {title} (dark: high)", yticks=[])
    axis.grid(False)
axes[1].set_xlabel("first weight (second: upwards)")
fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
plt.show()
display(figure_source("a made-up loss of two weights", AGAIN))
caption("Synthetic: a made-up valley. Both panels show the same run; only the surface below is displaced.")
middle, names = table.mean(), list(three(path, validation))
there = pd.DataFrame({name: table[(name, "unseen")] for name in names})
best, worst = ((ranks == "average").mean() for ranks in (there.idxmin(axis=1), there.idxmax(axis=1)))
Markdown(
    f"Over {len(bounces)} such runs the mean loss on validation, and in the unseen laboratory, is: "
    + "; ".join(f"{name} {middle[(name, 'validation')]:.3f} and {middle[(name, 'unseen')]:.3f}" for name in names)
    + f". In the unseen laboratory the average is the best of the three in {best:.0%} of the runs and the worst in "
    f"{worst:.0%}. Points on two walls have their mean near the floor between them, and these shares say how often "
    "that helped where the valley lies elsewhere."
)

# %% [markdown]
# That is the claim of SWAD: *flat* minima generalise to other domains, and averaging densely (every step, not every
# epoch) finds them. It needs a start, after the descent, and an end, before overfitting moves the run out of the
# valley. Both are read off the validation loss.
#
# ## LossValley, step by step
#
# Let $E_i$ be the validation loss at checkpoint $i$. In the paper's words (Alg. 1), with an optimum patience $N_s$, an
# overfit patience $N_e$ and a tolerance $r$:
#
# 1. the window **starts** at the first $t_s$ with $E_{t_s} = \min(E_{t_s}, \ldots, E_{t_s + N_s - 1})$: nothing better
#    came in the next $N_s - 1$ checkpoints;
# 2. the **threshold** is $l = \frac{1 + r}{N_s} (E_{t_s} + \cdots + E_{t_s + N_s - 1})$;
# 3. it **ends** at the first $t_e$ with $\min(E_{t_e}, \ldots, E_{t_e + N_e - 1}) > l$: the loss has left the valley
# for    good.
#
# Defaults are $N_s = 3$, $N_e = 6$, $r = 0.3$; `sada` takes $N_s = 4$. Feed the package's detector a curve and write
# down what it does at every checkpoint. The "weights" are one number, the step itself, so that an average shows which
# steps it is made of.

# %%
EVERY = 10  # steps between checkpoints
CURVE = [1.60, 1.10, 0.86, 0.74, 0.70, 0.72, 0.69, 0.63, 0.66, 0.65]
CURVE += [0.70, 0.68, 0.74, 0.80, 0.92, 0.99, 1.05, 1.08, 1.15, 1.22]


def walk(curve, n_converge, n_tolerance, ratio=0.3, every=EVERY):
    """The detector's state after each checkpoint, and the final average."""
    valley, rows = LossValley(n_converge, n_tolerance, ratio), []
    for step in range(every * (len(curve) - 1) + 1):
        valley.add({"w": torch.tensor([float(step)])}, step)
        if step % every == 0:
            before = valley.average.count if valley.average else 0
            valley.checkpoint(curve[step // every])
            count = valley.average.count if valley.average else 0
            state = "left" if valley.dead else "inside" if valley.average else "looking"
            rows.append({"step": step, "E": curve[step // every], "state": state, "segments added": count - before,
                         "in all": count, "window from": valley.start_step if valley.average else None,
                         "threshold": valley.threshold if valley.average else None})  # fmt: skip
    return valley, pd.DataFrame(rows)


valley, trace = walk(CURVE, 3, 6)
final = valley.final()
shown = trace.astype({"window from": "Int64"}).astype(object).where(trace.notna(), None)
frame_html(shown, "loss_valley.csv", decimals=2, synthetic="Made-up losses.", command=AGAIN, words=drawn_words(MADE_UP),
           caption="LossValley (3, 6, 0.3) after each checkpoint")  # fmt: skip

# %% tags=["hide-input"]


def draw_window(axis, curve, setting, legend=False):
    valley, trace = walk(curve, *setting)
    final = valley.final()
    steps = EVERY * np.arange(len(curve))
    axis.plot(steps, curve, "o-", color=BLACK, ms=3.5, lw=1.2, label="validation loss" if legend else None)
    found = valley.average is not None
    if found:
        axis.axhline(valley.threshold, color=VERMILION, ls="--", lw=1.2, label="threshold" if legend else None)
        axis.axvline(valley.start_step, color=GREEN, ls=":", lw=1.8, label="start found" if legend else None)
    axis.axvspan(final.start, final.end, color=SKY, alpha=0.35, lw=0, label="steps averaged" if legend else None)
    at = trace.index[trace.state == "left"]
    if len(at):
        axis.plot(steps[at[0]], curve[at[0]], "x", color=VERMILION, ms=10, mew=2,
                  label="valley left" if legend else None)  # fmt: skip
    axis.set(xlabel="step", title=f"$N_s$ = {setting[0]}, $N_e$ = {setting[1]}" + ("" if found else ": no valley"))
    return final


fig, axes = plt.subplots(1, 3, figsize=(7.2, 2.9), sharey=True)
averages = {}
for axis, setting in zip(axes, ((3, 6), (4, 6), (3, 3)), strict=True):
    averages[setting] = draw_window(axis, CURVE, setting, legend=axis is axes[0])
axes[0].set_ylabel("loss")
fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=5, columnspacing=1.0)
plt.show()
display(figure_source(MADE_UP, AGAIN))
caption("Synthetic: one made-up loss curve under three settings (ratio 0.3).")
Markdown(
    "\n".join(
        f"- $N_s$ = {s}, $N_e$ = {e}: the average of {a.count} segments, steps {a.start} to {a.end}; its mean step is "
        f"{float(a.weights['w']):.1f}." for (s, e), a in averages.items()
    )
    + "\n\nThe three differ, on the same run, by a constant nobody tunes. `sada` writes that it follows SWAD and runs "
    "another $N_s$ than SWAD's default; the released code is where one learns it."
)  # fmt: skip

# %% [markdown]
# ## Corners
#
# The text above fits in three lines. The code that made the tables has corners that it does not mention, and since the
# numbers come from the code, ours keeps them (a test holds it to windows, counts and weights of the original).
#
# **A segment is averaged first.** Steps between two checkpoints are averaged into a segment, and SWAD is the mean of
# *segments*, however many steps each has. A run that ends shortly after a checkpoint gives its last few steps the
# weight of a full segment:

# %% tags=["hide-input"]
uneven = LossValley(1, 1, 0.3)
for step in range(24):
    uneven.add({"w": torch.tensor([float(step)])}, step)
    if step % EVERY == 0 or step == 23:
        uneven.checkpoint(1.0)
average = uneven.final()
print(f"checkpoints at steps 0, {EVERY}, {2 * EVERY} and 23, equal losses: {average.count} segments over steps "
      f"{average.start} to {average.end};\ntheir mean is at {float(average.weights['w']):.2f}, that of the steps "
      f"themselves at {np.arange(average.start, average.end + 1).mean():.2f}. (Step 0, a segment alone, found the "
      "start and does not count.)")

# %% [markdown]
# **With $N_e > N_s$ the window reaches back.** When the start is found, up to $N_e$ checkpoints are in the queue, more
# than the $N_s$ that decide. Those before $t_s$ that lie below the threshold join too. And where the queue is not full
# yet, a segment that has joined may be handed in *again* later. To see what an average is made of, let the weights of
# segment $i$ be the $i$-th unit vector: the average times its count then says how often each segment went in.

# %%
def entries(curve, setting):
    """How often each checkpoint's segment entered the average (len(curve),), and where the start was found."""
    valley = LossValley(*setting)
    for i, value in enumerate(curve):
        valley.add({"w": torch.eye(len(curve))[i]}, i)
        valley.checkpoint(value)
    average = valley.final()
    return (average.weights["w"] * average.count).round().numpy(), valley.start_step


flat = [1.5, 0.72, 0.71, 0.70, 0.69, 0.70, 0.71, 0.72, 0.73, 0.74, 0.75, 0.76]

# %% tags=["hide-input"]
fig, axes = plt.subplots(3, 1, figsize=(7.2, 3.6), sharex=True, sharey=True)
lines = []
for axis, setting in zip(axes, ((3, 3), (3, 6), (3, 9)), strict=True):
    often, start = entries(flat, setting)
    axis.bar(range(len(flat)), often, color=[BLUE if n < 2 else VERMILION for n in often], width=0.7)
    axis.axvline(start, color=GREEN, ls=":", lw=2, label="start found")
    axis.set_ylabel(f"$N_s$ = {setting[0]}, $N_e$ = {setting[1]}", fontsize=8.5)
    axis.set_yticks([0, 1, 2])
    lines.append((setting, often, start))
axes[0].legend(loc="upper right", fontsize=8)
axes[-1].set_xticks(range(len(flat)), [f"{i}\n{e:.2f}" for i, e in enumerate(flat)], fontsize=8)
axes[-1].set_xlabel("segment, and the validation loss at its end")
plt.show()
display(figure_source(MADE_UP, AGAIN))
caption("Synthetic: made-up losses. How often each segment enters the average.")
Markdown(
    "\n".join(f"- {setting[0]}, {setting[1]}: start found at segment {start}; {int((often[:start] > 0).sum())} "
    "segments "
              f"before it enter, {int((often > 1).sum())} enter twice." for setting, often, start in lines)
)  # fmt: skip

# %% [markdown]
# **No valley, no average.** While the loss keeps falling no checkpoint is the least of the next $N_s$, no start is
# found, and the *last segment* is returned: the mean of the last few steps. The score in the table then says SWAD and
# means "last, slightly smoothed".

# %% tags=["hide-input"]
falling = list(np.round(1.5 * 0.93 ** np.arange(20), 3))
bouncing = [1.5, 0.9, *(0.72 + 0.1 * np.sin(np.arange(18) * 1.9)).round(3)]
late = [1.5 - 0.04 * i for i in range(14)] + [0.95, 0.96, 0.97, 0.98, 0.97, 0.96]
fig, axes = plt.subplots(1, 3, figsize=(7.2, 2.9), sharey=True)
ends = {}
for axis, (name, curve) in zip(axes, {"still falling": falling, "noisy": bouncing, "a late valley": late}.items(),
                               strict=True):  # fmt: skip
    ends[name] = draw_window(axis, curve, (4, 6), legend=axis is axes[1])
    axis.set_title(f"{name}\n{axis.get_title()}", fontsize=9.5)
axes[0].set_ylabel("loss")
fig.legend(*axes[1].get_legend_handles_labels(), loc="outside lower center", ncols=5, columnspacing=1.0)
plt.show()
display(figure_source(MADE_UP, AGAIN))
caption("Synthetic: made-up loss curves under SADA's setting (4, 6, 0.3).")
Markdown(" ".join(f"*{n.capitalize()}*: {a.count} {'steps' if n == 'still falling' else 'segments'}, "
                  f"{a.start} to {a.end}." for n, a in ends.items()))  # fmt: skip

# %% [markdown]
# **The baselines and SADA are averaged over different runs.** In the released code the detector watches a baseline from
# step 0 and may end its training early; SADA has two stages, and SWAD looks at the second only. Its first segment
# there is made of the last steps of stage 1. `swad_from_step` says from where the detector looks.
#
# ## Last, best, averaged
#
# Now a network, small enough to train here: points in a plane with two noisy source laboratories and an unseen one
# whose dye lies further out (the toy of the chapter on [aligning features](aligning_features), with label noise). Every
# few steps we note the validation loss on the sources, and at the end compare the three choices.

# %%
CENTRES = torch.tensor([[0.0, 0.0], [1.5, 0.4], [3.0, 0.0]])
DYES = torch.tensor([[0.0, -1.0], [0.2, 1.0], [0.3, 2.2]])


def points(n, lab, generator, noise=0.1):
    y = torch.randint(3, (n,), generator=generator)
    x = CENTRES[y] + DYES[lab] + 0.5 * torch.randn(n, 2, generator=generator)
    wrong = torch.rand(n, generator=generator) < noise
    return x, torch.where(wrong, torch.randint(3, (n,), generator=generator), y)


def make_network(seed):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(2, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 3))


def evaluate(network, sets):
    """Mean cross-entropy and accuracy over sets of (x, y)."""
    with torch.no_grad():
        logits = [network(x) for x, _ in sets]
        values = [F.cross_entropy(z, y).item() for z, (_, y) in zip(logits, sets, strict=True)]
        hits = [(z.argmax(1) == y).float().mean().item() for z, (_, y) in zip(logits, sets, strict=True)]
    return float(np.mean(values)), float(np.mean(hits))


def run(seed, steps, every=20, setting=(3, 6, 0.3), lr=4e-3):
    """Curves of a run; loss and accuracy on validation and in the unseen laboratory for the three choices."""
    generator = torch.Generator().manual_seed(seed)
    train = [points(60, lab, generator) for lab in (0, 1)]
    val = [points(60, lab, generator) for lab in (0, 1)]
    unseen = [points(800, 2, generator, noise=0.0)]
    network = make_network(seed)
    optimiser, valley = torch.optim.Adam(network.parameters(), lr=lr), LossValley(*setting)
    curve, best = [], (-1.0, None)
    for step in range(steps + 1):
        rows = torch.randint(60, (2, 16), generator=generator)
        batch = [torch.cat([part[i][r] for part, r in zip(train, rows, strict=True)]) for i in (0, 1)]
        optimiser.zero_grad()
        F.cross_entropy(network(batch[0]), batch[1]).backward()
        optimiser.step()
        valley.add(network.state_dict(), step)
        if step % every == 0:
            value, accuracy = evaluate(network, val)
            curve.append((step, value, evaluate(network, train)[0], *evaluate(network, unseen)))
            valley.checkpoint(value)
            if accuracy > best[0]:
                best = (accuracy, {k: v.clone() for k, v in network.state_dict().items()})
    averaged = valley.final()
    choices = {"last": network.state_dict(), "best": best[1], "averaged": averaged.weights}
    scores = {}
    for name, weights in {k: {n: v.clone() for n, v in w.items()} for k, w in choices.items()}.items():
        network.load_state_dict(weights)
        scores[name] = (*evaluate(network, val), *evaluate(network, unseen))
    return np.array(curve), scores, averaged, valley


SEEDS = range(2 if SMALL else 5)
STEPS = 400 if SMALL else 800
runs = [run(seed, STEPS) for seed in SEEDS]

# %% tags=["hide-input"]
curve, scores, averaged, valley = runs[0]
fig, axes = plt.subplots(1, 2, figsize=(7.2, 3.1))
axes[0].plot(curve[:, 0], curve[:, 2], color=ORANGE, ls=":", label="sources, training")
axes[0].plot(curve[:, 0], curve[:, 1], color=BLACK, label="sources, validation")
axes[0].plot(curve[:, 0], curve[:, 3], color=VERMILION, ls="--", label="unseen")
axes[0].axvspan(averaged.start, averaged.end, color=SKY, alpha=0.35, lw=0, label="averaged")
axes[0].set(xlabel="step", ylabel="cross-entropy", title="one run", ylim=(0, 1.05 * curve[:, 1:4].max()))
axes[0].legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2)
names = list(scores)
for _, several, _, _ in runs:
    values = [100 * several[name][3] for name in names]
    axes[1].plot(range(3), values, color="#AAAAAA", lw=1, zorder=1)
    for x, value in enumerate(values):
        axes[1].scatter(x, value, color=(VERMILION, ORANGE, BLUE)[x], marker=MARKERS[x], s=34, zorder=2)
axes[1].set_xticks(range(3), names)
axes[1].set(ylabel="accuracy, percent", title=f"unseen laboratory, {len(runs)} runs", xlim=(-0.4, 2.4))
plt.show()
display(figure_source("synthetic points in a plane and networks that it trains", AGAIN))
caption("Synthetic points. Right: a grey line joins the three choices of one run.")
columns = ["validation loss", "validation accuracy, %", "unseen loss", "unseen accuracy, %"]
means = {name: np.mean([several[name] for _, several, _, _ in runs], 0) * [1, 100, 1, 100] for name in names}
spread = {name: np.std([100 * several[name][3] for _, several, _, _ in runs], ddof=1) for name in names}
frame_html(pd.DataFrame([{"choice": name, **dict(zip(columns, values, strict=True)), "std over runs": spread[name]}
                         for name, values in means.items()]), "three_choices.csv", decimals=2, command=AGAIN,
           words=drawn_words("synthetic points in a plane"), synthetic="Synthetic points in a plane.",
           caption=f"Three choices from the same {len(runs)} runs, means (labels are noisy in validation only)")

# %% tags=["hide-input"]
gap = means["averaged"] - means["last"]
order = sorted(names, key=lambda name: -means[name][3])
Markdown(
    f"In the unseen laboratory the order of accuracy here is {', '.join(f'{n} ({means[n][3]:.1f} %)' for n in order)}; "
    f"from last to averaged the loss there goes from {means['last'][2]:.2f} to {means['averaged'][2]:.2f} and "
    f"accuracy by {gap[3]:+.1f} points, with a standard deviation over runs of "
    f"{min(spread.values()):.1f} to {max(spread.values()):.1f}. *Best* is chosen by an accuracy over "
    f"{2 * 60} noisy validation points, on which many checkpoints tie within chance, so it picks the luckiest of "
    f"{len(curve)}.\n\n"
    "Two effects are mixed in SWAD and worth telling apart: it *stops* at the end of the valley, and it *averages* "
    "inside. Exercise 2 separates them."
)

# %% [markdown]
# :::{admonition} Summary
# :class: tip
# - Averaging the weights of a run that bounces between the walls of a valley gives a point near its floor. How often
#   that is the better place when the valley is displaced was counted above.
# - SWAD averages densely between a start (nothing better for $N_s$ checkpoints) and an end (nothing below the threshold
#   for $N_e$). It chooses both by the *source* validation loss.
# - The code averages segments, reaches back before the start, and returns the last segment where there is no valley.
#   Settings that papers do not print decide which steps enter.
# - Last, best and averaged are three results of one run. A table must say which it shows, and a comparison of methods
#   must use the same one for all.
# :::
#
# ## Exercises
#
# **1.** Batch norms have running statistics beside their weights. What is the average network to do about them, and why
# does it not matter for the papers?
#
# :::{admonition} Solution
# :class: dropdown
# The running mean of the activations of averaged weights is not the average of running means. SWAD recomputes them with
# a pass over the training images. Where batch norms are frozen, as in both papers' settings, the statistics are those
# of ImageNet in all steps, and their average is themselves.
# :::
#
# **2.** Separate stopping from averaging: compare the averaged weights with the *single* networks inside the window.

# %% tags=["hide-cell"]
# Solution 2. The curve has the unseen accuracy at each checkpoint: average those inside the window, per run.
for seed, (curve, scores, averaged, _) in zip(SEEDS, runs, strict=True):
    inside = (curve[:, 0] >= averaged.start) & (curve[:, 0] <= averaged.end)
    print(f"run {seed}: last {100 * curve[-1, 4]:.1f} %, a network of the window {100 * curve[inside, 4].mean():.1f} % "
          f"on average, their averaged weights {100 * scores['averaged'][3]:.1f} %")

# %% [markdown]
# **3.** Average the weights of two networks that were trained from *different* starts. Does the valley help?

# %% tags=["hide-cell"]
# Solution 3. They lie in different valleys (their hidden units are not even in the same order): the middle is a hill.
def trained_from(seed):
    network, generator = make_network(seed), torch.Generator().manual_seed(0)
    sets = [points(60, lab, generator) for lab in (0, 1)]
    optimiser = torch.optim.Adam(network.parameters(), lr=4e-3)
    for _ in range(150):
        optimiser.zero_grad()
        sum(F.cross_entropy(network(x), y) for x, y in sets).backward()
        optimiser.step()
    return network, sets


(first, sets), (second, _) = trained_from(1), trained_from(2)
for share in (0, 0.25, 0.5, 0.75, 1):
    mixed = {k: (1 - share) * v + share * second.state_dict()[k] for k, v in first.state_dict().items()}
    between = make_network(0)
    between.load_state_dict(mixed)
    print(f"{share:.2f} of the way: training loss {evaluate(between, sets)[0]:.2f}")

# %% [markdown]
# **4.** The window is chosen on source validation loss. Give a reason why that loss may rise while the unseen
# laboratory's still falls, and say what SWAD then does.
#
# :::{admonition} Solution
# :class: dropdown
# Cross-entropy on the sources rises when the network becomes over-confident on a few wrong (or wrongly labelled)
# validation cells, even as its borders still improve; accuracy may go on rising. SWAD then leaves the valley early. Its
# end depends on confidence, not on errors, which is one reason for a generous tolerance of 30 %.
# :::
