"""Synthetic smears: the recipe decides every byte, the truth explains the image, the classes are hard but learnable."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import files

import numpy as np
import pytest
import yaml
from scipy.ndimage import binary_erosion
from sklearn.metrics import roc_auc_score

from wbcrepro.data.smears import (
    CLASSES,
    GRANULOCYTES,
    LYMPHOID,
    WBCBENCH_COUNTS,
    SmearSource,
    SmearSpec,
    contact_sheet,
    smear_sheet,
)
from wbcrepro.data.smears import source as source_module
from wbcrepro.data.smears.morphology import FORMS
from wbcrepro.errors import UsageError
from wbcrepro.rescue.cells import Cell
from wbcrepro.rescue.mahalanobis import distance, fit_gaussian
from wbcrepro.rescue.morphology import CODE_COLUMNS, PAPER_COLUMNS, collect, morphology


def drawn(per_class, classes=CLASSES, **options):
    return SmearSource(SmearSpec.balanced(per_class, classes, **{"confined": {}, **options}))


def labels(source):
    return source.manifest.frame["label"].to_numpy()


# --- determinism -----------------------------------------------------------------------------------------------------


def test_same_bytes_in_any_order_thread_and_recipe_length():
    first = drawn(2, size=48)
    images = [first.read(i) for i in range(len(first))]
    again = drawn(2, size=48)
    for i in reversed(range(len(again))):
        assert np.array_equal(again.read(i), images[i])
    with ThreadPoolExecutor(4) as pool:
        assert all(map(np.array_equal, pool.map(again.read, range(len(again))), images))
    longer = drawn(3, size=48)  # a cell does not depend on how many others there are
    row = {name: i for i, name in enumerate(longer.manifest.frame["id"])}
    for i, (name, sha) in enumerate(first.manifest.frame[["id", "sha256"]].itertuples(index=False)):
        assert np.array_equal(longer.read(row[name]), images[i])
        assert longer.manifest.frame["sha256"][row[name]] == sha


def test_another_process_draws_the_same():
    code = (
        "import hashlib; from wbcrepro.data.smears import *; s = SmearSource(SmearSpec.balanced(1, size=40));"
        "print(s.manifest.digest, hashlib.sha256(b''.join(s.read(i).tobytes() for i in range(13))).hexdigest())"
    )
    options = {"capture_output": True, "text": True, "check": True}
    outputs = {
        subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": seed}, **options).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1 and len(outputs.pop().split()[1]) == 64


def test_manifest_needs_no_drawing(monkeypatch):
    monkeypatch.setattr(source_module, "draw_cell", lambda *a, **k: pytest.fail("the manifest drew a cell"))
    source = SmearSource(SmearSpec.wbcbench(0.05, size=64))
    frame = source.manifest.frame
    assert frame["sha256"].is_unique and frame["id"].is_unique and (frame["status"] == "ok").all()
    assert source.manifest.counts()["SNE"] == round(17354 * 0.05) and source.manifest.counts()["PLY"] == 1


@pytest.mark.parametrize(
    "change",
    [{"seed": 1}, {"cell_scale": 1.2}, {"stain_shift": 0.5}, {"patient_variation": 0.0}, {"red_cells": 0.0},
     {"severity": 2}, {"size": 48}, {"field_um": 20.0}],
)  # fmt: skip
def test_every_parameter_changes_image_and_hash(change):
    base, other = drawn(1, ("PC",), size=40, domains=1), drawn(1, ("PC",), **{"size": 40, "domains": 1, **change})
    assert base.manifest.digest != other.manifest.digest and base.spec.digest != other.spec.digest
    a, b = base.read(0), other.read(0)
    assert a.shape != b.shape or not np.array_equal(a, b)


# --- images and truth ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("label", CLASSES)
def test_every_class_is_drawn_with_its_truth(label):
    source = drawn(4, (label,), size=96)
    for row in range(4):
        image, truth = source.read(row), source.truth(row)
        assert image.shape == (96, 96, 3) and image.dtype == np.uint8
        assert truth.nucleus.dtype == bool and not (truth.nucleus & truth.cytoplasm).any()
        assert truth.nucleus.sum() > 200 and truth.cytoplasm.sum() > 30
        assert truth.densities.shape == (2, 96, 96) and truth.densities.min() >= 0
        assert np.allclose(np.linalg.norm(truth.stain_matrix, axis=0), 1) and truth.stain_matrix.shape == (3, 2)
        frame = source.manifest.frame.iloc[row]
        assert (truth.label, truth.patient, truth.domain) == (label, frame["group"], frame["domain"])
        assert image[truth.nucleus].mean() < image[truth.cytoplasm].mean() < 250
        assert np.hypot(*(np.argwhere(truth.nucleus).mean(0) - 48)) < 20  # the cell is in the middle


def test_truth_explains_the_image_by_beer_lambert():
    source = drawn(1, size=128, domains=1)
    errors, recovered = [], []
    for row in range(len(source)):
        truth, image = source.truth(row), source.read(row).astype(float)
        expected = truth.background * np.exp(-np.tensordot(truth.densities, truth.stain_matrix, axes=(0, 1)))
        cell = binary_erosion(truth.nucleus | truth.cytoplasm, iterations=2)
        errors.append(np.abs(image - expected)[cell].mean())
        density = -np.log(np.maximum(image, 1) / truth.background)[cell] @ np.linalg.pinv(truth.stain_matrix).T
        recovered.append(np.corrcoef(density[:, 0], truth.densities[0][cell])[0, 1])
    assert np.mean(errors) < 12 and np.mean(recovered) > 0.9


def test_pristine_and_degraded_show_the_same_cell():
    source = drawn(1, ("EO",), size=64, severity=3, degradation="noise")
    pristine = source.read_pristine(0)
    assert np.array_equal(source.read(0), source.read_degraded(0, "noise", 3))
    assert np.array_equal(source.read_degraded(0, "noise", 0), pristine)
    difference = source.read(0).astype(float) - pristine
    assert difference.std() > 10 and abs(difference.mean()) < 4
    assert np.array_equal(pristine, drawn(1, ("EO",), size=64).read(0))


# --- the population --------------------------------------------------------------------------------------------------


def test_wbcbench_is_a_preset_and_longtail_a_profile():
    assert SmearSpec.wbcbench().counts == WBCBENCH_COUNTS and sum(WBCBENCH_COUNTS.values()) == 38535
    counts = SmearSpec.longtail(250, 100, smallest=8).counts
    assert counts["SNE"] == 250 and min(counts.values()) == counts["PLY"] == 8
    assert SmearSpec.longtail(1000, 50).counts["PLY"] == 20


def test_rare_class_has_three_patients_and_counts_hold():
    frame = SmearSource(SmearSpec(counts={"PLY": 14, "LY": 400}, patients=10)).manifest.frame
    groups = frame.groupby("label")["group"].nunique()
    assert groups["PLY"] == 3 and groups["LY"] > 30
    assert frame["label"].value_counts().to_dict() == {"PLY": 14, "LY": 400}
    assert (frame.groupby("group")["domain"].nunique() == 1).all()
    assert SmearSource(SmearSpec(counts={"PLY": 14}, confined={"PLY": 1})).manifest.frame["group"].nunique() == 1


def test_priors_and_missing_classes():
    priors = {"mgg": {"LY": 0}, "giemsa": {"LY": 3}}
    spec = SmearSpec(counts={"LY": 100, "MO": 40}, domains=("mgg", "giemsa", "rapid"), priors=priors)
    table = SmearSource(spec).manifest.frame.groupby(["domain", "label"]).size()
    assert ("mgg", "LY") not in table and table["giemsa", "LY"] == 75 and table["mgg", "MO"] in (13, 14)


def test_any_number_of_domains():
    spec = SmearSpec.balanced(7, ("LY",), domains=7, size=32)
    source = SmearSource(spec)
    assert source.manifest.frame["domain"].nunique() == 7 and "mgg#2" in spec.domains
    assert len({tuple(source.truth(i).stain_matrix.ravel()) for i in range(7)}) == 7


def test_cell_scale_and_stain_shift_do_what_they_say():
    def area(scale):
        source = drawn(12, ("LY",), size=64, cell_scale=scale)
        return np.mean([(t.nucleus | t.cytoplasm).sum() for t in map(source.truth, range(12))])

    assert area(1.25) / area(1.0) == pytest.approx(1.25**2, rel=0.08)

    def spread(shift):
        source = drawn(4, ("LY",), size=32, stain_shift=shift, patient_variation=0)
        return np.std([source.truth(i).stain_matrix for i in range(4)], axis=0).max()

    assert spread(0) < 1e-6 < 0.02 < spread(0.5) < spread(1) < spread(1.5)


@pytest.mark.parametrize(
    ("options", "words"),
    [({"counts": {"XX": 3}}, "unknown classes"), ({"domains": ("mars",)}, "unknown laboratory"),
     ({"severity": 4}, "severity"), ({"priors": {"nowhere": {}}}, "not among the domains"),
     ({"domains": ()}, "domains"), ({"counts": {"LY": -3}}, "counts"),
     ({"confined": {"PLY": 0}}, "at least one patient"),
     ({"counts": {"LY": 3}, "domains": 1, "priors": {"mgg": {"LY": 0}}}, "prior is 0")],
)  # fmt: skip
def test_impossible_recipes_are_refused(options, words):
    with pytest.raises(UsageError, match=words):
        SmearSpec(**options)


def test_defining_quantities_of_neighbours_do_not_overlap():
    assert FORMS["BNE"].pinch[1] < 2 / 3 < FORMS["SNE"].pinch[0]  # a band is nowhere narrower than a third
    assert FORMS["MMY"].length[1] < FORMS["BNE"].length[0] and FORMS["MY"].length[1] < FORMS["MMY"].length[0]
    assert FORMS["PMY"].nucleoli[0] >= 1 and FORMS["MY"].nucleoli[1] == 0
    assert FORMS["PLY"].nucleoli == (1, 1) and FORMS["LY"].nucleoli[1] == 0
    assert FORMS["BL"].grain[1] < FORMS["PLY"].grain[0]


def test_contact_sheets():
    sheet = smear_sheet(drawn(2, size=32), columns=2, side=40)
    assert sheet.shape == (13 * 42, 44 + 2 * 42, 3) and sheet.dtype == np.uint8 and sheet.std() > 20
    assert contact_sheet({"a": [np.zeros((8, 8, 3), np.uint8)]}, side=10, margin=20).shape == (12, 32, 3)


# --- cues ------------------------------------------------------------------------------------------------------------


def spikiness(truth):
    cell = truth.nucleus | truth.cytoplasm
    edge = np.argwhere(cell & ~binary_erosion(cell)) - np.argwhere(cell).mean(0)
    radius = np.hypot(*edge.T)
    return radius.max() / np.median(radius)


def eccentricity(truth):
    cell = truth.nucleus | truth.cytoplasm
    return np.hypot(*(np.argwhere(cell).mean(0) - np.argwhere(truth.nucleus).mean(0))) / np.sqrt(cell.sum() / np.pi)


@pytest.mark.parametrize("on", [True, False])
@pytest.mark.parametrize(
    ("rare", "common", "measure"),
    [("PLY", "LY", spikiness), ("PC", "LY", eccentricity), ("PC", "VLY", eccentricity)],
)
def test_cues_overlap_when_on_and_say_nothing_when_off(on, rare, common, measure):
    source = drawn(160, (rare, common), size=112, spiky_ply=on, eccentric_pc=on)
    values = [measure(source.truth(i)) for i in range(len(source))]
    auc = roc_auc_score(labels(source) == rare, values)
    assert 0.75 <= auc <= 0.90 if on else 0.40 <= auc <= 0.60  # off: within 3 standard errors of chance


def test_projections_twice_as_high_are_a_stronger_cue_and_stay_inside_the_drawing():
    source = drawn(160, ("PLY", "LY"), size=112, spiky_ply=2)
    truths = [source.truth(i) for i in range(len(source))]
    assert 0.90 <= roc_auc_score(labels(source) == "PLY", [spikiness(truth) for truth in truths]) <= 0.98
    assert max(spikiness(truth) for truth in truths) > 1.45  # they are not cut at the edge of a smaller window


@pytest.fixture(scope="module", params=["rescue-smears", "rescue-smears-control"])
def rescued(request):
    """Cells of both benchmarks of `rescue` as its rules measure them with true masks: name, labels, columns."""
    options = yaml.safe_load((files("wbcrepro") / "data/benchmarks.yml").read_text())["benchmarks"][request.param]
    source = SmearSource(SmearSpec({"PC": 160, "LY": 100, "VLY": 50, "PLY": 60}, confined={}, **options["smears"]))
    truths = [source.truth(i) for i in range(len(source))]
    cells = [Cell("ok", t.nucleus | t.cytoplasm, t.nucleus, (0.0, 0.0)) for t in truths]
    measured = collect(morphology(source.read(i), cell) for i, cell in enumerate(cells))
    chromatin = np.array([(d := t.densities[0][binary_erosion(t.nucleus, iterations=3)]).std() / d.mean()
                          for t in truths])  # fmt: skip
    return request.param, labels(source), measured, chromatin


def auc_of(values, label, rare, common):
    rows = np.isin(label, (rare, *common))
    return roc_auc_score(label[rows] == rare, values[rows])


@pytest.mark.parametrize("columns", [PAPER_COLUMNS, CODE_COLUMNS])
def test_the_distance_of_the_rescue_rule_finds_plasma_cells_and_in_the_control_nothing(rescued, columns):
    name, label, measured, _ = rescued
    features, fitted = measured.select(columns), np.flatnonzero(label == "PC")[::2]
    distances = distance(fit_gaussian(features[fitted], columns), features)
    auc = auc_of(np.delete(-distances, fitted), np.delete(label, fitted), "PC", ("LY", "VLY"))
    assert 0.35 <= auc <= 0.65 if name.endswith("control") else auc > 0.85


def test_spikiness_finds_prolymphocytes_and_in_the_control_nothing(rescued):
    name, label, measured, _ = rescued
    auc = auc_of(measured.select(["spikiness"])[:, 0], label, "PLY", ("LY",))
    assert 0.35 <= auc <= 0.65 if name.endswith("control") else auc > 0.85


def test_plasma_cells_of_the_control_are_a_class_of_their_own_by_their_chromatin(rescued):
    _, label, _, chromatin = rescued
    assert auc_of(chromatin, label, "PC", ("LY", "VLY")) > 0.85


def test_only_the_two_rare_classes_differ_in_the_control():
    off = {"spiky_ply": False, "eccentric_pc": False, "lymphoid_pc": True}
    usual, control = drawn(1, size=48), drawn(1, size=48, **off)
    changed = [not np.array_equal(usual.read(i), control.read(i)) for i in range(len(usual))]
    assert set(labels(usual)[changed]) == {"PC", "PLY"}
    assert drawn(1, ("PC",), lymphoid_pc=True).manifest.digest != drawn(1, ("PC",)).manifest.digest


# --- difficulty ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("domains", [1, 4])
@pytest.mark.parametrize("group", [GRANULOCYTES, LYMPHOID])
def test_mean_colour_hardly_tells_the_class(group, domains):
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import cross_val_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    source = drawn(120, group, size=40, domains=domains)
    colours = np.array([source.read(i).reshape(-1, 3).mean(0) for i in range(len(source))])
    model = make_pipeline(StandardScaler(), LogisticRegression(C=10, max_iter=2000))
    accuracy = cross_val_score(model, colours, labels(source), cv=5, scoring="balanced_accuracy").mean()
    assert accuracy <= 1.5 / 5


def small_cnn(outputs):
    from torch import nn

    layers, width = [], 3
    for i, wide in enumerate((16, 32, 64, 96)):
        layers += [nn.Conv2d(width, wide, 3, 2 if i == 0 else 1, 1, bias=False), nn.BatchNorm2d(wide), nn.ReLU()]
        layers += [nn.MaxPool2d(2)] if i else []
        width = wide
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, outputs))


def as_tensor(images):
    import torch

    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 127.5 - 1


def fit(images, targets, outputs, *, epochs, colour=0.0, seed=0):
    """Train a small CNN from scratch with flips and, for ``colour`` > 0, random gain and offset of each channel."""
    import torch
    from torch.nn.functional import cross_entropy

    torch.manual_seed(seed)
    model, targets, batch = small_cnn(outputs), torch.as_tensor(targets), 64
    optimiser = torch.optim.AdamW(model.parameters(), weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 4e-3, total_steps=epochs * (len(targets) // batch))
    for _ in range(epochs):
        order = torch.randperm(len(targets))
        for start in range(0, len(targets) - batch + 1, batch):
            chosen = order[start : start + batch]
            x = images[chosen]
            for flip in (lambda t: t.flip(3), lambda t: t.flip(2), lambda t: t.transpose(2, 3)):
                x = flip(x) if torch.rand(()) < 0.5 else x
            if colour:
                x = x * (1 + colour * torch.randn(batch, 3, 1, 1)) + colour * torch.randn(batch, 3, 1, 1)
            optimiser.zero_grad()
            cross_entropy(model(x), targets[chosen], label_smoothing=0.05).backward()
            optimiser.step()
            schedule.step()
    return model.eval()


def recall(model, images, targets):
    """Macro-recall (balanced accuracy)."""
    import torch

    with torch.no_grad():
        predicted = torch.cat([model(part) for part in images.split(200)]).argmax(1).numpy()
    return np.mean([(predicted[targets == c] == c).mean() for c in np.unique(targets)])


@pytest.mark.parametrize("group", [GRANULOCYTES, LYMPHOID])
def test_a_small_cnn_learns_the_group_but_not_perfectly(group):
    parts = []
    for seed, number in ((1, 150), (2, 50)):  # other patients in the second
        source = drawn(number, group, size=64, seed=seed)
        parts.append(as_tensor([source.read(i) for i in range(len(source))]))
        parts.append(np.array([group.index(c) for c in labels(source)]))
    model = fit(parts[0], parts[1], 5, epochs=8)
    assert 0.5 <= recall(model, parts[2], parts[3]) <= 0.9


REAL = {
    "neutrophil": ("SNE", "BNE"), "eosinophil": ("EO",), "basophil": ("BA",), "lymphocyte": ("LY",),
    "monocyte": ("MO",),
}  # fmt: skip
"""The folders of Acevedo-20 and the classes that belong to each."""


def test_trained_on_smears_alone_it_reads_real_cells(real_data):
    from PIL import Image

    root = real_data / "acevedo20" / "PBC_dataset_normal_DIB"
    if not root.is_dir():
        pytest.skip("acevedo20 is not among the real images")
    images, targets = [], []
    for target, folder in enumerate(REAL):
        files = sorted((root / folder).glob("*.jpg"))
        files = [f for f in files if f.name.startswith(("SNE", "BNE"))] if folder == "neutrophil" else files
        for file in files[:: max(len(files) // 60, 1)][:60]:
            image = Image.open(file).convert("RGB")
            margin = round(image.width * 0.12)  # its field is about 34 µm wide, ours 26
            image = image.crop((margin, margin, image.width - margin, image.height - margin))
            images.append(np.asarray(image.resize((64, 64), Image.BOX)))
            targets.append(target)
    fine = {c: target for target, classes in enumerate(REAL.values()) for c in classes}
    source = drawn(120, tuple(fine), size=64, seed=1)
    smears = as_tensor([source.read(i) for i in range(len(source))])
    model = fit(smears, [fine[c] for c in labels(source)], 5, epochs=8, colour=0.08)
    assert recall(model, as_tensor(images), np.array(targets)) >= 0.4
