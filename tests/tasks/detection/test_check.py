"""`metaformer data check` of detection data sets, and the check of sizes before a run."""

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from metaformer.data.scan import ImageInfo
from metaformer.errors import BadImage
from metaformer.tasks.check import CheckReport
from metaformer.tasks.detection.check import ObjectCount, check_objects, check_sizes, summarize
from metaformer.tasks.detection.dataset import open_detection
from toys import findings


def check(root: Path, **options: object) -> CheckReport:
    return check_objects(root, workers=1, progress=False, **options)  # type: ignore[arg-type]


def held_out(root: Path) -> Path:
    """Hold out the same scenes, mirrored."""
    shutil.copytree(root / "train2017", root / "val2017")
    for file in (root / "val2017").iterdir():
        Image.open(file).transpose(Image.Transpose.FLIP_TOP_BOTTOM).save(file)
    return Path(
        shutil.copy(
            root / "annotations/instances_train2017.json", root / "annotations/instances_val2017.json"
        )
    )


def test_a_good_data_set_has_no_findings(objects: Path) -> None:
    held_out(objects)
    report = check(objects)
    assert report.ok and not report.findings
    lines = report.text().splitlines()
    assert lines[0].startswith(
        "train: 5 images, 1 of them empty, with 8 objects (8 with masks, 1 crowds) of 2 of 2"
    )
    written = json.loads(json.dumps(report.to_dict()))
    assert written["ok"] and written["splits"][1]["per_class"]["bee"] == {"objects": 3, "images": 3}


def test_all_errors_are_reported_at_once(objects: Path) -> None:
    file = held_out(objects)
    document = json.loads(file.read_text())
    rows, annotations = document["images"], document["annotations"]
    annotations[0]["bbox"] = [1, 2, 0, 6]
    annotations[1]["category_id"] = 5
    annotations[2]["bbox"] = [1, 2, 0.5, 6]
    annotations[3]["segmentation"] = []
    annotations[4]["id"] = 4
    rows[2]["width"] = 21
    rows[3]["file_name"] = "none.png"
    file.write_text(json.dumps(document))
    (objects / "val2017/5.png").write_bytes(b"junk")
    (objects / "val2017/more.png").write_bytes(b"junk")
    report, images = check(objects), objects / "val2017"
    assert findings(report, "error") == [
        ("image", f"{file}: image 4: no such image {images}/none.png"),
        (
            "box",
            f"{file}: annotation 1 of 1.png: bbox [1, 2, 0, 6] is 0 wide and 6 high: both must be above 0",
        ),
        ("category", f"{file}: annotation 2 of 1.png: category_id is 5: no such category in the file"),
        ("id", f"{file}: annotation 4: another annotation has this id"),
        (
            "size",
            f"{images}/3.png: is 20x20, but 21x20 in {file}: "
            "boxes are of another image, or of another size of it",
        ),
        (
            "unreadable",
            f"{images}/5.png: not a JPEG, PNG, WebP, BMP or GIF image, or its header is damaged",
        ),
        (
            "segmentation",
            f"{file}: annotation 4 of 2.png: has no segmentation, which other objects have",
        ),
    ]
    assert findings(report, "warning") == [
        ("ignored", f"{images}: 2 image(s) without annotations are not used"),
        ("tiny", f"{file}: annotation 3 of 2.png: is narrower than a pixel: never trained on"),
    ]
    assert report.splits[1].unreadable == 2 and report.text().endswith("7 error(s), 2 warning(s)")


def test_duplicates_and_absent_classes(objects: Path) -> None:
    file = held_out(objects)
    document = json.loads(file.read_text())
    document["categories"].append({"id": 9, "name": "cat"})
    file.write_text(json.dumps(document))
    report = check(objects)
    assert findings(report, "error") == [
        ("layout", f"{file}: category 'cat' is not among the 2 of the class list")
    ]
    file.rename(objects / "annotations/instances_train2017.json")
    shutil.copy(objects / "train2017/1.png", objects / "train2017/2.png")
    shutil.rmtree(objects / "val2017")
    for entry in document["images"][1:2]:
        entry.update(width=24, height=16)
        document["annotations"][3]["category_id"] = 3
        document["annotations"][2]["segmentation"] = document["annotations"][0]["segmentation"]
    (objects / "annotations/instances_train2017.json").write_text(json.dumps(document))
    shutil.copytree(objects / "train2017", objects / "val2017")
    shutil.copy(
        objects / "annotations/instances_train2017.json", objects / "annotations/instances_val2017.json"
    )
    report = check(objects)
    assert report.ok
    warnings = findings(report, "warning")
    train, val = objects / "train2017", objects / "val2017"
    same = f"{train}/2.png: the same image as {train}/1.png, with other objects"
    assert warnings[0] == ("contradiction", same)
    absent = f"{objects}/annotations/instances_train2017.json: no object of 'cat': never learned"
    assert warnings[1] == ("absent", absent)
    leak = f"{val}/1.png: the same image as {train}/1.png of the training split"
    assert ("leak", leak) in warnings


def test_errors_that_hide_all_others(objects: Path) -> None:
    assert [kind for kind, _ in findings(check(objects), "error")] == ["layout"]  # no val
    file = objects / "annotations/instances_train2017.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "annotations": []}))
    report = check(objects, splits=("train",))
    assert findings(report, "error") == [
        ("absent", f"{file}: no object at all: there is nothing to train on")
    ]
    assert "no such folder" in findings(check(objects / "none"), "error")[0][1]


def test_objects_and_images_are_counted_without_crowds(objects: Path) -> None:
    folder = open_detection(objects, "train", masks=True)
    images = [ImageInfo(index, *folder.size(index)) for index in range(4)] + [ImageInfo(4, error="damaged")]
    summary = summarize("train", folder, images)
    assert (summary.images, summary.unreadable, summary.empty) == (5, 1, 1)
    assert (summary.objects, summary.crowds, summary.outlined) == (8, 1, 8)
    assert summary.per_class == {"ant": ObjectCount(4, 4), "bee": ObjectCount(3, 3)}
    assert (summary.smallest, summary.median, summary.largest) == ((24, 16), (20, 20), (40, 10))
    assert "train: 5 images (1 unusable), 1 of them empty, with 8 objects" in summary.text()


def test_images_of_another_size_are_named_by_their_headers(objects: Path) -> None:
    folder = open_detection(objects, "train")
    check_sizes(folder, workers=1, progress=False)
    Image.new("RGB", (12, 8)).save(objects / "train2017/1.png")
    (objects / "train2017/2.png").write_bytes(b"junk")
    error = r"1\.png: is 12x8, but 24x16 in .* \(and 1 more bad files; metaformer data check lists all\)"
    with pytest.raises(BadImage, match=error):
        check_sizes(folder, workers=1, progress=False)
    with pytest.raises(BadImage, match=r"2\.png: not a JPEG"):
        check_sizes(folder, part=(1, 5), workers=1, progress=False)
    check_sizes(folder, part=(2, 5), workers=1, progress=False)
