"""COCO's figures here against those of pycocotools.

`python examples/coco_eval_speed.py [images] [objects] [kind] [rounds]`

Both measure the same made-up detections, 100 in each image, in turn in one process; `kind` is bbox or segm.
Time is the processor's, so that other work on the machine does not count.
"""

import contextlib
import copy
import io
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import faster_coco_eval  # noqa: F401  (its import is not timed)
import numpy as np
from numpy.typing import NDArray
from pycocotools import mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from metaformer.tasks.detection.formats.coco import parse_coco
from metaformer.tasks.detection.metrics import Found, Kind, coco_figures

WIDTH, HEIGHT, CLASSES, DETECTIONS = 640, 480, 80, 100
SIZE = np.array([WIDTH, HEIGHT])


def some_boxes(draw: np.random.Generator, count: int) -> NDArray[Any]:
    """Boxes (N, 4) of all sizes: left, top, right, bottom."""
    sides = np.exp(draw.normal(4, 1, (count, 2))).clip(4, 470)
    corner = draw.random((count, 2)) * (SIZE - sides)
    return np.concatenate([corner, corner + sides], axis=1)


def outline(box: Sequence[float]) -> list[list[float]]:
    """A hexagon within a box."""
    left, top, right, bottom = box
    west, east, middle = left * 0.7 + right * 0.3, left * 0.3 + right * 0.7, (top + bottom) / 2
    return [[west, top, east, top, right, middle, east, bottom, west, bottom, left, middle]]


def make(images: int, objects: int, kind: Kind) -> tuple[dict[str, Any], list[Found]]:
    """A data set, and detections: two near each object, the rest anywhere, most of classes that are there."""
    draw = np.random.default_rng(0)
    annotations: list[dict[str, Any]] = []
    found = []
    for image, count in enumerate(draw.multinomial(objects, draw.dirichlet(np.ones(images) * 1.5)), start=1):
        boxes, labels = some_boxes(draw, count), (CLASSES * draw.random(count) ** 2).astype(int)
        for box, label in zip(boxes.tolist(), labels.tolist(), strict=True):
            left, top, right, bottom = box
            shape = {"segmentation": outline(box)} if kind == "segm" else {}
            width, height, number = right - left, bottom - top, len(annotations) + 1
            row = {"id": number, "image_id": image, "category_id": label + 1, "area": 0.7 * width * height}
            row |= {"bbox": [left, top, width, height], "iscrowd": int(draw.random() < 0.01)}
            annotations.append(row | shape)
        near = boxes.repeat(2, axis=0)[:DETECTIONS]
        near = near + draw.normal(0, 0.08, near.shape) * np.tile(near[:, 2:] - near[:, :2], 2)
        near[:, 2:] = np.maximum(near[:, 2:], near[:, :2] + 1)
        rest = DETECTIONS - len(near)
        guesses = draw.choice(labels if count else [0], rest)
        guesses = np.where(draw.random(rest) < 0.7, guesses, draw.integers(0, CLASSES, rest))
        boxes = np.concatenate([near, some_boxes(draw, rest)])
        masks = None
        if kind == "segm":
            masks = [mask.frPyObjects(outline(box), HEIGHT, WIDTH)[0] for box in boxes]
        scores = np.concatenate([draw.beta(5, 2, len(near)), draw.beta(1, 8, rest)]).round(3)
        found.append(Found(image, boxes, scores, [*labels.repeat(2)[:DETECTIONS], *guesses], masks))
    return {
        "images": [{"id": image + 1, "width": WIDTH, "height": HEIGHT} for image in range(images)],
        "annotations": annotations,
        "categories": [{"id": label + 1, "name": f"class {label}"} for label in range(CLASSES)],
    }, found


def theirs(document: dict[str, Any], found: list[Found], kind: Kind) -> Sequence[float]:
    """The twelve figures by pycocotools."""
    results = []
    for one in found:
        boxes = np.asarray(one.boxes)
        shapes = one.masks or np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1).tolist()
        name = "bbox" if one.masks is None else "segmentation"
        rows = zip(shapes, np.asarray(one.scores).tolist(), np.asarray(one.labels).tolist(), strict=True)
        results += [
            {"image_id": one.image_id, "category_id": label + 1, "score": score, name: shape}
            for shape, score, label in rows
        ]
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = copy.deepcopy(document)
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(results), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats.tolist()


def main(images: int = 5000, objects: int = 36_000, kind: Kind = "bbox", rounds: int = 2) -> None:
    """Print seconds and ratio, round by round, and the largest difference."""
    document, found = make(images, objects, kind)

    def ours() -> Sequence[float]:
        stats = coco_figures(parse_coco(document), found, (kind,))[kind].stats
        return [-1 if value is None else value for value in stats]

    def timed(work: Callable[[], Sequence[float]]) -> tuple[Sequence[float], float]:
        start = time.process_time()
        return work(), time.process_time() - start

    print(f"{images} images, {objects} objects, {DETECTIONS * images} detections, {kind}")
    for _ in range(rounds):
        (here, ours_took), (there, theirs_took) = timed(ours), timed(lambda: theirs(document, found, kind))
        difference = max(abs(a - b) for a, b in zip(here, there, strict=True))
        times = f"here {ours_took:6.2f} s   pycocotools {theirs_took:6.2f} s   "
        told = f"ratio {theirs_took / ours_took:.1f}   AP {here[0]:.4f}   difference {difference:.0e}"
        print(times + told, flush=True)


if __name__ == "__main__":
    words = sys.argv[1:]
    main(*map(int, words[:2]), *words[2:3], *map(int, words[3:4]))
