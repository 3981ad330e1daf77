"""Every published layout, built small: what is read, what is quarantined and why, and what is never opened."""

import os

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from wbcrepro.data.decode import DecodeError
from wbcrepro.data.sources import open_dataset
from wbcrepro.errors import DataMissing, UsageError

WBC = "BA BL BNE EO LY MMY MO MY PC PLY PMY SNE VLY".split()
_count = iter(range(1, 10**6))


def image(path, number=None):
    """A file whose content is its own, unless a number is given."""
    path.parent.mkdir(parents=True, exist_ok=True)
    number = next(_count) if number is None else number
    pixels = np.random.default_rng(number).integers(0, 256, (12, 10, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def load(tmp_path):
    def opened(name, root=None, **options):
        return open_dataset(name, tmp_path if root is None else root, tmp_path / "cache", progress=False, **options)

    return opened


def by_id(source):
    return source.manifest.frame.set_index("id")


def test_acevedo_takes_the_finer_class_from_the_file_name(tmp_path, load):
    base = tmp_path / "acevedo20" / "PBC_dataset_normal_DIB"
    for name in ("neutrophil/SNE_1", "neutrophil/BNE_2", "neutrophil/NEUTROPHIL_3", "ig/IG_4", "ig/MMY_5", "ig/MY_6",
                 "ig/PMY_7", "basophil/BA_8", "eosinophil/EO_9", "lymphocyte/LY_10", "monocyte/MO_11",
                 "erythroblast/ERB_12", "platelet/PLATELET_13", "basophil/WHAT_14", "basophil/EO_15"):  # fmt: skip
        image(base / f"{name}.jpg")
    (base / "neutrophil" / ".DS_Store").write_bytes(b"x")
    source = load("acevedo20")
    frame = source.manifest.frame
    assert source.manifest.classes == ("BA", "BNE", "EO", "LY", "MMY", "MO", "MY", "PMY", "SNE")
    usable = frame[frame["status"] == "ok"]
    assert len(usable) == 13 and dict(zip(usable["source_label"], usable["label"], strict=True)) == {
        "SNE": "SNE", "BNE": "BNE", "NEUTROPHIL": "", "IG": "", "MMY": "MMY", "MY": "MY", "PMY": "PMY", "BA": "BA",
        "EO": "EO", "LY": "LY", "MO": "MO", "ERB": "", "PLATELET": "",
    }  # fmt: skip
    reasons = frame[frame["status"] == "quarantined"].set_index("id")["reason"]
    assert "begins with none of" in reasons["PBC_dataset_normal_DIB/basophil/WHAT_14.jpg"]
    assert "says EO, but it lies in basophil" in reasons["PBC_dataset_normal_DIB/basophil/EO_15.jpg"]
    five = load("acevedo20", mapping="five").manifest
    assert five.classes == ("basophil", "eosinophil", "lymphocyte", "monocyte", "neutrophil")
    assert five.counts() == dict(zip(five.classes, (1, 1, 1, 1, 3), strict=True))
    assert len(load("acevedo20", mapping="thirteen").manifest.classes) == 10
    assert set(frame["domain"]) == {"acevedo20"} and set(frame["group"]) == {""}


def test_read_gives_the_pixels_and_notices_changes(tmp_path, load):
    path = image(tmp_path / "set" / "a" / "1.png", 5)
    (tmp_path / "set" / "a" / "2.png").write_bytes(b"")
    source = load(f"folder:{tmp_path / 'set'}")
    expected = np.random.default_rng(5).integers(0, 256, (12, 10, 3), dtype=np.uint8)
    np.testing.assert_array_equal(source.read(0), expected)
    with pytest.raises(DecodeError, match="quarantined: empty file"):
        source.read(1)
    image(path, 6)
    with pytest.raises(DecodeError, match="has changed"):
        source.read(0)
    path.unlink()
    with pytest.raises(DecodeError, match="was there"):
        source.read(0)


def test_any_folder_of_class_folders(tmp_path, load):
    root = tmp_path / "set"
    image(root / "NA" / "deep" / "1.png"), image(root / "b" / "1.JPG"), image(root / "stray.png")
    (root / "notes.txt").write_text("x"), (root / "b" / "labels.csv").write_text("x")
    (root / "b" / "archive.zip").write_bytes(b"PK")
    source = load(f"folder:{root}")
    frame = by_id(source)
    assert source.manifest.classes == ("NA", "b")
    assert list(frame.index) == ["NA/deep/1.png", "b/1.JPG", "b/archive.zip", "stray.png"]
    assert frame.loc["NA/deep/1.png", "label"] == "NA"
    assert "no class folder" in frame.loc["stray.png", "reason"]
    assert "not a JPEG" in frame.loc["b/archive.zip", "reason"]


def test_links_never_lead_out_of_the_folder(tmp_path, load):
    root, secret = tmp_path / "set", image(tmp_path / "secret" / "x.png")
    image(root / "a" / "1.png")
    (root / "a" / "2.png").symlink_to(secret)
    (root / "a" / "3.png").symlink_to("1.png")
    (root / "b").symlink_to(secret.parent)
    frame = by_id(load(f"folder:{root}"))
    assert "leads out" in frame.loc["a/2.png", "reason"] and frame.loc["a/2.png", "sha256"] == ""
    assert frame.loc["a/3.png", "status"] == "ok"
    assert "folder that is a link" in frame.loc["b", "reason"]
    (tmp_path / "linked").symlink_to(root)
    linked = by_id(load(f"folder:{tmp_path / 'linked'}"))
    assert linked.loc["a/1.png", "status"] == "ok", "the folder itself may be a link"


def test_any_csv(tmp_path, load):
    root = tmp_path / "set"
    image(root / "one.png", 1), image(root / "sub" / "two.png", 1), image(tmp_path / "secret.png")
    (root / "link.png").symlink_to(tmp_path / "secret.png")
    (root / "t.csv").write_text(
        "path,label,group,domain,split,ignored\none.png,SNE,p1,lab,train,9\nsub/two.png,NA,p2,lab,test,9\n"
        f"../secret.png,SNE,,,,\n{tmp_path}/secret.png,SNE,,,,\nlink.png,SNE,,,,\ngone.png,SNE,,,,\nC:/x.png,SNE,,,,\n,,,,,\n"
    )
    source = load(f"csv:{root / 't.csv'}", root=tmp_path)
    frame = by_id(source)
    assert source.manifest.classes == ("NA", "SNE") and len(frame) == 7
    assert dict(frame.loc["one.png", ["label", "group", "domain", "split"]]) == {
        "label": "SNE", "group": "p1", "domain": "lab", "split": "train"}  # fmt: skip
    assert frame.loc["sub/two.png", "label"] == "NA"
    for unsafe in ("../secret.png", f"{tmp_path}/secret.png", "link.png", "C:/x.png"):
        assert "leads out" in frame.loc[unsafe, "reason"] and not frame.loc[unsafe, "sha256"], unsafe
    assert "no such file" in frame.loc["gone.png", "reason"]
    assert set(source.manifest.conflicts()["id"]) == {"one.png", "sub/two.png"}


@pytest.mark.parametrize("text, message", [("file,label\na.png,x\n", "no column path"), ("", "is no CSV"),
                                           ("path,label\na.png,x\na.png,y\n", "ids repeat")])  # fmt: skip
def test_impossible_csv(tmp_path, load, text, message):
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises((UsageError, DataMissing), match=message):
        load(f"csv:{tmp_path / 't.csv'}")


def kaggle(root):
    """The Kaggle layout with its quirks: three unnamed columns, a shuffled file, an empty label column."""
    folder = root / "wbcbench2026"
    for place, numbers in {"phase1": (9, 3), "phase2/train": (100, 101), "phase2/eval": (102,),
                           "phase2/test": (103, 104)}.items():  # fmt: skip
        for number in numbers:
            image(folder / place / f"{number:08d}.jpg", number)
    (folder / "phase1_label.csv").write_text(
        "ID,labels,split,,,\n00000009.jpg,PLY,phase1_train,,,\n00000003.jpg,BA,phase1_train,,,\n"
    )
    (folder / "phase2_train.csv").write_text(
        "ID,labels,split\n00000100.jpg,SNE,phase2_train\n00000101.jpg,VLY,phase2_train\n00000199.jpg,LY,phase2_train\n"
    )
    (folder / "phase2_eval.csv").write_text("ID,labels,split\n00000102.jpg,PC,phase2_eval\n")
    (folder / "phase2_test.csv").write_text("ID,labels\n00000103.jpg,\n00000104.jpg,\n")
    return folder


def test_wbcbench_kaggle(tmp_path, load):
    kaggle(tmp_path)
    source = load("wbcbench2026")
    frame = by_id(source)
    assert source.manifest.classes == tuple(WBC) and len(frame) == 8
    columns = ["label", "split", "domain", "status"]
    assert tuple(frame.loc["00000009.jpg", columns]) == ("PLY", "phase1_train", "pristine", "ok")
    assert tuple(frame.loc["00000102.jpg", columns]) == ("PC", "phase2_eval", "degraded", "ok")
    assert tuple(frame.loc["00000103.jpg", columns]) == ("", "phase2_test", "degraded", "ok")
    assert "no such file" in frame.loc["00000199.jpg", "reason"]
    assert set(frame["group"]) == {""}, "Kaggle names no patients"
    assert not [name for name in frame.columns if name.startswith("Unnamed")]
    np.testing.assert_array_equal(source.read(0).shape, (12, 10, 3))


def test_wbcbench_order_of_rows_has_no_effect(tmp_path, load):
    folder = kaggle(tmp_path)
    first = load("wbcbench2026").manifest
    for table in folder.glob("*.csv"):
        lines = table.read_text().splitlines()
        table.write_text("\n".join([lines[0], *lines[:0:-1]]) + "\n")
    assert load("wbcbench2026").manifest.digest == first.digest


@pytest.mark.parametrize("row, message", [("00000100.jpg,XYZ,phase2_train", "not in the catalogue"),
                                          ("00000100.jpg,BA,phase2_eval", "says split"),
                                          ("../phase1/00000009.jpg,BA,phase2_train", "leads out")])  # fmt: skip
def test_wbcbench_impossible_rows_are_quarantined(tmp_path, load, row, message):
    folder = kaggle(tmp_path)
    (folder / "phase2_train.csv").write_text(f"ID,labels,split\n{row}\n")
    frame = load("wbcbench2026").manifest.quarantined()
    assert len(frame) == 1 and message in frame["reason"].iloc[0]


def test_wbcbench_hugging_face_export(tmp_path, load):
    folder = tmp_path / "wbcbench2026"
    for config, split, name, original, severity in (
        ("pristine", "phase2_train", "7.jpg", "", "0"), ("degraded", "phase2_train", "7.jpg", "7", "2"),
        ("pristine", "phase2_test", "8.jpg", "", "0"),
    ):  # fmt: skip
        image(folder / config / split / name)
        (folder / config / split / "metadata.csv").write_text(
            "file_name,image_id,label,wbcbench_split,severity,original_image_id,patient_hash\n"
            f"{name},{name[0]},BA,{split},{severity},{original},hash{name[0]}\n"
        )
    frame = by_id(load("wbcbench2026"))
    columns = ["label", "split", "domain", "group", "severity", "original_id"]
    assert tuple(frame.loc["degraded/phase2_train/7", columns]) == ("BA", "phase2_train", "degraded", "hash7", "2", "7")
    pair = frame[frame["original_id"] == "7"]
    assert len(pair) == 2 and pair["group"].nunique() == 1, "a degraded copy stays with its patient"


def test_parquet_of_the_hugging_face_release_names_the_way_out(tmp_path, load):
    path = tmp_path / "wbcbench2026" / "pristine" / "train-0000.parquet"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"PAR1")
    with pytest.raises(UsageError, match="export"):
        load("wbcbench2026")


def test_zheng_masks_are_no_images(tmp_path, load):
    base = tmp_path / "zheng18" / "segmentation_WBC"
    for number in (1, 2, 3, 4):
        image(base / "Dataset 1" / f"{number:03d}.bmp"), image(base / "Dataset 1" / f"{number:03d}.png")
    table = pd.DataFrame({"image ID": [1, 2, 4, 9], "class label": [1, 5, 7, 2]})
    table.to_csv(base / "Class Labels of Dataset 1.csv", index=False)
    frame = by_id(load("zheng18")).rename(lambda name: name.rpartition("/")[2])
    assert tuple(frame.loc[["001.bmp", "002.bmp"], "label"]) == ("neutrophil", "basophil")
    assert list(frame.index) == ["001.bmp", "002.bmp", "003.bmp", "004.bmp", "009.bmp"]
    assert "has no row" in frame.loc["003.bmp", "reason"] and "class code" in frame.loc["004.bmp", "reason"]
    assert "no such file" in frame.loc["009.bmp", "reason"]
    assert load("zheng18", mapping="wbcbench").manifest.counts() == {"BA": 1, "EO": 0, "LY": 0, "MO": 0}


@pytest.mark.parametrize(
    "name, folder, table, column",
    [
        ("chula500", "chula_lab500", "groups.csv", "approx_cell_group"),
        ("raabin500", "raabin500", "manifest.csv", "slide_or_date"),
    ],
)
def test_groups_from_the_table(tmp_path, load, name, folder, table, column):
    for path in ("basophil/1.png", "basophil/2.png", "monocyte/3.png"):
        image(tmp_path / folder / path)
    rows = f"file,{column}\nbasophil/1.png,g1\nmonocyte/3.png,g1\neosinophil/4.png,g2\n"
    (tmp_path / folder / table).write_text(rows)
    frame = by_id(load(name))
    assert tuple(frame.loc[["basophil/1.png", "monocyte/3.png"], "group"]) == ("g1", "g1")
    assert "group is unknown" in frame.loc["basophil/2.png", "reason"]
    assert "no such file" in frame.loc["eosinophil/4.png", "reason"]


def test_raabin_full_layout_has_splits_slides_and_any_case(tmp_path, load):
    for path in ("Train/Neutrophil/95-8-3-1_1_1.jpg", "TestA/Basophil/20190526_163446_1.jpg",
                 "Test-B/Lymphocyte/95-5-4-1_9_1.jpg", "Train/Artifact/95-8-3-1_2_1.jpg"):  # fmt: skip
        image(tmp_path / "raabin-wbc" / path)
    frame = by_id(load("raabin-wbc"))
    row = frame.loc["Train/Neutrophil/95-8-3-1_1_1.jpg"]
    assert (row["label"], row["group"], row["split"]) == ("neutrophil", "95-8-3-1", "train")
    assert set(frame["split"]) == {"train", "test_a", "test_b"}
    assert "not in the catalogue" in frame.loc["Train/Artifact/95-8-3-1_2_1.jpg", "reason"]


def test_matek_tiff_with_alpha(tmp_path, load):
    path = tmp_path / "matek19" / "AML-Cytomorphology_LMU" / "NGS" / "NGS_0001.tiff"
    path.parent.mkdir(parents=True)
    Image.new("RGBA", (9, 7), (10, 20, 30, 255)).save(path)
    source = load("matek19")
    assert source.manifest.frame.iloc[0]["label"] == "SNE" and source.manifest.frame.iloc[0]["mode"] == "RGBA"
    assert source.read(0).shape == (7, 9, 3) and tuple(source.read(0)[0, 0]) == (10, 20, 30)


def test_what_is_not_there_names_the_next_step(tmp_path, load):
    with pytest.raises(DataMissing, match="(?s)PBC_dataset_normal_DIB.zip.*acevedo20/PBC_dataset_normal_DIB"):
        load("acevedo20")
    with pytest.raises(DataMissing, match="DATA="):
        open_dataset("acevedo20", None, tmp_path)
    with pytest.raises(DataMissing, match="no such folder"):
        load(f"folder:{tmp_path / 'none'}")
    with pytest.raises(DataMissing, match="private"):
        load("int20")
    with pytest.raises(UsageError, match="acevedo20"):
        load("acevedo")
    with pytest.raises(UsageError, match="no mapping 'six'"):
        load("acevedo20", mapping="six")


def test_manifest_is_the_same_wherever_the_data_lies(tmp_path, load):
    for place in ("here", "there"):
        image(tmp_path / place / "a" / "1.png", 1), image(tmp_path / place / "b" / "2.png", 2)
    os.utime(tmp_path / "there" / "a" / "1.png", (1, 1))
    here, there = (load(f"folder:{tmp_path / place}").manifest for place in ("here", "there"))
    assert here.digest == there.digest


def test_real_images(real_data, tmp_path):
    """The real images have the documented counts, every one decodes, and the known duplicate pairs are found."""
    for name, total, pairs, groups in (("acevedo20", None, 1, 1), ("raabin500", 500, 0, 28), ("zheng18", 300, 1, 1),
                                       ("chula500", 510, 0, 219)):  # fmt: skip
        try:
            manifest = open_dataset(name, real_data, tmp_path / "cache", progress=False).manifest
        except DataMissing:
            pytest.skip(f"{name} is not below the data root")
        assert not len(manifest.quarantined()) and len(manifest.duplicates()) >= 2 * pairs
        assert manifest.frame["group"].nunique() == groups and (total is None or len(manifest) == total)
