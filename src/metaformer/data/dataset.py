"""Map-style data set of augmented images, and the samples and batches that it yields."""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, default_collate, get_worker_info

from metaformer.color import Color
from metaformer.data.sampler import Sample, sample_seed
from metaformer.errors import DataError, MetaFormerError

BAD_SHARE: Final = 1e-3
"""Largest share of unreadable images that `on_bad_image="skip"` leaves out; more is an error."""

Item = tuple[Tensor, Any, int]
"""Image, its target (a class, a label map, objects), and its index in the source."""


class BadSample(NamedTuple):
    """An image that cannot be read."""

    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody misses
    """Index in the source."""
    reason: str
    """The error's message, which names the file."""


class Batch(NamedTuple):
    """A collated batch."""

    images: Tensor
    """(B, 3, H, W), or (B, views, 3, H, W); float32, normalized."""
    labels: Tensor
    """Classes (B,) int64, or label maps (B, H, W) of uint8 or int32; zeros where there are `targets`."""
    indices: Tensor
    """(B,) int64: indices in the source, by which errors name the images."""
    bad: tuple[BadSample, ...] = ()
    """Unreadable images that are left out."""
    targets: tuple[Any, ...] = ()
    """Targets of each image that do not fit a tensor, such as its objects; `to` moves each."""
    sizes: tuple[tuple[int, int], ...] = ()
    """Height and width of each image in a batch that is padded with 0 on the right and below."""

    def to(self, device: torch.device) -> "Batch":
        """Move the tensors to a device."""
        images, labels, indices = (part.to(device, non_blocking=True) for part in self[:3])
        targets = tuple(target.to(device, non_blocking=True) for target in self.targets)
        sizes = tuple((height, width) for height, width in self.sizes)  # pinning turned tuples into lists
        return self._replace(images=images, labels=labels, indices=indices, targets=targets, sizes=sizes)


SampleOrError = Item | BadSample | MetaFormerError


class Labels(Protocol):
    """Targets by index: a list, or a tensor with a row for each image."""

    def __getitem__(self, index: Any, /) -> Any: ...


class Source(Protocol):
    """Images by index, such as `ImageFolder`."""

    @property
    def labels(self) -> "Labels":
        """Target of each image: its class, or a tensor."""

    def __len__(self) -> int: ...

    def image(self, index: int, background: Color | None = None) -> Image.Image:
        """Image in RGB, transparent pixels blended on a color or their transparency dropped."""

    def path(self, index: int) -> str | Path:
        """Name of an image in errors and reports."""


class AugmentedDataset(Dataset[Item]):
    """Transformed images by `Sample`, bit-identical in any process and any order.

    Args:
        source: the images.
        transform: RGB image to tensor; whatever it draws from `random`, `numpy.random` or `torch`
            is a function of `seed` and the sample.
        seed: the run's seed.
        background: color that transparent pixels are blended on.
    """

    def __init__(
        self,
        source: Source,
        transform: Callable[[Image.Image], Tensor],
        seed: int = 0,
        background: Color | None = None,
    ) -> None:
        self.source, self.transform, self.seed, self.background = source, transform, seed, background

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, sample: Sample) -> Item:
        """One sample: image (3, H, W) or (views, 3, H, W), label and index.

        Raises:
            BadImage: the image cannot be read.
        """
        image = self.source.image(sample.index, self.background)
        return self.augment(image, self.source.labels[sample.index], sample)

    def augment(self, image: Image.Image, label: Any, sample: Sample) -> Item:
        """Transform a decoded image, whatever it was read from."""
        with seeded(sample_seed(self.seed, sample)):
            tensor = self.transform(image)
        return tensor, label, sample.index

    def collate(self, items: list[SampleOrError]) -> Batch | MetaFormerError:
        """Collate samples to a batch; an error among them is returned instead."""
        for item in items:
            if isinstance(item, MetaFormerError):
                return item
        bad = tuple(item for item in items if isinstance(item, BadSample))
        good = [item for item in items if not isinstance(item, BadSample | MetaFormerError)]
        if not good:
            return DataError(
                f"none of the {len(bad)} images of a batch can be read; the first: {bad[0].reason}"
            )
        images, labels, indices = zip(*good, strict=True)
        return self.stack(images, labels, torch.tensor(indices), bad)

    def stack(
        self, images: tuple[Tensor, ...], labels: tuple[Any, ...], indices: Tensor, bad: tuple[BadSample, ...]
    ) -> Batch:
        """Stack readable samples; tasks whose targets are no tensors override this."""
        stacked = torch.stack(labels) if isinstance(labels[0], Tensor) else torch.tensor(labels)
        # default_collate writes a worker's batch into shared memory; `torch.stack` would have it copied there
        return Batch(default_collate(list(images)), stacked, indices, bad)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed `random`, `numpy.random` and torch's CPU generator, and restore their states afterwards.

    Without workers samples are drawn in the training process, whose dropout must not depend on that. A
    worker draws nothing but samples, each with its own seed, so it skips saving and restoring.
    """
    states = None if get_worker_info() else _random_states()
    random.seed(seed)
    np.random.seed([seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF])
    torch.default_generator.manual_seed((seed ^ seed >> 32) & 0xFFFFFFFF)  # it would use the low half only
    try:
        yield
    finally:
        if states is not None:
            random.setstate(states[0])
            np.random.set_state(states[1])
            torch.default_generator.set_state(states[2])


def _random_states() -> tuple[Any, Any, Tensor]:
    return random.getstate(), np.random.get_state(), torch.default_generator.get_state()
