"""Detection data set: fields, examples, batches, the demo, and what is refused."""

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO
from torch.utils.data._utils.pin_memory import pin_memory

from metaformer.data.dataset import Batch
from metaformer.data.demo import SPLITS
from metaformer.data.loader import Loader
from metaformer.data.rle import decode
from metaformer.data.sampler import EvalSampler
from metaformer.errors import BadImage, DataError
from metaformer.tasks.detection.dataset import DetectionDataset, open_detection
from metaformer.tasks.detection.metrics import ground_truth
from metaformer.tasks.detection.transforms import train_transform
from toys import Write


def test_fields_of_a_folder(objects: Path) -> None:
    folder = pickle.loads(pickle.dumps(open_detection(objects, "train", masks=True)))
    assert (len(folder), folder.layout, folder.split) == (5, "coco", "train2017")
    assert (folder.classes, folder.category_ids, len(folder.palette)) == (("ant", "bee"), (3, 7), 2)
    assert folder.labels == [0] * 5 and folder.has_masks
    assert folder.path(3) == objects / "train2017/4.png" and folder.image_id(3) == 4
    assert folder.size(3) == (40, 10) and folder.aspect(3) == 4.0
    first, second = folder.instances(3)
    assert (first.box, first.label, first.crowd, first.id, first.area) == ((1, 2, 6, 8), 0, False, 5, 30)
    assert first.segmentation == [[1, 2, 6, 2, 6, 8, 1, 8]]
    assert second.crowd and second.segmentation == {"size": [10, 40], "counts": [390, 10]}
    assert folder.instances(2) == ()


def test_an_example_is_image_boxes_and_masks(objects: Path) -> None:
    folder = open_detection(objects, "train", masks=True)
    image, targets = folder.example(3, masks=True)
    assert image.mode == "RGB" and image.size == (40, 10)
    assert targets.boxes.dtype == torch.float32 and targets.boxes.tolist() == [[1, 2, 6, 8], [8, 2, 13, 8]]
    assert targets.labels.tolist() == [0, 1] and targets.crowd.tolist() == [False, True]
    assert targets.masks is not None and targets.masks.shape == (2, 10, 40)
    assert targets.masks[0, 2:8, 1:6].all() and targets.masks.sum() == 40
    empty = folder.example(2, masks=True)[1]
    assert len(empty) == 0 and empty.masks is not None and empty.masks.shape == (0, 20, 20)
    assert folder.example(3)[1].masks is None
    bare = open_detection(objects, "train")
    assert not bare.has_masks and bare.instances(0)[0].segmentation is None
    with pytest.raises(DataError, match="open the data with masks=True"):
        bare.example(0, masks=True)


def test_images_of_another_size_are_refused(objects: Path) -> None:
    folder = open_detection(objects, "train")
    Image.new("RGB", (24, 17)).save(objects / "train2017/1.png")
    Image.new("RGB", (24, 16)).save(objects / "train2017/2.png")
    with pytest.raises(BadImage, match=r"1\.png: is 24x17, but 24x16 in .*json: boxes are of another"):
        folder.example(0)
    with pytest.raises(BadImage, match="EXIF"):
        folder.example(1)
    (objects / "train2017/3.png").write_bytes(b"")
    with pytest.raises(BadImage, match="the file is empty"):
        folder.example(2)


@pytest.mark.parametrize("split", ["train", "val"])
def test_demo_data_are_read_as_they_were_written(demo: Path, split: str) -> None:
    folder = open_detection(demo / "detect", split, masks=True)
    written = json.loads((demo / "detect" / f"annotations/instances_{split}2017.json").read_text())
    for index, image in enumerate(written["images"]):
        assert (folder.image_id(index), folder.path(index).name) == (image["id"], image["file_name"])
        assert folder.size(index) == (image["width"], image["height"])
    assert [category["name"] for category in written["categories"]] == list(folder.classes)
    for row, annotation in enumerate(written["annotations"]):
        one = folder.objects.instance(row)
        assert folder.image_id(int(folder.objects.images[row])) == annotation["image_id"]
        assert folder.category_ids[one.label] == annotation["category_id"]
        assert folder.objects.boxes[row].tolist() == annotation["bbox"]
        assert (one.id, one.area, one.crowd) == (annotation["id"], annotation["area"], annotation["iscrowd"])
        assert one.segmentation == annotation["segmentation"]


def test_masks_are_those_of_pycocotools(objects: Path, tmp_path: Path) -> None:
    folder = open_detection(objects, "train", masks=True)
    (tmp_path / "own.json").write_text(json.dumps(ground_truth(folder.annotations, masks=True)))
    theirs = COCO(tmp_path / "own.json")
    for index in range(len(folder)):
        masks = folder.example(index, masks=True)[1].masks
        assert masks is not None
        loaded = theirs.loadAnns(theirs.getAnnIds(index + 1))
        for mask, annotation in zip(masks.numpy(), loaded, strict=True):
            assert np.array_equal(mask, decode(theirs.annToRLE(annotation)))


def test_a_split_without_images_is_refused(objects: Path) -> None:
    file = objects / "annotations/instances_train2017.json"
    file.write_text(json.dumps({"images": [], "annotations": [], "categories": [{"id": 1, "name": "x"}]}))
    with pytest.raises(DataError, match=r"instances_train2017\.json: no images"):
        open_detection(objects, "train")


def test_a_pickled_folder_is_small(objects: Path) -> None:
    """A few dozen bytes for each of a thousand objects, without masks."""
    file = objects / "annotations/instances_train2017.json"
    document = json.loads(file.read_text())
    one = document["annotations"][0]
    document["annotations"] = [{**one, "id": number} for number in range(1000)]
    file.write_text(json.dumps(document))
    folder = open_detection(objects, "train")
    assert len(pickle.dumps(folder)) < 90_000 and len(folder.instances(0)) == 1000
    boxes = folder.example(0)[1].boxes
    assert np.array_equal(boxes[0].numpy(), [1, 2, 6, 8]) and len(boxes) == 1000


@pytest.mark.parametrize(
    ("crowd", "error"), [(None, "no object at all"), (1, "no object but crowds")], ids=["none", "crowds"]
)
def test_a_split_without_objects_is_refused(objects: Path, crowd: int | None, error: str) -> None:
    file = objects / "annotations/instances_train2017.json"
    document = json.loads(file.read_text())
    open_detection(objects, "train").check_any()
    objects_left = [] if crowd is None else [{**one, "iscrowd": crowd} for one in document["annotations"]]
    file.write_text(json.dumps({**document, "annotations": objects_left}))
    with pytest.raises(DataError, match=f"instances_train2017.json: {error} in the split 'train2017'"):
        open_detection(objects, "train").check_any()


def batches(objects: Path, workers: int, masks: bool = True) -> list[Batch]:
    source = open_detection(objects, "train", masks=masks)
    data = DetectionDataset(source, train_transform((20, 40), 60), seed=3, masks=masks)
    return list(Loader(data, EvalSampler(5, batch_size=3), workers=workers))


@pytest.mark.filterwarnings("default:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("masks", [False, True])
def test_scenes_of_many_sizes_are_padded_and_keep_their_objects(objects: Path, masks: bool) -> None:
    found = batches(objects, 0, masks)
    assert [batch.indices.tolist() for batch in found] == [[0, 1, 2], [3, 4]]
    for batch in found:
        assert batch.labels.tolist() == [0] * len(batch.images)
        assert batch.images.shape[2] % 32 == batch.images.shape[3] % 32 == 0
        for image, targets, (height, width) in zip(batch.images, batch.targets, batch.sizes, strict=True):
            assert not image[:, height:].any() and not image[:, :, width:].any()
            assert image[:, height - 1, width - 1].any()
            assert (targets.boxes <= torch.tensor([width, height, width, height])).all()
            assert (targets.masks is not None) == masks
            if targets.masks is not None:
                assert targets.masks.shape == (len(targets), *batch.images.shape[2:])
    assert [len(targets) for batch in found for targets in batch.targets] == [2, 2, 0, 2, 2]
    assert [bool(t.crowd.any()) for batch in found for t in batch.targets] == [False] * 3 + [True, False]
    for workers in (1, 2):
        for one, other in zip(found, batches(objects, workers, masks), strict=True):
            assert torch.equal(one.images, other.images) and one.sizes == other.sizes
            for old, new in zip(one.targets, other.targets, strict=True):
                for name, value in vars(old).items():
                    same = getattr(new, name)
                    assert same is None if value is None else torch.equal(same, value)


def test_a_batch_moves_as_a_whole_after_page_locking(objects: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch's thread makes lists of tuples."""
    monkeypatch.setattr(torch.Tensor, "pin_memory", torch.Tensor.clone)
    batch = batches(objects, 0)[0]
    moved = pin_memory(batch).to(torch.device("cpu"))
    assert isinstance(moved, Batch) and moved.sizes == batch.sizes and isinstance(moved.targets, tuple)
    for old, new in zip(batch.targets, moved.targets, strict=True):
        assert torch.equal(old.boxes, new.boxes) and torch.equal(old.masks, new.masks)
    assert {targets.boxes.device.type for targets in batch.to(torch.device("meta")).targets} == {"meta"}


def coco(demo: Path, split: str) -> dict[str, list[dict[str, Any]]]:
    return json.loads((demo / f"detect/annotations/instances_{split}2017.json").read_text())


def decode_runs(counts: list[int], size: list[int]) -> np.ndarray:
    values = np.arange(len(counts)) % 2
    return np.repeat(values, counts).reshape(size, order="F").astype(bool)


@pytest.mark.parametrize("split", SPLITS)
def test_valid_coco(demo: Path, split: str) -> None:
    document = coco(demo, split)
    images = {image["id"]: image for image in document["images"]}
    files = sorted((demo / f"detect/{split}2017").iterdir())
    assert [image["file_name"] for image in images.values()] == [f.name for f in files]
    assert [c["id"] for c in document["categories"]] == list(range(1, 11))
    assert [a["id"] for a in document["annotations"]] == list(range(1, len(document["annotations"]) + 1))
    assert {a["image_id"] for a in document["annotations"]} == set(images)
    covered = {i: np.zeros((128, 128), int) for i in images}
    for annotation in document["annotations"]:
        segmentation = annotation["segmentation"]
        assert sum(segmentation["counts"]) == 128 * 128 and segmentation["size"] == [128, 128]
        mask = decode_runs(segmentation["counts"], segmentation["size"])
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        x, y, width, height = annotation["bbox"]
        assert (x, y, x + width - 1, y + height - 1) == (columns[0], rows[0], columns[-1], rows[-1])
        assert annotation["area"] == mask.sum() > 50
        assert annotation["iscrowd"] == 0 and 1 <= annotation["category_id"] <= 10
        covered[annotation["image_id"]] += mask
    for image, file in zip(images.values(), files, strict=True):
        assert covered[image["id"]].max() == 1
        assert 1 <= sum(a["image_id"] == image["id"] for a in document["annotations"]) <= 5
        with Image.open(file) as opened:
            assert opened.size == (image["width"], image["height"]) == (128, 128)


def test_masks_lie_on_the_digits(demo: Path) -> None:
    for annotation in coco(demo, "train")["annotations"]:
        with Image.open(demo / f"detect/train2017/{annotation['image_id']:012d}.jpg") as opened:
            gray = np.asarray(opened.convert("L")).astype(float)
        x, y, width, height = annotation["bbox"]
        inside = decode_runs(annotation["segmentation"]["counts"], [128, 128])[y : y + height, x : x + width]
        box = gray[y : y + height, x : x + width]
        assert np.quantile(box[inside], 0.75) > np.median(box[~inside]) + 20


@pytest.mark.parametrize("split", ["train/", ""])
def test_boxes_of_fiftyone_in_the_format_of_voc(write: Write, tmp_path: Path, split: str) -> None:
    """Its corners are edges, not pixels, and its images are listed nowhere."""
    size = "<size><width>20</width><height>10</height><depth>3</depth></size>"
    box = "<bndbox><xmin>0</xmin><ymin>2</ymin><xmax>20</xmax><ymax>8</ymax></bndbox>"
    for number in range(10):
        write(f"{split}data/{number}.jpg", np.zeros((10, 20, 3), np.uint8))
        object_ = f"<object><name>pear</name>{box}</object>" if number else ""
        write(f"{split}labels/{number}.xml", f"<annotation>{size}{object_}</annotation>")
    write(f"{split}data/bare.jpg", np.zeros((10, 20, 3), np.uint8))
    root = tmp_path / "data"
    with pytest.raises(DataError, match=r"'pear' .*data/classes\.txt"):
        open_detection(root, "train")
    write("classes.txt", "fig\npear\n")
    opened = open_detection(root, "train")
    assert (opened.layout, opened.classes, len(opened)) == ("voc", ("fig", "pear"), 10 if split else 8)
    boxes = [opened.instances(index)[0].box for index in range(len(opened)) if opened.instances(index)]
    assert set(boxes) == {(0, 2, 20, 8)} and opened.instances(1)[0].label == 1
    assert opened.annotations.unused == (f"{root}/{split}data: 1 image(s) without annotations are not used",)
    assert len(open_detection(root, "all" if not split else "train")) == 10
    write(f"{split}labels/lost.xml", f"<annotation>{size}</annotation>")
    with pytest.raises(DataError, match=r"lost: no such image .*data/lost\.jpg"):
        open_detection(root, "all" if not split else "train")


def test_exports_of_annotation_programs_are_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Label Studio's flat YOLO, CVAT's Pascal VOC with labelmap.txt, CVAT's and FiftyOne's YOLO."""
    voc = tmp_path / "voc"
    for root, images, labels in (
        ("studio", "images", "labels"),
        ("cvat", "obj_train_data", "obj_train_data"),
        ("fiftyone", "images/train", "labels/train"),
        ("voc", "JPEGImages", ""),
    ):
        for number in range(10):
            (tmp_path / root / images).mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (20, 10)).save(tmp_path / root / images / f"{number}.png")
            if labels:
                (tmp_path / root / labels).mkdir(parents=True, exist_ok=True)
                (tmp_path / root / labels / f"{number}.txt").write_text("1 0.5 0.5 0.2 0.2")
    (tmp_path / "studio" / "classes.txt").write_text("cat\ndog\n")
    (tmp_path / "cvat" / "obj.names").write_text("cat\ndog\n")
    (tmp_path / "fiftyone" / "dataset.yaml").write_text("names: {0: cat, 1: dog}\n")
    for root, counts in (
        ("studio", {"train": 8, "val": 2, "all": 10}),
        ("cvat", {"train": 10}),
        ("fiftyone", {"train": 10}),
    ):
        for split, count in counts.items():
            opened = open_detection(tmp_path / root, split)
            assert len(opened) == count and opened.classes == ("cat", "dog"), root
            assert all(opened.instances(index)[0].label == 1 for index in range(count))
    assert "a fifth of the images, chosen by name, validates" in caplog.text
    for folder in ("Annotations", "ImageSets/Main"):
        (voc / folder).mkdir(parents=True)
    (voc / "labelmap.txt").write_text(
        "# label:color_rgb:parts:actions\nbackground:0,0,0::\ndog:1,2,3::\ncat:9,8,7::\n"
    )
    (voc / "ImageSets/Main/train.txt").write_text("0\n")
    box = "<bndbox><xmin>2</xmin><ymin>2</ymin><xmax>9</xmax><ymax>8</ymax></bndbox>"
    size = "<size><width>20</width><height>10</height><depth>3</depth></size>"
    (voc / "Annotations/0.xml").write_text(
        f"<annotation><filename>0.png</filename>{size}<object><name>cat</name>{box}</object></annotation>"
    )
    opened = open_detection(voc, "train")
    assert opened.classes == ("dog", "cat") and opened.instances(0)[0].label == 1
