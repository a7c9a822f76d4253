"""The 1×1 product with a norm before it and an activation behind it: how a separable convolution begins."""

from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

from metaformer.errors import ConfigError, UnknownName
from metaformer.ops.backend import triton_usable, without_autocast, working_dtype

NORMS: Final = ("group_norm", "layer_norm", "none")
ACTS: Final = ("gelu", "star_relu", "squared_relu", "relu", "none")


def pointwise_act(
    x: Tensor,
    w: Tensor,
    bias: Tensor | None = None,
    *,
    norm: str = "none",
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    eps: float = 1e-5,
    act: str = "star_relu",
    act_scale: Tensor | None = None,
    act_bias: Tensor | None = None,
) -> Tensor:
    """Give act(w · norm(x) + bias), (B, M, H, W), of (B, C, H, W).

    Args:
        x: the map; channels-last is fastest.
        w: weights (M, C), or a 1×1 convolution's (M, C, 1, 1).
        bias: (M,), or none.
        norm: "group_norm" (of one group), "layer_norm" (over channels) or "none".
        gamma: the norm's weight (C,), or none.
        beta: the norm's bias (C,), or none.
        eps: the norm's.
        act: "gelu", "star_relu", "squared_relu", "relu" or "none".
        act_scale: StarReLU's factor (1,).
        act_bias: StarReLU's offset (1,).

    Raises:
        ConfigError: an unknown norm or activation.
    """
    check_names(norm, act, act_scale, act_bias)
    x = x.to(working_dtype(x))
    w = w.flatten(1).to(x.dtype)
    with without_autocast(x):
        if not triton_usable(x):
            return reference(
                x, w, bias, norm=norm, gamma=gamma, beta=beta, eps=eps, act=act, act_scale=act_scale,
                act_bias=act_bias,
            )  # fmt: skip
        tensors = packed(w, bias, gamma, beta, act_scale, act_bias)
        results = torch.ops.metaformer.pointwise_act(x, *tensors, eps, norm, act)
        return results[0]


def reference(
    x: Tensor,
    w: Tensor,
    bias: Tensor | None,
    *,
    norm: str,
    gamma: Tensor | None,
    beta: Tensor | None,
    eps: float,
    act: str,
    act_scale: Tensor | None,
    act_bias: Tensor | None,
) -> Tensor:
    """The same in plain PyTorch."""
    gamma, beta, bias, act_scale, act_bias = (
        tensor if tensor is None else tensor.to(x.dtype)
        for tensor in (gamma, beta, bias, act_scale, act_bias)
    )
    if norm == "group_norm":
        x = F.group_norm(x, 1, gamma, beta, eps)
    elif norm == "layer_norm":
        x = F.layer_norm(x.permute(0, 2, 3, 1), x.shape[1:2], gamma, beta, eps).permute(0, 3, 1, 2)
    y = F.conv2d(x, w[:, :, None, None], bias)
    if act == "gelu":
        return F.gelu(y)
    if act == "none":
        return y
    y = F.relu(y)
    if act == "relu":
        return y
    y = y.square()
    if act_scale is not None and act_bias is not None:
        y = act_scale * y + act_bias
    return y


def check_names(norm: str, act: str, act_scale: Tensor | None, act_bias: Tensor | None) -> None:
    """Refuse what no form knows.

    Raises:
        ConfigError: an unknown norm or activation, or StarReLU without its two numbers, or another with them.
    """
    if norm not in NORMS:
        raise UnknownName("norm", norm, NORMS)
    if act not in ACTS:
        raise UnknownName("act", act, ACTS)
    if [act_scale is None, act_bias is None] != [act != "star_relu"] * 2:
        raise ConfigError(f"act_scale and act_bias belong to star_relu, and act is {act!r}")


def packed(*tensors: Tensor | None) -> list[Tensor | None]:
    """Lay each tensor out without gaps, as kernels read it."""
    return [None if tensor is None else tensor.contiguous() for tensor in tensors]
