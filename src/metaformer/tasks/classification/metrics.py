"""Top-k accuracy."""

import json
import re
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from metaformer.distributed import all_reduce_sum
from metaformer.errors import DataError


class TopK:
    """Share of the images whose class is among the k highest scores."""

    def __init__(self, ks: tuple[int, ...] = (1, 5)) -> None:
        self.ks = ks
        self._hits = torch.zeros(len(ks), dtype=torch.int64)
        self._images = torch.zeros((), dtype=torch.int64)

    def update(self, scores: Tensor, labels: Tensor) -> None:
        """Count a batch: scores (B, K), labels (B,); k beyond K counts as K."""
        ranked = scores.topk(min(max(self.ks), scores.shape[1]), dim=1).indices
        hit = ranked == labels[:, None]  # (B, max k)
        self._hits += torch.stack([hit[:, :k].any(dim=1).sum() for k in self.ks]).to(self._hits)
        self._images += len(labels)

    def result(self) -> dict[int, float]:
        """Accuracy by k, over all ranks; 0 of no images."""
        hits, images = all_reduce_sum(self._hits), int(all_reduce_sum(self._images))
        return {k: int(hit) / max(images, 1) for k, hit in zip(self.ks, hits, strict=True)}


IMAGENET_NAME = re.compile(r"ILSVRC2012_val_(\d{8})\.")


def read_real_labels(path: str | Path, images: Sequence[str | Path], classes: int) -> list[frozenset[int]]:
    """Accepted classes of each image, from a JSON list in the order of the images' file names.

    Raises:
        DataError: not such a list, another number of images, or a class that does not exist.
    """
    try:
        labels = json.loads(Path(path).read_text())
        accepted = [frozenset(int(label) for label in entry) for entry in labels]
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{path}: not a JSON list of lists of class numbers ({error})") from error
    places = _places([Path(image).name for image in images], len(accepted), path)
    strange = sorted({label for place in places for label in accepted[place] if not 0 <= label < classes})
    if strange:
        raise DataError(f"{path}: class {strange[0]} does not exist; there are {classes} classes, from 0")
    return [accepted[place] for place in places]


def _places(names: list[str], entries: int, path: str | Path) -> list[int]:
    """Where each image stands in the list: by ImageNet's own numbers, else by the rank of its name."""
    numbers = [IMAGENET_NAME.match(name) for name in names]
    if all(numbers):
        places = [int(number[1]) - 1 for number in numbers if number]
        if max(places, default=0) < entries:
            return places
    elif len(names) == entries:
        order = sorted(range(len(names)), key=names.__getitem__)
        places = [0] * len(names)
        for place, image in enumerate(order):
            places[image] = place
        return places
    raise DataError(f"{path}: holds labels of {entries} images, the data set has {len(names)}")


class RealAccuracy:
    """Share of images whose best class is an accepted one; images without accepted classes do not count."""

    def __init__(self, accepted: Sequence[frozenset[int]]) -> None:
        self._accepted = accepted
        self._counts = torch.zeros(2, dtype=torch.int64)

    def update(self, predicted: Tensor, indices: Tensor) -> None:
        """Count a batch: predicted classes (B,) of the images at these indices (B,)."""
        for guess, index in zip(predicted.tolist(), indices.tolist(), strict=True):
            if self._accepted[index]:
                self._counts += torch.tensor([guess in self._accepted[index], 1])

    def result(self) -> tuple[float, int]:
        """Accuracy, and the number of images that it is over, on all ranks."""
        hits, images = all_reduce_sum(self._counts).tolist()
        return hits / max(images, 1), images
