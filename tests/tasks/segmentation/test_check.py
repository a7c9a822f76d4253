import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from metaformer.tasks.check import CheckReport
from metaformer.tasks.segmentation.check import check_label_maps


def check(root: Path, **options: object) -> CheckReport:
    return check_label_maps(root, workers=1, progress=False, **options)  # type: ignore[arg-type]


def found(report: CheckReport, grade: str) -> list[tuple[str, str]]:
    return [(finding.kind, finding.text) for finding in report.findings if finding.grade == grade]


def test_a_good_data_set_has_no_findings(labeled: Path) -> None:
    report = check(labeled)
    assert report.ok and not report.findings
    told = report.text().splitlines()
    assert told[0].startswith("train: 4 images with label maps of 3 of 3 classes; ")
    assert told[-1] == f"{labeled}: 0 error(s), 0 warning(s)"
    written = json.loads(json.dumps(report.to_dict()))
    assert written["ok"] and written["splits"][1]["per_class"]["road"]["images"] == 2


def test_all_that_is_wrong_is_told_at_once(labeled: Path) -> None:
    images, labels = labeled / "images/train", labeled / "annotations/train"
    Image.new("L", (24, 20), 200).save(labels / "0.png")
    Image.new("L", (24, 24)).save(labels / "1.png")
    Image.new("RGB", (24, 22)).save(labels / "2.png")
    (labels / "3.png").unlink()
    Image.new("L", (4, 4)).save(labels / "over.png")
    (images / "readme.txt").write_text("x")
    (labeled / "images/val/0.png").write_bytes(b"")
    report = check(labeled)
    assert found(report, "error") == [
        ("layout", f"{images}/3.png: no label map {labels}/3.png"),
        ("label map", f"{labels}/0.png: label 200 (480 pixels): classes are 0 to 2, ignored 255"),
        (
            "label map",
            f"{labels}/1.png: is 24x24 and its image {images}/1.png 24x21: both must have one size",
        ),
        (
            "label map",
            f"{labels}/2.png: is an RGB image, no label map: "
            "save one number a pixel, as a gray or palette PNG",
        ),
        ("unreadable", f"{labeled}/images/val/0.png: the file is empty"),
    ]
    assert found(report, "warning") == [
        ("ignored", f"{images}: 1 .txt file(s) are not used"),
        ("ignored", f"{labels}/over.png: label map without image"),
        ("absent", f"{images}: no pixel of 'grass', 'road': never learned"),
    ]
    assert [split.unreadable for split in report.splits] == [3, 1]
    assert report.text().endswith(f"{labeled}: 5 error(s), 3 warning(s)")


def test_copies_contradictions_and_blank_label_maps_are_warned_of(labeled: Path) -> None:
    images, labels = labeled / "images", labeled / "annotations"
    shutil.copy(images / "train/0.png", images / "val/0.png")
    shutil.copy(labels / "train/0.png", labels / "val/0.png")
    shutil.copy(images / "train/1.png", images / "train/again.png")
    Image.new("L", (24, 21), 255).save(labels / "train/again.png")
    report = check(labeled)
    assert report.ok
    assert found(report, "warning") == [
        ("unlabeled", f"{labels}/train/again.png: every pixel is ignored, nothing is learned from it"),
        (
            "contradiction",
            f"{images}/train/again.png: the same image as {images}/train/1.png, with another label map",
        ),
        ("leak", f"{images}/val/0.png: the same image as {images}/train/0.png of the training split"),
    ]


def test_what_hides_everything_else(labeled: Path) -> None:
    own = labeled.parent / "own.txt"
    own.write_text("sky\nroad\n")
    report = check(labeled, classes=own)
    told = f"{own}: names 2 classes, {labeled}/classes.txt 3: they must agree"
    assert found(report, "error") == [("layout", told)] and report.splits == ()
    shutil.rmtree(labeled / "images/val")
    report = check(labeled)
    assert found(report, "error") == [
        ("layout", f"{labeled}/images/val: no such folder; {labeled}/images holds train")
    ]
    assert len(report.splits) == 1
    assert "no such folder" in found(check(labeled / "none"), "error")[0][1]


def test_a_single_class_is_nothing_to_learn(labeled: Path) -> None:
    (labeled / "classes.txt").write_text("sky\n")
    for file in (labeled / "annotations").rglob("*.png"):
        numbers = np.array(Image.open(file))
        Image.fromarray(np.where(numbers == 255, 255, 0).astype(np.uint8)).save(file)
    errors = found(check(labeled), "error")
    told = f"{labeled}/images/train: only one class, 'sky': training needs at least two"
    assert errors == [("one class", told)]


@pytest.mark.parametrize("zero", [True, False])
def test_the_demo_scenes_are_good(demo: Path, zero: bool) -> None:
    report = check(demo / "segment", reduce_zero_label=zero)
    assert report.ok
    assert len(report.splits[0].per_class) == 11 - zero
