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
# # The poster: what it says, what the code does, what we find
#
# A poster, the code of another group that its loss comes from, and a third party's attempt are three different things.
# This chapter puts them side by side for `boda`. It is not a verdict on the authors: a poster has one page, and a
# workshop is the place for work in progress.

# %% tags=["hide-input"]
import textwrap

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from IPython.display import Markdown, display
from scipy import stats

from wbcrepro.data.catalog import dataset
from wbcrepro.domains.boda import binary_cross_entropy, boda_loss, class_centroids
from wbcrepro.domains.coral import coral_penalty
from wbcrepro.metrics import wilson_interval
from wbcrepro.report import verdicts
from wbcrepro.report.domain_claims import evaluate_domain_claims, source_counts
from wbcrepro.report.domain_predictions import from_domain_plan
from wbcrepro.report.figures import PALETTE, effects_figure, use_style
from wbcrepro.report.page import (
    Html,
    banner,
    claims_html,
    discrepancies_html,
    drawn_words,
    figure_source,
    frame_html,
    hole,
    source,
)  # fmt: skip
from wbcrepro.report.results import list_results, open_results
from wbcrepro.session import no_results, open_session

torch.set_num_threads(1)
use_style()
session = open_session("boda", PROFILE, STORE, DATA, DATASET, RESULTS, WEIGHTS, ACCUMULATE)
missing = session.run_missing()
ours = from_domain_plan(session.plan, session.store)
tables = ours.paper["tables"]
real = [open_results(folder) for folder in list_results(session.results, "boda")]
AGAIN = f"wbcrepro book --only boda_findings {session.plan.options}"
YAML = drawn_words("wbcrepro/papers/boda.yml")
banner(ours.synthetic, ours.caption)

# %% [markdown]
# ## Where the poster, the official code and this project differ
#
# "The released code" is the official implementation of BoDA, `YyzHarry/multi-domain-imbalance` at commit `2efbfef`, of
# another group {cite:p}`yang2022boda`; none of the poster's authors' could be found. *Verified* means that we ran or
# computed it; *read*, that we read it in the source; *second-hand*, that others say so.

# %% tags=["hide-input"]
discrepancies_html("boda", "discrepancies.csv")

# %% [markdown]
# Several of them can be seen in a few lines, without images.
#
# **D9, differences within their spread.** The poster prints means and standard deviations over five folds. Which
# differences to ERM are larger than five trainings can tell? The interval is Welch's, for two groups of five
# independent values. Folds share training images (and in the second table all test images), so it is a yardstick, no
# proof; the poster gives no paired differences.

# %%
FOLDS = 5


def welch(one, other):
    """Difference of two means with sd over five values each, and its 95 % interval."""
    (a, s), (b, t) = one, other
    variance = (s**2 + t**2) / FOLDS
    freedom = variance**2 / (((s**2 / FOLDS) ** 2 + (t**2 / FOLDS) ** 2) / (FOLDS - 1))
    half = stats.t.ppf(0.975, freedom) * variance**0.5
    return a - b, a - b - half, a - b + half


# %% tags=["hide-input"]
lines = []
for name, where in (("table_1", "validation"), ("table_2", "unseen")):
    reported, column = tables[name]["reported"], tables[name]["columns"][0]
    for row in (r for r in reported if r != "ERM"):
        for metric, words in (("micro", "F1-micro"), ("macro", "F1-macro")):
            change, low, high = welch(reported[row][column][metric], reported["ERM"][column][metric])
            lines.append({"table": where, "row": row, "metric": words, "change": change, "low": low, "high": high,
                          "zero": "outside" if low > 0 or high < 0 else "inside"})  # fmt: skip
spread = pd.DataFrame(lines)
spread["step"] = spread["row"] + ", " + spread["metric"] + " (" + spread["table"] + ")"
effects_figure(spread, title="the poster's own numbers: change against ERM")
plt.show()
display(figure_source("the poster's two tables (wbcrepro/papers/boda.yml)", AGAIN))
frame_html(
    spread.drop(columns="step"), "poster-differences.csv", command=AGAIN, words=YAML,
    caption="The poster's differences to ERM in points, with an interval from its standard deviations",
)  # fmt: skip

# %% tags=["hide-input"]
better = spread[(spread["low"] > 0)]
worse = spread[spread["high"] < 0]
own = spread[(spread["row"] == "BoDA")]
unsure = (own["zero"] == "inside").all()
named = "; ".join(f"{line.row}, {line.metric} ({line.table}) {line.change:+.0f}" for line in worse.itertuples())
Markdown(
    f"Of {len(spread)} differences {len(better)} lie above zero with their whole interval and {len(worse)} below"
    + (f" ({named})" if len(worse) else "")
    + f". BoDA's own are {', '.join(f'{v:+.0f}' for v in own['change'])} points, and zero is inside "
    + ("every" if unsure else "not every")
    + " interval"
    + (": by its own numbers the poster cannot tell BoDA from ERM." if unsure else ".")
)

# %% [markdown]
# **D6 and D7, the scale of the loss.** The mean size of $\lambda$ BoDA's gradient at an image, if all pairs had the
# same number of images, for the poster's sum and the code's mean. Features of two laboratories, drawn at random.

# %%
K, C, B = 64, 5, 32
generator = torch.Generator().manual_seed(0)
labels = torch.arange(2 * B) % C
domains = torch.arange(2).repeat_interleave(B)
class_means = 2 * torch.randn(C, K, generator=generator)
centroids = torch.stack([class_means, class_means + 0.5])
features = centroids[domains, labels] + torch.randn(2 * B, K, generator=generator)


def sizes(z, loss):
    """Norm of the gradient at each image's features, (N,)."""
    free = z.clone().requires_grad_(True)
    return torch.autograd.grad(loss(free), free)[0].norm(dim=1)


def pull(n, reduction):
    counts = torch.full((2, C), n)
    return 0.1 * float(
        sizes(features, lambda f: boda_loss(f, labels, domains, centroids, counts, reduction=reduction)).mean()
    )


images = np.unique(np.geomspace(3, 3000, 13).astype(int)).tolist()
boda = {reduction: [pull(n, reduction) for n in images] for reduction in ("poster", "mean")}

# %% tags=["hide-input"]
fig, axis = plt.subplots(figsize=(7.2, 2.8))
for k, (reduction, words) in enumerate((("poster", "sum (poster)"), ("mean", "mean (code)"))):
    axis.plot(images, boda[reduction], ("o-", "s--")[k], color=PALETTE[k], label=words)
axis.set(xscale="log", yscale="log", xlabel="images of every pair", ylabel="gradient at an image")
axis.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
plt.show()
figure_source("random features, no data", AGAIN)

# %% tags=["hide-input"]
top = int(np.argmax(boda["mean"]))
Markdown(
    f"From {images[top]} to {images[-1]:,} images the pull falls by a factor of "
    f"{boda['mean'][top] / boda['mean'][-1]:,.0f}, in both forms. (With fewer images distances count so much that the "
    f"softmax is nearly sure, and little is left to pull.) The sum is {boda['poster'][0] / boda['mean'][0]:.0f} "
    "times the mean: the number of positives in this batch. One printed $\\lambda$ is two very different weights."
)

# %% [markdown]
# **D2, the penalty that the poster does not print.** Whether it matters beside BoDA depends on the features, so this
# is measured on features that the store holds: those of the network before training and after ERM, one minibatch of
# this profile's size, with the real counts.

# %% tags=["hide-input"]


def beside(embeddings, counts, sources, batch):
    """Gradients at the images of one minibatch: BoDA's two forms (times lambda 0.1) and the penalty's (times 1)."""
    z = torch.from_numpy(embeddings["features"].astype(np.float32))
    y = torch.from_numpy(embeddings["labels"].astype(np.int64))
    of = [torch.from_numpy(np.flatnonzero(embeddings["domains"] == name)) for name in sources]
    passes = [(d, z[rows], y[rows]) for d, rows in enumerate(of)]
    means, seen = class_centroids(lambda x: x, lambda: passes, (*counts.shape, z.shape[1]), "cpu")
    counts = torch.where(seen > 0, torch.from_numpy(counts), 0)  # means of a few stored images of each pair
    chosen = [rows[torch.linspace(0, len(rows) - 1, min(batch, len(rows))).long()] for rows in of]
    rows, d = torch.cat(chosen), torch.cat([torch.full((len(c),), i) for i, c in enumerate(chosen)])
    lines = {}
    for words, reduction in (("λ BoDA, sum", "poster"), ("λ BoDA, mean", "mean")):
        lines[words] = 0.1 * sizes(z[rows], lambda f, r=reduction: boda_loss(f, y[rows], d, means, counts, reduction=r))
    lines["penalty"] = sizes(z[rows], lambda f: coral_penalty(f.split([len(c) for c in chosen])))
    return {words: float(found.mean()) for words, found in lines.items()}


trained = source_counts(ours, preset="paper", held_out=ours.held_out()[0])
lines, cells = [], []
for cell, stored in session.find(figure="embeddings"):
    if stored is None or trained is None:
        continue
    with np.load(stored.folder / "embeddings.npz") as arrays:
        batch = ours.paper["profiles"][PROFILE]["schedule"]["batch_per_domain"]
        found = beside(arrays, trained[1], trained[0], batch)
    method = ours.paper["methods"].get(cell.labels["method"], {"label": "before training"})["label"]
    lines.append({"features": method, **found, "penalty / BoDA, mean": found["penalty"] / found["λ BoDA, mean"]})
    cells.append(cell.id)
if lines:
    shown = frame_html(
        pd.DataFrame(lines), "penalty.csv", decimals=6, cells=cells, command=ours.make_command(),
        synthetic=ours.caption if ours.synthetic else "",
        caption="Mean gradient at an image's features, in one minibatch of stored features",
    )  # fmt: skip
    ratios = [line["penalty / BoDA, mean"] for line in lines]
    words = "larger" if min(ratios) > 1 else "smaller" if max(ratios) < 1 else "in part larger, in part smaller"
    note = Markdown(f"Here the penalty's force is {words} than that of BoDA in the code's form (column on the right).")
else:
    shown, note = Html(hole(ours.make_command())), Markdown("")
display(shown)
display(note)

# %% [markdown]
# **D3, classes of one laboratory only.** The loss of a batch of such images is zero, and so is its gradient:

# %%
counts = torch.full((2, C), 40)
counts[0, 4] = 0  # class 4 exists in the second laboratory only
lonely = features[(labels == 4) & (domains == 1)].clone().requires_grad_(True)
size_of = len(lonely)
loss = boda_loss(lonely, torch.full((size_of,), 4), torch.ones(size_of, dtype=torch.int64), centroids, counts)
(gradient,) = torch.autograd.grad(loss, lonely)
print(f"loss {loss.item()}, largest entry of the gradient {float(gradient.abs().max())}")

# %% [markdown]
# **D8, infinite losses.** The logarithm of a sum of exponentials, and the mean of an empty list, as released:

# %%
far = torch.full((1, 4), 1e3)
exponents = -torch.cdist(far, torch.zeros(3, 4))
print(f"log of a sum: {float(exponents.exp().sum().log())}; shifted: {float(exponents.logsumexp(1)):.1f}; ", end="")
print(f"mean over no positive: {float(torch.zeros(0).mean())}")

# %% [markdown]
# **D5, the cross-entropy.** The printed form and the one that is called so, on the same logits:

# %%
logits = torch.randn(8, C, generator=generator)
forms = (torch.nn.functional.cross_entropy, binary_cross_entropy)
print({form.__name__: round(float(form(logits, labels[:8])), 3) for form in forms})

# %% [markdown]
# **D11, the numbers of images.**

# %% tags=["hide-input"]
lines = []
for name, entry in (("Matek_19", "matek19"), ("Acevedo_20", "acevedo20")):
    listed, published = tables["datasets"]["reported"][name]["images"], dataset(entry).images["total"]
    lines.append({"data set": name, "poster": listed, "published": published, "share (%)": 100 * listed / published,
                  "four fifths of published": round(0.8 * published)})  # fmt: skip
frame_html(
    pd.DataFrame(lines), "images.csv", caption="Images: the poster's table and the published sets", command=AGAIN,
    words=drawn_words("wbcrepro/papers/boda.yml and wbcrepro/data/catalog.yml"),
)  # fmt: skip

# %% tags=["hide-input"]
near = [line["data set"] for line in lines if abs(line["share (%)"] - 80) < 1]
Markdown(
    (
        f"For {' and '.join(near)} the poster's number is four fifths of the set to within one per cent"
        if near
        else "No set fits"
    )
    + ", as a training split of five folds would be. It would then be a table of training images; it says "
    '"statistics and properties of the datasets".'
)

# %% [markdown]
# ## The claims, tested
#
# Each claim is data (`wbcrepro/papers/boda.claims.yml`) and is evaluated on stored predictions. The effect is a paired
# difference with its bootstrap interval over images; for recalls of single classes the note has Wilson intervals.
#
# - **supported here**: the interval over images, a t-interval over trials (three at least) and every single trial
#   lie on the claimed side;
# - **contradicted here**: all of them lie on the other side;
# - **undecided here**: anything else, and whatever one or two trials say;
# - **cannot be tested here**: the class or the cells are not there.
#
# *Here* is the data set in the caption. The poster's INT_20 is private, so no claim *about INT_20* is tested by anyone
# outside. What can be tested is whether the same thing happens in another unseen laboratory. In "better than all"
# claims our row is judged against each rival, with intervals corrected for their number; shown is the rival that is
# closest or ahead.

# %% tags=["hide-input"]
findings = evaluate_domain_claims(ours)
claims_html(ours, findings, "claims.csv")

# %% [markdown]
# ### On real images

# %% tags=["hide-input"]
real_findings = {}
for found in real:
    real_findings[found.benchmark, found.profile] = evaluate_domain_claims(found)
    name = f"{found.benchmark}-{found.profile}-claims.csv"
    display(claims_html(found, real_findings[found.benchmark, found.profile], name))
if not real:
    display(Markdown(no_results(session.results)))

# %% [markdown]
# ### Effect sizes
#
# The same differences as a picture, with the poster's own (as text) where it prints one.

# %% tags=["hide-input"]


def forest(found, evaluated):
    points = [f for f in evaluated if f.unit == "points" and f.effect is not None]
    if not points:
        return source(words="nothing to draw: the cells are missing", command=found.make_command())
    frame = pd.DataFrame(
        {"step": [f"{f.claim} {f.item}" + (f" (poster {f.paper:+.0f})" if f.paper is not None else "") for f in points],
         "change": [f.effect for f in points], "low": [f.low for f in points], "high": [f.high for f in points]}
    )  # fmt: skip
    recall = frame["step"].str.contains("recall")  # of single classes: other widths than those of scores
    frame["step"] = frame["step"].map(lambda words: "\n".join(textwrap.wrap(words, 46)))
    display(banner(found.synthetic, found.caption))
    for part in (frame[~recall], frame[recall]):
        if len(part):
            effects_figure(part, title=f"claims on {found.benchmark}")
            plt.gca().tick_params(axis="y", labelsize=8)
            plt.show()
    return source([m.id for m in found.members if m.done], found.make_command())


forest(ours, findings)

# %% tags=["hide-input"]
for found in real:
    display(forest(found, real_findings[found.benchmark, found.profile]))

# %% [markdown]
# ### In one sentence each

# %% tags=["hide-input"]


def sentence(found, evaluated):
    counted = {words: sum(f.verdict == key for f in evaluated) for key, words in verdicts.CLAIMS.items()}
    return (
        f"`{found.benchmark}` ({'synthetic' if found.synthetic else 'real images'}, profile `{found.profile}`): "
        + ", ".join(f"{n} {words}" for words, n in counted.items())
    )


lines = [sentence(ours, findings)]
lines += [sentence(found, real_findings[found.benchmark, found.profile]) for found in real]
Markdown("\n".join(f"- {line}." for line in lines))

# %% [markdown]
# ## What cannot be known from here
#
# - What the poster's network saw: which images its table counts, at what size, with which augmentation, for how long.
# - What the plus is. Our `BoDA+` is one reading.
# - Anything about INT_20. Its eighteen original classes, its mapping to thirteen and its images are private.
# - How many of "five folds" of validation images show patients of the training folds: neither public set names its
#   patients, so validation scores are for new images, not for new people.
#
# :::{admonition} Summary
# :class: tip
# - The poster's loss is well defined once it is repaired with the official code's calibration; what was run is not
#   known.
# - Which of its differences to ERM are larger than its own standard deviations can explain is computed above (D9).
# - The headline class cannot be aligned by this loss: it has no counterpart in the other source.
# - The official code adds a penalty that is not on the poster, and its mean is another weight than the poster's
#   sum. What ran has to be said.
# - A claim needs an effect size, an interval, and the name of the data it holds on. "Supported here" is as far as
#   we go.
# :::
#
# ## Exercises
#
# **1.** The poster's validation F1-macro is 0.78 ± 0.05 for BoDA and 0.77 ± 0.02 for ERM. How many folds (with the same
# spread) would it take until a difference of this size is outside its interval?

# %% tags=["hide-input"]
(a, s), (b, t) = (tables["table_1"]["reported"][row]["Sources"]["macro"] for row in ("BoDA", "ERM"))
needed = next(n for n in range(2, 10_000) if a - b > stats.t.ppf(0.975, 2 * n - 2) * ((s**2 + t**2) / n) ** 0.5)
Markdown(f""":::{{admonition}} Solution
:class: dropdown
The standard error of the difference is $\\sqrt{{({s}^2 + {t}^2)/n}}$ points, and the difference is {a - b:.0f}. It
exceeds about twice its error from $n = {needed}$ on. Nobody has as many independent folds; the way out is to compare
on the *same* folds and images (paired), where most of the spread cancels.
:::""")

# %% [markdown]
# **2.** ERM recognises 4 of 11 images of a class. How many must another method recognise until their Wilson intervals
# no longer overlap? Why is that too strict a test, and what would be better?

# %% tags=["hide-input"]
hits, size_ = 4, 11
end = float(wilson_interval(hits, size_)[1])
least = next((k for k in range(size_ + 1) if float(wilson_interval(k, size_)[0]) > end), None)
answer = f"{least} of {size_}" if least is not None else "no number"
Markdown(f""":::{{admonition}} Solution
:class: dropdown
The interval of {hits} of {size_} ends at {100 * end:.0f} %; {answer} would do. It is too strict because
both intervals are about the *same* images: count the images on which the two disagree, and ask whether they are split
evenly (McNemar's test). Six disagreements, all in one direction, are the fewest that give less than five per cent.
:::""")

# %% [markdown]
# **3.** Write a claim about *missing classes* that could be tested with two public laboratories, and say which cells it
# needs.
#
# :::{admonition} Solution
# :class: dropdown
# Take a class that both have, remove it from one of them, train with and without BoDA, and score its recall on a third
# laboratory: a difference of differences. The cells are those of the table with another benchmark, whose `counts` (for
# synthetic laboratories) or `mapping` lack the class in one source; one entry in `benchmarks.yml` and `--dataset`.
# :::
