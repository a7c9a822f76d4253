"""oneDNN's product over channels with its epilogue, on CPUs: what Inductor's frozen graphs call, called here.

`F.linear` takes MKL, which is half as fast on AMD processors, and writes the wide map before an activation
reads it again. Here weights are laid out once, and activation or sum happen while a tile is in the cache.
"""

from typing import Final

import torch
from torch import Tensor

from metaformer.ops.backend import forced_reference

EPILOGUES: Final = {"none": ("none", ""), "gelu": ("gelu", "none"), "relu": ("relu", "")}
"""Activation -> the names that oneDNN's operation takes for it and for its formula."""
_OPS = torch.ops.mkldnn


def usable(x: Tensor) -> bool:
    """Say whether `product` runs on `x`: a CPU map without gradient, autocast or exporter around it."""
    return (
        x.device.type == "cpu"
        and not torch.compiler.is_exporting()
        and not (torch.is_grad_enabled() and x.requires_grad)
        and not torch.is_autocast_enabled("cpu")
        and _there(x.dtype)
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


@torch.library.custom_op("metaformer::product", mutates_args=(), device_types="cpu")
def compiled_product(x: Tensor, weight: Tensor, bias: Tensor | None, act: str, plus: Tensor | None) -> Tensor:
    """`product` of a plain weight, for graphs: Inductor takes MKL's for the same."""
    return product(x, weight, bias, act, plus)


@compiled_product.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None, act: str, plus: Tensor | None) -> Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


def _there(dtype: torch.dtype) -> bool:
    """Builds of PyTorch without oneDNN lack the operations; oneDNN takes bfloat16 on processors that do."""
    if not torch.backends.mkldnn.enabled or not torch.backends.mkldnn.is_available():
        return False
    if dtype == torch.bfloat16:
        return bool(_OPS._is_mkldnn_bf16_supported())
    return dtype == torch.float32
