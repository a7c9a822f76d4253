"""Where the classes of a label map lie: areas and boxes."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_BAND = 256
"""Rows looked at together: what is needed beside a large label map stays small."""


@dataclass(frozen=True)
class Segment:
    """All pixels of one class in a picture."""

    index: int
    """The class."""
    area: int
    """Pixels."""
    box: tuple[int, int, int, int]
    """Left, top, width and height of the smallest box around them."""


def find_segments(label_map: NDArray[np.integer[Any]], classes: int) -> list[Segment]:
    """The classes that a label map (H, W) holds, in the order of their numbers."""
    height, width = label_map.shape
    in_row = np.zeros((height, classes), dtype=bool)
    in_column = np.zeros((width, classes), dtype=bool)
    area = np.zeros(classes, dtype=np.int64)
    across = np.arange(width)
    for top in range(0, height, _BAND):
        band = label_map[top : top + _BAND].astype(np.int64)
        area += np.bincount(band.ravel(), minlength=classes)
        in_row[np.arange(top, top + len(band))[:, None], band] = True
        in_column[across, band] = True
    found = []
    for index in np.flatnonzero(area).tolist():
        (left, wide), (top, high) = _span(in_column[:, index]), _span(in_row[:, index])
        found.append(Segment(index, int(area[index]), (left, top, wide, high)))
    return found


def _span(marks: NDArray[np.bool_]) -> tuple[int, int]:
    """Where the first mark is, and how far it is to the last, both counted."""
    places = np.flatnonzero(marks)
    return int(places[0]), int(places[-1] - places[0]) + 1
