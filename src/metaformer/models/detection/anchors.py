"""Anchor boxes, and boxes encoded as offsets from them."""

from collections.abc import Sequence
from functools import lru_cache
from math import log

import torch
from torch import Tensor

from metaformer.models.detection.structures import Size

PAD_MULTIPLE = 32
"""Images count as padded to multiples of this many pixels; anchors beyond that padding are not trained."""
MAX_LOG_SCALE = log(1000 / 16)
"""Limit of the predicted log of a box's size relative to its anchor, in both directions."""


class Anchors:
    """Anchor boxes of several scales and aspect ratios, centered on the top left corner of each cell.

    Unlike torchvision's, sides are not rounded, and the distance between cells is the stride of the level.

    Args:
        strides: pixels between the cells of each level.
        scales: sides of the square anchors, in strides.
        ratios: height / width.
    """

    def __init__(
        self, strides: Sequence[int], scales: Sequence[float], ratios: Sequence[float] = (0.5, 1.0, 2.0)
    ) -> None:
        self.strides, self.scales, self.ratios = tuple(strides), tuple(scales), tuple(ratios)

    @property
    def per_cell(self) -> int:
        """Number of anchors at each cell."""
        return len(self.scales) * len(self.ratios)

    def per_level(self, shapes: Sequence[Size], device: torch.device | str | None = None) -> list[Tensor]:
        """Anchors (H·W·A, 4) of levels of these heights and widths, by row, column, ratio, scale.

        The tensors are cached: do not write into them.
        """
        device = torch.device(device or "cpu")
        return [
            _level_anchors(stride, self.scales, self.ratios, shape, device)
            for stride, shape in zip(self.strides, shapes, strict=True)
        ]

    def valid_flags(
        self, shapes: Sequence[Size], image_size: Size, device: torch.device | str | None = None
    ) -> Tensor:
        """Flags (N,), bool, of the anchors of all levels whose cells touch an image of this size."""
        flags = []
        for stride, (height, width) in zip(self.strides, shapes, strict=True):
            rows, columns = (-(-(-(-side // PAD_MULTIPLE) * PAD_MULTIPLE) // stride) for side in image_size)
            cells = torch.zeros((height, width, self.per_cell), dtype=torch.bool, device=device)
            cells[:rows, :columns] = True
            flags.append(cells.flatten())
        return torch.cat(flags)


@lru_cache(maxsize=40)
def _level_anchors(
    stride: int, scales: tuple[float, ...], ratios: tuple[float, ...], shape: Size, device: torch.device
) -> Tensor:
    with torch.inference_mode(False):  # a cached inference tensor could not be used in training
        return level_anchors(stride, scales, ratios, shape, device)


def level_anchors(
    stride: int, scales: Sequence[float], ratios: Sequence[float], shape: Size, device: torch.device
) -> Tensor:
    """Anchors (H·W·A, 4) of one level, as `Anchors.per_level` gives them."""
    roots = torch.tensor(ratios).sqrt()
    sides = torch.tensor(scales)
    width = (stride * (1 / roots)[:, None] * sides).flatten()
    height = (stride * roots[:, None] * sides).flatten()
    base = torch.stack([-0.5 * width, -0.5 * height, 0.5 * width, 0.5 * height], 1).to(device)  # (A, 4)
    y, x = (torch.arange(side, device=device) * stride for side in shape)
    shifts = torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1] * 2, -1).float()  # (H, W, 4): x y x y
    return (shifts.view(-1, 1, 4) + base).view(-1, 4)


class BoxCoder:
    """Encode a box as the offset of its center from an anchor's and the log of their ratio of sizes.

    Unlike torchvision's, decoded boxes are limited in how small they become, too.

    Args:
        stds: standard deviations that the four deltas are divided by.
    """

    def __init__(self, stds: Sequence[float] = (1.0, 1.0, 1.0, 1.0)) -> None:
        self.stds = tuple(stds)

    def encode(self, boxes: Tensor, anchors: Tensor) -> Tensor:
        """Deltas (N, 4) of boxes (N, 4) relative to anchors (N, 4)."""
        (center, size), (anchor_center, anchor_size) = _center_size(boxes.float()), _center_size(anchors)
        deltas = torch.cat([(center - anchor_center) / anchor_size, (size / anchor_size).log()], -1)
        return deltas / deltas.new_tensor(self.stds)

    def decode(self, deltas: Tensor, anchors: Tensor, image_size: Size | None = None) -> Tensor:
        """Boxes (…, 4), float32, of deltas (…, 4) and anchors (…, 4), clipped to the image if given."""
        deltas = deltas.float() * torch.tensor(self.stds, device=deltas.device)
        anchor_center, anchor_size = _center_size(anchors)
        center = anchor_center + anchor_size * deltas[..., :2]
        half = anchor_size * deltas[..., 2:].clamp(-MAX_LOG_SCALE, MAX_LOG_SCALE).exp() * 0.5
        boxes = torch.cat([center - half, center + half], -1)
        return boxes if image_size is None else clip_boxes(boxes, image_size)


def clip_boxes(boxes: Tensor, image_size: Size) -> Tensor:
    """Clip boxes (…, 4) to an image of a height and width."""
    height, width = image_size
    x, y = boxes[..., 0::2].clamp(0, width), boxes[..., 1::2].clamp(0, height)
    return torch.stack([x[..., 0], y[..., 0], x[..., 1], y[..., 1]], -1)


def rescale_boxes(boxes: Tensor, size: Size, new_size: Size) -> Tensor:
    """Scale boxes (…, 4) along with their image, from one height and width to another."""
    if size == new_size:
        return boxes
    (height, width), (new_height, new_width) = size, new_size
    factor = boxes.new_tensor([new_width, new_height, new_width, new_height])
    return boxes * factor / boxes.new_tensor([width, height, width, height])


def _center_size(boxes: Tensor) -> tuple[Tensor, Tensor]:
    low, high = boxes[..., :2], boxes[..., 2:]
    return (low + high) * 0.5, high - low
