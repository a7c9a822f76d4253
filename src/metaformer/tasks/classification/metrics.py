"""Classification metrics: top-k accuracy, confusion matrix, accuracy on ImageNet-ReaL."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from metaformer.data.text import read_text
from metaformer.distributed import all_reduce_sum
from metaformer.errors import DataError


class TopKAccuracy:
    """Share of images whose class is among the k highest scores."""

    def __init__(self, ks: tuple[int, ...] = (1, 5)) -> None:
        self.ks = ks
        self._hits = torch.zeros(len(ks), dtype=torch.int64)
        self._images = torch.zeros((), dtype=torch.int64)

    def update(self, scores: Tensor, labels: Tensor) -> None:
        """Count a batch: scores (B, K), labels (B,); k is at most K."""
        ranked = scores.topk(min(max(self.ks), scores.shape[1]), dim=1).indices
        hit = ranked == labels[:, None]  # (B, max k)
        self._hits += torch.stack([hit[:, :k].any(dim=1).sum() for k in self.ks]).to(self._hits)
        self._images += len(labels)

    def result(self) -> dict[int, float]:
        """Accuracy by k, over all ranks; 0 without images."""
        hits, images = all_reduce_sum(self._hits), int(all_reduce_sum(self._images))
        return {k: int(hit) / max(images, 1) for k, hit in zip(self.ks, hits, strict=True)}


class ConfusionMatrix:
    """Confusion matrix of images: true class by row, predicted class by column."""

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


@dataclass(frozen=True)
class ClassAccuracy:
    """Image counts and metrics of one class."""

    name: str
    images: int
    """Images of the class."""
    correct: int
    """Images of the class that are predicted as such."""
    predicted: int
    """Images that are predicted as the class."""

    @property
    def accuracy(self) -> float:
        """Recall; 0 for a class without images."""
        return self.correct / max(self.images, 1)

    @property
    def precision(self) -> float:
        """Precision; 0 for a class that is never predicted."""
        return self.correct / max(self.predicted, 1)


def per_class(confusion: Tensor, names: list[str]) -> list[ClassAccuracy]:
    """Metrics of each class from a confusion matrix (K, K)."""
    images, correct, predicted = confusion.sum(dim=1), confusion.diag(), confusion.sum(dim=0)
    rows = zip(names, images.tolist(), correct.tolist(), predicted.tolist(), strict=True)
    return [ClassAccuracy(*row) for row in rows]


IMAGENET_NAME = re.compile(r"ILSVRC2012_val_(\d{8})\.")


def read_real_labels(path: str | Path, images: Sequence[str | Path], classes: int) -> list[frozenset[int]]:
    """Read ImageNet-ReaL (https://arxiv.org/abs/2006.07159): the accepted classes of each image.

    Args:
        path: JSON list of lists of classes, in the order of the images' file names.
        images: the images.
        classes: number of classes.

    Raises:
        DataError: another format, another number of images, or an unknown class.
    """
    try:
        labels = json.loads(read_text(path))
        accepted = [frozenset(int(label) for label in entry) for entry in labels]
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{path}: not a JSON list of lists of classes ({error})") from error
    entries = _entry_indices([Path(image).name for image in images], len(accepted), path)
    unknown = sorted({label for entry in entries for label in accepted[entry] if not 0 <= label < classes})
    if unknown:
        raise DataError(f"{path}: class {unknown[0]} does not exist; there are {classes} classes, from 0")
    return [accepted[entry] for entry in entries]


def _entry_indices(names: list[str], count: int, path: str | Path) -> list[int]:
    """Index of each image in the list: the number in ImageNet's file names, else the rank of the name."""
    numbers = [IMAGENET_NAME.match(name) for name in names]
    if all(numbers):
        indices = [int(number[1]) - 1 for number in numbers if number]
        if max(indices, default=0) < count:
            return indices
    elif len(names) == count:
        ranks = {image: rank for rank, image in enumerate(sorted(range(count), key=names.__getitem__))}
        return [ranks[image] for image in range(count)]
    raise DataError(f"{path}: holds labels of {count} images, the data set has {len(names)}")


class RealAccuracy:
    """Share of images whose predicted class is accepted; images without accepted classes do not count."""

    def __init__(self, accepted: Sequence[frozenset[int]]) -> None:
        self._accepted = accepted
        self._counts = torch.zeros(2, dtype=torch.int64)

    def update(self, predicted: Tensor, indices: Tensor) -> None:
        """Count a batch: predicted classes (B,) and indices (B,) of the images."""
        for guess, index in zip(predicted.tolist(), indices.tolist(), strict=True):
            if self._accepted[index]:
                self._counts += torch.tensor([guess in self._accepted[index], 1])

    def result(self) -> tuple[float, int]:
        """Accuracy, and the number of images it is computed on, over all ranks."""
        hits, images = all_reduce_sum(self._counts).tolist()
        return hits / max(images, 1), images
