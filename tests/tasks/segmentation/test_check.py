import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from metaformer.data.scan import ImageInfo
from metaformer.errors import BadImage, ConfigError, DataError
from metaformer.tasks.check import CheckReport
from metaformer.tasks.segmentation.check import (
    ClassSummary,
    LabelInfo,
    check_label_maps,
    read_labels,
    read_pair,
    summarize,
    validate_label_maps,
)
from metaformer.tasks.segmentation.dataset import open_segmentation
from toys import build_task, findings, tiny_config


def check(root: Path, **options: object) -> CheckReport:
    return check_label_maps(root, workers=1, progress=False, **options)  # type: ignore[arg-type]


def test_good_data_has_no_findings(labeled: Path) -> None:
    report = check(labeled)
    assert report.ok and not report.findings
    lines = report.text().splitlines()
    assert lines[0].startswith("train: 4 images with label maps of 3 of 3 classes; ")
    assert lines[-1] == f"{labeled}: 0 error(s), 0 warning(s)"
    plain = json.loads(json.dumps(report.to_dict()))
    assert plain["ok"] and plain["splits"][1]["per_class"]["road"]["images"] == 2


def test_all_findings_at_once(labeled: Path) -> None:
    images, labels = labeled / "images/train", labeled / "annotations/train"
    Image.new("L", (24, 20), 200).save(labels / "0.png")
    Image.new("L", (24, 24)).save(labels / "1.png")
    Image.new("RGB", (24, 22)).save(labels / "2.png")
    (labels / "3.png").unlink()
    Image.new("L", (4, 4)).save(labels / "over.png")
    (images / "readme.txt").write_text("x")
    (labeled / "images/val/0.png").write_bytes(b"")
    report = check(labeled)
    errors = [
        ("layout", f"{images}/3.png: no label map {labels}/3.png"),
        ("label map", f"{labels}/0.png: label 200 (480 pixels): classes are 0 to 2, ignored 255"),
        ("label map", f"{labels}/1.png: is 24x24 and its image {images}/1.png 24x21"),
        ("label map", f"{labels}/2.png: is an RGB image"),
        ("unreadable", f"{labeled}/images/val/0.png: the file is empty"),
    ]
    for (kind, text), (expected, start) in zip(findings(report, "error"), errors, strict=True):
        assert kind == expected and text.startswith(start)
    assert findings(report, "warning") == [
        ("unpaired", f"{labels}/over.png: label map without image"),
        ("ignored", f"{images}: 1 .txt file(s) are not used"),
        ("absent", f"{images}: no pixel of 'grass', 'road': never learned"),
    ]
    assert [split.unreadable for split in report.splits] == [3, 1]  # type: ignore[attr-defined]
    assert report.text().endswith(f"{labeled}: 5 error(s), 3 warning(s)")


def test_duplicates_and_blank_label_maps_are_warnings(labeled: Path) -> None:
    images, labels = labeled / "images", labeled / "annotations"
    shutil.copy(images / "train/0.png", images / "val/0.png")
    shutil.copy(labels / "train/0.png", labels / "val/0.png")
    shutil.copy(images / "train/1.png", images / "train/again.png")
    Image.new("L", (24, 21), 255).save(labels / "train/again.png")
    report = check(labeled)
    assert report.ok
    again = images / "train/again.png"
    assert findings(report, "warning") == [
        ("contradiction", f"{again}: the same image as {images}/train/1.png, with another label map"),
        ("unlabeled", f"{labels}/train/again.png: all pixels are ignored"),
        ("leak", f"{images}/val/0.png: the same image as {images}/train/0.png of the training split"),
    ]


def test_errors_of_the_layout(labeled: Path) -> None:
    names = labeled.parent / "own.txt"
    names.write_text("sky\nroad\n")
    report = check(labeled, class_names=names)
    assert [kind for kind, _ in findings(report, "error")] == ["layout"] and report.splits == ()
    assert str(names) in report.findings[0].text
    shutil.rmtree(labeled / "images/val")
    report = check(labeled)
    text = f"{labeled}/images/val: no such folder; {labeled}/images holds train"
    assert findings(report, "error") == [("layout", text)]
    assert len(report.splits) == 1
    assert "no such folder" in findings(check(labeled / "none"), "error")[0][1]


def test_a_single_class_is_an_error(labeled: Path) -> None:
    (labeled / "classes.txt").write_text("sky\n")
    for file in (labeled / "annotations").rglob("*.png"):
        values = np.array(Image.open(file))
        Image.fromarray(np.where(values == 255, 255, 0).astype(np.uint8)).save(file)
    ((kind, text),) = findings(check(labeled), "error")
    assert kind == "one class" and text.startswith(f"{labeled}/images/train: only one class, 'sky'")


def validate(root: Path, **options: object) -> None:
    validate_label_maps(open_segmentation(root, "train"), workers=1, progress=False, **options)  # type: ignore[arg-type]


def test_validation_of_good_label_maps(labeled: Path, capfd: pytest.CaptureFixture[str]) -> None:
    validate(labeled)
    assert not capfd.readouterr().err
    validate_label_maps(open_segmentation(labeled, "val"), workers=1)
    assert "label maps of val: 100%" in capfd.readouterr().err


def test_validation_names_the_first_bad_file_and_counts_the_others(labeled: Path) -> None:
    folder = labeled / "annotations/train"
    Image.new("L", (24, 21), 77).save(folder / "1.png")
    Image.new("L", (30, 22)).save(folder / "2.png")
    Image.new("RGB", (24, 23)).save(folder / "3.png")
    with pytest.raises(BadImage, match=r"1\.png: label 77 \(504 pixels\).*and 2 more"):
        validate(labeled)
    (folder / "1.png").unlink()
    (labeled / "images/train/1.png").unlink()
    with pytest.raises(BadImage, match=r"2\.png: is 30x22 and its image .*2\.png 24x22"):
        validate(labeled)
    (labeled / "images/train/2.png").write_bytes(b"no image")
    with pytest.raises(BadImage, match=r"images/train/2\.png: not a JPEG"):
        validate(labeled)


def test_validation_is_shared_by_processes(labeled: Path) -> None:
    Image.new("L", (24, 22), 9).save(labeled / "annotations/train/2.png")
    validate(labeled, part=(1, 2))
    validate(labeled, part=(5, 6))
    with pytest.raises(BadImage, match=r"2\.png: label 9"):
        validate(labeled, part=(0, 2))
    with pytest.raises(ConfigError, match="part is"):
        validate(labeled, part=(2, 2))


def test_validation_accepts_a_few_bad_files(labeled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("L", (24, 22), 9).save(labeled / "annotations/train/2.png")
    with pytest.raises(BadImage, match=r"2\.png"):
        validate(labeled, skip_bad=True)  # one of four is not a few
    monkeypatch.setattr("metaformer.data.scan.BAD_SHARE", 0.25)
    validate(labeled, skip_bad=True)
    with pytest.raises(BadImage, match=r"2\.png"):
        validate(labeled)


def test_contents_of_a_pair(labeled: Path) -> None:
    file = labeled / "annotations/train/0.png"
    values = np.zeros((20, 24), dtype=np.uint8)
    values[0], values[1, :4] = 2, 255
    Image.fromarray(values).save(file)
    folder = open_segmentation(labeled, "train")
    info = read_pair(folder, 0)
    assert (info.width, info.height, info.error, info.label_error) == (24, 20, "", "")
    assert isinstance(info.labels, LabelInfo)
    assert (info.labels.pixels, info.labels.ignored) == ({0: 480 - 28, 2: 24}, 4)
    assert read_labels(folder, 0).labels == LabelInfo(b"", {0: 480 - 28, 2: 24}, 4)
    Image.fromarray(np.full((5, 5), 7, dtype=np.uint8)).save(file)
    error = read_pair(folder, 0).label_error
    assert error.startswith("label 7 (25 pixels): ") and "; is 5x5 and its image" in error


def test_summary_of_a_split() -> None:
    infos = [
        ImageInfo(0, 10, 20, labels=LabelInfo(b"", {0: 150, 2: 30}, 20)),
        ImageInfo(1, 30, 10, labels=LabelInfo(b"", {2: 300}, 0)),
        ImageInfo(2, 5, 5, label_error="is empty"),
        ImageInfo(3, error="no image"),
    ]
    summary = summarize("train", ("sky", "sea", "road"), infos)
    classes = {"sky": ClassSummary(150, 1), "sea": ClassSummary(0, 0), "road": ClassSummary(330, 2)}
    assert summary.per_class == classes
    assert (summary.images, summary.unreadable, summary.ignored) == (4, 2, 0.04)
    assert (summary.smallest, summary.median, summary.largest) == ((5, 5), (10, 20), (30, 10))
    assert summary.text() == (
        "train: 4 images (2 unusable) with label maps of 2 of 3 classes; 4.0 % of the pixels ignored; "
        "sizes 5x5 to 30x10, median 10x20"
    )
    empty = summarize("val", ("sky",), infos[3:])
    assert (empty.ignored, empty.largest) == (0.0, (0, 0))


def write_masks(root: Path, classes: str, *masks: list[int], split: str = "train") -> Path:
    """Images whose label maps are a row of values each."""
    (root / "classes.txt").write_text(classes)
    for kind in ("images", "annotations"):
        shutil.rmtree(root / kind / split)
        (root / kind / split).mkdir()
    for i, values in enumerate(masks):
        pixels = np.full((8, len(values), 3), 20 * i, dtype=np.uint8)
        Image.fromarray(pixels).save(root / f"images/{split}/{i}.png")
        Image.fromarray(np.tile(np.uint8(values), (8, 1))).save(root / f"annotations/{split}/{i}.png")
    return root


@pytest.mark.parametrize(
    ("values", "classes", "error"),
    [
        ((0, 255), "background\ndefect\n", "no pixel of 'defect': the label maps hold only 0 and 255"),
        ((0, 255), "background\ndefect\n", "255 is ignored: write 1 in its place for 'defect'"),
        ((1, 255), "defect\nbackground\n", "no pixel of 'defect': the label maps hold only 1 and 255"),
        ((255, 255), "sky\nsea\nroad\n", "all pixels are ignored: there is nothing to train on"),
    ],
)
def test_masks_of_0_and_255_are_an_error_with_the_remedy(
    values: tuple[int, int], classes: str, error: str, labeled: Path
) -> None:
    write_masks(labeled, classes, [values[0]] * 8, [*values] * 4)
    write_masks(labeled, classes, [0] * 4 + [1] * 4, split="val")
    report = check(labeled)
    assert any(error in text for kind, text in findings(report, "error") if kind == "absent")
    config = tiny_config("segment", labeled, segment={"layout": "folders"})
    with pytest.raises(DataError, match=re.escape(error)):
        build_task(config)


def test_a_training_says_what_the_check_says_of_label_maps(labeled: Path) -> None:
    shutil.copy(labeled / "annotations/train/0.png", labeled / "annotations/train/8.png")
    shutil.copy(labeled / "annotations/train/0.png", labeled / "annotations/train/9.png")
    (labeled / "images/val/notes.txt").write_text("x")
    (labeled / "classes.txt").write_text("sky\ngrass\nroad\nsea\n")
    config = tiny_config("segment", labeled, segment={"layout": "folders"})
    more = "(1 more such; metaformer data check lists all)"
    train, val = labeled / "images/train", labeled / "images/val"
    assert build_task(config).warnings == [
        f"{labeled}/annotations/train/8.png: label map without image {more}",
        f"{train}: no pixel of 'sea': never learned",
        f"{val}: 1 .txt file(s) are not used",
        f"{val}: no pixel of 'sea': never evaluated",
    ]
    assert check(labeled).count("warning") == 5


def test_no_pixel_in_validation_is_no_error(labeled: Path) -> None:
    write_masks(labeled, "background\ndefect\n", [0] * 4 + [1] * 4)
    write_masks(labeled, "background\ndefect\n", [0] * 4 + [255] * 4, split="val")
    config = tiny_config("segment", labeled, segment={"layout": "folders"})
    assert build_task(config).warnings == [f"{labeled}/images/val: no pixel of 'defect': never evaluated"]
