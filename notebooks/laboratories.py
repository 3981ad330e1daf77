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
RESULTS = "results"  # the folder of committed measurements on real images

# %% [markdown]
# # The same cell in four laboratories
#
# A classifier that is right nine times in ten in the laboratory that trained it may be right six times in ten in the
# next. No cell has changed in between. The dyes have, the light, the lens and the camera, the width of the picture,
# and also *which* cells were worth keeping. The papers `boda` {cite:p}`umer2023boda` and `sada`
# {cite:p}`li2024sada` are about this step from known laboratories to an unseen one: *domain generalisation*.
#
# Before methods, the thing itself. With photographs alone we could not say what a laboratory changes, because no cell
# is ever stained twice. A drawing can do that: here the *same* cell goes through four laboratories, and the truth is
# known. Real laboratories stand beside it where their images are at hand.

# %% tags=["hide-input"]
import warnings

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from IPython.display import Markdown, display
from PIL import Image

from wbcrepro.data.benchmarks import load_benchmark
from wbcrepro.data.borders import border_table
from wbcrepro.data.domain_benchmarks import class_counts
from wbcrepro.data.scale import cell_diameter, field_crop, measured, scaled_reader
from wbcrepro.data.smears import LABORATORIES, SmearSource, SmearSpec
from wbcrepro.data.smears.optics import develop, illumination, photograph
from wbcrepro.data.smears.stains import background, stain_matrix, transmit
from wbcrepro.errors import WbcreproError
from wbcrepro.report.domain_figures import MARKERS, laboratories_figure
from wbcrepro.report.figures import PALETTE, use_style
from wbcrepro.report.page import banner, drawn_words, figure_source, frame_html
from wbcrepro.session import from_root, no_results
from wbcrepro.stain.separation_evaluation import masked_images, order_accuracy, smear_angles
from wbcrepro.stain.snmf import separate

warnings.filterwarnings("ignore", message=".*IProgress.*")
torch.set_num_threads(1)
use_style()
LABS = list(LABORATORIES)
COLOUR = dict(zip(LABS, PALETTE, strict=False))
KINDS = ("SNE", "LY", "MO", "EO", "BA")
SMALL = PROFILE == "tiny"
CACHE = from_root(STORE) / "cache"
AGAIN = f"wbcrepro book --only laboratories --profile {PROFILE}" + (" --data FOLDER_OF_THE_DATASETS" if DATA else "")
SMEARS = "cells of wbcrepro.data.smears"
DRAWN = "Synthetic: cells drawn by a program and stained by the law of Beer and Lambert."


def show(axis, image, title=""):
    axis.imshow(np.clip(image, 0, 255).astype(np.uint8))
    axis.set_title(title, fontsize=9.5)
    axis.set(xticks=[], yticks=[])
    axis.grid(False)
    for side in axis.spines.values():
        side.set_color("#8A8A8A")


def caption(words):
    display(Markdown(f"*{words}*"))


def real_laboratories():
    """The benchmark of four real laboratories, or None without its images."""
    if not DATA:
        return None
    try:
        return load_benchmark("sada-four", data_root=from_root(DATA), cache=CACHE, progress=False)
    except WbcreproError:
        return None


real = real_laboratories()
LICENCES = (
    "Real cells: Acevedo-20 (Acevedo et al., Data in Brief 2020, CC BY 4.0); Raabin-WBC (Kouzehkanan et al., "
    "Scientific Reports 2022; 500 crops from a repository under MIT); Chulalongkorn (MIT); Zheng-18 (Zheng et al., "
    "Micron 2018, from a GPL-3 repository, courtesy of Jiangxi Tecom)."
)
banner(True, DRAWN)

# %% tags=["hide-input"]
Markdown(
    LICENCES if real else "This page was made without real images. Start it with `DATA` set to a folder that holds "
    "Acevedo-20, the Raabin and Chulalongkorn crops and Zheng-18, and sections on photographed cells appear."
)

# %% [markdown]
# ## One cell, four prints
#
# The [chapter on stain](stain) has the law: what a pixel transmits is $I = I_0 \exp(-V S)$, with the light $I_0$ of the
# empty slide, the colours $V$ of two dyes and their densities $S$. (`sada` writes $W$ for $V$ and $H$ for $S$, as the
# literature on factorisation does, and so do we from here on.) A cell is its $H$: how much dye sits where. A laboratory
# is a pair $(W, I_0)$ and a camera. So we take three drawn cells, keep their $H$ and print them four times.

# %%
source = SmearSource(SmearSpec.balanced(1, classes=("SNE", "LY", "EO"), size=128, domains=("mgg",), seed=3))
truths = [source.truth(row) for row in range(len(source))]


def printed(truth, lab):
    """Light (3,H,W) in 0-255 of the truth's densities under another laboratory's dyes and light."""
    return transmit(truth.densities, stain_matrix(lab, 1, np.ones((3, 2))), background(lab, 1))


def photographed(truth, lab, pixel=26 / 128):
    """The same through that laboratory's microscope and camera: uneven light, blur, colour fringes, noise, JPEG."""
    rng = np.random.default_rng(0)
    light = printed(truth, lab) * illumination(rng, truth.densities.shape[1], lab.vignetting)
    return develop(rng, photograph(rng, light, lab, pixel), lab)


# %% tags=["hide-input"]
fig, axes = plt.subplots(3, 6, figsize=(7.2, 3.9))
for line, truth in zip(axes, truths, strict=True):
    for k, name in enumerate(("azure $H_1$", "eosin $H_2$")):
        line[k].imshow(truth.densities[k], cmap="gray_r", vmin=0, vmax=np.quantile(truth.densities[k], 0.999))
        line[k].set(xticks=[], yticks=[])
        line[k].set_title(name if truth is truths[0] else "", fontsize=9.5)
        line[k].grid(False)
    for axis, (name, lab) in zip(line[2:], LABORATORIES.items(), strict=True):
        show(axis, photographed(truth, lab), name if truth is truths[0] else "")
    line[0].set_ylabel(truth.label)
plt.show()
display(figure_source(f"three {SMEARS}, printed with the dyes, lights and cameras of four laboratories", AGAIN))
caption("Synthetic. Left: what the cell is, the same in all laboratories. Right: what four laboratories make of it.")

# %% [markdown]
# ## What changes, and what does not
#
# Take the logarithm, and a laboratory does two simple things to the cloud of a picture's pixels. The light $I_0$
# *moves* it, and the dyes *turn* its edges.

# %% tags=["hide-input"]
truth = truths[-1]
seen = np.random.default_rng(0).choice(truth.densities[0].size, 700, replace=False)
fig, axes = plt.subplots(1, 2, figsize=(7.2, 3.3), sharex=True, sharey=True)
for index, (name, lab) in enumerate(LABORATORIES.items()):
    light = printed(truth, lab).reshape(3, -1)
    for axis, empty in zip(axes, (np.full(3, 255.0), background(lab, 1)), strict=True):
        od = -np.log(light / empty[:, None])
        axis.scatter(od[0, seen], od[2, seen], s=7, color=COLOUR[name], marker=MARKERS[index], lw=0, alpha=0.6,
                     label=name)  # fmt: skip
    for vector, style in zip(stain_matrix(lab, 1, np.ones((3, 2))).T, ("-", "--"), strict=True):
        axes[1].plot([0, 1.5 * vector[0]], [0, 1.5 * vector[2]], color=COLOUR[name], ls=style, lw=1.3)
axes[0].set(title="against one light, 255", xlabel="optical density, red", ylabel="optical density, blue")
axes[1].set(title="against each laboratory's own light", xlabel="optical density, red")
axes[1].set(xlim=(-0.05, 1.1), ylim=(-0.05, 1.2))
fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, markerscale=2.2)
plt.show()
display(figure_source("one cell of wbcrepro.data.smears", AGAIN))
caption("Synthetic: the pixels of one drawn eosinophil in four laboratories. Lines: azure (solid) and eosin (dashed).")

# %% tags=["hide-input"]


def between(vectors):
    """Smallest and largest angle in degrees between the unit rows (4, 3)."""
    cosines = np.clip(vectors @ vectors.T, -1, 1)[np.triu_indices(len(vectors), 1)]
    return np.degrees(np.arccos(cosines))[[cosines.argmax(), cosines.argmin()]]


matrices = np.stack([stain_matrix(lab, 1, np.ones((3, 2))) for lab in LABORATORIES.values()])
azure, eosin = between(matrices[:, :, 0]), between(matrices[:, :, 1])
own = np.degrees(np.arccos((matrices[:, :, 0] * matrices[:, :, 1]).sum(1)))
light = np.array([background(lab, 1) for lab in LABORATORIES.values()])
channel = int(np.ptp(light, axis=0).argmax())
Markdown(
    f"Two laboratories' azures are {azure[0]:.0f} to {azure[1]:.0f} degrees apart, their eosins {eosin[0]:.0f} to "
    f"{eosin[1]:.0f}; within one laboratory the two dyes are {own.min():.0f} to {own.max():.0f} degrees apart. The "
    f"light differs most in {('red', 'green', 'blue')[channel]}: {light[:, channel].min():.0f} to "
    f"{light[:, channel].max():.0f} grey levels on an empty slide."
)

# %% [markdown]
# How much of what one can measure in a picture is the laboratory, and how much the cell? A set of drawn cells has the
# same number of every class in every laboratory (these are different cells and different patients now, with all the
# variation of a smear). For each measure, the *share of its variance* that belongs to the laboratory and the share that
# belongs to the class:
#
# $$ \eta^2 = \frac{\sum_g n_g (\bar m_g - \bar m)^2}{\sum_i (m_i - \bar m)^2}, \qquad
#    g \text{ running over laboratories, or over classes.} $$

# %%
SHEET = SmearSource(SmearSpec.balanced(4 if SMALL else 24, classes=KINDS, size=96, seed=1))
sheet = SHEET.manifest.frame
sheet_truths = [SHEET.truth(row) for row in range(len(SHEET))]
sheet_images = np.stack([SHEET.read(row) for row in range(len(SHEET))])


def measures(image, truth):
    """What a picture offers: colours, which dyes and light decide, and shapes and densities, which the cell does."""
    nucleus, cell = truth.nucleus, truth.nucleus | truth.cytoplasm
    inside, ground = image[nucleus].mean(0), np.quantile(image, 0.95, axis=(0, 1))
    return {
        "ground, blue": ground[2],
        "nucleus, red": inside[0],
        "nucleus, blue": inside[2],
        "nucleus, OD of red\nagainst own ground": np.log(ground[0] / inside[0]),
        "nucleus, azure $H_1$": truth.densities[0][nucleus].mean(),
        "nucleus, area": nucleus.sum(),
        "nucleus, share of cell": nucleus.sum() / cell.sum(),
    }


def share_of_variance(values, groups):
    total = ((values - values.mean()) ** 2).sum()
    return sum(len(v) * (v.mean() - values.mean()) ** 2 for _, v in values.groupby(groups)) / total


table = pd.DataFrame([measures(i, t) for i, t in zip(sheet_images, sheet_truths, strict=True)])
shares = pd.DataFrame([{"measure": name, "laboratory": share_of_variance(table[name], sheet["domain"]),
                        "class": share_of_variance(table[name], sheet["label"])} for name in table])  # fmt: skip

# %% tags=["hide-input"]
fig, axis = plt.subplots(figsize=(7.2, 3.2))
rows = np.arange(len(shares))
for offset, column, colour, hatch in ((-0.19, "laboratory", PALETTE[1], ""), (0.19, "class", PALETTE[0], "//")):
    axis.barh(rows + offset, shares[column], 0.36, color=colour, hatch=hatch, edgecolor="white", label=column)
axis.set_yticks(rows, shares["measure"], fontsize=8.5)
axis.set(xlabel="share of the variance", xlim=(0, 1))
axis.invert_yaxis()
axis.grid(axis="y", visible=False)
axis.legend(loc="lower right")
plt.show()
display(figure_source(SMEARS, AGAIN))
caption(f"Synthetic: {len(sheet)} drawn cells, five classes in four laboratories, as many of each.")
colour_share, shape_share = shares.iloc[:3].mean(numeric_only=True), shares.iloc[5:].mean(numeric_only=True)
at_home = np.mean([share_of_variance(table.loc[own.index, "nucleus, blue"], own.label)
                   for _, own in sheet.reset_index(drop=True).groupby("domain")])  # fmt: skip
everywhere = shares.set_index("measure").loc["nucleus, blue", "class"]
Markdown(
    f"Of the three colours the laboratory explains {colour_share['laboratory']:.0%} on average and the class "
    f"{colour_share['class']:.0%}; of the two shapes {shape_share['laboratory']:.0%} and {shape_share['class']:.0%}. "
    f"A network is free to use either. The blue of the nucleus, for one, owes {at_home:.0%} of its variance to the "
    f"class as long as one stays in a laboratory, and {everywhere:.0%} over all four: nothing in the training of one "
    "laboratory tells a network which clues stay behind when it travels."
)

# %% [markdown]
# ## Four laboratories that exist

# %% tags=["hide-input"]


def picks(benchmark, code, count=1, seed=0):
    """Items of one class in each domain, drawn without looking."""
    rng, rows = np.random.default_rng(seed), benchmark.table
    return [rng.choice(rows.item[(rows.domain == d) & (rows.label == code)], count) for d in benchmark.domains]


if real:
    fig, axes = plt.subplots(3, 4, figsize=(7.2, 5.5))
    for line, code in zip(axes, (0, 1, 3), strict=True):
        for axis, name, items in zip(line, real.domains, picks(real, code), strict=True):
            show(axis, real.read(int(items[0])), name if code == 0 else "")
        line[0].set_ylabel(real.classes[code])
    plt.show()
    display(figure_source("the four datasets below DATA, one image of each class, drawn without looking", AGAIN))
    caption(LICENCES)
else:
    display(Markdown("*(No real images here: see the note at the top.)*"))

# %% [markdown]
# Real laboratories do not hand us $W$, so we estimate it (how, and how well, is the subject of the last two
# sections), from a few cells of each class.

# %% tags=["hide-input"]


def estimated(benchmark, per_class):
    """Stain vectors and light as the factorisation finds them: (domain, W (n,3,2), I0 (n,3)) of each domain."""
    found = []
    for d, name in enumerate(benchmark.domains):
        items = [int(i) for c in range(5) for i in picks(benchmark, c, per_class, seed=1)[d]]
        images = [np.asarray(Image.fromarray(benchmark.read(i)).resize((96, 96))) for i in items]
        part = separate(torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255, order="dark_nucleus")
        keep = part.codes == 0
        found.append((name, part.W[keep].numpy(), 255 * (-part.B[keep, :, 0]).exp().numpy()))
    return found


own_benchmark = load_benchmark("sada-tiny" if SMALL else "sada-smears", data_root=None, cache=CACHE, progress=False)
chosen = real or own_benchmark
found = estimated(chosen, 3 if SMALL else 8)
fig, axes = plt.subplots(1, 2, figsize=(7.2, 3.2), sharey=True)
for index, (name, w, _) in enumerate(found):
    for axis, column, dye in ((axes[0], 0, "the nucleus's stain"), (axes[1], 1, "the other stain")):
        axis.scatter(w[:, 0, column], w[:, 2, column], s=14, color=PALETTE[index], marker=MARKERS[index], lw=0,
                     alpha=0.7, label=name)  # fmt: skip
        axis.set(title=dye, xlabel="red absorption")
axes[0].set_ylabel("blue absorption")
fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, markerscale=1.6)
plt.show()
display(figure_source(f"images of benchmark {chosen.name}, drawn without looking", AGAIN))
caption(f"{LICENCES if real else 'Synthetic.'} Each point is one image: two entries of the unit columns of W.")
within = np.mean([np.degrees(np.arccos(np.clip((w * _unit).sum(1), -1, 1))).mean()
                  for _, w, _ in found for _unit in [w.mean(0) / np.linalg.norm(w.mean(0), axis=0)]])  # fmt: skip
means = np.stack([w.mean(0) / np.linalg.norm(w.mean(0), axis=0) for _, w, _ in found])
apart = np.concatenate([np.degrees(np.arccos(np.clip((means[a] * means[b]).sum(0), -1, 1)))
                        for a in range(len(means)) for b in range(a)]).mean()  # fmt: skip
Markdown(
    f"An image's estimated stains lie {within:.0f} degrees from its laboratory's mean, on average, and the means of "
    f"two laboratories {apart:.0f} degrees from each other. Clouds that overlap are why `sada` does not use the name "
    "of the laboratory at all: it clusters the stains of a minibatch and calls the *clusters* domains."
)

# %% [markdown]
# ## Which cells a laboratory keeps
#
# Fig. 1 of `sada` puts two things side by side: the laboratories' pictures, and their class counts. The second is the
# harder half. A laboratory is not only a look but a habit of collecting.

# %% tags=["hide-input"]
counts = class_counts(chosen)
laboratories_figure({lab: line.to_numpy() for lab, line in counts.iterrows()}, list(counts.columns))
plt.show()
display(figure_source(f"the table of benchmark {chosen.name}", AGAIN))
caption(f"Images of each class in benchmark `{chosen.name}`: {chosen.caption}. The layout follows Fig. 1 of `sada`.")
prior = counts.div(counts.sum(axis=1), axis=0)
pairs = [(a, b) for i, a in enumerate(prior.index) for b in prior.index[:i]]
distance = {(a, b): abs(prior.loc[a] - prior.loc[b]).sum() / 2 for a, b in pairs}
(far_a, far_b), far = max(distance.items(), key=lambda item: item[1])
Markdown(
    f"The class frequencies of {far_a} and {far_b} overlap by {1 - far:.0%} only. Suppose that a method makes the "
    f"two laboratories' features indistinguishable *as a whole*, so that every cell of one has a double in the other. "
    f"Then at least {far:.0%} of the doubles are of another class, whatever the method. The [chapter on aligning "
    "features](aligning_features) shows it happening.\n\n"
    + "\n".join(f"- {note}" for note in chosen.notes)
)

# %% [markdown]
# ## How large is a cell?
#
# One difference needs no dye: the width of the picture. Laboratories cut their crops as they like, the loader resizes
# all of them to one square, and a lymphocyte in one set is as wide as an eosinophil in another. The poster `boda`
# lists micrometres per pixel that differ by 38 % and does not say that anything was done about it.
#
# The *common scale* of this book crops the centre of each image to the same number of cell diameters. It is one number
# a laboratory, its cell diameter, so that differences between cells of one laboratory stay. Two things are not free:
#
# - an image that is smaller than the field has its border repeated, so that part of what a network sees is no picture;
# - the one number was measured on the laboratory's own images, class by class (the mean over classes of the median).
#   That holds for the laboratory that a table holds out too: the labels of the target enter this one number.
#
# For the four real sets:

# %%
COMMITTED = from_root(RESULTS) / "scale-sada-four.csv"
borders = border_table(real) if real else pd.read_csv(COMMITTED, comment="#") if COMMITTED.is_file() else None

# %% tags=["hide-input"]
if borders is None:
    shown = Markdown(no_results(from_root(RESULTS)))
else:
    wide = borders.side / borders.cell
    names = {"laboratory": "laboratory", "images": "images", "side": "median side, px", "smallest": "smallest, px",
             "cell": "cell, px", "field": "common field, px", "repeated": "images with a repeated border"}
    listed = borders[list(names)].rename(columns=names)
    listed.insert(5, "median side, cells", wide)
    words = "the four datasets below DATA" if real else f"results/{COMMITTED.name} (real images, measured once)"
    display(frame_html(listed, "scale.csv", decimals=1, command=AGAIN, words=drawn_words(words),
                       caption=f"Images and cells of four real laboratories. {LICENCES}"))  # fmt: skip
    short = borders[borders.repeated > 0]
    shown = Markdown(
        f"Typical images show fields of {wide.min():.1f} to {wide.max():.1f} cell diameters; the common field has "
        f"{measured()['field']:g}. The border is repeated in "
        + (", ".join(f"{line.repeated} of {line.images} images of {line.laboratory}" for line in short.itertuples())
           or "no image")
        + "."
    )  # fmt: skip
display(shown)

# %% [markdown]
# Here are drawn cells in fields as wide, in cell diameters, as those of the four real sets (the widths are
# measurements on their images; the drawings are not):

# %%
field, micrometres = measured()["field"], measured()["smears"]["diameter_um"]
EVEN = {f"{w:.1f} cells": w for w in np.linspace(field, 2 * field, 4)}  # where the real widths are not at hand
WIDTHS = EVEN if borders is None else dict(zip(borders.laboratory, borders.side / borders.cell, strict=True))
pictures, crops, labels = {}, {}, {}
for (name, width), lab in zip(WIDTHS.items(), LABS, strict=True):
    spec = SmearSpec.balanced(2 if SMALL else 8, classes=KINDS, size=96, seed=5, domains=(lab,),
                              field_um=width * micrometres * LABORATORIES[lab].zoom)  # fmt: skip
    drawn = SmearSource(spec)
    pictures[name] = [drawn.read(row) for row in range(len(drawn))]
    side = round(field * 96 / width)
    crops[name] = [np.asarray(Image.fromarray(field_crop(i, side)).resize((96, 96), Image.Resampling.BILINEAR))
                   for i in pictures[name]]  # fmt: skip
    labels[name] = drawn.manifest.frame.label.to_numpy()

# %% tags=["hide-input"]
fig, axes = plt.subplots(2, 4, figsize=(7.2, 3.9))
for column, name in enumerate(WIDTHS):
    cell = int(np.flatnonzero(labels[name] == "SNE")[0])
    show(axes[0, column], pictures[name][cell], f"as wide as {name}")
    show(axes[1, column], crops[name][cell])
axes[0, 0].set_ylabel("native")
axes[1, 0].set_ylabel("common scale")
plt.show()
display(figure_source(f"{SMEARS} and the widths of the table above", AGAIN))
diameters = {kind: {n: np.array([cell_diameter(i) for i in images]) for n, images in several.items()}
             for kind, several in (("native", pictures), ("common", crops))}  # fmt: skip


def told_by_size(values):
    """Share of images whose laboratory is the one with the nearest mean diameter, each left out of its own mean."""
    right, everything = 0, 0
    for name, own in values.items():
        for i, value in enumerate(own):
            centres = {n: np.nanmean(np.delete(v, i) if n == name else v) for n, v in values.items()}
            right += min(centres, key=lambda n: abs(centres[n] - value)) == name
            everything += 1
    return right / everything


caption("Synthetic: the same kind of cell in fields of four widths, before and after the crop.")
Markdown(
    "Mean diameter of a cell in the 96 px that a network sees, measured in the pictures: native "
    + ", ".join(f"{np.nanmean(v):.0f}" for v in diameters["native"].values())
    + "; common scale "
    + ", ".join(f"{np.nanmean(v):.0f}" for v in diameters["common"].values())
    + f". From the diameter alone one can tell the laboratory of {told_by_size(diameters['native']):.0%} of the cells "
    f"before and of {told_by_size(diameters['common']):.0%} after (guessing: 25 %)."
)

# %% tags=["hide-input"]
if real:
    common = scaled_reader(real, "common")
    fig, axes = plt.subplots(2, 4, figsize=(7.2, 3.9))
    for column, (name, items) in enumerate(zip(real.domains, picks(real, 0, seed=2), strict=True)):
        show(axes[0, column], real.read(int(items[0])), name)
        show(axes[1, column], common(int(items[0])))
    axes[0, 0].set_ylabel("native")
    axes[1, 0].set_ylabel("common scale")
    plt.show()
    display(figure_source("the four datasets below DATA", AGAIN))
    caption(LICENCES)

# %% [markdown]
# Whether the common scale helps a classifier is a measurement, not a matter of taste: it is a switch (`scale`) of every
# plan on several laboratories, on unless stated, and off in an ablation.
#
# ## How well can the stains be estimated?
#
# Three ways to find $W$ from one picture:
#
# - **Macenko**: the two extreme angles of the fan of pixels ([the chapter on stain](stain));
# - **SNMF** (sparse non-negative matrix factorisation, {cite:t}`vahadane2016`): the $W, H \ge 0$ that minimise
#   $\tfrac12 \lVert \mathrm{OD} - W H \rVert^2 + \lambda \sum H$, here brought near the minimum by exact steps;
# - what **the released code of `sada`** does: the same objective, ten multiplicative steps from a start of its own.
#
# In a drawing the dyes are known, so each has an error in degrees.

# %%
angle_rows = range(0, len(SHEET), 2 if SMALL else 3)
angles = smear_angles(SHEET, angle_rows)
summary = (angles[angles.usable].groupby("method", sort=False)[["azure", "eosin"]].agg(["median", "max"])
           .set_axis([f"{dye}, {what}" for dye in ("azure", "eosin") for what in ("median", "worst")], axis=1)
           .reset_index())  # fmt: skip
summary["without two stains"] = (~angles.usable).groupby(angles.method, sort=False).sum().to_numpy()

# %% tags=["hide-input"]
jitter = np.random.default_rng(0)
fig, axes = plt.subplots(1, 2, figsize=(7.2, 2.8), sharey=True)
for axis, dye in zip(axes, ("azure", "eosin"), strict=True):
    for row, method in enumerate(summary.method):
        values = angles[(angles.method == method) & angles.usable][dye]
        axis.scatter(values, row + jitter.uniform(-0.22, 0.22, len(values)), s=9, color=PALETTE[row],
                     marker=MARKERS[row], lw=0, alpha=0.6)  # fmt: skip
        axis.plot([values.median()] * 2, [row - 0.36, row + 0.36], color="black", lw=2)
    axis.set(xlabel="degrees from the true vector", title=f"{dye} (bar: median)", xlim=(0, None))
    axis.grid(axis="y", visible=False)
axes[0].set_yticks(range(len(summary)), [m.replace(", ", ",\n") for m in summary.method], fontsize=8.5)
axes[0].invert_yaxis()
plt.show()
display(figure_source(SMEARS, AGAIN))
caption(f"Synthetic: {len(angle_rows)} drawn cells in four laboratories, 96 px.")
frame_html(summary, "stain_angles.csv", synthetic=DRAWN, decimals=1, command=AGAIN, words=drawn_words(SMEARS),
           caption="Angle between estimated and true stain vectors, degrees")

# %% tags=["hide-input"]
codes = torch.from_numpy(sheet_images[list(angle_rows)]).permute(0, 3, 1, 2).float() / 255
ten, near = (separate(codes, method=method) for method in ("released", "fast"))
both = (ten.codes == 0) & (near.codes == 0)
ten_error, near_error = (100 * float(part.relative_error[both].mean()) for part in (ten, near))
middle = summary.set_index("method")
best, worst = (middle["azure, median"].idxmin(), middle["azure, median"].idxmax())
eosin_worse = (middle["eosin, median"] > middle["azure, median"]).all()
Markdown(
    f"Nearest to the true azure is *{best}* (median {middle.loc[best, 'azure, median']:.1f} degrees), farthest "
    f"*{worst}* ({middle.loc[worst, 'azure, median']:.1f}). Compare with the {azure[0]:.0f} to {azure[1]:.0f} degrees "
    "between laboratories' azures: an estimate may err by as much as what it is to measure. "
    + ("Every method does worse on eosin, which in these drawings hardly ever comes without azure (a red cell holds "
       "both): no pixel shows its colour alone, so no method can see the end of that ray." if eosin_worse else "")
    + f" Ten released steps leave {ten_error:.1f} % of the optical density unexplained on average, the exact steps "
    f"{near_error:.1f} %, over the {int(both.sum())} drawings in which both find two stains."
)

# %% [markdown]
# A stain that is wrong in the same way in all images still serves: `sada` uses it only to exchange looks between
# pictures. It matters more that the *first* column means the same in every picture.
#
# ## Which column is the nucleus?
#
# A factorisation returns its columns in no order. If image A's first stain is the nucleus's and image B's is the other
# one, re-staining A with B's dyes prints the nucleus in the colour of the cytoplasm. Two rules:
#
# - *red*: the column that absorbs more red comes first, as for haematoxylin (torchstain, staintools);
# - *dark nucleus*: first the stain that has more of itself in the darkest tenth of the picture.
#
# A mask settles which is right: the nuclear stain is the one with the larger share of its density inside the nucleus
# ("share"), or the one whose density tells nucleus from the rest better ("AUC"). The first verdict is close kin of the
# second rule, which also asks where a stain has its share; the AUC is the more independent judge. The released code
# orders nothing.

# %%
def tensors(images, truths):
    return (torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255,
            torch.from_numpy(np.stack([t.nucleus for t in truths])))  # fmt: skip


def rated(name, group):
    """How often each rule is right on a group of images and masks, after ten steps and near the minimum."""
    lines = []
    for method, words in (("released", "ten released steps"), ("fast", "near the minimum")):
        score = order_accuracy(group, method=method)
        for rule in ("dark_nucleus", "red"):
            lines.append({"cells": name, "images": score["images"], "separation": words,
                          "rule": rule.replace("_", " "), "right by share, %": 100 * score[f"{rule}_share"],
                          "right by AUC, %": 100 * score[f"{rule}_auc"],
                          "clear by AUC, %": 100 * score["clear_images"] / score["images"]})  # fmt: skip
    return pd.DataFrame(lines)


groups = {"drawn cells": [tensors(sheet_images, sheet_truths)]}
tables, committed = [], from_root(RESULTS) / "stain-order-zheng18.csv"
if real:
    zheng = load_benchmark("zheng18", data_root=from_root(DATA), cache=CACHE, progress=False).source
    groups["Zheng-18"] = masked_images(zheng)
elif committed.is_file():
    tables.append(pd.read_csv(committed, comment="#"))
orders = pd.concat([*(rated(name, group) for name, group in groups.items()), *tables], ignore_index=True)

# %% tags=["hide-input"]
masks = "Zheng-18's masks" if real else f"results/{committed.name} (the masks of Zheng-18, measured once)"
photographed_too = bool(real) or bool(tables)
display(frame_html(orders, "stain_order.csv", synthetic="" if photographed_too else DRAWN, decimals=0,
                   command=AGAIN, words=drawn_words(f"{SMEARS}, 96 px" + f" and {masks}" * photographed_too),
                   caption="How often a rule puts the nucleus's stain first, by the masks, and in how many images the "
                   "AUCs of the two stains differ by 0.02 or more. Drawn cells are synthetic"
                   + "; Zheng-18: Zheng et al., Micron 2018" * photographed_too))  # fmt: skip
lines = []
for name, part in orders.set_index(["separation", "rule"]).groupby("cells", sort=False):
    right, clear = part["right by AUC, %"].unstack(), part["clear by AUC, %"].groupby("separation").first()
    ten, near = right.loc["ten released steps"], right.loc["near the minimum"]
    lines.append(
        f"- {name}: near the minimum the rule of the dark nucleus is right by AUC in {near['dark nucleus']:.0f} % and "
        f"the usual rule in {near['red']:.0f} %; after ten steps in {ten['dark nucleus']:.0f} % and "
        f"{ten['red']:.0f} %. The two AUCs differ by 0.02 or more in {clear['near the minimum']:.0f} % near the "
        "minimum and in "
        f"{clear['ten released steps']:.0f} % after ten steps: elsewhere a rule has little to order."
    )
Markdown("\n".join(lines) + ("" if photographed_too else f"\n\n{no_results(from_root(RESULTS))}"))

# %% [markdown]
# :::{admonition} Summary
# :class: tip
# - A cell is its dye densities $H$; a laboratory is its dyes $W$, its light $I_0$, its camera, the width of its crops
#   and the choice of its cells. Light moves the cloud of optical densities, dyes turn its edges.
# - Colour is a clue to the class within a laboratory and a clue to the laboratory between them; the shares of variance
#   above say how much of which. Nothing in ordinary training tells the two apart.
# - Laboratories differ in class frequencies as well, and a method that makes them look alike as a whole has to mix
#   classes.
# - The width of a crop is a difference that needs no learning to remove, but one number measured in each laboratory.
# - The error of stain vectors estimated from one picture has to be held against the differences between laboratories
#   that they are to measure, and a rule for the order of the columns against masks.
# :::
#
# ## Exercises
#
# **1.** The light $I_0$ moves the cloud in OD. By which vector, and why does it not matter to the *shape* of the cloud?
#
# :::{admonition} Solution
# :class: dropdown
# $-\ln(I/255) = -\ln(I/I_0) - \ln(I_0/255)$: every pixel is moved by the same vector $-\ln(I_0/255)$, per channel. A
# common shift leaves all differences between pixels as they are. But Macenko and SNMF look at *directions from the
# origin*, which a shift does change. Hence the released code's background $B$, a 1 % quantile of OD that is taken off
# first; the paper's Eq. 1 has none.
# :::
#
# **2.** Print the drawn eosinophil with laboratory A's dyes and laboratory B's light. Is there a pair whose print comes
# closer to a third laboratory C than A and B themselves do?

# %% tags=["hide-cell"]
# Solution 2. All pairs (dyes of A, light of B) against all laboratories C, by mean difference of grey levels.
prints = {lab: printed(truths[-1], LABORATORIES[lab]) for lab in LABS}
for c in LABS:
    others = [lab for lab in LABS if lab != c]
    mixed = {}
    for a in others:
        for b in others:
            dyes = stain_matrix(LABORATORIES[a], 1, np.ones((3, 2)))
            image = transmit(truths[-1].densities, dyes, background(LABORATORIES[b], 1))
            mixed[a, b] = np.abs(image - prints[c]).mean()
    (a, b), value = min(mixed.items(), key=lambda item: item[1])
    pure = min(mixed[a, a] for a in others)
    print(f"nearest to {c:14} dyes of {a:14} light of {b:14} {value:5.1f} grey levels (best pure one: {pure:.1f})")

# %% [markdown]
# **3.** A third rule for the order of the columns: the stain with the larger *total* density is the nucleus's. When
# must it fail?

# %% tags=["hide-cell"]
# Solution 3. Where red cells or cytoplasm hold most of the dye: total density measures area as much as darkness.
images, nuclei = groups["drawn cells"][0]
part = separate(images, order="dark_nucleus")
more = part.H.sum(2)
inside = (part.H * nuclei.flatten(1)[:, None]).sum(2) / more.clamp_min(1e-9)
right = inside[:, 0] > inside[:, 1]  # what the masks say of the order as returned
total_rule = (more[:, 0] > more[:, 1]) == right
print(f"total density is right in {total_rule.float().mean():.0%}, the darkest tenth in {right.float().mean():.0%}")

# %% [markdown]
# **4.** Why is the common scale one number for a laboratory and not one for every image?
#
# :::{admonition} Solution
# :class: dropdown
# Because size is also biology: a lymphocyte is small, a monocyte large. Scaling every cell to the same diameter would
# take a true clue away with the false one, and would hang each image on a measurement of its own, which fails now and
# then. One number a laboratory removes what the crop did and keeps what the cell is.
# :::
