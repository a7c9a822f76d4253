"""Annotated objects of a split, packed into a few arrays that workers share, and masks of their outlines."""

import copy
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final, NamedTuple, TypedDict

import numpy as np
from numpy.typing import NDArray

from metaformer.data.rle import decode, fill

_NONE, _POLYGONS, _RUNS = range(3)
_FINER: Final = 5
"""Subpixels per pixel of the grid on which polygons are drawn, as in pycocotools."""
_BLOCK: Final = 1 << 20
"""Points of a polygon's edges that are drawn at once."""


class RunLengths(TypedDict):
    """COCO's uncompressed RLE of a mask."""

    size: list[int]
    """Height and width."""
    counts: list[int]
    """Lengths of runs outside the mask, inside, outside and so on, down the columns."""


Segmentation = list[list[float]] | RunLengths
"""Polygons x, y, x, y …, whose union is the object; or run lengths."""


class Row(NamedTuple):
    """One valid object, on its way into an `InstanceTable`."""

    image: int
    """Index of its image."""
    id: int
    label: int
    box: tuple[float, float, float, float]
    """Left, top, width and height, as in the file."""
    crowd: bool
    area: float
    polygons: Sequence["array[float]"] = ()
    """Numbers x, y, x, y … of each polygon."""
    runs: NDArray[np.int64] | None = None
    """Run lengths, in place of polygons."""


@dataclass(frozen=True, slots=True)
class Instance:
    """An annotated object."""

    box: tuple[float, float, float, float]
    """Left, top, right and bottom in pixels, clipped to the image."""
    label: int
    """Its class, from 0."""
    crowd: bool
    """COCO's `iscrowd`, VOC's `difficult`: not trained, and not counted as missed."""
    id: int
    """The data set's own number; counted from 1 where it has none."""
    area: float
    """In square pixels; decides whether it counts as small, medium or large."""
    segmentation: Segmentation | None = None
    """Its outline, if the data set was opened with masks."""


class InstanceTable:
    """Objects of all images.

    Args:
        rows: the objects in any order; they are released one by one.
        sizes: width and height of each image (N, 2).
    """

    def __init__(self, rows: list[Row | None], sizes: NDArray[np.int32]) -> None:
        self._sizes = sizes
        images, ids, labels = array("i"), array("q"), array("i")
        boxes, areas, numbers = array("d"), array("d"), array("d")
        crowd, forms = bytearray(), bytearray()
        # The outlines of all objects are one array of numbers: `ends` bounds the parts of outlines (polygons,
        # or one list of run lengths) in `numbers`, and `parts` bounds the parts of each object in `ends`.
        parts, ends = array("q", [0]), array("q", [0])
        for index, row in enumerate(rows):
            assert row is not None
            rows[index] = None
            images.append(row.image)
            ids.append(row.id)
            labels.append(row.label)
            boxes.extend(row.box)
            areas.append(row.area)
            crowd.append(row.crowd)
            forms.append(_POLYGONS if row.polygons else _NONE if row.runs is None else _RUNS)
            for polygon in row.polygons:
                numbers.extend(polygon)
                ends.append(len(numbers))
            if row.runs is not None:
                numbers.frombytes(row.runs.astype(np.float64).tobytes())
                ends.append(len(numbers))
            parts.append(len(ends) - 1)
        self.images: NDArray[np.int32] = np.frombuffer(images, dtype=np.int32)
        """Index of the image of each object (N,)."""
        self.ids: NDArray[np.int64] = np.frombuffer(ids, dtype=np.int64)
        self.labels: NDArray[np.int32] = np.frombuffer(labels, dtype=np.int32)
        self.crowd: NDArray[np.bool_] = np.frombuffer(crowd, dtype=np.bool_)
        self.areas: NDArray[np.float64] = np.frombuffer(areas, dtype=np.float64)
        self.boxes: NDArray[np.float64] = np.frombuffer(boxes, dtype=np.float64).reshape(-1, 4)
        """Left, top, width and height of each (N, 4), as in the file."""
        self._forms = np.frombuffer(forms, dtype=np.uint8)
        self._numbers = np.frombuffer(numbers, dtype=np.float64)
        bounds = np.frombuffer(parts, dtype=np.int64)
        self._parts = np.stack([bounds[:-1], bounds[1:]], axis=1)
        self._ends = np.frombuffer(ends, dtype=np.int64)
        self._index()

    def _index(self) -> None:
        """Sort the objects by image."""
        self._order = np.argsort(self.images, kind="stable")
        self._starts = np.searchsorted(self.images[self._order], np.arange(len(self._sizes) + 1))

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, wanted: NDArray[np.bool_]) -> "InstanceTable":
        """The objects of the images that are wanted (N,), which are numbered anew; outlines are shared."""
        part, rows = copy.copy(self), wanted[self.images]
        for name in ("ids", "labels", "crowd", "areas", "boxes", "_forms", "_parts"):
            setattr(part, name, getattr(self, name)[rows])
        part.images = (np.cumsum(wanted, dtype=np.int32) - 1)[self.images[rows]]
        part._sizes = self._sizes[wanted]
        part._index()
        return part

    @property
    def outlined(self) -> NDArray[np.bool_]:
        """Which objects have an outline (N,)."""
        return self._forms != _NONE

    def of(self, image: int) -> NDArray[np.int64]:
        """Rows of an image's objects, in the order of the file."""
        return self._order[self._starts[image] : self._starts[image + 1]]

    def corners(self, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """Left, top, right and bottom of boxes, clipped to their images: (N, 4)."""
        boxes, limits = self.boxes[rows], np.tile(self._sizes[self.images[rows]], 2)
        return np.clip(np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1), 0, limits)

    def masks(self, rows: NDArray[np.int64], size: tuple[int, int]) -> NDArray[np.bool_]:
        """Masks (N, H, W) of objects of one image, of this height and width."""
        masks = np.zeros((len(rows), *size), dtype=np.bool_)
        for mask, row in zip(masks, rows.tolist(), strict=True):
            parts = self._parts_of(row)
            if self._forms[row] == _POLYGONS:
                mask[:] = polygons_mask([part.reshape(-1, 2) for part in parts], size)
            elif self._forms[row] == _RUNS:
                mask[:] = fill(parts[0].astype(np.int64), size)
        return masks

    def instance(self, row: int) -> Instance:
        """One object."""
        left, top, right, bottom = self.corners(np.array([row]))[0].tolist()
        return Instance(
            (left, top, right, bottom),
            int(self.labels[row]),
            bool(self.crowd[row]),
            int(self.ids[row]),
            float(self.areas[row]),
            self.segmentation(row),
        )

    def segmentation(self, row: int) -> Segmentation | None:
        """Outline of one object."""
        parts = self._parts_of(row)
        if self._forms[row] == _POLYGONS:
            return [part.tolist() for part in parts]
        if self._forms[row] == _RUNS:
            width, height = self._sizes[self.images[row]].tolist()
            return {"size": [height, width], "counts": parts[0].astype(np.int64).tolist()}
        return None

    def _parts_of(self, row: int) -> list[NDArray[np.float64]]:
        first, last = self._parts[row]
        ends = self._ends[first : last + 1]
        return [self._numbers[start:end] for start, end in pairwise(ends)]


def segmentation_mask(segmentation: Segmentation, size: tuple[int, int]) -> NDArray[np.bool_]:
    """Mask (H, W) of an outline in an image of this height and width."""
    if isinstance(segmentation, list):
        polygons = [np.asarray(polygon, np.float64).reshape(-1, 2) for polygon in segmentation]
        return polygons_mask(polygons, size)
    return decode(segmentation)


def polygons_mask(polygons: Sequence[NDArray[np.float64]], size: tuple[int, int]) -> NDArray[np.bool_]:
    """Mask (H, W) of the union of polygons, each (K, 2): x and y; the same pixels as pycocotools'."""
    mask = np.zeros(size[0] * size[1], dtype=np.bool_)
    for points in polygons:
        _fill(mask, points, size)
    return mask.reshape(size, order="F")


def _fill(mask: NDArray[np.bool_], points: NDArray[np.float64], size: tuple[int, int]) -> None:
    """Set the pixels of a polygon, numbered down the columns: those after an odd number of crossings."""
    crossings = np.concatenate([_crossings(*edges, size) for edges in _edges(points)])
    if not len(crossings):
        return
    first, last = int(crossings.min()), int(crossings.max())
    inside = np.cumsum(np.bincount(crossings - first)) % 2 == 1
    mask[first:last] |= inside[:-1]
    mask[last:] |= inside[-1]


def _edges(points: NDArray[np.float64]) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Starts and ends (N, 2) of the edges in subpixels, `_BLOCK` points at a time."""
    starts = (points * _FINER + 0.5).astype(np.int64)
    ends = np.roll(starts, -1, axis=0)
    lengths = np.abs(ends - starts).max(axis=1) + 1
    blocks = np.cumsum(lengths) // _BLOCK
    for which in np.split(np.arange(len(starts)), np.flatnonzero(np.diff(blocks)) + 1):
        yield starts[which], ends[which]


def _crossings(starts: NDArray[Any], ends: NDArray[Any], size: tuple[int, int]) -> NDArray[np.int64]:
    """Where edges cross the centers of columns: the number of the first pixel below each crossing."""
    height, width = size
    x, y, edge = _points(starts, ends)
    steps = np.flatnonzero((x[1:] != x[:-1]) & (edge[1:] == edge[:-1]))
    left = np.minimum(x[steps], x[steps + 1])
    column = left // _FINER
    centered = (left % _FINER == _FINER // 2) & (column >= 0) & (column < width)
    steps, column = steps[centered], column[centered]
    top = np.minimum(y[steps], y[steps + 1])
    row = np.ceil(np.clip((top + 0.5) / _FINER - 0.5, 0, height)).astype(np.int64)
    return column * height + row


def _points(starts: NDArray[Any], ends: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """All subpixels x and y on edges, and the edge of each: Bresenham along the longer coordinate.

    Edges are drawn from their lower end on that coordinate, as pycocotools rounds them.
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
    step = np.arange(len(edge)) - np.repeat(np.cumsum(span + 1) - (span + 1), span + 1)  # 0 … span of each
    step = np.where(flip[edge], span[edge] - step, step)
    longer = low[edge, along[edge]] + step
    shorter = (low[edge, 1 - along[edge]] + slope[edge] * step + 0.5).astype(np.int64)
    return np.where(along[edge] == 0, longer, shorter), np.where(along[edge] == 0, shorter, longer), edge
