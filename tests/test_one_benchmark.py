"""One benchmark: what stands in a column is comparable, what it cost is read and not guessed, holes have commands."""

import dataclasses

import matplotlib.pyplot as plt
import numpy as np
import pytest
from fake_domain_store import fake_domain_plan, fill_domain_store
from fake_rescue_store import fake_rescue_plan, fill_rescue_store
from fake_store import fake_plan, fill_store

from wbcrepro.experiments.cell import Cell
from wbcrepro.experiments.store import Store, write_json
from wbcrepro.report.costs import budget_words, chains, cost_of
from wbcrepro.report.designs import design_of
from wbcrepro.report.evaluate import Evaluator, Spec
from wbcrepro.report.figures import use_style
from wbcrepro.report.one_benchmark import Run, collect, fill_command
from wbcrepro.report.one_benchmark_page import benchmark_figure, data_html, matrix_html, reading_words
from wbcrepro.report.one_benchmark_page import budget_words as budget_sentence
from wbcrepro.report.results import export_results, open_results

LITE0 = ("tf_efficientnet_lite0",)


def run_of(path, plan, fill, **options):
    store = fill(path, plan, **options)
    return Run(design_of(plan.paper).read(plan, store), chains(plan, store))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    path = tmp_path_factory.mktemp("stores")
    two_stage = run_of(path / "a", fake_plan(folds=[0, 1]), fill_store)
    domains = [run_of(path / p, fake_domain_plan(p), fill_domain_store) for p in ("sada", "boda")]
    return [two_stage, *domains]


@pytest.fixture(scope="module")
def bench(runs):
    return collect(runs, 50)


@pytest.fixture(scope="module")
def rescue(tmp_path_factory):
    plan = fake_rescue_plan()
    return design_of("rescue").read(plan, fill_rescue_store(tmp_path_factory.mktemp("rescue"), plan))


def entry(bench, paper, method, benchmark, part, preset="paper"):
    return next(e for e in bench.entries if (e.paper, e.method, e.preset, e.column.benchmark, e.column.part) ==
                (paper, method, preset, benchmark, part) and e.networks == LITE0)  # fmt: skip


def test_values_are_those_of_the_design(runs, bench):
    ours = entry(bench, "decoupled", "decoupled", "smears-demo", "test set").estimate
    theirs = Evaluator(runs[0].predictions, "test", 50).estimate(Spec("decoupled", ("r50",), view="none"), "macro_f1")
    assert ours.values == theirs.values and ours.folds == 2
    table = design_of("sada").build(runs[1].predictions, "table_1")
    column = next(c for c in table.columns if c.laboratories == ("mgg",))
    shown = next(r for r in table.rows if r.label == "CORAL").entries[column.label, "macro"].ours
    assert entry(bench, "sada", "CORAL", "sada-smears", "mgg").estimate.mean == shown.mean


def test_different_images_stand_in_different_columns(bench):
    names = [(c.benchmark, c.part) for c in bench.columns]
    assert names == [("smears-demo", "test set"), ("smears-demo", "degraded test set"), ("sada-smears", "mgg"),
                     ("sada-smears", "rapid"), ("boda-smears", "rapid")]  # fmt: skip
    supervised = next(row for row in bench.rows() if row[2] == "supervised")
    assert bench.entry(supervised, bench.columns[2]) is None


def test_the_same_name_with_other_images_is_another_column(runs):
    other = dataclasses.replace(runs[0].predictions, data_digest="1" * 64)
    found = collect([runs[0], Run(other)], 20)
    assert len(found.columns) == 4 and len({c.digest for c in found.columns}) == 2


def test_default_rows_share_the_network_that_most_papers_have(bench):
    assert next(iter(bench.networks())) == LITE0 and bench.networks()[LITE0] == 3
    chosen, rest = bench.of(), bench.other_networks()
    assert {e.networks for e in chosen.entries if e.estimate} == {LITE0}
    assert len(chosen.entries) + len(rest.entries) == len(bench.entries)
    assert any("Ens. (all)" in e.method and len(e.networks) == 3 for e in rest.entries)


def test_another_papers_run_on_the_same_data_stands_in_the_same_column(tmp_path, runs):
    plan = fake_domain_plan("boda")
    plan.benchmark.name = "sada-smears"
    guest = dataclasses.replace(run_of(tmp_path, plan, fill_domain_store), own=False)
    found = collect([*runs, guest], 20)
    assert len(found.columns) == 5, "a guest adds no column"
    both = {e.paper for e in found.entries if e.column.benchmark == "sada-smears" and e.estimate is not None}
    assert both == {"sada", "boda"}
    assert not [c for c in found.rows() if c[2] == "all its methods" and c[0] == "boda"]


def test_a_paper_that_was_never_planned_on_a_column_is_a_hole_with_a_command(bench):
    holes = {(e.paper, e.column.benchmark, e.column.part): e.command for e in bench.entries if not e.networks}
    assert holes == {
        ("sada", "boda-smears", "rapid"): "wbcrepro reproduce --paper sada --profile demo --dataset boda-smears",
        ("boda", "sada-smears", "rapid"): "wbcrepro reproduce --paper boda --profile demo --dataset sada-smears",
    }, "boda does not hold mgg out, and decoupled has no unseen laboratory"
    real = dataclasses.replace(bench.columns[0], synthetic=False)
    assert fill_command("decoupled", real).endswith("--dataset smears-demo --data FOLDER_OF_THE_IMAGES")


def test_missing_cells_are_holes(tmp_path):
    plan = fake_plan(folds=[0, 1])
    gone = {c.id for c in plan.cells if c.labels["method"] == "lws" or c.labels["backbone"] == "r152"}
    found = collect([run_of(tmp_path, plan, fill_store, skip=gone)], 20)
    lws = entry(found, "decoupled", "lws", "smears-demo", "test set")
    assert lws.estimate is None and lws.command == "wbcrepro reproduce --paper decoupled --profile demo"
    assert entry(found, "decoupled", "ncm", "smears-demo", "test set").command == ""
    assert next(e for e in found.entries if "R50+R152" in e.method).estimate is None
    (words, command), *_ = found.holes()
    assert "decoupled: lws" in words and command == lws.command
    assert "wbc-hole" in matrix_html(found.of(), "m.csv")


def test_committed_results_say_that_costs_are_not_stored(runs, tmp_path):
    opened = open_results(export_results(runs[0].predictions, tmp_path))
    found = collect([Run(opened)], 20).of()
    first = entry(found, "decoupled", "decoupled", "smears-demo", "test set")
    stored = entry(collect(runs[:1], 20), "decoupled", "decoupled", "smears-demo", "test set")
    assert first.estimate.mean == pytest.approx(stored.estimate.mean, abs=0.02)
    assert first.cost.seconds is None and first.cost.drawn is None and first.cost.budget == ""
    html = data_html(found, list(found.columns), "d.csv")
    assert html.count("not stored</span>") == 4 * len(found.rows()) and "budgets of these trainings are not" in html


def test_the_store_goes_before_committed_results_on_the_same_data(runs, tmp_path):
    opened = open_results(export_results(runs[0].predictions, tmp_path))
    both = collect([runs[0], Run(opened)], 20)
    assert len(both.entries) == len(collect(runs[:1], 20).entries)
    assert entry(both, "decoupled", "ncm", "smears-demo", "test set").cost.seconds == 1.5


def chain_store(tmp_path, *, inference=None):
    """pixels -> train -> features -> two heads, with times 100, 10, 2, 1, 1 and what a training writes."""
    store = Store(tmp_path)
    pixels = Cell("pixels", {"crop": 64})
    optimisation = {"epochs": 5, "batch_size": 32, "patience": 2}
    train = Cell("train", {"weights": "package", "optimisation": optimisation}, (pixels.id,))
    features = Cell("features", {"passes": 2}, (train.id,))
    heads = [
        Cell("head", {"method": m, "optimisation": {"epochs": 20, "batch_size": 64}}, (features.id,)) for m in "ab"
    ]
    plan = fake_plan()
    plan.cells = (pixels, train, features, *heads)
    for cell, seconds in zip(plan.cells, (100.0, 10.0, 2.0, 1.0, 1.0), strict=True):
        folder = store.folder(cell.id)
        folder.mkdir(parents=True)
        env = {"seconds": seconds, "hardware": "a machine"}
        if inference and cell.kind == "features":
            env["inference"] = inference
        write_json(folder / "env.json", env)
        write_json(folder / "metrics.json", {"epochs_run": 3, "train_images": 40} if cell.kind == "train" else {})
    return plan, store, [h.id for h in heads]


def test_cost_counts_shared_cells_once_and_leaves_the_pixel_cache_out(tmp_path):
    plan, store, heads = chain_store(tmp_path)
    found = chains(plan, store)
    one, both = cost_of([found[heads[0]]], 1), cost_of([found[h] for h in heads], 2)
    assert (one.seconds, one.drawn, one.side, one.inference) == (13.0, 120.0, 64, None)
    assert (both.total_seconds, both.seconds, both.drawn) == (14.0, 7.0, 60.0)
    assert one.budget == "up to 5 epochs x 32; head 20 epochs x 64" and one.hardware == ("a machine",)


def test_inference_is_read_where_a_cell_has_it(tmp_path):
    plan, store, heads = chain_store(tmp_path, inference={"images": 200, "seconds": 0.5})
    found = [chains(plan, store)[head] for head in heads]
    assert cost_of(found[:1], 1).inference == pytest.approx(2.5 / 8), "the image as it is, of eight views that it took"
    assert cost_of(found, 1).inference == pytest.approx(2.5), "one average of both, with its views"


def test_a_missing_cell_makes_the_time_unknown(tmp_path):
    plan, store, heads = chain_store(tmp_path)
    (store.folder(plan.cells[2].id) / "metrics.json").unlink()
    assert cost_of([chains(plan, store)[heads[0]]], 1).seconds is None


def test_budgets_in_words():
    schedule = {"steps": 61, "batch_per_domain": 12}
    config = {"weights": "package", "schedule": schedule, "sources": ["a", "b"]}
    assert budget_words(Cell("domain_train", config)) == "61 steps x 2 x 12"
    assert budget_words(Cell("features", {"passes": 2})) == ""
    assert budget_sentence("5 epochs x 32", ["a", "a", "b"]).endswith("Another one: a, b.")
    assert budget_sentence("5 epochs x 32", []) == "All rows had the same budget: 5 epochs x 32."


def test_rows_of_another_budget_are_named(tmp_path, bench):
    plan, store, heads = chain_store(tmp_path)
    known = chains(plan, store)
    usual, other = cost_of([known[plan.cells[1].id]], 1), cost_of([known[heads[0]]], 1)
    columns = [c for c in bench.columns if c.benchmark == "boda-smears"]
    there = [e for e in bench.entries if e.column in columns and e.estimate is not None]
    entries = [dataclasses.replace(e, cost=other if e.method == "BoDA+" else usual) for e in there]
    budget, others = dataclasses.replace(bench, entries=tuple(entries)).differing(columns)
    assert budget == "up to 5 epochs x 32, 64 px" and others == ["boda: BoDA+"]


def test_page_shows_values_and_calls_synthetic_data_synthetic(bench):
    chosen = bench.of()
    html = matrix_html(chosen, "m.csv")
    first = entry(bench, "decoupled", "decoupled", "smears-demo", "test set").estimate
    assert f"{100 * first.mean:.1f} ±" in html and html.count('scope="row"') == len(chosen.rows())
    assert html.count("synthetic, profile demo") == 3
    for columns in chosen.groups().values():
        page = data_html(chosen, columns, "d.csv")
        assert "wbc-synthetic" in page and "seconds of one training" in page


def test_the_frame_holds_every_entry_with_its_interval(bench):
    frame = bench.frame()
    assert len(frame) == len(bench.entries)
    ran = frame[frame["trainings"] > 0]
    assert (ran["low"] <= ran["macro_f1"]).all() and (ran["macro_f1"] <= ran["high"]).all()
    assert frame.loc[frame["trainings"] == 0, "command"].str.startswith("wbcrepro reproduce").all()


def test_figure_has_a_panel_for_each_data_set_and_hollow_markers_for_single_trainings(bench):
    chosen = bench.of()
    figure = benchmark_figure(chosen)
    assert len(figure.axes) == 3
    titles = [axis.get_title(loc="left") for axis in figure.axes]
    assert titles[0] == "smears-demo (synthetic, profile demo)"
    drawn = [line for line in figure.axes[1].lines if len(line.get_xdata())]  # one trial each
    assert drawn and {line.get_markerfacecolor() for line in drawn} == {"white"}
    labels = [t.get_text() for t in figure.axes[0].get_yticklabels()]
    assert "decoupled: ncm" in labels and len(labels) == len(set(labels))
    drawn = [x for line in figure.axes[0].lines for x in line.get_xdata()]
    assert np.isclose(drawn, 100 * entry(bench, "decoupled", "ncm", "smears-demo", "test set").estimate.mean).any()
    plt.close(figure)


def test_the_legend_does_not_squeeze_the_panels(bench):
    with plt.rc_context():
        use_style()
        column = bench.columns[-1]
        more = [dataclasses.replace(column, part=f"chula_lab50{i}") for i in range(4)]
        there = [e for e in bench.entries if e.column == column and e.estimate is not None]
        entries = [dataclasses.replace(e, column=c) for e in there for c in more]
        figure = benchmark_figure(dataclasses.replace(bench, entries=tuple(entries), columns=tuple(more)))
        figure.canvas.draw()
        axis = figure.axes[0]
        assert axis.get_position().width > 0.5
        legend, title = axis.get_legend().get_window_extent(), axis._left_title.get_window_extent()
        assert legend.x1 <= figure.bbox.x1 and legend.y1 <= title.y0
        plt.close(figure)


def test_what_ran_but_is_not_stored_is_no_hole(rescue):
    opened = dataclasses.replace(rescue, reader=without_single_views(rescue), _cache={})
    found = collect([Run(opened)], 20)
    ldam = next(e for e in found.entries if e.method == "ldam")
    assert (ldam.estimate, ldam.command, ldam.state) == (None, "", "ran, not stored here") and len(ldam.cells) == 3
    assert {e.state for e in found.entries if e.method == "swin"} == {"scored"}
    html = matrix_html(found, "m.csv")
    assert "ran, not stored here" in html and "wbc-hole" not in html
    assert set(found.frame()["state"]) == {"scored", "ran, not stored here"}


def without_single_views(run):
    """As committed results: rows beside `swin` keep the average of their views."""
    rows = {m.id: m.row for m in run.members if m.row not in ("", "swin")}

    def read(member, part):
        found = run.reader(member, part)
        if part != "predictions" or member not in rows:
            return found
        averaged = {k: v[:, :1] for k, v in found.items() if k.endswith("_probabilities")}
        return found | averaged | {"views": np.array(["tta"])}

    return read


def test_a_dash_does_not_say_that_a_paper_has_no_such_test_set(rescue, tmp_path):
    """Before it runs, a plan says nothing of the degraded images of another paper's benchmark."""
    plan = fake_plan(folds=[0])
    guest = run_of(tmp_path, plan, fill_store, skip={c.id for c in plan.cells})
    found = collect([Run(rescue), as_guest(guest, rescue)], 20)
    supervised = next(row for row in found.rows() if row[2] == "supervised")
    assert [found.entry(supervised, c) and found.entry(supervised, c).state for c in found.columns] == ["not run", None]
    html = matrix_html(found, "m.csv")
    assert "it has not been run there" in html and "not a test set of" not in html


def as_guest(run, host):
    """A run as if its images were those of another's benchmark."""
    named = {"benchmark": host.benchmark, "data_digest": host.data_digest}
    return dataclasses.replace(run, predictions=dataclasses.replace(run.predictions, **named), own=False)


def test_rows_of_two_pipelines_are_called_so(runs, bench, rescue):
    found = collect([Run(rescue), as_guest(runs[0], rescue)], 20).of()
    html = data_html(found, next(iter(found.groups().values())), "d.csv")
    assert "<code>decoupled</code> reads the whole image, resized to 64 px" in html
    assert "<code>rescue</code> reads the cell alone, segmented in the whole image, resized to 128 px" in html
    assert reading_words("rescue", "mini").startswith("the cell alone, segmented in the middle 240 px of 360")
    alone = bench.of()
    assert not any("pipelines" in data_html(alone, columns, "d.csv") for columns in alone.groups().values())


def test_nothing_at_all_is_an_empty_page(tmp_path):
    plan = fake_plan()
    found = collect([run_of(tmp_path, plan, fill_store, skip={c.id for c in plan.cells})], 20)
    assert {e.estimate for e in found.entries} == {None} and next(iter(found.networks())) == LITE0
    assert "not run" in matrix_html(found.of(), "m.csv")
    plt.close(benchmark_figure(found.of()))


def test_both_pages_run_on_an_empty_store_and_show_holes(tmp_path):
    pytest.importorskip("papermill")
    from book_fixture import ROOT, inputs_of, make_root

    from wbcrepro.book.execute import execute_due, jobs
    from wbcrepro.papers import paper_names

    names = ("claims_ledger", "one_benchmark")
    sources = {name: (ROOT / "notebooks" / f"{name}.py").read_text(encoding="utf-8") for name in names}
    layout = make_root(tmp_path / "root", sources)
    execute_due(jobs(layout, inputs_of(layout)))
    for name in names:
        page = (layout.executed / f"{name}.ipynb").read_text(encoding="utf-8")
        assert "not run" in page and "wbc-hole" in page
        for paper in paper_names():  # a paper whose design has no report yet is said to be left out
            assert f"--paper {paper}" in page or f"`{paper}` is not on this page" in page
        assert (layout.executed / "files" / name).is_dir()
