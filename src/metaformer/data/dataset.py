"""Images with their augmentation; each sample is a pure function of seed and `Sample`."""

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, default_collate, get_worker_info

from metaformer.data.batch import Bad, Batch, Item, SampleOrError
from metaformer.data.sampler import Sample, sample_seed
from metaformer.errors import DataError, MetaFormerError

BAD_SHARE: Final = 1e-3
"""Share of the images that cannot be read up to which leaving them out, where asked for, is a remedy."""


class Source(Protocol):
    """Images by index, such as `ImageFolder`."""

    @property
    def labels(self) -> Sequence[int]: ...

    def __len__(self) -> int: ...

    def image(self, index: int) -> Image.Image: ...

    def path(self, index: int) -> str | Path:
        """What an image is called in errors and reports."""


class AugmentedDataset(Dataset[Item]):
    """Transformed images by `Sample`, bit-identical whatever process or order they are made in.

    Args:
        source: the images.
        transform: RGB image to tensor; whatever it draws from `random`, `numpy.random` or `torch`
            is a function of `seed` and the sample.
        seed: the run's seed.
    """

    def __init__(self, source: Source, transform: Callable[[Image.Image], Tensor], seed: int = 0) -> None:
        self.source, self.transform, self.seed = source, transform, seed

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, sample: Sample) -> Item:
        """Make one sample: its tensor (3, H, W), or (views, 3, H, W), its label and its index.

        Raises:
            BadImage: the image cannot be read.
        """
        return self.augment(self.source.image(sample.index), self.source.labels[sample.index], sample)

    def augment(self, image: Image.Image, label: int, sample: Sample) -> Item:
        """Make a sample of its image, wherever that came from."""
        with seeded(sample_seed(self.seed, sample)):
            tensor = self.transform(image)
        return tensor, label, sample.index

    def collate(self, items: list[SampleOrError]) -> Batch | MetaFormerError:
        """Make a batch of samples; an error among them goes in its place."""
        for item in items:
            if isinstance(item, MetaFormerError):
                return item
        bad = tuple(item for item in items if isinstance(item, Bad))
        good = [item for item in items if not isinstance(item, Bad | MetaFormerError)]
        if not good:
            return DataError(
                f"none of the {len(bad)} images of a batch can be read; the first: {bad[0].reason}"
            )
        images, labels, indices = zip(*good, strict=True)
        return self.stack(images, labels, torch.tensor(indices), bad)

    def stack(
        self, images: tuple[Tensor, ...], labels: tuple[Any, ...], indices: Tensor, bad: tuple[Bad, ...]
    ) -> Batch:
        """Make a batch of the samples that could be read."""
        together = torch.stack(labels) if isinstance(labels[0], Tensor) else torch.tensor(labels)
        # default_collate writes a worker's batch into shared memory; `torch.stack` would have it copied there
        return Batch(default_collate(list(images)), together, indices, bad)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed `random`, `numpy.random` and torch's CPU generator for a while, then put them back.

    Without workers the samples are made in the training process, whose dropout must not depend on that. A
    worker makes nothing but samples, each with its own seed, and saves the time.
    """
    kept = None if get_worker_info() else _states()
    random.seed(seed)
    np.random.seed([seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF])
    torch.default_generator.manual_seed((seed ^ seed >> 32) & 0xFFFFFFFF)  # it would use the low half only
    try:
        yield
    finally:
        if kept is not None:
            random.setstate(kept[0])
            np.random.set_state(kept[1])
            torch.default_generator.set_state(kept[2])


def _states() -> tuple[Any, Any, Tensor]:
    return random.getstate(), np.random.get_state(), torch.default_generator.get_state()
