"""Segmentation metrics: confusion matrix of pixels, intersection over union, pixel accuracy."""

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


class ConfusionMatrix:
    """Confusion matrix of pixels: true class by row, predicted class by column.

    Args:
        classes: number of classes.
    """

    def __init__(self, classes: int) -> None:
        self._counts = torch.zeros(classes, classes, dtype=torch.int64)

    def update(self, predicted: Tensor, labels: Tensor, ignore_index: int = 255) -> Tensor:
        """Count two label maps of one size; returns what was added, see `confusion_matrix`."""
        added = confusion_matrix(predicted, labels, len(self._counts), ignore_index)
        self._counts += added
        return added

    def result(self) -> Tensor:
        """The matrix (K, K) over all ranks, int64."""
        return all_reduce_sum(self._counts)


def confusion_matrix(predicted: Tensor, labels: Tensor, classes: int, ignore_index: int = 255) -> Tensor:
    """Confusion matrix (K, K) int64 of predicted and true label maps of one size and any integer type.

    Args:
        predicted: predicted classes.
        labels: true classes.
        classes: number of classes.
        ignore_index: label of ignored pixels.

    Raises:
        DataError: the sizes differ, or a value is not a class.
    """
    if predicted.shape != labels.shape:
        raise DataError(f"the labels are {_size(labels)}, the prediction is {_size(predicted)}")
    counts = torch.zeros(classes * classes + 1, dtype=torch.int64)
    blocks = zip(predicted.cpu().reshape(-1).split(BLOCK), labels.cpu().reshape(-1).split(BLOCK), strict=True)
    for guess, truth in blocks:
        if len(truth):
            counts += _count_block(guess.long(), truth.long(), classes, ignore_index)
    return counts[:-1].view(classes, classes)


def _count_block(guess: Tensor, truth: Tensor, classes: int, ignore_index: int) -> Tensor:
    """Counts (K·K + 1) at index truth · K + guess; ignored pixels are counted last instead of removed."""
    ignored = truth == ignore_index
    truth = truth.masked_fill(ignored, 0)
    for source, values in (("prediction", guess), ("labels", truth)):
        low, high = (int(end) for end in values.aminmax())
        if low < 0 or high >= classes:
            unknown = low if low < 0 else high
            raise DataError(f"{source}: {unknown} is not a class; there are {classes}, from 0")
    pairs = truth.mul_(classes).add_(guess).masked_fill_(ignored, classes * classes)
    return torch.bincount(pairs, minlength=classes * classes + 1)


@dataclass(frozen=True)
class ClassIoU:
    """Pixel counts and metrics of one class."""

    name: str
    pixels: int
    """Labeled pixels of the class."""
    correct: int
    """Intersection: pixels of the class that are predicted as such."""
    predicted: int
    """Labeled pixels that are predicted as the class."""

    @property
    def union(self) -> int:
        """Pixels that are of the class or predicted as such."""
        return self.pixels + self.predicted - self.correct

    @property
    def iou(self) -> float | None:
        """Intersection over union; None for a class that neither occurs nor is predicted."""
        return self.correct / self.union if self.union else None

    @property
    def accuracy(self) -> float | None:
        """Recall; None for a class without pixels."""
        return self.correct / self.pixels if self.pixels else None

    @property
    def precision(self) -> float | None:
        """Precision; None for a class that is never predicted."""
        return self.correct / self.predicted if self.predicted else None


@dataclass(frozen=True)
class SegmentationFigures:
    """Metrics of a confusion matrix, defined as in mmsegmentation; means over no class are 0."""

    miou: float
    """Mean IoU over the classes that occur or are predicted."""
    aacc: float
    """Accuracy over all labeled pixels."""
    macc: float
    """Mean accuracy over the classes that occur."""
    pixels: int
    """Labeled pixels."""
    per_class: tuple[ClassIoU, ...]


def figures(confusion: Tensor, names: Sequence[str]) -> SegmentationFigures:
    """Compute the metrics of a confusion matrix (K, K)."""
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
    """Mean IoU of a confusion matrix (K, K); None without labeled pixels."""
    found = figures(confusion, [""] * len(confusion))
    return found.miou if found.pixels else None


def _mean(parts: NDArray[np.int64], wholes: NDArray[np.int64]) -> float:
    """Mean ratio over the classes with a nonzero denominator."""
    nonzero = wholes > 0
    return float((parts[nonzero] / wholes[nonzero]).mean()) if nonzero.any() else 0.0


def _size(label_map: Tensor) -> str:
    return "×".join(str(side) for side in label_map.shape)
