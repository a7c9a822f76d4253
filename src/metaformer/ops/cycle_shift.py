"""CycleMLP's shifted maps with their means, and the weighted sum of its products: for inference on CPUs."""

from functools import cache

import torch
from torch import Tensor

from metaformer.ops.native import library
from metaformer.ops.shift import shift_channels, staircase

FARTHEST = 3
"""The kernel's longest staircase, which is the published one; others take plain PyTorch."""


def usable(tokens: Tensor) -> bool:
    """Say whether the kernels run on tokens (B, H, W, C)."""
    return library.usable(tokens)


def cycle_shift(tokens: Tensor, kernel: int) -> tuple[Tensor, Tensor, Tensor]:
    """Shift (B, H, W, C) along the width and along the height, and give the means of these and of the tokens.

    Channel c is read at `staircase(kernel)[c % kernel]` away, zeros lie outside the map. Means are (B, 3, C).
    """
    if kernel > FARTHEST or not usable(tokens):
        return reference(tokens, kernel)
    batch, height, width, channels = tokens.shape
    wide, high = torch.empty_like(tokens), torch.empty_like(tokens)
    sums = torch.empty(batch, height, 3, channels)
    maps = tokens, _offsets(kernel, channels), wide, high, sums
    library.call("cycle_shift", tokens.dtype, *maps, *tokens.shape)
    means = sums.sum(1).div_(height * width).to(tokens.dtype)
    return wide, high, means


def cycle_weigh_(h: Tensor, w: Tensor, c: Tensor, share: Tensor) -> Tensor:
    """Replace h by share[0] · h + share[1] · w + share[2] · c, and return it.

    Args:
        h: map (B, H, W, C).
        w: another.
        c: another.
        share: (3, B, C).
    """
    maps = h, w, c, share.contiguous()
    if not library.usable(*maps):
        of_h, of_w, of_c = share[:, :, None, None]
        return torch.addcmul(torch.addcmul(h * of_h, w, of_w), c, of_c)
    batch, height, width, channels = h.shape
    library.call("cycle_weigh", h.dtype, *maps, batch, height * width, channels)
    return h


def reference(tokens: Tensor, kernel: int) -> tuple[Tensor, Tensor, Tensor]:
    """`cycle_shift` in plain PyTorch."""
    x = tokens.permute(0, 3, 1, 2)
    wide, high = (shift_channels(x, kernel, axis).permute(0, 2, 3, 1) for axis in (3, 2))
    return wide, high, torch.stack([map_.mean((1, 2)) for map_ in (wide, high, tokens)], 1)


@cache
def _offsets(kernel: int, channels: int) -> Tensor:
    """How far away each channel is read, (C,) of 32 bits."""
    return (
        torch.tensor(staircase(kernel), dtype=torch.int32).repeat(channels // kernel + 1)[:channels].clone()
    )
