"""What is explained of a detector: the logit of an object's class."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import torch
from PIL import Image
from torch import Tensor

from metaformer.attribution.cam import Score
from metaformer.errors import ConfigError
from metaformer.models.base import autocast
from metaformer.models.detection.detector import Detector
from metaformer.tasks.base import LoadedModel, TaskExplain
from metaformer.tasks.detection.predict import DetectionPredictor
from metaformer.tasks.detection.transforms import pad_images
from metaformer.tasks.heat import Claim, Input, Subject
from metaformer.visualize.canvas import Box

MATCHED: Final = 0.5
"""IoU from which a detected object is an annotated one."""
CLAIMS: Final = 2
"""Wrong objects of an image, and missed ones, that are explained."""


class DetectorExplain(TaskExplain):
    """The class logit of the candidate that overlaps a box most, or of the surest of the class."""

    has_places = True

    def input(self, model: LoadedModel, image: Image.Image) -> Input:
        given = super().input(model, image)
        return given._replace(images=pad_images([given.images[0]]))

    def find(
        self, model: LoadedModel, image: Image.Image, count: int, box: Box | None = None
    ) -> Sequence[Subject]:
        predictor = DetectionPredictor(model, class_agnostic_nms=True)
        with torch.inference_mode():
            found = predictor.predict_image(image, "", "the image")
        boxes = torch.from_numpy(found.boxes)
        rows: list[int] = torch.from_numpy(found.scores).argsort(descending=True, stable=True).tolist()
        if box is not None:
            overlaps = _overlaps(boxes, box)
            rows = [i for i in overlaps.argsort(descending=True, stable=True).tolist() if overlaps[i] > 0]
        objects = ((int(found.labels[i]), float(found.scores[i]), boxes[i].tolist()) for i in rows[:count])
        return [
            Subject(label, model.class_names[label], score, tuple(corners))
            for label, score, corners in objects
        ]

    def score(self, model: LoadedModel, given: Input, index: int, box: Box | None = None) -> Score:
        detector, name = model.model, model.class_names[index]
        assert isinstance(detector, Detector)

        def score(x: Tensor) -> Tensor:
            with autocast(model.device, model.amp):
                found = detector.class_candidates(detector.forward_head(x), given.size, index)
            if box is not None:
                overlaps = _overlaps(found.boxes, box)
                best = overlaps.argmax() if len(overlaps) else 0
                there = bool(len(overlaps)) and bool(overlaps[best] > 0)
            else:
                best = found.scores.argmax() if len(found.scores) else 0
                threshold = detector.config.score_threshold
                there = bool(len(found.scores)) and bool(found.scores[best] > threshold)
            if not there:
                where = "in the image" if box is None else f"overlaps the box {tuple(map(round, box))}"
                raise ConfigError(f"class {name!r}: no such object {where}")
            return found.logits[best][None].float()

        return score

    def claims(self, example: Mapping[str, Any], classes: Sequence[str]) -> Sequence[Claim]:
        predicted, truth = example["predicted"], example["truth"]
        return [
            Claim(f"{verb} {classes[item['label']]}", item["label"], tuple(item["box"]))
            for verb, items, others in (("wrongly", predicted, truth), ("missed", truth, predicted))
            for item in _unmatched(items, others)[:CLAIMS]
        ]


def _unmatched(items: Sequence[dict[str, Any]], others: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Objects, other than crowds, without one of their class among the others at an IoU of 0.5."""
    return [
        item
        for item in items
        if not item["crowd"]
        and not any(
            other["label"] == item["label"]
            and _overlaps(torch.tensor([other["box"]], dtype=torch.float32), item["box"])[0] >= MATCHED
            for other in others
        )
    ]


def _overlaps(boxes: Tensor, box: Sequence[float]) -> Tensor:
    """IoU (N,) of boxes (N, 4) with one."""
    from torchvision.ops import box_iou

    return box_iou(boxes, boxes.new_tensor([list(box)]))[:, 0]
