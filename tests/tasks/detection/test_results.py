"""Detected objects, evaluation reports, and the page of a run."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as their_mask

from metaformer.checkpoint.checkpoint import read_checkpoint
from metaformer.config import TrainConfig
from metaformer.data.rle import decode, encode
from metaformer.errors import DataError, MissingPackage, UnknownName
from metaformer.models.detection.structures import Detections
from metaformer.report.blocks import Examples, Section, Table, css_color
from metaformer.tasks.detection.draw import brighten
from metaformer.tasks.detection.formats.coco import parse_coco
from metaformer.tasks.detection.metrics import Found, Kind, coco_figures
from metaformer.tasks.detection.report import build_report
from metaformer.tasks.detection.results import DetectedObjects, DetectExample, DetectionReport, ExampleObject

PALETTE = ((200, 0, 0), (0, 200, 0), (0, 0, 200))
CLASSES = ("ant", "bee", "cat")
Make = Callable[..., DetectedObjects]


@pytest.fixture
def make() -> Make:
    """Two objects in an image of 40×30, their masks the boxes' left halves."""

    def build(**fields: Any) -> DetectedObjects:
        boxes = np.array([[4, 6, 20, 26], [0, 0, 40, 30]], np.float32)
        found = DetectedObjects(
            path="x.jpg",
            size=(40, 30),
            boxes=boxes,
            scores=np.array([0.9, 0.25], np.float32),
            labels=np.array([2, 0]),
            classes=CLASSES,
            palette=PALETTE,
        )
        return DetectedObjects(**{**vars(found), **fields})

    return build


def some(count: int, size: tuple[int, int], seed: int = 0) -> Detections:
    draw, (width, height) = torch.Generator().manual_seed(seed), size
    corners = torch.rand(count, 2, 2, generator=draw).sort(dim=1).values * torch.tensor([width, height])
    scores = torch.rand(count, generator=draw).sort(descending=True).values
    masks = torch.rand(count, 28, 28, generator=draw)
    return Detections(corners.reshape(count, 4), scores, torch.arange(count) % 3, masks)


@given(st.integers(0, 6), st.tuples(st.integers(1, 90), st.integers(1, 90)), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_masks_are_the_pasted_ones(count: int, size: tuple[int, int], seed: int) -> None:
    found = some(count, size, seed)
    objects = DetectedObjects.from_detections(found, "x.jpg", size, CLASSES, PALETTE)
    assert objects.masks is not None and len(objects) == count
    pasted = found.paste((size[1], size[0])).numpy()
    for index, mask in enumerate(objects.masks):
        assert (objects.mask(index) == pasted[index]).all()
        assert (
            mask["counts"]
            == their_mask.encode(np.asfortranarray(pasted[index].astype(np.uint8)))["counts"].decode()
        )


def test_to_dict_is_json(make: Make) -> None:
    values = json.loads(json.dumps(make().to_dict()))
    assert (values["path"], values["width"], values["height"]) == ("x.jpg", 40, 30)
    first = {"label": 2, "name": "cat", "score": 0.9, "box": [4.0, 6.0, 20.0, 26.0]}
    assert values["objects"][0] == first and len(values["objects"]) == 2


def test_coco_rows_are_read_by_pycocotools(make: Make) -> None:
    rows = json.loads(json.dumps(make().to_coco(7)))
    assert rows[0] == {"image_id": 7, "category_id": 3, "bbox": [4, 6, 16, 20], "score": pytest.approx(0.9)}
    objects = DetectedObjects.from_detections(some(3, (50, 40)), "", (50, 40), CLASSES, PALETTE)
    rows = objects.to_coco(1, category_ids=(5, 6, 90))
    assert [row["category_id"] for row in rows] == [5, 6, 90]
    areas = their_mask.area([row["segmentation"] for row in json.loads(json.dumps(rows))])
    assert areas.tolist() == [objects.mask(index).sum() for index in range(3)]


def test_average_precision_takes_them(make: Make) -> None:
    document = {
        "images": [{"id": 5, "width": 40, "height": 30}],
        "annotations": [{"id": 1, "image_id": 5, "category_id": 9, "bbox": [4, 6, 16, 20], "area": 320}],
        "categories": [{"id": own, "name": name} for own, name in zip((1, 4, 9), CLASSES, strict=True)],
    }
    assert coco_figures(parse_coco(document), [make().to_found(5)])["bbox"].ap == 1


def test_objects_are_filtered_by_score_and_class(make: Make) -> None:
    objects = DetectedObjects.from_detections(some(4, (40, 30)), "", (40, 30), CLASSES, PALETTE)
    some_of = objects.filtered(float(objects.scores[2]), ["ant", "cat"])
    assert some_of.names == ["ant", "cat"] and some_of.masks is not None and objects.masks is not None
    assert some_of.masks == (objects.masks[0], objects.masks[2]) and len(objects) == 4
    assert len(make().filtered(names=[])) == 0 and len(make().filtered()) == 2
    with pytest.raises(UnknownName, match="unknown class 'bea': did you mean bee"):
        make().filtered(names=["bea"])


@pytest.mark.filterwarnings("ignore:OpenCV")
def test_to_supervision(make: Make) -> None:
    import supervision

    given = make().to_supervision()
    assert isinstance(given, supervision.Detections) and given.mask is None
    assert given.xyxy.tolist()[0] == [4, 6, 20, 26] and given["class_name"].tolist() == ["cat", "ant"]
    objects = DetectedObjects.from_detections(some(3, (40, 30)), "", (40, 30), CLASSES, PALETTE)
    given = objects.to_supervision()
    assert given.confidence is not None and given.confidence.tolist() == objects.scores.tolist()
    assert given.mask is not None and (given.mask[1] == objects.mask(1)).all()
    assert len(given[given.class_id == 1]) == 1
    empty = objects.filtered(1.0).to_supervision()
    assert len(empty) == 0 and empty.mask is not None and empty.mask.shape == (0, 30, 40)


def test_a_missing_package_is_named(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(MissingPackage, match=r"metaformer\[supervision\]"):
        make().to_supervision()


def test_boxes_alone_have_no_masks(make: Make) -> None:
    with pytest.raises(DataError, match="no masks"):
        make().mask(0)


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"scores": np.array([0.9], np.float32)}, r"boxes \(2, 4\), scores \(1,\) and labels \(2,\)"),
        ({"scores": np.array([0.9, np.nan])}, "not finite"),
        ({"scores": np.array([1.5, 0.1])}, "between 0 and 1"),
        ({"labels": np.array([0, 3])}, "a label is no class: there are 3"),
        ({"boxes": np.array([[0, 0, np.inf, 1]] * 2)}, "not finite"),
        ({"boxes": np.array([[9, 0, 5, 1]] * 2)}, "ends before it begins"),
        ({"masks": ({"size": [30, 40], "counts": "T14"},)}, "2 boxes, but 1 masks"),
        ({"masks": ({"size": [40, 30], "counts": "01"},) * 2}, "mask 0: "),
    ],
)
def test_invalid_values_are_refused(make: Make, fields: dict[str, Any], error: str) -> None:
    with pytest.raises(DataError, match=f"^x.jpg: .*{error}"):
        make(**fields)


def report_of(masks: bool = False, annotated: bool = True) -> DetectionReport:
    whole = {"size": [60, 80], "counts": [80, 3200, 1520]}
    annotation: dict[str, Any] = {"image_id": 1, "area": 1600, "segmentation": whole}
    document = {
        "images": [{"id": 1, "width": 80, "height": 60}],
        "annotations": [
            {**annotation, "id": 1, "category_id": 1, "bbox": [0, 0, 40, 40]},
            {**annotation, "id": 2, "category_id": 2, "bbox": [40, 0, 40, 40]},
        ],
        "categories": [
            {"id": 1, "name": "ant"},
            {"id": 2, "name": "a much longer name"},
            {"id": 3, "name": "cat"},
        ],
    }
    if not annotated:
        document["annotations"] = []
    found = Found(1, [[0, 0, 40, 40]], [0.9], [0], [encode(decode(whole))])
    kinds = ("bbox", "segm") if masks else ("bbox",)
    detected = ExampleObject(0, (0.0, 0.0, 40.0, 40.0), 0.9)
    example = DetectExample("x.jpg", 0, (80, 60), 0.5, (), (detected,))
    return DetectionReport(
        1, coco_figures(parse_coco(document), [found], kinds), PALETTE, 0.4, 0.9, (example,)
    )


def test_metrics_of_a_report() -> None:
    metrics = report_of().metrics
    assert (
        metrics["ap"] == metrics["ap50"] == 0.5 and metrics["ap_medium"] == 0.5 and metrics["ar_100"] == 0.5
    )
    assert "ap_small" not in metrics and "mask_ap" not in metrics
    assert report_of(annotated=False).metrics == {"ap": 0.0, "ap50": 0.0, "ap75": 0.0}


def test_metrics_of_masks() -> None:
    report = report_of(masks=True)
    assert report.metrics["mask_ap"] == report.metrics["mask_ap50"] == 0.5
    lines = report.text().splitlines()
    assert [line.split()[0] for line in lines[2:5]] == ["AP", "boxes", "masks"]
    assert lines[6].endswith("mask AP") and lines[7].split()[-2:] == ["0.00%", "0.00%"]


def test_text_has_the_weakest_class_first() -> None:
    lines = report_of().text(rows=1).splitlines()
    assert lines[-1] == "F1 of boxes: 90.00% at a score of 0.4"
    assert lines[0] == "1 images, 2 objects" and "50.00%" in lines[3] and "–" in lines[3]
    assert lines[6].split()[-4:] == ["1", "0", "0.00%", "0.00%"] and lines[6].startswith("a much longer name")
    assert "and 1 classes" in lines[7] and "1 classes without objects" in lines[8]
    assert "nothing to evaluate" in report_of(annotated=False).text()


def test_a_report_is_saved(tmp_path: Path) -> None:
    report = report_of(masks=True)
    values = json.loads(report.save(tmp_path / "a" / "report.json").read_text())
    assert values["images"] == 1 and values["objects"] == 2 and values["ap"] == 0.5
    assert values["classes"] == report.classes == ["ant", "a much longer name", "cat"]
    assert (
        values["figures"]["segm"]["per_class"][0]["ap"] == 1 and values["figures"]["bbox"]["ap_small"] is None
    )
    assert values["palette"] == np.asarray(PALETTE).tolist()
    (example,) = values["examples"]
    assert example["predicted"] == [
        {"label": 0, "box": [0, 0, 40, 40], "score": 0.9, "crowd": False, "mask": None}
    ]


@pytest.mark.parametrize("rows", [1, 20])
def test_text_is_narrow(rows: int) -> None:
    assert max(map(len, report_of(masks=True).text(rows).splitlines())) <= 80


IMAGES = ("ground truth", "prediction")


def shown(text: str) -> list[int]:
    return [text.count(f'alt="{word}"') for word in IMAGES]


def test_the_page_shows_images_with_truth_and_predictions(detect_run: Path) -> None:
    text = (detect_run / "report.html").read_text()
    state = json.loads((detect_run / "best" / "state.json").read_text())
    count = len(state["evaluation"]["examples"])
    assert shown(text) == [count, count] and count >= 5
    assert text.count("<svg") == 3
    for name, title in (("ap", "box AP"), ("ap50", "box AP50"), ("mask_ap", "mask AP")):
        assert f"{state['metrics'][name]:.2%}" in text and f"validation {title}<" in text
    assert "<script" not in text and "images at their own size" in text
    assert "metaformer predict" in text and "roi_batch_size" in text and "cat_max_ratio" not in text


def test_images_that_are_gone_are_gray(detect_run: Path) -> None:
    best = read_checkpoint(detect_run / "best").state
    for example in best["evaluation"]["examples"]:
        example["path"] = "gone/" + Path(example["path"]).name
    for block in build_report(best, TrainConfig(task="detect")).sections[0].blocks:
        assert isinstance(block, Examples)
        for example in block.examples:
            assert example.note.startswith("gone/") and all(example.panels.values())


def state(
    classes: int, masks: bool = False, examples: tuple[DetectExample, ...] = (), long_side: int | None = 1333
) -> dict[str, Any]:
    """A checkpoint's state: one object of each class but the last, every third of them found."""
    names = [f"class {i}" for i in range(classes)]
    outline = [[0, 0, 40, 0, 40, 40, 0, 40]]
    document = {
        "images": [{"id": i, "width": 80, "height": 60} for i in range(classes)],
        "annotations": [
            {
                "id": i + 1, "image_id": i, "category_id": i, "bbox": [0, 0, 40, 40], "area": 1600,
                "segmentation": outline,
            }
            for i in range(classes - 1)
        ],
        "categories": [{"id": i, "name": name} for i, name in enumerate(names)],
    }  # fmt: skip
    mask = np.zeros((60, 80), bool)
    mask[:40, :40] = True
    found = [Found(i, [[0, 0, 40, 40]], [0.9], [i], [encode(mask)]) for i in range(0, classes - 1, 3)]
    kinds: tuple[Kind, ...] = ("bbox", "segm") if masks else ("bbox",)
    palette = tuple((i % 256, 7, 9) for i in range(classes))
    report = DetectionReport(
        classes, coco_figures(parse_coco(document), found, kinds), palette, 0.4, 0.9, examples
    )
    card = {
        "task": "detect", "name": "net", "classes": names,
        "preprocess": {"long_side": long_side, "short_side": 800},
    }  # fmt: skip
    return {
        "card": card, "evaluation": json.loads(json.dumps(report.to_dict())), "metrics": report.metrics,
        "metric": "ap", "step": 1200,
    }  # fmt: skip


def class_table(values: dict[str, Any]) -> tuple[Table, Section]:
    section = build_report(values, TrainConfig(task="detect")).sections[1]
    (table,) = section.blocks
    assert isinstance(table, Table)
    return table, section


def test_classes_are_listed_by_ap() -> None:
    table, section = class_table(state(5))
    assert [row.cells[:3] for row in table.rows] == [
        ["class 1", "1", "0.0%"], ["class 2", "1", "0.0%"], ["class 0", "1", "100.0%"],
        ["class 3", "1", "100.0%"],
    ]  # fmt: skip
    assert section.note.startswith("1 classes have no objects") and table.rows[2].color == css_color(
        brighten((0, 7, 9))
    )
    assert table.columns[-1] == "recall"


def test_masks_have_columns_of_their_own() -> None:
    table, _ = class_table(state(4, masks=True))
    assert table.columns[-2:] == ["mask AP", "mask AP50"] and {len(row.cells) for row in table.rows} == {8}


@pytest.mark.parametrize(
    ("side", "text"), [(1333, "images fitted into 1333×800 pixels"), (None, "images at their own size")]
)
def test_preprocessing_is_described(side: int | None, text: str) -> None:
    assert build_report(state(3, long_side=side), TrainConfig()).preprocess == text


def test_examples_have_ground_truth_and_prediction(tmp_path: Path) -> None:
    box = (4.0, 4.0, 30.0, 30.0)
    truth = (ExampleObject(0, box), ExampleObject(1, box, crowd=True))
    example = DetectExample(str(tmp_path / "0.png"), 0, (80, 60), 0.3, truth, (ExampleObject(0, box, 0.9),))
    (worst,) = build_report(state(3, examples=(example,)), TrainConfig()).sections[0].blocks
    assert isinstance(worst, Examples)
    (shown,) = worst.examples
    assert (shown.value, shown.text) == ("30%", "F1")
    first, second = shown.panels.values()
    assert first != second and str(first).startswith("data:image/jpeg;base64,")
