"""A product over channels with the norm before it, activation or shortcut behind it: for inference on CPUs.

Called on what `packed.usable` allows.
"""

from typing import Final

import torch
from torch import Tensor

from metaformer.ops.native import library
from metaformer.ops.packed import Packed

NORMS: Final = {"none": 0, "layer_norm": 1}
"""Norm -> the kernels' number for it; its weight and bias are in the product's."""
GROUP_NORM: Final = 2
"""Their number for one whose moments are given."""
ACTS: Final = {"none": 0, "relu": 1, "squared_relu": 2, "gelu": 3}


def product(
    tokens: Tensor,
    layer: Packed,
    *,
    norm: str = "none",
    eps: float = 0.0,
    act: str = "none",
    past: Tensor | None = None,
    keep: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Give act(w · norm(x) + b) + keep · past, (…, columns), of tokens (…, depth).

    Args:
        tokens: the map.
        layer: w and b.
        norm: a key of `NORMS`.
        eps: the norm's.
        act: a key of `ACTS`.
        past: what is added, (…, columns), or none.
        keep: its factor (columns,) in float32, or none.
        out: where the result goes; may be `past`.
    """
    if out is None:
        out = tokens.new_empty(*tokens.shape[:-1], layer.columns)
    maps = tokens, layer.weight, layer.bias, past, keep, out
    sizes = tokens.numel() // layer.depth, layer.depth, layer.columns
    library.call("product", tokens.dtype, *maps, *sizes, NORMS[norm], ACTS[act], eps)
    return out


def mlp(
    tokens: Tensor,
    first: Packed,
    second: Packed,
    *,
    norm: str = "none",
    eps: float = 0.0,
    moments: Tensor | None = None,
    act: str = "gelu",
    past: Tensor | None = None,
    keep: Tensor | None = None,
    out: Tensor | None = None,
    before: Tensor | None = None,
) -> Tensor:
    """Give w₂ · act(w₁ · norm(x) + b₁) + b₂ + keep · past, of the shape of tokens (B, …, C).

    Args:
        tokens: the map.
        first: w₁ and b₁.
        second: w₂ and b₂.
        norm: a key of `NORMS`.
        eps: a layer norm's.
        moments: each sample's mean and one over its deviation, (B, 2) in float32, by which a group norm takes
            the place of `norm`.
        act: a key of `ACTS`.
        past: what is added, of the same shape, or none.
        keep: its factor (C,) in float32, or none.
        out: where the result goes; may be `past` and the tokens.
        before: where w₁ · norm(x) + b₁ goes, (B, …, M), if anywhere.
    """
    if out is None:
        out = torch.empty_like(tokens)
    samples = len(tokens)
    layers = first.weight, first.bias, second.weight, second.bias
    sizes = samples, tokens.numel() // first.depth // max(1, samples), first.depth, first.columns
    words = NORMS[norm] if moments is None else GROUP_NORM, ACTS[act], eps
    library.call("mlp", tokens.dtype, tokens, moments, *layers, past, keep, out, before, *sizes, *words)
    return out
