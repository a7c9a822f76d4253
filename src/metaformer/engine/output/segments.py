"""Where the classes of a label map lie: areas, boxes, run lengths."""

from collections.abc import Iterator
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


def run_lengths(label_map: NDArray[np.integer[Any]]) -> Iterator[tuple[int, list[int]]]:
    """Each class that a label map holds, with COCO's uncompressed run lengths of its mask.

    They go down the columns and take turns, beginning with the pixels before the first of the class.
    """
    flat = label_map.ravel(order="F")
    starts = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1])
    ends = np.concatenate([starts[1:], [flat.size]])
    of = flat[starts]
    order = np.argsort(of, kind="stable")
    found, first = np.unique(of[order], return_index=True)
    for index, runs in zip(found.tolist(), np.split(order, first[1:]), strict=True):
        turns = np.stack([starts[runs], ends[runs]], axis=1).ravel()
        counts = np.diff(turns, prepend=0).tolist()
        rest = flat.size - int(turns[-1])
        yield int(index), [*counts, rest] if rest else counts
