"""COCO's figures of a detector, as a report holds them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_ALL = 0
"""Where the figures of objects of all sizes are; small, medium and large ones follow."""


@dataclass(frozen=True)
class ClassAP:
    """How the objects of one class fared."""

    name: str
    objects: int
    """Annotated ones; crowds do not count."""
    found: int
    """What was taken for one of the class, however unsure."""
    ap: float | None
    """Average precision over overlaps (IoU) from 0.5 to 0.95; None of no objects, as all of these."""
    ap50: float | None
    """At an overlap of 0.5."""
    ap75: float | None
    """At an overlap of 0.75."""
    ar: float | None
    """Share of the objects that is found, over the same overlaps as `ap`."""


@dataclass(frozen=True)
class DetectionFigures:
    """COCO's twelve figures; None where COCO says −1, of no objects."""

    ap: float | None
    """Average precision over classes and overlaps (IoU) from 0.5 to 0.95."""
    ap50: float | None
    """At an overlap of 0.5."""
    ap75: float | None
    """At an overlap of 0.75."""
    ap_small: float | None
    """Of objects of less than 32² pixels."""
    ap_medium: float | None
    ap_large: float | None
    """Of objects of more than 96² pixels."""
    ar_1: float | None
    """Share of the objects that the surest detection of each class and picture finds."""
    ar_10: float | None
    ar_100: float | None
    ar_small: float | None
    ar_medium: float | None
    ar_large: float | None
    objects: int
    """Annotated ones; crowds do not count."""
    per_class: tuple[ClassAP, ...]

    @property
    def stats(self) -> tuple[float | None, ...]:
        """The twelve in COCO's order."""
        ap = (self.ap, self.ap50, self.ap75, self.ap_small, self.ap_medium, self.ap_large)
        return (*ap, self.ar_1, self.ar_10, self.ar_100, self.ar_small, self.ar_medium, self.ar_large)


def figures(
    precision: NDArray[Any],
    recall: NDArray[Any],
    names: Sequence[str],
    objects: Sequence[int],
    found: Sequence[int],
) -> DetectionFigures:
    """The figures of COCO's arrays, in which −1 stands for what does not exist.

    Args:
        precision: by overlap, recall, class, size of the objects, and most detections (1, 10, 100).
        recall: the same without the second.
        names: the classes.
        objects: how many of each are annotated.
        found: how many of each were found.
    """
    whole, reached = precision[..., _ALL, -1], recall[..., _ALL, -1]
    rows = zip(names, objects, found, strict=True)
    return DetectionFigures(
        ap=_mean(whole),
        ap50=_mean(whole[0]),
        ap75=_mean(whole[5]),
        ap_small=_mean(precision[..., 1, -1]),
        ap_medium=_mean(precision[..., 2, -1]),
        ap_large=_mean(precision[..., 3, -1]),
        ar_1=_mean(recall[..., _ALL, 0]),
        ar_10=_mean(recall[..., _ALL, 1]),
        ar_100=_mean(reached),
        ar_small=_mean(recall[..., 1, -1]),
        ar_medium=_mean(recall[..., 2, -1]),
        ar_large=_mean(recall[..., 3, -1]),
        objects=sum(objects),
        per_class=tuple(
            ClassAP(
                *row,
                ap=_mean(whole[..., k]),
                ap50=_mean(whole[0, :, k]),
                ap75=_mean(whole[5, :, k]),
                ar=_mean(reached[:, k]),
            )
            for k, row in enumerate(rows)
        ),
    )


def _mean(values: NDArray[Any]) -> float | None:
    there = values[values > -1]
    return float(np.mean(there)) if there.size else None
