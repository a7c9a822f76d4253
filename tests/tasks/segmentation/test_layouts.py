import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from metaformer.data.class_lists import class_list
from metaformer.errors import DataError, UnknownName
from metaformer.tasks.segmentation.layouts import LAYOUTS, ImagePairs, choose_layout, find_layout, find_pairs

FOLDERS, VOC = LAYOUTS["folders"], LAYOUTS["voc"]


@pytest.mark.parametrize(
    ("paths", "name", "subfolder"),
    [
        (("images/training", "annotations/training"), "ade20k", ""),
        (("images/validation", "annotations/validation"), "ade20k", ""),
        (("images/training", "annotations"), "ade20k", "ADEChallengeData2016"),
        (("JPEGImages", "SegmentationClass"), "voc", ""),
        (("JPEGImages", "SegmentationClass"), "voc", "VOCdevkit/VOC2012"),
        (("leftImg8bit", "gtFine"), "cityscapes", ""),
        (("images/train2017", "stuffthingmaps/train2017"), "coco_stuff", ""),
        (("images/train", "masks/train"), "folders", ""),
        (("images/training", "annotations", "classes.txt"), "folders", ""),
        (("images/train2017", "classes.txt"), "folders", ""),
    ],
)
def test_layouts_are_recognized(tmp_path: Path, paths: tuple[str, ...], name: str, subfolder: str) -> None:
    for path in paths:
        (tmp_path / subfolder / path).mkdir(parents=True)
    found = find_layout(tmp_path)
    assert found == (LAYOUTS[name], tmp_path / subfolder)
    assert choose_layout(tmp_path, "auto") == choose_layout(tmp_path, name) == found


def test_other_folders_are_not_recognized(tmp_path: Path, pets: Path, demo: Path) -> None:
    for root in (pets, demo / "classify", demo / "detect", tmp_path / "nowhere"):
        assert find_layout(root) is None
    with pytest.raises(DataError, match=r"pets.*: no known layout .* holds train, val; .*segment\.layout"):
        choose_layout(pets, "auto")
    with pytest.raises(DataError, match="nowhere: no such folder"):
        choose_layout(tmp_path / "nowhere", "auto")
    with pytest.raises(UnknownName, match="did you mean ade20k"):
        choose_layout(pets, "ade20")


def test_encodings_have_a_value_for_each_class() -> None:
    for layout in LAYOUTS.values():
        for encoding in layout.encodings:
            if encoding.values is not None:
                assert layout.class_list is not None
                assert len(encoding.values) == len(class_list(layout.class_list).names)
                assert not set(encoding.values) & set(encoding.ignored)
    ids = LAYOUTS["cityscapes"].encodings[0]
    assert sorted({*(ids.values or ()), *ids.ignored}) == list(range(34))


def find(root: Path, split: str = "train") -> ImagePairs:
    return find_pairs(FOLDERS, root, split)


def test_images_and_label_maps_are_paired_by_name(labeled: Path) -> None:
    for source, deep in (("images", "deep/9.JPG"), ("annotations", "deep/9.PNG")):
        (labeled / source / "train/deep").mkdir()
        shutil.copy(labeled / source / "train/0.png", labeled / source / "train" / deep)
    pairs = find(labeled)
    assert pairs.images == (*(f"images/train/{i}.png" for i in range(4)), "images/train/deep/9.JPG")
    assert pairs.label_maps[-1] == "annotations/train/deep/9.PNG"
    assert pairs.errors == pairs.unused == ()


def test_files_without_a_partner_are_named(labeled: Path) -> None:
    images, label_maps = labeled / "images/train", labeled / "annotations/train"
    (label_maps / "1.png").unlink()
    (images / "2.png").unlink()
    (images / "notes.txt").write_text("x")
    shutil.copy(images / "3.png", images / "3.jpg")
    pairs = find(labeled)
    assert pairs.images == ("images/train/0.png", "images/train/3.jpg")
    same, missing = pairs.errors
    assert same.startswith(f"{images}/3.png: has the name of {images}/3.jpg")
    assert missing == f"{images}/1.png: no label map {label_maps}/1.png"
    assert pairs.unused == (f"{images}: 1 .txt file(s) are not used",)
    assert pairs.unpaired == (label_maps / "2.png",)


def test_other_folders_of_label_maps(labeled: Path) -> None:
    (labeled / "annotations").rename(labeled / "masks")
    assert find(labeled).label_maps[0] == "masks/train/0.png"


def test_missing_folders_and_files(labeled: Path) -> None:
    with pytest.raises(DataError, match=r"images/test: no such folder; .*images holds train, val"):
        find(labeled, "test")
    for file in (labeled / "annotations/val").iterdir():
        file.rename(file.with_suffix(".tif"))
    with pytest.raises(DataError, match=r"annotations/val: no label maps \*\.png; .* 2 \.tif"):
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


def test_split_lists_choose_the_images(write: Callable[[str, object], Path], tmp_path: Path) -> None:
    root = tmp_path / "data"
    for name in ("a", "b", "c"):
        write(f"JPEGImages/{name}.jpg", b"x")
    for name in ("Class/a", "Class/b", "ClassAug/b", "ClassAug/c"):
        write(f"Segmentation{name}.png", b"x")
    write("ImageSets/Segmentation/train.txt", "c\na 1\n\nz\n")
    pairs = find_pairs(VOC, root, "train")
    assert pairs.images == ("JPEGImages/a.jpg", "JPEGImages/c.jpg")
    assert pairs.label_maps == ("SegmentationClass/a.png", "SegmentationClassAug/c.png")
    assert pairs.errors == (f"{root}/JPEGImages/z.jpg: no such image",) and pairs.unused == ()
    with pytest.raises(DataError, match=r"val\.txt: cannot be read"):
        find_pairs(VOC, root, "val")


def test_split_lists_with_names_of_several_words(
    write: Callable[[str, object], Path], tmp_path: Path
) -> None:
    stems = ["train", "train (1)", "train 1", "a street"]
    for stem in stems:
        write(f"JPEGImages/{stem}.jpg", b"x")
        write(f"SegmentationClass/{stem}.png", b"x")
    write("ImageSets/Segmentation/train.txt", "train\ntrain (1)\ntrain 1\na street  -1\n")
    pairs = find_pairs(VOC, tmp_path / "data", "train")
    assert pairs.images == tuple(f"JPEGImages/{stem}.jpg" for stem in sorted(stems))
    assert pairs.errors == ()
    file = write("ImageSets/Segmentation/train.txt", "train\na street 1\na street 0\nno street\n")
    double, missing = find_pairs(VOC, tmp_path / "data", "train").errors
    assert double == f"{file}: line 3: 'a street' is in line 2 already"
    assert missing == f"{tmp_path}/data/JPEGImages/no street.jpg: no such image"


@pytest.mark.parametrize("extension", [".tif", ".TIFF", ".heic", ".ppm", ".dng"])
def test_images_of_formats_that_are_not_read_are_errors(extension: str, labeled: Path) -> None:
    image = labeled / "images/train/1.png"
    image = image.rename(image.with_suffix(extension))
    error = f"{image}: {extension.lower()} images are not read: convert it to PNG or JPEG"
    pairs = find(labeled)
    assert pairs.errors == (error,) and pairs.unused == pairs.unpaired == ()
    shutil.copy(labeled / "images/train/2.png", labeled / "images/train/1.png")
    pairs = find(labeled)
    assert (len(pairs.images), pairs.errors) == (4, ()), "the raw form of an image is no error"
    assert pairs.unused == (f"{image.parent}: 1 {extension.lower()} file(s) are not used",)
    (labeled / "images/train/1.png").unlink()
    for i in (0, 2, 3):
        (labeled / f"images/train/{i}.png").unlink()
    assert find(labeled).errors == (error,)


def test_only_listed_images_must_be_readable(write: Callable[[str, object], Path], tmp_path: Path) -> None:
    for name in ("a.jpg", "b 1.tif", "c.tif"):
        write(f"JPEGImages/{name}", b"x")
    for stem in ("a", "b 1"):
        write(f"SegmentationClass/{stem}.png", b"x")
    write("ImageSets/Segmentation/train.txt", "a\nb 1\n")
    (error,) = find_pairs(VOC, tmp_path / "data", "train").errors
    assert error.startswith(f"{tmp_path}/data/JPEGImages/b 1.tif: .tif images are not read")


def test_label_maps_of_other_formats(labeled: Path) -> None:
    folder = labeled / "annotations/train"
    (folder / "1.png").rename(folder / "1.tif")
    pairs = find(labeled)
    assert pairs.errors == (f"{labeled}/images/train/1.png: no label map {folder}/1.png",)
    assert pairs.unused == (f"{folder}: 1 .tif file(s) are not used",)
