"""Strided convolution of channels-last images, as patch embeddings compute it, as a product of patches."""

import torch.nn.functional as F
from torch import Tensor

from metaformer.ops import linear as layer
from metaformer.ops.cpp import kernels
from metaformer.ops.linear import PackedWeight


def pack(weight: Tensor, bias: Tensor | None) -> PackedWeight:
    """Pack a weight (out, in, k, k) for `conv`: inputs in the order (k, k, in), filled up with zeros."""
    rows = weight.detach().permute(0, 2, 3, 1).flatten(1)
    return layer.pack(F.pad(rows, (0, rows.shape[1] % 2)), bias)


def conv(x: Tensor, weight: PackedWeight, kernel: int, stride: int, padding: int) -> Tensor:
    """Convolution of x (B, H, W, in), padded with zeros: (B, h, w, out), by a weight of `pack`.

    Runs in C++, on what `cpp.supports(x)` allows.
    """
    batch, height, width, channels = x.shape
    size = [(side + 2 * padding - kernel) // stride + 1 for side in (height, width)]
    out = x.new_empty(batch, *size, weight.out_features)
    kernels.conv(
        x=x, weight=weight.weight, bias=weight.bias, out=out, batch=batch, height=height, width=width,
        channels=channels, kernel=kernel, stride=stride, padding=padding, depth=weight.in_features,
        columns=weight.out_features,
    )  # fmt: skip
    return out
