import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from metaformer.data.shards.write import write_shards
from metaformer.data.split import open_split
from metaformer.tasks.check import CheckReport
from metaformer.tasks.classification.check import check_data_set, class_findings
from toys import build_task, findings, tiny_config


@pytest.fixture
def own(own_pets: Path) -> Path:
    """The own_pets, with other images to validate on than to train on."""
    draw = np.random.RandomState(1)
    for file in sorted((own_pets / "val").rglob("*.png")):
        Image.fromarray(draw.randint(0, 256, (30, 31, 3), dtype=np.uint8)).save(file)
    draw = np.random.RandomState(2)
    for number, file in enumerate(sorted((own_pets / "train").rglob("*.png"))):
        Image.fromarray(draw.randint(0, 256, (40 + number, 50, 3), dtype=np.uint8)).save(file)
    return own_pets


def check(root: Path) -> CheckReport:
    return check_data_set(root, workers=1, progress=False)


def test_a_good_data_set_has_no_findings(own: Path) -> None:
    report = check(own)
    assert report.ok and not report.findings
    train, _ = report.splits
    assert (train.images, train.unreadable, train.per_class) == (12, 0, {"ant": 4, "bee": 4, "cat": 4})
    assert (train.smallest, train.median, train.largest) == ((50, 40), (50, 46), (50, 51))
    assert report.text().splitlines() == [
        "train: 12 images in 3 classes of 4 to 4 (median 4); sizes 50x40 to 50x51, median 50x46",
        "val: 12 images in 3 classes of 4 to 4 (median 4); sizes 31x30, median 31x30",
        f"{own}: 0 error(s), 0 warning(s)",
    ]
    assert json.loads(json.dumps(report.to_dict()))["ok"] is True


def test_all_errors_and_warnings_are_reported_at_once(own: Path, caplog: pytest.LogCaptureFixture) -> None:
    train, val = own / "train", own / "val"
    (train / "ant/0.png").write_bytes(b"")
    (train / "bee/2.png").write_bytes(b"<html>")
    (train / "bee/scan.tiff").write_bytes(b"")
    (train / "wasp").mkdir()
    (train / "notes.txt").write_text("x")
    (train / "cat/LICENSE").write_text("x")
    shutil.rmtree(val / "cat")
    (val / "dog").mkdir()
    shutil.copy(train / "bee/0.png", val / "dog/0.png")
    shutil.copy(train / "ant/1.png", train / "cat/again.png")
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "green")]
    frames[0].save(val / "ant/moving.gif", save_all=True, append_images=frames[1:])
    report = check(own)
    assert not report.ok
    assert findings(report, "error") == [
        ("layout", f"{train}/bee/scan.tiff: .tiff images are not read: convert it to PNG or JPEG"),
        ("layout", f"{train}/wasp: no images in this class folder"),
        ("unreadable", f"{train}/ant/0.png: the file is empty"),
        (
            "unreadable",
            f"{train}/bee/2.png: not a JPEG, PNG, WebP, BMP or GIF image, or its header is damaged",
        ),
        (
            "layout",
            f"{val}: 'dog' not among the 4 known classes ('ant', 'bee', 'cat', 'wasp')",
        ),
        ("layout", f"{val}: no folder for 'cat', 'wasp'; every class of the class list needs one"),
    ]
    copy = f"{train}/cat/again.png: the same image as {train}/ant/1.png, which is of class 'ant', not 'cat'"
    assert findings(report, "warning") == [
        ("ignored", f"{train}: 1 without extension file(s) are no images and not used"),
        ("ignored", f"{train}: 1 file(s) lie in no class folder"),
        ("contradiction", copy),
        ("animated", f"{val}/ant/moving.gif: animated, only its first frame is used"),
        ("leak", f"{val}/dog/0.png: the same image as {train}/bee/0.png of the training split"),
    ]
    assert report.splits[0].unreadable == 2
    assert report.text().endswith(f"{own}: 6 error(s), 5 warning(s)")
    assert not caplog.text  # the report says it


def test_uneven_classes_and_a_single_one(own: Path) -> None:
    for number in range(40):
        Image.new("RGB", (9, 9), (number, 0, 0)).save(own / f"train/ant/more{number}.png")
    report = check(own)
    assert report.ok
    uneven = f"{own}/train: classes are uneven: 'bee' has 4 image(s), 'ant' has 44"
    assert findings(report, "warning") == [("uneven", uneven)]
    for split in ("train", "val"):
        for name in ("bee", "cat"):
            shutil.rmtree(own / split / name)
    report = check(own)
    assert findings(report, "error") == [
        ("one class", f"{own}/train: only one class: training needs at least two")
    ]


def test_missing_splits_and_folders(own: Path) -> None:
    shutil.rmtree(own / "val")
    report = check(own)
    assert findings(report, "error") == [("layout", f"{own}: no folder 'val'; it holds train")]
    assert report.splits[0].images == 12
    report = check(own / "none")
    assert findings(report, "error") == [("layout", f"{own}/none: no such folder")]
    whole = own / "train"
    assert "--split ." in check(whole).findings[0].text
    assert check_data_set(whole, ["."], workers=1, progress=False).ok


def test_links_in_a_circle_do_not_hide_the_rest(own: Path) -> None:
    (own / "train/cat/again").symlink_to(own / "train/cat")
    (own / "train/bee/gone.png").symlink_to(own / "nowhere.png")
    report = check(own)
    assert findings(report, "error") == [
        ("layout", f"{own}/train/cat/again: is a link to a folder that holds it"),
        ("unreadable", f"{own}/train/bee/gone.png: no such file"),
    ]


def test_long_lists_are_cut_with_a_count(own: Path) -> None:
    for file in (own / "train").rglob("*.png"):
        file.write_bytes(b"")
    lines = check(own).text(limit=3).splitlines()
    assert sum("the file is empty" in line for line in lines) == 3
    assert "error: … and 9 more such (unreadable); --json lists all" in lines


def test_the_demo_data_are_good(demo: Path) -> None:
    assert check_data_set(demo / "classify", workers=2, progress=False).findings == ()


@pytest.mark.parametrize("kind", ["parquet", "tar"])
def test_shards_are_checked_like_their_folder(own: Path, tmp_path: Path, kind: str) -> None:
    shutil.copy(own / "train/bee/0.png", own / "val/bee/9.png")
    shutil.copy(own / "train/ant/1.png", own / "train/cat/again.png")
    folder, out = check(own), tmp_path / "shards"
    write_shards(own, out, ("train", "val"), kind, workers=1, progress=False)
    report = check(out)
    assert report.splits == folder.splits and report.ok
    assert [f.kind for f in report.findings] == [f.kind for f in folder.findings] == ["contradiction", "leak"]
    assert "cat/again.png: the same image as " in report.findings[0].text


@pytest.mark.parametrize("kind", ["parquet", "tar"])
def test_damaged_shards_are_reported_with_their_images(own: Path, tmp_path: Path, kind: str) -> None:
    out = tmp_path / "shards"
    write_shards(own, out, ("train", "val"), kind, workers=1, progress=False)
    (shard,) = (out / "train").glob(f"*.{kind}")
    content = bytearray(shard.read_bytes())
    content[content.index(b"IDAT") + 40] ^= 0xFF
    shard.write_bytes(content)
    errors = findings(check(out), "error")
    assert str(shard) in errors[0][1] and "sha256" in errors[0][1]
    if kind == "parquet":  # its images would go through a cache, which takes whole files only
        assert [kind for kind, _ in errors] == ["damaged", "layout"]
    else:
        assert [kind for kind, _ in errors] == ["damaged", "unreadable"]
        assert "ant/0.png" in errors[1][1] and "damaged or truncated" in errors[1][1]


def test_a_training_says_what_the_check_says(own: Path) -> None:
    for number in range(40):
        Image.new("RGB", (9, 9), (number, 0, 0)).save(own / f"train/ant/more{number}.png")
    (own / "train/cat/LICENSE").write_text("x")
    (own / "val/notes.txt").write_text("x")
    warnings = [
        f"{own}/train: 1 without extension file(s) are no images and not used",
        f"{own}/train: classes are uneven: 'bee' has 4 image(s), 'ant' has 44",
        f"{own}/val: 1 file(s) lie in no class folder",
    ]
    assert build_task(tiny_config("classify", own)).warnings == warnings
    assert [text for _, text in findings(check(own), "warning")] == warnings


@pytest.mark.parametrize("kind", ["parquet", "tar"])
def test_classes_without_images_in_shards(kind: str, own: Path, tmp_path: Path) -> None:
    root = tmp_path / "shards"
    write_shards(own, root, kind=kind, workers=1, progress=False)
    assert build_task(tiny_config("classify", root)).warnings == []
    source = open_split(root, "train", ["ant", "bee", "cat", "dog"], allow_missing=True)
    (finding,) = class_findings(source, training=True)
    assert finding.kind == "absent" and finding.text.endswith("no image of 'dog': never learned")


def test_images_whose_hidden_colors_show_are_counted(own: Path, tmp_path: Path) -> None:
    opaque = Image.new("RGBA", (20, 20), (9, 8, 7, 255))
    opaque.save(own / "train/ant/opaque.png")
    clear = Image.new("RGBA", (20, 20), (200, 8, 7, 0))
    clear.save(own / "train/ant/clear.png")
    clear.save(own / "train/bee/clear.webp", lossless=True, exact=True)
    clear.quantize(4).save(own / "train/cat/palette.gif", transparency=0)
    roots = [own]
    for kind in ("tar", "parquet"):
        roots.append(tmp_path / kind)
        write_shards(own, roots[-1], kind=kind, workers=1, progress=False)
    for root in roots:
        (text,) = [text for kind, text in findings(check(root), "warning") if kind == "alpha"]
        assert text.startswith("train: 3 image(s) have transparent pixels") and "ant/clear.png" in text
        assert "data.background" in text
        report = check_data_set(root, workers=1, progress=False, background="white")
        assert report.ok and "alpha" not in dict(findings(report, "warning"))


def test_numbers_as_class_folders_have_their_order_told(own: Path) -> None:
    for split in ("train", "val"):
        for old, new in (("ant", "1"), ("bee", "2"), ("cat", "10")):
            (own / split / old).rename(own / split / new)
    (first, _) = [text for kind, text in findings(check(own), "warning") if kind == "order"] * 2
    assert first.endswith("label 1 is class '10', not '2'; names with leading zeros have one order")
    for split in ("train", "val"):
        (own / split / "10").rename(own / split / "3")
    assert not [text for kind, text in findings(check(own), "warning") if kind == "order"]
