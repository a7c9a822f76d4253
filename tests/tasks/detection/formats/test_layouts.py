from collections.abc import Callable
from pathlib import Path

import pytest

from metaformer.errors import DataError, UnknownName
from metaformer.tasks.detection.formats.layouts import (
    choose_detection_layout,
    find_detection_layout,
    find_place,
)

Write = Callable[[str, object], Path]


@pytest.mark.parametrize(
    ("files", "layout", "labels", "images"),
    [
        (
            ("annotations/instances_val2017.json", "val2017/1.jpg"),
            "coco",
            "annotations/instances_val2017.json",
            "val2017",
        ),
        (
            ("annotations/instances_val.json", "images/val/1.jpg"),
            "coco",
            "annotations/instances_val.json",
            "images/val",
        ),
        (("valid/_annotations.coco.json", "valid/1.jpg"), "coco", "valid/_annotations.coco.json", "valid"),
        (("Annotations/1.xml", "JPEGImages/1.jpg"), "voc", "Annotations", "JPEGImages"),
        (
            ("VOCdevkit/VOC2012/Annotations/1.xml", "VOCdevkit/VOC2012/JPEGImages/1.jpg"),
            "voc",
            "VOCdevkit/VOC2012/Annotations",
            "VOCdevkit/VOC2012/JPEGImages",
        ),
        (("labels/val/1.txt", "images/val/1.jpg"), "yolo", "labels/val", "images/val"),
        (("labels/val2017/1.txt", "images/val2017/1.jpg"), "yolo", "labels/val2017", "images/val2017"),
        (("valid/labels/1.txt", "valid/images/1.jpg"), "yolo", "valid/labels", "valid/images"),
    ],
)
def test_layouts_are_recognized_or_named(
    files: tuple[str, ...], layout: str, labels: str, images: str, write: Write, tmp_path: Path
) -> None:
    root = tmp_path / "data"
    for name in files:
        write(name, "")
    for name in ("auto", layout):
        form, home = choose_detection_layout(root, name)
        place = find_place(form, home, "val")
        assert (place.layout, place.labels, place.images) == (layout, root / labels, root / images)
    if layout != "voc":  # whose files are those of all splits
        with pytest.raises(DataError, match="no annotations of split 'test'"):
            find_place(form, home, "test")


def test_what_is_not_there_is_told(write: Write, tmp_path: Path) -> None:
    root = tmp_path / "data"
    with pytest.raises(DataError, match="no such folder"):
        choose_detection_layout(root, "auto")
    write("readme.md", "")
    assert find_detection_layout(root) is None
    with pytest.raises(DataError, match=r"it holds readme\.md; say detect\.layout \(coco, voc, yolo\)"):
        choose_detection_layout(root, "auto")
    with pytest.raises(DataError, match="is a file"):
        choose_detection_layout(root / "readme.md", "coco")
    with pytest.raises(UnknownName, match="did you mean coco"):
        choose_detection_layout(root, "cocoa")
    wanted = (
        r"no annotations of split 'val': annotations/instances_val2017\.json or annotations/instances_val"
    )
    with pytest.raises(DataError, match=wanted):
        find_place(*choose_detection_layout(root, "coco"), "val")
    write("annotations/instances_val2017.json", "")
    with pytest.raises(DataError, match=r"no folder of its images, .*/val2017 or .*/images/val2017"):
        find_place(*choose_detection_layout(root, "coco"), "val")


def test_label_maps_are_no_text_files(write: Write, tmp_path: Path) -> None:
    write("labels/train/1.png", "")
    write("images/train/1.png", "")
    assert find_detection_layout(tmp_path / "data") is None


def test_another_layout_is_named_where_it_is_what_there_is(write: Write, tmp_path: Path) -> None:
    write("labels/train/a.txt", "")
    root = tmp_path / "data"
    with pytest.raises(DataError, match=r"no annotations of split 'train': .* it looks like the layout yolo"):
        find_place(*choose_detection_layout(root, "coco"), "train")
