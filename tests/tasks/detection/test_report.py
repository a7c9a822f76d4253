import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from metaformer.checkpoint.checkpoint import read_checkpoint
from metaformer.config import TrainConfig
from metaformer.data.rle import encode
from metaformer.report.blocks import Examples, Section, Table
from metaformer.tasks.detection.formats.coco import parse_coco
from metaformer.tasks.detection.metrics import Found, Kind, coco_figures
from metaformer.tasks.detection.report import build_report
from metaformer.tasks.detection.results import DetectExample, DetectionReport, ExampleObject

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
    report = DetectionReport(classes, coco_figures(parse_coco(document), found, kinds), palette, examples)
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
    assert section.note.startswith("1 classes have no objects") and table.rows[2].color == "rgb(0 7 9)"
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
