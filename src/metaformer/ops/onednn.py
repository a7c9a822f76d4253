"""oneDNN's product over channels with its epilogue, on CPUs, called as Inductor's frozen graphs call it.

`F.linear` takes MKL, which is half as fast on AMD processors, and writes the wide map before an activation
reads it again. Here weights are laid out once, and activation or sum happen while a tile is in the cache.
"""

from functools import cache
from typing import Final

import torch
from torch import Tensor

from metaformer.ops.backend import forced_reference

EPILOGUES: Final = {"none": ("none", ""), "gelu": ("gelu", "none"), "relu": ("relu", "")}
"""Activation -> the names that oneDNN's operation takes for it and for its formula."""
_OPS = torch.ops.mkldnn
Geometry = tuple[list[int], list[int], list[int], int]
"""A convolution's stride, padding, dilation and number of groups."""


def usable(x: Tensor) -> bool:
    """Say whether `product` runs on `x`: a CPU map without gradient, autocast or compiler around it."""
    return (
        x.device.type == "cpu"
        and not torch.compiler.is_compiling()
        and not (torch.is_grad_enabled() and x.requires_grad)
        and not torch.is_autocast_enabled("cpu")
        and supported(x.dtype)
        and not forced_reference()
    )


def pack(weight: Tensor) -> Tensor:
    """Lay a weight (out, in) out as the product reads it; the result can only be given to `product`."""
    return _OPS._reorder_linear_weight(weight.detach().contiguous(), None)


def product(
    x: Tensor, weight: Tensor, bias: Tensor | None, act: str = "none", plus: Tensor | None = None
) -> Tensor:
    """Map (…, in) to (…, out), then activate, or add `plus` (…, out).

    Args:
        x: the tokens.
        weight: (out, in), or what `pack` made of it.
        bias: (out,), or none.
        act: a key of `EPILOGUES`; `none` with `plus`.
        plus: another map.
    """
    if plus is not None:
        return _OPS._linear_pointwise.binary(x, plus, weight, bias, "add")
    name, formula = EPILOGUES[act]
    return _OPS._linear_pointwise(x, weight, bias, name, [], formula)


def pack_convolution(weight: Tensor, shape: torch.Size, geometry: Geometry) -> Tensor:
    """Lay a weight (out, in/groups, h, w) out as `convolution` reads it for this shape (B, C, H, W)."""
    stride, padding, dilation, groups = geometry
    return _OPS._reorder_convolution_weight(weight.detach(), padding, stride, dilation, groups, list(shape))


def convolution(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    """Convolve (B, C, H, W) with a weight of `pack_convolution`."""
    stride, padding, dilation, groups = geometry
    return _OPS._convolution_pointwise(x, weight, bias, padding, stride, dilation, groups, "none", [], "")


def supported(dtype: torch.dtype) -> bool:
    """Builds of PyTorch without oneDNN lack the operations; oneDNN takes bfloat16 on processors that do."""
    if not torch.backends.mkldnn.enabled or not torch.backends.mkldnn.is_available():
        return False
    if dtype == torch.bfloat16:
        return _takes_bfloat16()
    return dtype == torch.float32


@cache
def _takes_bfloat16() -> bool:
    return bool(_OPS._is_mkldnn_bf16_supported())
