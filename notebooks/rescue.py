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
# # Suppress and rescue, read with the code beside it
#
# This chapter reads *Synergizing Deep Learning and Biological Heuristics for Extreme Long-Tail White Blood Cell
# Classification* (Nguyen, Nguyen and Pham, 2026) {cite:p}`nguyen2026rescue` in its own order. Each passage is followed
# by the code that *is* it, run here on a handful of cells or on what the store holds. Quotations are short and
# marked; the rest is our paraphrase.
#
# The method in one paragraph: cut the white cell out of its surroundings; if the picture is noisy, let a network
# paint a clean one; classify it with a transformer. Where that almost says "plasma cell" or "prolymphocyte", ask a
# second model that has learned from other pictures, and then measure the cell itself. Only if both agree does the
# label change.
#
# Three chapters go on from here: [one cell at a time](watch_one_cell), [where the thresholds come from](thresholds),
# and [what it is all worth](rescue_results). Where text and released code part company is told in
# [the last](rescue_findings).

# %% tags=["hide-input"]
import cv2
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from IPython.display import Markdown, display
from torch.nn import functional as F

from wbcrepro.data.pixels import PixelCache, prepare
from wbcrepro.data.smears import WBCBENCH_COUNTS
from wbcrepro.domains.contrastive import supcon_loss
from wbcrepro.longtail import samplers
from wbcrepro.longtail.losses import make_loss
from wbcrepro.longtail.losses.focal import log_weights
from wbcrepro.metrics import scores
from wbcrepro.report.figures import PALETTE, training_figure, use_style
from wbcrepro.report.page import Html, banner, drawn_words, figure_source, frame_html, hole, source
from wbcrepro.report.rescue_predictions import from_rescue_plan
from wbcrepro.rescue import pix2pix
from wbcrepro.rescue.cells import STATUSES, segment
from wbcrepro.rescue.contrastive_head import ContrastiveHead
from wbcrepro.rescue.isolate import border_crop, isolate
from wbcrepro.rescue.mahalanobis import distance, fit_gaussian
from wbcrepro.rescue.morphology import CODE_COLUMNS, COLUMNS, PAPER_COLUMNS, Morphology, morphology, two_means
from wbcrepro.rescue.noise import NOISY, cell_pixels, noise_score, released_noise, salt_and_pepper
from wbcrepro.rescue.phases import cue_values
from wbcrepro.rescue.restoration_baselines import median_3x3, nl_means
from wbcrepro.rescue.rules import RESCUE_CODE, inverse_log_frequency
from wbcrepro.rescue.sensitivity import one_image_effect
from wbcrepro.rescue.spikiness import spikiness
from wbcrepro.semantic_training import RESAMPLING, SemanticSettings
from wbcrepro.session import open_session

torch.set_num_threads(1)
use_style()
session = open_session("rescue", PROFILE, STORE, DATA, DATASET, RESULTS, WEIGHTS, ACCUMULATE)
missing = session.run_missing()
benchmark, classes = session.benchmark, list(session.benchmark.classes)
table = benchmark.table
ours = from_rescue_plan(session.plan, session.store)
paper = ours.paper
settings = paper["profiles"][PROFILE]
targets = [t for t in paper["targets"][settings["targets"]] if t["name"] in classes]
RARE = [t["name"] for t in targets]
CONFUSED = list(dict.fromkeys(name for t in targets for name in t["against"] if name in classes))
SYNTHETIC = benchmark.caption if session.synthetic else ""
AGAIN = f"wbcrepro book --only rescue {session.plan.options}"
command = session.plan.make_command()


def cells_of(kind, **labels):
    """Planned cells of a kind on the page's own benchmark, each with its stored result or None."""
    wanted = {"benchmark": benchmark.name, **labels}
    planned = [c for c in session.plan.cells if c.kind == kind and wanted.items() <= c.labels.items()]
    return [(c, session.store.get(c.id)) for c in planned]


def stored(kind, **labels):
    """The first finished one."""
    return next((s for _, s in cells_of(kind, **labels) if s), None)


def first(name, among="train", skip=0):
    """Row in the benchmark's table of an image of a class; None if there is none."""
    rows = table.index[(table["label"] == classes.index(name)) & (table["set"] == among)]
    return int(rows[min(skip, len(rows) - 1)]) if len(rows) else None


def raw(item):
    """An image at the size that the cells of the store work on, uint8 (H, W, 3)."""
    found = prepare(benchmark.read(item), settings["pixels"]["resize"], settings["pixels"]["crop"])
    return np.ascontiguousarray(found.transpose(1, 2, 0))


def show(axis, image, title="", size=8):
    axis.imshow(image)
    axis.set_title(title, fontsize=size)
    axis.set_axis_off()


banner(session.synthetic, SYNTHETIC)

# %% tags=["hide-input"]
networks = ", ".join(f"`{n}`" for n in dict.fromkeys(settings["backbones"].values()))
state = "every cell of it has been run" if not missing else f"{missing} of {len(session.plan.cells)} cells are missing"
swapped = "" if RARE == [t["name"] for t in paper["targets"]["wbcbench"]] else (
    " This data has neither PC nor PLY, so other rare classes stand in for them."
)  # fmt: skip
Markdown(
    f"This page was made with the profile `{PROFILE}` ({settings['words']}) on `{benchmark.name}`; {state}. "
    f"The classifier's network is {networks}, embeddings come from `{settings['embedder']['backbone']}` (the paper: "
    f"Swin-T and MedSigLIP). To be rescued: {', '.join(RARE) or 'no class of this benchmark'}.{swapped}"
)

# %% [markdown]
# ## 2.1 Dataset: two classes with almost no images
#
# > "The 1,200-fold class imbalance induces an extreme long-tailed recognition setting"
#
# The paper's counts are those of all labelled images of WBCBench 2026, not of a training split. Its two rarest classes
# are plasma cells (PC) and PLY, which are prolymphocytes; the paper's word "Polymphocytes" is a slip of the pen.

# %% tags=["hide-input"]
counts = benchmark.counts("train")
reported = paper["tables"]["figure_1"]["reported"]
most, least = max(reported, key=reported.get), min(reported, key=reported.get)
shown = [name for name in [*CONFUSED, *RARE] if first(name) is not None]
if shown:
    fig, axes = plt.subplots(2, 2 * len(shown), figsize=(7.2, 2.1), squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for column, name in enumerate(shown):
        for k in range(4):
            item = first(name, skip=k)
            axis = axes[k % 2, 2 * column + k // 2]
            show(axis, raw(item), f"{name} ({counts[classes.index(name)]})" if k == 0 else "", 9)
    plt.show()
    display(figure_source(f"up to four training images of each class of {benchmark.name}", AGAIN))
Markdown(
    f"The rare classes beside those they are taken for, with their training images here. On WBCBench the paper counts "
    f"{reported[most]:,} {most} and {reported[least]} {least}, a ratio of {reported[most] / reported[least]:,.0f}. On "
    f"this page the ratio is {counts.max() / max(1, counts[counts > 0].min()):.0f}: far milder, so that a laptop can "
    "train on it."
)

# %% [markdown]
# ## 2.2 First step: find the cell
#
# > "accurately localize and isolate the primary WBC, effectively removing irrelevant background context"
#
# The paper cites Cellpose 3 {cite:p}`stringer2025cellpose3`; the released code calls version 4 with another network
# (Cellpose-SAM). Both want weights from a model hub, so the default here is an algorithm without any: optical
# density against the image's own background, a first nucleus, then a closed outline by dynamic programming in polar
# coordinates that may bend only so far. (`wbcrepro.rescue.cells_cellpose` calls Cellpose where it is installed.) Then
# the cell is laid on white, a window is cut around its centroid, and the white border is cropped equally on all sides:

# %%
window, side = settings["window"], settings["input"]


def follow(image):
    cell = segment(image)  # status, masks of cell and nucleus, centroid
    alone = isolate(image, cell, size=window)  # None where there is no cell: never the whole image instead
    return cell, alone, None if alone is None else border_crop(alone, size=side)


# %% tags=["hide-input"]
def outline(axis, mask, colour, width=1.4):
    if mask.any():
        axis.contour(mask, levels=[0.5], colors=[colour], linewidths=width)


chosen = [first(name) for name in shown][:4]
degraded = next((first(n, "test_degraded") for n in RARE if first(n, "test_degraded") is not None), None)
chosen += [degraded] if degraded is not None else []
if chosen:
    fig, axes = plt.subplots(3, len(chosen), figsize=(1.44 * len(chosen), 4.6), squeeze=False)
    for column, item in enumerate(chosen):
        image = raw(item)
        cell, alone, seen = follow(image)
        name = classes[table["label"][item]]
        words = f"{name}, degraded" if table["set"][item] == "test_degraded" else name
        show(axes[0, column], image, f"{words}\n{cell.status.replace('_', ' ')}")
        outline(axes[0, column], cell.cell, "#111111")
        outline(axes[0, column], cell.nucleus, PALETTE[4])
        for row, picture in ((1, alone), (2, seen)):
            axes[row, column].set_axis_off()
            if picture is not None:
                show(axes[row, column], picture)
    for row, words in enumerate(("raw, with masks", "isolated", f"cropped, {side} px")):
        axes[row, 0].text(-0.08, 0.5, words, transform=axes[row, 0].transAxes, rotation=90, va="center", ha="right",
                          fontsize=8)  # fmt: skip
    plt.show()
    display(figure_source(f"images of {benchmark.name}; black: cell, orange: nucleus", AGAIN))

# %% [markdown]
# A status says what became of each image. One that has no cell is counted, stays white, and goes on; the released code
# silently takes the whole image instead.

# %% tags=["hide-input"]
image = raw(chosen[0]) if chosen else np.full((96, 96, 3), 200, np.uint8)
cases = {"as it came": image, "beside itself: two cells": np.hstack([image, image]),
         "the left half of it": image[:, : image.shape[1] // 2], "a corner of it": image[: len(image) // 4, :24],
         "all white": np.full_like(image, 255), "all black": np.zeros_like(image), "8 px of it": image[:8, :8],
}  # fmt: skip
statuses = pd.DataFrame([{"image": words, "status": segment(np.ascontiguousarray(one)).status}
                         for words, one in cases.items()])  # fmt: skip
frame_html(
    statuses, "statuses.csv", caption="Images that have no business here, and what is said of them. "
    f"There are {len(STATUSES)} statuses: {', '.join(STATUSES)}",
    synthetic=SYNTHETIC, command=AGAIN, words=drawn_words(f"one image of {benchmark.name}"),
)  # fmt: skip

# %% tags=["hide-input"]
found = cells_of("cells")
lines = []
for _, done in found:
    for name, statuses in (done.metrics["status"] if done else {}).items():
        truth = done.metrics.get("truth", {}).get(name, {})
        total = sum(statuses.values())
        lines.append({"set": name, "images": total, "one whole cell (%)": 100 * statuses.get("ok", 0) / total,
                      "others": ", ".join(f"{k} {v}" for k, v in statuses.items() if k != "ok") or "none",
                      "cut off by the window": done.metrics.get("cut_by_window", {}).get(name),
                      "IoU of the cell": truth.get("cell_iou_mean"), "IoU of the nucleus": truth.get("nucleus_iou_mean")
                      })  # fmt: skip
frame_html(
    pd.DataFrame(lines), "cells.csv", decimals=3, synthetic=SYNTHETIC, command=command,
    cells=[c.id for c, done in found if done],
    caption="Segmentation of every image; the overlap (IoU) with what was drawn is known for synthetic smears only",
) if lines else Html(hole(command))  # fmt: skip

# %% [markdown]
# ## 2.2 Second step: restore it
#
# ### Which images are noisy?
#
# > "a quantitative noise filter (based on median blur residuals)"
#
# The released code gives the number: the mean, over the pixels of the cell, of the absolute difference between the
# grey level and the median of its 3 × 3 neighbours; from 20 on an image is noisy.

# %%
grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
residual = np.abs(grey.astype(int) - cv2.medianBlur(grey, 3))
by_hand = residual[grey < 245].mean()
assert np.isclose(by_hand, noise_score(image))

# %% tags=["hide-input"]
restored = stored("restored", method="pix2pix")
if restored:
    with np.load(restored.folder / "noise.npz") as file:
        score, flagged = file["score"], file["noisy"]
    limit = restored.metrics["threshold"]
    fig, axis = plt.subplots(figsize=(7.2, 2.6))
    bins = np.linspace(0, max(score.max(), NOISY) * 1.05, 60)
    for k, name in enumerate(n for n in ("train", "test", "test_degraded") if (table["set"] == n).any()):
        rows = (table["set"] == name).to_numpy()
        axis.hist(score[rows], bins, density=True, histtype="step", lw=1.8, ls=("-", "--", ":")[k], color=PALETTE[k],
                  label=f"{name.replace('_', ' ')}: {flagged[rows].mean():.0%} noisy")  # fmt: skip
    axis.axvline(limit, color="black", lw=1.2, label=f"threshold here, {limit:.1f}")
    axis.axvline(NOISY, color="#777777", lw=1.2, ls="-.", label=f"released constant, {NOISY:.0f}")
    axis.set(xlabel="noise score (grey levels)", ylabel="density of images")
    fig.legend(loc="outside upper center", ncols=3)
    plt.show()
    shown_html = source([c.id for c, s in cells_of("restored", method="pix2pix") if s][:1], command)
else:
    shown_html = Html(hole(command))
display(shown_html)

# %% [markdown]
# The constant belongs to the released code's image size and noise. In a smaller picture a 3 × 3 window covers more of
# the cell, so texture counts as noise; and weaker noise scores lower. The small profiles therefore take the threshold
# that best parts *training* images from noisy copies of them.
#
# ### What noise?
#
# > "injects simulated salt-and-pepper noise into the clean subset"
#
# That is one model. What the released generator adds is another: dense coloured Gaussian noise on nearly every pixel of
# the cell, and a darkening by 30 %. Neither amount is in the paper.

# %%
rng = np.random.default_rng(7)
cell, clean, _ = follow(image)
clean = image if clean is None else clean
peppered, released = salt_and_pepper(clean, 0.25, rng), released_noise(clean, rng)

# %% tags=["hide-input"]
pictures = {"clean": clean, "salt and pepper, 25 %\n(the paper's words)": peppered,
            "released generator": released}  # fmt: skip
if degraded is not None and (noisy := follow(raw(degraded))[1]) is not None:
    pictures[f"a degraded test image\n({classes[table['label'][degraded]]})"] = noisy
fig, axes = plt.subplots(1, len(pictures), figsize=(1.8 * len(pictures), 2.3), squeeze=False)
for axis, (name, picture) in zip(axes[0], pictures.items(), strict=True):
    show(axis, picture, f"{name}\nscore {noise_score(picture):.1f}")
plt.show()
display(figure_source(f"two cells of {benchmark.name}", AGAIN))
inside = cell_pixels(clean)
levels = clean[inside].mean()
Markdown(
    f"Salt and pepper changes {float((peppered != clean).any(2)[inside].mean()):.0%} of this cell's pixels and moves "
    f"the mean level from {levels:.0f} to {peppered[inside].mean():.0f}; the released noise changes "
    f"{float((released != clean).any(2)[inside].mean()):.0%} and moves it to {released[inside].mean():.0f}. A network "
    "trained on the second learns to brighten cells. If no test image is dark in that way, that is a mistake it makes. "
    f"Beside the preset's noise the generator of this page learns: "
    f"{', '.join(settings['more_noise']) or 'nothing else'}"
    f"{', which is what the degraded test images here have' if settings['more_noise'] else ''}."
)

# %% [markdown]
# ### Pix2Pix
#
# > "translate the corrupted domain back into the high-fidelity biological domain"
#
# A U-Net $G$ maps the noisy image $x$ to a guess of the clean $y$; a second network $D$ looks at overlapping patches of
# pairs and says which are real {cite:p}`isola2017`. With $D$ as logits,
#
# $$\mathcal{L}_D = -\tfrac12\bigl[\log\sigma(D(x,y)) + \log(1-\sigma(D(x,G(x))))\bigr], \qquad
# \mathcal{L}_G = -\log\sigma(D(x,G(x))) + 100\,\lVert y-G(x)\rVert_1 .$$

# %%
torch.manual_seed(0)
x, y = (pix2pix.to_network(torch.from_numpy(np.stack([p.transpose(2, 0, 1)]))) for p in (peppered, clean))
G = pix2pix.UNetGenerator(levels=pix2pix.levels_for(x.shape[-1]), ngf=8)
D = pix2pix.PatchDiscriminator(layers=pix2pix.patch_layers_for(x.shape[-1]), ndf=8)
with torch.no_grad():
    G.eval(), D.eval()  # one image: batch statistics would mean nothing
    guess = G(x)
    real, fake = D(x, y), D(x, guess)
    loss_d = -(real.sigmoid().log().mean() + (1 - fake.sigmoid()).log().mean()) / 2
    loss_g = -fake.sigmoid().log().mean() + 100 * (y - guess).abs().mean()
assert torch.isclose(loss_d, pix2pix.discriminator_loss(real, fake))
assert torch.isclose(loss_g, pix2pix.generator_loss(fake, guess, y)[0])

# %% tags=["hide-input"]
sizes = {layers: pix2pix.receptive_field(layers) for layers in (1, 2, 3)}
Markdown(
    f"With three strided layers one logit of $D$ sees {sizes[3]} × {sizes[3]} pixels, the paper's PatchGAN for images "
    f"of {pix2pix.PATCH_AT}. Here, at {x.shape[-1]} px, $D$ has {pix2pix.patch_layers_for(x.shape[-1])} and sees "
    f"{sizes[pix2pix.patch_layers_for(x.shape[-1])]}: about the same share of a cell. $G$ halves the image "
    f"{pix2pix.levels_for(x.shape[-1])} times."
)

# %% [markdown]
# Pairs are made on the fly from clean *training* images. (The released code's clean subset includes the test images,
# so its generator has been trained on them.) The cells' log, and what came of it on degraded test images, beside two
# filters that need no training at all:

# %% tags=["hide-input"]
restorers = {c.labels["noise"].replace("_", " "): (c, s) for c, s in cells_of("restorer")}
logs = {name: s.log() for name, (c, s) in restorers.items() if s}
if logs:
    training_figure(logs, ("l1", "generator_loss", "discriminator_loss"))
    plt.show()
source([c.id for c, s in restorers.values() if s], command) if logs else Html(hole(command))

# %% tags=["hide-input"]
isolated = stored("cells")
rows = []
if isolated and restored:
    images = PixelCache.open(isolated.folder / "pixels").images
    full = np.load(restored.folder / "full.npy", mmap_mode="r")
    with np.load(restored.folder / "noise.npz") as file:
        place = {int(row): k for k, row in enumerate(file["rows"])}
    pristine = {i: item for item, (i, s) in enumerate(zip(table["id"], table["set"], strict=True)) if s == "test"}
    for name in [*RARE, *CONFUSED, *classes]:
        item = first(name, "test_degraded")
        if item in place and item not in rows and table["id"][item] in pristine and len(rows) < 4:
            rows.append(item)
if rows:
    heads = ("degraded", "median 3 × 3", "non-local means", "Pix2Pix", "its pristine twin")
    fig, axes = plt.subplots(len(rows), len(heads), figsize=(7.2, 1.45 * len(rows)), squeeze=False)
    for line, item in enumerate(rows):
        noisy = np.ascontiguousarray(np.asarray(images[item]).transpose(1, 2, 0))
        five = (noisy, median_3x3(noisy), nl_means(noisy), full[place[item]].transpose(1, 2, 0),
                images[pristine[table["id"][item]]].transpose(1, 2, 0))  # fmt: skip
        for axis, picture, head in zip(axes[line], five, heads, strict=True):
            show(axis, picture, head if line == 0 else "")
        axes[line, 0].text(-0.08, 0.5, classes[table["label"][item]], transform=axes[line, 0].transAxes, rotation=90,
                           va="center", ha="right", fontsize=8)  # fmt: skip
    plt.show()
source([c.id for k in ("cells", "restored") for c, s in cells_of(k) if s], command) if rows else Html(hole(command))

# %% [markdown]
# How much of the noise each of them removes, and whether the classifier notices, is measured in the
# [results](rescue_results).
#
# ## 2.3 The first branch: a transformer and mild weights
#
# > "a cost-sensitive Focal Loss (γ = 2.0) parameterized by inverse log-frequency class weights, alongside a
# > distribution-aware weighted random sampler"
#
# $$\alpha_c \propto \frac{1}{\log(1+n_c)}, \qquad
# \mathcal{L} = -\alpha_y\,(1-q)^{\gamma}\,\log p_y, \qquad w_i \propto \frac{1}{\log(1+n_{y_i})} .$$
#
# The text has $q = p_y$; the released code computes $q = p_y^{\alpha_y}$, because it takes the exponential of the
# already weighted cross-entropy. With weights near one the two are close.

# %%
alpha = 1 / (np.log1p(counts) + 1e-5)
alpha = alpha / alpha.mean()  # the released scale: they sum to the number of classes
rng = np.random.default_rng(1)
logits = torch.tensor(rng.normal(size=(64, len(classes))))
labels = torch.tensor(rng.integers(len(classes), size=64))
ce = -torch.tensor(alpha)[labels] * logits.log_softmax(1)[torch.arange(64), labels]
by_hand = ((1 - (-ce).exp()) ** 2 * ce).mean()  # exp(-ce) = p_y^alpha

network = paper["networks"]["swin"]
loss = make_loss(network["loss"], counts, **network["loss_options"])
assert torch.isclose(by_hand, loss(logits, labels))
assert np.allclose(alpha, log_weights(torch.tensor(counts)))

# %% tags=["hide-input"]
bench = np.array(list(WBCBENCH_COUNTS.values()))
bench_names = list(WBCBENCH_COUNTS)
bench_alpha, bench_share = log_weights(torch.tensor(bench)).numpy(), samplers.class_shares(bench, "log1p")
frame = pd.DataFrame({"class": bench_names, "labelled images": bench, "weight in the loss": bench_alpha,
                      "share of images (%)": 100 * bench / bench.sum(), "share of draws (%)": 100 * bench_share})
display(frame_html(frame, "log-weights.csv", decimals=2, command=AGAIN,
                   caption="Inverse log-frequency on the counts of WBCBench 2026",
                   words=drawn_words("the class counts of WBCBench 2026 (WBCBENCH_COUNTS)")))  # fmt: skip
top, low = int(bench.argmax()), int(bench.argmin())
Markdown(
    f"{bench_names[low]} has {bench[top] / bench[low]:,.0f} times fewer images than {bench_names[top]} and "
    f"{bench_alpha[low] / bench_alpha[top]:.1f} times its weight; the sampler raises its share from "
    f"{100 * bench[low] / bench.sum():.2f} % to {100 * bench_share[low]:.2f} %. This is hardly a correction, which "
    "may be why a rescue is needed at all."
)

# %% [markdown]
# Augmentation is flips, rotations up to 90° and a change of brightness and contrast; the rest of the recipe, down to
# the number of epochs, is in the released code only. Five networks are trained, one a fold. A training's log:

# %% tags=["hide-input"]
trained = cells_of("train", preset="paper", row="swin", folds="group")
logs = {f"fold {c.labels['fold']}": s.log() for c, s in trained if s}
if logs:
    training_figure(logs, ("loss", "val_loss", "macro_f1"))
    plt.show()
source([c.id for c, s in trained if s], command) if logs else Html(hole(command))

# %% [markdown]
# ## 2.3 The second branch: embeddings of another model
#
# > "We utilize pre-extracted embeddings from MedSigLIP. An advanced projection head maps these embeddings into a
# > lower-dimensional normalized latent space"
#
# MedSigLIP (its training objective is that of SigLIP {cite:p}`zhai2023siglip`) is gated: one needs an account and its
# licence. The head reads embeddings
# from wherever they come: MedSigLIP itself, a file that somebody published, or, by default here, an ImageNet network
# that has never seen the benchmark. Every embedding has length one; the head is small:

# %%
dim = 64  # any: the embedder decides
preset = paper["presets"]["paper"]["semantic"]
head_settings = getattr(SemanticSettings, preset)()
head = ContrastiveHead(dim, len(classes), classify=head_settings.classify).eval()
print(head)

# %% [markdown]
# Neither sizes nor loss are in the text. The released loss adds two terms: the supervised contrastive loss
# {cite:p}`khosla2020` on the projections $z$, with $P(i)$ the other rows of the class of row $i$, and a focal loss:
#
# $$\mathcal{L} = 0.3\;\frac1N\sum_i \frac{-1}{|P(i)|}\sum_{j\in P(i)}
# \log\frac{e^{z_i\cdot z_j/\tau}}{\sum_{m\ne i} e^{z_i\cdot z_m/\tau}} \;+\; 0.7\;\mathcal{L}_{\text{focal}} .$$

# %%
torch.manual_seed(2)
embeddings = F.normalize(torch.randn(24, dim), dim=1)
labels = torch.arange(24) % 5
z, logits = head(embeddings)
tau, total = head_settings.temperature, 0.0
for i in range(24):
    others = [m for m in range(24) if m != i]
    below = torch.stack([(z[i] @ z[m] / tau).exp() for m in others]).sum()
    same = [j for j in others if labels[j] == labels[i]]
    total = total - torch.stack([((z[i] @ z[j] / tau).exp() / below).log() for j in same]).mean()
assert torch.isclose(total / 24, supcon_loss(z, labels, tau), rtol=1e-4)

# %% tags=["hide-input"]
semantic = {f"{p}, fold {c.labels['fold']}" if c.labels["fold"] >= 0 else f"{p}, all images": (c, s)
            for p in settings["presets"] for c, s in cells_of("semantic", preset=p)}  # fmt: skip
logs = {name: s.log() for name, (c, s) in semantic.items() if s and ("fold 0" in name or "all" in name)}
if logs:
    training_figure(logs, ("loss", "supcon", "train_accuracy"))
    plt.show()
display(source([c.id for c, s in semantic.values() if s], command) if logs else Html(hole(command)))


def heads_of(profile, names):
    """Epochs of the second branch in each preset of a profile, and how often it repeats the classes ``names``."""
    made = [getattr(SemanticSettings, paper["presets"][p]["semantic"])(**profile["semantic"][p])
            for p in profile["presets"]]  # fmt: skip
    factors = [", ".join(f"{n} × {f:g}" for n, f in one.resample.items() if n in names) for one in made]
    return [str(one.epochs) for one in made], " | ".join(dict.fromkeys(factors)) or "none"


epochs, repeats = heads_of(settings, classes)
released_settings = SemanticSettings.code()
length = released_settings.noise * np.sqrt(1152)
Markdown(
    f"The text trains {SemanticSettings.paper().epochs} epochs with the classifier on the normalised projection, the "
    f"code {released_settings.epochs} with the classifier on the encoder. Rare classes are repeated: "
    f"{', '.join(f'{n} × {f:g}' for n, f in RESAMPLING.items())}. And the code adds Gaussian noise of "
    f"{released_settings.noise} to every coordinate of a vector of length one: over 1,152 coordinates that noise has "
    f"length {length:.2f}, twice the signal. Here: {' and '.join(epochs)} epochs "
    f"({' and '.join(settings['presets'])}), {repeats}."
)

# %% [markdown]
# > "the contrastive head was trained on the fully combined dataset"
#
# A head that has seen an image is no second opinion about it. Here every head leaves a fold out, so that each training
# image is scored by one that never saw it; the paper's way is kept beside it to show what it pretends:

# %% tags=["hide-input"]
lines = []
for p in settings["presets"]:
    folds = [s.predictions() for c, s in cells_of("semantic", preset=p) if s and c.labels["fold"] >= 0]
    whole = [s.predictions() for c, s in cells_of("semantic", preset=p) if s and c.labels["fold"] < 0]
    for words, parts, on in (("out of fold", folds, "val"), ("trained on them", whole, "train")):
        if not parts:
            continue
        truth = np.concatenate([part[f"{on}_labels"] for part in parts]).astype(int)
        said = np.concatenate([part[f"{on}_probabilities"][:, 0].argmax(1) for part in parts])
        result = scores(truth, said, len(classes))
        lines.append({"preset": p, "training images scored": words, "images": len(truth),
                      "MF1": 100 * result["macro_f1"],
                      **{f"recall of {n} (%)": 100 * result["per_class"]["recall"][classes.index(n)] for n in RARE}})
frame_html(
    pd.DataFrame(lines), "optimism.csv", caption="The second branch alone on the training images (percent)",
    synthetic=SYNTHETIC, command=command, cells=[c.id for c, s in semantic.values() if s],
) if lines else Html(hole(command))  # fmt: skip

# %% [markdown]
# ## 2.4 Measuring a cell
#
# ### PLY against LY: spikiness
#
# > "Pathological PLY instances often exhibit increased contour irregularity compared to smooth mature LYs"
#
# The paper defines no formula. The released one: the largest distance of the outline from its centroid, divided by the
# median distance. A disc has 1.

# %%
def spikiness_by_hand(mask):
    closed = cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_CLOSE, np.ones((3, 3), np.uint8), iterations=2)
    contours, _ = cv2.findContours(closed, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    outline = max(contours, key=cv2.contourArea)
    m = cv2.moments(outline)
    centre = np.array([int(m["m10"] / m["m00"]), int(m["m01"] / m["m00"])])
    radii = np.linalg.norm(outline[:, 0] - centre, axis=1)
    return radii.max() / np.median(radii), outline[:, 0], centre, radii


# %% tags=["hide-input"]
pair = [n for n in (next((t["name"] for t in targets if t["cue"] == "spikiness"), None), "LY") if n in classes]
pair = pair or shown[:2]
fig, axes = plt.subplots(1, 2 * len(pair) or 1, figsize=(7.2, 2.1), squeeze=False)
for axis in axes.flat:
    axis.set_axis_off()
for column, (name, skip) in enumerate((n, k) for n in pair for k in (0, 1)):
    image = raw(first(name, skip=skip))
    mask = segment(image).cell
    if not mask.any():
        continue
    value, points, centre, radii = spikiness_by_hand(mask)
    assert np.isclose(value, spikiness(mask))
    far = points[radii.argmax()]
    axis = axes[0, column]
    show(axis, image, f"{name}: {value:.2f}", 9)
    closed = np.vstack([points, points[:1]])
    axis.plot(closed[:, 0], closed[:, 1], color="black", lw=1.3)
    axis.add_patch(plt.Circle(centre, np.median(radii), fill=False, ec=PALETTE[4], ls="--", lw=1.3))
    axis.plot(*zip(centre, far, strict=True), color=PALETTE[1], lw=1.6, marker="o", ms=3)
plt.show()
figure_source(f"training images of {benchmark.name}; outline (black), its median radius (dashed), its largest (line)",
              AGAIN)  # fmt: skip

# %% [markdown]
# ### PC against LY and VLY: where the nucleus lies, and how much of the cell it is
#
# > "Plasma cells possess a voluminous cytoplasm that displaces the nucleus eccentrically."
#
# The vector $\mathcal V$ of the text has three numbers, the released code six. Its "K-Means clustering ($K = 2$)" of
# grey levels separates nucleus and cytoplasm; in one dimension that problem has an exact solution, which is Otsu's
# threshold. Ours takes both masks from the segmentation.

# %%
items = [item for item in chosen if item != degraded]
image = raw(items[-1]) if items else image
mask = segment(image)
measured, status = morphology(image, mask)
if mask.cell.any() and mask.nucleus.any():
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    centres = two_means(grey[mask.cell])  # K-means, K = 2
    area = mask.cell.sum()
    (ny, nx), (cy, cx) = (np.argwhere(m).mean(0) for m in (mask.nucleus, mask.cell))
    V = {"NC_Ratio": mask.nucleus.sum() / area, "Intensity": grey[mask.cell].mean(),
         "Offset": np.hypot(nx - cx, ny - cy) / np.sqrt(area / np.pi)}  # fmt: skip
    named = dict(zip(COLUMNS, measured, strict=True))
    assert all(np.isclose(V[name], named[name]) for name in PAPER_COLUMNS)
    print({name: round(float(value), 3) for name, value in V.items()}, "centres of K-means:", np.round(centres))

# %% tags=["hide-input"]
measured_cells = stored("morphology")
box = measured_cells is not None and bool(shown)
if box:
    with np.load(measured_cells.folder / "morphology.npz") as file:
        M = Morphology(file["features"], tuple(file["columns"].tolist()), file["status"])
    train = (table["set"] == "train").to_numpy()
    fig, axes = plt.subplots(1, 4, figsize=(7.2, 2.7))
    for axis, column, unit in zip(axes, ("spikiness", *PAPER_COLUMNS), ("", "", "grey level", "radii"), strict=True):
        values = M.select([column])[:, 0]
        for k, name in enumerate(shown):
            rows = train & (table["label"] == classes.index(name)).to_numpy() & np.isfinite(values)
            spread = np.random.default_rng(k).uniform(-0.25, 0.25, rows.sum())
            axis.plot(k + spread, values[rows], ls="", marker="o^sDvP"[k % 6], ms=2.6, alpha=0.6,
                      color=PALETTE[k % len(PALETTE)])  # fmt: skip
            if rows.any():
                axis.hlines(np.median(values[rows]), k - 0.32, k + 0.32, color="black", lw=1.6)
        axis.set_xticks(range(len(shown)), shown, fontsize=8, rotation=45)
        axis.set_title(column.replace("_", " ") + (f"\n({unit})" if unit else "\n(ratio)"), fontsize=9)
        axis.tick_params(axis="y", labelsize=7)
    plt.show()
source([c.id for c, s in cells_of("morphology") if s], command,
       words="training images; black line: median") if box else Html(hole(command))  # fmt: skip

# %% [markdown]
# ### The Mahalanobis distance
#
# > "a Mahalanobis distance filter $D_M$, parameterized by group-specific covariance matrices"
#
# $$D_M(\mathcal V) = \sqrt{(\mathcal V-\mu)^{\top}\,\Sigma^{-1}\,(\mathcal V-\mu)}$$
#
# The mean and covariance are those of the plasma cells of the training set. The released numbers are in a file that was
# not published. With a dozen cells a covariance is a guess, so it is shrunk towards a ball {cite:p}`ledoit2004`, by how
# much follows from the data:

# %%
gauss = None
target = next((t for t in targets if t["cue"] == "mahalanobis"), None)
if box and target:
    rows = train & (table["label"] == classes.index(target["name"])).to_numpy() & (M.status == "ok")
    gauss = fit_gaussian(M.select(PAPER_COLUMNS)[rows], PAPER_COLUMNS)
    away = M.select(PAPER_COLUMNS) - gauss.mean
    by_hand = np.sqrt(np.einsum("nf,fg,ng->n", away, gauss.precision, away))
    ok = M.status == "ok"
    assert np.allclose(by_hand[ok], distance(gauss, M.select(PAPER_COLUMNS))[ok])

# %% tags=["hide-input"]
said = Html(hole(command))
if gauss:
    plain = fit_gaussian(M.select(PAPER_COLUMNS)[rows], PAPER_COLUMNS, shrink=False)
    six = fit_gaussian(M.select(CODE_COLUMNS)[rows], CODE_COLUMNS)
    said = Markdown(
        f"{gauss.n} {target['name']} of the training set and {len(PAPER_COLUMNS)} features: shrinkage "
        f"{gauss.shrinkage:.2f} (0: the sample covariance, 1: a ball); the largest entry of $\\Sigma^{{-1}}$ falls "
        f"from {np.abs(plain.precision).max():.3g} to {np.abs(gauss.precision).max():.3g}. With the "
        f"{len(CODE_COLUMNS)} features of the code the shrinkage is {six.shrinkage:.2f}. {gauss.note or six.note}"
    )
display(said)

# %% [markdown]
# ## Algorithm 1
#
# > "adaptive divide-and-conquer strategy (Algorithm 1) that integrates sensitivity boosting, semantic verification, and
# > biological constraints"
#
# All of it, for one image, with the paper's line numbers. `p_swin` and `p_med` are the probabilities of the branches,
# `value` holds the measurement that each rare class's rule asks for.

# %%
def algorithm_1(p_swin, p_med, value, rules):
    y_base = int(p_swin.argmax())  # 5
    boosted = p_swin.astype(float)  # Phase 1: sensitivity boosting
    for name, rule in rules.items():  # 7
        boosted[classes.index(name)] *= rule.boost  # 8
    candidate = int(boosted.argmax())  # 10
    rule = rules.get(classes[candidate])
    if rule is None:  # 11
        return y_base  # 12: no rare candidate surfaced
    if not p_med[candidate] >= rule.semantic:  # 16, Phase 2: contrastive verification
        return y_base  # 17
    v = value[rule.name]  # Phase 3: biological filtering
    passed = v > rule.cue_threshold if rule.cue == "spikiness" else v <= rule.cue_threshold  # 22, 28
    return candidate if passed else y_base


# %% [markdown]
# The package does the same for all images at once and keeps a trace of every decision. Held against it:

# %% tags=["hide-input"]
lines, used = [], []
for name in (n for n in ("paper", "fitted") if ours.rescue_of(n)):
    member = ours.rescue_of(name)
    rules = {rule.name: rule for rule in ours.rules(name).rare if not rule.disabled}
    used.append(member.id)
    for on in ("oof", "test", "test_degraded"):
        if ours.trace(name, on) is None:
            continue
        scored, trace = ours.trace(name, on)
        both = ours.part(member, "predictions")[f"{on}_probabilities"]
        cells = ours.measured("paper", "train" if on == "oof" else on, scored.ids)
        values = {n: np.where(np.isin(cells.status, ours.rules(name).accept),
                              cue_values(rule, cells, trace.base.astype(int), classes), np.nan)
                  for n, rule in rules.items()}  # fmt: skip
        final = [algorithm_1(both[i, 0], both[i, 1], {n: v[i] for n, v in values.items()}, rules)
                 for i in range(len(trace))]  # fmt: skip
        lines.append({"rules": name, "set": on, "images": len(trace), "surfaced": int((trace.candidate >= 0).sum()),
                      "relabelled": int((trace.final != trace.base).sum()),
                      "same label by both": int((np.array(final) == trace.final).sum())})  # fmt: skip
display(frame_html(
    pd.DataFrame(lines), "algorithm-1.csv", synthetic=SYNTHETIC, command=command, cells=used,
    caption="The twenty lines above against the stored trace. Probabilities are stored in half precision, which may "
    "decide a tie the other way",
) if lines else Html(hole(command)))  # fmt: skip
for name in dict.fromkeys(line["rules"] for line in lines):
    if ours.rules(name).idle:
        display(Markdown(f"Rules `{name}`: neither rule is in force here, so nothing is asked, and the comparison of "
                         "its rows is empty."))  # fmt: skip

# %% [markdown]
# Four things are worth a second look.
#
# - *Suppress* is in the name, but the algorithm suppresses nothing: `y_base` may well be PLY or PC, and nothing checks
#   it. The released code does suppress. It first relabels every image whose arg-max is rare with the runner-up, so
#   that a rare label can only come from the rescue (or be the runner-up of the other rare class).
# - The text scales by "inverse log-frequency". Read literally, $1/\log(1+n_c)$ is below one and would push rare classes
#   further down; the released factors are 3750 for PC and 150 for PLY, which is the rarer one.
#   [Thresholds](thresholds) has both readings.
# - Nothing says what $\tau$, $\tau_S$ and $\tau_M$ are or where they come from.
# - The first phase looks at all images, the third at very few. What the first two let through bounds what the third
#   can gain, and what it can spoil.
#
# ## 3.1 Settings
#
# The paper's own (text, and the released code where the text is silent), beside those of the profile that made this
# page.

# %% tags=["hide-input"]
full = paper["profiles"]["paper"]
rows = {
    "benchmark": (full["benchmark"], benchmark.name),
    "image, window, network (px)": tuple(
        f"{s['pixels']['crop']}, {s['window']}, {s['input']}" for s in (full, settings)
    ),
    "first branch, text | code": tuple(" | ".join(s["backbones"].values()) for s in (full, settings)),
    "folds": (len(full["folds"]), len(settings["folds"])),
    "epochs": (full["optimisation"]["epochs"], settings["optimisation"]["epochs"]),
    "batch": (full["optimisation"]["batch_size"], settings["optimisation"]["batch_size"]),
    "learning rate": (full["optimisation"]["lr"], settings["optimisation"]["lr"]),
    "embeddings": (full["embedder"]["backbone"], settings["embedder"]["backbone"]),
    "second branch: epochs, text | code": (" | ".join(heads_of(full, RESAMPLING)[0]), " | ".join(epochs)),
    "second branch: repeats": (heads_of(full, RESAMPLING)[1], repeats),
    "noise threshold": (full["noise_threshold"], settings["noise_threshold"]),
    "Pix2Pix: epochs, constant + falling": tuple(f"{s['restorer']['epochs']} + {s['restorer']['decay_epochs']}"
                                                 for s in (full, settings)),
    "Pix2Pix: width of G and D": tuple(f"{s['restorer']['ngf']}, {s['restorer']['ndf']}" for s in (full, settings)),
    "Pix2Pix: clean training images": tuple(s["restorer"]["images"] or "all" for s in (full, settings)),
}  # fmt: skip
frame_html(
    pd.DataFrame([{"setting": k, "paper": str(a), f"profile {PROFILE}": str(b)} for k, (a, b) in rows.items()]),
    "settings.csv", caption="Settings of the paper and of this page", command=AGAIN,
    words=drawn_words("wbcrepro/papers/rescue.yml"),
)  # fmt: skip

# %% [markdown]
# ## 3.2 and 3.3 Results
#
# They have a [chapter of their own](rescue_results). Before it, [follow one cell](watch_one_cell) through all of this.
#
# ## Summary
#
# - The pipeline has three questions, asked in this order of fewer and fewer images: could it be rare, does another
#   model think so, does it look so.
# - Every stage before the first question (cell, noise, restoration) changes what all images look like; the stages after
#   it change a handful of labels.
# - A head that was trained on everything cannot be checked on its own training images. Heads that leave a fold out can;
#   what they lose for having seen less is measured (C11).
# - Text and code are two different algorithms with one name.
#
# ## Exercises
#
# **1.** Compute the boost $B_c = 1/\log(1+n_c)$ for PLY and PC on WBCBench. What would it do? Which reading of "scale
# by inverse log-frequency" makes sense, and does it favour PC over PLY as the released factors do?

# %% tags=["hide-input"]
lines = [{"class": n, "labelled images": int(bench[bench_names.index(n)]),
          "read literally": inverse_log_frequency(bench.tolist(), bench_names.index(n), "log_literal"),
          "relative to the largest class": inverse_log_frequency(bench.tolist(), bench_names.index(n), "log_ratio"),
          "released": RESCUE_CODE.of(n).boost}
         for n in ("PLY", "PC")]  # fmt: skip
Markdown(""":::{admonition} Solution
:class: dropdown
""" + "\n".join(
    f"- {row['class']} ({row['labelled images']} images): literally {row['read literally']:.3f}, relative to the "
    f"largest class {row['relative to the largest class']:.2f}, released {row['released']:g}." for row in lines
) + """

Below one the "boost" lowers the rare classes and nothing ever surfaces that was not the arg-max anyway. Relative to the
largest class it is a mild boost, larger for the rarer class. The released factors are larger by orders of magnitude and
favour PC: they cannot be a function of the class frequency alone.
:::""")

# %% [markdown]
# **2.** Can the rescue of Algorithm 1 ever lower the recall of a rare class? And its precision? Ask the same of the
# released code.
#
# :::{admonition} Solution
# :class: dropdown
# In Algorithm 1 a label changes only *to* a rare class, so for a single rare class the recall cannot fall, while every
# wrong rescue costs precision (and takes an image from the class it belonged to). With two rare classes one can take an
# image from the other. The released code first demotes every rare arg-max; whatever the rescue does not win back is
# lost, and recall can fall to zero. Without the unpublished parameters of PC it does.
# :::
#
# **3.** How much does one test image of the rarest class move the macro-F1? Compute it for the test set of this page,
# and for WBCBench's, if its test images have the shares of the labelled ones.

# %% tags=["hide-input"]
here = one_image_effect(benchmark.counts("test").tolist(), classes)
there = one_image_effect(np.round(bench / bench.sum() * 16477).astype(int).tolist(), bench_names)
rare = [n for n in RARE if here.set_index("class").loc[n, "support"] > 0]
text = "; ".join(f"{n} ({here.set_index('class').loc[n, 'support']} images): "
                 f"{100 * here.set_index('class').loc[n, 'mean']:.2f} points" for n in rare)  # fmt: skip
far = there.set_index("class")
Markdown(f""":::{{admonition}} Solution
:class: dropdown
On average over the way from none found to all found, one image is worth $1/(n\\,C)$ of the macro-F1. Here: {text or
"no test images of a rare class"}. On 16,477 test images with the shares of the labelled ones there would be
{far.loc["PLY", "support"]} PLY and {far.loc["PC", "support"]} PC: one PLY moves the score by
{100 * far.loc["PLY", "mean"]:.2f} points, one PC by {100 * far.loc["PC", "mean"]:.2f}. Places on a
leaderboard have been decided by less.
:::""")
