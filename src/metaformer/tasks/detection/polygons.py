"""Polygons to masks: the same pixels as pycocotools', without its native code."""

from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float64]
"""(K, 2): x and y."""
_FINER: Final = 5
"""How many times as fine the grid is on which outlines are drawn."""
_BLOCK: Final = 1 << 20
"""Points of an outline that are drawn at once."""


def polygons_mask(polygons: Sequence[Points], size: tuple[int, int]) -> NDArray[np.bool_]:
    """Fill polygons, which may overlap, in an image of this height and width: (H, W)."""
    mask = np.zeros(size[0] * size[1], dtype=np.bool_)
    for points in polygons:
        _fill(mask, points, size)
    return mask.reshape(size, order="F")


def _fill(mask: NDArray[np.bool_], points: Points, size: tuple[int, int]) -> None:
    """Mark a polygon's pixels, counted down the columns: those behind an odd number of crossings."""
    crossings = np.concatenate([_crossings(*edge, size) for edge in _edges(points)])
    if not len(crossings):
        return
    first, last = int(crossings.min()), int(crossings.max())
    inside = np.cumsum(np.bincount(crossings - first)) % 2 == 1
    mask[first:last] |= inside[:-1]
    mask[last:] |= inside[-1]


def _edges(points: Points) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Starts and ends of the edges on the finer grid, as many at once as are drawn at once."""
    starts = (points * _FINER + 0.5).astype(np.int64)
    ends = np.roll(starts, -1, axis=0)
    lengths = np.abs(ends - starts).max(axis=1) + 1
    blocks = np.cumsum(lengths) // _BLOCK
    for which in np.split(np.arange(len(starts)), np.flatnonzero(np.diff(blocks)) + 1):
        yield starts[which], ends[which]


def _crossings(starts: NDArray[Any], ends: NDArray[Any], size: tuple[int, int]) -> NDArray[np.int64]:
    """Where edges cross the middles of columns: the pixels, counted down the columns, below the crossings."""
    height, width = size
    x, y, edge = _drawn(starts, ends)
    steps = np.flatnonzero((x[1:] != x[:-1]) & (edge[1:] == edge[:-1]))
    left = np.minimum(x[steps], x[steps + 1])
    column = left // _FINER
    middle = (left % _FINER == _FINER // 2) & (column >= 0) & (column < width)
    steps, column = steps[middle], column[middle]
    top = np.minimum(y[steps], y[steps + 1])
    row = np.ceil(np.clip((top + 0.5) / _FINER - 0.5, 0, height)).astype(np.int64)
    return column * height + row


def _drawn(starts: NDArray[Any], ends: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """All points on edges, and the edge of each; one coordinate takes every value, the other is rounded.

    Edges are drawn from their lower end on that coordinate, as the rounding depends on it.
    """
    spans = np.abs(ends - starts)
    along = np.where(spans[:, 0] >= spans[:, 1], 0, 1)
    rows = np.arange(len(starts))
    span = spans[rows, along]
    flip = starts[rows, along] > ends[rows, along]
    low = np.where(flip[:, None], ends, starts)
    high = np.where(flip[:, None], starts, ends)
    slope = (high - low)[rows, 1 - along] / np.maximum(span, 1)
    edge = np.repeat(rows, span + 1)
    step = np.arange(len(edge)) - np.repeat(np.cumsum(span + 1) - (span + 1), span + 1)
    step = np.where(flip[edge], span[edge] - step, step)
    even = low[edge, along[edge]] + step
    rounded = (low[edge, 1 - along[edge]] + slope[edge] * step + 0.5).astype(np.int64)
    return np.where(along[edge] == 0, even, rounded), np.where(along[edge] == 0, rounded, even), edge
