"""A wide convolution of each channel by itself, and the StarReLU before it: for inference on CPUs."""

from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

from metaformer.ops.native import library

SIDES: Final = (5, 7)
"""Windows that the kernel has; at 3 oneDNN's convolution is quicker."""

Star = tuple[float, float]
"""StarReLU's factor and bias."""


def supported(weight: Tensor) -> bool:
    """Say whether the kernel takes a weight (C, 1, k, k)."""
    channels, per_group, height, width = weight.shape
    return per_group == 1 and height == width and height in SIDES and channels % library.lanes() == 0


def pack(weight: Tensor) -> Tensor:
    """Lay a `supported` weight out as the kernel reads it: (C / lanes, k · k, lanes), float32."""
    rows = weight.detach().float().reshape(-1, library.lanes(), weight[0].numel())
    return rows.transpose(1, 2).contiguous()


def depthwise(
    tokens: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    star: Star | None = None,
    packed: Tensor | None = None,
) -> Tensor:
    """Convolve a map (B, H, W, C) with stride 1 and as many zeros around that its size stays.

    Args:
        tokens: the map.
        weight: (C, 1, k, k), k odd.
        bias: (C,), or none.
        star: a StarReLU that the map goes through first.
        packed: what `pack` made of the weight; without it plain PyTorch runs.
    """
    if packed is None or not library.usable(tokens):
        return reference(tokens, weight, bias, star)
    out = torch.empty_like(tokens)
    constant = None if bias is None else bias.float().contiguous()
    sizes = (*tokens.shape, weight.shape[-1], int(star is not None))
    library.call("depthwise", tokens.dtype, tokens, packed, constant, out, *sizes, *(star or (1.0, 0.0)))
    return out


def reference(tokens: Tensor, weight: Tensor, bias: Tensor | None, star: Star | None = None) -> Tensor:
    """The same in plain PyTorch."""
    x = (tokens if star is None else star_relu(tokens, star)).permute(0, 3, 1, 2)
    y = F.conv2d(x, weight, bias, padding=weight.shape[-1] // 2, groups=weight.shape[0])
    return y.permute(0, 2, 3, 1)


def star_relu(x: Tensor, star: Star) -> Tensor:
    """Give scale · max(x, 0)² + bias, https://arxiv.org/abs/2210.13452."""
    scale, bias = star
    return x.relu().square().mul(scale).add(bias)
