import json
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as their_mask

from metaformer.errors import DataError, MissingPackage, UnknownName
from metaformer.models.detection.structures import Detections
from metaformer.tasks.detection.metrics import coco_figures
from metaformer.tasks.detection.results import DetectedObjects

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
def test_masks_are_those_that_were_pasted(count: int, size: tuple[int, int], seed: int) -> None:
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


def test_json_holds_plain_values(make: Make) -> None:
    values = json.loads(json.dumps(make().to_dict()))
    assert {key: values[key] for key in ("path", "width", "height")} == {
        "path": "x.jpg",
        "width": 40,
        "height": 30,
    }
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


def test_figures_are_made_of_them(make: Make) -> None:
    document = {
        "images": [{"id": 5, "width": 40, "height": 30}],
        "annotations": [{"id": 1, "image_id": 5, "category_id": 9, "bbox": [4, 6, 16, 20], "area": 320}],
        "categories": [{"id": own, "name": name} for own, name in zip((1, 4, 9), CLASSES, strict=True)],
    }
    assert coco_figures(document, [make().as_found(5)])["bbox"].ap == 1


def test_less_sure_objects_and_other_classes_are_left_out(make: Make) -> None:
    objects = DetectedObjects.from_detections(some(4, (40, 30)), "", (40, 30), CLASSES, PALETTE)
    kept = objects.filtered(float(objects.scores[2]), ["ant", "cat"])
    assert kept.names == ["ant", "cat"] and kept.masks is not None and objects.masks is not None
    assert kept.masks == (objects.masks[0], objects.masks[2]) and len(objects) == 4
    assert len(make().filtered(only=[])) == 0 and len(make().filtered()) == 2
    with pytest.raises(UnknownName, match="unknown class 'bea': did you mean bee"):
        make().filtered(only=["bea"])


@pytest.mark.filterwarnings("ignore:OpenCV")
def test_supervision_gets_all_of_it(make: Make) -> None:
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


def test_supervision_may_be_missing(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(MissingPackage, match=r"metaformer\[supervision\]"):
        make().to_supervision()


def test_boxes_alone_have_no_masks(make: Make) -> None:
    with pytest.raises(DataError, match="no masks"):
        make().mask(0)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"scores": np.array([0.9], np.float32)}, r"boxes \(2, 4\), scores \(1,\), labels \(2,\)"),
        ({"scores": np.array([0.9, np.nan])}, "between 0 and 1"),
        ({"scores": np.array([1.5, 0.1])}, "between 0 and 1"),
        ({"labels": np.array([0, 3])}, "a label is no class: there are 3"),
        ({"boxes": np.array([[0, 0, np.inf, 1]] * 2)}, "a box is not finite"),
        ({"boxes": np.array([[9, 0, 5, 1]] * 2)}, "ends before it begins"),
        ({"masks": ({"size": [30, 40], "counts": "T14"},)}, "2 objects, but 1 masks"),
        ({"masks": ({"size": [40, 30], "counts": "01"},) * 2}, "mask 0: "),
    ],
)
def test_what_cannot_be_is_told(make: Make, fields: dict[str, Any], told: str) -> None:
    with pytest.raises(DataError, match=f"^x.jpg: .*{told}"):
        make(**fields)
