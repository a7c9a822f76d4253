"""Data sets of label maps: layouts, what is refused, batches and the demo."""

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from metaformer.data.class_lists import class_list
from metaformer.data.dataset import Batch
from metaformer.data.loader import Loader
from metaformer.data.sampler import EvalSampler, TrainSampler
from metaformer.errors import BadImage, DataError
from metaformer.tasks.check import Certainty
from metaformer.tasks.segmentation.check import check_label_maps, validate_label_maps
from metaformer.tasks.segmentation.dataset import SegmentationDataset, SegmentationFolder, open_segmentation
from metaformer.tasks.segmentation.spec import recognize
from metaformer.tasks.segmentation.transforms import train_transform
from toys import Write, build_task, save_image, tiny_config

IMAGE = np.random.RandomState(0).randint(0, 256, (3, 4, 3), dtype=np.uint8)


def label_map(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.uint8).reshape(3, 4)


def palette_file(path: Path, values: np.ndarray) -> None:
    image = Image.frombytes("P", values.shape[::-1], values.tobytes())
    image.putpalette([channel for color in class_list("voc").palette for channel in color])
    image.save(path)


def load(folder: SegmentationFolder) -> None:
    """Validate it, and load a batch of it."""
    validate_label_maps(folder, workers=1, progress=False)
    data = SegmentationDataset(folder, train_transform(16, ignore_index=folder.ignore_index))
    batch = next(iter(Loader(data, TrainSampler(len(folder), batch_size=len(folder)))))
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
        load(folder)
    folder = open_segmentation(tmp_path / "data", "train", reduce_zero_label=False)
    assert folder.classes == ("background", *class_list("ade20k").names)
    assert folder.label_map(0).ravel().tolist() == [0, 1, 2, 150, *[3] * 8]
    load(folder)


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
    load(train)


LABELMAP = "# label:color_rgb:parts:actions\nbackground:0,0,0::\ncrack:250,50,83:a,b:\nroad:52,209,183::\n"
COLORS = np.array([(0, 0, 0), (250, 50, 83), (52, 209, 183)], dtype=np.uint8)


def color_file(path: Path, values: np.ndarray, mode: str) -> Path:
    """Labels as the colors of LABELMAP, or as they are; the palette is in another order than the classes."""
    image = Image.fromarray(values if mode == "L" else COLORS[values])
    path.parent.mkdir(parents=True, exist_ok=True)
    (image.quantize(3) if mode == "P" else image).save(path)
    return path


@pytest.mark.parametrize("mode", ["RGB", "P", "L"])
def test_masks_of_cvat(write: Write, tmp_path: Path, mode: str) -> None:
    """Segmentation mask 1.1."""
    root, values = tmp_path / "data", label_map(0, 1, 2, *[1] * 9)
    write("JPEGImages/a.jpg", IMAGE)
    color_file(root / "SegmentationClass/a.png", values, mode)
    write("ImageSets/Segmentation/default.txt", "a\n")
    listed = write("labelmap.txt", LABELMAP)
    folder = open_segmentation(root, "default")
    assert (folder.layout, folder.classes) == ("voc", ("background", "crack", "road"))
    assert np.array_equal(folder.label_map(0), values) and folder.palette == tuple(
        map(tuple, COLORS.tolist())
    )
    load(folder)
    assert check_label_maps(root, ("default",), workers=1, progress=False).ok
    with pytest.raises(DataError, match=r"train\.txt: .*Segmentation holds default\.txt"):
        open_segmentation(root, "train")
    listed.write_text(LABELMAP.replace("52,209", "52,208"))
    if mode != "L":
        strange = r"SegmentationClass/a\.png: color 52,209,183 \(1 pixel\): .* labelmap\.txt"
        with pytest.raises(BadImage, match=strange):
            open_segmentation(root, "default").label_map(0)
        report = check_label_maps(root, ("default",), workers=1, progress=False)
        assert "color 52,209,183 (1 pixel)" in report.text() and not report.ok
    write("classes.txt", "crack\nroad\n")
    with pytest.raises(DataError, match=r"classes\.txt: 2 classes, .*labelmap\.txt 3"):
        open_segmentation(root, "default")


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("split", ["train/", ""])
def test_masks_of_fiftyone(
    write: Write, tmp_path: Path, split: str, mode: str, caplog: pytest.LogCaptureFixture
) -> None:
    """ImageSegmentationDirectory, each split exported to a folder, or all to one."""
    root = tmp_path / "data"
    write(*(("labelmap.txt", LABELMAP) if mode == "RGB" else ("classes.txt", "background\ncrack\nroad\n")))
    values = label_map(*[0, 1, 2] * 4)
    for number in range(10):
        write(f"{split}data/{number}.jpg", IMAGE)
        color_file(root / f"{split}labels/{number}.png", values, mode)
    folder = open_segmentation(root, "train")
    assert (folder.layout, folder.classes) == ("fiftyone", ("background", "crack", "road"))
    assert np.array_equal(folder.label_map(0), values) and len(folder) == (10 if split else 8)
    load(folder)
    assert recognize(root) is Certainty.BY_FILES
    if split:
        with pytest.raises(DataError, match="val/data: no such folder"):
            open_segmentation(root, "val")
    else:
        val, whole = open_segmentation(root, "val"), open_segmentation(root, "all")
        paths = [{part.path(index) for index in range(len(part))} for part in (folder, val, whole)]
        assert len(val) == 2 and paths[0] | paths[1] == paths[2] and not folder.unpaired
        assert "a fifth of the images, chosen by name, validates" in caplog.text
        with pytest.raises(DataError, match="'test'"):
            open_segmentation(root, "test")


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
    load(folder)


@pytest.mark.parametrize("label_maps", ["annotations", "stuffthingmaps"])
def test_coco_stuff(write: Write, tmp_path: Path, label_maps: str) -> None:
    for split in ("train", "val"):
        write(f"images/{split}2017/000000000009.jpg", IMAGE)
        write(f"{label_maps}/{split}2017/000000000009.png", label_map(0, 10, 12, 91, 181, 255, *[26] * 6))
    folder = open_segmentation(tmp_path / "data", "val")
    assert len(folder.classes) == 171
    labels = folder.label_map(0).ravel().tolist()
    assert labels == [0, 10, 11, 80, 170, 255, *[24] * 6]
    names = [folder.classes[label] for label in labels[:5]]
    assert names == ["person", "fire hydrant", "stop sign", "banner", "wood"]
    load(folder)
    write(f"{label_maps}/val2017/000000000009.png", label_map(*[11] * 12))
    with pytest.raises(BadImage, match=r"009\.png: label 11 .* 0 to 10, 12 to 24, 26"):
        folder.label_map(0)
    write(f"{label_maps}/val2017/000000000009_labelTrainIds.png", label_map(0, 170, 255, *[11] * 9))
    folder = open_segmentation(tmp_path / "data", "val")
    assert folder.label_map(0).ravel().tolist() == [0, 170, 255, *[11] * 9]


def test_plain_folders(labeled: Path) -> None:
    folder = open_segmentation(labeled, "train")
    assert folder.classes == ("sky", "grass", "road") and len(folder) == 4
    assert set(np.unique(folder.label_map(0)).tolist()) == {0, 1, 2, 255}
    image, labels = folder.pair(3)
    assert image.size == (24, 23) and labels.shape == (23, 24)
    load(folder)
    load(open_segmentation(labeled, "val"))


def test_another_ignore_index(labeled: Path) -> None:
    everything = open_segmentation(labeled, "train").label_map(0)
    folder = open_segmentation(labeled, "train", ignore_index=2)
    with pytest.raises(BadImage, match=r"label 255 .*classes are 0 to 1, ignored 2"):
        folder.label_map(0)
    for file in (labeled / "annotations/train").iterdir():
        values = np.array(Image.open(file))
        Image.fromarray(np.where(values == 255, 0, values).astype(np.uint8)).save(file)
    assert (folder.label_map(0) == 255).sum() == (everything == 2).sum()
    load(folder)


def test_more_than_255_classes_in_16_bits(labeled: Path) -> None:
    (labeled / "classes.txt").write_text("\n".join(f"class {i}" for i in range(300)))
    for file in (labeled / "annotations").rglob("*.png"):
        values = np.array(Image.open(file)).astype(np.uint16)
        values[values == 255] = 65535
        values[-1] = 299
        Image.fromarray(values).save(file)
    folder = open_segmentation(labeled, "train")
    assert folder.ignore_index == 65535 and len(set(folder.palette)) == 300
    labels = folder.label_map(0)
    assert labels.dtype == np.uint16
    assert labels[0, 0] == 65535 and labels[-1, 0] == 299
    load(folder)


def test_the_demo_scenes_have_ten_classes_or_eleven(demo: Path) -> None:
    digits = tuple("0123456789")
    ten = open_segmentation(demo / "segment", "train")
    assert (ten.layout, ten.classes, len(ten)) == ("ade20k", digits, 8)
    eleven = open_segmentation(demo / "segment", "train", reduce_zero_label=False)
    assert eleven.classes == ("background", *digits)
    for index in range(8):
        with_background, without = eleven.label_map(index), ten.label_map(index)
        assert np.array_equal(with_background == 0, without == 255)
        assert np.array_equal(with_background[without != 255] - 1, without[without != 255])
    for folder, zero, classes in ((ten, "yes", 10), (eleven, "no", 11)):
        load(folder)
        report = check_label_maps(demo / "segment", reduce_zero_label=zero, workers=1, progress=False)
        assert report.ok and len(report.splits[0].per_class) == classes  # type: ignore[attr-defined]
    again = open_segmentation(demo / "segment", "val", classes=eleven.classes)
    assert again.classes == eleven.classes and again.label_map(0).min() == 0 and len(again) == 4


def test_missing_label_maps(labeled: Path) -> None:
    for name in ("1.png", "2.png"):
        (labeled / "annotations/train" / name).unlink()
    image, missing = labeled / "images/train/1.png", labeled / "annotations/train/1.png"
    with pytest.raises(DataError, match=rf"{image}: no label map {missing} \(1 more"):
        open_segmentation(labeled, "train")


def test_an_image_with_exif_orientation(labeled: Path) -> None:
    image = labeled / "images/train/0.jpg"
    (labeled / "images/train/0.png").unlink()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (24, 20)).save(image, exif=exif)
    with pytest.raises(
        BadImage, match=rf"annotations/train/0\.png: is 24x20 and its image {image} 20x24: .*EXIF"
    ):
        open_segmentation(labeled, "train").pair(0)
    Image.new("L", (20, 24)).save(labeled / "annotations/train/0.png")
    load(open_segmentation(labeled, "train"))


def test_one_pixel_and_nothing_but_ignored(labeled: Path) -> None:
    Image.new("RGB", (1, 1)).save(labeled / "images/train/0.png")
    Image.new("L", (1, 1), 2).save(labeled / "annotations/train/0.png")
    Image.new("L", (24, 21), 255).save(labeled / "annotations/train/1.png")
    folder = open_segmentation(labeled, "train")
    assert folder.label_map(0).tolist() == [[2]]
    assert (folder.label_map(1) == 255).all()
    load(folder)
    image, labels = train_transform(8, resize=None)(*folder.pair(1))
    assert (labels == 255).all() and torch.isfinite(image).all()


def batches(labeled: Path, workers: int) -> list[Batch]:
    data = SegmentationDataset(open_segmentation(labeled, "train"), train_transform(16, (40, 24)), seed=3)
    return list(Loader(data, EvalSampler(4, batch_size=2), workers=workers))


@pytest.mark.parametrize("workers", [0, 1])
def test_label_maps_are_stacked(labeled: Path, workers: int) -> None:
    first, second = batches(labeled, workers)
    assert first.images.shape == (2, 3, 16, 16)
    assert first.labels.shape == (2, 16, 16) and first.labels.dtype == torch.uint8
    assert second.indices.tolist() == [2, 3]
    assert torch.equal(second.labels, batches(labeled, 0)[1].labels)


def test_an_evaluation_takes_each_image_in_its_own_size(labeled: Path) -> None:
    def whole(image: Image.Image, labels: NDArray[np.uint8]) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.zeros(3, 32, 32), torch.from_numpy(labels)

    data = SegmentationDataset(open_segmentation(labeled, "val"), whole)
    shapes = [tuple(batch.labels.shape) for batch in Loader(data, EvalSampler(2, batch_size=1))]
    assert shapes == [(1, 20, 24), (1, 21, 24)]


def test_an_ade20k_tree(demo: Path) -> None:
    root, numbers = demo / "segment", set()
    for split, count in (("training", 8), ("validation", 4)):
        images = sorted((root / "images" / split).iterdir())
        label_maps = sorted((root / "annotations" / split).iterdir())
        assert [p.stem for p in images] == [p.stem for p in label_maps] and len(images) == count
        assert {p.suffix for p in images} == {".jpg"} and {p.suffix for p in label_maps} == {".png"}
        for image, label_map in zip(images, label_maps, strict=True):
            with Image.open(image) as opened, Image.open(label_map) as labels:
                assert (opened.mode, labels.mode) == ("RGB", "L")
                assert opened.size == labels.size == (128, 128)
                found = set(np.unique(np.asarray(labels)).tolist())
            assert 0 in found and len(found) >= 2
            numbers |= found
    assert numbers <= set(range(11)) and len(numbers) > 6
    rows = [line.split("\t") for line in (root / "objectInfo150.txt").read_text().splitlines()]
    assert rows[0] == ["Idx", "Ratio", "Train", "Val", "Stuff", "Name"]
    assert [(int(row[0]), row[-1]) for row in rows[1:]] == [(d + 1, str(d)) for d in range(10)]


@pytest.mark.parametrize("listed", [True, False], ids=["classes.txt", "option"])
def test_own_classes_in_the_layout_of_voc_with_palette_masks(listed: bool, tmp_path: Path) -> None:
    root, names = tmp_path / "own", "background\nred\ngreen\n"
    for split in ("train", "val"):
        for i in range(2):
            save_image(root / f"JPEGImages/{split}{i}.jpg", np.full((32, 40, 3), 99 * i, np.uint8))
            mask = Image.fromarray(np.tile(np.uint8([0, 1, 2, 255]).repeat(10), (32, 1)), "P")
            mask.putpalette([0, 0, 0, 250, 0, 0, 0, 250, 0, *[224] * 759])
            (root / "SegmentationClass").mkdir(exist_ok=True)
            mask.save(root / f"SegmentationClass/{split}{i}.png")
        (root / "ImageSets/Segmentation").mkdir(parents=True, exist_ok=True)
        (root / f"ImageSets/Segmentation/{split}.txt").write_text(f"{split}0\n{split}1\n")
    file = root / "classes.txt" if listed else tmp_path / "names.txt"
    file.write_text(names)
    option = {} if listed else {"class_names": str(file)}
    config = tiny_config("segment", root, segment={"reduce_zero_label": None, **option})
    task = build_task(config)
    assert task.classes == ("background", "red", "green") and task.warnings == []
    assert task.model.num_classes == 3
    assert check_label_maps(root, workers=1, progress=False, class_names=option.get("class_names")).ok
    (root / "SegmentationClass/train0.png").unlink()
    Image.fromarray(np.full((32, 40), 3, np.uint8)).save(root / "SegmentationClass/train0.png")
    with pytest.raises(BadImage, match=r"train0\.png: label 3 \(1,280 pixels\): classes are 0 to 2"):
        build_task(config)
