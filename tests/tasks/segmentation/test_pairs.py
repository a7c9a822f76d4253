import shutil
from pathlib import Path

import pytest

from metaformer.errors import DataError
from metaformer.tasks.segmentation.layouts import LAYOUTS
from metaformer.tasks.segmentation.pairs import Pairs, find_pairs

FOLDERS = LAYOUTS["folders"]


def find(root: Path, split: str = "train") -> Pairs:
    return find_pairs(FOLDERS, root, split)


def test_files_of_one_name_belong_together(labelled: Path) -> None:
    deep = labelled / "images/train/deep/9.JPG"
    deep.parent.mkdir()
    shutil.copy(labelled / "images/train/0.png", deep)
    (labelled / "annotations/train/deep").mkdir()
    shutil.copy(labelled / "annotations/train/0.png", labelled / "annotations/train/deep/9.PNG")
    found = find(labelled)
    assert found.pictures == (*(f"images/train/{i}.png" for i in range(4)), "images/train/deep/9.JPG")
    assert found.label_maps[-1] == "annotations/train/deep/9.PNG"
    assert found.faults == found.unused == ()


def test_what_has_no_partner_is_told(labelled: Path) -> None:
    (labelled / "annotations/train/1.png").unlink()
    (labelled / "images/train/2.png").unlink()
    (labelled / "images/train/notes.txt").write_text("x")
    shutil.copy(labelled / "images/train/3.png", labelled / "images/train/3.jpg")
    found = find(labelled)
    assert found.pictures == ("images/train/0.png", "images/train/3.jpg")
    assert found.faults == (
        f"{labelled}/images/train/3.png: has the name of {labelled}/images/train/3.jpg, "
        "so both would have one label map",
        f"{labelled}/images/train/1.png: no label map {labelled}/annotations/train/1.png",
    )
    assert found.unused == (
        f"{labelled}/images/train: 1 .txt file(s) are not used",
        f"{labelled}/annotations/train/2.png: label map without picture",
    )


def test_label_maps_may_lie_in_folders_of_other_names(labelled: Path) -> None:
    (labelled / "annotations").rename(labelled / "masks")
    assert find(labelled).label_maps[0] == "masks/train/0.png"


def test_whole_folders_that_are_missing(labelled: Path) -> None:
    with pytest.raises(DataError, match=r"images/test: no such folder; .*images holds train, val"):
        find(labelled, "test")
    for file in (labelled / "annotations/val").iterdir():
        file.rename(file.with_suffix(".tif"))
    with pytest.raises(DataError, match=r"annotations/val: no label maps \*\.png; it holds 2 \.tif file"):
        find(labelled, "val")
    shutil.rmtree(labelled / "annotations")
    with pytest.raises(DataError, match=r"no folder of label maps: .*annotations/train or .*labels/train"):
        find(labelled)
    for file in (labelled / "images/val").iterdir():
        file.unlink()
    (labelled / "labels/val").mkdir(parents=True)
    shutil.copy(labelled / "images/train/0.png", labelled / "labels/val/0.png")
    with pytest.raises(DataError, match="images/val: no pictures"):
        find(labelled, "val")
    with pytest.raises(DataError, match="none: no such folder"):
        find(labelled / "none")


def test_a_listing_says_which_pictures(write, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    root = tmp_path / "data"
    for name in ("a", "b", "c"):
        write(f"JPEGImages/{name}.jpg", b"x")
    for name in ("a", "b"):
        write(f"SegmentationClass/{name}.png", b"x")
    write("SegmentationClassAug/b.png", b"x")
    write("SegmentationClassAug/c.png", b"x")
    write("ImageSets/Segmentation/train.txt", "c\na 1\n\nz\n")
    found = find_pairs(LAYOUTS["voc"], root, "train")
    assert found.pictures == ("JPEGImages/a.jpg", "JPEGImages/c.jpg")
    assert found.label_maps == ("SegmentationClass/a.png", "SegmentationClassAug/c.png")
    assert found.faults == (f"{root}/JPEGImages/z.jpg: no such picture",)
    assert found.unused == ()
    with pytest.raises(DataError, match=r"val\.txt: cannot be read .*must name the split's pictures"):
        find_pairs(LAYOUTS["voc"], root, "val")
