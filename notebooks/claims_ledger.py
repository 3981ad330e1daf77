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
# # The claims ledger
#
# A paper claims many things, and each chapter on findings tests those of one paper. This page has all of them in one
# place: one row a claim, with what was computed, how large the effect is here, how far chance could move it, and a
# verdict. Beside what this build's store holds stand the results on real images that travel with the repository.
#
# It is made from data alone. A claim that is added to a paper's `claims.yml` appears here, and a paper that has not
# been run is a hole with the command that fills it.

# %% tags=["hide-input"]
from IPython.display import Markdown, display

from wbcrepro.errors import DataMissing, UsageError
from wbcrepro.papers import paper_names
from wbcrepro.report import verdicts
from wbcrepro.report.claims import load_part
from wbcrepro.report.designs import design_of
from wbcrepro.report.ledger import (
    COMMITTED,
    DIFFER,
    IN_STORE,
    NOT_RUN,
    WORDS,
    absent,
    from_results,
    from_store,
    ledger_frame,
    verdict_counts,
)
from wbcrepro.report.ledger_page import ledger_html
from wbcrepro.report.page import banner, frame_html
from wbcrepro.session import from_root, open_session

AGAIN = f"wbcrepro book --only claims_ledger --profile {PROFILE}"
papers = [name for name in paper_names() if load_part(name, "claims")]
evidence = []
for name in papers:  # this page reads what is there; it starts no training
    try:
        session = open_session(name, PROFILE, STORE, DATA, DATASET, RESULTS, WEIGHTS, ACCUMULATE)
        evidence.append(from_store(design_of(name).read(session.plan, session.store)))
    except (DataMissing, UsageError) as error:  # no images of this profile here, or no report of this design yet
        evidence.append(absent(name, IN_STORE, str(error).splitlines()[0], PROFILE))
committed = from_results(from_root(RESULTS))
evidence += committed
evidence += [absent(name, COMMITTED) for name in papers if name not in {found.paper for found in committed}]
ledger = ledger_frame(papers, evidence)
synthetic = sorted({found.benchmark for found in evidence if found.synthetic})
banner(bool(synthetic), f"Drawn by a program: {', '.join(synthetic)}.")

# %% [markdown]
# ## How a claim is judged
#
# A claim has one or more *items*: metrics, columns, classes, pairs of rows. Each item gets a verdict.
#
# - **supported here**: the bootstrap interval over images, a t-interval over trainings (three at least) and every
#   single training lie on the claimed side;
# - **contradicted here**: all of them lie on the other side;
# - **undecided here**: anything else, and whatever rests on one or two trainings;
# - **cannot be tested here**: the class, the laboratory or the stored quantity is not there.
#
# A claim as a whole has a verdict only where all of its items that could be judged share it; otherwise its items
# differ, and they are listed. *Here* means the data, the network and the number of trainings that the row names. No
# claim about a paper's own data is confirmed or refuted by other data.
#
# ## The ledger
#
# The number after $n$ is that of the folds or trials behind the effect.

# %% tags=["hide-input"]
sources = from_root("notebooks")
pages = {name: f"{name}_findings.html" for name in papers if (sources / f"{name}_findings.py").is_file()}
ledger_html(ledger, evidence, "ledger.csv", pages)

# %% [markdown]
# ## Counted
#
# Claims first, then their items. A paper with many items is not a paper with much evidence: items share trainings and
# images.

# %% tags=["hide-input"]
counts = verdict_counts(ledger)
counts.insert(1, "data", [f"{c.benchmark}, {c.profile}, {c.images}".lstrip(", ") for c in counts.itertuples()])
cells = [cell for found in evidence for cell in found.cells]


def counted(of, names, caption, file):
    """One table of counts; the words "here" are left out of its heads, not of its meaning."""
    shown = counts[["paper", "data", of, *names]].rename(columns=lambda name: name.removeprefix(f"{of} "))
    shown.columns = [name.removesuffix(" here") for name in shown.columns]
    return frame_html(shown, file, caption=caption, command=AGAIN, cells=cells)


display(counted(
    "claims", (*verdicts.CLAIMS.values(), DIFFER, NOT_RUN),
    "Claims by verdict here. A claim counts under a verdict if all its judged items share it", "claims.csv",
))  # fmt: skip
display(counted("items", [f"items {words}" for words in WORDS], "Their items by verdict here", "items.csv"))

# %% [markdown]
# ## Reading it

# %% tags=["hide-input"]


def reading(origin, words):
    """What the ledger says of one origin, in sentences."""
    rows = ledger[(ledger["from"] == origin) & (ledger["item"] != "")]
    judged = rows[rows["our effect"].notna()]
    if judged.empty:
        return f"**{words}**: nothing has been run."
    undecided = judged[judged["verdict"] == verdicts.CLAIMS["undecided"]]
    few = int((undecided["folds"].astype(int) < 3).sum())
    both = judged[judged["paper's effect"].notna()]
    same = int((both["paper's effect"].astype(float) * both["our effect"].astype(float) > 0).sum())
    told = [f"**{words}**: {len(judged)} items of {len(rows)} could be judged, {len(undecided)} of them are undecided"]
    told += [f"{few} of these because one or two trainings decide nothing"] if few else []
    differences = undecided[undecided["unit"] == "points"]
    clear = int(((differences["low"].astype(float) > 0) | (differences["high"].astype(float) < 0)).sum())
    more = f"Of the undecided differences {clear} have an interval over images that leaves zero out: more trainings "
    more = f"{more}might decide them" if clear else ""
    agree = f"Where the paper prints an effect ({len(both)} items), ours has its sign in {same}" if len(both) else ""
    wide = (judged["high"].astype(float) - judged["low"].astype(float))[judged["unit"] == "points"].median()
    half = f"The median interval over images is {wide:.1f} points wide" if wide == wide else ""
    return ". ".join(filter(None, [", ".join(told), more, agree, half])) + "."


Markdown("\n".join(f"- {reading(*pair)}" for pair in (
    (IN_STORE, f"This profile ({PROFILE})"), (COMMITTED, "Committed results on real images"))))  # fmt: skip

# %% [markdown]
# The sign of an effect is not a verdict: it ignores chance, and on a coin's toss it would agree half of the time.
#
# ## Summary
#
# - One row a claim, for every paper, made from the same stored predictions as the chapters; nothing is typed in.
# - A verdict holds for the data, the network and the number of trainings beside it, and for no others.
# - What one or two trainings say stays undecided, however narrow the interval over images is.
# - Synthetic images can show that a mechanism works. They support no claim about blood.
#
# ## Exercises
#
# **1.** Suppose that twenty items have no true effect and each is tested so that it is called supported by chance in
# 2.5 % of cases. How many supported items would you expect, and why is the number of supported items on this page no
# measure of how right a paper is?
#
# :::{admonition} Solution
# :class: dropdown
# Half an item, if they were independent. They are not: items of one claim share trainings and test images, so they are
# right or wrong together. And a count weighs a claim that was split into ten columns ten times.
# :::
#
# **2.** Why does this page not give a claim the verdict of the majority of its items?
#
# :::{admonition} Solution
# :class: dropdown
# "In every laboratory" is refuted by one laboratory, "in some" is supported by one. A majority answers neither. The
# words of the claim decide how its items go together, so the items are shown.
# :::
