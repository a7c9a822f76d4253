"""Samples and the batches made of them."""

from typing import NamedTuple

import torch
from torch import Tensor

from metaformer.errors import MetaFormerError
from metaformer.models.detection.structures import Size, Targets

Item = tuple[Tensor, int | Tensor | Targets, int]
"""Image, what is known of it, and its index."""


class Bad(NamedTuple):
    """An image that cannot be read."""

    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody misses
    """Its place in the source."""
    reason: str
    """Its name, and what is wrong with it."""


class Batch(NamedTuple):
    """What a step sees."""

    images: Tensor
    """(B, 3, H, W), or (B, views, 3, H, W); float32, normalized."""
    labels: Tensor
    """(B,) int64, or label maps (B, H, W) of uint8 or int32; zeros where there are targets."""
    indices: Tensor
    """(B,) int64: places in the source, to name images by."""
    bad: tuple[Bad, ...] = ()
    """Images that are left out."""
    targets: tuple[Targets, ...] = ()
    """The objects of each image, in detection; masks are (N, H, W)."""
    sizes: tuple[Size, ...] = ()
    """Height and width of each image's own part of `images`, in detection; the rest is filled up with 0."""

    def to(self, device: torch.device) -> "Batch":
        """The same with its tensors on a device."""
        images, labels, indices = (part.to(device, non_blocking=True) for part in self[:3])
        # Page-locking makes lists of tuples.
        targets = tuple(found.to(device, non_blocking=True) for found in self.targets)
        sizes = tuple((height, width) for height, width in self.sizes)
        return self._replace(images=images, labels=labels, indices=indices, targets=targets, sizes=sizes)


SampleOrError = Item | Bad | MetaFormerError
