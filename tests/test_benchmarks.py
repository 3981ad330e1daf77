"""Benchmarks: fixed, disjoint, complete; on fake sources always, on smears and real images where they are there."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from wbcrepro.data import benchmarks
from wbcrepro.data.benchmarks import Benchmark, build, join_sources, load_benchmark
from wbcrepro.data.manifest import COLUMNS, Manifest
from wbcrepro.errors import DataMissing, UsageError

DEFAULTS = benchmarks._document()["defaults"]


@dataclasses.dataclass(frozen=True)
class FakeSource:
    """A fixed texture whose first pixel is the row number (modulo 256)."""

    manifest: Manifest

    def read(self, row: int) -> np.ndarray:
        image = np.random.default_rng(0).integers(60, 200, (24, 24, 3), dtype=np.uint8)
        image[0, 0] = row % 256
        return image


def fake(rows: list[dict], classes: tuple[str, ...], name: str = "fake") -> FakeSource:
    base = dict.fromkeys(COLUMNS, "") | {"width": 24, "height": 24, "mode": "RGB", "status": "ok", "domain": "lab"}
    records = [base | {"id": f"{n:06d}", "sha256": f"{name}{n}"} | row for n, row in enumerate(rows)]
    return FakeSource(Manifest(name, classes, pd.DataFrame(records)))


def settings_of(name: str) -> dict:
    return DEFAULTS | benchmarks._document()["benchmarks"][name]


def assert_sound(benchmark: Benchmark, by_group: bool) -> None:
    """What holds for every benchmark: coded labels, folds, no content (and no group) on two sides."""
    table, frame = benchmark.table, benchmark.source.manifest.frame
    assert table["item"].tolist() == list(range(len(table)))
    assert (frame["id"].to_numpy()[table["row"]] == table["id"]).all()
    assert (frame["label"].to_numpy()[table["row"]] == np.array(benchmark.classes)[table["label"]]).all()
    assert set(table["set"]) <= {"train", "test", "test_degraded"}
    only_trains = (table["set"] == "train") & (table["fold"] == -1) & (benchmark.name == "wbcbench-code")
    assert ((table["fold"] >= 0) == (table["set"] == "train") & ~only_trains).all()
    pristine = table[table["set"] != "test_degraded"]
    assert pristine["row"].is_unique
    content = frame["sha256"].to_numpy()[pristine["row"]]
    side = np.where(pristine["set"] == "test", -1, pristine["fold"])
    keys = {"sha256": content} | ({"group": pristine["group"].to_numpy()} if by_group else {})
    for name, key in keys.items():
        sides = pd.DataFrame({"key": key, "side": side})[key != ""].groupby("key")["side"].nunique()
        assert (sides == 1).all(), f"{name} on two sides"
    copies = table[table["set"] == "test_degraded"]
    if len(copies) and benchmark.degraded != benchmarks.PUBLISHED:
        assert copies["id"].tolist() == table["id"][table["set"] == "test"].tolist()


def wbcbench(patients: bool) -> FakeSource:
    """500 images in the style of either release, at a twentieth of the size."""
    classes = tuple(sorted(settings_of("wbcbench")["classes"]))
    rng, rows = np.random.default_rng(0), []
    for n in range(500):
        split = ("phase1_train", "phase2_train", "phase2_eval", "phase2_test")[n % 4]
        label = classes[n % 13] if n < 260 else str(rng.choice(["SNE", "LY", "MO"]))
        domain = "pristine" if split == "phase1_train" else "degraded"
        hidden = split == "phase2_test" and not patients  # Kaggle keeps these labels; the other release names them
        row = {"label": "" if hidden else label, "split": split, "domain": domain}
        row |= {"group": f"{split}-{n % 28}" if patients else "", "id": f"{domain}/{n:04d}", "sha256": f"s{n}"}
        row |= {"original_id": f"{n:04d}"} if patients else {}
        rows.append(row)
        if patients and domain == "degraded":  # the second release of the same cell
            rows.append(row | {"domain": "pristine", "id": f"pristine/{n:04d}", "sha256": f"p{n}"})
    return fake(rows, classes, "wbcbench2026")


@pytest.mark.parametrize("patients", [False, True])
@pytest.mark.parametrize("name", ["wbcbench", "wbcbench-code", "wbcbench-official", "wbcbench-patients"])
def test_wbcbench_protocols(name, patients):
    source = wbcbench(patients)
    if name == "wbcbench-patients" and not patients:
        with pytest.raises(DataMissing, match="name no patients"):
            build(name, source, settings_of(name))
        return
    benchmark = build(name, source, settings_of(name))
    assert_sound(benchmark, by_group=patients and name in ("wbcbench-official", "wbcbench-patients"))
    table, frame = benchmark.table, source.manifest.frame
    if name == "wbcbench-patients":  # its pristine test images are, beside those of phase 1, the twins of phase 2
        hurt = table[table["set"] == "test_degraded"]
        twins = table["id"].isin(hurt["id"].str.replace("degraded", "pristine"))
        assert twins.sum() == len(hurt) > 20 and set(hurt["domain"]) == {"degraded"}
        assert set(table["set"][twins]) == {"test"}
        table = table[~twins]
    used = frame.iloc[table["row"]]
    assert set(used["split"]) == {"phase1_train", "phase2_train", "phase2_eval"}
    assert not ((used["domain"] == "pristine") & used["split"].str.startswith("phase2")).any()
    once = frame["domain"].ne("pristine") | frame["split"].eq("phase1_train")
    assert len(used) == (once & frame["split"].ne("phase2_test")).sum()
    assert any("no image" in note.lower() and "group" in note for note in benchmark.notes) != patients
    if name in ("wbcbench", "wbcbench-patients"):
        assert set(table["fold"]) == {-1, 0, 1, 2, 3, 4}
        assert (table["set"] != "train").mean() == pytest.approx(0.2, abs=0.02 if name == "wbcbench" else 0.1)
    if name == "wbcbench-code":
        assert set(table["set"]) == {"train"}
        assert set(table["fold"]) == {-1, 0}, "the 80 % are no fold: no plan may validate on them"
        assert (table["fold"] == 0).mean() == pytest.approx(0.2, abs=0.02)
    if name == "wbcbench-official":
        test = table["set"] == "test"
        assert set(used["split"][test.to_numpy()]) == {"phase2_eval"}
        assert "phase2_eval" not in set(used["split"][~test.to_numpy()])


def acevedo_like(extra: int = 0) -> FakeSource:
    classes = tuple(sorted(settings_of("acevedo20-lt")["classes"]))
    rows = []
    for position, label in enumerate(settings_of("acevedo20-lt")["classes"]):
        for n in range(370 - 30 * position):
            rows.append({"label": label, "id": f"{label}/{n:04d}", "sha256": f"{label}{n}"})
    rows.append({"label": "SNE", "id": "SNE/copy", "sha256": "SNE5"})
    rows.append({"label": "MY", "id": "MY/conflict", "sha256": "PMY3"})
    rows += [{"label": "", "id": f"ERB/{n}", "sha256": f"erb{n}"} for n in range(extra)]
    return fake(rows, classes, "acevedo20")


def test_longtail_benchmark_has_its_profile_and_a_balanced_disjoint_test_set():
    source = acevedo_like()
    benchmark = build("acevedo20-lt", source, settings_of("acevedo20-lt"))
    assert_sound(benchmark, by_group=True)
    assert benchmark.counts("train").tolist() == [300, 184, 113, 69, 42, 26, 16, 10, 6]
    assert benchmark.counts("test").tolist() == benchmark.counts("test_degraded").tolist() == [60] * 9
    assert "MY/conflict" not in set(benchmark.table["id"]) and "PMY/0003" not in set(benchmark.table["id"])
    folds = benchmark.table[benchmark.table["set"] == "train"]
    per_fold = pd.crosstab(folds["label"], folds["fold"]).to_numpy()
    assert (np.ptp(per_fold, axis=1) <= 1).all() and per_fold.min() >= 1
    with pytest.raises(DataMissing, match="left for the test set"):
        build("x", source, settings_of("acevedo20-lt") | {"test_per_class": 140})


def test_digest_follows_content_not_row_order():
    source = acevedo_like()
    frame = source.manifest.frame.sample(frac=1, random_state=0)
    shuffled = FakeSource(Manifest("other name", source.manifest.classes, frame))
    settings = settings_of("acevedo20-lt")
    one = build("one", source, settings)
    assert build("two", shuffled, settings).digest == one.digest
    for change in ({"seed": 1}, {"ratio": 40}, {"degraded": settings["degraded"] | {"severities": [1]}}):
        assert build("one", source, settings | change).digest != one.digest, change
    assert build("one", acevedo_like(extra=1), settings).digest != one.digest


def test_degraded_copies_are_reproducible_and_differ_from_the_pristine():
    source = acevedo_like()
    benchmark = build("acevedo20-lt", source, settings_of("acevedo20-lt"))
    n = len(benchmark.table)
    severities = [benchmark.severity(item) for item in range(n)]
    assert set(severities[-540:]) == {1, 2, 3} and set(severities[:-540]) == {0}
    for item in range(n - 540, n, 60):
        clean, worse = benchmark.read(item - 540), benchmark.read(item)
        assert worse.dtype == np.uint8 and worse.shape == clean.shape and (worse != clean).any()
        assert (clean[0, 0] == benchmark.table["row"][item] % 256).all()
        assert (worse == benchmark.read(item)).all()
    assert (benchmark.read(n - 1) != benchmark.read(n - 2)).any()


def test_joined_sources_keep_images_rows_and_people_apart():
    classes = ("a", "b")
    rows = [{"label": "ab"[n % 2], "group": f"p{n % 3}", "id": f"{n}"} for n in range(12)]
    parts = {"train": fake(rows, classes, "train"), "test": fake(rows[:5], classes, "test")}
    joined = join_sources("both", parts)
    frame = joined.manifest.frame
    assert len(frame) == 17 and frame["id"].is_unique
    assert not set(frame["group"][frame["split"] == "train"]) & set(frame["group"][frame["split"] == "test"])
    for row in range(17):
        side, name = frame["id"][row].split("/")
        inner = parts[side].manifest.frame
        assert (joined.read(row)[0, 0] == inner.index[inner["id"] == name][0]).all()


def test_any_folder_is_a_benchmark(tmp_path):
    for label, count in (("rare", 10), ("common", 30)):
        (tmp_path / "data" / label).mkdir(parents=True)
        for n in range(count):
            pixels = np.random.default_rng([n, count]).integers(0, 255, (20, 20, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "data" / label / f"{n}.png")
    benchmark = load_benchmark(f"folder:{tmp_path / 'data'}", data_root=None, cache=tmp_path / "cache", progress=False)
    assert_sound(benchmark, by_group=True)
    assert benchmark.classes == ("common", "rare") and not benchmark.synthetic
    assert benchmark.counts("test").tolist() == [6, 2]
    assert str(tmp_path) not in benchmark.digest + benchmark.name + benchmark.caption
    assert benchmark.read(0).shape == (20, 20, 3)


def test_unknown_names_and_missing_data_say_what_to_do(tmp_path):
    with pytest.raises(UsageError, match="acevedo20-lt"):
        load_benchmark("acevedo21", data_root=None, cache=tmp_path)
    with pytest.raises(DataMissing, match="acevedo20"):
        load_benchmark("acevedo20-lt", data_root=tmp_path, cache=tmp_path / "cache", progress=False)


def test_a_class_of_one_patient_is_refused_where_it_would_vanish():
    rows = [{"label": "a", "group": f"p{n % 9}"} for n in range(90)] + [{"label": "b", "group": "only"}] * 5
    settings = settings_of("wbcbench") | {"classes": ["a", "b"], "by_group": True, "fraction": 0.9}
    with pytest.raises(DataMissing, match="no training image of b"):
        build("x", fake(rows, ("a", "b")), settings)


@pytest.mark.parametrize("name", ["smears-tiny", "smears-demo"])
def test_smears_benchmarks(name, tmp_path):
    benchmark = load_benchmark(name, data_root=None, cache=tmp_path, progress=False)
    assert_sound(benchmark, by_group=True)
    assert benchmark.synthetic and len(benchmark.classes) == 13
    counts, table = benchmark.counts(), benchmark.table
    assert (np.diff(counts) <= 0).all()
    if name == "smears-demo":
        assert 700 <= counts.sum() <= 900 and counts.min() >= 8
        assert benchmark.counts("test").min() >= 30 and benchmark.counts("test_degraded").min() >= 30
        ply = table[(table["label"] == benchmark.classes.index("PLY")) & (table["set"] == "train")]
        assert ply["group"].nunique() == 3
        assert set(table["fold"]) == {-1, 0, 1, 2, 3, 4}
    else:
        assert counts.sum() <= 110
    again = load_benchmark(name, data_root=None, cache=tmp_path, progress=False)
    assert again.digest == benchmark.digest
    for item in (0, len(table) - 1):
        assert (benchmark.read(item) == again.read(item)).all() and benchmark.read(item).dtype == np.uint8


def test_acevedo_longtail_on_real_images(real_data, tmp_path):
    benchmark = load_benchmark("acevedo20-lt", data_root=real_data, cache=tmp_path, progress=False)
    assert_sound(benchmark, by_group=True)
    assert benchmark.counts("train").tolist() == [300, 184, 113, 69, 42, 26, 16, 10, 6]
    assert benchmark.counts("test").tolist() == [60] * 9
    assert benchmark.read(0).shape == (363, 360, 3)
    read = {benchmark.read(item).tobytes() for item in range(0, 120, 7)}
    assert len(read) == len(range(0, 120, 7))
