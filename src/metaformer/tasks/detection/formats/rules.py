"""What an object's description must be, whatever file it stands in."""

import math
from collections.abc import Sequence
from typing import Any, Final

from metaformer.data.image import MAX_PIXELS

SLACK: Final = 1
"""Pixels by which boxes and outlines may reach beyond their image, as roundings do; boxes are cut."""
LEAST: Final = 0.01
"""Pixels: what is narrower has no width."""
BOXES_DO: Final = "detect.head retinanet or faster_rcnn learns from boxes alone"
"""What to do where there are no outlines."""
Box = tuple[float, float, float, float]


class BadAnnotation(Exception):
    """An object that cannot be used; its reader adds where it stands."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(kind, reason)
        self.kind, self.reason = kind, reason


def check_box(box: Box, size: tuple[int, int]) -> None:
    """Check a box: left, top, width and height, in an image of this width and height.

    Raises:
        BadAnnotation: it is none, or does not lie in the image.
    """
    left, top, width, height = box
    right, bottom = left + width, top + height
    if (
        min(right, size[0]) - max(left, 0) >= LEAST
        and min(bottom, size[1]) - max(top, 0) >= LEAST
        and left >= -SLACK
        and top >= -SLACK
        and right <= size[0] + SLACK
        and bottom <= size[1] + SLACK
    ):
        return
    if not all(map(math.isfinite, box)):
        raise BadAnnotation("box", "holds a number that is not finite")
    if width < LEAST or height < LEAST:
        raise BadAnnotation("box", f"is {width:g} wide and {height:g} high: both must be above 0")
    raise BadAnnotation("box", f"reaches outside its image, which is {size[0]}x{size[1]}")


def check_polygon(numbers: Sequence[float], size: tuple[int, int]) -> None:
    """Check an outline: x, y, x, y and so on, in an image of this width and height.

    Raises:
        BadAnnotation: it is none, or does not lie in the image.
    """
    if len(numbers) % 2 or len(numbers) < 6:
        few = f"a polygon of {len(numbers)} numbers: x and y of at least 3 points are needed"
        raise BadAnnotation("segmentation", few)
    if not math.isfinite(sum(numbers)):
        raise BadAnnotation("segmentation", "a polygon holds a number that is not finite")
    x, y = numbers[0::2], numbers[1::2]
    if min(x) < -SLACK or min(y) < -SLACK or max(x) > size[0] + SLACK or max(y) > size[1] + SLACK:
        outside = f"a polygon reaches outside its image, which is {size[0]}x{size[1]}"
        raise BadAnnotation("segmentation", outside)


def check_size(width: Any, height: Any) -> tuple[int, int]:
    """Check an image's size.

    Raises:
        BadAnnotation: it is none, or more than is read.
    """
    if not (is_number(width) and is_number(height) and 0 < width < MAX_PIXELS and 0 < height < MAX_PIXELS):
        raise BadAnnotation("image", f"width {width!r:.40} and height {height!r:.40} must be above 0")
    if int(width) != width or int(height) != height:
        raise BadAnnotation("image", f"width {width!r:.40} and height {height!r:.40} must be whole numbers")
    if width * height > MAX_PIXELS:
        raise BadAnnotation("image", f"{width}x{height} is more than the {MAX_PIXELS:,} pixels allowed")
    return int(width), int(height)


def is_number(value: Any) -> bool:
    """Tell numbers from what JSON holds else, truth values among them."""
    return type(value) is int or type(value) is float
