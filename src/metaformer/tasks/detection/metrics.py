"""Average precision of boxes and masks as COCO defines it, through faster-coco-eval."""

import gc
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from math import isfinite
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from metaformer.data.rle import Mask, compress, counts_of, mask_areas
from metaformer.distributed import all_gather_list
from metaformer.errors import DataError, MissingPackage

Kind = Literal["bbox", "segm"]
"""What overlaps: boxes or masks."""


_log = logging.getLogger(__name__)


_ALL = 0
"""Where the figures of objects of all sizes are; small, medium and large ones follow."""


_FARTHEST = 1e5
"""Pixels beyond which no corner of an outline is: what reads them takes memory by how far they go."""


Size = tuple[int, int]  # height, width


class Found(NamedTuple):
    """What was found in one image."""

    image_id: int
    """The image's id in the document."""
    boxes: ArrayLike
    """Left, top, right and bottom (N, 4), in the image's own pixels."""
    scores: ArrayLike
    """How sure each is (N,)."""
    labels: ArrayLike
    """Classes (N,), from 0 in the document's order."""
    masks: Sequence[Mask] | None = None
    """Compressed run lengths of each."""


@dataclass(frozen=True)
class ClassAP:
    """How the objects of one class fared."""

    name: str
    objects: int
    """Annotated ones; crowds do not count."""
    found: int
    """What was taken for one of the class, however unsure."""
    ap: float | None
    """Average precision over overlaps (IoU) from 0.5 to 0.95; None of no objects, as all of these."""
    ap50: float | None
    """At an overlap of 0.5."""
    ap75: float | None
    """At an overlap of 0.75."""
    ar: float | None
    """Share of the objects that is found, over the same overlaps as `ap`."""


@dataclass(frozen=True)
class DetectionFigures:
    """COCO's twelve figures; None where COCO says −1, of no objects."""

    ap: float | None
    """Average precision over classes and overlaps (IoU) from 0.5 to 0.95."""
    ap50: float | None
    """At an overlap of 0.5."""
    ap75: float | None
    """At an overlap of 0.75."""
    ap_small: float | None
    """Of objects of less than 32² pixels."""
    ap_medium: float | None
    ap_large: float | None
    """Of objects of more than 96² pixels."""
    ar_1: float | None
    """Share of the objects that the surest detection of each class and image finds."""
    ar_10: float | None
    ar_100: float | None
    ar_small: float | None
    ar_medium: float | None
    ar_large: float | None
    objects: int
    """Annotated ones; crowds do not count."""
    per_class: tuple[ClassAP, ...]

    @property
    def stats(self) -> tuple[float | None, ...]:
        """The twelve in COCO's order."""
        ap = (self.ap, self.ap50, self.ap75, self.ap_small, self.ap_medium, self.ap_large)
        return (*ap, self.ar_1, self.ar_10, self.ar_100, self.ar_small, self.ar_medium, self.ar_large)


class AveragePrecision:
    """Detections of a data set, image by image, and what they come to.

    Args:
        document: the data set's images, classes and objects in COCO's format.
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
        """Take in one image's detections; in images that are never given there are none.

        Raises:
            DataError: no such image, or given before; values that cannot be.
        """
        number = found.image_id
        if number in self._found:
            raise DataError(f"image {number}: was counted before")
        if number not in self.truth.sizes:
            raise DataError(f"image {number}: the data set has no such image")
        try:
            objects = _objects(found, len(self.truth.names))
            if "segm" in self.kinds:
                objects.add_masks(found.masks, self.truth.sizes[number])
        except DataError as error:
            raise DataError(f"image {number}: {error}") from error
        self._found[number] = objects

    def result(self) -> dict[Kind, DetectionFigures]:
        """The figures over all ranks; every rank works them out.

        Raises:
            DataError: two ranks were given the same image.
        """
        everything = dict(parts := all_gather_list(list(self._found.items())))
        if len(everything) < len(parts):
            raise DataError("an image was counted by two ranks")
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
    """Detections of an image that native code may have."""

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


class GroundTruth:
    """Images, classes and objects of a document in COCO's format.

    Images are numbered from 1 in the order of their ids, classes in the order in which they stand, objects
    as they come: evaluators hold ids as floating-point numbers, and take 0 for none.

    Args:
        document: `images`, `annotations`, `categories`, as in COCO's instances files.
        masks: whether objects need outlines.

    Raises:
        DataError: something in it that cannot be; the message names the annotation.
    """

    def __init__(self, document: Mapping[str, Any], masks: bool = False) -> None:
        self.sizes = {int(image["id"]): _size(image) for image in document["images"]}
        """Height and width of each image, by its id."""
        self.numbers = {own: number for number, own in enumerate(sorted(self.sizes), start=1)}
        """The number that each image gets, by its id."""
        self.names = tuple(str(category["name"]) for category in document["categories"])
        """Names of the classes in the order of their labels."""
        if len(self.sizes) < len(document["images"]):
            raise DataError("two images have the same id")
        self._labels = {category["id"]: label for label, category in enumerate(document["categories"])}
        if len(self._labels) < len(self.names):
            raise DataError("two classes have the same id")
        self.objects = [self._object(annotation, masks) for annotation in document["annotations"]]
        """The objects in COCO's form, with these numbers; without `id`."""
        self.counts = [0] * len(self.names)
        """How many objects of each class there are; crowds do not count."""
        for found in self.objects:
            self.counts[found["category_id"] - 1] += not found["iscrowd"]

    def document(self) -> dict[str, Any]:
        """A document as evaluators read it; they write into it, so each gets its own."""
        return self.with_objects({**found, "id": place} for place, found in enumerate(self.objects, start=1))

    def with_objects(self, objects: Any) -> dict[str, Any]:
        """The same images and classes with other objects."""
        sizes = ((self.numbers[own], *size) for own, size in self.sizes.items())
        return {
            "images": [{"id": number, "height": height, "width": width} for number, height, width in sizes],
            "annotations": list(objects),
            "categories": [{"id": label + 1, "name": name} for label, name in enumerate(self.names)],
        }

    def _object(self, annotation: Mapping[str, Any], masks: bool) -> dict[str, Any]:
        where = f"annotation {annotation.get('id')}"
        if annotation.get("image_id") not in self.sizes:
            raise DataError(f"{where}: there is no image {annotation.get('image_id')!r}")
        if annotation.get("category_id") not in self._labels:
            raise DataError(f"{where}: there is no class {annotation.get('category_id')!r}")
        box, area = annotation.get("bbox"), annotation.get("area")
        if not _are_numbers(box, 4) or min(box[2:]) < 0:  # type: ignore[index]
            raise DataError(f"{where}: bbox is {box!r}: it must be left, top, width and height")
        if not _are_numbers([area], 1):
            raise DataError(f"{where}: area is {area!r}: it must be a number of pixels")
        size = self.sizes[annotation["image_id"]]
        found = {
            "image_id": self.numbers[annotation["image_id"]],
            "category_id": self._labels[annotation["category_id"]] + 1,
            "bbox": list(box),  # type: ignore[arg-type]
            "area": area,
            "iscrowd": int(bool(annotation.get("iscrowd", 0))),
        }
        return {**found, "segmentation": _outline(annotation, size, where)} if masks else found


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


def figures(
    precision: NDArray[Any],
    recall: NDArray[Any],
    names: Sequence[str],
    objects: Sequence[int],
    found: Sequence[int],
) -> DetectionFigures:
    """The figures of COCO's arrays, in which −1 stands for what does not exist.

    Args:
        precision: by overlap, recall, class, size of the objects, and most detections (1, 10, 100).
        recall: the same without the second.
        names: the classes.
        objects: how many of each are annotated.
        found: how many of each were found.
    """
    whole, reached = precision[..., _ALL, -1], recall[..., _ALL, -1]
    rows = zip(names, objects, found, strict=True)
    return DetectionFigures(
        ap=_mean(whole),
        ap50=_mean(whole[0]),
        ap75=_mean(whole[5]),
        ap_small=_mean(precision[..., 1, -1]),
        ap_medium=_mean(precision[..., 2, -1]),
        ap_large=_mean(precision[..., 3, -1]),
        ar_1=_mean(recall[..., _ALL, 0]),
        ar_10=_mean(recall[..., _ALL, 1]),
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
    there = values[values > -1]
    return float(np.mean(there)) if there.size else None


def _size(image: Mapping[str, Any]) -> Size:
    height, width = image.get("height"), image.get("width")
    if not isinstance(height, int) or not isinstance(width, int) or min(height, width) < 1:
        raise DataError(f"image {image.get('id')}: height {height!r}, width {width!r}: both must be pixels")
    return height, width


def _outline(annotation: Mapping[str, Any], size: Size, where: str) -> Any:
    """Polygons, or run lengths, which come back compressed."""
    outline = annotation.get("segmentation")
    if isinstance(outline, list):
        whole = outline and all(isinstance(corners, list) for corners in outline)
        if not whole or not all(_is_polygon(corners) for corners in outline):
            raise DataError(f"{where}: segmentation: a polygon needs three corners, as numbers x, y, x, y …")
        return outline
    if not isinstance(outline, dict) or tuple(outline.get("size", ())) != size:
        raise DataError(f"{where}: segmentation: neither polygons nor run lengths of the image's size")
    try:
        return {"size": list(size), "counts": compress(counts_of(outline))}
    except DataError as error:
        raise DataError(f"{where}: segmentation: {error}") from error


def _is_polygon(corners: Sequence[Any]) -> bool:
    whole = len(corners) >= 6 and len(corners) % 2 == 0 and _are_numbers(corners, len(corners))
    return whole and max(map(abs, corners)) <= _FARTHEST


def _are_numbers(values: Any, count: int) -> bool:
    return (
        isinstance(values, list | tuple)
        and len(values) == count
        and all(isinstance(value, int | float) and isfinite(value) for value in values)
    )
