"""WBCBench's Hugging Face release in miniature: images that were published degraded, and their pristine twins."""

import csv
from dataclasses import replace

import numpy as np
import pytest
import torch
from fake_rescue_store import fake_rescue_plan, fill_rescue_store
from PIL import Image

from wbcrepro.data.smears import SmearSource, SmearSpec
from wbcrepro.errors import DataMissing
from wbcrepro.experiments import plan as plan_module
from wbcrepro.experiments.run import run_cell
from wbcrepro.experiments.store import Store
from wbcrepro.papers import load_paper, profile_of
from wbcrepro.report import rescue_frames
from wbcrepro.report.rescue_evaluate import RescueEvaluator
from wbcrepro.report.rescue_layout import waterfall_columns
from wbcrepro.report.rescue_predictions import from_rescue_plan
from wbcrepro.report.rescue_validation import fall_frame

COLUMNS = ("file_name", "image_id", "label", "wbcbench_split", "severity", "original_image_id", "patient_hash")
TWIN, OURS = "pristine", "degraded"


def export(folder, *, splits=("phase1_train", "phase2_train")):
    """Eight smears of each class of eight patients, those of phase 2 published degraded too; -> images (id: array)."""
    source, rows, images = SmearSource(SmearSpec.balanced(8, size=48, domains=1, confined={})), {}, {}
    for n, label in enumerate(source.manifest.frame["label"]):
        split = splits[n % len(splits)]
        for kind in (TWIN, OURS) if split == "phase2_train" else (TWIN,):
            image = source.read(n) if kind == TWIN else source.read_degraded(n, "noise", 2)
            where = folder / "wbcbench2026" / kind / split
            where.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(where / f"{n}.png")
            images[f"{kind}/{split}/{n}"] = image
            row = (f"{n}.png", n, label, split, 2 if kind == OURS else 0, n if kind == OURS else "", f"{label}{n % 8}")
            rows.setdefault(where, []).append(row)
    for where, lines in rows.items():
        with (where / "metadata.csv").open("w", newline="") as file:
            csv.writer(file).writerows([COLUMNS, *lines])
    return images


@pytest.fixture(scope="module")
def planned(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wbcbench")
    images, store = export(folder), Store(folder / "store")
    small = {"restorations": ["median_3x3", "true_pairs"], "rows": ["swin"], "presets": ["paper"]}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan_module, "profile_of", lambda *names: profile_of(*names) | small)
        plan = plan_module.make_plan(
            "rescue", "tiny", store=store, data=folder, dataset="wbcbench-patients", progress=False
        )
    return images, store, plan


def test_the_degraded_test_images_are_those_that_were_published_so(planned):
    images, _, plan = planned
    benchmark, table = plan.benchmark, plan.benchmark.table
    test, hurt = (table[table["set"] == name] for name in ("test", "test_degraded"))
    assert set(test["domain"]) == {"pristine"} and set(hurt["domain"]) == {"degraded"} and len(hurt) > 5
    assert set(hurt["id"].str.replace("degraded", "pristine")) < set(test["id"]), "their twins are pristine test images"
    assert not set(test["group"]) & set(table["group"][table["set"] == "train"])
    train = table[table["set"] == "train"]
    assert not train["id"].str.startswith("pristine/phase2").any(), "training images are those that Kaggle has"
    for item in hurt["item"]:  # as they are in the files: nothing is degraded twice
        assert np.array_equal(benchmark.read(item), images[table["id"][item]]) and benchmark.severity(item) == 0
        assert benchmark.source.manifest.frame["id"][benchmark.twins[item]] in set(test["id"])


def test_a_release_without_degraded_test_images_is_refused(tmp_path):
    export(tmp_path, splits=("phase1_train",))
    with pytest.raises(DataMissing, match="expected pristine and degraded test images, got [0-9]+ and 0"):
        plan_module.make_plan(
            "rescue", "tiny", store=Store(tmp_path / "s"), data=tmp_path, dataset="wbcbench-patients", progress=False
        )


@pytest.mark.parametrize("method", ["median_3x3", "true_pairs"])
def test_published_pairs_tell_how_near_restored_images_are_to_their_twins(planned, method):
    images, store, plan = planned
    restored = next(cell for cell in plan.find(method=method) if cell.kind == "restored")
    wanted, queue = [], [restored]
    while queue:
        cell = queue.pop()
        wanted.append(cell)
        queue += [plan.cell(parent) for parent in cell.parents]
    for cell in sorted(set(c.id for c in wanted), key=[c.id for c in plan.cells].index):
        found = run_cell(plan.cell(cell), plan, store, device=torch.device("cpu"), progress=False)
    scores = found.metrics["restoration"]
    hurt = plan.benchmark.table.query("set == 'test_degraded'")["id"]
    away = [images[i].astype(float) - images[i.replace("degraded", "pristine")] for i in hurt]
    whole = np.mean([20 * np.log10(255 / np.sqrt(np.square(a).mean())) for a in away])
    assert 0 < scores["images"] <= len(hurt) and np.isfinite(scores["psnr"]) and 0 < scores["ssim"] <= 1
    assert scores["cell_psnr_before"] == pytest.approx(whole, abs=2), "these are other images than their twins"


def test_a_benchmark_with_one_test_set_fills_every_figure_and_is_not_called_pristine(tmp_path):
    plan = fake_rescue_plan()
    benchmarks = [replace(b, table=b.table[b.table["set"] != "test_degraded"]) for b in (plan.benchmark, *plan.also)]
    plan = replace(plan, benchmark=benchmarks[0], also=tuple(benchmarks[1:]))
    store = fill_rescue_store(tmp_path, plan)
    predictions = from_rescue_plan(plan, store)
    evaluator = RescueEvaluator(predictions, n=20)
    assert predictions.sets() == ("test",) and predictions.hardest() == "test"
    assert len(rescue_frames.overlap_frame(evaluator)) and len(rescue_frames.sensitivity_frame(evaluator))
    assert rescue_frames.target_confusions(evaluator)[0] and len(rescue_frames.gallery_frame(predictions))
    columns = waterfall_columns(predictions, load_paper("rescue")["tables"]["table_2"], None, "paper")
    assert "pristine" not in " ".join(column.words for column in columns)
    assert "test set, single fold" in list(fall_frame(evaluator)["station"])


@pytest.mark.parametrize("published", [False, True])
def test_the_fall_tells_degraded_copies_from_images_that_were_published_degraded(tmp_path, published):
    plan = fake_rescue_plan()
    table = plan.benchmark.table
    if published:
        ids = table["id"].where(table["set"] != "test_degraded", table["id"] + "-published")
        plan = replace(plan, benchmark=replace(plan.benchmark, table=table.assign(id=ids)))
    predictions = from_rescue_plan(plan, fill_rescue_store(tmp_path, plan))
    frame = fall_frame(RescueEvaluator(predictions, n=20)).set_index("station")
    words = "those of the images that were published degraded" if published else "the same images, degraded"
    assert frame["what changed"]["degraded test set, single fold"] == words
