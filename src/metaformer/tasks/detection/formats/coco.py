"""Annotations as COCO writes them: one JSON file for all images of a split."""

import gc
import json
import math
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from metaformer.data.class_lists import Names, given_names
from metaformer.data.rle import counts_of
from metaformer.errors import DataError
from metaformer.tasks.detection.formats.annotations import Annotated, AnnotationBuilder, ImageFiles
from metaformer.tasks.detection.formats.layouts import SplitPaths
from metaformer.tasks.detection.formats.rules import (
    BOXES_DO,
    BadAnnotation,
    Box,
    check_box,
    check_polygon,
    check_size,
    is_number,
)
from metaformer.tasks.detection.instances import Row

_LARGEST: Final = 1 << 62


def read_coco(place: SplitPaths, classes: Names, masks: bool | None) -> Annotated:
    """Read and check a JSON file of COCO's form.

    Args:
        place: where file and images lie.
        classes: names, or a text file of them, in the order of labels; by number of category when not given.
        masks: whether every object must have an outline; None keeps those that there are.

    Raises:
        DataError: there are no such lists in the file, or classes that do not fit.
    """
    with _few_collections():
        return _Reader(place, classes, masks).read()


@contextmanager
def _few_collections() -> Iterator[None]:
    """Spare the garbage collector millions of objects that all stay: reading takes half as long."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


class _Reader:
    def __init__(self, place: SplitPaths, classes: Names, masks: bool | None) -> None:
        self.place, self.masks = place, masks
        self.file = place.labels
        document = _load(self.file)
        images, self.annotations = (self._list(document, key) for key in ("images", "annotations"))
        self.found = AnnotationBuilder(*self._categories(self._list(document, "categories"), classes))
        self.label = {number: label for label, number in enumerate(self.found.ids_of_classes)}
        self.image: dict[int, int] = {}
        """Place of each image by its number; -1 of those that cannot be used."""
        self.ids: set[int] = set()
        self._images(images)

    def read(self) -> Annotated:
        """Check all annotations."""
        for place in range(len(self.annotations)):
            annotation, self.annotations[place] = self.annotations[place], None
            try:
                self._annotation(annotation)
            except BadAnnotation as bad:
                told = f"{self._where(place, annotation)}: {bad.reason}"
                self.found.fault(bad.kind, told, single=True)
        return self.found.packed()

    def _list(self, document: dict[str, Any], key: str) -> list[Any]:
        value = document.get(key)
        if not isinstance(value, list):
            what = f"no {key}" if value is None else f"{key} is no list"
            raise DataError(f"{self.file}: {what}; COCO's form has images, annotations and categories")
        return value

    def _categories(self, categories: list[Any], given: Names) -> tuple[tuple[str, ...], tuple[int, ...]]:
        """Names and numbers, in the order of labels."""
        numbers: dict[str, int] = {}
        used: set[int] = set()
        for place, category in enumerate(categories):
            match category:
                case {"id": int(number), "name": str(name)} if name and _in_range(number) and _is_text(name):
                    pass
                case _:
                    raise DataError(f"{self.file}: categories[{place}] has no whole number as id, or no name")
            if name in numbers or number in used:
                raise DataError(
                    f"{self.file}: categories[{place}] has the id or name of another: {category!s:.80}"
                )
            numbers[name] = number
            used.add(number)
        if not numbers:
            raise DataError(f"{self.file}: categories is empty: there is no class to learn")
        names, where = given_names(given)
        if names is None:
            names = tuple(sorted(numbers, key=numbers.__getitem__))
        if strange := sorted(numbers.keys() - set(names)):
            raise DataError(f"{self.file}: category {strange[0]!r} is not among the {len(names)} of {where}")
        free = max(numbers.values())  # a split may lack a class, but results must call it something
        return names, tuple(numbers.get(name, free + 1 + k) for k, name in enumerate(names))

    def _images(self, images: list[Any]) -> None:
        files = ImageFiles(self.place.images)
        for place, image in enumerate(images):
            number = image.get("id") if isinstance(image, dict) else None
            where = (
                f"{self.file}: images[{place}]" if number is None else f"{self.file}: image {number!r:.40}"
            )
            if type(number) is not int or not _in_range(number):
                self.found.fault("id", f"{where}: has no whole number as id")
            elif number in self.image:
                self.found.fault("id", f"{where}: images[{place}] has an id that another has")
            else:
                self.image[number] = self._add(image, number, files, where)
        self.found.unused += files.unused()

    def _add(self, image: dict[str, Any], number: int, files: ImageFiles, where: str) -> int:
        name = image.get("file_name")
        try:
            if not isinstance(name, str) or not _is_text(name):
                raise BadAnnotation("image", f"file_name is {name!r:.80}")
            if trouble := files.trouble(name):
                raise BadAnnotation("image", trouble)
            size = check_size(image.get("width"), image.get("height"))
        except BadAnnotation as bad:
            self.found.fault(bad.kind, f"{where}: {bad.reason}")
            return -1
        return self.found.add(name, size, number)

    def _annotation(self, annotation: Any) -> None:
        if not isinstance(annotation, dict):
            raise BadAnnotation("annotation", f"is {annotation!r:.40}, no object")
        number = self._id(annotation)
        image = self._image(annotation)
        if image < 0:
            return  # the image itself was told of
        size = self.found.sizes[image]
        crowd = annotation.get("iscrowd", 0)
        if crowd not in (0, 1):
            raise BadAnnotation("annotation", f"iscrowd is {crowd!r:.40}, not 0 or 1")
        label, box = self._label(annotation), _box(annotation, size)
        polygons, runs = self._outline(annotation.get("segmentation"), size)
        area = annotation.get("area", box[2] * box[3])
        if not is_number(area) or not 0 <= area < math.inf:
            raise BadAnnotation("annotation", f"area is {area!r:.40}, not a number of square pixels")
        self.found.rows.append(Row(image, number, label, box, crowd == 1, float(area), polygons, runs))

    def _id(self, annotation: dict[str, Any]) -> int:
        number = annotation.get("id")
        if type(number) is not int or not _in_range(number):
            raise BadAnnotation("id", f"id is {number!r:.40}, not a whole number")
        if number in self.ids:
            raise BadAnnotation("id", "another annotation has this id")
        self.ids.add(number)
        return number

    def _image(self, annotation: dict[str, Any]) -> int:
        number = annotation.get("image_id")
        place = self.image.get(number) if type(number) is int else None
        if place is None:
            raise BadAnnotation("image", f"image_id is {number!r:.40}: no such image in the file")
        return place

    def _label(self, annotation: dict[str, Any]) -> int:
        number = annotation.get("category_id")
        label = self.label.get(number) if type(number) is int else None
        if label is None:
            raise BadAnnotation("category", f"category_id is {number!r:.40}: no such category in the file")
        return label

    def _outline(self, found: Any, size: tuple[int, int]) -> tuple[list["array[float]"], Any]:
        """Polygons or run lengths, where they are wanted; they are checked in any case."""
        polygons: list[array[float]] = []
        runs = None
        if found is None or found == []:
            if self.masks:
                raise BadAnnotation(
                    "segmentation", f"has no segmentation, which masks are made of; {BOXES_DO}"
                )
        elif isinstance(found, dict):
            runs = _runs(found, size)
        elif isinstance(found, list):
            polygons = [_polygon(polygon, size) for polygon in found]
        else:
            raise BadAnnotation("segmentation", f"segmentation is {found!r:.40}: polygons or run lengths")
        return ([], None) if self.masks is False else (polygons, runs)

    def _where(self, place: int, annotation: Any) -> str:
        number = annotation.get("id") if isinstance(annotation, dict) else None
        which = f"annotations[{place}]" if type(number) is not int else f"annotation {number}"
        image_id = annotation.get("image_id") if isinstance(annotation, dict) else None
        index = self.image.get(image_id, -1) if type(image_id) is int else -1
        return f"{self.file}: {which}" + (f" of {self.found.files[index]}" if index >= 0 else "")


def _load(file: Path) -> dict[str, Any]:
    try:
        with open(file, encoding="utf-8-sig", newline="") as stream:
            document = json.load(stream, object_hook=_lighter)
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{file}: cannot be read as JSON ({error})") from error
    if not isinstance(document, dict):
        hint = "; results of a detector are no annotations" if isinstance(document, list) else ""
        raise DataError(f"{file}: holds no object with images, annotations and categories{hint}")
    return document


def _lighter(value: dict[str, Any]) -> dict[str, Any]:
    """Turn lists of numbers into arrays while the file is read, which take a quarter of the memory."""
    polygons, counts = value.get("segmentation"), value.get("counts")
    try:
        if type(polygons) is list:
            value["segmentation"] = [array("d", polygon) for polygon in polygons]
        elif type(counts) is list:
            value["counts"] = array("q", counts)
    except (TypeError, OverflowError):
        pass  # told when the annotation is checked
    return value


def _box(annotation: dict[str, Any], size: tuple[int, int]) -> Box:
    found = annotation.get("bbox")
    if type(found) is not list or len(found) != 4 or not all(map(is_number, found)):
        raise BadAnnotation("box", f"bbox is {found!r:.80}: left, top, width and height are wanted")
    try:
        box = float(found[0]), float(found[1]), float(found[2]), float(found[3])
    except OverflowError:
        raise BadAnnotation("box", "bbox holds a number that is too large") from None
    try:
        check_box(box, size)
    except BadAnnotation as bad:
        raise BadAnnotation("box", f"bbox {found} {bad.reason}") from None
    return box


def _polygon(numbers: Any, size: tuple[int, int]) -> "array[float]":
    if not isinstance(numbers, array):  # `_lighter` could not make one
        raise BadAnnotation("segmentation", f"a polygon is {numbers!r:.40}: x, y, x, y and so on is wanted")
    check_polygon(numbers, size)
    return numbers


def _runs(rle: dict[str, Any], size: tuple[int, int]) -> Any:
    wanted = [size[1], size[0]]
    if rle.get("size") != wanted:
        other = f"run lengths are of size {rle.get('size')!r:.40}, the image of height and width {wanted}"
        raise BadAnnotation("segmentation", other)
    try:
        return counts_of(rle)
    except DataError as error:
        raise BadAnnotation("segmentation", str(error)) from None


def _in_range(number: int) -> bool:
    return -_LARGEST < number < _LARGEST


def _is_text(text: str) -> bool:
    """Tell what can be printed and looked for on disk from what JSON can hold beside it."""
    try:
        return bool(text.encode())
    except UnicodeEncodeError:
        return False
