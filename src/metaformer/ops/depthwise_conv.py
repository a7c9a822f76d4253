"""Depthwise convolution with a large kernel, and the StarReLU before it, https://arxiv.org/abs/2210.13452."""

from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

from metaformer.ops import cpp
from metaformer.ops.cpp import kernels

KERNELS: Final = (5, 7)
"""Kernel sizes of the C++ form; at 3 oneDNN's convolution is faster."""

Star = tuple[float, float]
"""Scale and bias of a StarReLU."""


def supports_weight(weight: Tensor) -> bool:
    """Whether the C++ form takes a weight (C, 1, k, k)."""
    channels, per_group, height, width = weight.shape
    return per_group == 1 and height == width and height in KERNELS and channels % cpp.lanes() == 0


def pack(weight: Tensor) -> Tensor:
    """Lay a weight (C, 1, k, k) out as the C++ form reads it: (C / lanes, k · k, lanes), float32."""
    rows = weight.detach().float().reshape(-1, cpp.lanes(), weight[0].numel())  # (C / lanes, lanes, k · k)
    return rows.transpose(1, 2).contiguous()


def depthwise_conv(
    x: Tensor, weight: Tensor, bias: Tensor | None, star: Star | None = None, packed: Tensor | None = None
) -> Tensor:
    """Convolution of each channel, weight * star(x) + bias, stride 1, padded with zeros to the same size.

    Args:
        x: the activations (B, H, W, C).
        weight: (C, 1, k, k), k odd.
        bias: (C,), or none.
        star: of the StarReLU that x goes through first, or none.
        packed: the weight by `pack`; without it plain PyTorch runs.
    """
    if packed is None or not cpp.supports(x):
        return reference(x, weight, bias, star)
    out = torch.empty_like(x)
    batch, height, width, channels = x.shape
    star_scale, star_bias = star or (1.0, 0.0)
    kernels.depthwise_conv(
        x=x, taps=packed, bias=None if bias is None else bias.float().contiguous(), out=out, batch=batch,
        height=height, width=width, channels=channels, kernel=weight.shape[-1], star=int(star is not None),
        star_scale=star_scale, star_bias=star_bias,
    )  # fmt: skip
    return out


def reference(x: Tensor, weight: Tensor, bias: Tensor | None, star: Star | None = None) -> Tensor:
    """The same in plain PyTorch."""
    x = (x if star is None else star_relu(x, star)).permute(0, 3, 1, 2)
    y = F.conv2d(x, weight, bias, padding=weight.shape[-1] // 2, groups=weight.shape[0])
    return y.permute(0, 2, 3, 1)


def star_relu(x: Tensor, star: Star) -> Tensor:
    """StarReLU: scale · max(x, 0)² + bias."""
    scale, bias = star
    return x.relu().square().mul(scale).add(bias)
