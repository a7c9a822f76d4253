"""Boxes as differences from other boxes."""

from collections.abc import Sequence
from math import log

import torch
from torch import Tensor

from metaformer.models.detection.structures import Size

LIMIT = log(1000 / 16)
"""Logarithm of how much larger, or smaller, than its anchor a box may become."""


class BoxCoder:
    """Tell a box by where its center lies in another one, and by the logarithm of how much larger it is.

    torchvision's class does not limit how small a box becomes.

    Args:
        stds: what the four differences are divided by.
    """

    def __init__(self, stds: Sequence[float] = (1.0, 1.0, 1.0, 1.0)) -> None:
        self.stds = tuple(stds)

    def encode(self, boxes: Tensor, anchors: Tensor) -> Tensor:
        """Differences (N, 4) of boxes (N, 4) from anchors (N, 4)."""
        (center, size), (anchor_center, anchor_size) = _centerd(boxes.float()), _centerd(anchors)
        deltas = torch.cat([(center - anchor_center) / anchor_size, (size / anchor_size).log()], -1)
        return deltas / deltas.new_tensor(self.stds)

    def decode(self, deltas: Tensor, anchors: Tensor, size: Size | None = None) -> Tensor:
        """Boxes (…, 4), in float32, of differences from anchors (…, 4), cut off at an image's border."""
        deltas = deltas.float() * torch.tensor(self.stds, device=deltas.device)
        anchor_center, anchor_size = _centerd(anchors)
        center = anchor_center + anchor_size * deltas[..., :2]
        half = anchor_size * deltas[..., 2:].clamp(-LIMIT, LIMIT).exp() * 0.5
        boxes = torch.cat([center - half, center + half], -1)
        return boxes if size is None else clip(boxes, size)


def clip(boxes: Tensor, size: Size) -> Tensor:
    """Cut boxes (…, 4) off at the border of an image of a height and width."""
    height, width = size
    x, y = boxes[..., 0::2].clamp(0, width), boxes[..., 1::2].clamp(0, height)
    return torch.stack([x[..., 0], y[..., 0], x[..., 1], y[..., 1]], -1)


def rescale(boxes: Tensor, size: Size, other: Size) -> Tensor:
    """Boxes (…, 4) in an image of a height and width, told in pixels of one of another size."""
    (height, width), (other_height, other_width) = size, other
    if size == other:
        return boxes
    factor = boxes.new_tensor([other_width, other_height, other_width, other_height])
    return boxes * factor / boxes.new_tensor([width, height, width, height])


def _centerd(boxes: Tensor) -> tuple[Tensor, Tensor]:
    low, high = boxes[..., :2], boxes[..., 2:]
    return (low + high) * 0.5, high - low
