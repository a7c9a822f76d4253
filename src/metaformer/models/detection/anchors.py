"""The boxes that a detector begins with."""

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from metaformer.models.detection.structures import Size

MULTIPLE = 32
"""Each image is thought to be padded to a multiple of so many pixels: anchors beyond that teach nothing."""


class Anchors:
    """Boxes of several sizes and shapes around the corner of every position's cell, not rounded.

    torchvision's class rounds them, and puts them where the image's size divided by the map's says.

    Args:
        strides: pixels between the positions of each level.
        scales: sides of the square ones in strides.
        ratios: heights in widths.
    """

    def __init__(
        self, strides: Sequence[int], scales: Sequence[float], ratios: Sequence[float] = (0.5, 1.0, 2.0)
    ) -> None:
        self.strides, self.scales, self.ratios = tuple(strides), tuple(scales), tuple(ratios)

    @property
    def count(self) -> int:
        """Boxes at one position."""
        return len(self.scales) * len(self.ratios)

    def per_level(self, shapes: Sequence[Size], device: torch.device | str | None = None) -> list[Tensor]:
        """Boxes (H·W·count, 4) of levels of these heights and widths: by row, column, ratio and scale.

        They are shared between calls: do not write into them.
        """
        device = torch.device(device or "cpu")
        return [
            _level(stride, self.scales, self.ratios, shape, device)
            for stride, shape in zip(self.strides, shapes, strict=True)
        ]

    def inside(self, shapes: Sequence[Size], size: Size, device: torch.device | str | None = None) -> Tensor:
        """Which of all levels' boxes, bool (N,), belong to cells that touch an image of this size."""
        flags = []
        for stride, (height, width) in zip(self.strides, shapes, strict=True):
            rows, columns = (-(-(-(-side // MULTIPLE) * MULTIPLE) // stride) for side in size)
            cells = torch.zeros((height, width, self.count), dtype=torch.bool, device=device)
            cells[:rows, :columns] = True
            flags.append(cells.flatten())
        return torch.cat(flags)


@lru_cache(maxsize=40)
def _level(
    stride: int, scales: tuple[float, ...], ratios: tuple[float, ...], shape: Size, device: torch.device
) -> Tensor:
    with torch.inference_mode(False):  # the next one who asks may be training
        roots = torch.tensor(ratios).sqrt()
        sides = torch.tensor(scales)
        width = (stride * (1 / roots)[:, None] * sides).flatten()
        height = (stride * roots[:, None] * sides).flatten()
        base = torch.stack([-0.5 * width, -0.5 * height, 0.5 * width, 0.5 * height], 1).to(device)
        y, x = (torch.arange(side, device=device) * stride for side in shape)
        shifts = torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1] * 2, -1).float()
        return (shifts.view(-1, 1, 4) + base).view(-1, 4)
