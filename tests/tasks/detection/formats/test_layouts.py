"""Layouts: recognized, named, and what is missing."""

from pathlib import Path

import pytest

from metaformer.errors import DataError, UnknownName
from metaformer.tasks.detection.formats.layouts import find_layout, find_split, recognize_layout
from toys import Write


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
        found = find_layout(root, name)
        paths = find_split(*found, "val")
        assert (paths.layout, paths.labels, paths.images) == (layout, root / labels, root / images)
    if layout != "voc":  # whose files are those of all splits
        with pytest.raises(DataError, match="no annotations of split 'test'"):
            find_split(*found, "test")


def test_missing_files_are_named(write: Write, tmp_path: Path) -> None:
    root = tmp_path / "data"
    with pytest.raises(DataError, match="no such folder"):
        find_layout(root, "auto")
    write("readme.md", "")
    assert recognize_layout(root) is None
    with pytest.raises(DataError, match=r"it holds readme\.md; set detect\.layout \(coco, voc, yolo\)"):
        find_layout(root, "auto")
    with pytest.raises(DataError, match="is a file"):
        find_layout(root / "readme.md", "coco")
    with pytest.raises(UnknownName, match="did you mean coco"):
        find_layout(root, "cocoa")
    with pytest.raises(DataError, match=r"split 'val': .*instances_val2017\.json or .*instances_val"):
        find_split(*find_layout(root, "coco"), "val")
    write("annotations/instances_val2017.json", "")
    with pytest.raises(DataError, match=r"no folder of its images, .*/val2017 or .*/images/val2017"):
        find_split(*find_layout(root, "coco"), "val")


@pytest.mark.parametrize(
    ("labels", "images", "layout"),
    [
        ("annotations/instances_default.json", "images/a.jpg", "coco"),  # CVAT
        ("default/labels.json", "default/data/a.jpg", "coco"),  # FiftyOne, each split exported to a folder
        ("default/labels/a.xml", "default/data/a.jpg", "voc"),
        ("labels/default/a.txt", "images/default/a.jpg", "yolo"),
        ("obj_default_data/a.txt", "obj_default_data/a.jpg", "yolo"),  # CVAT
    ],
)
def test_exports_of_other_programs(
    labels: str, images: str, layout: str, write: Write, tmp_path: Path
) -> None:
    write(labels, "")
    write(images, "")
    found = find_split(*find_layout(tmp_path / "data", "auto"), "default")
    file = tmp_path / "data" / labels
    assert found.layout == layout and found.images == (tmp_path / "data" / images).parent
    assert found.labels == (file if layout == "coco" else file.parent)


def test_a_flat_layout_is_divided_without_leaks(write: Write, tmp_path: Path) -> None:
    names = [f"{number:02d}.jpg" for number in range(23)]
    for name in names:
        write(f"images/{name}", "")
        write(f"labels/{name[:-4]}.txt", "")
    layout, root = find_layout(tmp_path / "data", "auto")
    train, val, whole = (find_split(layout, root, split).select(names) for split in ("train", "val", "all"))
    assert sorted(train + val) == whole == names and len(val) == 4
    assert find_split(layout, root, "val").select(names[::-1]) == val[::-1]
    with pytest.raises(DataError, match="'test'"):
        find_split(layout, root, "test")
    write("labels/train/a.txt", "")  # a data set with splits lacks val
    with pytest.raises(DataError, match="'val'"):
        find_split(layout, root, "val")


def test_label_maps_are_no_text_files(write: Write, tmp_path: Path) -> None:
    write("labels/train/1.png", "")
    write("images/train/1.png", "")
    assert recognize_layout(tmp_path / "data") is None


def test_the_recognized_layout_is_named_beside_a_wrong_one(write: Write, tmp_path: Path) -> None:
    write("labels/train/a.txt", "")
    root = tmp_path / "data"
    with pytest.raises(DataError, match=r"no annotations of split 'train': .* it looks like the layout yolo"):
        find_split(*find_layout(root, "coco"), "train")
