"""oneDNN backend: linear layers and convolutions, called as Inductor's frozen graphs call them.

`F.linear` goes to MKL, which is half as fast on AMD processors, and writes the wide activations before GELU
reads them again. Here weights are packed once, and the activation or the sum happens while a tile is in the
cache.
"""

from functools import cache
from typing import Final

import torch
from torch import Tensor

from metaformer.ops.backend import is_traced, mode

EPILOGUES: Final = {"none": ("none", ""), "gelu": ("gelu", "none"), "relu": ("relu", "")}
"""Activation -> oneDNN's names for it and for its formula."""
_OPS = torch.ops.mkldnn
Geometry = tuple[list[int], list[int], list[int], int]
"""Stride, padding, dilation and groups of a convolution."""


def supports(*tensors: Tensor) -> bool:
    """Whether the backend runs on these tensors: on a CPU, without gradient or autocast, and untraced."""
    grad = torch.is_grad_enabled()
    return (
        all(x.device.type == "cpu" and not (grad and x.requires_grad) for x in tensors)
        and not is_traced(tensors[0])
        and not torch.is_autocast_enabled("cpu")
        and all(has_dtype(x.dtype) for x in tensors)
        and mode() != "reference"
    )


def has_dtype(dtype: torch.dtype) -> bool:
    """Whether this build of PyTorch has oneDNN, and oneDNN the dtype on this processor."""
    if not torch.backends.mkldnn.enabled or not torch.backends.mkldnn.is_available():
        return False
    if dtype == torch.bfloat16:
        return _has_bfloat16()
    return dtype == torch.float32


def pack(weight: Tensor) -> Tensor:
    """Pack a weight (out, in) for `linear`, which alone can read the result."""
    return _OPS._reorder_linear_weight(weight.detach().contiguous(), None)


def linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, act: str = "none", residual: Tensor | None = None
) -> Tensor:
    """act(x · weightᵀ + bias), or x · weightᵀ + bias + residual.

    Args:
        x: (…, in).
        weight: (out, in), or what `pack` made of it.
        bias: (out,), or none.
        act: a key of `EPILOGUES`; "none" with a residual.
        residual: (…, out), or none.
    """
    if residual is not None:
        return _OPS._linear_pointwise.binary(x, residual, weight, bias, "add")
    name, formula = EPILOGUES[act]
    return _OPS._linear_pointwise(x, weight, bias, name, [], formula)


def pack_convolution(weight: Tensor, shape: torch.Size, geometry: Geometry) -> Tensor:
    """Pack a weight (out, in/groups, h, w) for `convolution` of inputs of this shape (B, C, H, W)."""
    stride, padding, dilation, groups = geometry
    return _OPS._reorder_convolution_weight(weight.detach(), padding, stride, dilation, groups, list(shape))


def convolution(
    x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, act: str = "none"
) -> Tensor:
    """Convolution of (B, C, H, W) by a weight of `pack_convolution`, then an activation of `EPILOGUES`."""
    stride, padding, dilation, groups = geometry
    name, formula = EPILOGUES[act]
    return _OPS._convolution_pointwise(x, weight, bias, padding, stride, dilation, groups, name, [], formula)


@cache
def _has_bfloat16() -> bool:
    return bool(_OPS._is_mkldnn_bf16_supported())
