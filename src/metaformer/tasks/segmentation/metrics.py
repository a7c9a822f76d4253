"""Intersection over union: which pixels are taken for which class."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from metaformer.distributed import all_reduce_sum
from metaformer.errors import DataError

BLOCK = 1 << 16
"""Pixels counted at once: few enough to stay in the processor's cache."""


@dataclass(frozen=True)
class ClassIoU:
    """How the pixels of one class fared."""

    name: str
    pixels: int
    """Labeled pixels of the class."""
    correct: int
    """Those of them that were recognized: the intersection."""
    predicted: int
    """Labeled pixels that were taken for the class."""

    @property
    def union(self) -> int:
        """Pixels that are of the class, or are taken for it."""
        return self.pixels + self.predicted - self.correct

    @property
    def iou(self) -> float | None:
        """Intersection over union; None for a class that is neither there nor predicted."""
        return self.correct / self.union if self.union else None

    @property
    def accuracy(self) -> float | None:
        """The share of the class's pixels that were recognized; None of no pixels."""
        return self.correct / self.pixels if self.pixels else None

    @property
    def precision(self) -> float | None:
        """The share of the pixels taken for the class that are of it; None of none."""
        return self.correct / self.predicted if self.predicted else None


@dataclass(frozen=True)
class SegmentationFigures:
    """What a confusion matrix of pixels comes to; each mean is 0 where there is nothing to average."""

    miou: float
    """Mean IoU of the classes that are there or predicted."""
    aacc: float
    """Share of the labeled pixels whose class is right."""
    macc: float
    """Mean over the classes that are there of the share of their pixels that is recognized."""
    pixels: int
    """Labeled pixels."""
    per_class: tuple[ClassIoU, ...]


class SegmentationCount:
    """Counts of pixels by true class (row) and predicted class (column).

    Args:
        classes: how many there are.
    """

    def __init__(self, classes: int) -> None:
        self._counts = torch.zeros(classes, classes, dtype=torch.int64)

    def update(self, predicted: Tensor, labels: Tensor, ignore: int = 255) -> Tensor:
        """Count label maps of one size, of any integers; give what was added, as a matrix (K, K).

        Args:
            predicted: classes as the network sees them.
            labels: true classes.
            ignore: the label of pixels that do not count.

        Raises:
            DataError: the sizes differ, or a value is no class.
        """
        added = count_pixels(predicted, labels, len(self._counts), ignore)
        self._counts += added
        return added

    def result(self) -> Tensor:
        """The matrix (K, K) over all ranks, int64."""
        return all_reduce_sum(self._counts)


def count_pixels(predicted: Tensor, labels: Tensor, classes: int, ignore: int = 255) -> Tensor:
    """Confusion matrix (K, K) of two label maps of one size, int64; see `SegmentationCount.update`."""
    if predicted.shape != labels.shape:
        raise DataError(f"the labels are {_size(labels)}, the prediction is {_size(predicted)}")
    counts = torch.zeros(classes * classes + 1, dtype=torch.int64)
    guesses, truths = predicted.cpu().reshape(-1).split(BLOCK), labels.cpu().reshape(-1).split(BLOCK)
    for guess, truth in zip(guesses, truths, strict=True):
        if len(truth):
            counts += _count_block(guess.long(), truth.long(), classes, ignore)
    return counts[:-1].view(classes, classes)


def _count_block(guess: Tensor, truth: Tensor, classes: int, ignore: int) -> Tensor:
    """Counts by pair of classes, and in a last place of what is ignored: cheaper than to take that out."""
    ignored = truth == ignore
    kept = truth.masked_fill(ignored, 0)
    for what, values in (("prediction", guess), ("labels", kept)):
        low, high = (int(end) for end in values.aminmax())
        if low < 0 or high >= classes:
            strange = low if low < 0 else high
            raise DataError(f"{what}: {strange} is no class; there are {classes}, from 0")
    pairs = kept.mul_(classes).add_(guess).masked_fill_(ignored, classes * classes)
    return torch.bincount(pairs, minlength=classes * classes + 1)


def figures(confusion: Tensor, names: Sequence[str]) -> SegmentationFigures:
    """The figures of a confusion matrix (K, K) of pixels.

    As in mmsegmentation a class that is neither there nor predicted is left out of the mean IoU, and one that
    is not there out of the mean accuracy.
    """
    counts = confusion.numpy()
    correct, pixels, predicted = counts.diagonal(), counts.sum(axis=1), counts.sum(axis=0)
    rows = zip(names, pixels.tolist(), correct.tolist(), predicted.tolist(), strict=True)
    return SegmentationFigures(
        miou=_mean(correct, pixels + predicted - correct),
        aacc=int(correct.sum()) / max(int(pixels.sum()), 1),
        macc=_mean(correct, pixels),
        pixels=int(pixels.sum()),
        per_class=tuple(ClassIoU(*row) for row in rows),
    )


def mean_iou(confusion: Tensor) -> float | None:
    """Mean IoU of a confusion matrix (K, K) of pixels; None where no pixel counts."""
    found = figures(confusion, [""] * len(confusion))
    return found.miou if found.pixels else None


def _mean(parts: NDArray[np.int64], wholes: NDArray[np.int64]) -> float:
    """Mean of the shares that are of something."""
    there = wholes > 0
    return float((parts[there] / wholes[there]).mean()) if there.any() else 0.0


def _size(label_map: Tensor) -> str:
    return "×".join(str(side) for side in label_map.shape)
