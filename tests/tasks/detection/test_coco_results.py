import json
from collections.abc import Callable
from pathlib import Path

import pytest
from pycocotools.coco import COCO
from pycocotools.mask import area

from metaformer.tasks.detection.write import coco_sink
from metaformer.tasks.outputs import Prediction


def test_pycocotools_reads_the_results(spotted: Callable[..., Prediction], tmp_path: Path) -> None:
    with coco_sink(tmp_path, (3, 90)) as add:
        add("000000000139", spotted("000000000139.jpg"))
        add("holiday", spotted("holiday.jpg"))
    rows = json.loads((tmp_path / "coco.json").read_text())
    assert [(row["image_id"], row["category_id"]) for row in rows] == [(139, 90), (139, 3), (2, 90), (2, 3)]
    truth = COCO()
    truth.dataset = {
        "images": [{"id": own, "width": 400, "height": 300} for own in (139, 2)],
        "annotations": [],
        "categories": [{"id": own, "name": str(own)} for own in (3, 90)],
    }
    truth.createIndex()
    results = truth.loadRes(str(tmp_path / "coco.json"))
    assert area([results.anns[1]["segmentation"]]).tolist() == [120 * 90]
    assert rows[0]["bbox"] == [40, 60, 120, 180] and rows[0]["score"] == 0.875


def test_no_objects_are_an_empty_list(tmp_path: Path) -> None:
    with coco_sink(tmp_path):
        pass
    assert json.loads((tmp_path / "coco.json").read_text()) == []


def test_an_error_leaves_no_half(spotted: Callable[..., Prediction], tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), coco_sink(tmp_path) as add:
        add("x", spotted())
        raise RuntimeError
    assert not (tmp_path / "coco.json").exists()
