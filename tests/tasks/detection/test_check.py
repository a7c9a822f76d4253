"""`metaformer data check` of detection data sets, and the check of sizes before a run."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from metaformer.data.scan import ImageInfo
from metaformer.errors import BadImage, DataError
from metaformer.tasks.check import CheckReport
from metaformer.tasks.detection.check import ObjectCount, check_objects, check_sizes, summarize
from metaformer.tasks.detection.dataset import open_detection
from toys import Block, Write, build_task, findings, tiny_config, write_coco


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


def said(root: Path, **detect: object) -> list[str]:
    """What a training on a data set says about it before its first step."""
    config = tiny_config("detect", root, detect={"head": "retinanet", **detect})
    return build_task(config).warnings


def write_boxes(root: Path, boxes: list[list[float]], crowds: int = 0, split: str = "train2017") -> Path:
    """Images of 96 × 80 with boxes, four each, in COCO's layout; the first are crowds."""
    images = -(-len(boxes) // 4)
    scenes = [(np.full((80, 96, 3), 9 * i, np.uint8), [Block(0, (1, 1, 2, 2))] * 4) for i in range(images)]
    file = write_coco(root, split, scenes, {"ant": 1}, range(1, images + 1))  # type: ignore[arg-type]
    document = json.loads(file.read_text())
    rows = document["annotations"][: len(boxes)]
    for i, (row, box) in enumerate(zip(rows, boxes, strict=True)):
        row.update(bbox=box, iscrowd=int(i < crowds), segmentation=[], area=None)
    file.write_text(json.dumps({**document, "annotations": rows}))
    return file


BOXES: list[list[float]] = [
    [30, 40, 12, 9], [5, 50, 8, 20], [60, 3, 20, 16], [70, 60, 11, 12], [40, 20, 15, 9], [10, 9, 9, 9],
    [2, 30, 18, 9], [50, 55, 20, 9],
]  # fmt: skip


def test_a_training_says_what_the_check_says_of_objects(tmp_path: Path) -> None:
    file = write_boxes(tmp_path, [*BOXES, BOXES[-1], BOXES[-1], [3, 3, 0.5, 5]], crowds=6)
    val = write_boxes(tmp_path, BOXES, split="val2017")
    (tmp_path / "train2017/more.png").write_bytes((tmp_path / "train2017/00.png").read_bytes())
    for one in (file, val):
        document = json.loads(one.read_text())
        document["categories"].append({"id": 2, "name": "bee"})
        one.write_text(json.dumps(document))
    warnings = [
        f"{tmp_path}/train2017: 1 image(s) without annotations are not used",
        f"{file}: annotation 11 of 02.png: is narrower than a pixel: never trained on",
        f"{file}: annotation 10 of 02.png: the same class and box as annotation 9",
        f"{file}: 6 of 11 objects are crowds, or difficult: neither trained on nor counted",
        f"{file}: no object of 'bee': never learned",
        f"{val}: no object of 'bee': never evaluated",
    ]
    assert said(tmp_path) == warnings
    assert [text for kind, text in findings(check(tmp_path), "warning") if kind != "leak"] == warnings
    document = json.loads(file.read_text())
    document["annotations"][8]["image_id"] = document["annotations"][7]["image_id"]
    file.write_text(json.dumps(document))
    assert f"{file}: annotation 9 of 01.png: the same class and box as annotation 8" in said(tmp_path)


def test_other_objects_are_not_doubled_and_half_are_not_mostly_crowds(tmp_path: Path) -> None:
    write_boxes(tmp_path, BOXES, crowds=4)
    write_boxes(tmp_path, BOXES, split="val2017")
    assert said(tmp_path) == []


def fractions(boxes: list[list[float]]) -> list[list[float]]:
    return [[value / (96, 80)[i % 2] for i, value in enumerate(box)] for box in boxes]


def test_boxes_that_look_normalized(tmp_path: Path) -> None:
    file = write_boxes(tmp_path, fractions(BOXES))
    write_boxes(tmp_path, BOXES, split="val2017")
    look = "all boxes lie within 0 … 1: they look normalized to the image's size, but are read as pixels"
    text = f"{file}: {look}"
    assert text in said(tmp_path)
    assert ("normalized", text) in findings(check(tmp_path), "warning")
    file = write_boxes(tmp_path, fractions([[3, 3, 0.5, 5]]))
    ((_, text),) = [one for one in findings(check(tmp_path), "error") if one[0] == "box"]
    assert text.endswith("it looks normalized to the image's size, but COCO's boxes are in pixels")


@pytest.mark.parametrize("layout", ["voc", "yolo"])
def test_boxes_that_look_normalized_in_other_layouts(layout: str, write: Write) -> None:
    for split in ("train", "val"):
        image = f"images/{split}/a.png" if layout == "yolo" else f"JPEGImages/{split}.jpg"
        write(image, np.full((80, 96, 3), len(split), np.uint8))
        if layout == "yolo":
            write(f"labels/{split}/a.txt", "0 0.004 0.006 0.002 0.003\n0 0.005 0.004 0.004 0.004\n")
        else:
            box = "<bndbox><xmin>0.2</xmin><ymin>0.3</ymin><xmax>0.4</xmax><ymax>0.9</ymax></bndbox>"
            write(
                f"Annotations/{split}.xml", f"<annotation><object><name>ant</name>{box}</object></annotation>"
            )
            write(f"ImageSets/Main/{split}.txt", split)
    root = write("classes.txt", "ant\n").parent
    lines = [line for line in said(root, layout=layout) if "look normalized" in line]
    assert len(lines) == 2 and all("all boxes lie within 0 … 1" in line for line in lines)


CORNERS = [[left, top, left + width, top + height] for left, top, width, height in BOXES]


def test_corners_in_place_of_a_size(tmp_path: Path) -> None:
    file = write_boxes(tmp_path, CORNERS)
    write_boxes(tmp_path, BOXES, split="val2017")
    texts = [text for kind, text in findings(check(tmp_path), "error") if kind == "border"]
    assert len(texts) == 5
    hint = "it looks like left, top, right, bottom, but COCO's boxes are left, top, width, height"
    assert all(text.endswith(hint) for text in texts)
    with pytest.raises(DataError, match=hint):
        said(tmp_path)
    near = [[left / 3, top / 3, right / 3, bottom / 3] for left, top, right, bottom in CORNERS]
    file = write_boxes(tmp_path, near)
    (text,) = said(tmp_path)
    assert (
        text.startswith(f"{file}: all boxes are wider than their left") and "left, top, right, bottom" in text
    )
    assert ("corners", text) in findings(check(tmp_path), "warning")


def test_large_objects_are_no_corners(tmp_path: Path) -> None:
    write_boxes(tmp_path, [[4 + i, 3 + i, 80, 60] for i in range(8)])
    write_boxes(tmp_path, BOXES, split="val2017")
    assert said(tmp_path) == []


def test_labels_without_image_and_images_without_label(write: Write) -> None:
    for split in ("train", "val"):
        for i, name in enumerate(("a", "b", "c", "d")):
            write(f"images/{split}/{name}.png", np.full((80, 96, 3), 20 * i + len(split), np.uint8))
        for name in ("a", "b", "x", "y"):
            write(f"labels/{split}/{name}.txt", "0 0.5 0.5 0.2 0.2\n")
    root = write("data.yaml", "names: [ant]\n").parent
    more = "(1 more such; metaformer data check lists all)"
    expected = []
    for split in ("train", "val"):
        none = f"{root}/images/{split}/c.png: no annotations {root}/labels/{split}/c.txt: it counts as empty"
        expected += [f"{none} {more}", f"{root}/labels/{split}/x.txt: annotations without image {more}"]
    assert said(root) == expected
    kinds = [kind for kind, _ in findings(check(root), "warning")]
    assert kinds == ["unlabeled"] * 2 + ["unpaired"] * 2 + ["unlabeled"] * 2 + ["unpaired"] * 2
