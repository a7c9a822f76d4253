import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from metaformer.data.rle import decode, encode
from metaformer.tasks.detection.metrics import Found, coco_figures
from metaformer.tasks.detection.results import DetectExample, DetectionReport, ExampleObject

PALETTE = ((200, 0, 0), (0, 200, 0), (0, 0, 200))


def measured(masks: bool = False, annotated: bool = True) -> DetectionReport:
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
    seen = ExampleObject(0, (0.0, 0.0, 40.0, 40.0), 0.9)
    example = DetectExample("x.jpg", 0, (80, 60), 0.5, (), (seen,))
    return DetectionReport(1, coco_figures(document, [found], kinds), PALETTE, (example,))


def test_a_log_gets_numbers() -> None:
    metrics = measured().metrics
    assert (
        metrics["ap"] == metrics["ap50"] == 0.5 and metrics["ap_medium"] == 0.5 and metrics["ar_100"] == 0.5
    )
    assert "ap_small" not in metrics and "mask_ap" not in metrics
    assert measured(annotated=False).metrics == {"ap": 0.0, "ap50": 0.0, "ap75": 0.0}


def test_masks_are_told_apart() -> None:
    report = measured(masks=True)
    assert report.metrics["mask_ap"] == report.metrics["mask_ap50"] == 0.5
    lines = report.text().splitlines()
    assert [line.split()[0] for line in lines[2:5]] == ["AP", "boxes", "masks"]
    assert lines[6].endswith("mask AP") and lines[7].split()[-2:] == ["0.00%", "0.00%"]


def test_a_page_has_the_weakest_class_first() -> None:
    lines = measured().text(rows=1).splitlines()
    assert lines[0] == "1 images, 2 objects" and "50.00%" in lines[3] and "–" in lines[3]
    assert lines[6].split()[-4:] == ["1", "0", "0.00%", "0.00%"] and lines[6].startswith("a much longer name")
    assert "and 1 classes" in lines[7] and "1 classes without objects" in lines[8]
    assert "nothing to measure" in measured(annotated=False).text()


def test_all_of_it_is_saved(tmp_path: Path) -> None:
    report = measured(masks=True)
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
def test_a_page_is_narrow(rows: int) -> None:
    assert max(map(len, measured(masks=True).text(rows).splitlines())) <= 80
