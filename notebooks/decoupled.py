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
# # Decoupled learning, read with the code beside it
#
# This chapter reads *Robust White Blood Cell Classification with Stain-Normalized Decoupled Learning and
# Ensembling* (Le, Cao, Pham, Nguyen and Bagci, 2026) in its own order. Each passage is followed by the cell of code
# that *is* it: a few lines, run here on a handful of images or on what the store holds. Quotations are short and
# marked; the rest is our paraphrase. What came of it all is in the [next chapter](decoupled_results), and where the
# text and the released code part company is in the [one after](decoupled_findings).
#
# The method in one paragraph: make the stains look alike; train a network in the ordinary way; freeze it, throw its
# last layer away and train a new one on classes drawn equally often; average the probabilities of several such networks
# over several flips and turns of the image.

# %% tags=["hide-input"]
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from IPython.display import Markdown, display

from wbcrepro.backbones import build_backbone
from wbcrepro.inference.tta import CODE_WEIGHTS, DIHEDRAL, EQUAL_WEIGHTS, combine_views, view
from wbcrepro.longtail import samplers
from wbcrepro.longtail.heads import make_head
from wbcrepro.longtail.losses import make_loss
from wbcrepro.longtail.losses.effective_number import effective_number_weights
from wbcrepro.report.figures import training_figure, use_style
from wbcrepro.report.page import Html, banner, drawn_words, figure_source, frame_html, hole, source
from wbcrepro.report.predictions import from_plan
from wbcrepro.session import open_session
from wbcrepro.stain import normaliser

torch.set_num_threads(1)
use_style()
session = open_session("decoupled", PROFILE, STORE, DATA, DATASET, RESULTS, WEIGHTS, ACCUMULATE)
missing = session.run_missing()
benchmark, classes = session.benchmark, session.benchmark.classes
paper = from_plan(session.plan, session.store).paper
settings = paper["profiles"][PROFILE]
SYNTHETIC = benchmark.caption if session.synthetic else ""
AGAIN = f"wbcrepro book --only decoupled {session.plan.options}"
command = session.plan.make_command()
banner(session.synthetic, SYNTHETIC)

# %% tags=["hide-input"]
networks = ", ".join(f"{paper['backbone_roles'][r]} is played by `{n}`" for r, n in settings["backbones"].items())
state = (
    "every cell of it has been run" if not missing else f"{missing} of its {len(session.plan.cells)} cells are missing"
)
Markdown(
    f"This page was made with the profile `{PROFILE}` ({settings['words']}) on `{benchmark.name}`; {state}. "
    f"In it {networks}. The paper's own protocol is the profile `paper`."
)

# %% [markdown]
# ## Abstract and introduction: two troubles
#
# > "real-world WBC datasets present substantial appearance variations … as well as severe class imbalance"
#
# Both can be seen before any training. Below are the training images of each class, largest first, and their numbers.

# %% tags=["hide-input"]
counts = benchmark.counts("train")
table = benchmark.table
fig, axes = plt.subplots(2, len(classes), figsize=(7.2, 1.75), gridspec_kw={"hspace": 0.02, "wspace": 0.05})
for column, name in enumerate(classes):
    rows = table.index[(table["label"] == column) & (table["set"] == "train")]
    for axis, item in zip(axes[:, column], [rows[0], rows[-1]], strict=True):
        axis.imshow(benchmark.read(int(item)))
        axis.set_axis_off()
    axes[0, column].set_title(f"{name}\n{counts[column]}", fontsize=8)
plt.show()
figure_source(f"the first and last training image of each class of {benchmark.name}", AGAIN)

# %% tags=["hide-input"]
Markdown(
    f"The largest class, {classes[int(counts.argmax())]}, has {counts.max()} training images and the smallest, "
    f"{classes[int(counts.argmin())]}, has {counts.min()}: a ratio of {counts.max() / counts.min():.0f}. "
    f"Someone who always answers {classes[int(counts.argmax())]} is right "
    f"for {100 * counts.max() / counts.sum():.0f} % of them."
)

# %% [markdown]
# ## 2.1 Data preprocessing
#
# > "we apply Macenko stain normalization, which converts RGB images into optical density (OD) space, estimates dominant
# > stain vectors … and projects each image onto a standardized stain template"
#
# Then come a resize and a centre crop. How Macenko's method works, and how it fails, is the subject of the
# [stain chapter](stain); here is the step as the cells run it. The normaliser takes a batch of `uint8` images and
# returns a batch and a status for each image: one that cannot be normalised comes back unchanged, *and says so*.

# %%
items = [int(table.index[(table["label"] == c) & (table["set"] == "train")][0]) for c in range(min(8, len(classes)))]
before = [torch.from_numpy(benchmark.read(item)).permute(2, 0, 1)[None] for item in items]
normalise = normaliser(paper["presets"]["paper"]["stain"])
after, status = zip(*[normalise(image) for image in before], strict=True)

# %% tags=["hide-input"]
fig, axes = plt.subplots(2, len(items), figsize=(7.2, 2.0), squeeze=False)
for column, (a, b, s) in enumerate(zip(before, after, status, strict=True)):
    for axis, image in ((axes[0, column], a), (axes[1, column], b)):
        axis.imshow(image[0].permute(1, 2, 0))
        axis.set_axis_off()
    axes[1, column].set_title(s[0].replace("_", " "), fontsize=7)
axes[0, 0].set_title("as it came", fontsize=8, loc="left")
plt.show()
figure_source(f"the first training images of {benchmark.name}", AGAIN)

# %% tags=["hide-input"]
pixel_cells = [(c, session.store.get(c.id)) for c in session.plan.cells if c.kind == "pixels"]
lines = []
for cell, stored in pixel_cells:
    for name, found in (stored.metrics["status"] if stored else {"not run": {}}).items():
        lines.append({"stain": cell.config["stain"], "set": name, **found})
frame_html(
    pd.DataFrame(lines).fillna(0), "pixels-status.csv",
    caption="What became of each image (counts), by preset's stain step",
    synthetic=SYNTHETIC, command=command, cells=[c.id for c, s in pixel_cells if s], decimals=0,
)  # fmt: skip

# %% [markdown]
# During training RandAugment is applied, of which the text gives no magnitude; the released code uses torchvision's
# default, two operations of strength 9. Ours runs on a whole batch on the device, and what it does to an image
# depends on seed, epoch and image alone:

# %%
from wbcrepro.augment import augment

size = settings["pixels"]["crop"]
square = torch.nn.functional.interpolate(after[0].float(), size=(size, size), mode="bilinear", antialias=True)
batch = square.clamp(0, 255).byte().repeat(8, 1, 1, 1)
augmented = augment(batch, paper["stage1"]["augment"], seed=42, epoch=0, index=np.arange(8))

# %% tags=["hide-input"]
fig, axes = plt.subplots(1, 8, figsize=(7.2, 1.1))
for axis, image in zip(axes, augmented, strict=True):
    axis.imshow(image.permute(1, 2, 0).byte())
    axis.set_axis_off()
plt.show()
figure_source(f"one normalised image of {benchmark.name}", AGAIN)

# %% [markdown]
# ## 2.2.1 Stage 1: representation learning
#
# > "instance-balanced (random) sampling, where mini batches follow the empirical data distribution"
#
# $$p_j = \frac{n_j}{\sum_{i=1}^{C} n_i} \tag{1}$$

# %%
p = counts / counts.sum()  # Eq. 1
labels = table.loc[table["set"] == "train", "label"].to_numpy()
order = samplers.instance_balanced(labels, seed=42, epoch=0)  # each image once, in a new order each epoch
assert sorted(order) == list(range(len(labels)))
assert np.allclose(p, samplers.class_shares(counts, "instance"))

# %% [markdown]
# The whole network is trained with plain cross-entropy, AdamW, a cosine schedule and early stopping on the macro-F1
# of the validation fold. The loop is `wbcrepro/training.py`, one file; a training is a *cell* of the store, and
# this is what its log holds.

# %% tags=["hide-input"]
trained = [
    (c, session.store.get(c.id)) for c in session.plan.cells if c.kind == "train" and c.labels["preset"] == "paper"
]
names = {"r50": "R50", "r152": "R152", "swin": "Swin"}
logs = {f"{names[c.labels['backbone']]}, fold {c.labels['fold']}": s.log() for c, s in trained if s}
if logs:
    training_figure(logs, ("loss", "val_loss", "macro_f1"))
    plt.show()
source([c.id for c, s in trained if s], command) if logs else Html(hole(command))

# %% tags=["hide-input"]
lines = [
    {"backbone": names[c.labels["backbone"]], "network": c.config["backbone"], "fold": c.labels["fold"],
     "epochs run": s.metrics["epochs_run"] if s else None, "best epoch": s.metrics["best_epoch"] if s else None,
     "validation MF1": 100 * s.metrics["val"]["macro_f1"] if s else None,
     "validation BAcc": 100 * s.metrics["val"]["balanced_accuracy"] if s else None}
    for c, s in trained
]  # fmt: skip
frame_html(
    pd.DataFrame(lines), "stage1.csv", caption="Stage 1, best epoch on the validation fold (percent)",
    synthetic=SYNTHETIC, command=command, cells=[c.id for c, s in trained if s],
)  # fmt: skip

# %% [markdown]
# ## 2.2.2 Stage 2: re-balancing the classifier
#
# > "we freeze the backbone, re initialize the classifier, and retrain only (W, b) on fixed embeddings"
#
# **Class-balanced sampling.** Image $i$ is drawn with weight $w_i = 1/n_{y_i}$, with replacement, so that every class
# is equally likely:

# %%
weights = 1 / counts[labels]
drawn = samplers.class_balanced(labels, 20_000, np.random.default_rng(0))
shares = np.bincount(labels[drawn], minlength=len(classes)) / len(drawn)

# %% tags=["hide-input"]
expected = np.bincount(labels, weights / weights.sum(), minlength=len(classes))
times = len(labels) / len(classes) / counts.min()
Markdown(
    f"Each class should get {100 * expected.mean():.1f} % of the draws, and in {len(drawn):,} of them "
    f"the shares lie between {100 * shares.min():.1f} % and {100 * shares.max():.1f} %. In an epoch as long as the "
    f"training set, an image of the rarest class is drawn {times:.0f} times."
)

# %% [markdown]
# **Hybrid class-balanced loss.** Effective numbers weight the classes, and a focal factor weights the images:
#
# $$E_{n_j} = \frac{1-\beta^{n_j}}{1-\beta}, \qquad \alpha_j = \frac{1-\beta}{1-\beta^{n_j}} \tag{2}$$
#
# $$\mathcal{L}_{CE} = -\alpha_y \log p_y \tag{3}$$
#
# $$\mathcal{L}_{Focal} = (1-p_y)^{\gamma}\, \mathcal{L}_{CE} \tag{4}$$
#
# $$\mathcal{L}_{Stage2} = (1-\lambda)\,\mathcal{L}_{CE} + \lambda\,\mathcal{L}_{Focal} \tag{5}$$
#
# Written down line by line, and held against the function that the cells use:

# %%
stage2 = paper["stage2"]
beta, gamma, lam = stage2["beta"], stage2["gamma"], stage2["lam"]

alpha = (1 - beta) / (1 - beta**counts)  # Eq. 2
alpha = alpha / alpha.mean()  # the text leaves the scale open; the released code divides by the mean

rng = np.random.default_rng(1)
logits = torch.tensor(rng.normal(size=(64, len(classes))))
targets = torch.tensor(rng.integers(len(classes), size=64))
p_y = logits.softmax(1)[torch.arange(64), targets]
ce = -torch.tensor(alpha)[targets] * p_y.log()  # Eq. 3
focal = (1 - p_y) ** gamma * ce  # Eq. 4
by_hand = ((1 - lam) * ce + lam * focal).mean()  # Eq. 5

loss = make_loss("hybrid", counts, beta=beta, gamma=gamma, lam=lam, variant="p")
assert torch.isclose(by_hand, loss(logits, targets))
assert np.allclose(alpha, effective_number_weights(counts, beta))

# %% tags=["hide-input"]
frame_html(
    pd.DataFrame({"class": classes, "training images": counts, "share of draws, stage 1 (%)": 100 * p,
                  "share of draws, stage 2 (%)": 100 * expected, "weight in the loss": alpha}),
    "balance.csv",
    caption="Two corrections at once: the sampler makes the classes equal, and the loss then weights them again",
    synthetic=SYNTHETIC, command=command, decimals=2,
)  # fmt: skip

# %% [markdown]
# With $\beta$ so close to one and a few hundred images at most, $E_n$ is almost $n$, so $\alpha$ is almost $1/n$: the
# loss repeats the work of the sampler. The [long-tail chapter](long_tail) draws what that does.
#
# **Fixed embeddings.** If the backbone is frozen, its outputs need to be computed once. Each training image is
# passed through it under a stated number of random augmentations, and the new classifier is trained on the stored
# tensors:

# %%
_, info = build_backbone(settings["backbones"]["r50"], "random")  # the network in the place of ResNet-50
classifier = make_head(paper["presets"]["paper"]["head"], dim=info.dim, classes=len(classes))
print(classifier)

# %% tags=["hide-input"]
heads = session.find(preset="paper", method="decoupled")
logs = {f"{names[c.labels['backbone']]}, fold {c.labels['fold']}": s.log() for c, s in heads if s and s.log()}
if logs:
    training_figure(logs, ("loss", "val_macro_f1"))
    plt.show()
source([c.id for c, s in heads if s], command, words="stage 2 on cached features") if logs else Html(hole(command))

# %% [markdown]
# ## 2.3 Inference with test-time augmentation and ensembling
#
# > "The final prediction distribution is computed by averaging probabilities over both models and augmentations"
#
# $$\mathbf{p}_{\text{ens}} = \frac{1}{MK}\sum_{m}\sum_{k=1}^{K}\mathbf{p}^{(m)}_k \tag{6}$$
#
# $$\hat y = \arg\max_c \mathbf{p}_{\text{ens}}[c] \tag{7}$$
#
# The text does not name the $K = 8$ views. A square has eight flips and turns. The released code lists the identity
# twice, and its double flip is its half turn, so it averages six of them with unequal weights.

# %% tags=["hide-input"]
fig, axes = plt.subplots(1, 8, figsize=(7.2, 1.35))
for axis, name, weight in zip(axes, DIHEDRAL, CODE_WEIGHTS, strict=True):
    axis.imshow(view(square[0].clamp(0, 255).byte(), name).permute(1, 2, 0))
    axis.set_title(f"{name}\n{8 * weight:.0f}/8", fontsize=7)
    axis.set_axis_off()
plt.show()
figure_source(f"one normalised image of {benchmark.name}", AGAIN)

# %% [markdown]
# Every classifier stores its probabilities for all eight views, so each choice of views is an average taken afterwards:

# %%
members = [s for c, s in heads if s and c.labels["fold"] == settings["folds"][0]]
if members:
    stored = [member.predictions() for member in members]
    on = "test" if "test_ids" in stored[0] else "val"  # a benchmark with one split has no test set
    per_model = [combine_views(found[f"{on}_probabilities"], CODE_WEIGHTS) for found in stored]  # the sum over k
    p_ens = np.mean(per_model, axis=0)  # Eq. 6, the sum over m
    y_hat = p_ens.argmax(axis=1)  # Eq. 7
    truth = stored[0][f"{on}_labels"]

# %% tags=["hide-input"]
if members:
    alone = [100 * float((q.argmax(1) == truth).mean()) for q in per_model]
    plain = combine_views(stored[0][f"{on}_probabilities"], EQUAL_WEIGHTS)
    shown = Markdown(
        f"On the {'test' if on == 'test' else 'validation'} set of the first fold the {len(members)} models are right "
        f"alone for {', '.join(f'{a:.1f} %' for a in alone)} of {len(truth)} images and together for "
        f"{100 * float((y_hat == truth).mean()):.1f} %. Weighing all eight views alike instead changes the "
        f"answer of the first model for {int((plain.argmax(1) != per_model[0].argmax(1)).sum())} images."
    )
else:
    shown = Html(hole(command))
display(shown)

# %% [markdown]
# ## 3.1 Implementation details
#
# The text gives most settings, and the code the rest. The table shows the paper's beside those of the profile that made
# this page.

# %% tags=["hide-input"]
full = paper["profiles"]["paper"]
rows = {
    "resize, crop": tuple(f"{s['pixels']['resize']}, {s['pixels']['crop']}" for s in (full, settings)),
    "backbones": (", ".join(full["backbones"].values()), ", ".join(settings["backbones"].values())),
    "weights": (full["weights"], settings["weights"]),
    "folds": (len(full["folds"]), len(settings["folds"])),
    "stage 1: epochs": (full["stage1"]["epochs"], settings["stage1"]["epochs"]),
    "stage 1: batch": (full["stage1"]["batch_size"], settings["stage1"]["batch_size"]),
    "stage 1: learning rate": (full["stage1"]["lr"], settings["stage1"]["lr"]),
    "stage 2: epochs": (full["stage2"]["epochs"], settings["stage2"]["epochs"]),
    "stage 2: batch": (full["stage2"]["batch_size"], settings["stage2"]["batch_size"]),
    "stage 2: learning rate": (stage2["lr"], stage2["lr"]),
    "β, γ, λ": (f"{beta}, {gamma}, {lam}", f"{beta}, {gamma}, {lam}"),
    "augmented passes cached for stage 2": ("(new ones each epoch)", settings["passes"]),
    "benchmark": (full["benchmark"], benchmark.name),
}  # fmt: skip
frame_html(
    pd.DataFrame([{"setting": k, "paper": str(a), f"profile {PROFILE}": str(b)} for k, (a, b) in rows.items()]),
    "settings.csv", caption="Settings of the paper and of this page", command=AGAIN,
    words=drawn_words("wbcrepro/papers/decoupled.yml"),
)  # fmt: skip

# %% [markdown]
# ## 3.2 Results
#
# They have a [chapter of their own](decoupled_results).
#
# ## Summary
#
# - The method has four parts that can be switched on one by one: stain normalisation, a retrained classifier,
#   views, and an ensemble. None needs the others.
# - Stage 2 balances twice, once in the sampler and once in the loss. With the paper's $\beta$ the second repeats
#   the first.
# - "Fixed embeddings" is a promise that saves nearly all of stage 2's work, if it is kept.
# - Views and models are averaged after the softmax, so everything can be recombined from stored probabilities.
#
# ## Exercises
#
# **1.** Show that for $n_j \ll 1/(1-\beta)$ the weight $\alpha_j$ is close to $1/n_j$. At which $n$ is it ten per
# cent off for the paper's $\beta$?

# %% tags=["hide-input"]
n = np.arange(1, 20_000)
first = int(n[np.argmax((1 - beta) / (1 - beta**n) * n > 1.1)])
Markdown(f""":::{{admonition}} Solution
:class: dropdown
Expand $\\beta^n = (1-(1-\\beta))^n \\approx 1 - n(1-\\beta)$: then $1-\\beta^n \\approx n(1-\\beta)$ and
$\\alpha \\approx 1/n$. The next term makes it larger by a factor of about $1 + n(1-\\beta)/2$. Computed with
$\\beta = {beta}$: the weight exceeds $1/n$ by ten per cent from $n = {first:,}$ on. In a data set whose
largest class is smaller than that,
effective numbers are inverse frequencies.
:::""")

# %% [markdown]
# **2.** Why must probabilities be averaged over views *after* the softmax if results are to be recombined later
# with other weights?
#
# :::{admonition} Solution
# :class: dropdown
# The softmax is not linear: the softmax of mean logits is a (normalised) geometric mean of the probabilities. From
# stored probabilities one can still form it, by averaging logarithms, but Eq. 6 is an arithmetic mean. Stored per view,
# either can be computed; stored as one average, neither can be changed.
# :::
#
# **3.** A classifier head with batch normalisation is trained on class-balanced draws and used on images with their
# natural frequencies. What is wrong with its statistics, and in which preset does that happen?
#
# :::{admonition} Solution
# :class: dropdown
# The running mean and variance describe a world in which every class is equally frequent; they are applied in one
# where most images are neutrophils and lymphocytes. That happens in the preset `code`, twice: in its head
# (`mlp512bn`) and, because the frozen backbone is left in training mode, in every normalisation layer below it.
# :::
