"""Evaluation of a detector: average precision in the images' own pixels, and the worst and best images."""

import logging
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, Unpack

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from metaformer.data.rle import encode
from metaformer.distributed import all_reduce_sum, lockstep
from metaformer.models.detection.structures import Targets
from metaformer.tasks.base import Evaluation, LoadedModel, Loading
from metaformer.tasks.dense import WorstAndBest, shrink
from metaformer.tasks.detection.dataset import (
    DetectionDataset,
    DetectionFolder,
    open_detection,
    open_parts,
)
from metaformer.tasks.detection.instances import Instance, segmentation_mask
from metaformer.tasks.detection.metrics import AveragePrecision, Kind
from metaformer.tasks.detection.predict import (
    DEFAULT_SCORE,
    DetectForward,
    DetectInference,
    run_inference,
)
from metaformer.tasks.detection.results import DetectedObjects, DetectExample, DetectionReport, ExampleObject
from metaformer.tasks.detection.transforms import DetectionPreprocess

_log = logging.getLogger(__name__)
MIN_IOU = 0.5
"""IoU from which a detected box of an example is correct."""
CORRECT, WRONG, IGNORED = 1, 0, -1
"""What a detected box is: an annotated object, none, or part of a crowd."""
THRESHOLDS = (np.arange(1, 100) / 100).astype(np.float32)
"""Score thresholds to choose from."""


class DetectionEvaluation(Evaluation):
    """A validation set and how detectors are evaluated on it.

    Args:
        source: images and their objects.
        preprocess: preprocessing of images.
        inference: test-time augmentation; none by default.
        masks: evaluate masks, too.
        score: score from which objects are shown; None chooses the one of the best F1.
        loading: how images are read.

    Raises:
        DataError: `masks`, and an object has no outline.
        MissingPackage: faster-coco-eval is not installed.
    """

    def __init__(
        self,
        source: DetectionFolder,
        preprocess: DetectionPreprocess,
        *,
        inference: DetectInference | None = None,
        masks: bool = False,
        score: float | None = None,
        **loading: Unpack[Loading],
    ) -> None:
        self.score = score
        self.source, self.preprocess, self.masks = source, preprocess, masks
        self.inference = inference or DetectInference()
        AveragePrecision(source.annotations, self.kinds)  # raises its errors before training
        self.resized = self.inference.scales == (1.0,)
        """Whether workers resize, which they can to one scale."""
        transform = _ImageTransform(preprocess if self.resized else None)
        super().__init__(DetectionDataset(source, transform, background=preprocess.background), **loading)

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """What average precision is computed of, in COCO's terms."""
        return ("bbox", "segm") if self.masks else ("bbox",)

    def run(self, forward: DetectForward) -> DetectionReport:
        """Evaluate a detector, by all ranks together.

        Raises:
            TrainingError: boxes or scores are not finite; the message names the image.
            Interrupted: `stop` returned True on any rank.
        """
        precision = AveragePrecision(self.source.annotations, self.kinds)
        curve, shown = F1Curve(), list[tuple[int, DetectedObjects]]()
        for index, objects in lockstep(self._detect(forward), self.most):
            precision.update(objects.to_found(self.source.image_id(index)))
            distinct = objects.suppressed(self.inference.nms_threshold)
            curve.update(distinct, self.source.instances(index))
            shown.append((index, distinct))
        score, f1 = curve.result(self.score)
        examples = WorstAndBest[DetectExample]()
        for index, objects in shown:
            add_example(examples, index, objects.filtered(score), self.source.instances(index))
        return DetectionReport(
            images=int(all_reduce_sum(torch.tensor(len(shown)))),
            figures=precision.result(),
            palette=self.source.palette,
            score=score,
            f1=f1,
            examples=examples.result(),
        )

    def _detect(self, forward: DetectForward) -> Iterator[tuple[int, DetectedObjects]]:
        """Index and objects of each image of this rank; `lockstep` shares the errors with all ranks."""
        for batch in self.loader:
            index, (height, width) = int(batch.indices[0]), batch.sizes[0]
            x = batch.images[0, :, :height, :width]
            image = x if self.resized else Image.fromarray(x.permute(1, 2, 0).numpy())
            size, path = self.source.size(index), str(self.source.path(index))
            detections = self.inference.detections(
                forward, image, self.preprocess, (size[1], size[0]), name=path
            )
            classes, palette = self.source.classes, self.source.palette
            yield index, DetectedObjects.from_detections(detections, path, size, classes, palette)


class _ImageTransform:
    """An image (3, h, w), preprocessed or as it is, without its objects."""

    def __init__(self, preprocess: DetectionPreprocess | None) -> None:
        self.transform = None if preprocess is None else preprocess.transform()

    def __call__(self, image: Image.Image, targets: Targets) -> tuple[Tensor, Targets]:
        none = Targets(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
        if self.transform is not None:
            return self.transform(image), none
        return torch.from_numpy(np.array(image)).permute(2, 0, 1), none


def add_example(
    examples: WorstAndBest[DetectExample], index: int, objects: DetectedObjects, truth: Sequence[Instance]
) -> None:
    """Add an image to the examples: its index in the data set, its shown and its annotated objects."""
    f1 = f1_score(objects, truth)
    if f1 is None:
        return

    def build() -> DetectExample:
        annotated = tuple(_annotated(one, objects.size) for one in truth)
        return DetectExample(objects.path, index, objects.size, f1, annotated, _detected(objects))

    examples.update(f1, objects.path, build)


def f1_score(objects: DetectedObjects, truth: Sequence[Instance]) -> float | None:
    """F1 score of the boxes of one image, matched best first; crowds neither help nor harm.

    None if there is nothing to detect, and nothing was detected.
    """
    outcomes = match(objects, truth)
    total = int((outcomes != IGNORED).sum()) + sum(not one.crowd for one in truth)
    return 2 * int((outcomes == CORRECT).sum()) / total if total else None


def match(objects: DetectedObjects, truth: Sequence[Instance]) -> NDArray[np.int64]:
    """What each detected box is (N,), matched best first: `CORRECT`, `WRONG` or `IGNORED`.

    A box's outcome depends on better ones alone, so that it holds for every score threshold below its score.
    """
    iou, inside = _overlaps(objects.boxes, np.array([one.box for one in truth]).reshape(-1, 4))
    same = objects.labels[:, None] == np.array([one.label for one in truth], np.int64)
    crowd = np.array([one.crowd for one in truth], bool)
    free, outcomes = ~crowd, np.full(len(objects), WRONG)
    for row in range(len(objects)):
        candidates = np.where(same[row] & free, iou[row], 0.0)
        if candidates.max(initial=0.0) >= MIN_IOU:
            free[candidates.argmax()] = False
            outcomes[row] = CORRECT
        elif (inside[row, crowd & same[row]] >= MIN_IOU).any():
            outcomes[row] = IGNORED
    return outcomes


class F1Curve:
    """F1 score of the boxes of all images at each of `THRESHOLDS`."""

    def __init__(self) -> None:
        self._found = torch.zeros(2, len(THRESHOLDS) + 1, dtype=torch.int64)
        """Wrong and correct boxes, by the number of thresholds that their scores reach."""
        self._objects = 0

    def update(self, objects: DetectedObjects, truth: Sequence[Instance]) -> None:
        """Add an image of this rank: its detected objects, best first, and its annotated ones."""
        outcomes = match(objects, truth)
        reached = np.searchsorted(THRESHOLDS, objects.scores, side="right")
        for outcome in (WRONG, CORRECT):
            self._found[outcome] += torch.from_numpy(
                np.bincount(reached[outcomes == outcome], minlength=len(THRESHOLDS) + 1)
            )
        self._objects += sum(not one.crowd for one in truth)

    def result(self, score: float | None = None) -> tuple[float, float]:
        """The score threshold of the best F1 over all ranks, and that F1; or the F1 at a given threshold.

        Of several with the best F1, the middle one; `DEFAULT_SCORE` where nothing correct was found.
        """
        found, objects = all_reduce_sum(self._found), int(all_reduce_sum(torch.tensor(self._objects)))
        above = found.flip(1).cumsum(1).flip(1)[:, 1:]
        f1 = 2 * above[CORRECT] / (above.sum(0) + objects).clamp(min=1)
        if score is None:
            best = (f1 == f1.max()).nonzero()[:, 0]
            score = round(float(THRESHOLDS[best[len(best) // 2]]), 2) if f1.max() > 0 else DEFAULT_SCORE
        nearest = int(np.abs(THRESHOLDS - score).argmin())
        return score, float(f1[nearest])


def _overlaps(boxes: NDArray[Any], others: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Intersection over union (N, M), and intersection over the area of each box (N, M)."""
    start = np.maximum(boxes[:, None, :2], others[:, :2])
    both = (np.minimum(boxes[:, None, 2:], others[:, 2:]) - start).clip(0).prod(axis=2)
    area, other_area = ((some[:, 2:] - some[:, :2]).prod(axis=1) for some in (boxes, others))
    union = area[:, None] + other_area - both
    return both / np.where(union > 0, union, 1), both / np.where(area > 0, area, 1)[:, None]


def _detected(objects: DetectedObjects) -> tuple[ExampleObject, ...]:
    masks = [None if objects.masks is None else encode(shrink(objects.mask(i))) for i in range(len(objects))]
    rows = zip(objects.labels.tolist(), objects.boxes.tolist(), objects.scores.tolist(), masks, strict=True)
    return tuple(ExampleObject(label, tuple(box), score, mask=mask) for label, box, score, mask in rows)


def _annotated(one: Instance, size: tuple[int, int]) -> ExampleObject:
    mask = None
    if one.segmentation is not None:
        mask = encode(shrink(segmentation_mask(one.segmentation, (size[1], size[0]))))
    return ExampleObject(one.label, one.box, crowd=one.crowd, mask=mask)


def build_evaluation(
    model: LoadedModel,
    data: str | Path | None,
    split: str | None,
    *,
    batch_size: int = 1,
    workers: int = 4,
    layout: Literal["auto", "coco", "voc", "yolo"] | None = None,
    scales: Sequence[float] | None = None,
    flip: bool = False,
    clip_boxes: bool = False,
) -> DetectionEvaluation:
    """The evaluation of a detector on images with annotated objects.

    Args:
        model: what is evaluated.
        data: folder of the data set; None for the run's own.
        split: its split; None for the run's own, or `val`.
        batch_size: not used: images are evaluated one at a time.
        workers: processes that read images.
        layout: how the data set lies on disk (default: the run's own, or recognized).
        scales: test-time augmentation: factors of the input's size, such as 0.75,1,1.25.
        flip: also detect in the mirrored image, and merge.
        clip_boxes: clip objects over the border of their image to it (default: as the run did).

    Raises:
        ConfigError: a value out of range, no data, or another number of classes than the network has.
        DataError: the data set is not laid out as it should be.
    """
    has_masks = bool(model.model.has_masks)
    folder = model.own_part(data, split, partial(open_parts, layout=layout)) or open_detection(
        *model.location(data, split),
        layout or model.options.layout,
        classes=list(model.classes) if model.classes else None,
        masks=None if has_masks else False,  # a network with masks can be evaluated on boxes alone
        clip_boxes=clip_boxes or model.options.clip_boxes,
    )
    model.check_classes(folder.classes, folder.folder)
    folder.check_any()
    if has_masks and folder.objects.outlined.any() and not folder.has_masks:
        bare = int((~folder.objects.outlined).sum())
        _log.warning(
            "%s: %d object(s) without outline: masks are not evaluated", folder.annotation_path, bare
        )
    return DetectionEvaluation(
        folder,
        model.preprocess,
        inference=run_inference(model.config, scales, flip),
        masks=has_masks and folder.has_masks,
        score=model.metadata.score,
        workers=workers,
        pin_memory=model.device.type == "cuda",
    )
