"""The pictures that a report of a detector shows: those it does worst on, and best."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metaformer.data.instance import Instance
from metaformer.data.polygons import polygons_mask
from metaformer.ops.coco_rle import decode, encode
from metaformer.ops.ranks import collect
from metaformer.tasks.detect_report import DetectExample, ExampleObject
from metaformer.tasks.detect_results import DetectedObjects

EXAMPLES = 6
"""Pictures of each kind, the worst and the best, that a report keeps."""
SCORE = 0.3
"""Objects that are less sure are neither counted nor shown."""
OVERLAP = 0.5
"""Least intersection over union of a box that is right."""
THUMBNAIL = 256
"""Longest side, in pixels, of the masks that a report holds."""


@dataclass
class Examples:
    """The worst and the best pictures so far."""

    worst: list[DetectExample] = field(default_factory=list)
    best: list[DetectExample] = field(default_factory=list)

    def update(self, index: int, found: DetectedObjects, truth: Sequence[Instance]) -> None:
        """Look at a picture: its place in the data set, what was found, what is annotated."""
        sure = found.filtered(SCORE)
        f1 = agreement(sure, truth)
        if f1 is None:
            return
        rank = (f1, found.path)
        low = len(self.worst) < EXAMPLES or rank < _rank(self.worst[-1])
        high = len(self.best) < EXAMPLES or rank > _rank(self.best[0])
        if low or high:
            annotated = tuple(_annotated(one, found.size) for one in truth)
            example = DetectExample(found.path, index, found.size, f1, annotated, _predicted(sure))
            self.worst = sorted([*self.worst, example], key=_rank)[:EXAMPLES]
            self.best = sorted([*self.best, example], key=_rank)[-EXAMPLES:]

    def chosen(self) -> tuple[DetectExample, ...]:
        """The worst of all ranks, then the best; none twice."""
        worst = sorted(collect(self.worst), key=_rank)[:EXAMPLES]
        best = sorted(collect(self.best), key=_rank, reverse=True)[:EXAMPLES]
        shown = {example.index for example in worst}
        return (*worst, *(example for example in best if example.index not in shown))


def agreement(found: DetectedObjects, truth: Sequence[Instance]) -> float | None:
    """F1 of the boxes of one picture, each taken for the one it covers best; crowds neither help nor harm.

    None where there is nothing to find, and nothing was found.
    """
    overlaps, inside = _overlaps(found.boxes, np.array([one.box for one in truth]).reshape(-1, 4))
    same = found.labels[:, None] == np.array([one.label for one in truth], np.int64)
    crowd = np.array([one.crowd for one in truth], bool)
    free, right, excused = ~crowd, 0, 0
    for row in range(len(found)):
        fits = np.where(same[row] & free, overlaps[row], 0.0)
        if fits.max(initial=0.0) >= OVERLAP:
            free[fits.argmax()] = False
            right += 1
        else:
            excused += bool((inside[row, crowd & same[row]] >= OVERLAP).any())
    whole = len(found) - excused + int((~crowd).sum())
    return 2 * right / whole if whole else None


def _overlaps(boxes: NDArray[Any], others: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Intersection over union (N, M), and the share of each box that lies in each other (N, M)."""
    start = np.maximum(boxes[:, None, :2], others[:, :2])
    both = (np.minimum(boxes[:, None, 2:], others[:, 2:]) - start).clip(0).prod(axis=2)
    own, its = ((some[:, 2:] - some[:, :2]).prod(axis=1) for some in (boxes, others))
    either = own[:, None] + its - both
    return both / np.where(either > 0, either, 1), both / np.where(own > 0, own, 1)[:, None]


def _predicted(found: DetectedObjects) -> tuple[ExampleObject, ...]:
    masks = [None if found.masks is None else _small(found.mask(place)) for place in range(len(found))]
    rows = zip(found.labels.tolist(), found.boxes.tolist(), found.scores.tolist(), masks, strict=True)
    return tuple(ExampleObject(label, tuple(box), score, mask=mask) for label, box, score, mask in rows)


def _annotated(one: Instance, size: tuple[int, int]) -> ExampleObject:
    outline, mask = one.segmentation, None
    if isinstance(outline, list):
        corners = [np.asarray(polygon, np.float64).reshape(-1, 2) for polygon in outline]
        mask = _small(polygons_mask(corners, (size[1], size[0])))
    elif outline is not None:
        mask = _small(decode(outline))
    return ExampleObject(one.label, one.box, crowd=one.crowd, mask=mask)


def _small(mask: NDArray[np.bool_]) -> dict[str, Any]:
    """Run lengths of a mask made small; each of its pixels is one of the mask's."""
    share = max(1.0, max(mask.shape) / THUMBNAIL)
    rows, columns = (
        ((np.arange(fewer) * 2 + 1) * side) // (2 * fewer)
        for side, fewer in ((side, max(1, round(side / share))) for side in mask.shape)
    )
    return encode(mask[rows[:, None], columns])


def _rank(example: DetectExample) -> tuple[float, str]:
    return example.f1, example.path
