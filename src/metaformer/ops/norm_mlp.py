"""The channel MLP with its norm, scale and shortcut: each block's second half, https://arxiv.org/abs/2111.11418.

Only x is kept for the gradient, and two numbers per sample: the hidden tensor is made again.
"""

import torch
from torch import Tensor

from metaformer.ops.backend import triton_usable, without_autocast, working_dtype
from metaformer.ops.pointwise_act import check_names, packed
from metaformer.ops.pointwise_act import reference as reference_act
from metaformer.ops.pointwise_residual import reference as reference_residual


def norm_mlp(
    x: Tensor,
    w1: Tensor,
    b1: Tensor | None,
    w2: Tensor,
    b2: Tensor | None,
    *,
    norm: str = "none",
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    eps: float = 1e-5,
    act: str = "gelu",
    act_scale: Tensor | None = None,
    act_bias: Tensor | None = None,
    scale: Tensor | None = None,
    shortcut: float | Tensor | None = 1.0,
) -> Tensor:
    """Give shortcut · x + scale · (w2 · act(w1 · norm(x) + b1) + b2) for (B, C, H, W).

    Args:
        x: the map; channels-last is fastest.
        w1: weights (M, C), or a 1×1 convolution's (M, C, 1, 1).
        b1: (M,), or none.
        w2: weights (C, M), or (C, M, 1, 1).
        b2: (C,), or none.
        norm: "group_norm" (of one group), "layer_norm" (over channels) or "none".
        gamma: the norm's weight (C,), or none.
        beta: the norm's bias (C,), or none.
        eps: the norm's.
        act: "gelu", "star_relu", "squared_relu" or "relu".
        act_scale: StarReLU's factor (1,).
        act_bias: StarReLU's offset (1,).
        scale: (C,), or none.
        shortcut: a number, (C,), or None for the branch alone.

    Raises:
        ConfigError: an unknown norm or activation.
    """
    check_names(norm, act, act_scale, act_bias)
    x = x.to(working_dtype(x))
    w1, w2 = w1.flatten(1).to(x.dtype), w2.flatten(1).to(x.dtype)
    with without_autocast(x):
        if not triton_usable(x):
            hidden = reference_act(
                x, w1, b1, norm=norm, gamma=gamma, beta=beta, eps=eps, act=act, act_scale=act_scale,
                act_bias=act_bias,
            )  # fmt: skip
            return reference_residual(hidden, w2, b2, x, scale=scale, shortcut=shortcut)
        vector = shortcut if isinstance(shortcut, Tensor) else None
        factor = None if isinstance(shortcut, Tensor) or shortcut is None else float(shortcut)
        tensors = packed(w1, b1, w2, b2, gamma, beta, scale, vector, act_scale, act_bias)
        results = torch.ops.metaformer.norm_mlp(x, *tensors, factor, eps, norm, act)
        return results[0]
