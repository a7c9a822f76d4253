import shutil
from pathlib import Path

import pytest

from metaformer.errors import DataError
from metaformer.tasks.segmentation.layouts import LAYOUTS
from metaformer.tasks.segmentation.pairs import Pairs, find_pairs

FOLDERS = LAYOUTS["folders"]


def find(root: Path, split: str = "train") -> Pairs:
    return find_pairs(FOLDERS, root, split)


def test_files_of_one_name_belong_together(labeled: Path) -> None:
    deep = labeled / "images/train/deep/9.JPG"
    deep.parent.mkdir()
    shutil.copy(labeled / "images/train/0.png", deep)
    (labeled / "annotations/train/deep").mkdir()
    shutil.copy(labeled / "annotations/train/0.png", labeled / "annotations/train/deep/9.PNG")
    found = find(labeled)
    assert found.images == (*(f"images/train/{i}.png" for i in range(4)), "images/train/deep/9.JPG")
    assert found.label_maps[-1] == "annotations/train/deep/9.PNG"
    assert found.faults == found.unused == ()


def test_what_has_no_partner_is_told(labeled: Path) -> None:
    (labeled / "annotations/train/1.png").unlink()
    (labeled / "images/train/2.png").unlink()
    (labeled / "images/train/notes.txt").write_text("x")
    shutil.copy(labeled / "images/train/3.png", labeled / "images/train/3.jpg")
    found = find(labeled)
    assert found.images == ("images/train/0.png", "images/train/3.jpg")
    assert found.faults == (
        f"{labeled}/images/train/3.png: has the name of {labeled}/images/train/3.jpg, "
        "so both would have one label map",
        f"{labeled}/images/train/1.png: no label map {labeled}/annotations/train/1.png",
    )
    assert found.unused == (
        f"{labeled}/images/train: 1 .txt file(s) are not used",
        f"{labeled}/annotations/train/2.png: label map without image",
    )


def test_label_maps_may_lie_in_folders_of_other_names(labeled: Path) -> None:
    (labeled / "annotations").rename(labeled / "masks")
    assert find(labeled).label_maps[0] == "masks/train/0.png"


def test_whole_folders_that_are_missing(labeled: Path) -> None:
    with pytest.raises(DataError, match=r"images/test: no such folder; .*images holds train, val"):
        find(labeled, "test")
    for file in (labeled / "annotations/val").iterdir():
        file.rename(file.with_suffix(".tif"))
    with pytest.raises(DataError, match=r"annotations/val: no label maps \*\.png; it holds 2 \.tif file"):
        find(labeled, "val")
    shutil.rmtree(labeled / "annotations")
    with pytest.raises(DataError, match=r"no folder of label maps: .*annotations/train or .*labels/train"):
        find(labeled)
    for file in (labeled / "images/val").iterdir():
        file.unlink()
    (labeled / "labels/val").mkdir(parents=True)
    shutil.copy(labeled / "images/train/0.png", labeled / "labels/val/0.png")
    with pytest.raises(DataError, match="images/val: no images"):
        find(labeled, "val")
    with pytest.raises(DataError, match="none: no such folder"):
        find(labeled / "none")


def test_a_listing_says_which_images(write, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    root = tmp_path / "data"
    for name in ("a", "b", "c"):
        write(f"JPEGImages/{name}.jpg", b"x")
    for name in ("a", "b"):
        write(f"SegmentationClass/{name}.png", b"x")
    write("SegmentationClassAug/b.png", b"x")
    write("SegmentationClassAug/c.png", b"x")
    write("ImageSets/Segmentation/train.txt", "c\na 1\n\nz\n")
    found = find_pairs(LAYOUTS["voc"], root, "train")
    assert found.images == ("JPEGImages/a.jpg", "JPEGImages/c.jpg")
    assert found.label_maps == ("SegmentationClass/a.png", "SegmentationClassAug/c.png")
    assert found.faults == (f"{root}/JPEGImages/z.jpg: no such image",)
    assert found.unused == ()
    with pytest.raises(DataError, match=r"val\.txt: cannot be read .*must name the split's images"):
        find_pairs(LAYOUTS["voc"], root, "val")
