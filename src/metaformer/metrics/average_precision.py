"""Average precision of boxes and masks as COCO defines it, through faster-coco-eval."""

import gc
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from metaformer.errors import DataError, MissingPackage
from metaformer.metrics.detection_figures import DetectionFigures, figures
from metaformer.metrics.ground_truth import GroundTruth
from metaformer.metrics.mask_areas import Mask, mask_areas
from metaformer.ops.ranks import collect

Kind = Literal["bbox", "segm"]
"""What overlaps: boxes or masks."""
_log = logging.getLogger(__name__)


class Found(NamedTuple):
    """What was found in one picture."""

    image_id: int
    """The picture's id in the document."""
    boxes: ArrayLike
    """Left, top, right and bottom (N, 4), in the picture's own pixels."""
    scores: ArrayLike
    """How sure each is (N,)."""
    labels: ArrayLike
    """Classes (N,), from 0 in the document's order."""
    masks: Sequence[Mask] | None = None
    """Compressed run lengths of each."""


class AveragePrecision:
    """Detections of a data set, picture by picture, and what they come to.

    Args:
        document: the data set's pictures, classes and objects in COCO's format.
        kinds: what to measure; for `segm` all objects and detections need masks.

    Raises:
        DataError: something in the document that cannot be.
        MissingPackage: faster-coco-eval is not installed.
    """

    def __init__(self, document: Mapping[str, Any], kinds: Sequence[Kind] = ("bbox",)) -> None:
        _evaluator()
        self.kinds = tuple(kinds)
        self.truth = GroundTruth(document, masks="segm" in kinds)
        self._found: dict[int, _Objects] = {}

    def update(self, found: Found) -> None:
        """Take in one picture's detections; in pictures that are never given there are none.

        Raises:
            DataError: no such picture, or given before; values that cannot be.
        """
        number = found.image_id
        if number in self._found:
            raise DataError(f"picture {number}: was counted before")
        if number not in self.truth.sizes:
            raise DataError(f"picture {number}: the data set has no such picture")
        try:
            objects = _objects(found, len(self.truth.names))
            if "segm" in self.kinds:
                objects.add_masks(found.masks, self.truth.sizes[number])
        except DataError as error:
            raise DataError(f"picture {number}: {error}") from error
        self._found[number] = objects

    def result(self) -> dict[Kind, DetectionFigures]:
        """The figures over all ranks; every rank works them out.

        Raises:
            DataError: two ranks were given the same picture.
        """
        everything = dict(parts := collect(list(self._found.items())))
        if len(everything) < len(parts):
            raise DataError("a picture was counted by two ranks")
        with _no_collection():
            return {kind: _figures(self.truth, everything, kind) for kind in self.kinds}


def coco_figures(
    document: Mapping[str, Any], found: Iterable[Found], kinds: Sequence[Kind] = ("bbox",)
) -> dict[Kind, DetectionFigures]:
    """Measure detections at once; see `AveragePrecision`."""
    precision = AveragePrecision(document, kinds)
    for one in found:
        precision.update(one)
    return precision.result()


@dataclass(eq=False)
class _Objects:
    """Detections of a picture that native code may have."""

    boxes: NDArray[np.float64]
    """Left, top, width and height."""
    scores: NDArray[np.float64]
    labels: NDArray[np.int64]
    masks: Sequence[Mask] = ()
    areas: NDArray[np.int64] | None = None
    """Of the masks."""

    def add_masks(self, masks: Sequence[Mask] | None, size: tuple[int, int]) -> None:
        if masks is None or len(masks) != len(self.boxes):
            raise DataError(f"{len(self.boxes)} boxes, but {len(masks or ())} masks")
        self.masks, self.areas = masks, mask_areas(masks, size)

    def rows(self, kind: Kind) -> Iterator[tuple[int, float, float, Any]]:
        """Label, score, area and shape of each."""
        if kind == "bbox":
            areas, shapes = self.boxes[:, 2] * self.boxes[:, 3], self.boxes.tolist()
        else:
            areas, shapes = np.asarray(self.areas), self.masks
        return zip(self.labels.tolist(), self.scores.tolist(), areas.tolist(), shapes, strict=True)


def _objects(found: Found, classes: int) -> _Objects:
    corners, sure = np.asarray(found.boxes, np.float64), np.asarray(found.scores, np.float64)
    named = np.asarray(found.labels)
    named = named if named.size else named.astype(np.int64)
    if not (corners.size == 4 * sure.size == 4 * named.size and sure.ndim == named.ndim == 1):
        raise DataError(f"boxes {corners.shape}, scores {sure.shape} and labels {named.shape} do not fit")
    start, end = np.split(corners.reshape(-1, 4), 2, axis=1)
    if not (np.isfinite(corners).all() and np.isfinite(sure).all()):
        raise DataError("a box or a score is not finite")
    if (end < start).any():
        raise DataError("a box ends before it begins")
    if named.dtype.kind not in "iu" or ((named < 0) | (named >= classes)).any():
        raise DataError(f"a label is no class: there are {classes}, from 0")
    return _Objects(np.concatenate([start, end - start], axis=1), sure, named.astype(np.int64))


def _figures(truth: GroundTruth, found: Mapping[int, _Objects], kind: Kind) -> DetectionFigures:
    from faster_coco_eval import COCO

    results = truth.with_objects(_results(truth, found, kind))
    evaluation = _evaluator()(COCO(truth.document()), COCO(results), kind, print_function=_log.debug)
    evaluation.evaluate()
    evaluation.accumulate()
    labels = np.concatenate([np.zeros(0, np.int64), *(one.labels for one in found.values())])
    taken = np.bincount(labels, minlength=len(truth.names)).tolist()
    return figures(evaluation.eval["precision"], evaluation.eval["recall"], truth.names, truth.counts, taken)


def _results(truth: GroundTruth, found: Mapping[int, _Objects], kind: Kind) -> Iterator[dict[str, Any]]:
    """Detections as `COCO.loadRes` would make them, without what nobody asks for; a box would hide a mask."""
    numbers, shape_of = count(1), "bbox" if kind == "bbox" else "segmentation"
    for image_id, one in found.items():
        image = truth.numbers[image_id]
        for label, score, area, shape in one.rows(kind):
            yield {
                "id": next(numbers),
                "image_id": image,
                "category_id": label + 1,
                "score": score,
                "area": area,
                "iscrowd": 0,
                shape_of: shape,
            }


@contextmanager
def _no_collection() -> Iterator[None]:
    """Keep Python from looking through half a million objects again and again: a third of the time."""
    on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if on:
            gc.enable()


def _evaluator() -> Any:
    try:
        from faster_coco_eval import COCOeval_faster
    except ImportError as error:
        raise MissingPackage("faster-coco-eval", "detect", "measuring average precision") from error
    return COCOeval_faster
