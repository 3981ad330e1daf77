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
# # Results of SADA in unseen laboratories
#
# Tables I to III of the paper, its sweeps and its saliency maps, and what it leaves out: which weights are scored, on
# which images, what happens as the stain moves away, and what the features still know of the laboratory. What the
# **paper** prints and what is **ours** stand side by side and are never mixed. Every value of ours is computed on this
# page from stored predictions.
#
# How to read our values: mean ± standard deviation over trials says how much training again matters. The bracket below
# is a 95 % bootstrap interval over the images of the unseen laboratory (those of one slide, patient or filmed cell
# together): how much the choice of images matters. Neither says how much the choice of *laboratories* matters, and with
# three or four of them nothing can. A verdict compares the *direction* of a row against ERM (hover over it), because
# values from other data cannot be compared.

# %% tags=["hide-input"]
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from IPython.display import Markdown, display

from wbcrepro.backbones import Classifier, build_backbone
from wbcrepro.data.borders import border_table
from wbcrepro.data.pixels import prepare
from wbcrepro.data.scale import measured, scaled_reader
from wbcrepro.domains.dann import DANNSettings
from wbcrepro.longtail.heads import make_head
from wbcrepro.report.domain_claims import rarest_class
from wbcrepro.report.domain_evaluate import DomainEvaluator, DomainSpec, lone_classes
from wbcrepro.report.domain_figures import (
    confusion_pair_figure,
    embedding_figure,
    gradcam_figure,
    laboratory_scores_figure,
    shift_figure,
    sweep_figure,
)
from wbcrepro.report.domain_frames import (
    choices_frame,
    confusion_of,
    gains_frame,
    recall_frame,
    scoring_frame,
    shift_frame,
    sweep_frame,
)
from wbcrepro.report.domain_page import csv_name, domain_table_html
from wbcrepro.report.domain_predictions import from_domain_plan
from wbcrepro.report.domain_tables import build_domain_table
from wbcrepro.report.embeddings import probe_frame, project
from wbcrepro.report.figures import effects_figure, use_style
from wbcrepro.report.page import Html, banner, drawn_words, frame_html, hole, source
from wbcrepro.report.results import list_results, open_results
from wbcrepro.session import from_root, no_results, open_session

torch.set_num_threads(1)
use_style()
session = open_session("sada", PROFILE, STORE, DATA, DATASET, RESULTS, WEIGHTS, ACCUMULATE)
missing = session.run_missing()
ours = from_domain_plan(session.plan, session.store)
paper, settings = ours.paper, ours.paper["profiles"][PROFILE]
SYNTHETIC = ours.caption if ours.synthetic else ""
UNSEEN = settings["figures"]["embeddings"]["held_out"]
real = [open_results(folder) for folder in list_results(session.results, "sada")]
evaluators = {id(found): DomainEvaluator(found) for found in (ours, *real)}
METHODS = {row["label"]: row["method"] for row in paper["tables"]["table_1"]["rows"]}
WORDS = {"micro": "F1-micro", "macro": "F1-macro"}


def table_of(found, name, **options):
    return build_domain_table(found, name, evaluator=evaluators[id(found)], **options)


def show_table(found, name, prefix="", **options):
    table = table_of(found, name, **options)
    return domain_table_html(table, f"{prefix}{csv_name(table)}.csv")


def done_cells(found, *methods):
    return [m.id for m in found.members if m.done and (not methods or m.method in methods)]


def show_frame(frame, name, caption, found, cells=None):
    """A frame with its provenance, or the command that fills it."""
    if not len(frame):
        return Html(hole(found.make_command(1)))
    return frame_html(
        frame, name, caption=caption, synthetic=found.caption if found.synthetic else "",
        command=found.make_command(), cells=done_cells(found) if cells is None else cells,
    )  # fmt: skip


def each_real(show):
    """The same from the results on real images that came with the repository."""
    for found in real:
        display(show(found, f"{found.benchmark}-{found.profile}-"))


def our_columns(found):
    """What a column of Table I is measured on: the laboratory, with the one of the paper in whose place it stands."""
    columns = table_of(found, "table_1").columns
    return {c.label: c.label if c.label in (c.ours, "Average") else f"{c.ours} ({c.label})" for c in columns}


banner(ours.synthetic, SYNTHETIC)

# %% tags=["hide-input"]
tier0 = session.plan.tier(0)
words = (
    "All cells of its first round have been run."
    if not missing
    else f"{missing} of the {len(tier0)} cells of its first round are missing; their values are holes."
)
Markdown(
    f"This page: profile `{PROFILE}` ({settings['words']}), benchmark `{ours.benchmark}`, network "
    f"{', '.join(f'`{name}`' for name in ours.networks())}. {words}"
)

# %% [markdown]
# ## Table I: each laboratory held out in turn

# %% tags=["hide-input"]


def training_words(found):
    """What the rows of Table I do not have in common, from the schedule of a profile."""
    schedule = found.paper["profiles"][found.profile]["schedule"]
    steps, first = schedule["steps"], schedule["stage1_steps"]
    dann = len(range(0, steps, 1 + DANNSettings().d_steps))
    return (
        f"Rows do not train alike. Of at most {steps:,} updates, cross-entropy trains the classifier in all {steps:,} "
        f"of ERM, in {steps - first:,} of SADA (the first {first:,} train features only) and in {dann:,} of DANN (the "
        "others are its discriminator's). And SADA in preset `paper` lacks the colour augmentation of the baselines "
        "([D9](sada_findings))."
    )


def scale_words(found):
    """How the common scale was found, and how many images have their border repeated, as far as they were counted."""
    committed = from_root(RESULTS) / f"scale-{found.benchmark}.csv"
    if found.paper["profiles"][found.profile]["pixels"]["scale"] != "common":
        return "Images are not brought to a common physical scale."
    words = "All images are cropped to one field in cell diameters. "
    words += (
        "A drawn laboratory's diameter is known."
        if found.synthetic
        else "A laboratory's diameter is one number, measured on its own images, those of the held-out one too, class "
        "by class: the labels of the target enter that number."
    )
    if found.benchmark == session.benchmark.name:
        counted = border_table(session.benchmark)
    elif committed.is_file():
        counted = pd.read_csv(committed, comment="#")
    else:
        return words
    short = [f"{x.repeated} of {x.images} of {x.laboratory}" for x in counted.itertuples() if x.repeated]
    return f"{words} Images smaller than the field have their border repeated: {', '.join(short) or 'none'}."


def table_1(found, prefix=""):
    display(show_table(found, "table_1", prefix))
    return Markdown(f"{training_words(found)}\n\n{scale_words(found)} ([More on the scale](laboratories).)")


table_1(ours)

# %% [markdown]
# ### The same on real images
#
# Computed on photographs; the probabilities of every network travel with the repository, and this page recomputed the
# table from them. From here on every figure and table is followed by its counterpart on real images, where there is
# one.

# %% tags=["hide-input"]
if not real:
    display(Markdown(no_results(session.results)))
each_real(table_1)

# %% [markdown]
# ### Scores with their intervals

# %% tags=["hide-input"]


def scores(found, prefix, metric="macro"):
    table = table_of(found, "table_1")
    if not table.any_result:
        return Html(hole(found.make_command()))
    display(banner(found.synthetic, found.caption))
    laboratory_scores_figure(table, metric, f"{WORDS[metric]}, {found.benchmark}")
    plt.show()
    return source(
        done_cells(found, *METHODS.values()), found.make_command(), words=f"table I, preset paper, {found.benchmark}"
    )


display(scores(ours, ""))
display(scores(ours, "", "micro"))

# %% tags=["hide-input"]
each_real(scores)

# %% tags=["hide-input"]
each_real(lambda found, prefix: scores(found, prefix, "micro"))

# %% [markdown]
# ### Gain over ERM
#
# Overlapping intervals of two rows say little, since both were scored on the same images. The paired difference says
# more: zero outside its interval means that other images of the *same* laboratory would hardly change the sign.

# %% tags=["hide-input"]


def gains(found, prefix, metric="macro"):
    frame = gains_frame(table_of(found, "table_1"), metric)
    if not len(frame):
        return Html(hole(found.make_command()))
    frame["column"] = frame["column"].map(our_columns(found))
    frame["step"] = frame["row"] + ": " + frame["column"]
    display(banner(found.synthetic, found.caption))
    effects_figure(frame, title=f"{WORDS[metric]}: method minus ERM, {found.benchmark}")
    plt.show()
    cells = done_cells(found, *METHODS.values())
    display(source(cells, found.make_command(), words=f"paired differences, {found.benchmark}"))
    shown = frame.drop(columns="step").rename(columns={"row": "method", "column": "held out"})
    caption = f"{WORDS[metric]}, method minus ERM, points: the paper's difference, ours, its paired 95 % interval"
    return show_frame(shown, f"{prefix}gains-{metric}.csv", caption, found)


gains(ours, "")

# %% tags=["hide-input"]
each_real(gains)

# %% [markdown]
# ## Table II: an external laboratory
#
# The paper's external laboratory, SYSU3H, is private. Its column stays, with the paper's values. Ours is measured in
# another laboratory, which the column names, so that only the order of the methods can be looked at. (The odd value
# of ERM is as printed; see the [next chapter](sada_findings).)

# %% tags=["hide-input"]


def table_2(found, prefix=""):
    display(show_table(found, "table_2", prefix))
    stand_in = found.paper["tables"]["table_2"]["substitutes"].get(found.profile)
    if stand_in not in found.held_out(preset="paper"):
        return Html("")
    return Markdown(
        f"`{stand_in}` is held out in a column of Table I as well: these are the same cells, scored once more, so "
        "claims on the two tables (S1 and S5) are not independent of each other."
    )


table_2(ours)

# %% tags=["hide-input"]
each_real(table_2)

# %% [markdown]
# ## Table III: ablation
#
# M1 is ERM, M2 lacks the local alignment, M3 has the ordinary contrastive loss in place of the averaged anchors - and,
# by the ticks of the paper's table, no local alignment either, so it is M2 that M3 should be compared with.

# %% tags=["hide-input"]
show_table(ours, "table_3")

# %% tags=["hide-input"]
each_real(lambda found, prefix: show_table(found, "table_3", prefix))

# %% tags=["hide-input"]


def beta_words(found):
    """How much the sum over the places of the last map is worth beside the contrastive loss, here and in the paper."""
    settings, full = (found.paper["profiles"][name] for name in (found.profile, "paper"))
    side, places = settings["pixels"]["crop"], []
    for name, pixels in ((settings["backbone"], side), (full["backbone"], full["pixels"]["crop"])):
        network, info = build_backbone(name, "random")
        with torch.no_grad():
            blank = torch.zeros(1, 3, pixels, pixels)
            maps = Classifier(network.eval(), make_head("linear", info.dim, len(found.classes)), info).maps(blank)
        places.append(maps.shape[-2:])
    (h, w), (full_h, full_w) = places
    beta = found.paper["presets"]["paper"]["sada"]["beta"]
    weaker = full_h * full_w / (h * w)
    return Markdown(
        f"Eq. 5 sums over the places of the last map, Eq. 6 does not. `{settings['backbone']}` at {side} px has "
        f"{h}×{w} places, the paper's network {full_h}×{full_w}. So $\\beta$ = {beta:g} with sums is {weaker:.1f} "
        f"times weaker beside $L_{{DISC}}$ here than there, as {beta / weaker:.2g} would be in the paper; this holds "
        "for the sweep of Fig. 7 as well."
    )


beta_words(ours)

# %% tags=["hide-input"]
each_real(lambda found, prefix: beta_words(found))

# %% tags=["hide-input"]
PAIRS = [("M2", "M1"), ("M3", "M1"), ("M2", "M3"), ("SADA", "M2"), ("SADA", "M1")]


def steps(found, prefix):
    table, lines = table_of(found, "table_3"), []
    rows = {row.label: row for row in table.rows}
    for metric in table.metrics:
        for left, right in PAIRS:
            one, other = (rows[name].entries["Average", metric] for name in (left, right))
            change = one.ours.minus(other.ours) if one.ours and other.ours else None
            if change:
                low, high = (100 * v for v in change.interval())
                printed = one.paper[0] - other.paper[0]
                lines.append({"step": f"{left} - {right}, {WORDS[metric]}", "paper": printed, "low": low, "high": high,
                              "change": 100 * change.mean, "trials": change.folds})  # fmt: skip
    frame = pd.DataFrame(lines, columns=["step", "paper", "change", "low", "high", "trials"])
    if not len(frame):
        return Html(hole(found.make_command(1)))
    display(banner(found.synthetic, found.caption))
    effects_figure(frame, title=f"ablation, mean over held-out laboratories, {found.benchmark}")
    plt.show()
    cells = done_cells(found, *(row.spec.method for row in table.rows))
    display(source(cells, found.make_command(), words=f"paired differences, {found.benchmark}"))
    caption = "One step at a time, points: the paper's difference, ours, its paired 95 % interval"
    return show_frame(frame, f"{prefix}table_3-steps.csv", caption, found, cells)


steps(ours, "")

# %% tags=["hide-input"]
each_real(steps)

# %% [markdown]
# ### Readings of the equations
#
# Eq. 4-6 can be read as sums or means, and the denominator of Eq. 6 over all views or over the raw ones
# ([which is which](sada)). The rows differ in nothing else.

# %% tags=["hide-input"]
show_table(ours, "table_forms")

# %% tags=["hide-input"]
each_real(lambda found, prefix: show_table(found, "table_forms", prefix))

# %% [markdown]
# ### A common physical scale, on and off
#
# Not in the paper: whether cells are brought to one size in pixels before any method sees them.

# %% tags=["hide-input"]
show_table(ours, "table_scale")

# %% tags=["hide-input"]
each_real(lambda found, prefix: show_table(found, "table_scale", prefix))

# %% [markdown]
# ## Figure 7: the sweeps over $k$ and $\beta$
#
# The paper prints its optimum in numbers and the rest as bars. The points are cells like any other; the values of the
# sweep that were not run are named. A best point is the best of several, so it is too good by construction, most of all
# where the curve is flat.

# %% tags=["hide-input"]


def sweeps(found, prefix):
    frame = sweep_frame(table_of(found, "figure_7"))
    if frame["mean"].isna().all():
        return Html(hole(found.make_command(1)))
    display(banner(found.synthetic, found.caption))
    sweep_figure(frame)
    plt.show()
    methods = {p["method"] for points in paper["tables"]["figure_7"]["sweeps"].values() for p in points}
    cells = done_cells(found, *methods)
    display(source(cells, found.make_command(), words=f"mean over held-out laboratories, {found.benchmark}"))
    shown = frame.assign(metric=frame["metric"].map(WORDS)).drop(columns="std")
    shown = shown.rename(columns={"folds": "trials"}).assign(
        value=shown["value"].map("{:g}".format), paper=shown["paper"].map("{:.2f}".format).replace("nan", "–")
    )
    caption = "Sweeps, percent: the paper's optimum, ours with a 95 % interval over images"
    return show_frame(shown, f"{prefix}figure_7.csv", caption, found, cells)


sweeps(ours, "")

# %% tags=["hide-input"]
each_real(sweeps)

# %% [markdown]
# ## Figure 6: where do the networks look?
#
# > "Our approach more effectively targets the blood cell regions" (IV-C)
#
# Grad-CAM {cite:p}`selvaraju2017` weights the last feature maps by the gradient of a class's logit and keeps what is
# positive. Here are the same cells under every method, one of each class, taken without looking (the first of the
# class), and the map of the class that the network predicts. Each map is scaled on its own, so *contrast* between
# methods means nothing.

# %% tags=["hide-input"]


def saliency():
    """``{label: arrays}`` of the stored maps, the cell ids, and the scale of the pixels behind them."""
    maps, ids, scale = {}, [], settings["pixels"]["scale"]
    for cell in session.plan.find(figure="gradcam"):
        stored = session.store.get(cell.id)
        if stored:
            with np.load(stored.folder / "gradcam.npz") as arrays:
                maps[paper["methods"][cell.labels["method"]]["label"]] = dict(arrays)
            ids.append(cell.id)
    return maps, ids, scale


maps, ids, scale = saliency()
if maps:
    first = next(iter(maps.values()))
    read = scaled_reader(session.benchmark, scale)
    side = settings["pixels"]
    cells = np.stack([prepare(read(int(i)), side["resize"], side["crop"]).transpose(1, 2, 0) for i in first["items"]])
    names = [ours.classes[c] for c in first["labels"]]
    answers = {label: [ours.classes[c] for c in found["predicted"]] for label, found in maps.items()}
    display(banner(ours.synthetic, SYNTHETIC))
    gradcam_figure(cells, {label: found["maps"].astype(float) for label, found in maps.items()}, names, answers)
    plt.show()
    line = source(ids, ours.make_command(), words=f"cells of {UNSEEN}, which no network saw; averaged weights, trial 0")
else:
    line = Html(hole(ours.make_command()))
display(line)

# %% [markdown]
# Can "on the cell" be counted? On the common scale a cell is about one cell diameter wide in the middle of every
# picture, so we can ask which share of a map's weight lies in that disc. A map that is the same everywhere has the
# disc's share of the area.

# %% tags=["hide-input"]
if maps and scale == "common":
    extent = first["maps"].shape[-1]
    centre = (np.arange(extent) - (extent - 1) / 2) / extent * measured()["field"]  # in cell diameters
    disc = np.hypot(centre[:, None], centre[None]) <= 0.5
    lines = []
    for label, found in maps.items():
        weight = found["maps"].astype(float)
        there = weight.sum((1, 2)) > 0  # a map without anything positive is empty
        shares = 100 * (weight * disc)[there].sum((1, 2)) / weight[there].sum((1, 2))
        mean, low, high = (shares.mean(), shares.min(), shares.max()) if len(shares) else (None, None, None)
        right = int((found["predicted"] == found["labels"]).sum())
        lines.append({"method": label, "mean share in the disc (%)": mean, "lowest": low, "highest": high,
                      "maps": f"{there.sum()} of {len(there)}", "predicted rightly": str(right)})  # fmt: skip
    lines.append({"method": "the same everywhere", "mean share in the disc (%)": 100 * disc.mean()})
    found = [line for line in lines[:-1] if line["lowest"] is not None]
    blind = all(abs(line[end] - 100 * disc.mean()) < 0.1 for line in found for end in ("lowest", "highest"))
    display(frame_html(
        pd.DataFrame(lines), "gradcam.csv", caption="Weight of the maps within one cell diameter of the centre",
        synthetic=SYNTHETIC, command=ours.make_command(), cells=ids, words=drawn_words("the maps above"),
    ))  # fmt: skip
    shown = Markdown(
        "Here every map has the disc's share of the area. That says nothing of the networks: maps of 2×2 places, blown "
        "up to the size of the picture, must have it by symmetry, and empty maps have none. The question needs larger "
        "pictures."
        if blind
        else "A map that lies on the cell has more weight in the disc than one that is the same everywhere."
    )
else:
    shown = Html(hole(ours.make_command()))
display(shown)

# %% [markdown]
# A few pictures decide nothing; the numbers are here to be held against the claim, not to settle it. A coarse map
# spreads over the picture whatever the network does (the paper's have 7×7 places).
#
# ## Choices of scoring
#
# The same trainings can be scored in several ways, and papers differ in the way more than readers notice.
#
# ### Which weights: last, best or averaged
#
# `last` are the weights of the last step, `best` those of the checkpoint with the best accuracy on the *sources*'
# validation images (those of the target must not be looked at), `averaged` the mean over SWAD's window
# {cite:p}`cha2021swad`.

# %% tags=["hide-input"]
few = {key: DomainEvaluator(found, min(evaluators[key].n, 500)) for key, found in ((id(f), f) for f in (ours, *real))}


def beside(frame):
    """Changes and their intervals as one text each."""
    frame = frame.rename(columns={"row": "method", "column": "held out"})
    for key in [c.removesuffix(": change") for c in frame if c.endswith(": change")]:
        parts = frame[[f"{key}: change", f"{key}: low", f"{key}: high"]].to_numpy(float)
        frame[f"{key}: change"] = [
            "–" if np.isnan(c) else f"{c:+.1f} [{low:+.1f}, {high:+.1f}]" for c, low, high in parts
        ]
        frame = frame.drop(columns=[f"{key}: low", f"{key}: high"])
    return frame


def choices(found, prefix, name, options, caption, metric="macro", preset="paper"):
    frame = choices_frame(found, options, metric=metric, preset=preset, evaluator=few[id(found)])
    if len(frame):
        frame = beside(frame.assign(column=frame["column"].map(our_columns(found))))
    caption = f"{WORDS[metric]}, percent: {caption}. Changes are paired, with a 95 % interval, in points."
    return show_frame(frame, f"{prefix}{name}.csv", caption, found)


SELECTED = {"averaged": {"selection": "swad"}, "last": {"selection": "last"}, "best": {"selection": "best"}}


def selections(found, prefix):
    return choices(found, prefix, "selections", SELECTED, "three choices of weights from the same trainings")


selections(ours, "")

# %% tags=["hide-input"]
each_real(selections)

# %% [markdown]
# ### All of the target, or four fifths
#
# What the text says, and what the released code prints, on four fifths that change with the trial. Here its share is
# *imitated*: the released split is a plain shuffle; ours are stratified folds that keep the images of one slide,
# patient or filmed cell together, and a trial leaves out the fold of its own number. Images without a fold are always
# scored.

# %% tags=["hide-input"]
SPLITS = {"all images": {}, "four fifths": {"rows": "in_split"}}


def left_out_words(found):
    """Classes that go with the fifth that a trial leaves out, and what that does to an average over classes."""
    lines = []
    for laboratory in found.held_out(preset="paper"):
        for member in {m.trial: m for m in found.find(held_out=laboratory, preset="paper", done=True)}.values():
            scored = found.read(member)
            classes, out = np.unique(scored.labels), scored.folds == member.trial
            gone = np.setdiff1d(classes, scored.labels[~out])
            if not len(gone):
                continue
            images = ", ".join(
                f"{'the only image' if n == 1 else f'all {n} images'} of {found.classes[code]}"
                for code, n in zip(gone, (scored.labels == gone[:, None]).sum(1), strict=True)
            )
            lines.append(
                f"- The fifth that trial {member.trial} leaves out of `{laboratory}` holds {images}. The average is "
                f"over {len(classes) - len(gone)} classes in place of {len(classes)}: a row with F1 = 0 in what "
                f"is gone gains {100 * len(gone) / (len(classes) - len(gone)):.0f} % of its value, because it is no "
                "longer asked for it; a row that had it right loses."
            )
    return "\n".join(lines)


def splits(found, prefix):
    words = "all images of the target, and four fifths in imitation of the released code"
    display(choices(found, prefix, "scored", SPLITS, words))
    return Markdown(left_out_words(found))


splits(ours, "")

# %% tags=["hide-input"]
each_real(splits)

# %% [markdown]
# ### With and without a class that one image decides

# %% tags=["hide-input"]


def lone_words(found):
    """Which scored laboratories have a class of one image, in words; empty where none has."""
    listed = []
    for laboratory in found.held_out(preset="paper"):
        member = next((m for m in found.find(held_out=laboratory, done=True)), None)
        scored = found.read(member) if member else None
        if scored is not None and len(lone := lone_classes(scored.labels)):
            listed.append(f"{laboratory}: {', '.join(found.classes[c] for c in lone)}")
    return "; ".join(listed)


def alone(found, prefix):
    where = lone_words(found)
    if not where:
        return Markdown(f"*No scored laboratory of `{found.benchmark}` has a class of one image.*")
    options = {"all classes": {}, "without them": {"without_lone": True}}
    return choices(found, prefix, "lone", options, f"with and without classes of one image ({where})")


alone(ours, "")

# %% tags=["hide-input"]
each_real(alone)

# %% [markdown]
# ### Does the order of the methods survive?
#
# Place of each method (1 is best, by F1-macro averaged over the laboratories) under every choice of scoring:

# %% tags=["hide-input"]


def places(found, prefix):
    frame = scoring_frame(found, evaluator=few[id(found)])
    if frame["mean"].isna().all():
        return Html(hole(found.make_command()))
    frame = frame[frame["scoring"] != "averaged weights (SWAD)"]  # the paper's way
    shown = frame.pivot(index="scoring", columns="row", values="place")[list(METHODS)].loc[frame["scoring"].unique()]
    shown = shown.map(lambda v: "–" if pd.isna(v) else f"{v:.0f}").reset_index()
    return show_frame(shown, f"{prefix}places.csv", "Places of the methods", found)


places(ours, "")

# %% tags=["hide-input"]
each_real(places)

# %% [markdown]
# ## The released code's preset
#
# What was released runs SupCon over all views, no local alignment, an MLP projector and colour jitter, and scores four
# fifths of the target. Here both presets are scored on all images, so that only the method differs. One switch of
# preset `paper` is our choice where the text is silent, the [way in which the stains are separated](sada).

# %% tags=["hide-input"]


def presets(found, prefix):
    both = {name: table_of(found, "table_1", preset=name, rows="all") for name in paper["presets"]}
    lines = []
    for metric, score in WORDS.items():
        for column in both["paper"].columns:
            text, code = (next(r for r in t.rows if r.label == "SADA").entries.get((column.label, metric))
                          for t in both.values())  # fmt: skip
            if not (text and code and text.ours and code.ours):
                continue
            change = code.ours.minus(text.ours)
            low, high = (100 * v for v in change.interval()) if change else (None, None)
            where = our_columns(found)[column.label]
            lines.append({"score": score, "held out": where, "preset paper": 100 * text.ours.mean,
                          "preset code": 100 * code.ours.mean, "code - paper": 100 * change.mean if change else None,
                          "low": low, "high": high, "trials": change.folds if change else 0})  # fmt: skip
    caption = "SADA as written and as released, both scored on all images (percent; differences in points, paired)"
    return show_frame(pd.DataFrame(lines), f"{prefix}presets.csv", caption, found, done_cells(found, "sada"))


presets(ours, "")

# %% tags=["hide-input"]
each_real(presets)

# %% [markdown]
# ## Which classes gain?
#
# The paper calls its two stages a remedy against imbalance. If so, the rare classes should gain most.

# %% tags=["hide-input"]
ERM, BEST = DomainSpec("erm"), DomainSpec("sada")


def classes_of(found, prefix):
    for laboratory in found.held_out(preset="paper"):
        frame = recall_frame(found, {"ERM": ERM, "SADA": BEST}, laboratory, evaluators[id(found)])
        if not len(frame) or "recall ERM" not in frame or frame.filter(like="recall").isna().all(axis=None):
            display(Html(hole(found.make_command())))
            continue
        caption = f"{laboratory} held out: training images of each source, and recall (percent, mean over trials)"
        cells = [
            m.id for m in found.find(held_out=laboratory, preset="paper", done=True) if m.method in ("erm", "sada")
        ]
        display(show_frame(frame, f"{prefix}recalls-{laboratory}.csv", caption, found, cells))
    return Html("")


classes_of(ours, "")

# %% tags=["hide-input"]
each_real(classes_of)

# %% tags=["hide-input"]


def confusions(found, prefix):
    for laboratory in found.held_out(preset="paper"):
        matrices = {
            name: confusion_of(found, spec, laboratory, evaluators[id(found)])
            for name, spec in (("ERM", ERM), ("SADA", BEST))
        }
        if any(matrix is None for matrix in matrices.values()):
            display(Html(hole(found.make_command())))
            continue
        rarest = rarest_class(found, evaluators[id(found)], ERM, laboratory)
        display(banner(found.synthetic, found.caption))
        display(Markdown(f"*`{laboratory}` held out; framed: the class with the fewest training images there is.*"))
        confusion_pair_figure(matrices, found.classes, found.classes[rarest] if rarest >= 0 else None)
        plt.show()
        cells = [
            m.id for m in found.find(held_out=laboratory, preset="paper", done=True) if m.method in ("erm", "sada")
        ]
        display(
            source(
                cells,
                found.make_command(),
                words=f"{found.benchmark}, mean over trials; recall with a 95 % Wilson interval",
            )
        )
    return Html("")


confusions(ours, "")

# %% tags=["hide-input"]
each_real(confusions)

# %% [markdown]
# ## As the stain moves away
#
# A curve that no paper shows, because no photographed cell is stained twice. In a drawing it is possible: the *same*
# cells of the unseen laboratory under stains from the mean of the laboratories (0) over its own (1) and beyond, scored
# by the same networks. What the curve holds fixed is everything else: lens, sizes, class frequencies.
#
# When reading it, remember what each method saw in training. The baselines had strong colour jitter and greyscale; SADA
# in preset `paper` had cropped and flipped images and, in stage 1, the stains of other sources ([D9](sada_findings)).
# It met no colour beyond those of the sources; the baselines did.

# %% tags=["hide-input"]


def shifts(found, prefix):
    frame = shift_frame(found, list(METHODS.values()), evaluator=evaluators[id(found)])
    if not len(frame):
        return Markdown(f"*`{found.benchmark}` has no re-stained variants of a laboratory.*")
    frame = frame[frame["laboratory"].isin(frame.loc[frame["mean"].notna(), "laboratory"])]
    if not len(frame):
        return Html(hole(found.make_command()))
    frame = frame.sort_values("method", key=lambda names: names.map(list(METHODS).index), kind="stable")
    display(banner(found.synthetic, found.caption))
    shift_figure(frame)
    plt.show()
    display(
        source(
            done_cells(found),
            found.make_command(),
            words=f"{found.benchmark}: the same cells under other stains, 95 % intervals over images",
        )
    )
    pivot = frame.pivot_table(index=["laboratory", "method"], columns="shift", values="mean", sort=False)
    pivot.columns = [f"shift {c:g}" for c in pivot.columns]
    pivot["last - first"] = pivot.iloc[:, -1] - pivot.iloc[:, 0]
    caption = "Accuracy (percent) by stain shift, and what is lost from the smallest to the largest (points)"
    return show_frame(pivot.reset_index(), f"{prefix}shift.csv", caption, found)


shifts(ours, "")

# %% tags=["hide-input"]
if real:
    display(Markdown("*(Photographs cannot be re-stained, so this figure has no counterpart on real images.)*"))

# %% [markdown]
# ## What do the features still know?
#
# Alignment wants features from which the laboratory cannot be told. Below are features of images of all laboratories,
# by the network before any training on cells and after training with each method: on the left coloured by laboratory,
# on the right by class. The map is t-SNE {cite:p}`maaten2008`: near points are alike, distances between groups mean
# little.

# %% tags=["hide-input"]
embeddings, ids = {}, []
for cell in session.plan.find(figure="embeddings"):
    stored = session.store.get(cell.id)
    if stored:
        method = cell.labels["method"]
        label = "before training" if method == "pretrained" else paper["methods"][method]["label"]
        with np.load(stored.folder / "embeddings.npz") as arrays:
            embeddings[label] = dict(arrays)
        ids.append(cell.id)
panels = {
    label: (project(found["features"]), found["domains"], np.array(ours.classes)[found["labels"]])
    for label, found in embeddings.items()
}
if panels:
    display(banner(ours.synthetic, SYNTHETIC))
    embedding_figure(panels, held_out=UNSEEN)
    plt.show()
    line = source(ids, ours.make_command(), words=f"{UNSEEN} held out; averaged weights of trial 0")
else:
    line = Html(hole(ours.make_command()))
display(line)

# %% [markdown]
# ### A probe
#
# A picture in two dimensions may hide what a linear classifier finds in a thousand. So a logistic regression is asked,
# in cross-validation, for the laboratory and for the class. Two yardsticks: the share of the largest laboratory, and
# what the *true class* alone tells of the laboratory, since class frequencies differ. A feature that knew the class
# and nothing else would score the latter.

# %% tags=["hide-input"]
told = {}  # by method: right answers on the laboratory, percent
if embeddings:
    frame = probe_frame(embeddings)
    shown = frame[["features", "images"]].copy()
    for key in ("laboratory", "class", "laboratory from the class"):
        parts = frame[[key, f"{key}, low", f"{key}, high"]].to_numpy(float)
        shown[key] = [f"{value:.0f} [{low:.0f}, {high:.0f}]" for value, low, high in parts]
    shown["largest laboratory"] = frame["largest laboratory"].map("{:.0f}".format)
    display(frame_html(
        shown, "probe.csv", caption="Right answers of linear probes (percent, 95 % Wilson interval)", cells=ids,
        synthetic=SYNTHETIC, command=ours.make_command(), words=drawn_words("the embeddings above"),
    ))  # fmt: skip
    known = frame.set_index("features")
    told = known["laboratory"].to_dict()
    before = known.loc["before training"] if "before training" in known.index else None
    trained = known.drop(index="before training", errors="ignore")
    text = ""
    if len(trained):
        least = trained["laboratory"].idxmin()
        text = (
            f"After training the laboratory is told best from the features of {trained['laboratory'].idxmax()} "
            f"({trained['laboratory'].max():.0f} %) and worst from those of {least} "
            f"({trained['laboratory'].min():.0f} %), "
            + (f"before training in {before['laboratory']:.0f} %. " if before is not None else "")
            + f"The class alone would give {trained.loc[least, 'laboratory from the class']:.0f} %. "
            "The unseen laboratory is among those asked for."
        )
    shown = Markdown(text)
else:
    shown = Html(hole(ours.make_command()))
display(shown)

# %% [markdown]
# ## Summary
#
# - A table of unseen laboratories has three uncertainties: trainings, images, laboratories. Ours shows two; the third,
#   the one that matters to the next laboratory, cannot be had from three or four of them.
# - Which weights and which images are scored are part of the result. They stand beside each other here, from the same
#   trainings.
# - An average over classes may hang on one picture.
# - Features from which a linear probe tells the laboratory are not aligned, however good the scores; and features may
#   know as much of the laboratory as the class does without being at fault.
# - Whether the paper's claims hold here is the subject of the [next chapter](sada_findings).
#
# ## Exercises
#
# **1.** Table I averages four laboratories. Is its ± the standard deviation of the average, and could it be computed
# from the four columns?
#
# :::{admonition} Solution
# :class: dropdown
# It is the standard deviation over trials of the mean over laboratories. It cannot be computed from the columns' own:
# trials of different laboratories with the same number would have to be independent, and then the variance of the mean
# would be the sum of the four variances divided by 16. The next chapter does that sum for the paper.
# :::
#
# **2.** `best` looks at the sources' validation images. Why not at the target's, which would give higher scores?
#
# :::{admonition} Solution
# :class: dropdown
# Because the target is the laboratory that nobody has seen. Choosing among checkpoints by its labels is training on
# it, a little, and the score would no longer be that of an unseen laboratory ({cite:t}`gulrajani2021` call it oracle
# selection).
# :::
#
# **3.** Suppose that a probe tells the laboratory from the features of SADA at least as well as from those of ERM. Give
# two reasons why SADA could still generalise better.

# %% tags=["hide-input"]


def told_words(told):
    """Whether the probe above found what exercise 3 supposes."""
    if not {"SADA", "ERM"} <= told.keys():
        return ""
    found = "It is so here" if told["SADA"] >= told["ERM"] else "It is not so here"
    return f"*{found}: {told['SADA']:.0f} % from the features of SADA, {told['ERM']:.0f} % from those of ERM.*"


Markdown(told_words(told))

# %% [markdown]
# :::{admonition} Solution
# :class: dropdown
# The classifier need not use the directions in which the laboratory is written: what counts is whether it is *mixed*
# with the class. And the laboratory may be told from things that the stain augmentation does not touch (light, blur,
# size), which may do little harm.
# :::
