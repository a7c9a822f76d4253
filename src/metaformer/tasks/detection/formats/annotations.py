"""Annotations of a split, as the readers of all formats return them, and the rules that each must obey."""

import math
import os
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
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
CLIP_IT: Final = "clip it: train with --detect.clip_boxes true, others --clip-boxes"
"""Remedy for an object over the border of its image."""
XYWH = tuple[float, float, float, float]
"""Left, top, width and height."""


class BadAnnotation(Exception):
    """An annotation that breaks a rule; its reader adds file and place."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(kind, reason)
        self.kind, self.reason = kind, reason


class Border:
    """The border of an image, within which an object must lie, or to which it is clipped.

    Args:
        size: width and height of the image.
        clip: whether what exceeds it is clipped.
    """

    def __init__(self, size: tuple[int, int], clip: bool = False) -> None:
        self.size, self.clip = size, clip
        self.clipped = False
        """Whether anything was."""

    def fit_box(self, box: XYWH) -> XYWH:
        """A box that has an area inside the image, clipped to it where it exceeds it.

        Raises:
            BadAnnotation: it has none, exceeds the image and is not to be clipped, or is not finite.
        """
        left, top, width, height = box
        right, bottom = left + width, top + height
        inner_left, inner_right = max(left, 0.0), min(right, float(self.size[0]))
        inner_top, inner_bottom = max(top, 0.0), min(bottom, float(self.size[1]))
        inside = inner_right - inner_left >= MIN_SIDE and inner_bottom - inner_top >= MIN_SIDE
        if inside and self._is_near((left, right), (top, bottom)):
            return box
        if not all(map(math.isfinite, box)):
            raise BadAnnotation("box", "holds a number that is not finite")
        if width < MIN_SIDE or height < MIN_SIDE:
            raise BadAnnotation("box", f"is {width:g} wide and {height:g} high: both must be above 0")
        self._exceed("box", "exceeds", inside)
        return inner_left, inner_top, inner_right - inner_left, inner_bottom - inner_top

    def fit_polygon(self, numbers: "array[float]") -> "array[float]":
        """A polygon x, y, x, y … of three points or more, clipped to the image where it exceeds it.

        Raises:
            BadAnnotation: it has fewer, exceeds the image and is not to be clipped, or is not finite.
        """
        if len(numbers) % 2 or len(numbers) < 6:
            few = f"a polygon of {len(numbers)} numbers: it needs x and y of at least 3 points"
            raise BadAnnotation("segmentation", few)
        if not math.isfinite(sum(numbers)):
            raise BadAnnotation("segmentation", "a polygon holds a number that is not finite")
        if self._is_near(numbers[0::2], numbers[1::2]):
            return numbers
        inner = clip_polygon(numbers, self.size)
        self._exceed("segmentation", "a polygon exceeds", polygon_area(inner) >= MIN_SIDE**2)
        return inner

    def _is_near(self, x: Sequence[float], y: Sequence[float]) -> bool:
        """Whether coordinates exceed the image by no more than rounding makes them."""
        return (
            min(x) >= -SLACK
            and min(y) >= -SLACK
            and max(x) <= self.size[0] + SLACK
            and max(y) <= self.size[1] + SLACK
        )

    def _exceed(self, kind: str, exceeds: str, partly: bool) -> None:
        """Note what is clipped; refuse what is not, or lies wholly outside."""
        reason = f"{exceeds} its image, which is {self.size[0]}x{self.size[1]}"
        if not partly:
            raise BadAnnotation(kind, f"{reason}, and nothing of it lies inside: correct or remove it")
        if not self.clip:
            raise BadAnnotation("border", f"{reason} ({CLIP_IT})")
        self.clipped = True


def clip_polygon(numbers: Sequence[float], size: tuple[int, int]) -> "array[float]":
    """The part of a polygon x, y, x, y … inside an image of this width and height (Sutherland-Hodgman)."""
    points = list(zip(numbers[0::2], numbers[1::2], strict=True))
    for axis, bound, sign in ((0, 0, 1), (1, 0, 1), (0, size[0], -1), (1, size[1], -1)):
        inner: list[tuple[float, float]] = []
        for one, two in zip(points[-1:] + points[:-1], points, strict=True):
            inside = sign * (two[axis] - bound) >= 0
            if inside != (sign * (one[axis] - bound) >= 0):
                along = (bound - one[axis]) / (two[axis] - one[axis])
                other = one[1 - axis] + along * (two[1 - axis] - one[1 - axis])
                inner.append((bound, other) if axis == 0 else (other, bound))
            if inside:
                inner.append(two)
        points = inner
    return array("d", chain.from_iterable(points))


def polygon_area(numbers: Sequence[float]) -> float:
    """Area of a polygon x, y, x, y … by the shoelace formula."""
    x, y = numbers[0::2], numbers[1::2]
    return abs(sum(x[i - 1] * y[i] - x[i] * y[i - 1] for i in range(len(x)))) / 2


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
    """`image`, `id`, `category`, `box`, `border`, `segmentation`, or `annotation`."""
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

    def subset(self, wanted: Sequence[bool]) -> "Annotations":
        """The images that are wanted, and their objects; errors and lines about no object stay."""
        keep = np.array(wanted, dtype=bool)
        rows = np.flatnonzero(keep[self.objects.images]).tolist()
        place: dict[int | None, int | None] = {None: None, **{row: new for new, row in enumerate(rows)}}
        return replace(
            self,
            files=[file for file, there in zip(self.files, wanted, strict=True) if there],
            sizes=self.sizes[keep],
            ids=self.ids[keep],
            objects=self.objects.subset(keep),
            oddities=tuple(replace(one, row=place[one.row]) for one in self.oddities if one.row in place),
        )


class AnnotationBuilder:
    """Annotations under construction.

    Args:
        classes: class names.
        numbers: their `category_id`; COCO's own for its classes, or counted from 1, by default.
        clip: whether objects over the border of their image are clipped to it.
    """

    def __init__(
        self, classes: tuple[str, ...], numbers: tuple[int, ...] | None = None, clip: bool = False
    ) -> None:
        self.clip = clip
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

    def border(self, image: int) -> Border:
        """The border of an image, for one object."""
        return Border(self.sizes[image], self.clip)

    def add_row(self, row: Row, border: Border, where: str) -> None:
        """Add an object, and say where it is if it was clipped."""
        if border.clipped:
            width, height = border.size
            over = f"{where}: exceeds its image, which is {width}x{height}: it is clipped"
            self.add_oddity("border", over, len(self.rows))
        self.rows.append(row)

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
