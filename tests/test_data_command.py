"""``wbcrepro data`` as a user types it, the checks behind ``verify`` and the contact sheet."""

import hashlib
import json

import numpy as np
import pytest
from PIL import Image

from wbcrepro.cli import main
from wbcrepro.data import catalog
from wbcrepro.data.manifest import Manifest
from wbcrepro.data.preview import contact_sheet
from wbcrepro.data.sources import open_dataset
from wbcrepro.data.verify import check


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty working folder, with a set of two classes in ``set``."""
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate(("a/1.png", "a/2.png", "b/1.png")):
        path = tmp_path / "set" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (30, 20), (80 * number, 10, 200)).save(path)
    return tmp_path


def zheng(root):
    """All 300 images of Zheng-18 in small."""
    base = root / "zheng18" / "segmentation_WBC"
    (base / "Dataset 1").mkdir(parents=True)
    codes = [code for code, count in zip((1, 2, 3, 4, 5), (176, 53, 48, 22, 1), strict=True) for _ in range(count)]
    for number in range(1, 301):
        Image.fromarray(np.full((2, 2, 3), [number % 256, number // 256, 7], np.uint8)).save(
            base / "Dataset 1" / f"{number:03d}.bmp"
        )
    rows = "".join(f"{number},{code}\n" for number, code in enumerate(codes, 1))
    (base / "Class Labels of Dataset 1.csv").write_text(f"image ID,class label\n{rows}")
    return base


def test_list(here, capsys):
    zheng(here / "data")
    assert main(["data", "list"]) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in catalog.datasets()) and "CC BY 4.0" in text
    found = {line.split()[0]: line.split()[3] for line in text.splitlines() if line.split()[:1] and
             line.split()[0] in catalog.datasets()}  # fmt: skip
    assert found["zheng18"] == "yes" and set(found.values()) == {"yes", "no"}
    assert main(["data", "list", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["datasets"]
    assert {row["name"]: row["found"] for row in rows}["zheng18"] is True and len(rows) == len(catalog.datasets())


def test_verify_a_complete_set_then_a_spoiled_one(here, capsys):
    base = zheng(here / "data")
    assert main(["data", "verify", "zheng18", "--no-progress"]) == 0
    assert "zheng18: complete" in capsys.readouterr().out
    assert len(Manifest.load(here / "runs" / "cache" / "manifests" / "zheng18.csv")) == 300
    (base / "Dataset 1" / "005.bmp").write_bytes(b"BM")
    assert main(["data", "verify", "zheng18", "--no-progress"]) == 3
    text = capsys.readouterr().out
    assert "quarantined, never used: 1" in text and "005.bmp" in text and "class neutrophil: 175 of 176" in text
    assert "zheng18: wrong" in text
    (base / "Dataset 1" / "005.bmp").unlink()
    assert main(["data", "verify", "zheng18", "--partial", "--no-progress"]) == 3, "the table still lists it"


def test_verify_accepts_a_part_only_when_told(here, capsys):
    folder = here / "data" / "acevedo20" / "PBC_dataset_normal_DIB" / "basophil"
    folder.mkdir(parents=True)
    Image.new("RGB", (5, 5)).save(folder / "BA_1.jpg")
    assert main(["data", "verify", "acevedo20", "--no-progress"]) == 3
    assert "all images: 1 of 17092" in capsys.readouterr().out
    assert main(["data", "verify", "acevedo20", "--partial", "--no-progress"]) == 0


def test_verify_shows_duplicates_and_conflicts(here, capsys):
    (here / "set" / "b" / "2.png").write_bytes((here / "set" / "a" / "1.png").read_bytes())
    assert main(["data", "verify", "folder:set", "--no-progress"]) == 0
    text = capsys.readouterr().out
    assert "identical files: 2" in text and "identical files with different labels: 2" in text and "readable" in text


def test_verify_compares_checksums(here, capsys):
    base = zheng(here / "data")
    files = sorted((base / "Dataset 1").iterdir())
    sums = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(here / 'data')}" for path in files]
    (here / "data" / "SHA256SUMS").write_text("\n".join(sums))
    assert main(["data", "verify", "zheng18", "--no-progress"]) == 0
    assert "checksums compared: 300" in capsys.readouterr().out
    Image.new("RGB", (2, 2), (9, 9, 9)).save(files[7])
    assert main(["data", "verify", "zheng18", "--no-progress"]) == 3
    assert "008.bmp: other content" in capsys.readouterr().out


def test_too_many_images_are_wrong(here):
    for path in ("chula_lab500/basophil", "chula_lab500/monocyte"):
        (here / path).mkdir(parents=True)
    names = [f"basophil/{number}.png" for number in range(101)]
    for number, name in enumerate(names):
        Image.new("RGB", (2, 2), (number, 0, 0)).save(here / "chula_lab500" / name)
    (here / "chula_lab500" / "groups.csv").write_text("file,approx_cell_group\n" + "".join(f"{n},1\n" for n in names))
    report = check("chula500", open_dataset("chula500", here, here / "cache", progress=False), here)
    assert report.verdict == "wrong" and report.wrong == ("class basophil: 101, but only 100 were published",)
    assert "all images: 101 of 510" in report.missing


def test_wbcbench_is_counted_without_degraded_copies_and_test_labels(here):
    for config, split in (("pristine", "phase2_eval"), ("degraded", "phase2_eval"), ("pristine", "phase2_test")):
        folder = here / "wbcbench2026" / config / split
        folder.mkdir(parents=True)
        Image.new("RGB", (3, 3), (len(config), len(split), 0)).save(folder / "1.jpg")
        (folder / "metadata.csv").write_text(
            "file_name,image_id,label,wbcbench_split,severity,original_image_id,patient_hash\n"
            f"1.jpg,1{split},PLY,{split},0,,p\n"
        )
    source = open_dataset("wbcbench2026", here, here / "cache", progress=False)
    report = check("wbcbench2026", source, here)
    assert report.images == 3 and not report.wrong
    assert {"class PLY: 1 of 14", "split phase2_eval: 1 of 5350"} <= set(report.missing)
    assert {"split phase2_test: 1 of 16477", "all images: 2 of 55012"} <= set(report.missing)


def test_preview_writes_a_sheet(here, capsys):
    assert main(["data", "preview", "folder:set", "-o", "out/sheet.png", "--per-class", "3", "--no-progress"]) == 0
    text = capsys.readouterr().out
    assert "3 usable images of 3" in text and "30x20 (3)" in text
    with Image.open(here / "out" / "sheet.png") as sheet:
        pixels = np.asarray(sheet.convert("RGB"))
    for number in range(3):
        assert (pixels == [80 * number, 10, 200]).all(axis=2).sum() > 1000, "every image is on the sheet"
    assert main(["data", "preview", "folder:set", "--no-progress"]) == 0
    assert (here / "runs" / "cache" / "preview-folder.png").is_file(), "not among the user's own files"


def test_sheet_shows_images_without_a_class_last(here):
    folder = here / "data" / "acevedo20" / "PBC_dataset_normal_DIB"
    for place in ("basophil/BA_1.jpg", "platelet/PLATELET_2.jpg"):
        (folder / place).parent.mkdir(parents=True)
        Image.new("RGB", (50, 50), (200, 0, 0)).save(folder / place)
    sheet = contact_sheet(open_dataset("acevedo20", here / "data", here / "cache", progress=False), size=50)
    last = np.asarray(sheet)[-54:]
    assert sheet.height == 10 * 54 + 4 and (np.abs(last.astype(int) - [200, 0, 0]).sum(axis=2) < 20).sum() > 2000


@pytest.mark.parametrize(
    "arguments, code, message",
    [
        (["verify", "acevedo"], 2, "there are: wbcbench2026"),
        (["verify", "acevedo20"], 3, "PBC_dataset_normal_DIB.zip"),
        (["verify", "acevedo20", "--mapping", "six"], 2, "has no mapping"),
        (["preview", "csv:none.csv"], 3, "no such file"),
        (["fetch", "sysu3h"], 3, "private"),
        (["fetch", "folder:x"], 2, "there are:"),
    ],
)
def test_exit_codes_and_messages(here, capsys, arguments, code, message):
    assert main(["data", *arguments]) == code
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("action", [[], ["list"], ["fetch"], ["verify"], ["preview"]])
def test_help_names_the_exit_codes(capsys, action):
    with pytest.raises(SystemExit) as stop:
        main(["data", *action, "--help"])
    assert stop.value.code == 0 and "Exit codes" in capsys.readouterr().out
