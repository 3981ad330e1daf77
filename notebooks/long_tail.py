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
# # Learning from a long tail
#
# A blood smear is a lopsided data set. Segmented neutrophils and lymphocytes fill it; a plasma cell or a
# prolymphocyte, the cell that may matter most, turns up a handful of times. A network trained on such data in the
# ordinary way learns the frequent cells well and hardly ever dares to name a rare one.
#
# This chapter takes apart the four ideas with which the paper `decoupled` answers: **sampling** rare classes more
# often, **weighting** them by their effective number, **focusing** on hard examples, and **decoupling** the
# classifier from the features. Each gets a small picture. Then we put them together and find that some of them do the
# same job twice. Nothing here needs a GPU or a blood image: apart from one picture of the benchmark, the chapter runs
# on the class counts of WBCBench 2026 and on points in a plane.

# %% tags=["hide-input"]
import warnings
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from IPython.display import Markdown
from matplotlib.colors import ListedColormap
from matplotlib.ticker import FuncFormatter, PercentFormatter
from torch import nn

from wbcrepro.data.smears import WBCBENCH_COUNTS
from wbcrepro.longtail import heads, samplers
from wbcrepro.longtail.losses import make_loss
from wbcrepro.longtail.losses.effective_number import effective_number_weights
from wbcrepro.metrics import scores, wilson_interval
from wbcrepro.report.page import banner, drawn_words, figure_source, frame_html
from wbcrepro.session import open_session

warnings.filterwarnings("ignore", message=".*IProgress.*")
torch.set_num_threads(1)
BLUE, ORANGE, GREEN, RED, PURPLE, SKY, GREY = (
    "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#6B6B6B",
)  # fmt: skip
plt.rcParams.update({
    "figure.dpi": 144, "savefig.facecolor": "white", "figure.facecolor": "white", "font.size": 9,
    "axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": 9.5, "axes.titlelocation": "left",
    "axes.grid": True, "grid.color": "#E6E6E6", "grid.linewidth": 0.6, "axes.axisbelow": True,
    "legend.frameon": False, "figure.constrained_layout.use": True,
})  # fmt: skip
CLASSES = tuple(WBCBENCH_COUNTS)
COUNTS = np.array(list(WBCBENCH_COUNTS.values()))
TAIL = ("PMY", "PC", "PLY")
AGAIN = f"wbcrepro book --only long_tail --profile {PROFILE}"
FROM_COUNTS = "the class counts of WBCBench 2026 (WBCBENCH_COUNTS)"
FROM_POINTS = "points in a plane that it draws itself (seeds 0 to 3)"


def percent(x, digits=1):
    return f"{100 * x:.{digits}f} %"


# %% [markdown]
# ## The tail, and what it does to a score
#
# These are the labelled images of WBCBench 2026, the benchmark of two of our papers, on a logarithmic axis.

# %% tags=["hide-input"]
fig, ax = plt.subplots(figsize=(7.2, 2.7))
ax.bar(CLASSES, COUNTS, color=[RED if c in TAIL else BLUE for c in CLASSES], width=0.72)
ax.set_yscale("log")
ax.set_ylim(5, 60_000)
for position, n in enumerate(COUNTS):
    ax.text(position, n * 1.15, f"{n:,}", ha="center", va="bottom", fontsize=8)
ax.set(ylabel="labelled images", title="WBCBench 2026: thirteen classes, three orders of magnitude")
ax.grid(axis="x", visible=False)
plt.show()
figure_source(FROM_COUNTS, AGAIN)

# %% tags=["hide-input"]
always = scores(np.repeat(np.arange(13), COUNTS), np.zeros(COUNTS.sum(), int), 13)
Markdown(
    f"The imbalance ratio is {COUNTS[0]:,} : {COUNTS[-1]} = **{COUNTS[0] / COUNTS[-1]:,.0f}**. Someone who calls every "
    f"cell a segmented neutrophil has an accuracy of {percent(always['accuracy'])}, a balanced accuracy of "
    f"{percent(always['balanced_accuracy'])} and a **macro-F1 of {percent(always['macro_f1'])}**."
)

# %% [markdown]
# That is why the challenge ranks by macro-F1: the F1 score of each class, averaged with equal weight,
#
# $$ \mathrm{MF1} = \frac1C \sum_{c=1}^{C} \frac{2\,\mathrm{TP}_c}{2\,\mathrm{TP}_c + \mathrm{FP}_c + \mathrm{FN}_c}. $$
#
# One prolymphocyte more or less now counts as much as a thousand neutrophils. This cuts both ways. The paper's Fig. 2
# says that its best model finds 2 of 3 PLY and 11 of 18 PC. How sure can one be of a recall from so few cells? A
# Wilson interval $(p + z^2/2n \pm z\sqrt{p(1-p)/n + z^2/4n^2})\,/\,(1 + z^2/n)$ says it without pretending that 3 is
# large.

# %% tags=["hide-input"]
shown = [("PLY", 2, 3), ("PC", 11, 18), ("PMY", 21, 30), ("SNE", 3353, 3471)]
low, high = wilson_interval([k for _, k, _ in shown], [n for *_, n in shown])
fig, ax = plt.subplots(figsize=(7.2, 1.9))
for row, (name, k, n) in enumerate(shown):
    ax.plot([low[row], high[row]], [row, row], color=RED if name in TAIL else BLUE, lw=3.5, solid_capstyle="round")
    ax.plot(k / n, row, "o", color="white", mec="black", ms=5.5, zorder=3)
    ax.text(1.03, row, f"{percent(low[row], 0)} to {percent(high[row], 0)}", va="center", fontsize=8)
ax.set_yticks(range(len(shown)), [f"{name}  {k:,} of {n:,}" for name, k, n in shown])
ax.set(xlim=(0, 1), title="Recall and its 95 % Wilson interval")
ax.xaxis.set_major_formatter(PercentFormatter(1))
ax.set_ylim(3.5, -0.5)
ax.grid(axis="y", visible=False)
plt.show()
figure_source("counts in the paper's text (PLY, PC) and in the released code's stored log (PMY, SNE)", AGAIN)

# %% [markdown]
# (PLY and PC are from the paper's text; PMY and SNE from the log that is stored with the released code, where 21 of
# 30 and 96.6 % were recalled.) Macro-F1 adds the upper two intervals to the score with the same weight as the lowest.
#
# ### The benchmark of this run
#
# The rest of the book was computed on this one, head on the left and tail on the right, with the number of training
# images of each class:

# %% tags=["hide-input"]
session = open_session("decoupled", PROFILE, STORE, DATA, DATASET)
benchmark = session.benchmark
counts = benchmark.counts()
table = benchmark.table
fig, axes = plt.subplots(2, len(counts), figsize=(7.2, 1.65))
for c in range(len(counts)):
    shown = table.index[(table["set"] == "train") & (table["label"] == c)][:2]
    for ax, item in zip(axes[:, c], shown, strict=True):
        ax.imshow(benchmark.read(int(item)))
    axes[0, c].set_title(f"{benchmark.classes[c]}\n{counts[c]}", fontsize=8, loc="center")
for ax in axes.flat:
    ax.axis("off")
plt.show()
figure_source(f"the first two training images of each class of {benchmark.name}", AGAIN)

# %% tags=["hide-input"]
banner(benchmark.synthetic, f"Synthetic images: {benchmark.caption}. They show a mechanism, not evidence about blood.")

# %% tags=["hide-input"]
Markdown(
    f"*{benchmark.name}: {benchmark.caption}.* {counts.sum():,} training images in folds, imbalance ratio "
    f"{counts.max() / counts.min():.0f}.\n\n" + "\n".join(f"- {note}" for note in benchmark.notes)
)

# %% [markdown]
# ## Sampling: which images does an epoch see?
#
# Ordinary training visits every image once an epoch. A mini-batch then follows the data, and the paper writes this as
# **instance-balanced** sampling (its Eq. 1):
#
# $$ p_j = \frac{n_j}{\sum_{i=1}^{C} n_i}. $$
#
# **Class-balanced** sampling draws with weight $w_i = 1/n_{y_i}$, so that every class has the same share. Between
# them lie the square root, $p_j \propto \sqrt{n_j}$, and the very mild $n_j / \log(1 + n_j)$ of the paper `rescue`;
# *progressive* sampling moves from one end to the other during training (Kang et al., ICLR 2020). In code a draw
# takes two steps, the class and then an image of it, which stays exact and fast for tens of millions of images:

# %%
labels = np.repeat(np.arange(13), COUNTS)
epoch = samplers.class_balanced(labels, len(labels), np.random.default_rng(0))
drawn = np.bincount(labels[epoch], minlength=13)
table = pd.DataFrame([["images", *COUNTS], ["drawn in one epoch", *drawn]], columns=["count", *CLASSES])
frame_html(table, "draws.csv", command=AGAIN, words=drawn_words(FROM_COUNTS))

# %% tags=["hide-input"]
kinds = [("instance", 0, "instance", GREY), ("log1p", 0, "log", PURPLE), ("square_root", 0, "square root", SKY),
         ("progressive", 0.5, "progressive, half-way", ORANGE),
         ("class_balanced", 0, "class-balanced", BLUE)]  # fmt: skip
fig, (left, right) = plt.subplots(1, 2, figsize=(7.2, 3.0))
for kind, progress, label, color in kinds:
    share = samplers.class_shares(COUNTS, kind, progress)
    left.plot(CLASSES, share, "o-", color=color, ms=3.5, lw=1.3, label=label)
    right.plot(CLASSES, share * COUNTS.sum() / COUNTS, "o-", color=color, ms=3.5, lw=1.3)
left.set(yscale="log", title="Share of the draws", ylabel="share")
left.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g}%"))
right.set(yscale="log", title="Times that one image is seen in an epoch")
right.axhline(1, color="black", lw=0.7)
for ax in (left, right):
    ax.tick_params(axis="x", labelrotation=90)
left.legend(fontsize=7.5, loc="lower left")
plt.show()
figure_source(FROM_COUNTS, AGAIN)

# %% tags=["hide-input"]
train = np.round(COUNTS * 0.8)
repeats = samplers.class_shares(train, "class_balanced") * train.sum() / train
Markdown(
    f"With the 80 % of the images that the released code trains on, class-balanced sampling shows each of the "
    f"{train[-1]:.0f} prolymphocytes **{repeats[-1]:.0f} times an epoch**, and leaves "
    f"{percent(np.exp(-repeats[0]), 0)} of the neutrophils unseen ({repeats[0]:.2f} draws an image)."
)

# %% [markdown]
# Repetition is not information. Seeing eleven cells two hundred times teaches a deep network to know those eleven by
# heart, which is the argument for using this sampler only in the second stage, where a small classifier is all that
# can still change.
#
# ## Weighting: the effective number of samples
#
# Instead of drawing a rare class more often one can weigh its loss. The obvious weight is $1/n_j$. Cui et al. (CVPR
# 2019) observe that the tenth-thousandth neutrophil adds less than the tenth: samples overlap. If each new sample
# falls into what is already covered with a probability that grows with the covered volume, $n$ samples are worth
#
# $$ E_{n} = \frac{1-\beta^{n}}{1-\beta}, \qquad
#    \alpha_j = \frac{1}{E_{n_j}} = \frac{1-\beta}{1-\beta^{n_j}} \qquad \text{(Eq. 2 of the paper)}. $$
#
# $\beta$ sets where saturation begins: $E_n \approx n$ for $n \ll 1/(1-\beta)$, and never more than $1/(1-\beta)$.
# **Hypothesis:** at the paper's $\beta = 0.9999$ the tail is weighed as by $1/n$, and only the head is spared.

# %% tags=["hide-input"]
n = np.logspace(0, 4.5, 300)
fig, (left, right) = plt.subplots(1, 2, figsize=(7.2, 3.0))
for beta, color in ((0.9, PURPLE), (0.99, SKY), (0.999, ORANGE), (0.9999, BLUE), (0.99999, GREEN)):
    left.plot(n, 1 / effective_number_weights(n, beta, "none"), color=color, lw=1.6, label=f"β = {beta}")
    right.plot(CLASSES, effective_number_weights(COUNTS, beta), "o-", color=color, ms=3.5, lw=1.3)
left.plot(n, n, color="black", lw=0.8, ls=":", label="n itself")
left.plot(COUNTS, 1 / effective_number_weights(COUNTS, 0.9999, "none"), "o", color=BLUE, ms=4)
for name in ("PLY", "PMY", "EO", "LY", "SNE"):
    x = WBCBENCH_COUNTS[name]
    y = float(1 / effective_number_weights([x], 0.9999, "none")[0])
    left.annotate(name, (x, y), (3, -9), textcoords="offset points", fontsize=7.5)
left.set(xscale="log", yscale="log", xlabel="n", ylabel="$E_n$", title="Effective number of n images")
right.plot(CLASSES, (1 / COUNTS) / (1 / COUNTS).mean(), color="black", lw=0.8, ls=":")
right.set(yscale="log", title="Class weight α, scaled to mean 1")
right.tick_params(axis="x", labelrotation=90)
left.legend(fontsize=7.5)
plt.show()
figure_source(f"{FROM_COUNTS} and Eq. 2", AGAIN)

# %% tags=["hide-input"]
alpha = effective_number_weights(COUNTS, 0.9999)
inverse = (1 / COUNTS) / (1 / COUNTS).mean()
weights = dict(zip(CLASSES, alpha, strict=True))
apart = np.abs(alpha / inverse / (alpha[-1] / inverse[-1]) - 1)[COUNTS < 1000].max()
Markdown(
    f"At β = 0.9999 the weights run from {alpha[0]:.3f} (SNE) to {alpha[-1]:.2f} (PLY), a ratio of "
    f"**{alpha[-1] / alpha[0]:.0f}**; plain 1/n would give {inverse[-1] / inverse[0]:,.0f}. For every class with fewer "
    f"than 1,000 images the two differ by at most {percent(apart)}; only "
    f"the head is weighed differently. The hypothesis holds."
)

# %% [markdown]
# In code the denominator is evaluated with `expm1`, because $1-\beta^n$ loses digits where $\beta^n$ is close to 1,
# the case of every rare class. Eq. 2 has no normalisation; the released code divides by the mean. The loss is linear
# in $\alpha$, so this only rescales it, and an Adam-type optimiser hardly notices.
#
# ## Focusing: a hard example is worth more
#
# The focal loss multiplies the cross-entropy by $(1-p_y)^\gamma$, so that examples that are already right count
# little:
#
# $$ \mathcal L_{CE} = -\alpha_y \log p_y \;\;\text{(3)}, \qquad
#    \mathcal L_{Focal} = (1-p_y)^\gamma\, \mathcal L_{CE} \;\;\text{(4)}, \qquad
#    \mathcal L_{Stage2} = (1-\lambda)\,\mathcal L_{CE} + \lambda\,\mathcal L_{Focal} \;\;\text{(5)} $$
#
# with $\gamma = 2$ and $\lambda = 0.5$. The released code computes the focal factor from
# $p_t = \exp(-\mathcal L_{CE})$. Without class weights this is $p_y$. *With* them it is
# $\exp(\alpha_y \log p_y) = p_y^{\alpha_y}$: a different number for every class.

# %%
z = torch.tensor([[0.0, 0.0]])  # an undecided network: p = 0.5 for either class
for variant in ("p", "p_alpha"):
    loss = make_loss("focal", [COUNTS[0], COUNTS[-1]], beta=0.9999, variant=variant)
    print(f"{variant:8}", *(f"{float(loss(z, torch.tensor([y]))):.6f}" for y in (0, 1)), "(SNE, PLY)")

# %% tags=["hide-input"]
p = np.linspace(0.001, 0.999, 400)
fig, axes = plt.subplots(1, 2, figsize=(7.2, 2.9), sharey=True)
axes[0].plot(p, (1 - p) ** 2, color="black", lw=2, label="every class")
axes[0].set(title="As printed: $(1-p)^2$", ylabel="focal factor")
for name, color in (("SNE", BLUE), ("MO", SKY), ("MMY", GREEN), ("PMY", ORANGE), ("PLY", RED)):
    axes[1].plot(p, (1 - p ** weights[name]) ** 2, color=color, lw=1.8, label=f"{name}, α = {weights[name]:.3g}")
axes[1].plot(p, (1 - p) ** 2, color="black", lw=0.9, ls=":")
axes[1].set(title=r"As released: $(1-p^{\alpha})^2$")
for ax in axes:
    ax.set(xlabel="probability p of the true class")
axes[1].legend(fontsize=7.5, loc="center", bbox_to_anchor=(0.5, 0.7))
plt.show()
figure_source(f"{FROM_COUNTS} and Eq. 4", AGAIN)

# %% tags=["hide-input"]
half = {name: (1 - 0.5 ** weights[name]) ** 2 for name in ("SNE", "PLY")}
Markdown(
    f"At p = 0.5 the printed factor is 0.25. The released one is **{half['SNE']:.4f} for SNE** and "
    f"**{half['PLY']:.3f} for PLY**. For the head the focal term vanishes and half the cross-entropy is left; for PLY "
    f"the hybrid loss is the full weighted cross-entropy, until the network is very sure. So the quirk adds a factor "
    f"of up to 2 to the re-weighting, and the focusing is gone. It is not an invention of this paper: LDAM-DRW's focal "
    f"loss and the paper `rescue` share it. The preset `code` keeps it, the preset `paper` uses Eq. 4."
)

# %% [markdown]
# ## Twice the same medicine
#
# Sampling by $1/n$ makes all classes equally frequent in stage 2. The loss then multiplies by $\alpha \approx 1/n$
# once more. **Hypothesis:** together they do not balance the classes, they turn the tail upside down. What each class
# contributes to the expected loss, if all cells were equally hard, is the product of its share of the draws and its
# weight:

# %% tags=["hide-input"]
share = {k: samplers.class_shares(train, k) for k in ("instance", "class_balanced")}
mixes = [("instance draws, CE", share["instance"], GREY), ("instance draws, α", share["instance"] * alpha, SKY),
         ("balanced draws, CE", share["class_balanced"], BLUE),
         ("balanced draws, α\n(the paper's stage 2)", share["class_balanced"] * alpha, RED)]  # fmt: skip
fig, axes = plt.subplots(1, 4, figsize=(7.2, 2.9), sharey=True)
mass = {}
for ax, (title, m, color) in zip(axes, mixes, strict=True):
    mass[title] = m / m.sum()
    ax.barh(CLASSES, mass[title], color=color, height=0.7)
    for row, value in enumerate(mass[title]):
        if value >= 0.05:
            inside = value > 0.55
            ax.text(value + (-0.02 if inside else 0.02), row, percent(value, 0), va="center", fontsize=7.5,
                    ha="right" if inside else "left", color="white" if inside else "black")  # fmt: skip
    ax.set_title(title, fontsize=8)
    ax.set_xlim(0, 0.85)
    ax.xaxis.set_major_formatter(PercentFormatter(1))
    ax.grid(axis="y", visible=False)
axes[0].invert_yaxis()
fig.supxlabel("share of the loss weight", fontsize=8.5)
plt.show()
figure_source(f"80 % of {FROM_COUNTS}", AGAIN)

# %% tags=["hide-input"]
double = dict(zip(CLASSES, list(mass.values())[3], strict=True))
Markdown(
    f"Either remedy alone does what it promises. Both together give **{percent(double['PLY'])} of the loss to PLY**, "
    f"{percent(double['PC'])} to PC, {percent(double['PMY'])} to PMY and {percent(double['SNE'], 2)} to SNE, which is "
    f"{percent(COUNTS[0] / COUNTS.sum(), 0)} of the data. Eleven images decide where the boundaries go."
)

# %% [markdown]
# The paper's argument for using both is empirical, and its two-stage recipe limits the damage: only the last layer
# can follow. Whether it helps is a question for experiments. Let us do a small one first.
#
# ## Decoupling, in a plane
#
# Kang et al. found that instance-balanced training gives the best *features*, and that it is the *classifier* on top
# that is biased towards the head. So: train as usual, freeze the network, throw the last layer away, train a new one
# on class-balanced samples. That is **cRT**, stage 2 of the paper.
#
# Our toy has five classes of points in a plane, 1,000 : 316 : 100 : 32 : 10, with overlap, so that even the best
# classifier errs. A small network learns 64 features; its last layer is all that stage 2 may touch.

# %%
TOY = np.array([1000, 316, 100, 32, 10])
CENTRES = np.array([[0, 0], [1.9, 0.6], [0.3, 2.0], [2.3, 2.5], [-1.9, 1.3]])


def points(counts, seed):
    """Points (N, 2) and labels (N,): bent Gaussian clouds around the five centres."""
    labels = np.repeat(np.arange(5), counts)
    noise = np.random.default_rng(seed).normal(0, 0.75, (len(labels), 2))
    noise[:, 1] += 0.35 * (noise[:, 0] ** 2 - 0.5)
    return torch.tensor(CENTRES[labels] + noise, dtype=torch.float32), labels


def train_network(x, y, seed, loss="cross_entropy", head="linear", epochs=25, **options):
    """Stage 1: everything is trained, on instance-balanced batches. Returns (features of x -> R^64, head)."""
    torch.manual_seed(seed)
    body = nn.Sequential(nn.Linear(2, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU())
    top = heads.make_head(head, 64, 5, seed=seed)
    criterion, targets = make_loss(loss, np.bincount(y, minlength=5), **options), torch.tensor(y)
    optimiser = torch.optim.AdamW([*body.parameters(), *top.parameters()], lr=5e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, epochs)
    sampler = samplers.ClassSampler(y, "instance")
    for epoch in range(epochs):
        if hasattr(criterion, "set_epoch"):
            criterion.set_epoch(epoch)  # LDAM's deferred re-weighting
        for batch in torch.as_tensor(samplers.epoch_indices(sampler, seed, epoch, epochs)).split(128):
            value = criterion(top(body(x[batch])), targets[batch])
            optimiser.zero_grad()
            value.backward()
            optimiser.step()
        schedule.step()
    return body.requires_grad_(False).eval(), top.eval()


# %% [markdown]
# Stage 2 starts from the frozen features. Every way to a new classifier is one call; none of them changes `body`.

# %%
STAGE2 = heads.CRTConfig(epochs=25, batch_size=128, lr=5e-3)  # class-balanced draws, hybrid loss: the paper's


def classifiers(body, top, x, y, val_x, val_y, seed):
    """Classifiers on the frozen features, by name."""
    z, val_z, common = body(x), body(val_x), {"classes": 5, "seed": seed}
    plain, released = replace(STAGE2, loss="cross_entropy"), replace(STAGE2, loss_options={"variant": "p_alpha"})
    fit = (z, y, val_z, val_y)
    return {
        "stage 1 as trained": top,
        "τ-normalisation": heads.fit_tau_norm(top, val_z, val_y),
        "LWS": heads.fit_lws(top, *fit, replace(STAGE2, lr=0.02), **common),
        "nearest class mean": heads.fit_ncm(z, y, classes=5),
        "logit adjustment": heads.logit_adjust(top, np.bincount(y)),
        "cRT, cross-entropy": heads.fit_crt(*fit, plain, **common),
        "cRT, hybrid loss (p)": heads.fit_crt(*fit, STAGE2, **common),
        "cRT, hybrid loss ($p^α$)": heads.fit_crt(*fit, released, **common),
    }


SEEDS = range(4)
runs, recalls = [], []
for seed in SEEDS:
    x, y = points(TOY, seed)
    val, test, as_met = points([40] * 5, 100 + seed), points([400] * 5, 200 + seed), points(10 * TOY, 300 + seed)
    body, top = train_network(x, y, seed)
    found = classifiers(body, top, x, y, *val, seed)
    networks = {name: (body, head) for name, head in found.items()}
    for name, options in (("balanced softmax, one stage", {"loss": "balanced_softmax"}),
                          ("LDAM-DRW, one stage", {"loss": "ldam", "head": "cosine", "drw_start": 20})):  # fmt: skip
        networks[name] = train_network(x, y, seed, **options)
    runs.append((x, y, body, found))
    for name, (network, head) in networks.items():
        even, tailed = (scores(truth, heads.predict_logits(head, network(x)).argmax(1).numpy(), 5)
                        for x, truth in (test, as_met))  # fmt: skip
        recalls.append({"method": name, "seed": seed, **dict(enumerate(even["per_class"]["recall"])),
                        "macro-F1": even["macro_f1"], "long-tailed macro-F1": tailed["macro_f1"]})  # fmt: skip
results = pd.DataFrame(recalls).groupby("method", sort=False)

# %% [markdown]
# Two test sets are drawn: a balanced one, which asks about every class equally, and one with the class counts of the
# training set, as in WBCBench. First look at one run. The dots are the training points; the coloured regions say
# which class the network would answer. Class 4, ten points on the left, is the tail.

# %% tags=["hide-input"]
COLORS = [BLUE, ORANGE, GREEN, PURPLE, RED]
x, y, body, found = runs[0]
xs, ys = np.meshgrid(np.linspace(-4.3, 4.8, 220), np.linspace(-3.4, 5.4, 200))
grid = body(torch.tensor(np.c_[xs.ravel(), ys.ravel()], dtype=torch.float32))
panels = ["stage 1 as trained", "cRT, cross-entropy", "cRT, hybrid loss (p)",
          "τ-normalisation", "logit adjustment", "cRT, hybrid loss ($p^α$)"]  # fmt: skip
means = results.mean()
fig, axes = plt.subplots(2, 3, figsize=(7.2, 4.9), sharex=True, sharey=True)
for ax, name in zip(axes.flat, panels, strict=True):
    answer = heads.predict_logits(found[name], grid).argmax(1).numpy().reshape(xs.shape)
    ax.pcolormesh(xs, ys, answer, cmap=ListedColormap(COLORS), vmin=0, vmax=4, alpha=0.25, rasterized=True)
    ax.contour(xs, ys, answer, levels=np.arange(0.5, 4.5), colors="white", linewidths=1.1)
    for c in range(5):
        ax.scatter(*x[y == c][:250].T, s=16 if c == 4 else 4, color=COLORS[c], lw=0.4,
                   edgecolor="black" if c == 4 else "none", zorder=3 + c)  # fmt: skip
    ax.set_title(name)
    ax.grid(visible=False)
    ax.set(xticks=[], yticks=[])
for c, place in enumerate([(-1.2, -2.6), (3.6, -1.6), (-0.3, 4.7), (3.6, 4.6), (-3.7, 3.2)]):
    axes[0, 0].text(*place, f"{TOY[c]:,}", color=COLORS[c], fontweight="bold", ha="center")
plt.show()
figure_source("points in a plane that it draws itself (seed 0)", AGAIN)

# %% [markdown]
# The features are the same in all six panels; only the last layer differs. Now the averages over several draws of
# data and network. Recalls do not depend on how many test images a class has; precision, and so macro-F1, does.

# %% tags=["hide-input"]
order = list(means.index)
fig, (left, right) = plt.subplots(1, 2, figsize=(7.2, 3.6), width_ratios=(2, 1), sharey=True)
for c in range(5):
    left.scatter(means[c], range(len(order)), s=38, color=COLORS[c], zorder=3, label=f"{TOY[c]:,} images",
                 marker="osD^v"[c])  # fmt: skip
left.hlines(range(len(order)), means[list(range(5))].min(axis=1), means[list(range(5))].max(axis=1), color="#BBBBBB")
left.set_yticks(range(len(order)), order)
left.set(title="Recall of each class", xlim=(0, 1))
left.invert_yaxis()
left.legend(ncols=5, fontsize=7, loc="upper center", bbox_to_anchor=(0.42, -0.12), handletextpad=0.1, columnspacing=0.8)
spread = results.std()
for column, shift, face, label in (("macro-F1", -0.14, "black", "balanced test set"),
                                   ("long-tailed macro-F1", 0.14, "white", "long-tailed test set")):  # fmt: skip
    right.errorbar(means[column], np.arange(len(order)) + shift, xerr=spread[column], fmt="o", color="black", mfc=face,
                   ms=4.5, lw=1, label=label)  # fmt: skip
right.set(title=f"Macro-F1 (mean, std of {len(SEEDS)})")
right.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.45, -0.12))
for ax in (left, right):
    ax.grid(axis="y", visible=False)
    ax.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
plt.show()
figure_source(FROM_POINTS, AGAIN)

# %% tags=["hide-input"]
def line(name):
    return ", ".join(percent(means.loc[name, c], 0) for c in range(5))


base, crt, hybrid = "stage 1 as trained", "cRT, cross-entropy", "cRT, hybrid loss (p)"
gain, gain_tailed = (means.loc[crt, m] - means.loc[base, m] for m in ("macro-F1", "long-tailed macro-F1"))
loss_by_both = means.loc[crt, "macro-F1"] - means.loc[hybrid, "macro-F1"]
loss_tailed = means.loc[crt, "long-tailed macro-F1"] - means.loc[hybrid, "long-tailed macro-F1"]


def moves(value):
    return f"{'rises' if value > 0 else 'falls'} by {100 * abs(value):.1f} points"


Markdown(
    f"Recalls from head to tail:\n\n"
    f"- stage 1 as trained: {line(base)}. The tail class is hardly ever named.\n"
    f"- cRT with plain cross-entropy: {line(crt)}, with features that never saw a balanced batch.\n"
    f"- cRT with the paper's hybrid loss: {line(hybrid)}. The tail is found still more often, and the head pays.\n\n"
    f"From stage 1 to plain cRT, macro-F1 **{moves(gain)} on the balanced test set and {moves(gain_tailed)} on the "
    f"long-tailed one**: there, a few per cent of a large class are many false alarms for a small one. The hybrid loss "
    f"moves it again: compared with plain cRT it {moves(-loss_by_both)} on the balanced test set and "
    f"{moves(-loss_tailed)} on the long-tailed one."
)

# %% [markdown]
# This is the most useful thing that the toy can teach: *whether re-balancing "helps macro-F1" depends on the test set's
# own class counts.* The paper's 20 % held-out set is long-tailed, as is the challenge's; the test sets of this book's
# synthetic and Acevedo benchmarks are balanced, so that every recall can be measured. Read the two with different eyes.
#
# The paper's own numbers have the shape of the long-tailed case. In its Table 1 the decoupled Swin gains 11.9 points of
# balanced accuracy over the supervised one (69.0 to 80.9) and loses 5.2 points of macro-F1 (71.2 to 66.0): more tail
# found, more false alarms. (Both ResNets gain on both.) In the one log that comes with the released code, stage 2
# raises balanced accuracy from 67.9 to 73.7 and lowers macro-F1 from 71.5 to 67.8 at its end. Our toy suggests a reason
# and proves nothing about blood; the [results chapter](decoupled_results) looks at images.
#
# ## Cheaper ways to a new classifier
#
# Three of the rows above need no training at all, and each is a statement about *what* is wrong with the old layer.
#
# - **τ-normalisation** blames long weight vectors: $\tilde w_c = w_c / \lVert w_c \rVert^{\tau}$, with $\tau$ chosen
#   on validation and the bias dropped.
# - **LWS** learns one factor a class instead; the directions stay.
# - **Logit adjustment** blames the prior: $z_c - \tau \log \pi_c$ (Menon et al., ICLR 2021). If the network's
#   probabilities were right, this would be Bayes' rule for equally frequent classes. *Balanced softmax* puts the same
#   term into the training loss.
# - **Nearest class mean** drops the layer and measures distances between features.

# %% tags=["hide-input"]
fig, axes = plt.subplots(1, 3, figsize=(7.2, 2.6))
peaks = []
for position, (*_, body, found) in enumerate(runs):
    top, steps = found["stage 1 as trained"], []
    val = points([40] * 5, 100 + position)
    heads.fit_tau_norm(top, body(val[0]), val[1], log=steps.append)
    axes[0].plot(range(5), top.weight.detach().norm(dim=1), "o-", color=BLUE, ms=3, lw=1, alpha=0.7)
    axes[1].plot([s["tau"] for s in steps], [s["val_macro_f1"] for s in steps], color=BLUE, lw=1.2, alpha=0.7)
    curve = []
    for tau in np.linspace(0, 2, 21):
        answer = heads.predict_logits(heads.logit_adjust(top, TOY, tau), body(val[0])).argmax(1).numpy()
        curve.append(scores(val[1], answer, 5)["macro_f1"])
    axes[2].plot(np.linspace(0, 2, 21), curve, color=GREEN, lw=1.2, alpha=0.7)
    peaks.append(np.linspace(0, 2, 21)[int(np.argmax(curve))])
axes[0].set_xticks(range(5), [f"{n:,}" for n in TOY])
axes[0].set(title="Norm of $w_c$", xlabel="images of class c", ylim=(0, None))
axes[1].set(title="τ-normalisation", xlabel="τ", ylabel="validation macro-F1", ylim=(0.3, 0.95))
axes[2].set(title="Logit adjustment", xlabel="τ", ylim=(0.3, 0.95))
axes[2].axvline(1, color="black", lw=0.7, ls=":")
plt.show()
figure_source(FROM_POINTS, AGAIN)

# %% tags=["hide-input"]
norms = np.mean([r[3]["stage 1 as trained"].weight.detach().norm(dim=1).numpy() for r in runs], axis=0)
head_long = norms[0] > norms[-1]
tau_gain = means.loc["τ-normalisation", "macro-F1"] - means.loc[base, "macro-F1"]
la_gain = means.loc["logit adjustment", "macro-F1"] - means.loc[base, "macro-F1"]
Markdown(
    f"The weight vectors of the head are on average {'longer' if head_long else 'not longer'} than those of the tail "
    f"here ({norms[0]:.2f} against {norms[-1]:.2f}), and τ-normalisation changes macro-F1 on the balanced test set by "
    f"{100 * tau_gain:+.1f} points; logit adjustment by {100 * la_gain:+.1f}, with its curves highest at τ = "
    f"{np.mean(peaks):.2f} on average, where theory says 1. "
    + ("This is the situation that Kang et al. describe." if head_long else
       "Kang et al. saw long head vectors after many epochs of SGD with weight decay on ImageNet-LT. A small network "
       "trained by AdamW need not have them, and then this remedy has little to cure.")
)

# %% [markdown]
# :::{admonition} Summary
# :class: tip
# - Macro-F1 makes a class of fourteen images as important as one of seventeen thousand, and itself as uncertain as
#   fourteen images are.
# - Class-balanced sampling, effective-number weights and logit adjustment are three ways to change the *prior*. One is
#   enough; the paper's stage 2 applies two, and most of the loss then comes from a dozen images.
# - The focal factor of the released code is $(1-p^\alpha)^\gamma$, not $(1-p)^\gamma$: it switches focusing off and
#   adds a little more re-weighting.
# - Decoupling needs no balanced features. Freeze the network, and the boundaries of a new last layer can go where the
#   balanced classes want them.
# - More recall of the tail is bought with false alarms from the head. Balanced accuracy hardly sees them; macro-F1
#   does, and on a long-tailed test set much more than on a balanced one.
# :::
#
# ## Exercises
#
# **1.** Which $\beta$ gives WBCBench a weight ratio of exactly 100 between PLY and SNE? Which would switch weighting
# off?

# %% tags=["hide-cell"]
# Solution 1. The ratio is E(17354) / E(14), which grows with beta from 1 (beta = 0) towards 17354 / 14.
betas = 1 - np.logspace(-5, 0, 2001)
ratio = np.array([np.divide(*effective_number_weights([14, 17354], b)) for b in betas])
print(f"ratio 100 at beta = {betas[np.argmin(abs(ratio - 100))]:.5f}; at beta = 0 the ratio is {ratio[-1]:.0f}")

# %% [markdown]
# **2.** Undo the double re-balancing: keep the class-balanced sampler, and find the $\beta$ of the hybrid loss in the
# toy that gives the best macro-F1. What do you expect before you run it?

# %% tags=["hide-cell"]
# Solution 2. beta = 0 weighs all classes alike, so it should come close to plain cRT and beat 0.9999.
x, y, body, found = runs[0]
val, test = points([40] * 5, 100), points([400] * 5, 200)
for beta in (0.0, 0.9, 0.99, 0.999, 0.9999):
    config = replace(STAGE2, loss_options={"beta": beta})
    head = heads.fit_crt(body(x), y, body(val[0]), val[1], config, classes=5, seed=0)
    got = scores(test[1], heads.predict_logits(head, body(test[0])).argmax(1).numpy(), 5)
    print(f"beta {beta:<7} macro-F1 {got['macro_f1']:.3f}   recall of head {got['per_class']['recall'][0]:.2f}, "
          f"of tail {got['per_class']['recall'][4]:.2f}")

# %% [markdown]
# **3.** A colleague reports balanced accuracy only. Build predictions for the toy's class counts that have a higher
# balanced accuracy than another set but a lower macro-F1.

# %% tags=["hide-cell"]
# Solution 3. Hand a tenth of the head to the tail: its recall rises to one, its precision falls to a tenth.
truth = np.repeat(np.arange(5), TOY)
careful = truth.copy()
careful[-5:] = 0  # half of the tail is missed
eager = truth.copy()
eager[:100] = 4  # the tail is always found, and a hundred head cells are called tail
for name, guess in (("careful", careful), ("eager", eager)):
    got = scores(truth, guess, 5)
    print(f"{name:8} balanced accuracy {got['balanced_accuracy']:.3f}, macro-F1 {got['macro_f1']:.3f}")

# %% [markdown]
# **4.** How many test images of a class are needed before a recall of 2/3 has a Wilson interval narrower than ten
# points?

# %% tags=["hide-cell"]
# Solution 4. Wilson's interval narrows with the square root of n.
sizes = np.arange(3, 2000, 3)
low, high = wilson_interval(sizes * 2 // 3, sizes)
print(f"{sizes[np.argmax(high - low < 0.1)]} images; the benchmark's test split would need that many prolymphocytes")
