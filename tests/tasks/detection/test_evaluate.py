import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from metaformer.distributed import Interrupted, join
from metaformer.errors import BadImage, MissingPackage, RankError, TrainingError
from metaformer.models.detection.structures import Detections, Size
from metaformer.tasks.detection.dataset import DetectionFolder, open_detection
from metaformer.tasks.detection.evaluate import DetectionEvaluation
from metaformer.tasks.detection.predict import DetectForward, DetectInference
from metaformer.tasks.detection.preprocess import DetectionPreprocess

PLAIN = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
OWN = DetectionPreprocess(None, None, **PLAIN)
LOOK = DetectionPreprocess(long_side=128, short_side=64, **PLAIN)
Rectangles = Callable[..., DetectionFolder]


def finder(
    shift: float = 0.0, score: float = 0.9, swapped: bool = False, hollow: bool = False
) -> DetectForward:
    """Finds the box around all that is bright in red, and in green; or does worse."""

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
    """Finds no object."""
    empty = torch.zeros(0)
    return [Detections(torch.zeros(0, 4), empty, empty.long(), torch.zeros(0, 28, 28)) for _ in images]


@pytest.mark.parametrize("flip", [False, True])
def test_who_finds_all_has_all(rectangles: Rectangles, flip: bool) -> None:
    evaluation = DetectionEvaluation(rectangles(), OWN, inference=DetectInference(flip=flip), masks=True)
    report = evaluation.run(finder())
    assert report.images == 7 and report.classes == ["red", "green"]
    assert report.figures["bbox"].objects == 9 and report.palette == evaluation.source.palette
    metrics = report.metrics
    assert all(metrics[name] == pytest.approx(1) for name in ("ap", "ap50", "ap75", "ar_100")), metrics
    assert all(metrics[f"mask_{name}"] == pytest.approx(1) for name in ("ap", "ap50", "ap75")), metrics
    assert evaluation.run(finder()).to_dict() == report.to_dict()  # it can be run again
    evaluation.close()


def test_resized_images_are_measured_in_their_own_pixels(rectangles: Rectangles) -> None:
    folder = rectangles()
    for inference in (DetectInference(), DetectInference(scales=(0.5, 1.0, 2.0), flip=True)):
        metrics = DetectionEvaluation(folder, LOOK, inference=inference, masks=True).run(finder()).metrics
        assert metrics["ap50"] == metrics["mask_ap50"] == pytest.approx(1) and metrics["ap"] > 0.6


def test_who_does_worse_has_less(rectangles: Rectangles) -> None:
    evaluation = DetectionEvaluation(rectangles(), OWN, masks=True)

    def figure(name: str, **worse: Any) -> float:
        return evaluation.run(finder(**worse)).metrics[name]

    shifted = [figure("ap", shift=pixels) for pixels in (0.0, 0.5, 1.0, 3.0, 50.0)]
    assert shifted == sorted(shifted, reverse=True) and len(set(shifted)) == 5 and shifted[-1] == 0
    assert figure("ap", swapped=True) == 0 and figure("ap", score=0.1) == pytest.approx(1)
    assert figure("ap", hollow=True) == pytest.approx(1) and figure("mask_ap50", hollow=True) < 0.2


def test_boxes_alone_are_measured_where_masks_are_not_asked_for(rectangles: Rectangles) -> None:
    report = DetectionEvaluation(rectangles(), OWN).run(finder(hollow=True))
    assert set(report.figures) == {"bbox"} and not any(name.startswith("mask") for name in report.metrics)


def test_one_class_is_enough(rectangles: Rectangles) -> None:
    report = DetectionEvaluation(rectangles(classes=1), OWN, masks=True).run(finder())
    assert report.classes == ["red"] and report.figures["segm"].objects == 5
    assert report.metrics["ap"] == report.metrics["mask_ap"] == pytest.approx(1)


def test_who_finds_nothing_has_nothing(rectangles: Rectangles) -> None:
    report = DetectionEvaluation(rectangles(), OWN, masks=True).run(nothing)
    assert report.metrics["ap"] == report.metrics["mask_ap50"] == report.metrics["ar_100"] == 0
    assert [row.found for row in report.figures["bbox"].per_class] == [0, 0]
    assert len(report.examples) == 5 and "9 objects" in report.text()


@pytest.mark.parametrize("forward", [finder(), nothing], ids=["some", "none"])
def test_a_data_set_without_objects_can_be_measured(rectangles: Rectangles, forward: DetectForward) -> None:
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
def test_a_worker_changes_nothing(rectangles: Rectangles, inference: DetectInference) -> None:
    folder = rectangles()
    alone = DetectionEvaluation(folder, LOOK, inference=inference, masks=True).run(finder())
    evaluation = DetectionEvaluation(folder, LOOK, inference=inference, masks=True, workers=1)
    assert evaluation.run(finder()).to_dict() == alone.to_dict()
    evaluation.close()


def test_the_worst_and_the_best_are_shown(rectangles: Rectangles) -> None:
    def forgetful(images: Tensor, *sizes: Any) -> list[Detections]:
        """Overlooks the green object of wide images."""
        (found,) = finder()(images, *sizes)
        return [found[:1] if sizes[1][0][1] == 50 else found]

    report = DetectionEvaluation(rectangles(), OWN, masks=True).run(forgetful)
    f1 = {Path(example.path).stem: example.f1 for example in report.examples}
    assert f1 == {"4": pytest.approx(2 / 3), "0": 1, "1": 1, "2": 1, "6": 1}
    worst = report.examples[0]
    assert worst.index == 4 and [one.label for one in worst.truth] == [0, 1]
    assert [one.label for one in worst.predicted] == [0] and worst.predicted[0].mask is not None


@pytest.mark.parametrize("workers", [0, 1])
def test_a_wish_to_stop_ends_it_unfinished(rectangles: Rectangles, workers: int) -> None:
    seen: list[int] = []

    def forward(images: Tensor, *sizes: Any) -> list[Detections]:
        seen.append(1)
        return nothing(images)

    evaluation = DetectionEvaluation(rectangles(), OWN, workers=workers, stop=lambda: len(seen) > 2)
    with pytest.raises(Interrupted):
        evaluation.run(forward)
    assert len(seen) == 3


def test_what_is_not_finite_names_the_image(rectangles: Rectangles) -> None:
    def broken(images: Tensor, *sizes: Any) -> list[Detections]:
        if sizes[0] == [(70, 33)]:
            raise TrainingError("the network's answer is not finite")
        return nothing(images)

    with pytest.raises(TrainingError, match=r"3\.png: .*not finite"):
        DetectionEvaluation(rectangles(), OWN).run(broken)


def test_an_image_that_is_not_the_annotated_one_is_named(rectangles: Rectangles) -> None:
    folder = rectangles()
    Image.new("RGB", (5, 5)).save(folder.path(1))
    with pytest.raises(BadImage, match=r"1\.png: is 5x5, but 64x64"):
        DetectionEvaluation(folder, OWN).run(nothing)


def test_what_measures_may_be_missing(rectangles: Rectangles, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    with pytest.raises(MissingPackage, match=r"metaformer\[detect\]"):
        DetectionEvaluation(rectangles(), OWN)  # before anything is learned


def measure(root: str) -> None:
    """What each of two ranks does."""
    torch.set_num_threads(1)
    join("cpu")
    folder = open_detection(root, "val", masks=True)
    evaluation = DetectionEvaluation(folder, OWN, masks=True)
    print(json.dumps(evaluation.run(finder(shift=1.0)).to_dict()))
    folder.path(1).write_bytes(b"")
    with pytest.raises((BadImage, RankError), match=r"1\.png: the file is empty"):
        evaluation.run(nothing)


def test_two_ranks_measure_the_same(rectangles: Rectangles, two_ranks: Callable[..., list[str]]) -> None:
    folder = rectangles()
    alone = DetectionEvaluation(folder, OWN, masks=True).run(finder(shift=1.0)).to_dict()
    told = two_ranks(measure, str(folder.folder.parent))
    assert [json.loads(out) for out in told] == [json.loads(json.dumps(alone))] * 2
