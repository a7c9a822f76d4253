"""Annotations of a split, as the readers of all formats return them, and the rules that each must obey."""

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from metaformer.data.class_lists import category_ids
from metaformer.data.folder import EXTENSIONS, UNREAD
from metaformer.data.image import MAX_PIXELS
from metaformer.errors import DataError
from metaformer.serialize import shown
from metaformer.tasks.detection.instances import InstanceTable, Row

SLACK: Final = 1
"""Pixels by which boxes and polygons may exceed their image, as rounding makes them; boxes are clipped."""
MIN_SIDE: Final = 0.01
"""Smallest width and height of a box, in pixels."""
BOXES_DO: Final = "detect.head retinanet or faster_rcnn needs no masks"
"""Remedy where there are no outlines."""
Box = tuple[float, float, float, float]
"""Left, top, width and height."""


class BadAnnotation(Exception):
    """An annotation that breaks a rule; its reader adds file and place."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(kind, reason)
        self.kind, self.reason = kind, reason


def check_box(box: Box, size: tuple[int, int]) -> None:
    """Check that a box has an area inside an image of this width and height.

    Raises:
        BadAnnotation: it has none, exceeds the image, or is not finite.
    """
    left, top, width, height = box
    right, bottom = left + width, top + height
    if (
        min(right, size[0]) - max(left, 0) >= MIN_SIDE
        and min(bottom, size[1]) - max(top, 0) >= MIN_SIDE
        and left >= -SLACK
        and top >= -SLACK
        and right <= size[0] + SLACK
        and bottom <= size[1] + SLACK
    ):
        return
    if not all(map(math.isfinite, box)):
        raise BadAnnotation("box", "holds a number that is not finite")
    if width < MIN_SIDE or height < MIN_SIDE:
        raise BadAnnotation("box", f"is {width:g} wide and {height:g} high: both must be above 0")
    raise BadAnnotation("box", f"exceeds its image, which is {size[0]}x{size[1]}")


def check_polygon(numbers: Sequence[float], size: tuple[int, int]) -> None:
    """Check that a polygon x, y, x, y … has three points or more in an image of this width and height.

    Raises:
        BadAnnotation: it has fewer, exceeds the image, or is not finite.
    """
    if len(numbers) % 2 or len(numbers) < 6:
        few = f"a polygon of {len(numbers)} numbers: it needs x and y of at least 3 points"
        raise BadAnnotation("segmentation", few)
    if not math.isfinite(sum(numbers)):
        raise BadAnnotation("segmentation", "a polygon holds a number that is not finite")
    x, y = numbers[0::2], numbers[1::2]
    if min(x) < -SLACK or min(y) < -SLACK or max(x) > size[0] + SLACK or max(y) > size[1] + SLACK:
        raise BadAnnotation("segmentation", f"a polygon exceeds its image, which is {size[0]}x{size[1]}")


def check_size(width: Any, height: Any) -> tuple[int, int]:
    """Check an image's width and height.

    Raises:
        BadAnnotation: they are not whole numbers above 0, or too large.
    """
    if not (is_number(width) and is_number(height) and 0 < width < MAX_PIXELS and 0 < height < MAX_PIXELS):
        raise BadAnnotation("image", f"width {shown(width)} and height {shown(height)} must be above 0")
    if int(width) != width or int(height) != height:
        raise BadAnnotation("image", f"width {shown(width)} and height {shown(height)} must be whole numbers")
    if width * height > MAX_PIXELS:
        raise BadAnnotation("image", f"{width}x{height} is more than the {MAX_PIXELS:,} pixels allowed")
    return int(width), int(height)


def is_number(value: Any) -> bool:
    """Whether a JSON value is a number; booleans are none."""
    return type(value) is int or type(value) is float


@dataclass(frozen=True)
class Fault:
    """An error in the annotations."""

    kind: str
    """`image`, `id`, `category`, `box`, `segmentation`, or `annotation`."""
    text: str
    """File, annotation, and what is wrong."""
    one_object: bool
    """Whether it is about one object, without which the others can be used."""
    row: int | None = None
    """Row of the object, if it is used all the same."""


@dataclass(frozen=True)
class Annotations:
    """Images of a split and their objects."""

    files: list[str]
    """Images, relative to their folder."""
    sizes: NDArray[np.int32]
    """Width and height of each image (N, 2)."""
    ids: NDArray[np.int64]
    """COCO's `image_id` of each image; counted from 1 in other formats."""
    objects: InstanceTable
    classes: tuple[str, ...]
    category_ids: tuple[int, ...]
    """COCO's `category_id` of each class."""
    faults: tuple[Fault, ...] = ()
    """Errors; the images and objects that they are about are left out above."""
    oddities: tuple[Fault, ...] = ()
    """What is wrong with images and objects that can be used all the same, such as a broken outline."""
    unused: tuple[str, ...] = ()
    """Files that are not used."""


class AnnotationBuilder:
    """Annotations under construction.

    Args:
        classes: class names.
        numbers: their `category_id`; COCO's own for its classes, or counted from 1, by default.
    """

    def __init__(self, classes: tuple[str, ...], numbers: tuple[int, ...] | None = None) -> None:
        self.classes, self.category_ids = classes, numbers or category_ids(classes)
        self.files: list[str] = []
        self.sizes: list[tuple[int, int]] = []
        self.ids: list[int] = []
        self.rows: list[Row | None] = []
        self.faults: list[Fault] = []
        self.oddities: list[Fault] = []
        self.unused: list[str] = []

    def add_image(self, file: str, size: tuple[int, int], number: int | None = None) -> int:
        """Add an image of a width and height; returns its index."""
        self.files.append(file)
        self.sizes.append(size)
        self.ids.append(len(self.files) if number is None else number)
        return len(self.files) - 1

    def add_fault(self, kind: str, text: str, one_object: bool = False) -> None:
        """Add an error."""
        self.faults.append(Fault(kind, text, one_object))

    def add_oddity(self, kind: str, text: str, row: int | None = None) -> None:
        """Add what is wrong with something that is used all the same, such as the object of a row."""
        self.oddities.append(Fault(kind, text, row is not None, row))

    def build(self) -> Annotations:
        """The annotations; releases the rows."""
        sizes = np.array(self.sizes, dtype=np.int32).reshape(-1, 2)
        return Annotations(
            self.files,
            sizes,
            np.array(self.ids, dtype=np.int64),
            InstanceTable(self.rows, sizes),
            self.classes,
            self.category_ids,
            tuple(self.faults),
            tuple(self.oddities),
            tuple(self.unused),
        )


class ImageFiles:
    """Image files below a folder, each directory listed once; nothing outside the data set exists.

    Args:
        folder: the folder of images.
        root: the data set, to which names may also be relative; the folder itself by default.
    """

    def __init__(self, folder: Path, root: Path | None = None) -> None:
        self.folder, self.root = folder, folder if root is None else root
        self._listed: dict[str, set[str]] = {}
        self._used: dict[str, set[str]] = {}

    def find(self, name: str) -> str:
        r"""Path of an image, relative to the folder, by the name that a file gives.

        The name is relative to the folder or to the data set, or rooted and leads into the data set; its
        separators may be those of Windows.

        Raises:
            BadAnnotation: there is no such image.
        """
        places = [] if "\0" in name else list(dict.fromkeys(self._places(name)))
        for place in places:
            parent, base = os.path.split(place)
            if base in self._files(parent):
                self._used.setdefault(parent, set()).add(base)
                return place
        if not places or places[0].startswith("..") or name.startswith(("/", "\\")) or name[1:2] == ":":
            raise BadAnnotation("image", f"file_name {name!r:.200} does not lie in {self.folder}")
        self._used.setdefault(os.path.dirname(places[0]), set())
        raise BadAnnotation("image", f"no such image {self.folder / places[0]!s:.400}")

    def _places(self, name: str) -> Iterator[str]:
        """Paths, relative to the folder, at which an image of a name may lie."""
        for text in dict.fromkeys((name, name.replace("\\", "/"))):
            path = PurePosixPath(text[2:] if text[1:3] == ":/" else text)
            if not path.parts or ".." in path.parts:
                continue
            if path.is_absolute():
                yield from self._rooted(path)
            else:
                yield str(path)
                yield self._from_root(path)

    def _rooted(self, path: PurePosixPath) -> Iterator[str]:
        root = PurePosixPath(os.path.abspath(self.root))
        if path.is_relative_to(root):
            yield self._from_root(path.relative_to(root))
            return
        below = path.relative_to(path.anchor)
        if root.name in below.parts:  # the data set has been moved, or comes from another machine
            yield self._from_root(PurePosixPath(*below.parts[below.parts.index(root.name) + 1 :]))
        yield self._from_root(below)

    def _from_root(self, path: PurePosixPath) -> str:
        return os.path.relpath(self.root / path, self.folder)

    def _files(self, parent: str) -> set[str]:
        if parent not in self._listed:
            self._listed[parent] = file_names(self.folder / parent)
        return self._listed[parent]

    def unused(self) -> list[str]:
        """A line for each directory that images were asked from, with images that were not asked for."""
        lines = []
        for parent, used in self._used.items():
            kinds = (os.path.splitext(name)[1].lower() for name in self._listed[parent] - used)
            if count := sum(kind in EXTENSIONS | UNREAD for kind in kinds):
                place = os.path.normpath(self.folder / parent)
                lines.append(f"{place}: {count:,} image(s) without annotations are not used")
        return lines


def file_names(folder: Path) -> set[str]:
    """Names of the files in a folder; empty if there is no such folder.

    Raises:
        DataError: it cannot be listed.
    """
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries if entry.is_file()}
    except (FileNotFoundError, NotADirectoryError):
        return set()
    except OSError as error:
        raise DataError(f"{folder}: cannot list it: {error.strerror}") from error
