"""COCO average precision, compared with pycocotools."""

import contextlib
import copy
import io
import sys
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pycocotools import mask as their_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from metaformer.errors import DataError, MissingPackage
from metaformer.tasks.detection.formats.annotations import Annotations
from metaformer.tasks.detection.formats.coco import parse_coco
from metaformer.tasks.detection.metrics import (
    AveragePrecision,
    Found,
    Kind,
    coco_figures,
    figures,
    ground_truth,
)

WIDTH, HEIGHT = 200, 150
Document = dict[str, Any]


def rectangle(left: float, top: float, right: float, bottom: float, text: bool = True) -> dict[str, Any]:
    """A box as a mask, run lengths compressed by pycocotools."""
    pixels = np.zeros((HEIGHT, WIDTH), np.uint8, order="F")
    pixels[round(top) : round(bottom), round(left) : round(right)] = 1
    rle = their_mask.encode(pixels)
    return {**rle, "counts": rle["counts"].decode()} if text else rle


def theirs(document: Document, found: list[Found], kind: Kind) -> tuple[list[float], list[float]]:
    """The twelve figures of pycocotools, and the AP of each class."""
    ids = [category["id"] for category in document["categories"]]
    results = []
    for one in found:
        boxes = np.asarray(one.boxes, np.float64).reshape(-1, 4)
        shapes = [[b[0], b[1], b[2] - b[0], b[3] - b[1]] for b in boxes.tolist()]
        for place, (score, label) in enumerate(zip(one.scores, one.labels, strict=True)):  # type: ignore[arg-type]
            row = {"image_id": one.image_id, "category_id": ids[label], "score": float(score)}
            if kind == "segm":
                assert one.masks is not None
                results.append({**row, "segmentation": one.masks[place]})
            else:
                results.append({**row, "bbox": shapes[place]})
    with contextlib.redirect_stdout(io.StringIO()):
        truth, detections = COCO(), COCO()
        truth.dataset = copy.deepcopy(document)
        truth.createIndex()
        if results:
            detections = truth.loadRes(results)
        else:  # loadRes fails of no results
            detections.dataset = {**truth.dataset, "annotations": []}
            detections.createIndex()
        evaluation = COCOeval(truth, detections, kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    ranks = np.argsort(ids).argsort()  # pycocotools sorts classes by id
    precision = evaluation.eval["precision"][:, :, :, 0, -1]
    per_class = [precision[:, :, rank] for rank in ranks]
    return evaluation.stats.tolist(), [float(p[p > -1].mean()) if (p > -1).any() else -1 for p in per_class]


def check(document: Document, found: list[Found], *kinds: Kind) -> None:
    names = [category["name"] for category in document["categories"]]
    mine = coco_figures(parse_coco(document, classes=names), found, kinds)
    for kind in kinds:
        stats, per_class = theirs(document, found, kind)
        assert [-1 if value is None else value for value in mine[kind].stats] == pytest.approx(
            stats, abs=1e-6
        )
        aps = [-1 if row.ap is None else row.ap for row in mine[kind].per_class]
        assert aps == pytest.approx(per_class, abs=1e-6)


corners = st.tuples(*(st.integers(0, side) for side in (WIDTH, HEIGHT, WIDTH, HEIGHT))).map(
    lambda c: (min(c[0], c[2]), min(c[1], c[3]), max(c[0], c[2]), max(c[1], c[3]))
)
# Few places, so that boxes are equal or all but equal; of detections, some without area.
PLACES = [(10, 10, 42, 42), (10, 10, 42, 43), (12, 11, 43, 44), (0, 0, 200, 150)]
places, flat = st.sampled_from(PLACES), st.sampled_from([(0, 0, 0, 0), (5, 5, 5, 40)])
annotated_boxes = st.one_of(places, places, corners.filter(lambda c: c[0] < c[2] and c[1] < c[3]))
detected_boxes = st.one_of(places, places, flat, corners)


@st.composite
def scenes(draw: st.DrawFn) -> tuple[Document, list[Found]]:
    ids = draw(st.lists(st.sampled_from([1, 2, 5, 90]), min_size=1, max_size=3, unique=True))
    images = draw(st.lists(st.integers(0, 2**53), max_size=4, unique=True))
    annotations: list[dict[str, Any]] = []
    found = []
    for image in images:
        objects = draw(st.lists(st.tuples(annotated_boxes, st.sampled_from(ids), st.booleans()), max_size=6))
        for box, category, crowd in objects:
            left, top, right, bottom = box
            area = draw(st.sampled_from([0, 32**2, 96**2, (right - left) * (bottom - top)]))
            row = {"id": len(annotations) + 1, "image_id": image, "category_id": category, "area": area}
            row |= {"bbox": [left, top, right - left, bottom - top], "iscrowd": int(crowd)}
            annotations.append({**row, "segmentation": rectangle(*box)})
        if draw(st.booleans()):
            labels = st.integers(0, len(ids) - 1)
            guess = st.tuples(detected_boxes, st.sampled_from([0.1, 0.5, 0.5, 0.9]), labels)
            guesses = draw(st.lists(guess, max_size=8)) * draw(st.sampled_from([1, 1, 1, 30]))
            shapes = [rectangle(*box, text=draw(st.booleans())) for box, _, _ in guesses[:8]] * 30
            found.append(
                Found(
                    image,
                    [box for box, _, _ in guesses],
                    [score for _, score, _ in guesses],
                    [label for _, _, label in guesses],
                    shapes[: len(guesses)]
                    if len(guesses) <= 8
                    else [rectangle(*box) for box, _, _ in guesses],
                )
            )
    document = {
        "images": [{"id": image, "width": WIDTH, "height": HEIGHT} for image in images],
        "annotations": annotations,
        "categories": [{"id": own, "name": f"class {own}"} for own in ids],
    }
    return document, draw(st.permutations(found))


@given(scenes())
@settings(max_examples=150, deadline=None)
@example(({"images": [], "annotations": [], "categories": [{"id": 1, "name": "ant"}]}, []))
def test_all_figures_are_pycocotools(case: tuple[Document, list[Found]]) -> None:
    check(*case, "bbox", "segm")


def crowded(seed: int) -> tuple[Document, list[Found]]:
    """Boxes of any fractions in some images, and up to 150 detections near them, in ties of scores."""
    draw = np.random.default_rng(seed)
    annotations: list[dict[str, Any]] = []
    found = []
    for image in range(1, 9):
        count = int(draw.integers(0, 12))
        sides = np.exp(draw.normal(3, 1, (count, 2))).clip(1, 140)
        start = draw.random((count, 2)) * ([WIDTH, HEIGHT] - sides)
        for (left, top), (width, height) in zip(start.tolist(), sides.tolist(), strict=True):
            row = {"id": len(annotations) + 1, "image_id": image, "category_id": int(draw.integers(1, 4))}
            row |= {"bbox": [left, top, width, height], "area": width * height / 2}
            outline = [left, top, left + width, top, left + width, top + height, left, top + height]
            annotations.append({**row, "iscrowd": int(draw.random() < 0.2), "segmentation": [outline]})
        near = np.concatenate([start, start + sides], axis=1).repeat(draw.integers(0, 12), axis=0)
        boxes = (near + draw.normal(0, 3, near.shape)).clip(0, [WIDTH, HEIGHT] * 2)[:150]
        boxes[:, 2:] = np.maximum(boxes[:, :2], boxes[:, 2:])
        scores = draw.random(len(boxes)).round(int(draw.integers(1, 4)))
        masks = [rectangle(*box) for box in boxes.tolist()]
        found.append(Found(image, boxes, scores, draw.integers(0, 3, len(boxes)), masks))
    images = [{"id": image, "width": WIDTH, "height": HEIGHT} for image in range(1, 9)]
    classes = [{"id": own, "name": str(own)} for own in (3, 1, 2)]
    return {"images": images, "annotations": annotations, "categories": classes}, found


@pytest.mark.parametrize("seed", range(6))
def test_many_detections_in_fractions_of_pixels(seed: int) -> None:
    check(*crowded(seed), "bbox", "segm")


def one(**fields: Any) -> Annotations:
    """A bee, label 1, in the image 7."""
    annotation = {"id": 1, "image_id": 7, "category_id": 9, "bbox": [10, 10, 40, 40], "area": 1600, **fields}
    return parse_coco(
        {
            "images": [{"id": 7, "width": WIDTH, "height": HEIGHT}],
            "annotations": [annotation],
            "categories": [{"id": 3, "name": "ant"}, {"id": 9, "name": "bee"}],
        }
    )


def test_what_figures_say() -> None:
    found = coco_figures(one(), [Found(7, [[10, 10, 50, 50], [0, 0, 9, 9]], [0.9, 0.4], [1, 0])])["bbox"]
    assert found.ap == found.ap_medium == found.ar_1 == 1 and found.ap_small is None and found.objects == 1
    ant, bee = found.per_class
    assert (ant.name, ant.objects, ant.found, ant.ap) == ("ant", 0, 1, None)
    assert (bee.objects, bee.found, bee.ap, bee.ap50, bee.ap75, bee.ar) == (1, 1, 1, 1, 1, 1)


def test_no_detections_and_no_objects() -> None:
    assert coco_figures(one(), [])["bbox"].ap == 0
    assert set(coco_figures(one(iscrowd=1), [Found(7, [], [], [])])["bbox"].stats) == {None}


def test_an_object_of_id_0_which_pycocotools_takes_for_none() -> None:
    assert coco_figures(one(id=0), [Found(7, [[10, 10, 50, 50]], [1.0], [1])])["bbox"].ap == 1


def test_the_ground_truth_is_numbered_from_1_and_its_run_lengths_compressed() -> None:
    """Evaluators hold ids as floating-point numbers, and take 0 for none."""
    runs = {"size": [HEIGHT, WIDTH], "counts": [0, HEIGHT * WIDTH]}
    images = [{"id": own, "width": WIDTH, "height": HEIGHT} for own in (2**53 + 1, 0)]
    row = {"bbox": [0, 0, 8, 9.5], "area": 5, "segmentation": runs}
    rows = [{**row, "id": own, "image_id": 2**53 + 1, "category_id": 0} for own in (5, 0)]
    annotations = parse_coco(
        {"images": images, "annotations": rows, "categories": [{"id": 0, "name": "ant"}]}
    )
    document = ground_truth(annotations, masks=True)
    assert [image["id"] for image in document["images"]] == [2, 1]
    assert [(one["id"], one["image_id"], one["category_id"]) for one in document["annotations"]] == [
        (1, 2, 1), (2, 2, 1),
    ]  # fmt: skip
    first = document["annotations"][0]
    assert first["bbox"] == [0, 0, 8, 9.5] and first["area"] == 5 and first["iscrowd"] == 0
    assert first["segmentation"] == rectangle(0, 0, WIDTH, HEIGHT)
    assert "segmentation" not in ground_truth(annotations, masks=False)["annotations"][0]


def test_masks_need_outlines_of_all_objects() -> None:
    with pytest.raises(DataError, match="segmentation"):
        AveragePrecision(one(), ("segm",))


def test_tensors_are_accepted() -> None:
    precision = AveragePrecision(one())
    precision.update(Found(7, torch.tensor([[10.0, 10, 50, 50]]), torch.ones(1), torch.tensor([1])))
    assert precision.result()["bbox"].ap == 1


@pytest.mark.parametrize(
    ("found", "error"),
    [
        (Found(8, [], [], []), "image 8: the data set has no such image"),
        (Found(7, [[0, 0, 1, 1]], [1.0], [2]), "image 7: a label is no class: there are 2, from 0"),
        (Found(7, [[0, 0, 1, 1]], [1.0], [-1]), "no class"),
        (Found(7, [[0, 0, 1, 1]], [1.0], [0.0]), "no class"),
        (Found(7, [[0, 0, 1, 1]], [1.0, 2.0], [0]), "do not fit"),
        (Found(7, [[0, 0, float("nan"), 1]], [1.0], [0]), "not finite"),
        (Found(7, [[0, 0, 1, 1]], [float("inf")], [0]), "not finite"),
        (Found(7, [[2, 0, 1, 1]], [1.0], [0]), "ends before it begins"),
        (Found(7, [[0, 0, 1, 1]], [1.0], [0]), "1 boxes, but 0 masks"),
        (Found(7, [[0, 0, 1, 1]], [1.0], [0], [{"size": [1, 1], "counts": "01"}]), r"mask 0: .*\[1, 1\]"),
    ],
)
def test_invalid_detections_are_refused(found: Found, error: str) -> None:
    annotations = one(segmentation=rectangle(10, 10, 50, 50))
    with pytest.raises(DataError, match=error):
        coco_figures(annotations, [found], ("bbox", "segm"))


def test_an_image_counts_once() -> None:
    with pytest.raises(DataError, match="image 7: was added before"):
        coco_figures(one(), [Found(7, [], [], [])] * 2)


def test_a_missing_package_is_named_before_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    with pytest.raises(MissingPackage, match=r"metaformer\[detect\]"):
        AveragePrecision(one())


def test_detections_of_all_ranks_count(monkeypatch: pytest.MonkeyPatch) -> None:
    other = AveragePrecision(one())
    other.update(Found(7, [[10, 10, 50, 50]], [1.0], [1]))
    theirs = list(other._found.items())
    monkeypatch.setattr("metaformer.tasks.detection.metrics.all_gather_list", lambda mine: [*mine, *theirs])
    assert AveragePrecision(one()).result()["bbox"].ap == 1
    with pytest.raises(DataError, match="two ranks"):
        other.result()


def test_figures_are_read_from_their_axes() -> None:
    draw = np.random.default_rng(0)
    precision, recall = draw.random((10, 101, 2, 4, 3)), draw.random((10, 2, 4, 3))
    found = figures(precision, recall, ["ant", "bee"], [3, 1], [5, 0])
    assert found.ap == precision[..., 0, 2].mean() and found.ap75 == precision[5, ..., 0, 2].mean()
    assert found.ap_large == precision[..., 3, 2].mean() and found.ar_10 == recall[..., 0, 1].mean()
    assert found.ar_small == recall[..., 1, 2].mean() and found.stats[10] == found.ar_medium
    bee = found.per_class[1]
    assert (bee.name, bee.objects, bee.found, found.objects) == ("bee", 1, 0, 4)
    assert bee.ap50 == precision[0, :, 1, 0, 2].mean() and bee.ar == recall[:, 1, 0, 2].mean()


def test_minus_one_is_none() -> None:
    precision, recall = np.full((10, 101, 2, 4, 3), -1.0), np.full((10, 2, 4, 3), -1.0)
    precision[:, :, 0], recall[:, 0] = 0.5, 0.25
    found = figures(precision, recall, ["ant", "bee"], [1, 0], [1, 0])
    assert found.ap == 0.5 and found.per_class[0].ar == 0.25 and found.per_class[1].ap is None
