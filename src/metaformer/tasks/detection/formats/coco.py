"""COCO annotations: one JSON file for all images of a split."""

import sys
from array import array
from pathlib import Path
from typing import Any, Final

from metaformer.data.class_lists import Names, given_names
from metaformer.data.image import image_size
from metaformer.data.rle import Runs, read_counts
from metaformer.errors import DataError
from metaformer.process import paused_gc
from metaformer.serialize import LINE, is_text, parse_json, shown
from metaformer.storage import read_text
from metaformer.tasks.detection.formats.annotations import (
    BOXES_DO,
    XYWH,
    AnnotationBuilder,
    Annotations,
    BadAnnotation,
    Border,
    ImageFiles,
    check_size,
    is_number,
    polygon_area,
)
from metaformer.tasks.detection.formats.layouts import SplitPaths
from metaformer.tasks.detection.instances import Row

_LARGEST: Final = 1 << 62
_LARGEST_FILE: Final = 8 << 30
"""Bytes; COCO's largest file has less than one GB."""


def read_coco(paths: SplitPaths, classes: Names, masks: bool | None, clip: bool = False) -> Annotations:
    """Read and validate a COCO file.

    Args:
        paths: the file and the folder of its images.
        classes: class names, or a text file of them, in the order of labels; by category id by default.
        masks: whether every object must have an outline; None keeps those that there are.
        clip: clip objects over the border of their image.

    Raises:
        DataError: lists are missing in the file, or classes do not fit.
    """
    with paused_gc():
        files = ImageFiles(paths.images, paths.root)
        return _Parser(_load(paths.labels), paths.labels, files, classes, masks, clip).parse()


def parse_coco(
    document: dict[str, Any],
    file: str | Path = "annotations",
    images: Path | None = None,
    classes: Names = None,
    masks: bool | None = None,
) -> Annotations:
    """Validate the content of a COCO file; see `read_coco`.

    Args:
        document: `images`, `annotations` and `categories`.
        file: its name in errors.
        images: folder that must hold the images; None for images that are not needed.
        classes: see `read_coco`.
        masks: see `read_coco`.

    Raises:
        DataError: lists are missing in the document, or classes do not fit.
    """
    annotations = document.get("annotations")
    if isinstance(annotations, list):
        document = {**document, "annotations": annotations.copy()}
    return _Parser(document, file, None if images is None else ImageFiles(images), classes, masks).parse()


class _Parser:
    """Validation of a document, whose annotations are released one by one."""

    def __init__(
        self,
        document: dict[str, Any],
        file: str | Path,
        files: ImageFiles | None,
        classes: Names,
        masks: bool | None,
        clip: bool = False,
    ) -> None:
        self.file, self.masks = file, masks
        rows, self.annotations = (self._list(document, key) for key in ("images", "annotations"))
        names = self._categories(self._list(document, "categories"), classes)
        self.builder = AnnotationBuilder(*names, clip)
        self.labels = {number: label for label, number in enumerate(self.builder.category_ids)}
        self.indices: dict[int, int] = {}
        """Index of each image by its id; -1 for those that cannot be used."""
        self.ids: set[int] = set()
        """Ids of the annotations so far."""
        self._images(rows, files)

    def parse(self) -> Annotations:
        """Validate all annotations."""
        for index in range(len(self.annotations)):
            annotation, self.annotations[index] = self.annotations[index], None
            try:
                self._annotation(index, annotation)
            except BadAnnotation as bad:
                self.builder.add_fault(bad.kind, f"{self._where(index, annotation)}: {bad.reason}", True)
        return self.builder.build()

    def _list(self, document: dict[str, Any], key: str) -> list[Any]:
        value = document.get(key)
        if not isinstance(value, list):
            what = f"no {key}" if value is None else f"{key} is no list"
            raise DataError(f"{self.file}: {what}; a COCO file has images, annotations and categories")
        return value

    def _categories(self, categories: list[Any], given: Names) -> tuple[tuple[str, ...], tuple[int, ...]]:
        """Names and ids, in the order of labels."""
        numbers: dict[str, int] = {}
        used: set[int] = set()
        for index, category in enumerate(categories):
            match category:
                case {"id": int(number), "name": str(name)} if name and _in_range(number) and name in LINE:
                    pass
                case _:
                    raise DataError(
                        f"{self.file}: categories[{index}] has no whole number as id, or no name of one line"
                    )
            if name in numbers or number in used:
                raise DataError(
                    f"{self.file}: categories[{index}] has the id or name of another: {shown(category)}"
                )
            numbers[name] = number
            used.add(number)
        if not numbers:
            raise DataError(f"{self.file}: categories is empty: there are no classes")
        names, where = given_names(given)
        if names is None:
            names = tuple(sorted(numbers, key=numbers.__getitem__))
        if unknown := sorted(numbers.keys() - set(names)):
            raise DataError(f"{self.file}: category {unknown[0]!r} is not among the {len(names)} of {where}")
        # A split may lack a class of the training split; results need an id for it all the same.
        free = max(numbers.values())
        return names, tuple(numbers.get(name, free + 1 + k) for k, name in enumerate(names))

    def _images(self, images: list[Any], files: ImageFiles | None) -> None:
        self.unsized = 0
        for index, image in enumerate(images):
            number = image.get("id") if isinstance(image, dict) else None
            where = (
                f"{self.file}: images[{index}]" if number is None else f"{self.file}: image {shown(number)}"
            )
            if type(number) is not int or not _in_range(number):
                self.builder.add_fault("id", f"{where}: has no whole number as id")
            elif number in self.indices:
                self.builder.add_fault("id", f"{where}: images[{index}] has an id that another has")
            else:
                self.indices[number] = self._add(image, number, files, where)
        if files is not None:
            self.builder.unused += files.unused()
        if self.unsized:
            text = (
                f"{self.file}: {self.unsized:,} image(s) without width and height: those of their files count"
            )
            self.builder.add_oddity("image", text)

    def _add(self, image: dict[str, Any], number: int, files: ImageFiles | None, where: str) -> int:
        name = image.get("file_name", "") if files is None else image.get("file_name")
        try:
            if not isinstance(name, str) or not is_text(name):
                raise BadAnnotation("image", f"file_name is {shown(name)}")
            name = name if files is None else files.find(name)
            width, height = image.get("width"), image.get("height")
            if files is not None and (width in (None, 0) or height in (None, 0)):
                width, height = image_size(files.folder / name)
                self.unsized += 1
            size = check_size(width, height)
        except DataError as error:
            self.builder.add_fault("image", f"{where}: {error}")
            return -1
        except BadAnnotation as bad:
            self.builder.add_fault(bad.kind, f"{where}: {bad.reason}")
            return -1
        return self.builder.add_image(name, size, number)

    def _annotation(self, index: int, annotation: Any) -> None:
        if not isinstance(annotation, dict):
            raise BadAnnotation("annotation", f"is {shown(annotation)}, no object")
        number = self._id(annotation)
        image = self._image(annotation)
        if image < 0:
            return  # of an image that was already reported
        border = self.builder.border(image)
        crowd = annotation.get("iscrowd")
        if crowd not in (None, 0, 1):
            raise BadAnnotation("annotation", f"iscrowd is {shown(crowd)}, not 0 or 1")
        label, box = self._label(annotation), _box(annotation, border)
        polygons, runs, broken = _outline(annotation.get("segmentation"), border)
        if self.masks and not polygons and runs is None:
            reason = broken or "has no segmentation to make a mask of"
            raise BadAnnotation("segmentation", f"{reason}; {BOXES_DO}")
        clipped = sum(map(polygon_area, polygons)) or box[2] * box[3]
        if self.masks is False:
            polygons, runs = [], None
        area = annotation.get("area")
        if area is None:
            area = box[2] * box[3]
        if not is_number(area) or not 0 <= area <= sys.float_info.max:
            raise BadAnnotation("annotation", f"area is {shown(area)}, not a number of square pixels")
        if border.clipped:  # the given area is that of the whole object
            area = min(area, clipped)
        if broken:
            left_out = f"{self._where(index, annotation)}: {broken}: this outline is not used"
            self.builder.add_oddity("segmentation", left_out, len(self.builder.rows))
        row = Row(image, number, label, box, crowd == 1, float(area), polygons, runs)
        self.builder.add_row(row, border, self._where(index, annotation) if border.clipped else "")

    def _id(self, annotation: dict[str, Any]) -> int:
        number = annotation.get("id")
        if type(number) is not int or not _in_range(number):
            raise BadAnnotation("id", f"id is {shown(number)}, not a whole number")
        if number in self.ids:
            raise BadAnnotation("id", "another annotation has this id")
        self.ids.add(number)
        return number

    def _image(self, annotation: dict[str, Any]) -> int:
        number = annotation.get("image_id")
        index = self.indices.get(number) if type(number) is int else None
        if index is None:
            raise BadAnnotation("image", f"image_id is {shown(number)}: no such image in the file")
        return index

    def _label(self, annotation: dict[str, Any]) -> int:
        number = annotation.get("category_id")
        label = self.labels.get(number) if type(number) is int else None
        if label is None:
            raise BadAnnotation("category", f"category_id is {shown(number)}: no such category in the file")
        return label

    def _where(self, index: int, annotation: Any) -> str:
        number, image = (
            annotation.get(key) if isinstance(annotation, dict) else None for key in ("id", "image_id")
        )
        which = f"annotations[{index}]" if type(number) is not int else f"annotation {number}"
        image = self.indices.get(image, -1) if type(image) is int else -1
        return f"{self.file}: {which}" + (f" of {self.builder.files[image]}" if image >= 0 else "")


def _load(file: Path) -> dict[str, Any]:
    document = parse_json(read_text(file, largest=_LARGEST_FILE), file, hook=_compact)
    if not isinstance(document, dict):
        hint = "; a detector's results are no annotations" if isinstance(document, list) else ""
        raise DataError(f"{file}: holds no object with images, annotations and categories{hint}")
    return document


def _compact(value: dict[str, Any]) -> dict[str, Any]:
    """Turn lists of numbers into arrays while the file is read, which take a quarter of the memory."""
    polygons, counts = value.get("segmentation"), value.get("counts")
    try:
        if type(polygons) is list:
            value["segmentation"] = [array("d", polygon) for polygon in polygons]
        elif type(counts) is list:
            value["counts"] = array("q", counts)
    except (TypeError, OverflowError):
        pass  # reported with the annotation
    return value


def _box(annotation: dict[str, Any], border: Border) -> XYWH:
    value = annotation.get("bbox")
    if not isinstance(value, list) or len(value) != 4 or not all(map(is_number, value)):
        raise BadAnnotation("box", f"bbox is {shown(value)}, not left, top, width and height")
    try:
        box = float(value[0]), float(value[1]), float(value[2]), float(value[3])
    except OverflowError:
        raise BadAnnotation("box", "bbox holds a number that is too large") from None
    try:
        return border.fit_box(box)
    except BadAnnotation as bad:
        reason = f"bbox {shown(value)} {bad.reason}{_other_units(box, border.size)}"
        raise BadAnnotation(bad.kind, reason) from None


def _other_units(box: XYWH, size: tuple[int, int]) -> str:
    """What a box that cannot be used looks like instead, for its error message."""
    left, top, right, bottom = box
    if left >= 0 and left + right <= 1 and top >= 0 and top + bottom <= 1 and right > 0 < bottom:
        return ": it looks normalized to the image's size, but COCO's boxes are in pixels"
    if 0 <= left < right <= size[0] and 0 <= top < bottom <= size[1]:
        return ": it looks like left, top, right, bottom, but COCO's boxes are left, top, width, height"
    return ""


def _outline(value: Any, border: Border) -> tuple[list["array[float]"], Runs | None, str]:
    """Polygons or run lengths of an object, and what is wrong with the first of them that cannot be used."""
    polygons: list[array[float]] = []
    if value is None or value == []:
        return polygons, None, ""
    if isinstance(value, dict):
        try:
            return polygons, _runs(value, border.size), ""
        except BadAnnotation as bad:
            return polygons, None, bad.reason
    if not isinstance(value, list):
        return polygons, None, f"segmentation is {shown(value)}, not polygons or run lengths"
    broken = ""
    for numbers in value:
        try:
            polygons.append(border.fit_polygon(_polygon(numbers)))
        except BadAnnotation as bad:
            broken = broken or bad.reason
    return polygons, None, broken


def _polygon(numbers: Any) -> "array[float]":
    try:
        return numbers if isinstance(numbers, array) else array("d", numbers)
    except (TypeError, OverflowError):
        raise BadAnnotation("segmentation", f"a polygon is {shown(numbers)}, not x, y, x, y …") from None


def _runs(rle: dict[str, Any], size: tuple[int, int]) -> Runs:
    expected = [size[1], size[0]]
    if rle.get("size") != expected:
        other = f"run lengths are of size {shown(rle.get('size'))}, the image of height and width {expected}"
        raise BadAnnotation("segmentation", other)
    try:
        return read_counts(rle)
    except DataError as error:
        raise BadAnnotation("segmentation", str(error)) from None


def _in_range(number: int) -> bool:
    return -_LARGEST < number < _LARGEST
