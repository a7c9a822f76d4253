"""Global average pooling of channels-last tensors, after a norm."""

from torch import Tensor

from metaformer.ops import cpp
from metaformer.ops.cpp import kernels
from metaformer.ops.linear import NORMS
from metaformer.ops.norm import needs_gradient
from metaformer.ops.norm import norm as normalized


def global_pool(
    x: Tensor,
    norm: str = "none",
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Mean over the positions of norm(x) · weight + bias: (B, H, W, C) to (B, C).

    Args:
        x: the activations.
        norm: "group_norm" (of one group), "layer_norm" (over channels) or "none".
        weight: the norm's (C,), or none.
        bias: the norm's (C,), or none.
        eps: the norm's.
    """
    if not cpp.supports(x) or needs_gradient(weight, bias):
        return normalized(x, norm, weight, bias, eps).mean((1, 2))
    batch, height, width, channels = x.shape
    out = x.new_empty(batch, channels)
    kernels.global_pool(
        x=x, weight=weight, bias=bias, out=out, batch=batch, positions=height * width, channels=channels,
        norm=NORMS[norm], eps=eps,
    )  # fmt: skip
    return out
