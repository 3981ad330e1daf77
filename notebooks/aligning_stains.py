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
# # Aligning stains
#
# The methods of the [last chapter](aligning_features) compare clouds of features and hope that the cells in them
# correspond. But we know what changes between laboratories: dye and light. So one can *make* the correspondence: print
# the same cell with another laboratory's dyes, and ask that the network see the same thing in both. That is the idea of
# `sada` {cite:p}`li2024sada`, stain-aware domain alignment. This chapter follows one cell through it and through the
# paper's Figs. 2 to 5, beginning with the third.

# %% tags=["hide-input"]
import copy
import warnings

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from IPython.display import Markdown, display
from PIL import Image
from torch import nn
from torch.nn import functional as F

from wbcrepro.backbones import TINY, Classifier, build_backbone
from wbcrepro.data.benchmarks import load_benchmark
from wbcrepro.data.smears import SmearSource, SmearSpec
from wbcrepro.domains import make_algorithm
from wbcrepro.domains.contrastive import averaged_anchor_loss, supcon_loss
from wbcrepro.domains.local_alignment import local_alignment_loss, mean_form_beta
from wbcrepro.domains.sada import JITTER
from wbcrepro.errors import WbcreproError
from wbcrepro.report.domain_figures import MARKERS
from wbcrepro.report.figures import PALETTE, use_style
from wbcrepro.report.page import banner, drawn_words, figure_source, frame_html
from wbcrepro.session import from_root
from wbcrepro.stain.augmentation import (
    PAPER,
    RELEASED,
    StainAugmentation,
    choose_donors,
    restain,
    stain_vectors,
    stain_views,
)
from wbcrepro.stain.clusters import kmeans_labels
from wbcrepro.stain.colour_jitter import random_colour_jitter
from wbcrepro.stain.snmf import row_quantile, separate, snmf_od

warnings.filterwarnings("ignore", message=".*IProgress.*")
torch.set_num_threads(1)
use_style()
SMALL = PROFILE == "tiny"
SIZE = 96
AGAIN = f"wbcrepro book --only aligning_stains --profile {PROFILE}" + (" --data FOLDER_OF_THE_DATASETS" if DATA else "")


def drawn_batch():
    """Images (N,3,H,W) in [0,1], labels and domains of two drawn cells of each class in three laboratories."""
    names = ("neutrophil", "lymphocyte", "monocyte", "eosinophil", "basophil")
    labs = ("mgg", "wright-giemsa", "giemsa")
    kinds = ("SNE", "LY", "MO", "EO", "BA")
    source = SmearSource(SmearSpec.balanced(6, classes=kinds, domains=labs, size=SIZE, seed=4))
    frame = source.manifest.frame
    images = np.stack([source.read(i) for i in range(len(source))])
    codes = frame.label.map({kind: code for code, kind in enumerate(kinds)})
    return images, codes.to_numpy(), frame.domain.map({lab: i for i, lab in enumerate(labs)}).to_numpy(), labs, names


def real_batch():
    """The same from three real laboratories, or None without their images."""
    if not DATA:
        return None
    cache = from_root(STORE) / "cache"
    try:
        benchmark = load_benchmark("sada-four", data_root=from_root(DATA), cache=cache, progress=False)
    except WbcreproError:
        return None
    labs, rng, table = benchmark.domains[:3], np.random.default_rng(1), benchmark.table
    rows = [int(i) for lab in labs for c in range(5)
            for i in rng.choice(table.item[(table.domain == lab) & (table.label == c)], 2)]  # fmt: skip
    images = [np.asarray(Image.fromarray(benchmark.read(i)).resize((SIZE, SIZE), Image.Resampling.BOX)) for i in rows]
    part = table.set_index("item").loc[rows]
    return np.stack(images), part.label.to_numpy(), part.domain.map(labs.index).to_numpy(), labs, benchmark.classes


real = real_batch()
codes, y, domain, LABS, CLASSES = real or drawn_batch()
images = torch.from_numpy(codes).permute(0, 3, 1, 2).float() / 255
y, domain = torch.tensor(y.tolist()), torch.tensor(domain.tolist())
CELL = int(torch.nonzero((domain == 0) & (y == 3))[0])  # an eosinophil: both dyes matter in it
KIND = (
    "Real cells: Acevedo-20 (Acevedo et al., Data in Brief 2020, CC BY 4.0), Raabin-WBC (Kouzehkanan et al., "
    "Scientific Reports 2022, crops from a repository under MIT), Chulalongkorn (MIT)."
    if real else "Synthetic: cells drawn by a program."
)  # fmt: skip
CELLS = "images of three datasets below DATA" if real else "cells of wbcrepro.data.smears"


def caption(words):
    display(Markdown(f"*{KIND} {words}*"))


def show(axis, image, title=""):
    axis.imshow(image.permute(1, 2, 0).clamp(0, 1).numpy() if isinstance(image, torch.Tensor) else image)
    axis.set_title(title, fontsize=9)
    axis.set(xticks=[], yticks=[])
    axis.grid(False)
    for side in axis.spines.values():
        side.set_visible(False)


banner(not real, KIND)

# %% [markdown]
# ## Fig. 3: printing a cell with other dyes
#
# ### Step 1, decomposition
#
# Beer and Lambert again (Eq. 1): $-\ln(X / X_0) = W H$, with unit columns $W$ (3 × 2, colours) and densities $H$
# (2 × pixels), both non-negative and found together by a sparse factorisation of each image. (The paper's sentence
# swaps the names; we follow the equation.)

# %%
SETTINGS = StainAugmentation(background=False)  # the text's: no background; ours: exact steps, nucleus's stain first
found = separate(images, method=SETTINGS.method, order=SETTINGS.order, background=False)
W, H, B = found.W, found.H, found.B
print(f"{len(images)} images, W {tuple(W.shape)}, H {tuple(H.shape)}, status: {set(found.status)}")

# %% tags=["hide-input"]


def patch(column, amount=1.2):
    return np.tile(np.exp(-amount * column.numpy()), (12, 12, 1))


fig, axes = plt.subplots(1, 6, figsize=(7.2, 1.7), width_ratios=(1, 0.45, 1, 0.45, 1, 1))
show(axes[0], images[CELL], "$X$")
for k in range(2):
    show(axes[1 + 2 * k], patch(W[CELL, :, k]), f"$W_{k + 1}$")
    density = H[CELL, k].reshape(SIZE, SIZE).numpy()
    axes[2 + 2 * k].imshow(density, cmap="gray_r", vmin=0, vmax=np.quantile(density, 0.995))
    axes[2 + 2 * k].set(xticks=[], yticks=[])
    axes[2 + 2 * k].set_title(f"$H_{k + 1}$", fontsize=9)
    axes[2 + 2 * k].grid(False)
show(axes[5], (-(W[CELL] @ H[CELL])).exp().reshape(3, SIZE, SIZE), r"$X_0\exp(-WH)$")
plt.show()
display(figure_source(CELLS, AGAIN))
caption(f"Relative error of the optical density: {float(found.relative_error[CELL]):.1%} for this cell, "
        f"{float(found.relative_error.mean()):.1%} on average over the batch.")  # fmt: skip

# %% [markdown]
# ### Step 2, which stains are alike?
#
# Laboratories vary within themselves. So the minibatch is divided anew: k-means with $k = 3$ on the numbers of
# $W$ makes *stain clusters*, and these serve as domains.

# %%
generator = torch.Generator().manual_seed(0)
clusters = kmeans_labels(stain_vectors(found, background=False), 3, generator=generator)
donors = choose_donors(clusters, found.codes == 0, 3, generator)  # (N, 2): one image from each other cluster

# %% tags=["hide-input"]
fig, axes = plt.subplots(1, 3, figsize=(7.2, 2.7), width_ratios=(1, 1, 0.8))
for k in range(2):
    for c in range(3):
        for lab in range(3):
            keep = (clusters == c) & (domain == lab)
            axes[k].scatter(W[keep, 0, k], W[keep, 2, k], s=22, color=PALETTE[c], marker=MARKERS[lab], lw=0, alpha=0.85)
    axes[k].scatter(W[CELL, 0, k], W[CELL, 2, k], s=110, facecolor="none", edgecolor="black", lw=1.3)
    axes[k].set(title=f"$W_{k + 1}$ of every image", xlabel="red absorption", ylabel="blue absorption")
table = np.array([[int(((clusters == c) & (domain == lab)).sum()) for c in range(3)] for lab in range(3)])
axes[2].imshow(table, cmap="Greys", vmin=0, vmax=table.max() * 1.8)
for (row, column), value in np.ndenumerate(table):
    axes[2].text(column, row, value, ha="center", va="center")
axes[2].set_xticks(range(3), [f"cluster {c}" for c in range(3)], fontsize=8, rotation=30)
axes[2].set_yticks(range(3), LABS, fontsize=8)
axes[2].set_title("images", fontsize=9.5)
axes[2].grid(False)
handles = [plt.Line2D([], [], ls="", marker="o", color=PALETTE[c], label=f"cluster {c}") for c in range(3)]
handles += [plt.Line2D([], [], ls="", marker=MARKERS[i], color="#777777", label=lab) for i, lab in enumerate(LABS)]
handles += [plt.Line2D([], [], ls="", marker="o", mfc="none", color="black", ms=10, label="our cell")]
fig.legend(handles=handles, loc="outside lower center", ncols=7, handletextpad=0.1, columnspacing=0.9, fontsize=8)
plt.show()
display(figure_source(CELLS, AGAIN))
majority = table.max(0).sum() / table.sum()
caption(f"Were clusters named after their most frequent laboratory, {majority:.0%} of the images would bear their own.")

# %% [markdown]
# ### Step 3, exchange
#
# Our cell gets one view from each *other* cluster: a random donor $t$ there lends its $W_t$. Densities of two
# images have different scales, so each row of $H_i$ is stretched until its 99th percentile is the donor's (Eq. 2), and
# the light comes back through the exponential (Eq. 3):
#
# $$ x_i^{*} = X_0 \exp\Bigl(-W_t\, H_i\, \frac{P_{99}(H_t)}{P_{99}(H_i)}\Bigr). $$

# %%
peaks = row_quantile(H, 0.99)
pair = donors[CELL].tolist()
by_hand = [restain(H[[CELL]], peaks[[t]], W[[t]], B[[t]], peaks[[CELL]]).reshape(3, SIZE, SIZE) for t in pair]
views = stain_views(images, k=3, generator=torch.Generator().manual_seed(0), settings=SETTINGS)
print(f"the package's views (N, k, 3, H, W) = {tuple(views.shape)}; difference from ours: "
      f"{max(float((views[CELL, 1 + j] - light).abs().max()) for j, light in enumerate(by_hand)):.1e}")

# %% tags=["hide-input"]
fig, axes = plt.subplots(2, 3, figsize=(5.6, 3.9))
show(axes[0, 0], views[CELL, 0], "our cell, raw")
axes[1, 0].set_axis_off()
for j, t in enumerate(pair):
    show(axes[0, 1 + j], views[CELL, 1 + j], f"our cell, dyes of {t}")
    show(axes[1, 1 + j], images[t], f"donor {t} ({LABS[domain[t]]},\n{CLASSES[y[t]]})")
plt.show()
display(figure_source(CELLS, AGAIN))
caption("Top: the three views that stage 1 works on. Bottom: whose dyes they are.")


def darkness(light):
    return snmf_od(light).mean(1)


def correlation(a, b):
    a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
    return (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1)).clamp_min(1e-9)


same = torch.stack([correlation(darkness(views[:, 0]), darkness(views[:, j])) for j in (1, 2)])
colour = (views[:, 1:] - views[:, :1]).abs().mean().item() * 255
Markdown(
    f"Pixel values move by {colour:.0f} grey levels on average; the pattern of dark and light stays: the correlation "
    f"of a view's optical density with the raw image's is {float(same.mean()):.3f} on average, {float(same.min()):.3f} "
    "in the worst case. Note who the donors are: a cell of another *class* lends its dyes as readily as one of the "
    "same."
)

# %% [markdown]
# Three versions of this step circulate: the text's, the released code's and the default here. The released code takes a
# *background* $B$ off before the factorisation and adds the donor's back, leaves the columns of $W$ in whatever order
# ten iterations give, and jitters colours afterwards, of the new views only. None of that is in Eq. 1 to 3.

# %% tags=["hide-input"]
VERSIONS = {
    "text, default here": (SETTINGS, None),
    "text, ten iterations,\nunsorted": (PAPER, None),
    "released code,\nwithout jitter": (RELEASED, None),
    "released code": (RELEASED, lambda light, generator: random_colour_jitter(light, JITTER, generator)),
}
fig, axes = plt.subplots(3, 4, figsize=(7.2, 3.4))
cells = [CELL, *(int(torch.nonzero((domain == lab) & (y == c))[0]) for lab, c in ((1, 0), (2, 1)))]
kept = {}
for column, (name, (settings, jitter)) in enumerate(VERSIONS.items()):
    made = stain_views(images, k=3, generator=torch.Generator().manual_seed(0), settings=settings, jitter=jitter)
    kept[name.replace("\n", " ")] = correlation(darkness(made[:, 0]), darkness(made[:, 1]))
    for row, cell in enumerate(cells):
        show(axes[row, column], torch.cat([made[cell, 0], made[cell, 1]], 2), name if row == 0 else "")
plt.show()
display(figure_source(CELLS, AGAIN))
caption("Three cells; in each panel the raw view on the left and a re-stained one on the right.")
together = {}
for name, settings in (("exact steps", SETTINGS), ("ten iterations", PAPER)):
    h = separate(images, method=settings.method, background=False).H
    together[name] = float(correlation(h[:, 0], h[:, 1]).mean())
display(frame_html(pd.DataFrame([{"version": name, "mean": float(c.mean()), "worst": float(c.min())}
                                 for name, c in kept.items()]), "restaining.csv", decimals=3, command=AGAIN,
                   words=drawn_words(CELLS), synthetic="" if real else KIND,
                   caption="Correlation of the optical density of a re-stained view with the raw one's"))  # fmt: skip
Markdown(
    "A higher correlation is not a better augmentation. The two densities $H_1$ and $H_2$ of an image are correlated "
    f"by {together['ten iterations']:.2f} on average after ten iterations and by {together['exact steps']:.2f} after "
    "exact steps: where both stains sit in the same places, an exchange of dyes is little more than one tint over the "
    "whole picture, and where they do not, nucleus and cytoplasm change separately."
)

# %% [markdown]
# Where the order of the columns differs between an image and its donor, the nucleus is printed in the cytoplasm's
# colour and the other way round. That is a lookalike of no laboratory. It may be useful noise all the same; whether it
# is can only be measured on a classifier.
#
# ## Fig. 2: the road of one cell
#
# In stage 1 the views go through the backbone. From its last maps two branches start: $f_l$, two 1×1 convolutions, for
# the *local* comparison; and pooling with a projector $f_p$ for the *contrastive* one. A small network with random
# weights is enough to see the shapes.

# %%
def new_algorithm(seed=0, **settings):
    torch.manual_seed(seed)
    backbone, info = build_backbone(TINY, weights="random", seed=seed)
    network = Classifier(backbone, nn.Linear(info.dim, 5), info)
    counts = torch.full((3, 5), 2)
    return make_algorithm("sada", network, counts, lr=1e-3, stage1_steps=10_000, **settings)


def one_cell(algorithm, side=224):
    """Views of our cell, their maps (k,C,h,w), unit local embeddings (k,128,h,w) and projections (k,128)."""
    light = F.interpolate(views[CELL], (side, side), mode="bilinear")
    with torch.no_grad():
        algorithm.eval()
        maps = algorithm.network.maps(algorithm.inputs(light))
        local = F.normalize(algorithm.alignment(maps), dim=1)
        return light, maps, local, F.normalize(algorithm.projector(algorithm.network.pool(maps)), dim=1)


fresh = new_algorithm()
light, maps, local, z = one_cell(fresh)

# %% tags=["hide-input"]
fig, axes = plt.subplots(3, 4, figsize=(7.2, 4.5), width_ratios=(1, 1, 1, 1.7))
for j in range(3):
    show(axes[j, 0], light[j], "view" if j == 0 else "")
    axes[j, 0].set_ylabel(("raw $x_i$", "$x_i^1$", "$x_i^2$")[j], fontsize=9)
    for column, values, name in ((1, maps[j], f"maps $F$ {tuple(maps.shape[1:])}"),
                                 (2, local[j], f"$E$ {tuple(local.shape[1:])}")):  # fmt: skip
        axes[j, column].imshow(values.mean(0).numpy(), cmap="cividis")
        axes[j, column].set(xticks=[], yticks=[])
        axes[j, column].set_title(name if j == 0 else "", fontsize=8.5)
        axes[j, column].grid(False)
    axes[j, 3].bar(range(z.shape[1]), z[j].numpy(), color=PALETTE[0], width=1)
    axes[j, 3].set(xticks=[], ylim=(-0.3, 0.3))
    axes[j, 3].set_title(f"projection $z$ ({z.shape[1]},)" if j == 0 else "", fontsize=8.5)
plt.show()
display(figure_source(f"{CELLS} and an untrained network", AGAIN))
caption("Stage 1 on one cell. Maps and embeddings: mean over channels. Stage 2 sends the raw view to a classifier.")

# %% [markdown]
# Stage 2 is cross-entropy (Eq. 8). The text says "decoupled" and leaves open whether the backbone rests; in the
# released code it does not: the whole network is trained on, with natural class frequencies. Two stages, yes;
# decoupling in the sense of {cite:t}`kang2020`, no.
#
# ## Fig. 4: local alignment
#
# The same place of the same cell should have the same embedding, whatever the dyes. With $u = E / \lVert E \rVert$ at
# each position $p$ (Eq. 4 and 5):
#
# $$ \mathcal L_{LA} = \sum_{i=1}^{N} \sum_{p} \frac{1}{k-1} \sum_{t=1}^{k-1}
#    \bigl\lVert u_{i,p} - u_{i,p}^{t} \bigr\rVert^2 . $$

# %%
def local_loss_by_hand(embedded):
    """Eq. 5 on (N,k,D,h,w), in loops."""
    total = 0.0
    for cell in embedded:
        unit = [view / view.norm(dim=0, keepdim=True) for view in cell]
        total += sum(float(((unit[0] - other) ** 2).sum()) for other in unit[1:]) / (len(unit) - 1)
    return total


print(f"by hand {local_loss_by_hand(local[None]):.6f}, package {float(local_alignment_loss(local[None])):.6f}")

# %% [markdown]
# What does it buy? Three small networks from the same random weights: untrained, trained for a few steps without local
# alignment ($\beta = 0$), and with it. An embedding that is the same *everywhere* aligns views perfectly and is
# worthless, so each distance is divided by the distance between different cells.

# %%
STEPS = 3 if SMALL else 14
rows = [torch.nonzero(domain == lab)[:, 0] for lab in range(3)]
batches = [(images[r[::2]], y[r[::2]]) for r in rows]
held = torch.cat([r[1::2] for r in rows])  # cells that no network below is trained on


def trained(**settings):
    algorithm = new_algorithm(**settings)
    for _ in range(STEPS):
        last = algorithm.update(batches)
    return algorithm, last


BETAS = (0.0, 0.1, 1.0)
networks = {"untrained": (fresh, None)}
for beta in BETAS:
    algorithm, last = trained(beta=beta)
    if algorithm.alignment is None:  # beta 0 has no local branch: look at it through an untrained one
        algorithm.alignment = copy.deepcopy(fresh.alignment)
    networks[f"β = {beta:g}"] = (algorithm, last)


def separation(algorithm):
    """Mean squared distance between views of a cell, and between raw views of different cells, position by position."""
    with torch.no_grad():
        algorithm.eval()
        maps = algorithm.network.maps(algorithm.inputs(views[held].flatten(0, 1)))
        unit = F.normalize(algorithm.alignment(maps), dim=1).unflatten(0, (-1, 3))
    own = (unit[:, :1] - unit[:, 1:]).square().sum(2).mean()
    others = (unit[None, :, 0] - unit[:, None, 0]).square().sum(2).mean() * len(unit) / (len(unit) - 1)
    return float(own), float(others)


distances = {name: separation(algorithm) for name, (algorithm, _) in networks.items()}

# %% tags=["hide-input"]
fig, axes = plt.subplots(1, 1 + len(networks), figsize=(7.2, 2.2))
show(axes[0], torch.cat([light[0], light[1]], 1), "raw, re-stained")
for axis, (name, (algorithm, _)) in zip(axes[1:], networks.items(), strict=True):
    _, _, unit, _ = one_cell(algorithm, SIZE)
    ratio = (unit[0] - unit[1]).square().sum(0) / distances[name][1]
    picture = axis.imshow(ratio.numpy(), cmap="viridis", vmin=0, vmax=1)
    axis.set(xticks=[], yticks=[])
    axis.set_title(name, fontsize=9)
    axis.grid(False)
bar = fig.colorbar(picture, ax=axes[1:], orientation="horizontal", shrink=0.5, aspect=40)
bar.set_label(r"$\Vert u_p - u_p^1 \Vert^2$ relative to different cells", fontsize=8.5)
plt.show()
display(figure_source(f"{CELLS} and networks that it trains", AGAIN))
caption(f"Distance of two views of our cell at each place of the maps; {STEPS} steps of stage 1. With β = 0 nothing "
        "trains the local branch, which is then that of the untrained network.")  # fmt: skip
frame_html(pd.DataFrame([{"network": name, "between views": own, "between cells": others, "ratio": own / others}
                         for name, (own, others) in distances.items()]), "local_alignment.csv", decimals=4,
           command=AGAIN, words=drawn_words(CELLS), synthetic="" if real else KIND,
           caption="Squared distance of local embeddings of held-out cells, mean over positions")  # fmt: skip

# %% tags=["hide-input"]
ratio = {name: own / others for name, (own, others) in distances.items()}
low, high = f"β = {BETAS[0]:g}", f"β = {BETAS[-1]:g}"
Markdown(
    f"With local alignment at {high} the ratio is {ratio[high]:.2f}, without it {ratio[low]:.2f} (untrained: "
    f"{ratio['untrained']:.2f}), on {len(held)} cells outside the training and after {STEPS} steps: "
    + ("enough to see the loss work, not to judge it." if ratio[high] < ratio[low] else "too little to see it work.")
)

# %% [markdown]
# ## Fig. 5: the averaged anchor
#
# Contrastive learning pulls images of one class together and pushes others apart. The paper's objection: an *anchor*
# that carries its laboratory's look draws others towards that look. Its remedy: let the anchor be the average of the
# $k$ views' unit embeddings, $a_i = \frac1k \sum_t z_i^t$, in which the looks partly cancel (Eq. 6):
#
# $$ \mathcal L_{DISC} = \sum_{i=1}^{N} \frac{-1}{|P(i)|} \sum_{z_j \in P(i)}
#    \log \frac{\exp(a_i \cdot z_j / \tau)}{\sum_{m} \exp(a_i \cdot z_m / \tau)} . $$
#
# $P(i)$ holds *all* views of all images of the class, the anchor's own included. Here are three classes with two images
# each on a circle; each image has three views.

# %%
angles = torch.tensor([[10.0, 32.0, -14.0], [48.0, 25.0, 66.0], [118.0, 150.0, 96.0],
                       [165.0, 140.0, 182.0], [250.0, 228.0, 275.0], [300.0, 318.0, 283.0]])  # fmt: skip
circle = torch.stack([torch.deg2rad(angles).cos(), torch.deg2rad(angles).sin()], 2).double()  # (6, 3, 2)
circle_y = torch.tensor([0, 0, 1, 1, 2, 2])
TAU = 0.5
losses = {name: averaged_anchor_loss(circle, circle_y, TAU, denominator=name, reduction="none")
          for name in ("all_views", "raw_views")}  # fmt: skip


def pulls(function):
    free = circle.clone().requires_grad_(True)
    function(free).backward()
    return -free.grad


gradient = {
    "SupCon, every view an anchor": pulls(lambda z: supcon_loss(z.flatten(0, 1), circle_y.repeat_interleave(3), TAU)),
    "averaged anchors,\nall views below": pulls(lambda z: averaged_anchor_loss(z, circle_y, TAU)),
    "averaged anchors,\nraw views below": pulls(
        lambda z: averaged_anchor_loss(z, circle_y, TAU, denominator="raw_views")
    ),
}

# %% tags=["hide-input"]
fig, axes = plt.subplots(1, 3, figsize=(7.2, 2.95))
turn = torch.linspace(0, 2 * np.pi, 200)
for axis, (name, arrows) in zip(axes, gradient.items(), strict=True):
    axis.plot(turn.cos(), turn.sin(), color="#BBBBBB", lw=0.8)
    for i in range(6):
        colour, marker = PALETTE[int(circle_y[i])], MARKERS[int(circle_y[i])]
        axis.scatter(*circle[i, 0], s=42, color=colour, marker=marker, zorder=3)
        axis.scatter(*circle[i, 1:].T, s=26, facecolor="white", edgecolor=colour, marker=marker, lw=1.2, zorder=3)
        if "anchors" in name:
            axis.scatter(*circle[i].mean(0), s=26, color=colour, marker="x", zorder=3)
        for t in range(3):
            axis.annotate("", circle[i, t] + 4 * arrows[i, t], circle[i, t],
                          arrowprops={"arrowstyle": "->", "color": colour, "lw": 1.1})  # fmt: skip
    axis.set(xticks=[], yticks=[], xlim=(-1.35, 1.35), ylim=(-1.35, 1.35), aspect="equal")
    axis.set_title(name, fontsize=9)
    axis.grid(False)
handles = [plt.Line2D([], [], ls="", marker="o", color="#777777", label="raw view"),
           plt.Line2D([], [], ls="", marker="o", mfc="white", color="#777777", label="re-stained view"),
           plt.Line2D([], [], ls="", marker="x", color="#777777", label="anchor (average)")]  # fmt: skip
fig.legend(handles=handles, loc="outside lower center", ncols=3)
plt.show()
display(figure_source("eighteen made-up points on a circle", AGAIN))
display(Markdown("*Synthetic: made-up embeddings, three classes. Arrows: where the loss moves each view (× 4).*"))

# %% [markdown]
# ### Two denominators
#
# Over what does $m$ run? Eq. 6 prints $\sum_{k=1}^{N}$, with a letter that already means something else. Read literally
# it is the $N$ *raw* views; the released function (and the usual reading) takes all $kN$ views. With the literal
# reading most positives are not among the terms of their own denominator, so the "probability" may exceed one:

# %% tags=["hide-input"]
apart = torch.tensor([[[0.2, 1.0], [1.0, 0.1], [1.0, 0.0]], [[0.1, -1.0], [-1.0, 0.0], [-1.0, 0.1]]])
examples = {
    "the circle": (circle, circle_y, TAU),
    "our batch, untrained network": None,
    "two cells whose raw views lie apart from the re-stained": (F.normalize(apart, dim=2), torch.tensor([0, 1]), TAU),
}
with torch.no_grad():
    maps = fresh.network.maps(fresh.inputs(views.flatten(0, 1)))
    own = fresh.projector(fresh.network.pool(maps)).unflatten(0, (-1, 3))
examples["our batch, untrained network"] = (own, y, 0.1)
lines, signs = [], {}
for name, (z, labels, tau) in examples.items():
    value = {d: float(averaged_anchor_loss(z, labels, tau, denominator=d)) for d in ("all_views", "raw_views")}
    signs[name] = value["raw_views"]
    lines.append({"embeddings": name, "N": len(z), "τ": tau, "all kN views": value["all_views"],
                  "N raw views": value["raw_views"], "difference": value["all_views"] - signs[name]})  # fmt: skip
display(frame_html(pd.DataFrame(lines), "denominators.csv", decimals=3, command=AGAIN, words=drawn_words(CELLS),
                   synthetic="" if real else KIND, caption="Averaged-anchor loss, mean over anchors"))  # fmt: skip
negative = [name for name, value in signs.items() if value < 0]
push = {name: float(g[:, 1:].norm(dim=2).mean() / g[:, 0].norm(dim=1).mean()) for name, g in gradient.items()}
keys = list(push)
Markdown(
    f"For {'; '.join(negative) if negative else 'none of these'} the literal loss is negative. Where views lie close "
    f"together the two differ by about ln k = {np.log(3):.3f}, a constant without a gradient. They part where views "
    "are still apart, which is where the loss has work to do: on the circle a re-stained view feels "
    f"{push[keys[1]]:.2f} times the force on a raw one with all views below, {push[keys[2]]:.2f} times with raw views "
    "below. In the second case a re-stained view is never pushed off by another class's anchor: it is pulled, and for "
    "the rest moves with its own anchor."
)

# %% [markdown]
# What the released code *runs* is neither: ordinary SupCon over all views (the left panel), with $\beta = 0$. The
# averaged anchor is in the code and not called. The rows of the paper's tables and the command of its README are two
# different methods; presets `paper` and `code` keep them apart.
#
# ## Sums, means, and what β means
#
# Eq. 5 and 6 are *sums*. The code takes *means*: over the $N$ anchors in the contrastive loss, and over images,
# channels and positions in the local one. Is a factor in front of a loss of any interest?

# %%
N, _, DEPTH, HEIGHT, WIDTH_ = (len(images), *fresh.alignment(fresh.network.maps(fresh.inputs(images[:1]))).shape)
with torch.no_grad():
    embedded = fresh.alignment(maps).unflatten(0, (-1, 3))
    forms = {form: float(local_alignment_loss(embedded, form)) for form in ("sum", "mean")}
    disc = {form: float(averaged_anchor_loss(own, y, 0.1, reduction=form)) for form in ("sum", "mean")}
resnet = mean_form_beta(0.1, 128, 7, 7)

# %% tags=["hide-input"]
Markdown(
    f"On this batch (N = {N}, embeddings {DEPTH} × {HEIGHT} × {WIDTH_}) the local loss is {forms['sum']:.4g} as a sum "
    f"and {forms['mean']:.3g} as a mean: a factor of {forms['sum'] / forms['mean']:,.0f} = N·D·h·w. The contrastive "
    f"loss is {disc['sum']:.4g} and {disc['mean']:.4g}: a factor of {disc['sum'] / disc['mean']:.0f} = N. So sum with "
    "sum and mean with mean are *different* compromises: their ratio changes by D·h·w = "
    f"{DEPTH * HEIGHT * WIDTH_:,}. For ResNet-50 at 224 px the paper's β = 0.1 with sums is β = {resnet:.0f} with "
    "means; 0.1 with means is almost nothing."
)

# %% [markdown]
# A *common* factor, on the other hand, does nothing under Adam: it divides the gradient by its own running size. Three
# trainings from the same weights on the same draws:

# %%
def after(**settings):
    algorithm = new_algorithm(**settings)
    for _ in range(2 if SMALL else 3):
        algorithm.update(batches)
    return torch.cat([p.detach().flatten() for p in algorithm.network.backbone.parameters()])


start = torch.cat([p.detach().flatten() for p in new_algorithm(beta=0.1).network.backbone.parameters()])
summed = after(beta=0.1)
matched = after(beta=mean_form_beta(0.1, DEPTH, HEIGHT, WIDTH_), reduction="mean", alignment="mean")
naive = after(beta=0.1, reduction="mean", alignment="mean")
walked = float((summed - start).norm())
print(f"sums, β = 0.1: the weights move by {walked:.4f}")
print(f"means, β × D·h·w:  end {float((matched - summed).norm()) / walked:.2%} of that way apart from it")
print(f"means, β = 0.1:    end {float((naive - summed).norm()) / walked:.2%} of that way apart from it")

# %% [markdown]
# So a β cannot be carried from one form to the other without the factor, and the grid of the paper's Fig. 7 can be
# read only with the form beside it. (What is left of a difference in the matched run is Adam's ε.) Settings `reduction`
# and `alignment` of algorithm `sada` say which.
#
# :::{admonition} Summary
# :class: tip
# - SADA makes the correspondence that feature alignment only hopes for: the same cell, printed with the dyes of another
#   image of the batch. Stain clusters, not laboratories, are its domains.
# - Released code and text differ in this step (background, order of columns, jitter); each is a switch here.
# - Local alignment compares the same place under two dyes. It must be read relative to the distance between different
#   cells, because a constant embedding satisfies it.
# - The averaged anchor lies inside the circle and belongs to no look. The printed denominator admits two readings that
#   treat re-stained views differently.
# - Sums and means are different compromises between the two losses: under Adam a common factor cancels, the ratio does
#   not. The released command runs SupCon with β = 0.
# :::
#
# ## Exercises
#
# **1.** What is the largest value that Eq. 5 can take for one image with 7 × 7 positions, and what the largest for the
# mean form with 128 channels?

# %% tags=["hide-cell"]
# Solution 1. Opposite unit vectors are at squared distance 4.
opposite = F.normalize(torch.randn(1, 1, 128, 7, 7, generator=torch.Generator().manual_seed(0)), dim=2)
worst = torch.cat([opposite, -opposite], 1)
as_sum, as_mean = float(local_alignment_loss(worst)), float(local_alignment_loss(worst, "mean"))
print(f"sum {as_sum:.1f} = 4 · 49, mean {as_mean:.5f} = 4 / 128")

# %% [markdown]
# **2.** Why does the length of an averaged anchor say how well its views agree? Compute it for the circle.

# %% tags=["hide-cell"]
# Solution 2. The mean of unit vectors has length 1 only if they coincide: |a|^2 is the mean cosine over all pairs.
length = circle.mean(1).norm(dim=1)
cosines = (circle @ circle.mT).mean((1, 2)).sqrt()
print("length of the anchor    ", np.round(length.numpy(), 3))
print("root of the mean cosine ", np.round(cosines.numpy(), 3))

# %% [markdown]
# **3.** A batch of stage 1 has fewer images than clusters. What should the augmentation do, and what does it?

# %% tags=["hide-cell"]
# Solution 3. It takes donors from whatever other images there are; a lone image is its own donor, so its views differ
# from it by the error of the factorisation only.
for n in (1, 2, 3):
    few = stain_views(images[:n], k=3, generator=torch.Generator().manual_seed(0), settings=SETTINGS)
    change = (few[:, 1:] - few[:, :1]).abs().mean().item() * 255
    print(f"{n} image{'s' * (n > 1)}: views {tuple(few.shape)}, new views differ by {change:.1f} grey levels")

# %% [markdown]
# **4.** In SupCon over all views an image's own re-stained views are positives. So are they in the averaged-anchor
# loss. What is different about them there?
#
# :::{admonition} Solution
# :class: dropdown
# There the anchor *contains* them. $a_i \cdot z_i^t = \frac1k (1 + \sum_{s \ne t} z_i^s \cdot z_i^t)$: part of the
# similarity is the view with itself, which no training can change, and gradients reach a view both as a positive and
# through the anchor. An image alone in its class still has its $k$ views as positives, so a rare class always has a
# term.
# :::
