"""Pictures with their augmentation; each sample is a pure function of seed and `Sample`."""

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from metaformer.data.detection import DetectionFolder
from metaformer.data.detection_transforms import SceneTransform
from metaformer.data.label_map import LabelMap
from metaformer.data.sampler import Sample, sample_seed
from metaformer.data.segmentation import SegmentationFolder
from metaformer.detection.results import Targets

Item = tuple[Tensor, int | Tensor | Targets, int]
PairTransform = Callable[[Image.Image, LabelMap], tuple[Tensor, Tensor]]
BAD_SHARE: Final = 1e-3
"""Share of the pictures that cannot be read up to which leaving them out, where asked for, is a remedy."""


class Source(Protocol):
    """Pictures by index, such as `ImageFolder`."""

    @property
    def labels(self) -> Sequence[int]: ...

    def __len__(self) -> int: ...

    def image(self, index: int) -> Image.Image: ...

    def path(self, index: int) -> str | Path:
        """What a picture is called in errors and reports."""


class Augmented(Dataset[Item]):
    """Transformed pictures by `Sample`, bit-identical whatever process or order they are made in.

    Args:
        source: the pictures.
        transform: RGB picture to tensor; whatever it draws from `random`, `numpy.random` or `torch`
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
            BadImage: the picture cannot be read.
        """
        return self.augment(self.source.image(sample.index), self.source.labels[sample.index], sample)

    def augment(self, picture: Image.Image, label: int, sample: Sample) -> Item:
        """Make a sample of its picture, wherever that came from."""
        with seeded(sample_seed(self.seed, sample)):
            tensor = self.transform(picture)
        return tensor, label, sample.index


class AugmentedPairs(Augmented):
    """The same of pictures with their label maps, which are transformed together.

    Args:
        source: the pictures and label maps.
        transform: RGB picture and label map (H, W) to two tensors; see `Augmented`.
        seed: the run's seed.
    """

    transform: PairTransform  # type: ignore[assignment]  # takes both

    def __init__(self, source: SegmentationFolder, transform: PairTransform, seed: int = 0) -> None:
        super().__init__(source, transform, seed)  # type: ignore[arg-type]
        self.pairs = source

    def __getitem__(self, sample: Sample) -> Item:
        """Make one sample: its picture (3, h, w), its label map (H, W) and its index.

        Raises:
            BadImage: picture or label map cannot be read, or they do not fit each other.
        """
        picture, labels = self.pairs.pair(sample.index)
        with seeded(sample_seed(self.seed, sample)):
            return *self.transform(picture, labels), sample.index


class AugmentedScenes(Augmented):
    """The same of pictures with the objects on them, which are transformed together.

    Args:
        source: the pictures and objects.
        transform: RGB picture and its objects to a tensor and the objects on that; see `Augmented`.
        seed: the run's seed.
        masks: make the objects' masks, for those who learn from them.
    """

    transform: SceneTransform  # type: ignore[assignment]  # takes both

    def __init__(
        self, source: DetectionFolder, transform: SceneTransform, seed: int = 0, *, masks: bool = False
    ) -> None:
        super().__init__(source, transform, seed)  # type: ignore[arg-type]
        self.scenes, self.masks = source, masks

    def __getitem__(self, sample: Sample) -> Item:
        """Make one sample: its picture (3, h, w), its objects in pixels of that, and its index.

        Raises:
            BadImage: the picture cannot be read, or is of another size than its annotations say.
        """
        picture, targets = self.scenes.example(sample.index, self.masks)
        with seeded(sample_seed(self.seed, sample)):
            return *self.transform(picture, targets), sample.index


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
