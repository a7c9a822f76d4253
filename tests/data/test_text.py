"""Text files as other programs write them, in every place that reads one."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from metaformer.data.class_lists import read_class_list
from metaformer.errors import DataError
from metaformer.storage import read_text
from metaformer.tasks.classification.metrics import read_real_labels
from metaformer.tasks.detection.check import check_objects
from metaformer.tasks.detection.dataset import open_detection
from metaformer.tasks.multilabel.dataset import open_multilabel
from metaformer.tasks.segmentation.dataset import open_segmentation
from toys import Write

FORMS: dict[str, Callable[[str], bytes]] = {
    "byte-order mark": lambda text: text.encode("utf-8-sig"),
    "CRLF": lambda text: text.replace("\n", "\r\n").encode(),
    "CR": lambda text: text.replace("\n", "\r").encode(),
    "CRLF and byte-order mark": lambda text: text.replace("\n", "\r\n").encode("utf-8-sig"),
    "UTF-16 LE": lambda text: b"\xff\xfe" + text.replace("\n", "\r\n").encode("utf-16-le"),
    "UTF-16 BE": lambda text: b"\xfe\xff" + text.encode("utf-16-be"),
    "UTF-32": lambda text: text.encode("utf-32"),
    "no last line end": lambda text: text.rstrip().encode(),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_text(form: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes(FORMS[form]("é b\nc\n"))
    assert read_text(file).rstrip() == "é b\nc"
    assert [record.message for record in caplog.records] == (
        [f"{file}: is {form[:6]}, read as such: other programs may need UTF-8"] if "UTF" in form else []
    )


@pytest.mark.parametrize("content", [b"caf\xe9", "ab".encode("utf-16-le"), b"\xff\xfea"])
def test_other_encodings_are_refused(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes(content)
    with pytest.raises(DataError, match=r"zero bytes|is not UTF-"):
        read_text(file)
    with pytest.raises(DataError, match=rf"{file}: cannot be read"):
        read_class_list(file)


def test_a_pipe_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "names.txt")
    with pytest.raises(DataError, match=r"names\.txt: cannot be read .*no ordinary file"):
        read_class_list(tmp_path / "names.txt")


PIXELS = np.zeros((10, 20, 3), dtype=np.uint8)


@pytest.mark.parametrize("form", FORMS)
def test_yolo(form: str, write: Write) -> None:
    for name in ("é b", "c"):
        write(f"images/train/{name}.png", PIXELS)
    write("labels/train/é b.txt", FORMS[form]("0 0.5 0.5 0.2 0.4\n1 0.5 0.5 1 1\n"))
    write("labels/train/c.txt", FORMS[form]("1 0.5 0.5 0.2 0.4\n"))
    root = write("data.yaml", FORMS[form]("names: [cat, é]\n")).parent
    folder = open_detection(root, "train")
    assert folder.classes == ("cat", "é")
    assert [[one.label for one in folder.instances(index)] for index in range(2)] == [[1], [0, 1]]
    report = check_objects(root, ["train"], workers=1, progress=False)
    assert report.ok
    told = [finding.text for finding in report.findings if finding.kind == "encoding"]
    assert len(told) == (2 if "UTF" in form else 0), "each file in another encoding is told"


@pytest.mark.parametrize("form", FORMS)
def test_voc(form: str, write: Write) -> None:
    for name in ("é b", "c"):
        write(f"JPEGImages/{name}.jpg", PIXELS)
        write(f"Annotations/{name}.xml", "<annotation/>")
        write(f"SegmentationClass/{name}.png", PIXELS[..., 0])
    write("classes.txt", FORMS[form]("background\né\n"))
    write("ImageSets/Segmentation/train.txt", FORMS[form]("é b\nc\n"))
    root = write("ImageSets/Main/train.txt", FORMS[form]("é b\nc 1\n")).parents[2]
    folder = open_detection(root, "train", "voc")
    assert (folder.annotations.files, folder.classes) == (["é b.jpg", "c.jpg"], ("background", "é"))
    pairs = open_segmentation(root, "train", "voc")
    assert ([pairs.path(i).stem for i in range(2)], pairs.classes) == (["c", "é b"], ("background", "é"))


@pytest.mark.parametrize("form", FORMS)
def test_coco(form: str, write: Write) -> None:
    write("train2017/é.png", PIXELS)
    document = {
        "images": [{"id": 1, "file_name": "é.png", "width": 20, "height": 10}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 2, "bbox": [1, 2, 3, 4]}],
        "categories": [{"id": 2, "name": "ü"}],
    }
    text = json.dumps(document, indent=1, ensure_ascii=False) + "\n"
    file = write("annotations/instances_train2017.json", FORMS[form](text))
    folder = open_detection(file.parents[1], "train")
    assert folder.classes == ("ü",) and folder.instances(0)[0].box == (1, 2, 4, 6)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_label_files(form: str, kind: str, write: Write) -> None:
    for name in ("é", "c"):
        write(f"train/{name}.png", PIXELS)
    lines = {
        "csv": "image,labels\né.png,x ü\nc.png,x\n",
        "jsonl": '{"image": "é.png", "labels": ["x", "ü"]}\n{"image": "c.png", "labels": ["x"]}\n',
    }
    root = write(f"train.{kind}", FORMS[form](lines[kind])).parent
    folder = open_multilabel(root, "train")
    assert folder.classes == ("x", "ü") and folder.labels.tolist() == [[1, 1], [1, 0]]


@pytest.mark.parametrize("form", FORMS)
def test_real_labels(form: str, tmp_path: Path) -> None:
    file = tmp_path / "real.json"
    file.write_bytes(FORMS[form]("[[0, 1],\n []]\n"))
    assert read_real_labels(file, ["a", "b"], 2) == [frozenset({0, 1}), frozenset()]
