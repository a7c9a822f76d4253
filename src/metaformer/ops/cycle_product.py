"""CycleMLP's mixing with the product behind it, in C++: for inference on CPUs, https://arxiv.org/abs/2107.10224.

Called on what `packed.usable` allows, with staircases of `FARTHEST` steps at most.
"""

from functools import cache
from typing import Final

import torch
from torch import Tensor

from metaformer.ops.native import library
from metaformer.ops.packed import Packed
from metaformer.ops.shift import staircase

FARTHEST: Final = 3
"""The kernels' longest staircase, which is the published one."""


def cycle_means(tokens: Tensor, kernel: int) -> Tensor:
    """Give means over positions, (B, 3, C), of (B, H, W, C) shifted along the width, the height, and not.

    Channel c is read at `staircase(kernel)[c % kernel]` away, zeros lie outside the map.
    """
    batch, _, _, channels = tokens.shape
    out = tokens.new_empty(batch, 3, channels)
    library.call("cycle_means", tokens.dtype, tokens, _offsets(kernel, channels), out, *tokens.shape)
    return out


def cycle_shares(logits: Tensor) -> Tensor:
    """Give the softmax over the last of (B, C, 3), as (B, 3, C) in float32."""
    batch, channels, _ = logits.shape
    out = torch.empty(batch, 3, channels, dtype=torch.float32, device="cpu")
    library.call("cycle_shares", logits.dtype, logits, out, batch, channels)
    return out


def cycle_product(
    tokens: Tensor,
    branches: tuple[Packed, Packed, Packed],
    share: Tensor,
    last: Packed,
    kernel: int,
    past: Tensor | None = None,
    keep: Tensor | None = None,
) -> Tensor:
    """Give last(share · of_width(w) + share · of_height(h) + share · plain(x)) + keep · past, (B, H, W, C).

    Args:
        tokens: x, (B, H, W, C); w and h are x shifted along the width and the height.
        branches: the three products, each (C, C).
        share: of each sample and channel, (B, 3, C) in float32.
        last: the product of their sum, (C, C).
        kernel: steps of the staircase, odd.
        past: what is added, (B, H, W, C), or none.
        keep: its factor (C,) in float32, or none.
    """
    out = torch.empty_like(tokens)
    layers = (part for layer in (*branches, last) for part in (layer.weight, layer.bias))
    maps = tokens, _offsets(kernel, tokens.shape[-1]), share, *layers, past, keep, out
    library.call("cycle_mix", tokens.dtype, *maps, *tokens.shape)
    return out


@cache
def _offsets(kernel: int, channels: int) -> Tensor:
    """How far away each channel is read, (C,) of 32 bits."""
    return (
        torch.tensor(staircase(kernel), dtype=torch.int32).repeat(channels // kernel + 1)[:channels].clone()
    )
