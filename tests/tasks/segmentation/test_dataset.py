import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from metaformer.data.class_lists import class_list
from metaformer.data.loader import Loader
from metaformer.data.sampler import PureSampler
from metaformer.errors import BadImage, ConfigError, DataError
from metaformer.tasks.demo import write_demo_data
from metaformer.tasks.segmentation.check import check_segmentation
from metaformer.tasks.segmentation.dataset import SegmentationDataset, SegmentationFolder, open_segmentation
from metaformer.tasks.segmentation.transforms import train_transform

Write = Callable[[str, object], Path]
IMAGE = np.random.RandomState(0).randint(0, 256, (3, 4, 3), dtype=np.uint8)


def label_map(*numbers: int) -> np.ndarray:
    return np.array(numbers, dtype=np.uint8).reshape(3, 4)


def palette_file(path: Path, numbers: np.ndarray) -> None:
    image = Image.frombytes("P", numbers.shape[::-1], numbers.tobytes())
    image.putpalette([channel for color in class_list("voc").palette for channel in color])
    image.save(path)


def use(folder: SegmentationFolder) -> None:
    """Check it, and make a batch to train on."""
    check_segmentation(folder, workers=1, progress=False)
    data = SegmentationDataset(folder, train_transform(16, ignore_index=folder.ignore_index))
    batch = next(iter(Loader(data, PureSampler(len(folder), batch_size=len(folder)))))
    assert batch.images.shape == (len(folder), 3, 16, 16)
    known = {*range(len(folder.classes)), folder.ignore_index}
    assert set(batch.labels.unique().tolist()) <= known


def test_ade20k(write: Write, tmp_path: Path) -> None:
    for split in ("training", "validation"):
        write(f"images/{split}/ADE_{split}_1.jpg", IMAGE)
        write(f"annotations/{split}/ADE_{split}_1.png", label_map(0, 1, 2, 150, *[3] * 8))
    for split in ("train", "val", "training"):
        folder = open_segmentation(tmp_path / "data", split)
        assert folder.classes == class_list("ade20k").names and len(folder) == 1
        assert folder.palette == class_list("ade20k").palette
        assert folder.label_map(0).ravel().tolist() == [255, 0, 1, 149, *[2] * 8]
        assert (folder.layout, folder.ignore_index, folder.labels) == ("ade20k", 255, [0])
        use(folder)
    folder = open_segmentation(tmp_path / "data", "train", reduce_zero_label=False)
    assert folder.classes == ("background", *class_list("ade20k").names)
    assert folder.label_map(0).ravel().tolist() == [0, 1, 2, 150, *[3] * 8]
    use(folder)


def test_voc(write: Write, tmp_path: Path) -> None:
    for name in ("2007_1", "2007_2", "2007_3"):
        write(f"VOCdevkit/VOC2012/JPEGImages/{name}.jpg", IMAGE)
        path = write(f"VOCdevkit/VOC2012/SegmentationClass/{name}.png", "")
        palette_file(path, label_map(0, 20, 255, 15, *[0] * 8))
    write("VOCdevkit/VOC2012/ImageSets/Segmentation/train.txt", "2007_3\n2007_1\n")
    write("VOCdevkit/VOC2012/ImageSets/Segmentation/val.txt", "2007_2\n")
    train, val = (open_segmentation(tmp_path / "data", split) for split in ("train", "val"))
    assert [train.path(i).stem for i in range(2)] == ["2007_1", "2007_3"] and len(val) == 1
    assert train.classes == class_list("voc").names and train.palette[20] == (0, 64, 128)
    assert train.label_map(0).ravel().tolist() == [0, 20, 255, 15, *[0] * 8]
    use(train)


@pytest.mark.parametrize("kind", ["labelIds", "labelTrainIds"])
def test_cityscapes(write: Write, tmp_path: Path, kind: str) -> None:
    ids = {"labelIds": (7, 8, 26, 33, 0, 14, 255, 18), "labelTrainIds": (0, 1, 13, 18, 255, 255, 255, 255)}
    for split, city in (("train", "bonn"), ("train", "ulm"), ("val", "jena")):
        write(f"leftImg8bit/{split}/{city}/{city}_1_leftImg8bit.png", IMAGE)
        write(f"gtFine/{split}/{city}/{city}_1_gtFine_{kind}.png", label_map(*ids[kind], *[ids[kind][0]] * 4))
        write(f"gtFine/{split}/{city}/{city}_1_gtFine_color.png", IMAGE)
        write(f"gtFine/{split}/{city}/{city}_1_gtFine_polygons.json", "{}")
    folder = open_segmentation(tmp_path / "data", "train")
    assert [folder.path(i).parent.name for i in range(len(folder))] == ["bonn", "ulm"]
    assert folder.label_path(1).name == f"ulm_1_gtFine_{kind}.png"
    assert len(folder.classes) == 19 and folder.palette[0] == (128, 64, 128)
    assert folder.label_map(0).ravel().tolist() == [0, 1, 13, 18, 255, 255, 255, 255, 0, 0, 0, 0]
    use(folder)


@pytest.mark.parametrize("place", ["annotations", "stuffthingmaps"])
def test_coco_stuff(write: Write, tmp_path: Path, place: str) -> None:
    for split in ("train", "val"):
        write(f"images/{split}2017/000000000009.jpg", IMAGE)
        write(f"{place}/{split}2017/000000000009.png", label_map(0, 10, 12, 91, 181, 255, *[26] * 6))
    folder = open_segmentation(tmp_path / "data", "val")
    assert len(folder.classes) == 171
    labels = folder.label_map(0).ravel().tolist()
    assert labels == [0, 10, 11, 80, 170, 255, *[24] * 6]
    names = [folder.classes[label] for label in labels[:5]]
    assert names == ["person", "fire hydrant", "stop sign", "banner", "wood"]
    use(folder)
    write(f"{place}/val2017/000000000009.png", label_map(*[11] * 12))
    with pytest.raises(
        BadImage, match=r"009\.png: label 11 \(12 pixels\): classes are 0 to 10, 12 to 24, 26"
    ):
        folder.label_map(0)
    write(f"{place}/val2017/000000000009_labelTrainIds.png", label_map(0, 170, 255, *[11] * 9))
    folder = open_segmentation(tmp_path / "data", "val")
    assert folder.label_map(0).ravel().tolist() == [0, 170, 255, *[11] * 9]


def test_plain_folders(labeled: Path) -> None:
    folder = open_segmentation(labeled, "train")
    assert folder.classes == ("sky", "grass", "road") and len(folder) == 4
    assert set(np.unique(folder.label_map(0)).tolist()) == {0, 1, 2, 255}
    image, labels = folder.pair(3)
    assert image.size == (24, 23) and labels.shape == (23, 24)
    use(folder)
    use(open_segmentation(labeled, "val"))


def test_another_number_can_be_ignored(labeled: Path) -> None:
    everything = open_segmentation(labeled, "train").label_map(0)
    folder = open_segmentation(labeled, "train", ignore_index=2)
    with pytest.raises(BadImage, match=r"label 255 .*classes are 0 to 1, ignored 2"):
        folder.label_map(0)
    for file in (labeled / "annotations/train").iterdir():
        numbers = np.array(Image.open(file))
        Image.fromarray(np.where(numbers == 255, 0, numbers).astype(np.uint8)).save(file)
    assert (folder.label_map(0) == 255).sum() == (everything == 2).sum()
    use(folder)


def test_more_than_255_classes_in_16_bits(labeled: Path) -> None:
    (labeled / "classes.txt").write_text("\n".join(f"class {i}" for i in range(300)))
    for file in (labeled / "annotations").rglob("*.png"):
        numbers = np.array(Image.open(file)).astype(np.uint16)
        numbers[numbers == 255] = 65535
        numbers[-1] = 299
        Image.fromarray(numbers).save(file)
    folder = open_segmentation(labeled, "train")
    assert folder.ignore_index == 65535 and len(set(folder.palette)) == 300
    labels = folder.label_map(0)
    assert labels.dtype == np.uint16
    assert labels[0, 0] == 65535 and labels[-1, 0] == 299
    use(folder)


def test_the_demo_scenes_have_ten_classes_or_eleven(tmp_path: Path) -> None:
    demo = tmp_path / "demo"
    write_demo_data(demo, per_class=5, scenes=(6, 3), progress=False)
    digits = tuple("0123456789")
    ten = open_segmentation(demo / "segment", "train")
    assert (ten.layout, ten.classes, len(ten)) == ("ade20k", digits, 6)
    eleven = open_segmentation(demo / "segment", "train", reduce_zero_label=False)
    assert eleven.classes == ("background", *digits)
    for index in range(6):
        with_background, without = eleven.label_map(index), ten.label_map(index)
        assert np.array_equal(with_background == 0, without == 255)
        assert np.array_equal(with_background[without != 255] - 1, without[without != 255])
    use(ten)
    use(eleven)
    again = open_segmentation(demo / "segment", "val", classes=eleven.classes)
    assert again.classes == eleven.classes and again.label_map(0).min() == 0 and len(again) == 3


def test_a_mask_that_is_missing(labeled: Path) -> None:
    for name in ("1.png", "2.png"):
        (labeled / "annotations/train" / name).unlink()
    with pytest.raises(DataError) as caught:
        open_segmentation(labeled, "train")
    image, missing = labeled / "images/train/1.png", labeled / "annotations/train/1.png"
    more = "(1 more such; metaformer data check tells all)"
    assert str(caught.value) == f"{image}: no label map {missing} {more}"


def test_a_mask_of_colors(labeled: Path) -> None:
    Image.new("RGB", (24, 20)).save(labeled / "annotations/train/0.png")
    with pytest.raises(
        BadImage, match=r"train/0\.png: is an RGB image, no label map: save one number a pixel"
    ):
        open_segmentation(labeled, "train").label_map(0)


def test_a_label_out_of_range(labeled: Path) -> None:
    numbers = np.zeros((20, 24), dtype=np.uint8)
    numbers[0, :5], numbers[1, 0] = 3, 254
    Image.fromarray(numbers).save(labeled / "annotations/train/0.png")
    with pytest.raises(BadImage) as caught:
        open_segmentation(labeled, "train").pair(0)
    told = "label 3 (5 pixels), 254 (1 pixel): classes are 0 to 2, ignored 255"
    assert str(caught.value) == f"{labeled}/annotations/train/0.png: {told}"


def test_a_class_list_of_another_length(labeled: Path) -> None:
    own = labeled / "own.txt"
    own.write_text("sky\ngrass\n")
    with pytest.raises(DataError, match=r"own\.txt: names 2 classes, .*classes\.txt 3: they must agree"):
        open_segmentation(labeled, "train", classes=own)
    with pytest.raises(DataError, match=r"class list: names 4 classes, .*classes\.txt 3"):
        open_segmentation(labeled, "train", classes=["sky", "grass", "road", "sea"])


def test_an_image_that_its_exif_turns(labeled: Path) -> None:
    image = labeled / "images/train/0.jpg"
    (labeled / "images/train/0.png").unlink()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (24, 20)).save(image, exif=exif)
    with pytest.raises(BadImage) as caught:
        open_segmentation(labeled, "train").pair(0)
    told = str(caught.value)
    assert f"annotations/train/0.png: is 24x20 and its image {image} 20x24: " in told
    assert "turned as their EXIF orientation says, label maps are not" in told
    Image.new("L", (20, 24)).save(labeled / "annotations/train/0.png")
    use(open_segmentation(labeled, "train"))


def test_one_pixel_and_nothing_but_ignored(labeled: Path) -> None:
    Image.new("RGB", (1, 1)).save(labeled / "images/train/0.png")
    Image.new("L", (1, 1), 2).save(labeled / "annotations/train/0.png")
    Image.new("L", (24, 21), 255).save(labeled / "annotations/train/1.png")
    folder = open_segmentation(labeled, "train")
    assert folder.label_map(0).tolist() == [[2]]
    assert (folder.label_map(1) == 255).all()
    use(folder)
    image, labels = train_transform(8, resize=None)(*folder.pair(1))
    assert (labels == 255).all() and torch.isfinite(image).all()


def test_roots_that_are_none(labeled: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        open_segmentation(tmp_path / "none", "train")
    with pytest.raises(DataError, match="images/test: no such folder"):
        open_segmentation(labeled, "test")
    with pytest.raises(ConfigError, match="unknown layout 'folder'"):
        open_segmentation(labeled, "train", "folder")
    shutil.rmtree(labeled / "images")
    with pytest.raises(DataError, match=r"no layout .*it holds annotations, classes\.txt"):
        open_segmentation(labeled, "train")
