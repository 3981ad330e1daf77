"""The common physical scale: diameters against known masks, crops, and what the stored numbers were measured on."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from wbcrepro.data import scale
from wbcrepro.data.benchmarks import load_benchmark
from wbcrepro.data.borders import border_table
from wbcrepro.errors import UsageError


def load(name, data, tmp_path):
    return load_benchmark(name, data_root=data, cache=tmp_path, progress=False)


@pytest.fixture(scope="module")
def four(real_data, tmp_path_factory):
    return load("sada-four", real_data, tmp_path_factory.mktemp("four"))


def equivalent(mask: np.ndarray) -> float:
    """Diameter of the disc with the mask's area."""
    return 2 * np.sqrt(mask.sum() / np.pi)


def disc(side: int, diameter: float, seed: int = 0, centre=(0.0, 0.0)) -> np.ndarray:
    """A pale cell with a dark nucleus of half its diameter on a bright, slightly noisy background."""
    y, x = np.mgrid[:side, :side] - (side - 1) / 2
    radius = np.hypot(y - centre[0], x - centre[1])
    image = np.full((side, side, 3), (235.0, 220.0, 225.0))
    image[radius < diameter / 2] = (190, 150, 200)
    image[radius < diameter / 4] = (90, 50, 130)
    noise = np.random.default_rng(seed).normal(0, 2, image.shape)
    return np.clip(image + noise, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("side", [60, 120, 363, 575])
@pytest.mark.parametrize("share", [0.3, 0.5, 0.75])
def test_diameter_of_a_disc_at_any_size(side, share):
    assert scale.cell_diameter(disc(side, share * side)) == pytest.approx(share * side, rel=0.06)
    assert scale.cell_diameter(disc(side, share * side, centre=(0.05 * side, -0.08 * side))) == pytest.approx(
        share * side, rel=0.06
    )


def test_red_cells_that_touch_part_of_the_outline_do_not_count():
    image = disc(200, 80)
    y, x = np.mgrid[:200, :200] - 99.5
    for angle in (0.3, 2.0, 4.1):
        image[np.hypot(y - 66 * np.sin(angle), x - 66 * np.cos(angle)) < 26] = (200, 140, 140)
        image[np.hypot(y, x) < 40] = disc(200, 80)[np.hypot(y, x) < 40]
    assert scale.cell_diameter(image) == pytest.approx(80, rel=0.06)


def test_an_image_without_a_cell_has_no_diameter():
    assert np.isnan(scale.cell_diameter(np.full((50, 60, 3), 200, np.uint8)))


def test_errors_on_smears_with_known_masks(tmp_path):
    benchmark = load("sada-smears", None, tmp_path)
    stored = scale.measured()["checked"]["sada-smears"]
    ratio = []
    for domain in benchmark.domains:
        source = benchmark.source.parts[domain].source
        for row in range(0, len(source), 9):
            truth = source.truth(row)
            ratio.append(scale.cell_diameter(source.read(row)) / equivalent(truth.nucleus | truth.cytoplasm))
    assert np.median(ratio) == pytest.approx(stored["ratio"], abs=0.015)
    assert np.median(np.abs(np.array(ratio) - 1)) < 0.03 and len(ratio) > 60


def test_true_diameters_of_smears(tmp_path):
    """What `scale.yml` says of smears, and that zoom and size are taken into account."""
    benchmark = load("sada-smears", None, tmp_path)
    for domain in ("mgg", "wright-giemsa"):
        source = benchmark.source.parts[domain].source
        truths = [source.truth(row) for row in range(0, len(source), 2)]
        diameters = {}
        for truth in truths:
            label = {"BNE": "SNE"}.get(truth.label, truth.label)
            diameters.setdefault(label, []).append(equivalent(truth.nucleus | truth.cytoplasm))
        true = np.mean([np.median(values) for values in diameters.values()])
        assert scale.domain_diameter(benchmark, domain) == pytest.approx(true, rel=0.06)
    small = load("sada-tiny", None, tmp_path)
    assert 2 * scale.domain_diameter(small, "rapid") == pytest.approx(scale.domain_diameter(benchmark, "rapid"))
    sides = scale.field_sides(benchmark)
    assert sides["wright-giemsa"] > sides["mgg"] > sides["giemsa"], "as their magnifications"
    for laboratory, variants in benchmark.variants.items():
        assert {sides[name] for name in variants} == {sides[laboratory]}


def test_errors_on_real_masks(four, real_data):
    rows = four.table[four.table["domain"] == "zheng18"].iloc[::4]
    ratio = []
    for item, name in zip(rows["item"], rows["id"], strict=True):
        mask = np.asarray(Image.open((real_data / name).with_suffix(".png")).convert("L"))
        ratio.append(scale.cell_diameter(four.read(int(item))) / equivalent(mask > 0))
    error = np.abs(np.array(ratio) - 1)
    assert np.median(error) < 0.04 and np.percentile(error, 90) < 0.13
    assert np.median(ratio) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("domain", ["acevedo20", "raabin500", "chula_lab500", "zheng18"])
def test_stored_diameters_are_what_is_measured(four, domain):
    by_class = scale.measure_diameters(four, domain, 12)
    stored = scale.measured()["domains"][domain]
    assert np.mean(list(by_class.values())) == pytest.approx(stored["diameter"], rel=0.12)
    assert np.mean(list(stored["by_class"].values())) == pytest.approx(stored["diameter"], abs=0.1)
    assert scale.domain_diameter(four, domain) == stored["diameter"]


def test_cells_have_one_size_after_the_crop(four):
    table = four.table
    assert scale.scaled_reader(four, "native") == four.read
    spread = {}
    for name in scale.SCALES:
        read = scale.scaled_reader(four, name)
        share = []
        for domain in four.domains:
            items = table["item"][(table["domain"] == domain) & (table["label"] == 0)].iloc[:12]
            own = [scale.cell_diameter(four.read(int(item))) / len(read(int(item))) for item in items]
            share.append(np.median(own))
        spread[name] = max(share) / min(share)
    assert spread["native"] > 1.5 > 1.3 > spread["common"], spread


images = st.tuples(st.integers(1, 30), st.integers(1, 30), st.integers(1, 40), st.integers(0, 2**31))


@given(images)
def test_field_crop_keeps_the_centre_and_repeats_the_border(case):
    height, width, side, seed = case
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    out = scale.field_crop(image, side)
    assert out.shape == (side, side, 3) and out.dtype == np.uint8

    def taken(size: int) -> np.ndarray:
        start = (size - side) // 2 if size >= side else -((side - size) // 2)
        return np.clip(np.arange(start, start + side), 0, size - 1)

    assert (out == image[taken(height)][:, taken(width)]).all()


def test_images_smaller_than_the_field_are_counted(tmp_path, monkeypatch):
    wider = scale.measured() | {"field": 2.05}  # cells of 15 to 17 pixels in images of 32: fields on either side of it
    monkeypatch.setattr(scale, "measured", lambda: wider)
    benchmark = load("sada-tiny", None, tmp_path)
    found = border_table(benchmark).set_index("laboratory")
    counted = {name: 0 for name in found.index}
    for row in benchmark.table.itertuples():
        counted[row.domain] += min(benchmark.read(row.item).shape[:2]) < found.loc[row.domain, "field"]
    assert found["repeated"].to_dict() == counted and 0 < found["repeated"].sum() < found["images"].sum()
    assert found["images"].to_dict() == benchmark.table["domain"].value_counts().to_dict()
    assert (found["side"] == 32).all() and (found["smallest"] == 32).all()


def test_scale_is_refused_where_it_makes_no_sense(tmp_path):
    with pytest.raises(UsageError, match="unknown scale"):
        scale.scaled_reader(load("sada-tiny", None, tmp_path), "large")
    with pytest.raises(UsageError, match="no domains"):
        scale.scaled_reader(load("smears-tiny", None, tmp_path), "common")
    with pytest.raises(UsageError, match="0 pixels"):
        scale.field_crop(np.zeros((4, 4, 3), np.uint8), 0)


def test_smears_are_cropped_by_item(tmp_path):
    benchmark = load("sada-tiny", None, tmp_path)
    read, sides = scale.scaled_reader(benchmark), scale.field_sides(benchmark)
    for item in (0, len(benchmark.table) - 1):
        image = read(item)
        assert image.shape == (sides[benchmark.table["domain"][item]],) * 2 + (3,)
        assert (image == scale.field_crop(benchmark.read(item), len(image))).all()


def test_a_known_resolution_gives_the_diameter():
    class Anywhere:
        source = None

    assert scale.domain_diameter(Anywhere(), "matek19") == pytest.approx(137.4 * 1.38)
    assert scale.domain_diameter(Anywhere(), "raabin-wbc") == 263.1
