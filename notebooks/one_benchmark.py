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
# # One benchmark
#
# Every paper compares its method with others, on its own data, with its own network and its own schedule. This page
# lays all of them side by side: every method of every paper by every test set at hand, with what each training cost.
#
# What may be compared is narrower than what stands on the page. Two scores can be held against each other if they are
# of the **same images**, so only within one column; if the **network** is the same, so the first tables show only the
# network that most papers share here; if the **budget** is the same, so each table says which rows had another; and if
# the networks read the **same pixels**. Those of `rescue` read a cell that was segmented, isolated and, where noisy,
# restored, those of `decoupled` the image: in a column that both share, their rows compare two pipelines, and the table
# below says so. Papers whose test sets differ in kind (held out from the data that trained, or a laboratory never seen)
# stand in different tables, and no number connects them.

# %% tags=["hide-input"]
import matplotlib.pyplot as plt
import pandas as pd
from IPython.display import Markdown, display

from wbcrepro.errors import DataMissing, UsageError
from wbcrepro.papers import paper_names
from wbcrepro.report.costs import chains
from wbcrepro.report.designs import design_of
from wbcrepro.report.figures import use_style
from wbcrepro.report.one_benchmark import Run, collect
from wbcrepro.report.one_benchmark_page import benchmark_figure, data_html, matrix_html
from wbcrepro.report.page import banner, frame_html, source
from wbcrepro.report.results import list_results, open_results
from wbcrepro.session import from_root, open_session

use_style()
AGAIN = f"wbcrepro book --only one_benchmark --profile {PROFILE}"
NETWORKS = None  # None: the network that most papers share; or a tuple of names, such as ("resnet50",)


def opened(paper, dataset):
    """A paper's plan on a benchmark, or why it has none. This page reads what is there; it starts no training."""
    try:
        session = open_session(paper, PROFILE, STORE, DATA, dataset, RESULTS, WEIGHTS, ACCUMULATE)
        design = design_of(paper)
        if design.scores is None:
            return None, "its design hands no scores on"
        return session, design.read(session.plan, session.store)
    except (DataMissing, UsageError) as error:
        return None, str(error).splitlines()[0]


own = {paper: opened(paper, DATASET) for paper in paper_names()}
there = {paper: session for paper, (session, _) in own.items() if session is not None}
refused = {paper: words for paper, (session, words) in own.items() if session is None}
runs = [Run(own[paper][1], chains(session.plan, session.store)) for paper, session in there.items()]
for paper, session in there.items():  # each paper on the data of the others too, where its design can be run on them
    others = {s.benchmark.name for s in there.values() if bool(s.benchmark.domains) == bool(session.benchmark.domains)}
    for dataset in sorted(others - {session.benchmark.name}):
        guest, found = opened(paper, dataset)
        if guest is not None:
            runs.append(Run(found, chains(guest.plan, guest.store), own=False))
runs += [Run(open_results(folder)) for folder in list_results(from_root(RESULTS))]
bench = collect(runs)
compared = bench.of(NETWORKS)
synthetic = sorted({column.benchmark for column in bench.columns if column.synthetic})
display(banner(bool(synthetic), f"Drawn by a program: {', '.join(synthetic)}."))
if refused:
    display(Markdown("\n".join(f"- `{paper}` is not on this page: {words}" for paper, words in refused.items())))

# %% [markdown]
# ## Which networks

# %% tags=["hide-input"]
lines = [{"network": " + ".join(networks), "papers": papers} for networks, papers in bench.networks().items()]
if any(entry.estimate is not None for entry in bench.entries):
    display(frame_html(
        pd.DataFrame(lines), "networks.csv", command=AGAIN,
        caption="Networks (several: an average of them) and how many papers have a result with them here",
    ))  # fmt: skip
else:
    display(Markdown("Nothing has been run yet: every value below is a hole with its command."))

# %% [markdown]
# ## Methods by test sets
#
# Macro-F1 in percent, mean and standard deviation over $n$ trainings (folds or trials), and in brackets the 95 %
# bootstrap interval over test images. In each row the macro average and the weights that are scored are those of the
# paper's design: all classes of the list on a held-out test set, those that occur in it for an unseen laboratory. No
# views are averaged unless the row says so. A hole names the command that fills it. A dash means that nothing is
# planned for the row on these images: they are no test set of the paper, or it has not been run on this data set and
# what it would score there is not known yet. *Ran, not stored here*: of results that came with the repository some rows
# keep the average of their views only; averages of folds stand below.
#
# Rows bear their papers' names. `swin` of `rescue` is that paper's training of its main network, a Swin Transformer;
# in a profile with a small stand-in the row keeps the name, and the network that ran is the one that the tables name.

# %% tags=["hide-input"]
matrix_html(compared, "one_benchmark.csv")

# %% tags=["hide-input"]
if any(entry.estimate is not None for entry in compared.entries):
    benchmark_figure(compared)
    plt.show()
    display(source([i for e in compared.entries for i in e.cells], AGAIN, words="the values of the table above"))

# %% [markdown]
# ## Each data set, with what it cost
#
# - **Seconds of one training**: wall time of all cells from the first weights to the probabilities, the scoring of the
#   test images included, for one fold or trial. Cells that several rows share (a network whose classifier is retrained)
#   count in each. It depends on the machine and on whatever else ran there.
# - **Inference**: milliseconds per scored image, where the run stored it.
# - **Images drawn** by the training of the network: epochs times images, or steps times the batch. Stain views and
#   mixed images, which some methods make of them, are not counted; time is.
# - **Budget**: what was planned. *Up to*: training may stop early.

# %% tags=["hide-input"]
for number, columns in enumerate(compared.groups().values()):
    name = f"{columns[0].benchmark}-{columns[0].profile}-{number}.csv"
    display(data_html(compared, columns, name))

# %% [markdown]
# ## Other networks, and averages of several
#
# These rows had more parameters, or several networks. Beside the tables above they would compare networks, not methods.

# %% tags=["hide-input"]
rest = bench.other_networks(NETWORKS)
for number, columns in enumerate(rest.groups().values()):
    name = f"other-{columns[0].benchmark}-{columns[0].profile}-{number}.csv"
    display(data_html(rest, columns, name))
if not rest.entries:
    display(Markdown("None here."))

# %% [markdown]
# ## Summary
#
# - Scores are compared within a column and a network; the tables name the rows that had another budget.
# - Most of the table is empty by design: the papers ask different questions, and a number that would bridge them does
#   not exist until one runs a method on the other's data. The holes say how.
# - Time is part of a result. A method that needs twice the time of another has to be compared with the other trained
#   for twice as long.
#
# ## Exercises
#
# **1.** Two methods in one column have overlapping intervals. Does that mean that their difference may be zero?
#
# :::{admonition} Solution
# :class: dropdown
# Not by itself. The intervals describe each value under resampling of the same test images; the two errors share most
# of their luck, so the interval of the paired difference is narrower. The chapters on findings compute that one. On the
# other side, neither says what training anew would change: look at the standard deviation and at $n$.
# :::
#
# **2.** A paper's average of three networks beats every single network here. What would you run to know whether the
# method or the number of networks did it?
#
# :::{admonition} Solution
# :class: dropdown
# The same average of three networks for the rival, and for each method three trainings of one network averaged. The
# results of `decoupled` do the former ([its tables](decoupled_results)).
# :::
