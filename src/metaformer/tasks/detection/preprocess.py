"""How an image becomes the input of a detector: the whole of it, in its own shape, filled up in batches."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from metaformer.data.resize_preprocess import DensePreprocess
from metaformer.models.detection.structures import Size, Targets

MULTIPLE: Final = 32
"""Sides of a detector's input are multiples of this."""


@dataclass(frozen=True)
class DetectionPreprocess(DensePreprocess):
    """Fit into a box with the shape kept, in one resize, and normalize; `stack` fills up to the multiple."""

    long_side: int | None = 1333
    """Longer side of the box, in pixels; None keeps an image's own size."""
    short_side: int | None = 800
    """Shorter side of the box, in pixels."""
    size_divisor: int = MULTIPLE
    """A batch is filled up with 0, at the right and at the bottom, to multiples of this."""

    def size(self, width: int, height: int) -> tuple[int, int]:
        """Width and height of an image's part of the input: what is filled up does not count."""
        return self.fitted_size(width, height)


def stack(images: Sequence[Tensor], multiple: int = MULTIPLE) -> Tensor:
    """Make a batch (B, 3, H, W) of images (3, h, w) of any size, filled up with 0 at the right and bottom.

    H and W are those of the largest, rounded up to the multiple.
    """
    height, width = (-(-max(image.shape[axis] for image in images) // multiple) * multiple for axis in (1, 2))
    batch = images[0].new_zeros(len(images), images[0].shape[0], height, width)
    for place, image in zip(batch, images, strict=True):
        place[:, : image.shape[1], : image.shape[2]] = image
    return batch


def stack_targets(targets: Sequence[Targets], size: Size) -> tuple[Targets, ...]:
    """Fill the masks of a batch's images up to the size (height, width) of the batch.

    What all have is one tensor, of which each image's objects are a part: a worker hands over every tensor
    of its own as an open file, of which a process may have a thousand.
    """
    counts = [len(found) for found in targets]
    boxes = torch.cat([found.boxes for found in targets]).split(counts)
    labels = torch.cat([found.labels for found in targets]).split(counts)
    crowd = torch.cat([found.crowd for found in targets]).split(counts)
    if all(found.masks is None for found in targets):
        return tuple(map(Targets, boxes, labels, [None] * len(targets), crowd))
    masks = torch.zeros(sum(counts), *size, dtype=torch.bool).split(counts)
    for found, place in zip(targets, masks, strict=True):
        if found.masks is not None:
            place[:, : found.masks.shape[1], : found.masks.shape[2]] = found.masks
    return tuple(map(Targets, boxes, labels, masks, crowd))
