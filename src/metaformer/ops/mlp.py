"""Channel MLP with its norm, scale and residual: each block's second half, https://arxiv.org/abs/2111.11418.

With a gradient only x is kept, and two numbers per sample: the hidden activations are recomputed.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from metaformer.ops import linear as layer
from metaformer.ops import triton
from metaformer.ops.backend import without_autocast, working_dtype
from metaformer.ops.cpp import kernels
from metaformer.ops.linear import (
    ACTS,
    NORMS,
    PackedWeight,
    Scale,
    contiguous,
    scale_vector,
    split_scale,
    validate,
)
from metaformer.ops.norm import normalize


def mlp(
    x: Tensor,
    w1: Tensor | PackedWeight,
    b1: Tensor | None,
    w2: Tensor | PackedWeight,
    b2: Tensor | None,
    *,
    norm: str = "none",
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    eps: float = 1e-5,
    moments: Tensor | None = None,
    act: str = "gelu",
    act_scale: Tensor | None = None,
    act_bias: Tensor | None = None,
    scale: Tensor | None = None,
    residual: Tensor | None = None,
    residual_scale: Scale = None,
    out: Tensor | None = None,
) -> Tensor:
    """Channel MLP: scale · (act(norm(x) · w1ᵀ + b1) · w2ᵀ + b2) + residual_scale · residual.

    Packed weights run in C++, on what `cpp.supports(x, residual, weight=...)` allows: biases come with them,
    there is no scale, and the norm is a layer norm without constants, one by moments, or none. Triton's form
    has x itself for a residual.

    Args:
        x: the activations (B, H, W, C); with packed weights (B, …, C).
        w1: (M, C), or a 1×1 convolution's (M, C, 1, 1), or packed.
        b1: (M,), or none.
        w2: (C, M), or (C, M, 1, 1), or packed.
        b2: (C,), or none.
        norm: "group_norm" (of one group), "layer_norm" (over channels) or "none".
        gamma: the norm's weight (C,), or none.
        beta: the norm's bias (C,), or none.
        eps: the norm's.
        moments: each sample's mean and 1/σ (B, 2) in float32, by which x is normalized in place of `norm`.
        act: "gelu", "star_relu", "squared_relu" or "relu"; "none" with packed weights too.
        act_scale: StarReLU's scale (1,).
        act_bias: StarReLU's bias (1,).
        scale: LayerScale (C,), or none.
        residual: what is added, (B, H, W, C), or none.
        residual_scale: its factor: a number, (C,), or none, which is 1; in float32 with packed weights.
        out: where packed weights' result goes: memory of x or of the residual too; new memory by default.

    Raises:
        ConfigError: an unknown norm or activation.
    """
    if isinstance(w1, PackedWeight) and isinstance(w2, PackedWeight):
        if out is None:
            out = torch.empty_like(x)
        samples = len(x)
        kernels.mlp(
            x=x, moments=moments, gamma=None, beta=None, w1=w1.weight, b1=w1.bias, w2=w2.weight, b2=w2.bias,
            residual=residual, residual_scale=scale_vector(residual_scale, out), out=out, pre_act=None,
            samples=samples, positions=x.numel() // w1.in_features // max(1, samples), dim=w1.in_features,
            hidden=w1.out_features, norm=NORMS[norm if moments is None else "group_norm"], act=ACTS[act],
            eps=eps,
        )  # fmt: skip
        return out
    assert isinstance(w1, Tensor) and isinstance(w2, Tensor), "pack both weights or none"
    validate(norm, act, act_scale, act_bias)
    is_own = residual is x
    x = x.to(working_dtype(x))
    w1, w2 = w1.flatten(1).to(x.dtype), w2.flatten(1).to(x.dtype)
    residual = x if is_own else None if residual is None else residual.to(x.dtype)
    plain = partial(
        reference, x, w1, b1, w2, b2, norm=norm, gamma=gamma, beta=beta, eps=eps, moments=moments, act=act,
        act_scale=act_scale, act_bias=act_bias, scale=scale, residual=residual, residual_scale=residual_scale,
    )  # fmt: skip
    with without_autocast(x):
        if moments is None and (residual is None or is_own) and act != "none" and triton.supports(x):
            vector, number = split_scale(residual_scale)
            weights = contiguous(x, w1, b1, w2, b2, gamma, beta, scale, vector, act_scale, act_bias)
            factor = number if is_own else None
            return triton.call("mlp", lambda: (plain(),), *weights, factor, eps, norm, act)[0]
        return plain()


def reference(
    x: Tensor,
    w1: Tensor,
    b1: Tensor | None,
    w2: Tensor,
    b2: Tensor | None,
    *,
    norm: str = "none",
    moments: Tensor | None = None,
    act: str = "gelu",
    scale: Tensor | None = None,
    residual: Tensor | None = None,
    residual_scale: Scale = None,
    **options: Any,
) -> Tensor:
    """The same in plain PyTorch; options are those of the norm and of the activation."""
    x, norm = (x, norm) if moments is None else (normalize(x, moments), "none")
    hidden = layer.reference(x, w1, b1, norm=norm, act=act, **options)
    return layer.reference(hidden, w2, b2, scale=scale, residual=residual, residual_scale=residual_scale)
