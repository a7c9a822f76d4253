"""Which class is taken for which."""

from dataclasses import dataclass

import torch
from torch import Tensor

from metaformer.distributed import all_reduce_sum


@dataclass(frozen=True)
class ClassAccuracy:
    """How one class fared."""

    name: str
    images: int
    """Images of the class."""
    correct: int
    """Those of them that were recognized."""
    predicted: int
    """Images that were taken for the class."""

    @property
    def accuracy(self) -> float:
        """Recall: the share of the class's images that were recognized; 0 of no images."""
        return self.correct / max(self.images, 1)

    @property
    def precision(self) -> float:
        """The share of the images taken for the class that were of it; 0 of none."""
        return self.correct / max(self.predicted, 1)


class Confusion:
    """Counts of images by true class (row) and predicted class (column)."""

    def __init__(self, classes: int) -> None:
        self._counts = torch.zeros(classes, classes, dtype=torch.int64)

    def update(self, predicted: Tensor, labels: Tensor) -> None:
        """Count a batch: predicted and true classes, both (B,)."""
        classes = len(self._counts)
        pairs = labels.cpu() * classes + predicted.cpu()
        self._counts += torch.bincount(pairs, minlength=classes * classes).view(classes, classes)

    def result(self) -> Tensor:
        """The matrix (K, K) over all ranks, int64."""
        return all_reduce_sum(self._counts)


def per_class(confusion: Tensor, names: list[str]) -> list[ClassAccuracy]:
    """The table of a confusion matrix (K, K), a row a class."""
    rows, hits, columns = (
        confusion.sum(dim=1).tolist(),
        confusion.diag().tolist(),
        confusion.sum(dim=0).tolist(),
    )
    return [ClassAccuracy(*row) for row in zip(names, rows, hits, columns, strict=True)]
