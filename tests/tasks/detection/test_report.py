import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from metaformer.checkpoint.checkpoint import read_checkpoint, write_checkpoint
from metaformer.config import TrainConfig
from metaformer.data.rle import encode
from metaformer.tasks.detection.metrics import Found, Kind, coco_figures
from metaformer.tasks.detection.report import ROWS, detect_content
from metaformer.tasks.detection.results import DetectExample, DetectionReport, ExampleObject
from metaformer.training.report import write_report

IMAGES = ("truth", "prediction")


def shown(text: str) -> list[int]:
    return [text.count(f'alt="{word}"') for word in IMAGES]


def test_the_page_shows_images_with_truth_and_predictions(detect_run: Path) -> None:
    text = (detect_run / "report.html").read_text()
    state = json.loads((detect_run / "best" / "state.json").read_text())
    count = len(state["evaluation"]["examples"])
    assert shown(text) == [count, count] and count >= 5
    assert text.count("<svg") == 3 and not re.search(
        r"(src|href)=\"(?!data:)", text
    )  # nothing from elsewhere
    for name, told in (("ap", "box AP"), ("ap50", "box AP50"), ("mask_ap", "mask AP")):
        assert f"{state['metrics'][name]:.2%}" in text and f"held-out {told}<" in text
    assert "<script" not in text and "images at their own size" in text
    assert "metaformer predict" in text and "roi_batch_size" in text and "cat_max_ratio" not in text


def edited(run: Path, to: Path, change: Any) -> Path:
    """A copy of a run whose best checkpoint says something else."""
    shutil.copytree(run, to)
    saved = read_checkpoint(to / "best")
    values = {key: value for key, value in saved.state.items() if key != "format"}
    change(values)
    tensors = {name: tensor.clone() for name, tensor in saved.tensors("model").items()}
    write_checkpoint(to / "best", {"model": tensors}, values)
    return to


def test_images_that_are_gone_are_gray(detect_run: Path, tmp_path: Path) -> None:
    def move(values: dict[str, Any]) -> None:
        for example in values["evaluation"]["examples"]:
            example["path"] = "gone/" + Path(example["path"]).name

    text = write_report(edited(detect_run, tmp_path / "run", move)).read_text()
    assert shown(text) == shown((detect_run / "report.html").read_text()) and "gone/" in text


def test_names_of_classes_cannot_break_the_page(detect_run: Path, tmp_path: Path) -> None:
    def rename(values: dict[str, Any]) -> None:
        values["evaluation"]["classes"][0] = "<script>alert(1)</script>"
        for figures in values["evaluation"]["figures"].values():
            figures["per_class"][0]["name"] = "<script>alert(1)</script>"

    text = write_report(edited(detect_run, tmp_path / "run", rename)).read_text()
    assert "<script" not in text and "&lt;script&gt;" in text


def state(
    classes: int, masks: bool = False, examples: tuple[DetectExample, ...] = (), look: int | None = 1333
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
    report = DetectionReport(classes, coco_figures(document, found, kinds), palette, examples)
    card = {
        "task": "detect", "name": "net", "classes": names,
        "preprocess": {"long_side": look, "short_side": 800},
    }  # fmt: skip
    return {
        "card": card, "evaluation": json.loads(json.dumps(report.to_dict())), "metrics": report.metrics,
        "metric": "ap", "step": 1200,
    }  # fmt: skip


def content(told: dict[str, Any]) -> dict[str, Any]:
    return detect_content(told, TrainConfig(task="detect"), [])


def test_few_classes_are_listed_weakest_first() -> None:
    few = content(state(5))
    assert [(row["name"], row["ap"]) for row in few["classes"]] == [
        ("class 1", "0.0%"), ("class 2", "0.0%"), ("class 0", "100.0%"), ("class 3", "100.0%"),
    ]  # fmt: skip
    assert few["absent"] == 1 and not few["folded"] and not few["masks"]
    assert few["classes"][2]["color"] == "rgb(0 7 9)" and few["classes"][0]["objects"] == "1"
    assert few["preprocess"] == "images fitted into 1333×800 pixels"
    assert {("50.00%", "held-out box AP"), ("1,200", "step of the best weights")} <= set(few["figures"])


def test_many_classes_are_folded_away() -> None:
    many = content(state(3 * ROWS, look=None))
    assert (len(many["classes"]), len(many["folded"])) == (ROWS, 2 * ROWS - 1)
    assert many["preprocess"] == "images at their own size"


def test_masks_have_columns_of_their_own() -> None:
    both = content(state(4, masks=True))
    assert both["masks"] and {name for _, name in both["figures"]} >= {"held-out box AP", "held-out mask AP"}
    assert {"mask_ap", "mask_ap50"} <= both["classes"][0].keys()


@pytest.mark.parametrize(
    ("count", "told"),
    [
        (5, [("Worst", ["0%", "10%", "20%"]), ("Best", ["40%", "30%"])]),
        (1, [("Worst", ["30%"])]),
        (0, []),
    ],
)
def test_examples_are_the_worst_and_the_best(count: int, told: list[Any], tmp_path: Path) -> None:
    box = (4.0, 4.0, 30.0, 30.0)
    truth = (ExampleObject(0, box), ExampleObject(1, box, crowd=True))
    examples = tuple(
        DetectExample(str(tmp_path / f"{i}.png"), i, (80, 60), i / 10, truth, (ExampleObject(0, box, 0.9),))
        for i in (3, 0, 4, 1, 2)[:count]
    )
    pairs = content(state(3, examples=examples))["pairs"]
    assert [(title, [one["f1"] for one in chosen]) for title, chosen in pairs] == told
    for _, chosen in pairs:
        assert all(one["truth"].startswith("data:image/jpeg;base64,") for one in chosen)
        assert all(one["truth"] != one["predicted"] for one in chosen)
