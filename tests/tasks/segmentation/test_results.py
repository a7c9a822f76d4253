import base64
import io
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from metaformer.tasks.segmentation.metrics import figures
from metaformer.tasks.segmentation.results import (
    IGNORED,
    Segmentation,
    SegmentationReport,
    SegmentExample,
    areas,
    paletted,
    thumbnail,
)

COLORS = ((255, 0, 0), (0, 255, 0), (0, 0, 255))
LABELS = np.array([[0, 0, 0, 2], [2, 2, 2, 2]], dtype=np.uint8)


def report(classes: int = 3) -> SegmentationReport:
    confusion = torch.eye(classes, dtype=torch.int64) * 1000
    confusion[0, 1], confusion[2] = 250, 0
    examples = (SegmentExample("a.png", 4, 0.5, "AAAA", "BBBB", (0, 1)),)
    found = figures(confusion, [f"c{i}" for i in range(classes)])
    return SegmentationReport(7, found, confusion, tuple((i % 256, 0, 0) for i in range(classes)), examples)


def test_segmentation() -> None:
    result = Segmentation("x.png", LABELS, ("ant", "bee", "cat"), COLORS)
    assert result.size == (4, 2) and result.shares == ((2, 5 / 8), (0, 3 / 8))
    assert result.to_dict() == {
        "path": "x.png", "width": 4, "height": 2, "classes": {"cat": 5 / 8, "ant": 3 / 8}
    }  # fmt: skip
    assert list(result.to_dict()["classes"]) == ["cat", "ant"]
    assert np.array_equal(np.asarray(result.image()), LABELS)


def test_areas_are_counted_largest_first() -> None:
    assert areas(np.array([[5, 5, 255, 255, 3]], dtype=np.uint16)) == {5: 2, 255: 2, 3: 1}
    assert list(areas(np.array([[5, 5, 255, 255, 3]]))) == [5, 255, 3]
    big = np.repeat(np.arange(3, dtype=np.uint8), [700_000, 900_000, 800_000]).reshape(2, -1)
    assert list(areas(big).items()) == [(1, 900_000), (2, 800_000), (0, 700_000)]


def test_palette_images() -> None:
    image = paletted(np.array([[0, 2], [255, 1]], dtype=np.uint8), COLORS)
    assert image.mode == "P" and np.asarray(image).tolist() == [[0, 2], [255, 1]]
    colors = np.asarray(image.convert("RGB"))
    assert colors.tolist() == [[[255, 0, 0], [0, 0, 255]], [list(IGNORED), [0, 255, 0]]]


def test_more_than_255_classes_are_rgb_images() -> None:
    palette = tuple((i % 256, i // 256, 7) for i in range(300))
    image = paletted(np.array([[299, 65535]], dtype=np.uint16), palette)
    assert image.mode == "RGB" and np.asarray(image).tolist() == [[[43, 1, 7], list(IGNORED)]]


def test_thumbnails_are_not_interpolated() -> None:
    label_map = np.repeat(np.array([[0, 1, 2, 255]], dtype=np.uint8), 300, axis=1).repeat(40, axis=0)
    small = Image.open(io.BytesIO(base64.b64decode(thumbnail(label_map, COLORS))))
    assert small.size == (256, 9) and small.mode == "P"
    assert np.asarray(small)[4, 32::64].tolist() == [0, 1, 2, 255]
    whole = Image.open(io.BytesIO(base64.b64decode(thumbnail(LABELS, COLORS))))
    assert np.array_equal(np.asarray(whole), LABELS)
    long = Image.open(io.BytesIO(base64.b64decode(thumbnail(np.zeros((1, 5000), int), COLORS))))
    assert long.size == (256, 1)


def test_report_as_json(tmp_path: Path) -> None:
    values = json.loads(report().save(tmp_path / "x" / "report.json").read_text())
    assert values["images"] == 7 and values["pixels"] == 2250
    assert values["miou"] == (1000 / 1250 + 1000 / 1250) / 2
    assert values["aacc"] == 2000 / 2250 and values["macc"] == (1000 / 1250 + 1) / 2
    assert values["confusion"] == [[1000, 250, 0], [0, 1000, 0], [0, 0, 0]]
    assert values["classes"] == ["c0", "c1", "c2"] and values["palette"][1] == [1, 0, 0]
    assert values["per_class"][2] == {
        "name": "c2", "pixels": 0, "correct": 0, "predicted": 0,
        "iou": None, "accuracy": None, "precision": None,
    }  # fmt: skip
    assert values["examples"][0]["labels"] == [0, 1] and values["examples"][0]["truth"] == "AAAA"


def test_report_of_many_classes_holds_nonzero_confusions() -> None:
    values = report(300).to_dict()
    assert "confusion" not in values and [0, 1, 250] in values["confusion_entries"]


def test_report_as_text_begins_with_the_weakest_class() -> None:
    text = report(30).text(rows=3)
    lines = text.splitlines()
    assert lines[:2] == ["images   7", "mIoU     98.62%"]
    assert lines[6].split() == ["c0", "1,250", "80.00%", "80.00%", "100.00%"]
    assert "26 classes that do better" in text and "1 classes neither occur nor are predicted" in text
