"""The objects of all images of a split, packed: a COCO-sized set is a few arrays, which workers share."""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final, NamedTuple, TypedDict

import numpy as np
from numpy.typing import NDArray

from metaformer.data.rle import fill
from metaformer.tasks.detection.polygons import polygons_mask

_NONE, _POLYGONS, _RUNS = range(3)


_NUMBERS: Final = "d"


class RunLengths(TypedDict):
    """A mask as COCO writes it, run lengths down the columns."""

    size: list[int]
    """Height and width."""
    counts: list[int]
    """How many pixels lie outside, inside, outside and so on."""


Segmentation = list[list[float]] | RunLengths
"""Polygons, each x, y, x, y and so on, whose union is the object; or run lengths."""


class Row(NamedTuple):
    """One object, checked."""

    image: int
    """Place of its image in the split."""
    id: int
    label: int
    box: tuple[float, float, float, float]
    """Left, top, width and height, as they are in the file."""
    crowd: bool
    area: float
    polygons: Sequence["array[float]"] = ()
    """Numbers x, y, x, y and so on of each."""
    runs: NDArray[np.int64] | None = None
    """Run lengths, in place of polygons."""


@dataclass(frozen=True, slots=True)
class Instance:
    """An object: where it is and what."""

    box: tuple[float, float, float, float]
    """Left, top, right and bottom in pixels, within the image."""
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


class InstanceTable:
    """Objects by image, in the order of their file.

    Args:
        rows: the objects, of any image in any order; they are let go one after another.
        sizes: width and height of each image (N, 2).
    """

    def __init__(self, rows: list[Row | None], sizes: NDArray[np.int32]) -> None:
        self._sizes = sizes
        images, ids, labels = array("i"), array("q"), array("i")
        boxes, areas, numbers = array("d"), array("d"), array(_NUMBERS)
        crowd, forms = bytearray(), bytearray()
        rings, ends = array("q", [0]), array("q", [0])  # rings of each object; end of each in `numbers`
        for place, row in enumerate(rows):
            assert row is not None
            rows[place] = None
            images.append(row.image)
            ids.append(row.id)
            labels.append(row.label)
            boxes.extend(row.box)
            areas.append(row.area)
            crowd.append(row.crowd)
            forms.append(_POLYGONS if row.polygons else _NONE if row.runs is None else _RUNS)
            for ring in row.polygons:
                numbers.extend(ring)
                ends.append(len(numbers))
            if row.runs is not None:
                numbers.frombytes(row.runs.astype(np.float64).tobytes())
                ends.append(len(numbers))
            rings.append(len(ends) - 1)
        self.labels: NDArray[np.int32] = np.frombuffer(labels, dtype=np.int32)
        self.images: NDArray[np.int32] = np.frombuffer(images, dtype=np.int32)
        """The image of each object."""
        self.crowd: NDArray[np.bool_] = np.frombuffer(crowd, dtype=np.bool_)
        self.boxes: NDArray[np.float64] = np.frombuffer(boxes, dtype=np.float64).reshape(-1, 4)
        """Left, top, width and height of each, as they are in the file."""
        self._ids, self._areas = np.frombuffer(ids, dtype=np.int64), np.frombuffer(areas, dtype=np.float64)
        self._forms = np.frombuffer(forms, dtype=np.uint8)
        self._numbers = np.frombuffer(numbers, dtype=np.float64)
        self._rings, self._ends = np.frombuffer(rings, dtype=np.int64), np.frombuffer(ends, dtype=np.int64)
        self._order = np.argsort(self.images, kind="stable")
        self._starts = np.searchsorted(self.images[self._order], np.arange(len(sizes) + 1))

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def outlined(self) -> NDArray[np.bool_]:
        """Which objects have an outline."""
        return self._forms != _NONE

    def of(self, image: int) -> NDArray[np.int64]:
        """Places in the table of an image's objects."""
        return self._order[self._starts[image] : self._starts[image + 1]]

    def corners(self, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """Left, top, right and bottom of boxes, cut at the edges of their images: (N, 4)."""
        boxes, limits = self.boxes[rows], np.tile(self._sizes[self.images[rows]], 2)
        return np.clip(np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1), 0, limits)

    def masks(self, rows: NDArray[np.int64], size: tuple[int, int]) -> NDArray[np.bool_]:
        """Draw the outlines of one image's objects: (N, H, W)."""
        masks = np.zeros((len(rows), *size), dtype=np.bool_)
        for mask, row in zip(masks, rows.tolist(), strict=True):
            parts = self._parts(row)
            if self._forms[row] == _POLYGONS:
                mask[:] = polygons_mask([part.reshape(-1, 2) for part in parts], size)
            elif self._forms[row] == _RUNS:
                mask[:] = fill(parts[0].astype(np.int64), size)
        return masks

    def instance(self, row: int) -> Instance:
        """Tell of one object."""
        left, top, right, bottom = self.corners(np.array([row]))[0].tolist()
        return Instance(
            (left, top, right, bottom),
            int(self.labels[row]),
            bool(self.crowd[row]),
            int(self._ids[row]),
            float(self._areas[row]),
            self._segmentation(row),
        )

    def _segmentation(self, row: int) -> Segmentation | None:
        parts = self._parts(row)
        if self._forms[row] == _POLYGONS:
            return [part.tolist() for part in parts]
        if self._forms[row] == _RUNS:
            width, height = self._sizes[self.images[row]].tolist()
            return {"size": [height, width], "counts": parts[0].astype(np.int64).tolist()}
        return None

    def _parts(self, row: int) -> list[NDArray[np.float64]]:
        ends = self._ends[self._rings[row] : self._rings[row + 1] + 1]
        return [self._numbers[start:end] for start, end in pairwise(ends)]
