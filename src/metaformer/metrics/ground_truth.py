"""What a data set says of its objects, as an evaluator gets it: looked at whole, and numbered anew."""

from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any

from metaformer.errors import DataError
from metaformer.ops.coco_rle import compress, counts_of

_FARTHEST = 1e5
"""Pixels beyond which no corner of an outline is: what reads them takes memory by how far they go."""
Size = tuple[int, int]  # height, width


class GroundTruth:
    """Pictures, classes and objects of a document in COCO's format.

    Pictures are numbered from 1 in the order of their ids, classes in the order in which they stand, objects
    as they come: evaluators hold ids as floating-point numbers, and take 0 for none.

    Args:
        document: `images`, `annotations`, `categories`, as in COCO's instances files.
        masks: whether objects need outlines.

    Raises:
        DataError: something in it that cannot be; the message names the annotation.
    """

    def __init__(self, document: Mapping[str, Any], masks: bool = False) -> None:
        self.sizes = {int(image["id"]): _size(image) for image in document["images"]}
        """Height and width of each picture, by its id."""
        self.numbers = {own: number for number, own in enumerate(sorted(self.sizes), start=1)}
        """The number that each picture gets, by its id."""
        self.names = tuple(str(category["name"]) for category in document["categories"])
        """Names of the classes in the order of their labels."""
        if len(self.sizes) < len(document["images"]):
            raise DataError("two pictures have the same id")
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
        """The same pictures and classes with other objects."""
        sizes = ((self.numbers[own], *size) for own, size in self.sizes.items())
        return {
            "images": [{"id": number, "height": height, "width": width} for number, height, width in sizes],
            "annotations": list(objects),
            "categories": [{"id": label + 1, "name": name} for label, name in enumerate(self.names)],
        }

    def _object(self, annotation: Mapping[str, Any], masks: bool) -> dict[str, Any]:
        where = f"annotation {annotation.get('id')}"
        if annotation.get("image_id") not in self.sizes:
            raise DataError(f"{where}: there is no picture {annotation.get('image_id')!r}")
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


def _size(image: Mapping[str, Any]) -> Size:
    height, width = image.get("height"), image.get("width")
    if not isinstance(height, int) or not isinstance(width, int) or min(height, width) < 1:
        raise DataError(f"picture {image.get('id')}: height {height!r}, width {width!r}: both must be pixels")
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
        raise DataError(f"{where}: segmentation: neither polygons nor run lengths of the picture's size")
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
