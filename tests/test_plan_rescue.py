"""Plans of the paper `rescue`: which cells, what they share, and what may not see what."""

import numpy as np
import pytest
from PIL import Image

from wbcrepro.cli import main
from wbcrepro.data.smears import SmearSource, SmearSpec
from wbcrepro.errors import UsageError
from wbcrepro.experiments.kinds_rescue import fit_settings
from wbcrepro.experiments.plan import make_plan
from wbcrepro.experiments.run import Context
from wbcrepro.experiments.store import Store
from wbcrepro.papers import load_paper


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    return make_plan("rescue", "tiny", store=Store(tmp_path_factory.mktemp("s")), progress=False)


def of(plan, kind, **labels):
    return [cell for cell in plan.find(**labels) if cell.kind == kind]


def test_parents_come_first_and_every_cell_names_a_benchmark_of_the_plan(plan):
    position = {cell.id: i for i, cell in enumerate(plan.cells)}
    names = {plan.benchmark.name, *(b.name for b in plan.also)}
    for cell in plan.cells:
        assert all(position[parent] < position[cell.id] for parent in cell.parents)
        assert cell.config["benchmark"] in names and plan.benchmark_of(cell).name == cell.config["benchmark"]


def test_the_control_is_another_benchmark_with_its_own_cells_from_pixels_to_rescue(plan):
    control = f"{plan.benchmark.name}-control"
    assert [b.name for b in plan.also] == [control]
    ours = {cell.id for cell in plan.cells if cell.config["benchmark"] == control}
    assert all(parent in ours for cell in plan.cells if cell.id in ours for parent in cell.parents)
    assert {cell.labels["rules"] for cell in of(plan, "rescue", benchmark=control)} == {"paper", "fitted"}
    drawn = [part.spec for b in (plan.benchmark, *plan.also) for part in b.source.parts.values()]
    cues = {(s.spiky_ply, s.eccentric_pc, s.lymphoid_pc) for s in drawn}
    assert cues == {(True, True, False), (False, False, True)}


def test_a_rescue_reads_every_fold_of_both_branches_of_its_own_preset(plan):
    for cell in of(plan, "rescue"):
        parents = [plan.cell(parent) for parent in cell.parents]
        swin = [p for p in parents if p.kind == "tta"]
        semantic = [p for p in parents if p.kind == "semantic"]
        assert sorted(p.config["fold"] for p in swin) == [0, 1]
        assert {p.config["folds"] for p in swin} == {"group"} and {p.labels["row"] for p in swin} == {"swin"}
        assert sorted(p.config["fold"] for p in semantic) == [-1, 0, 1]
        assert {p.config["head"] for p in semantic} == {cell.labels["preset"]}


def test_rules_of_the_released_code_ask_its_own_features_and_the_others_those_of_the_masks(plan):
    for cell in of(plan, "rescue"):
        measured = {p.rpartition("-")[0] for p in cell.parents} - {"tta", "semantic"}
        assert measured == {"released_morphology" if cell.labels["rules"] == "code" else "morphology"}


def test_presets_share_their_networks_where_the_profile_says_so(plan):
    papers, codes = ({p for p in of(plan, "rescue", preset=name, benchmark=plan.benchmark.name)[0].parents
                      if p.startswith("tta")} for name in ("paper", "code"))  # fmt: skip
    assert papers == codes
    noises = {cell.labels["noise"] for cell in of(plan, "restorer", benchmark=plan.benchmark.name)}
    assert noises == {"salt_and_pepper", "released"}


def test_the_text_and_the_code_have_their_own_backbone_in_the_papers_profile():
    profile = load_paper("rescue")["profiles"]["paper"]
    assert profile["backbones"] == {"paper": "swin_t", "code": "swin_s"} and "restored_by" not in profile


def test_folds_by_image_ignore_patients_and_cover_the_training_images(plan):
    benchmark = plan.benchmark
    table, folds = benchmark.table, benchmark.image_folds
    train = (table["set"] == "train").to_numpy()
    assert set(folds[train]) == {0, 1} and set(folds[~train]) == {-1}
    both = table[train].groupby("group")["item"].agg(lambda items: len(set(folds[items])))
    assert (both > 1).any(), "every patient is on one side: these are not folds by image"
    by_patient = table[train].groupby("group")["fold"].nunique()
    assert (by_patient == 1).all()
    assert np.array_equal(folds, benchmark.image_folds)


def test_rows_of_one_fold_start_from_the_same_weights(plan):
    seeds = {}
    for cell in of(plan, "train", benchmark=plan.benchmark.name):
        seeds.setdefault((cell.config["folds"], cell.config["fold"]), set()).add(cell.config["seed"])
    assert len(seeds) == 4 and all(len(found) == 1 for found in seeds.values())
    ldam = of(plan, "train", row="ldam")[0].config
    assert ldam["head"] == "cosine" and ldam["optimisation"]["loss_options"]["drw_start"] == 1


def test_one_split_is_not_enough_to_fit_thresholds_out_of_fold(tmp_path):
    from wbcrepro.experiments import plan as planning

    paper = load_paper("rescue")
    broken = paper | {"profiles": paper["profiles"] | {"tiny": paper["profiles"]["tiny"] | {"folds": [0]}}}
    original, planning.load_paper = planning.load_paper, lambda name: broken
    try:
        with pytest.raises(UsageError, match="out of fold"):
            make_plan("rescue", "tiny", store=Store(tmp_path), progress=False)
    finally:
        planning.load_paper = original


@pytest.mark.parametrize("profile", ["tiny", "demo", "mini", "paper"])
def test_every_profile_names_what_exists(profile):
    from wbcrepro.rescue.restoration_baselines import BASELINES

    paper = load_paper("rescue")
    settings = paper["profiles"][profile]
    assert set(settings["rows"]) <= {*paper["networks"], "decoupling"}
    assert set(settings["restorations"]) <= {*BASELINES, "true_pairs"} and settings["targets"] in paper["targets"]
    assert set(settings["presets"]) == set(paper["presets"]) == set(settings["semantic"])
    for row in paper["tables"]["table_2"]["rows"]:
        assert row["row"] in settings["rows"]
    methods = {row["method"] for row in paper["tables"]["table_restoration"]["rows"]}
    assert methods <= {*BASELINES, "pix2pix", "true_pairs"}


def smears_of(folder, *classes):
    """A dataset in folders with these classes alone, as ``--dataset`` names it."""
    source = SmearSource(SmearSpec.balanced(10, classes, size=24, confined={}))
    for row, label in enumerate(source.manifest.frame["label"]):
        (folder / label).mkdir(parents=True, exist_ok=True)
        Image.fromarray(source.read(row)).save(folder / label / f"{row}.png")
    return f"folder:{folder}"


def test_rules_for_classes_that_the_data_lack_are_left_out_and_said_so(tmp_path, capsys):
    dataset = smears_of(tmp_path / "cells", "LY", "MO", "PC")
    arguments = ("--paper", "rescue", "--profile", "demo", "--dataset", dataset, "--store", str(tmp_path / "s"))
    assert main(["plan", *arguments]) == 0
    words = "no rule for PLY (PLY absent); PC only against LY (VLY absent)"
    assert f"without={words}" in capsys.readouterr().out
    plan = make_plan("rescue", "demo", store=Store(tmp_path / "s"), dataset=dataset, progress=False)
    for cell in of(plan, "rescue"):
        assert cell.config["targets"] == [{"name": "PC", "against": ["LY"], "cue": "mahalanobis"}]
        assert cell.labels["without"] == words
    for cell in of(plan, "semantic"):  # its head has no factor for a class that it does not have
        assert cell.config["settings"]["resample"] == {"PC": 5, "LY": 0.5}


def test_data_with_nothing_to_rescue_are_refused_before_anything_is_trained(tmp_path):
    dataset = smears_of(tmp_path / "cells", "LY", "MO", "EO")
    with pytest.raises(UsageError, match=r"nothing to rescue: no rule for PLY \(PLY absent\); no rule for PC"):
        make_plan("rescue", "tiny", store=Store(tmp_path / "s"), dataset=dataset, progress=False)


def test_rules_are_whole_where_every_class_is_there(plan):
    targets = load_paper("rescue")["targets"]["wbcbench"]
    assert all(c.config["targets"] == targets and "without" not in c.labels for c in of(plan, "rescue"))


def test_batches_are_split_where_that_is_asked_for(plan, tmp_path):
    split = make_plan("rescue", "tiny", store=Store(tmp_path), accumulate=4, progress=False)
    assert {c.config["optimisation"]["accumulate"] for c in of(split, "train")} == {4}
    assert not {c.id for c in of(split, "train")} & {c.id for c in of(plan, "train")}
    assert {c.id for c in of(split, "restorer")} == {c.id for c in of(plan, "restorer")}
    assert "--accumulate 4" in split.options


def test_fitted_rules_choose_tau_for_the_label_at_the_end(plan):
    judges = {cell.labels["rules"]: cell.config.get("judge", "phase2") for cell in of(plan, "rescue")}
    assert judges == {"paper": "phase2", "fitted": "final", "code": "phase2"}
    fitted = of(plan, "rescue", rules="fitted")[0]
    assert fit_settings(Context(fitted, None, plan, None)).judge == "final"
