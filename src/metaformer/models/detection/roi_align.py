"""Regions of interest: one small grid of features for each box, whatever its size."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import roi_align

FINEST_SIDE = 56
"""Boxes of less than twice this side, in pixels, are pooled from the finest level; and so on by doublings."""


def levels_of(boxes: Tensor, count: int) -> Tensor:
    """The level (N,) that each box (N, 4) is pooled from, https://arxiv.org/abs/1612.03144, equation 1."""
    side = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).sqrt()
    return torch.floor(torch.log2(side / FINEST_SIDE + 1e-6)).clamp(0, count - 1).long()


def rows_of(boxes: Sequence[Tensor]) -> Tensor:
    """Boxes (N_i, 4) of each image as one (N, 5), with the image's index first."""
    images = torch.cat([one.new_full((len(one), 1), i) for i, one in enumerate(boxes)])
    return torch.cat([images, torch.cat(list(boxes))], dim=1)


def pool(maps: Sequence[Tensor], boxes: Sequence[Tensor], strides: Sequence[int], side: int) -> Tensor:
    """Pool each box from the level that fits its size.

    Args:
        maps: levels of the pyramid (B, C, H_i, W_i), finest first.
        boxes: (N_i, 4) of each image, in pixels of the input.
        strides: input pixels per position of each level.
        side: positions on each side of the grid.

    Returns:
        Features (N, C, side, side) in float32, in the boxes' order.
    """
    rows = rows_of(boxes)
    levels = levels_of(rows[:, 1:], len(maps))
    order = levels.argsort(stable=True)
    counts = torch.bincount(levels, minlength=len(maps)).tolist()
    # Each level takes part, if only with no box: its parameters get a gradient on every rank.
    pooled = [
        # coordinates in half precision would be off by whole pixels
        roi_align(level.float(), chosen, side, 1 / stride, sampling_ratio=0, aligned=True)
        for level, chosen, stride in zip(maps, rows[order].split(counts), strides, strict=True)
    ]
    return torch.cat(pooled)[order.argsort()]
