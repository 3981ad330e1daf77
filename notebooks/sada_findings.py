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
# # SADA: what the paper says, what the code does, what we find
#
# A paper, the code released with it, and a third party's attempt are three different things. This chapter puts them
# side by side for `sada` {cite:p}`li2024sada`. It is not a verdict on the authors: they released code, which is the
# only reason why the comparison is possible at all.

# %% tags=["hide-input"]
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from IPython.display import Markdown, display

from wbcrepro.data.domain_benchmarks import class_counts
from wbcrepro.domains.contrastive import averaged_anchor_loss
from wbcrepro.domains.local_alignment import local_alignment_loss
from wbcrepro.domains.sada import projector
from wbcrepro.report import verdicts
from wbcrepro.report.domain_claims import evaluate_domain_claims
from wbcrepro.report.domain_evaluate import DomainEvaluator
from wbcrepro.report.domain_predictions import from_domain_plan
from wbcrepro.report.figures import effects_figure, use_style
from wbcrepro.report.page import Html, banner, claims_html, discrepancies_html, drawn_words, frame_html, hole, source
from wbcrepro.report.results import list_results, open_results
from wbcrepro.session import no_results, open_session
from wbcrepro.stain.snmf import separate

torch.set_num_threads(1)
use_style()
session = open_session("sada", PROFILE, STORE, DATA, DATASET, RESULTS, WEIGHTS, ACCUMULATE)
missing = session.run_missing()
ours = from_domain_plan(session.plan, session.store)
tables = ours.paper["tables"]
real = [open_results(folder) for folder in list_results(session.results, "sada")]
WORDS = {"micro": "F1-micro", "macro": "F1-macro"}
SYNTHETIC = ours.caption if ours.synthetic else ""
AGAIN = f"wbcrepro book --only sada_findings {session.plan.options}"
PRINTED = drawn_words("the paper's values in wbcrepro/papers/sada.yml")
banner(ours.synthetic, ours.caption)

# %% [markdown]
# ## Where text and code differ
#
# From the repository `AnoK3111/SADA` at commit `2d520fd`, the most important first. *Verified* means that we ran or
# counted it; *read*, that we read it in the source or the text; *second-hand*, that others say so.

# %% tags=["hide-input"]
discrepancies_html("sada", "discrepancies.csv")

# %% [markdown]
# Several of them can be seen in a few lines.
#
# **D2, the denominator of Eq. 6.** With the raw views alone in it, as printed, the ratio under the logarithm may exceed
# one, and the loss fall below zero:

# %%
z = torch.eye(4)[torch.tensor([[2, 0, 0], [3, 1, 1]])]  # two images, three views; the raw views are unlike the others
labels = torch.tensor([0, 1])
readings = {r: float(averaged_anchor_loss(z, labels, denominator=r)) for r in ("all_views", "raw_views")}
print({reading: round(value, 2) for reading, value in readings.items()})

# %% [markdown]
# **D3, sum or mean.** The same maps, the paper's size (a batch of three laboratories, ResNet-50 at 224 px), both forms:

# %%
full = ours.paper["profiles"]["paper"]["schedule"]["batch_per_domain"] * 3
maps = torch.randn(full, 3, 128, 7, 7, generator=torch.Generator().manual_seed(0))
forms = {form: float(local_alignment_loss(maps, form)) for form in ("sum", "mean")}

# %% tags=["hide-input"]
beta = ours.paper["presets"]["paper"]["sada"]["beta"]
Markdown(
    f"On random embeddings the sum is {forms['sum']:,.0f} and the mean {forms['mean']:.4f}, a factor of "
    f"{forms['sum'] / forms['mean']:,.0f}. With the mean, β = {beta:g} adds {beta * forms['mean']:.5f} to a loss that "
    f"is of the order of {np.log(3 * full):.1f} (the logarithm of {3 * full} views); with both sums the two terms are "
    f"{beta * forms['sum']:,.0f} and {full * np.log(3 * full):,.0f}."
)

# %% [markdown]
# **D12, ten iterations.** The relative reconstruction error of the released factorisation after 10, 30 and 100 steps,
# beside one that goes near the minimum:

# %%
first = session.benchmark.table.groupby("domain")["item"].first()
items = [int(first[name]) for name in session.benchmark.domains]
images = [torch.tensor(session.benchmark.read(i)).permute(2, 0, 1)[None] / 255 for i in items]
options = {f"released, {n} steps": {"method": "released", "iterations": n} for n in (10, 30, 100)}
options["near the minimum"] = {"method": "fast"}
errors = {words: [float(separate(x, **how).relative_error) for x in images] for words, how in options.items()}

# %% tags=["hide-input"]
lines = [{"separation": k, "mean error (%)": 100 * np.mean(v), "worst (%)": 100 * np.max(v)} for k, v in errors.items()]
frame_html(
    pd.DataFrame(lines), "separation.csv",
    caption=f"Error of the separation, one image of each laboratory of {session.benchmark.name}",
    synthetic=SYNTHETIC, command=AGAIN, words=drawn_words(f"{len(items)} images of {session.benchmark.name}"),
)  # fmt: skip

# %% [markdown]
# **D14, the projector.** For the 2,048 features of ResNet-50:

# %%
print({kind: f"{sum(p.numel() for p in projector(kind, 2048, 128).parameters()):,}" for kind in ("linear", "mlp")})

# %% [markdown]
# **D16, what is averaged.** SWAD {cite:p}`cha2021swad` averages the weights between two steps that it finds on the
# validation loss. In SADA it may start only with stage 2. The windows of our runs, by held-out laboratory:

# %% tags=["hide-input"]
lines, ids = [], []
for cell in session.plan.cells:
    stored = session.store.get(cell.id) if cell.kind == "domain_train" else None
    if stored and cell.labels["method"] in ("erm", "sada") and cell.labels["trial"] == 0:
        window, config = stored.metrics["swad"], stored.cell["config"]
        lines.append({
            "preset": cell.labels["preset"], "method": ours.paper["methods"][cell.labels["method"]]["label"],
            "held out": cell.labels["held_out"], "stage 2 from": config["settings"].get("stage1_steps", "–"),
            "first step averaged": window["first_step"], "last": window["last_step"],
            "steps run": stored.metrics["steps_run"], "valley found": "yes" if window["start_step"] >= 0 else "no",
        })  # fmt: skip
        ids.append(cell.id)
if lines:
    caption = "Windows of SWAD, trial 0. Where there is no valley it gives the mean over the last segment"
    shown = frame_html(
        pd.DataFrame(lines).astype(str), "swad.csv", caption=caption, synthetic=SYNTHETIC,
        command=session.plan.make_command(), cells=ids,
    )  # fmt: skip
else:
    shown = Html(hole(session.plan.make_command()))
display(shown)

# %% [markdown]
# ## The paper's tables, held against themselves
#
# **D6, Table II.** F1-micro and F1-macro of each row:

# %% tags=["hide-input"]
lines = []
for row, columns in tables["table_2"]["reported"].items():
    (micro, _), (macro, _) = (columns["SYSU3H"][metric] for metric in ("micro", "macro"))
    lines.append({"method": row, "F1-micro": micro, "F1-macro": macro, "micro - macro": round(micro - macro, 1)})
gap = pd.DataFrame(lines)
display(frame_html(
    gap, "table_2-gaps.csv", caption="Table II of the paper (SYSU3H, percent)", command=AGAIN, words=PRINTED
))  # fmt: skip
odd = gap.loc[gap["micro - macro"].abs().idxmax()]
others = gap.loc[gap["method"] != odd["method"], "micro - macro"]
Markdown(
    f"{odd['method']}'s two scores differ by {odd['micro - macro']:.1f}, those of every other row by at most "
    f"{others.abs().max():.1f}. So SYSU3H seems to be nearly balanced, the two should be close in every row, and a "
    f"misprint is likelier than an effect: the other rows would let one expect {odd['F1-micro'] - others.max():.1f} to "
    f"{odd['F1-micro'] - others.min():.1f}. We show the value as printed and use no difference from it."
)

# %% [markdown]
# **D17, the averages of Table I.** The mean over the four laboratories, recomputed from the printed cells. The standard
# deviation of an average cannot be recomputed, because it depends on how the trials of different laboratories go
# together. But it has bounds: with standard deviations $s_1..s_4$ of the columns it is at least
# $\max(0, 2 \max_j s_j - \sum_j s_j)/4$ (good trials here are bad ones there, as perfectly as can be) and at most
# $\sum_j s_j / 4$; if laboratories are independent it is about $\sqrt{\sum_j s_j^2}/4$.

# %%
reported, lines = tables["table_1"]["reported"], []
for row, columns in reported.items():
    for metric in WORDS:
        cells = np.array([columns[name][metric] for name in columns if name != "Average"])
        mean, std = columns["Average"][metric]
        s = cells[:, 1]
        found = {"printed mean": mean, "from the cells": cells[:, 0].mean(), "printed sd": std}
        found |= {"smallest possible": max(0, 2 * s.max() - s.sum()) / len(s), "largest possible": s.sum() / len(s)}
        found["if independent"] = np.sqrt((s**2).sum()) / len(s)
        lines.append({"method": row, "score": WORDS[metric], **found})
averages = pd.DataFrame(lines)

# %% tags=["hide-input"]
display(frame_html(
    averages, "table_1-averages.csv", caption="Averages of Table I as printed and from the printed cells (percent)",
    command=AGAIN, words=PRINTED, decimals=2,
))  # fmt: skip
off = (averages["printed mean"] - averages["from the cells"]).abs().max()
ratio = averages["printed sd"] / averages["if independent"]
low = averages.loc[ratio.idxmin()]
at_bound = averages[
    (averages["printed sd"] <= averages["smallest possible"] + 0.051) & (averages["smallest possible"] > 0.1)
]
chance = 1 - np.exp(-((low["printed sd"] / low["if independent"]) ** 2))
sweep = tables["figure_7"]["reported"]
sada = averages[averages["method"] == "SADA"].set_index("score")["from the cells"]
Markdown(
    f"Means agree to rounding (largest difference {off:.2f}). The text gives the optimum as {sweep['micro']} and "
    f"{sweep['macro']}, the cells of Table I average to {sada['F1-micro']:.2f} and {sada['F1-macro']:.3f}.\n\n"
    f"The spread is another matter. Relative to independent laboratories it is smallest for {low['method']}, "
    f"{low['score']}: printed {low['printed sd']}, expected {low['if independent']:.1f}. Three normal draws give a "
    f"standard deviation that small in {100 * chance:.0f} % of cases (and this is the smallest of {len(averages)}). "
    + (
        f"For {', '.join(f'{m}, {s}' for m, s in zip(at_bound['method'], at_bound['score'], strict=True))} the printed "
        "value lies at the bound: it needs trials in which the laboratory with the largest spread is best exactly when "
        "the others are worst. "
        if len(at_bound)
        else ""
    )
    + "That is possible, and three trials are few. It shows that a small ± behind an average need not mean a "
    "method that trains alike every time: the columns beside it say otherwise."
)

# %% [markdown]
# **D18, "all evaluated datasets".** SADA's margin over the best other row, in the paper's own table:

# %% tags=["hide-input"]
lines = []
for column in next(iter(reported.values())):
    for metric, words in WORDS.items():
        rivals = {row: columns[column][metric][0] for row, columns in reported.items() if row != "SADA"}
        top = max(rivals.values())
        value = reported["SADA"][column][metric][0]
        names = ", ".join(row for row, v in rivals.items() if v == top)
        lines.append({"laboratory": column, "score": words, "SADA": value, "best other": top, "which": names,
                      "margin": round(value - top, 1)})  # fmt: skip
margins = pd.DataFrame(lines)
display(frame_html(
    margins, "table_1-margins.csv", caption="Table I of the paper: SADA against the best other row", command=AGAIN,
    words=PRINTED,
))  # fmt: skip
ties = margins[margins["margin"] <= 0]
Markdown(
    f"In {len(ties)} of {len(margins)} places there is no margin"
    + (f" ({'; '.join(ties['laboratory'] + ', ' + ties['score'])})" if len(ties) else "")
    + f", and where there is one it is {margins['margin'][margins['margin'] > 0].min()} to {margins['margin'].max()} "
    f"points. The best other method changes from place to place: "
    f"{', '.join(dict.fromkeys(', '.join(margins['which']).split(', ')))}."
)

# %% [markdown]
# **D7, one basophil.** What hangs on a class of one image: if the image is found and nothing else is taken for it, the
# class has F1 = 1; if it is not found, 0. In a macro average over $C$ classes that is a difference of $100/C$ points;
# compare it with the margins above. Which laboratories on this page have such a class?

# %% tags=["hide-input"]
counts = class_counts(session.benchmark)
rarest = pd.DataFrame(
    {"laboratory": counts.index, "images": counts.sum(axis=1), "rarest class": counts.idxmin(axis=1),
     "its images": counts.min(axis=1), "its share of F1-macro (%)": 100 / (counts > 0).sum(axis=1)}
)  # fmt: skip
frame_html(
    rarest, "rarest.csv", caption=f"The rarest class of each laboratory of {session.benchmark.name}",
    synthetic=SYNTHETIC, command=AGAIN, words=drawn_words(f"the table of benchmark {session.benchmark.name}"),
)  # fmt: skip

# %% [markdown]
# ## The claims, tested
#
# Each claim of the paper is data (`wbcrepro/papers/sada.claims.yml`) and is evaluated on stored predictions. The effect
# is a paired difference with its bootstrap interval over images of the unseen laboratory.
#
# - **supported here**: the interval over images, a t-interval over trials (three at least) and every single trial
#   lie on the claimed side;
# - **contradicted here**: all of them lie on the other side;
# - **undecided here**: anything else, and everything that rests on one or two trials, however far from zero;
# - **cannot be tested here**: the laboratory or the cells are not there.
#
# *Here* is the data in the caption. In "better than all" claims our row is judged against each rival, with intervals
# corrected for their number; shown is the rival that is closest or ahead. Where the stand-in of Table II is one of
# Table I too, S1 and S5 rest on the same predictions there.

# %% tags=["hide-input"]
findings = evaluate_domain_claims(ours)
claims_html(ours, findings, "claims.csv")

# %% [markdown]
# ### On real images

# %% tags=["hide-input"]
real_findings = {}
for found in real:
    key = f"{found.benchmark}-{found.profile}"
    real_findings[key] = evaluate_domain_claims(found, evaluator=DomainEvaluator(found))
    display(claims_html(found, real_findings[key], f"{key}-claims.csv"))
if not real:
    display(Markdown(no_results(session.results)))

# %% [markdown]
# ### Effect sizes
#
# The claims about averages and about the external laboratory, with the paper's own effect as text.

# %% tags=["hide-input"]


def forest(found, evaluated):
    points = [f for f in evaluated if f.effect is not None and ("Average" in f.item or "SYSU3H" in f.item)]
    if not points:
        return source(words="nothing to draw: the cells are missing", command=found.make_command())
    frame = pd.DataFrame(
        {"step": [f"{f.claim} {f.item}" + (f"  (paper {f.paper:+.1f})" if f.paper is not None else "") for f in points],
         "change": [f.effect for f in points], "low": [f.low for f in points], "high": [f.high for f in points]}
    )  # fmt: skip
    frame["step"] = [s.replace("SADA against the best other row", "SADA - best other").replace(
        "against the best other value", "- best other").replace("gain in F1-macro minus gain in F1-micro",
        "macro gain - micro gain").replace(", Average", "") for s in frame["step"]]  # fmt: skip
    display(banner(found.synthetic, found.caption))
    effects_figure(frame, title=f"claims on {found.benchmark}")
    plt.show()
    return source([m.id for m in found.members if m.done], found.make_command(), words=found.benchmark)


forest(ours, findings)

# %% tags=["hide-input"]
for found in real:
    display(forest(found, real_findings[f"{found.benchmark}-{found.profile}"]))

# %% [markdown]
# ### In one sentence each

# %% tags=["hide-input"]


def sentence(found, evaluated):
    counted = {words: sum(f.verdict == key for f in evaluated) for key, words in verdicts.CLAIMS.items()}
    return (
        f"`{found.benchmark}` ({'synthetic' if found.synthetic else 'real images'}, profile `{found.profile}`, "
        f"trials planned: {len(found.trials(preset='paper'))}): "
        + ", ".join(f"{n} {words}" for words, n in counted.items())
    )


lines = [sentence(ours, findings)]
lines += [sentence(found, real_findings[f"{found.benchmark}-{found.profile}"]) for found in real]
Markdown("\n".join(f"- {line}." for line in lines))

# %% tags=["hide-input"]


def verdicts_of(found, evaluated):
    """One line a claim: how many of its items have which verdict."""
    lines = {}
    for f in evaluated:
        lines.setdefault(f.claim, dict.fromkeys(verdicts.CLAIMS.values(), 0))[verdicts.CLAIMS[f.verdict]] += 1
    return pd.DataFrame([{"claim": claim, **{k: str(v) for k, v in line.items()}} for claim, line in lines.items()])


frame_html(
    verdicts_of(ours, findings), "verdicts.csv", caption=f"Verdicts by claim on {ours.benchmark} (number of items)",
    synthetic=SYNTHETIC, command=ours.make_command(), cells=[m.id for m in ours.members if m.done],
)  # fmt: skip

# %% tags=["hide-input"]
for found in real:
    key = f"{found.benchmark}-{found.profile}"
    display(frame_html(
        verdicts_of(found, real_findings[key]), f"{key}-verdicts.csv", command=found.make_command(),
        caption=f"Verdicts by claim on {found.benchmark}, real images (number of items)",
        cells=[m.id for m in found.members if m.done],
    ))  # fmt: skip

# %% [markdown]
# ## What cannot be known from here
#
# - How Tables I to III were made: the released default is none of their rows, and no log was published.
# - Anything about SYSU3H. It is private; another laboratory stands in its column.
# - Which $\beta$ the 0.1 of the paper is: of a sum or of a mean.
# - Whether the order of the methods would be the same in a fifth laboratory.
# - Whether anything here holds at the paper's size. The profile `paper` exists for those who have the four data sets
#   and a graphics card.
#
# ## Summary
#
# - The released command trains neither the paper's method nor a row of its ablation; the paper's loss is there, not
#   called.
# - Several symbols have two readings, and the readings are different methods. We run what the text says and, beside it,
#   what the code does.
# - The paper's tables can be held against themselves: one value is probably a misprint, and the spread of an average
#   says less than it seems to.
# - A claim needs an effect size, an interval, more than one trial, and the name of the laboratories it holds in.
#
# ## Exercises
#
# **1.** A setting that is read nowhere (`domain_proxy_contrast_learning: True`) suggests that the averaged anchors are
# used. Which test of two lines would have found that they are not?
#
# :::{admonition} Solution
# :class: dropdown
# Compute the loss of one batch with the setting on and off, and assert that the two differ. Better: let settings be a
# class with named fields and refuse unknown names, so that a setting that nobody reads cannot exist unnoticed for long.
# :::
#
# **2.** How often is the only image of a class outside four fifths of its laboratory in none, one, two, three of three
# trials?

# %% tags=["hide-input"]
chances = [100 * p for p in ((4 / 5) ** 3, 3 / 5 * (4 / 5) ** 2, 3 * 4 / 5 / 25, 1 / 125)]
Markdown(f""":::{{admonition}} Solution
:class: dropdown
Independent draws with probability 1/5: {", ".join(f"{c:.1f} %" for c in chances)}. So with probability
{100 - chances[0]:.0f} % at least one of three trials is averaged over a class less, if, like scikit-learn, one averages
over the labels that occur.
:::""")

# %% [markdown]
# **3.** Claim S11 subtracts the gain in F1-micro from the gain in F1-macro. Can that difference be positive although no
# rare class gains?
#
# :::{admonition} Solution
# :class: dropdown
# Yes. F1 of a class also counts what is *wrongly* taken for it. If fewer neutrophils are called basophils, the
# precision and so the F1 of basophils rise while their recall stays. The table of recalls in the
# [results](sada_results) tells the two apart.
# :::
