"""Benchmarks of several laboratories: folds within a domain, nothing on two sides, counts, caveats, missing data."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wbcrepro.data import benchmarks
from wbcrepro.data.benchmarks import build, load_benchmark
from wbcrepro.data.domain_benchmarks import class_counts
from wbcrepro.data.manifest import COLUMNS, Manifest
from wbcrepro.data.sources import join_sources
from wbcrepro.errors import DataMissing

SETTINGS = benchmarks._document()["defaults"] | {"protocol": "domains", "notes": [], "caption": "test"}
LABS = ("a", "b", "c")
RESULTS = Path(__file__).resolve().parents[1] / "results"


class Drawn:
    """A source of nothing but rows."""

    def __init__(self, rows: list[dict], classes: tuple[str, ...], domain: str):
        base = dict.fromkeys(COLUMNS, "") | {"width": 8, "height": 8, "status": "ok", "domain": domain}
        records = [base | {"id": f"{n:04d}"} | row for n, row in enumerate(rows)]
        self.manifest = Manifest(domain, classes, pd.DataFrame(records, columns=list(COLUMNS)))


def joined(parts: dict[str, list[dict]], classes: tuple[str, ...]):
    return join_sources("domains", {lab: Drawn(rows, classes, lab) for lab, rows in parts.items()})


def build_from(parts: dict[str, list[dict]], classes: tuple[str, ...], folds: int = 5):
    settings = SETTINGS | {"classes": classes, "parts": {lab: {} for lab in parts}, "folds": folds}
    return build("test", joined(parts, classes), settings)


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """One cache of verdicts on files for all tests: 5,220 images are decoded once."""
    return tmp_path_factory.mktemp("scans")


def load(name, data, tmp_path):
    return load_benchmark(name, data_root=data, cache=tmp_path, progress=False)


def assert_nothing_on_two_sides(benchmark) -> None:
    """No content twice; no group in two folds; every row trains in some domain, and is one of its classes."""
    frame = benchmark.source.manifest.frame.iloc[benchmark.table["row"]]
    table = benchmark.table.assign(sha256=frame["sha256"].to_numpy())
    variants = {variant for several in benchmark.variants.values() for variant in several}
    assert set(table["set"]) == {"train"} and set(table["domain"]) <= set(benchmark.domains) | variants
    assert table["sha256"].is_unique and table["row"].is_unique
    grouped = table[table["group"] != ""].groupby("group")
    assert (grouped["fold"].nunique() <= 1).all() and (grouped["domain"].nunique() <= 1).all()
    assert (frame["label"].to_numpy() == np.array(benchmark.classes)[table["label"]]).all()


cells = st.fixed_dictionaries(
    {
        "label": st.sampled_from(["x", "y", "z"]),
        "group": st.sampled_from(["", "1", "2", "3"]),
        "sha256": st.integers(0, 40).map(str),
    }
)


@settings(max_examples=40)
@given(st.fixed_dictionaries({lab: st.lists(cells, min_size=1, max_size=30) for lab in LABS}), st.integers(2, 5))
def test_no_content_or_group_is_on_two_sides(parts, folds):
    try:
        benchmark = build_from(parts, ("x", "y", "z"), folds)
    except DataMissing as error:
        assert "no training image of" in str(error) or "no usable" in str(error)
        return
    assert_nothing_on_two_sides(benchmark)
    table = benchmark.table
    assert table["fold"].between(-1, folds - 1).all()
    kept = table[(table["fold"] == -1)]
    assert (kept["group"] != "").all(), "only groups are kept from validation"
    for (domain, _), rows in kept.groupby(["domain", "group"]):
        own = table[table["domain"] == domain]
        linked = own[own["group"].isin(rows["group"])]
        assert any((own["label"] == label).sum() == (linked["label"] == label).sum() for label in rows["label"])


def test_folds_are_stratified_within_each_domain():
    parts = {
        lab: [{"label": "xyz"[n % 3], "sha256": f"{lab}{n}"} for n in range(size)]
        for lab, size in zip(LABS, (30, 60, 90), strict=True)
    }
    table = build_from(parts, ("x", "y", "z")).table
    counts = pd.crosstab([table["domain"], table["label"]], table["fold"])
    assert counts.shape == (9, 5) and (counts.max(axis=1) == counts.min(axis=1)).all()


def test_a_slide_with_all_of_a_class_always_trains_and_a_single_image_does_not():
    rows = [{"label": "x", "group": "slide", "sha256": f"x{n}"} for n in range(10)]
    rows += [{"label": "y", "group": f"s{n % 5}", "sha256": f"y{n}"} for n in range(20)]
    rows += [{"label": "z", "sha256": "z"}]
    benchmark = build_from({"a": rows, "b": [{"label": c, "sha256": f"b{c}"} for c in "xyz"]}, ("x", "y", "z"))
    table = benchmark.table[benchmark.table["domain"] == "a"]
    folds = table.groupby("label")["fold"].unique().map(lambda values: sorted(values.tolist()))
    assert folds[0] == [-1] and folds[1] == [0, 1, 2, 3, 4] and len(folds[2]) == 1 and folds[2][0] >= 0
    text = "\n".join(benchmark.notes)
    assert "a: a group that holds every image of a class always trains" in text and "10 of x" in text
    assert "a has one image of z" in text and "b names no patients" in text and "1/3 of macro-F1" in text


def test_an_image_of_two_laboratories_is_in_one_and_of_two_labels_in_none():
    parts = {
        "a": [{"label": "x", "sha256": "same"}, {"label": "x", "sha256": "two"}, {"label": "y", "sha256": "1"}],
        "b": [{"label": "x", "sha256": "same"}, {"label": "y", "sha256": "two"}, {"label": "y", "sha256": "2"}],
    }
    table = build_from(parts, ("x", "y")).table
    assert table["id"].tolist() == ["a/0000", "a/0002", "b/0002"]


def test_a_class_that_a_domain_lacks_is_said():
    parts = {"a": [{"label": c, "sha256": f"a{c}"} for c in "xy"], "b": [{"label": "x", "sha256": "b"}]}
    benchmark = build_from(parts, ("x", "y"))
    assert class_counts(benchmark).to_dict("index") == {"a": {"x": 1, "y": 1}, "b": {"x": 1, "y": 0}}
    assert any("b has no image of y" in note for note in benchmark.notes)


def test_smear_laboratories(tmp_path):
    for name, size in (("sada-tiny", 32), ("sada-smears", 64), ("boda-tiny", 32), ("boda-smears", 64)):
        benchmark = load(name, None, tmp_path)
        assert_nothing_on_two_sides(benchmark)
        labs = ("mgg", "wright-giemsa", *(["giemsa"] if name.startswith("sada") else []), "rapid")
        assert benchmark.synthetic and benchmark.domains == labs
        assert "ynthetic" in benchmark.caption + benchmark.notes[0] and benchmark.degraded is None
        assert benchmark.read(0).shape == (size, size, 3)
        assert load(name, None, tmp_path).digest == benchmark.digest
        settings = benchmarks._document()["benchmarks"][name]
        for lab in labs:
            part = settings["parts"][lab]
            assert class_counts(benchmark).loc[lab].sum() == sum(part["counts"].values())
        assert list(class_counts(benchmark).index) == list(labs)


def test_bands_and_segmented_neutrophils_are_one_class(tmp_path):
    benchmark = load("sada-tiny", None, tmp_path)
    used = benchmark.source.manifest.frame.iloc[benchmark.table["row"]]
    assert set(used["source_label"][used["label"] == "neutrophil"]) == {"SNE", "BNE"}


def test_smears_with_the_posters_missing_classes(tmp_path):
    for name in ("boda-tiny", "boda-smears"):
        counts = class_counts(load(name, None, tmp_path))
        assert (counts["myeloblast"] > 0).tolist() == [False, True, True], "in one source, and in the unseen laboratory"
        assert (counts["metamyelocyte"] > 0).tolist() == [True, True, False]
    assert counts["lymphocyte_atypical"].tolist() == [0, 11, 16]


def test_variants_of_a_laboratory_show_its_cells_under_other_stains(tmp_path):
    benchmark = load("sada-smears", None, tmp_path)
    assert benchmark.variants == {"rapid": ("rapid@0", "rapid@0.5", "rapid@2")}
    assert not set(benchmark.domains) & set(benchmark.variants["rapid"])
    parts = {name: benchmark.source.parts[name].source for name in ("rapid@0", "rapid@0.5", "rapid", "rapid@2")}
    rows = range(0, len(parts["rapid"].manifest.frame), 12)
    for part in parts.values():
        assert (part.manifest.frame["label"] == parts["rapid"].manifest.frame["label"]).all()
        assert all((part.truth(row).nucleus == parts["rapid"].truth(row).nucleus).all() for row in rows)
    colour = {name: np.mean([part.read(row) for row in rows], (0, 1, 2)) for name, part in parts.items()}
    away = [np.linalg.norm(colour[name] - colour["rapid@0"]) for name in parts]
    assert 0 == away[0] < away[1] < away[2] < away[3], away


def test_real_laboratories_have_their_counts(real_data, scans):
    benchmark = load("sada-four", real_data, scans)
    assert_nothing_on_two_sides(benchmark)
    assert benchmark.domains == ("acevedo20", "raabin500", "chula_lab500", "zheng18") and not benchmark.synthetic
    counts = class_counts(benchmark)
    assert counts.loc["raabin500"].tolist() == [100] * 5
    assert counts.loc["chula_lab500"].tolist() == [112, 110, 88, 100, 100]
    assert counts.loc["zheng18"].tolist() == [176, 52, 48, 22, 1], "53 lymphocytes, two of them one file"
    table = benchmark.table
    neutrophils = table[(table["domain"] == "raabin500") & (table["label"] == 0)]
    assert set(neutrophils["fold"]) == {-1} and neutrophils["group"].nunique() == 1
    text = "\n".join(benchmark.notes)
    for words in ("class and slide are confounded", "zheng18 has one image of basophil", "not checked by experts",
                  "100 of neutrophil", "lymphocyte 60/32/0/0/8"):  # fmt: skip
        assert words in text
    full = pd.Series({"neutrophil": 3329, "lymphocyte": 1214, "monocyte": 1420, "eosinophil": 3117, "basophil": 1218})
    acevedo = counts.loc["acevedo20"]
    assert (acevedo <= full).all() and (acevedo > 0.25 * full).all()


def test_thirteen_classes_of_real_laboratories(real_data, scans):
    benchmark = load("boda-real", real_data, scans)
    assert_nothing_on_two_sides(benchmark)
    counts = class_counts(benchmark)
    assert (counts.loc["acevedo20"] > 0).all() and counts.shape == (4, 10)
    assert counts.loc["zheng18"][counts.loc["zheng18"] > 0].to_dict() == {
        "neutrophil_segmented": 176,
        "eosinophil": 22,
        "lymphocyte_typical": 52,
        "monocyte": 48,
        "basophil": 1,
    }
    text = "\n".join(benchmark.notes)
    assert "count as segmented and typical" in text and "score on it is over its other 5 classes" in text


def test_missing_datasets_are_all_named_with_the_next_step(tmp_path):
    with pytest.raises(DataMissing, match="(?s)acevedo20, raabin500, chula500, zheng18.*wbcrepro data fetch"):
        load("sada-four", tmp_path, tmp_path / "cache")
    with pytest.raises(DataMissing, match="DATA="):
        load("sada-four", None, tmp_path / "cache")
    for name, folder in (("sada-full", "ldwbc"), ("sada-external", "chula_lab500"), ("boda-full", "matek19")):
        with pytest.raises(DataMissing, match=f"(?s)Next step.*{folder}"):
            load(name, tmp_path, tmp_path / "cache")


def test_older_benchmarks_keep_their_digests(real_data, scans):
    stored = json.loads((RESULTS / "decoupled" / "acevedo20-lt-mini" / "provenance.json").read_text())
    assert load("acevedo20-lt", real_data, scans).digest == stored["data_digest"]


@pytest.mark.parametrize("name, digest", [("smears-demo", "2b0e7e2ebcca"), ("smears-tiny", "7c855c649f79")])
def test_older_smears_keep_their_digests(name, digest, tmp_path):
    benchmark = load(name, None, tmp_path)
    assert benchmark.digest.startswith(digest) and benchmark.domains == ()
    assert class_counts(benchmark).to_numpy().sum() == benchmark.counts().sum()
    assert list(class_counts(benchmark).index) == ["mgg", "wright-giemsa"]
