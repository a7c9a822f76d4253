"""One object of a picture, as a data set describes it."""

from dataclasses import dataclass
from typing import TypedDict


class RunLengths(TypedDict):
    """A mask as COCO writes it, run lengths down the columns."""

    size: list[int]
    """Height and width."""
    counts: list[int]
    """How many pixels lie outside, inside, outside and so on."""


Segmentation = list[list[float]] | RunLengths
"""Polygons, each x, y, x, y and so on, whose union is the object; or run lengths."""


@dataclass(frozen=True, slots=True)
class Instance:
    """An object: where it is and what."""

    box: tuple[float, float, float, float]
    """Left, top, right and bottom in pixels, within the picture."""
    label: int
    """Its class, 0 to K − 1."""
    crowd: bool
    """Many objects under one box, or one that is too hard to tell: not learned, and not counted as missed."""
    id: int
    """As the data set numbers it; counted from 1 where it does not."""
    area: float
    """In square pixels, by which small, medium and large objects are told apart."""
    segmentation: Segmentation | None = None
    """Its outline, where masks were asked for."""
