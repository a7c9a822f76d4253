"""Evaluation of detectors, and the examples of its report."""

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from metaformer.data.rle import decode, encode
from metaformer.distributed import Interrupted, join
from metaformer.errors import BadImage, MissingPackage, RankError, TrainingError
from metaformer.models.detection.structures import Detections, Size
from metaformer.tasks.dense import EXAMPLES, WorstAndBest
from metaformer.tasks.detection.dataset import open_detection
from metaformer.tasks.detection.evaluate import DetectionEvaluation, F1Curve, add_example, f1_score
from metaformer.tasks.detection.instances import Instance
from metaformer.tasks.detection.predict import DEFAULT_SCORE, DetectForward, DetectInference
from metaformer.tasks.detection.results import DetectedObjects, DetectExample
from metaformer.tasks.detection.transforms import DetectionPreprocess
from toys import Rectangles

PLAIN = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
OWN = DetectionPreprocess(None, None, **PLAIN)
RESIZED = DetectionPreprocess(long_side=128, short_side=64, **PLAIN)


def finder(
    shift: float = 0.0, score: float = 0.9, swapped: bool = False, hollow: bool = False
) -> DetectForward:
    """Detector of the box around all that is bright in red, and in green; or a worse one."""

    def find(images: Tensor, image_sizes: Sequence[Size], original_sizes: Sequence[Size]) -> list[Detections]:
        results = []
        for image, (height, width), (tall, wide) in zip(images, image_sizes, original_sizes, strict=True):
            boxes, labels = torch.zeros(0, 4), []
            for label in range(2):
                rows, columns = (image[label, :height, :width] > 0.6).nonzero(as_tuple=True)
                if len(rows):
                    sides = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
                    corners = torch.tensor([[float(side) for side in sides]])
                    boxes = torch.cat([boxes, corners * torch.tensor([wide / width, tall / height] * 2)])
                    labels.append(1 - label if swapped else label)
            masks = torch.ones(len(labels), 28, 28)
            if hollow:
                masks[:, 7:] = 0
            scores = torch.full((len(labels),), score)
            moved = boxes + torch.tensor([shift, 0, shift, 0])
            results.append(Detections(moved, scores, torch.tensor(labels, dtype=torch.int64), masks))
        return results

    return find


def nothing(images: Tensor, *sizes: Sequence[Size]) -> list[Detections]:
    """Detector of nothing."""
    empty = torch.zeros(0)
    return [Detections(torch.zeros(0, 4), empty, empty.long(), torch.zeros(0, 28, 28)) for _ in images]


@pytest.mark.parametrize("flip", [False, True])
def test_perfect_detections_have_an_ap_of_1(rectangles: Rectangles, flip: bool) -> None:
    evaluation = DetectionEvaluation(rectangles(), OWN, inference=DetectInference(flip=flip), masks=True)
    report = evaluation.run(finder())
    assert report.images == 7 and report.classes == ["red", "green"]
    assert report.figures["bbox"].objects == 9 and report.palette == evaluation.source.palette
    metrics = report.metrics
    assert all(metrics[name] == pytest.approx(1) for name in ("ap", "ap50", "ap75", "ar_100")), metrics
    assert all(metrics[f"mask_{name}"] == pytest.approx(1) for name in ("ap", "ap50", "ap75")), metrics
    assert evaluation.run(finder()).to_dict() == report.to_dict()  # it can be run again
    evaluation.close()


def test_resized_images_are_evaluated_in_their_own_pixels(rectangles: Rectangles) -> None:
    folder = rectangles()
    for inference in (DetectInference(), DetectInference(scales=(0.5, 1.0, 2.0), flip=True)):
        metrics = DetectionEvaluation(folder, RESIZED, inference=inference, masks=True).run(finder()).metrics
        assert metrics["ap50"] == metrics["mask_ap50"] == pytest.approx(1) and metrics["ap"] > 0.6


def test_worse_detections_have_a_lower_ap(rectangles: Rectangles) -> None:
    evaluation = DetectionEvaluation(rectangles(), OWN, masks=True)

    def figure(name: str, **worse: Any) -> float:
        return evaluation.run(finder(**worse)).metrics[name]

    shifted = [figure("ap", shift=pixels) for pixels in (0.0, 0.5, 1.0, 3.0, 50.0)]
    assert shifted == sorted(shifted, reverse=True) and len(set(shifted)) == 5 and shifted[-1] == 0
    assert figure("ap", swapped=True) == 0 and figure("ap", score=0.1) == pytest.approx(1)
    assert figure("ap", hollow=True) == pytest.approx(1) and figure("mask_ap50", hollow=True) < 0.2


def test_boxes_alone_are_evaluated_without_masks(rectangles: Rectangles) -> None:
    report = DetectionEvaluation(rectangles(), OWN).run(finder(hollow=True))
    assert set(report.figures) == {"bbox"} and not any(name.startswith("mask") for name in report.metrics)


def test_one_class_is_enough(rectangles: Rectangles) -> None:
    report = DetectionEvaluation(rectangles(classes=1), OWN, masks=True).run(finder())
    assert report.classes == ["red"] and report.figures["segm"].objects == 5
    assert report.metrics["ap"] == report.metrics["mask_ap"] == pytest.approx(1)


def test_no_detections_have_an_ap_of_0(rectangles: Rectangles) -> None:
    report = DetectionEvaluation(rectangles(), OWN, masks=True).run(nothing)
    assert report.metrics["ap"] == report.metrics["mask_ap50"] == report.metrics["ar_100"] == 0
    assert [row.found for row in report.figures["bbox"].per_class] == [0, 0]
    assert len(report.examples) == 5 and "9 objects" in report.text()


@pytest.mark.parametrize("forward", [finder(), nothing], ids=["some", "none"])
def test_a_data_set_without_objects_can_be_evaluated(rectangles: Rectangles, forward: DetectForward) -> None:
    report = DetectionEvaluation(rectangles(nothing=range(7)), OWN, masks=True).run(forward)
    zeros = {"ap": 0.0, "ap50": 0.0, "ap75": 0.0}
    assert report.metrics == {**zeros, **{f"mask_{name}": 0.0 for name in zeros}} and report.images == 7
    assert "no object is annotated" in report.text() and json.loads(json.dumps(report.to_dict()))
    assert not report.examples


def test_crowds_neither_help_nor_harm(rectangles: Rectangles) -> None:
    runs = {"size": [1, 1], "counts": [0, 1]}
    folder = rectangles(nothing=(0, 1, 3, 4, 5, 6), iscrowd=1, segmentation=runs)  # the image of one pixel
    for forward in (finder(), nothing):
        report = DetectionEvaluation(folder, OWN, masks=True).run(forward)
        assert report.metrics["ap"] == 0 and report.figures["bbox"].objects == 0 and not report.examples


@pytest.mark.parametrize("inference", [DetectInference(), DetectInference(scales=(1.0, 2.0), flip=True)])
def test_workers_do_not_change_the_report(rectangles: Rectangles, inference: DetectInference) -> None:
    folder = rectangles()
    alone = DetectionEvaluation(folder, RESIZED, inference=inference, masks=True).run(finder())
    evaluation = DetectionEvaluation(folder, RESIZED, inference=inference, masks=True, workers=1)
    assert evaluation.run(finder()).to_dict() == alone.to_dict()
    evaluation.close()


def test_the_report_shows_the_worst_and_the_best(rectangles: Rectangles) -> None:
    def forgetful(images: Tensor, *sizes: Any) -> list[Detections]:
        """Misses the green object of wide images."""
        (found,) = finder()(images, *sizes)
        return [found[:1] if sizes[1][0][1] == 50 else found]

    report = DetectionEvaluation(rectangles(), OWN, masks=True).run(forgetful)
    f1 = {Path(example.path).stem: example.f1 for example in report.examples}
    assert f1 == {"4": pytest.approx(2 / 3), "0": 1, "1": 1, "2": 1, "6": 1}
    worst = report.examples[0]
    assert worst.index == 4 and [one.label for one in worst.truth] == [0, 1]
    assert [one.label for one in worst.predicted] == [0] and worst.predicted[0].mask is not None


@pytest.mark.parametrize("workers", [0, 1])
def test_stop_interrupts_the_evaluation(rectangles: Rectangles, workers: int) -> None:
    calls: list[int] = []

    def forward(images: Tensor, *sizes: Any) -> list[Detections]:
        calls.append(1)
        return nothing(images)

    evaluation = DetectionEvaluation(rectangles(), OWN, workers=workers, stop=lambda: len(calls) > 2)
    with pytest.raises(Interrupted):
        evaluation.run(forward)
    assert len(calls) == 3


def test_outputs_that_are_not_finite_name_the_image(rectangles: Rectangles) -> None:
    def broken(images: Tensor, *sizes: Any) -> list[Detections]:
        if sizes[0] == [(70, 33)]:
            raise TrainingError("the network's outputs are not finite")
        return nothing(images)

    with pytest.raises(TrainingError, match=r"3\.png: .*not finite"):
        DetectionEvaluation(rectangles(), OWN).run(broken)


def test_an_image_of_another_size_is_named(rectangles: Rectangles) -> None:
    folder = rectangles()
    Image.new("RGB", (5, 5)).save(folder.path(1))
    with pytest.raises(BadImage, match=r"1\.png: is 5x5, but 64x64"):
        DetectionEvaluation(folder, OWN).run(nothing)


def test_a_missing_evaluator_is_named(rectangles: Rectangles, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    with pytest.raises(MissingPackage, match=r"metaformer\[detect\]"):
        DetectionEvaluation(rectangles(), OWN)


def evaluate(root: str) -> None:
    """What each of two ranks does."""
    torch.set_num_threads(1)
    join("cpu")
    folder = open_detection(root, "val", masks=True)
    evaluation = DetectionEvaluation(folder, OWN, masks=True)
    print(json.dumps(evaluation.run(finder(shift=1.0)).to_dict()))
    folder.path(1).write_bytes(b"")
    with pytest.raises((BadImage, RankError), match=r"1\.png: the file is empty"):
        evaluation.run(nothing)


def test_two_ranks_report_the_same(rectangles: Rectangles, two_ranks: Callable[..., list[str]]) -> None:
    folder = rectangles()
    alone = DetectionEvaluation(folder, OWN, masks=True).run(finder(shift=1.0)).to_dict()
    printed = two_ranks(evaluate, str(folder.folder.parent))
    assert [json.loads(out) for out in printed] == [json.loads(json.dumps(alone))] * 2


LEFT, RIGHT = (10.0, 10.0, 30.0, 30.0), (60.0, 10.0, 90.0, 40.0)


def detected(*objects: tuple[Any, int, float], path: str = "x.jpg", **fields: Any) -> DetectedObjects:
    return DetectedObjects(
        path,
        (400, 300),
        np.array([box for box, _, _ in objects], np.float32).reshape(-1, 4),
        np.array([score for _, _, score in objects], np.float32),
        np.array([label for _, label, _ in objects], np.int64),
        ("ant", "bee"),
        ((200, 0, 0), (0, 200, 0)),
        **fields,
    )


def annotated(box: Any, label: int = 0, crowd: bool = False, outline: Any = None) -> Instance:
    return Instance(box, label, crowd, 1, 400.0, outline)


@pytest.mark.parametrize(
    ("objects", "truth", "f1"),
    [
        ([(LEFT, 0, 0.9)], [annotated(LEFT)], 1.0),
        ([(LEFT, 1, 0.9)], [annotated(LEFT)], 0.0),
        ([(LEFT, 0, 0.9), (LEFT, 0, 0.8)], [annotated(LEFT)], 2 / 3),
        ([(LEFT, 0, 0.9)], [annotated(LEFT), annotated(RIGHT)], 2 / 3),
        ([], [annotated(LEFT)], 0.0),
        ([(LEFT, 0, 0.9)], [], 0.0),
        ([], [], None),
        ([(RIGHT, 0, 0.9), (LEFT, 0, 0.8)], [annotated((50, 0, 99, 50), crowd=True), annotated(LEFT)], 1.0),
        ([(RIGHT, 0, 0.9)], [annotated((50, 0, 99, 50), crowd=True)], None),
        ([((10, 10, 10, 10), 0, 0.9)], [annotated(LEFT)], 0.0),
        ([((14, 10, 34, 30), 0, 0.9), (LEFT, 0, 0.5)], [annotated(LEFT)], 2 / 3),
    ],
)
def test_f1_score(objects: Any, truth: Any, f1: float | None) -> None:
    assert f1_score(detected(*objects), truth) == (None if f1 is None else pytest.approx(f1))


def test_examples_are_the_worst_and_the_best() -> None:
    examples, boxes = WorstAndBest[DetectExample](), [(x, 10.0, x + 8, 20.0) for x in range(0, 200, 10)]
    for index in range(20):
        objects = detected(*((box, 0, 0.9) for box in boxes[: index + 1]), path=f"{index:02d}.jpg")
        add_example(examples, index, objects, [annotated(box) for box in boxes])
    add_example(examples, 20, detected(), [])
    chosen = examples.result()
    assert [one.index for one in chosen] == [*range(EXAMPLES), *range(19, 19 - EXAMPLES, -1)]
    assert chosen[EXAMPLES].f1 == 1 and len(chosen[0].truth) == 20 and len(chosen[0].predicted) == 1


def test_few_images_are_shown_once() -> None:
    examples = WorstAndBest[DetectExample]()
    for index in range(3):
        add_example(examples, index, detected((LEFT, 0, 0.9)), [annotated(LEFT)])
    assert [one.index for one in examples.result()] == [0, 1, 2]


def test_the_score_shown_is_that_of_the_best_f1() -> None:
    """Correct boxes score 0.5 or more, wrong ones up to 0.35: any threshold between separates them."""
    curve = F1Curve()
    curve.update(detected((LEFT, 0, 0.9), (RIGHT, 0, 0.35)), [annotated(LEFT)])
    curve.update(detected((RIGHT, 1, 0.5), (LEFT, 1, 0.2)), [annotated(RIGHT, 1)])
    score, f1 = curve.result()
    assert score == 0.43 and f1 == 1
    assert curve.result(0.1) == (0.1, pytest.approx(4 / 6)) and curve.result(0.6) == (
        0.6,
        pytest.approx(2 / 3),
    )


def test_without_a_correct_box_the_score_is_the_default() -> None:
    curve = F1Curve()
    curve.update(detected((RIGHT, 1, 0.5)), [annotated(LEFT)])
    assert curve.result() == (DEFAULT_SCORE, 0) and F1Curve().result() == (DEFAULT_SCORE, 0)


def test_the_report_shows_one_box_an_object(rectangles: Rectangles) -> None:
    """Average precision counts the second class of each box as before; the pictures leave it out."""

    def undecided(images: Tensor, *sizes: Any) -> list[Detections]:
        (found,) = finder(score=0.8)(images, *sizes)
        (other,) = finder(score=0.4, swapped=True)(images, *sizes)
        boxes, scores, labels = (
            torch.cat([getattr(one, name) for one in (found, other)])
            for name in ("boxes", "scores", "labels")
        )
        return [Detections(boxes, scores, labels)]

    report = DetectionEvaluation(rectangles(), OWN).run(undecided)
    assert sum(row.found for row in report.figures["bbox"].per_class) == 18
    assert 0.05 < report.score <= 0.8 and report.f1 == pytest.approx(1)
    assert all(len(one.predicted) == len(one.truth) for one in report.examples)
    given = DetectionEvaluation(rectangles(), OWN, score=0.85).run(undecided)
    assert given.score == 0.85 and given.f1 == 0 and not any(one.predicted for one in given.examples)


def test_masks_of_examples_are_small() -> None:
    pixels = np.zeros((300, 400), bool)
    pixels[10:30, 10:30] = True
    square = [[10.0, 10, 30, 10, 30, 30, 10, 30]]
    runs = {"size": [300, 400], "counts": [3010, *([20, 280] * 20)[:-1], 113290 - 2000 + 0]}
    runs["counts"][-1] = 300 * 400 - sum(runs["counts"][:-1])
    examples = WorstAndBest[DetectExample]()
    add_example(
        examples,
        0,
        detected((LEFT, 0, 0.9), masks=(encode(pixels),)),
        [annotated(LEFT, outline=square), annotated(LEFT, outline=runs), annotated(RIGHT, crowd=True)],
    )
    (example,) = examples.result()
    small = decode(example.predicted[0].mask or {})
    assert small.shape == (192, 256) and small.sum() == pytest.approx(400 * 0.64**2, rel=0.1)
    assert [decode(one.mask or {}).tolist() == small.tolist() for one in example.truth[:2]] == [True, True]
    assert example.truth[2].crowd and example.truth[2].mask is None
