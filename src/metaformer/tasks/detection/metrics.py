"""COCO average precision of boxes and masks, computed by faster-coco-eval."""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from metaformer.data.rle import Mask, compress, mask_areas
from metaformer.distributed import all_gather_list
from metaformer.errors import DataError, MissingPackage
from metaformer.process import paused_gc
from metaformer.tasks.detection.formats.annotations import Annotations

Kind = Literal["bbox", "segm"]
"""What the IoU is computed of: boxes or masks."""
_ALL_SIZES = 0
"""Index of the figures of objects of all sizes; small, medium and large follow."""
_log = logging.getLogger(__name__)


class Found(NamedTuple):
    """Detections in one image."""

    image_id: int
    """The image's id in the annotations."""
    boxes: ArrayLike
    """Left, top, right and bottom (N, 4), in the image's own pixels."""
    scores: ArrayLike
    """(N,)."""
    labels: ArrayLike
    """Classes (N,), from 0."""
    masks: Sequence[Mask] | None = None
    """Compressed RLE of each."""


@dataclass(frozen=True)
class ClassAP:
    """Average precision of one class; None without objects."""

    name: str
    objects: int
    """Annotated objects without crowds."""
    found: int
    """Detections of the class, of any score."""
    ap: float | None
    """Mean over IoU thresholds 0.5, 0.55, … 0.95."""
    ap50: float | None
    """At IoU 0.5."""
    ap75: float | None
    """At IoU 0.75."""
    ar: float | None
    """Average recall over the same thresholds as `ap`."""


@dataclass(frozen=True)
class DetectionFigures:
    """COCO's twelve figures; None, where COCO has −1, without objects."""

    ap: float | None
    """Mean over classes and IoU thresholds 0.5, 0.55, … 0.95."""
    ap50: float | None
    """At IoU 0.5."""
    ap75: float | None
    """At IoU 0.75."""
    ap_small: float | None
    """Of objects of less than 32² pixels."""
    ap_medium: float | None
    ap_large: float | None
    """Of objects of more than 96² pixels."""
    ar_1: float | None
    """Average recall with one detection per class and image."""
    ar_10: float | None
    ar_100: float | None
    ar_small: float | None
    ar_medium: float | None
    ar_large: float | None
    objects: int
    """Annotated objects without crowds."""
    per_class: tuple[ClassAP, ...]

    @property
    def stats(self) -> tuple[float | None, ...]:
        """The twelve in COCO's order."""
        ap = (self.ap, self.ap50, self.ap75, self.ap_small, self.ap_medium, self.ap_large)
        return (*ap, self.ar_1, self.ar_10, self.ar_100, self.ar_small, self.ar_medium, self.ar_large)


class AveragePrecision:
    """COCO average precision, updated image by image.

    Args:
        annotations: the ground truth.
        kinds: what IoU is computed of; `segm` needs masks of all objects and detections.

    Raises:
        DataError: `segm`, and an object has no outline.
        MissingPackage: faster-coco-eval is not installed.
    """

    def __init__(self, annotations: Annotations, kinds: Sequence[Kind] = ("bbox",)) -> None:
        _evaluator()
        if "segm" in kinds and not annotations.objects.outlined.all():
            raise DataError("segm: an object has no segmentation: evaluate boxes alone")
        self.annotations, self.kinds = annotations, tuple(kinds)
        self._sizes = dict(zip(annotations.ids.tolist(), annotations.sizes[:, ::-1].tolist(), strict=True))
        """Height and width of each image by its id."""
        self._found: dict[int, _Detections] = {}

    def update(self, found: Found) -> None:
        """Add the detections of one image; images that are never added have none.

        Raises:
            DataError: an unknown image, one that was added before, or invalid values.
        """
        number = found.image_id
        if number in self._found:
            raise DataError(f"image {number}: was added before")
        if number not in self._sizes:
            raise DataError(f"image {number}: the data set has no such image")
        try:
            detections = check_found(found, len(self.annotations.classes))
            if "segm" in self.kinds:
                detections.add_masks(found.masks, tuple(self._sizes[number]))
        except DataError as error:
            raise DataError(f"image {number}: {error}") from error
        self._found[number] = detections

    def result(self) -> dict[Kind, DetectionFigures]:
        """Figures over all ranks, computed on each.

        Raises:
            DataError: two ranks added the same image.
        """
        everything = dict(parts := all_gather_list(list(self._found.items())))
        if len(everything) < len(parts):
            raise DataError("an image was added by two ranks")
        with paused_gc():
            return {kind: self._figures(everything, kind) for kind in self.kinds}

    def _figures(self, found: Mapping[int, "_Detections"], kind: Kind) -> DetectionFigures:
        from faster_coco_eval import COCO

        truth = ground_truth(self.annotations, masks=kind == "segm")
        numbers = dict(zip(self.annotations.ids.tolist(), _image_numbers(self.annotations), strict=True))
        # evaluators write into a document: detections get images and classes of their own
        results = {
            "images": [dict(image) for image in truth["images"]],
            "annotations": list(_results(found, numbers, kind)),
            "categories": [dict(category) for category in truth["categories"]],
        }
        evaluation = _evaluator()(COCO(truth), COCO(results), kind, print_function=_log.debug)
        evaluation.evaluate()
        evaluation.accumulate()
        objects, classes = self.annotations.objects, len(self.annotations.classes)
        labels = np.concatenate([np.zeros(0, np.int64), *(one.labels for one in found.values())])
        return figures(
            evaluation.eval["precision"],
            evaluation.eval["recall"],
            self.annotations.classes,
            np.bincount(objects.labels[~objects.crowd], minlength=classes).tolist(),
            np.bincount(labels, minlength=classes).tolist(),
        )


def coco_figures(
    annotations: Annotations, found: Iterable[Found], kinds: Sequence[Kind] = ("bbox",)
) -> dict[Kind, DetectionFigures]:
    """Evaluate detections at once; see `AveragePrecision`."""
    precision = AveragePrecision(annotations, kinds)
    for one in found:
        precision.update(one)
    return precision.result()


@dataclass(eq=False)
class _Detections:
    """Valid detections of an image: native code reads them."""

    boxes: NDArray[np.float64]
    """Left, top, width and height."""
    scores: NDArray[np.float64]
    labels: NDArray[np.int64]
    masks: Sequence[Mask] = ()
    areas: NDArray[np.int64] | None = None
    """Of the masks."""

    def add_masks(self, masks: Sequence[Mask] | None, size: tuple[int, ...]) -> None:
        if masks is None or len(masks) != len(self.boxes):
            raise DataError(f"{len(self.boxes)} boxes, but {len(masks or ())} masks")
        self.masks, self.areas = masks, mask_areas(masks, (size[0], size[1]))

    def rows(self, kind: Kind) -> Iterator[tuple[int, float, float, Any]]:
        """Label, score, area and box or mask of each."""
        if kind == "bbox":
            areas, shapes = self.boxes[:, 2] * self.boxes[:, 3], self.boxes.tolist()
        else:
            areas, shapes = np.asarray(self.areas), self.masks
        return zip(self.labels.tolist(), self.scores.tolist(), areas.tolist(), shapes, strict=True)


def check_found(found: Found, classes: int) -> _Detections:
    """Validate boxes, scores and labels.

    Raises:
        DataError: shapes that do not fit, values that are not finite, boxes that end before they begin, or
            labels that are no class.
    """
    corners, scores = np.asarray(found.boxes, np.float64), np.asarray(found.scores, np.float64)
    labels = np.asarray(found.labels)
    labels = labels if labels.size else labels.astype(np.int64)
    if not (corners.size == 4 * scores.size == 4 * labels.size and scores.ndim == labels.ndim == 1):
        raise DataError(f"boxes {corners.shape}, scores {scores.shape} and labels {labels.shape} do not fit")
    start, end = np.split(corners.reshape(-1, 4), 2, axis=1)
    if not (np.isfinite(corners).all() and np.isfinite(scores).all()):
        raise DataError("a box or a score is not finite")
    if (end < start).any():
        raise DataError("a box ends before it begins")
    if labels.dtype.kind not in "iu" or ((labels < 0) | (labels >= classes)).any():
        raise DataError(f"a label is no class: there are {classes}, from 0")
    return _Detections(np.concatenate([start, end - start], axis=1), scores, labels.astype(np.int64))


def ground_truth(annotations: Annotations, masks: bool) -> dict[str, Any]:
    """COCO document as evaluators take it: ids are floating-point numbers to them, and 0 is none.

    Images are numbered from 1 in the order of their ids, classes by label, and objects by row.
    """
    objects, numbers = annotations.objects, _image_numbers(annotations)
    images = zip(numbers, annotations.sizes.tolist(), strict=True)
    rows = zip(
        objects.images.tolist(), objects.labels.tolist(), objects.boxes.tolist(), objects.areas.tolist(),
        objects.crowd.tolist(), strict=True,
    )  # fmt: skip
    return {
        "images": [{"id": number, "height": height, "width": width} for number, (width, height) in images],
        "annotations": [
            {
                "id": row + 1, "image_id": numbers[image], "category_id": label + 1, "bbox": box,
                "area": area, "iscrowd": int(crowd),
                **({"segmentation": _outline(annotations, row)} if masks else {}),
            }
            for row, (image, label, box, area, crowd) in enumerate(rows)
        ],
        "categories": [{"id": label + 1, "name": name} for label, name in enumerate(annotations.classes)],
    }  # fmt: skip


def _image_numbers(annotations: Annotations) -> list[int]:
    """Number of each image, from 1 in the order of their ids."""
    return (annotations.ids.argsort().argsort() + 1).tolist()


def _outline(annotations: Annotations, row: int) -> Any:
    """Polygons, or compressed RLE."""
    outline = annotations.objects.segmentation(row)
    if isinstance(outline, dict):
        return {**outline, "counts": compress(np.array(outline["counts"], np.int64))}
    return outline


def _results(
    found: Mapping[int, _Detections], image_numbers: Mapping[int, int], kind: Kind
) -> Iterator[dict[str, Any]]:
    """Detections as `COCO.loadRes` makes them; with a box, a mask would be ignored."""
    numbers, shape_key = count(1), "bbox" if kind == "bbox" else "segmentation"
    for image_id, detections in found.items():
        for label, score, area, shape in detections.rows(kind):
            yield {
                "id": next(numbers),
                "image_id": image_numbers[image_id],
                "category_id": label + 1,
                "score": score,
                "area": area,
                "iscrowd": 0,
                shape_key: shape,
            }


def _evaluator() -> Any:
    try:
        from faster_coco_eval import COCOeval_faster
    except ImportError as error:
        raise MissingPackage("faster-coco-eval", "detect", "measuring average precision") from error
    return COCOeval_faster


def figures(
    precision: NDArray[Any],
    recall: NDArray[Any],
    names: Sequence[str],
    objects: Sequence[int],
    found: Sequence[int],
) -> DetectionFigures:
    """Figures of COCO's arrays, in which −1 stands for none.

    Args:
        precision: by IoU threshold (10), recall (101), class, size of objects (4), and limit of detections
            (1, 10, 100).
        recall: the same without the second axis.
        names: class names.
        objects: annotated objects of each class.
        found: detections of each class.
    """
    whole, reached = precision[..., _ALL_SIZES, -1], recall[..., _ALL_SIZES, -1]
    rows = zip(names, objects, found, strict=True)
    return DetectionFigures(
        ap=_mean(whole),
        ap50=_mean(whole[0]),
        ap75=_mean(whole[5]),
        ap_small=_mean(precision[..., 1, -1]),
        ap_medium=_mean(precision[..., 2, -1]),
        ap_large=_mean(precision[..., 3, -1]),
        ar_1=_mean(recall[..., _ALL_SIZES, 0]),
        ar_10=_mean(recall[..., _ALL_SIZES, 1]),
        ar_100=_mean(reached),
        ar_small=_mean(recall[..., 1, -1]),
        ar_medium=_mean(recall[..., 2, -1]),
        ar_large=_mean(recall[..., 3, -1]),
        objects=sum(objects),
        per_class=tuple(
            ClassAP(
                *row,
                ap=_mean(whole[..., k]),
                ap50=_mean(whole[0, :, k]),
                ap75=_mean(whole[5, :, k]),
                ar=_mean(reached[:, k]),
            )
            for k, row in enumerate(rows)
        ),
    )


def _mean(values: NDArray[Any]) -> float | None:
    valid = values[values > -1]
    return float(np.mean(valid)) if valid.size else None
