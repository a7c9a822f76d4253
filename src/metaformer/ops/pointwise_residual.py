"""The 1×1 product with scale and shortcut behind it: how a separable convolution and an MLP end."""

import torch
import torch.nn.functional as F
from torch import Tensor

from metaformer.ops.backend import triton_usable, without_autocast, working_dtype
from metaformer.ops.pointwise_act import packed


def pointwise_residual(
    y: Tensor,
    w: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    *,
    scale: Tensor | None = None,
    shortcut: float | Tensor | None = 1.0,
) -> Tensor:
    """Give shortcut · residual + scale · (w · y + bias), (B, C, H, W), of (B, M, H, W).

    Args:
        y: what is multiplied; channels-last is fastest.
        w: weights (C, M), or a 1×1 convolution's (C, M, 1, 1).
        bias: (C,), or none.
        residual: the map (B, C, H, W) to add, or none.
        scale: (C,), or none.
        shortcut: a number or (C,); None leaves the residual out.
    """
    y = y.to(working_dtype(y))
    w = w.flatten(1).to(y.dtype)
    if shortcut is None:
        residual = None
    if residual is not None:
        residual = residual.to(y.dtype)
    with without_autocast(y):
        if not triton_usable(y):
            return reference(y, w, bias, residual, scale=scale, shortcut=shortcut)
        vector = shortcut if isinstance(shortcut, Tensor) else None
        factor = 1.0 if isinstance(shortcut, Tensor) or shortcut is None else float(shortcut)
        tensors = packed(w, bias, scale)
        (vector,) = packed(vector)
        result: Tensor = torch.ops.metaformer.pointwise_residual(y, *tensors, residual, vector, factor)
        return result


def reference(
    y: Tensor,
    w: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    *,
    scale: Tensor | None,
    shortcut: float | Tensor | None,
) -> Tensor:
    """The same in plain PyTorch."""
    branch = F.conv2d(y, w[:, :, None, None], None if bias is None else bias.to(y.dtype))
    factor = None if scale is None else scale.to(y.dtype)[:, None, None]
    if residual is None or shortcut is None:
        return branch if factor is None else branch * factor
    if isinstance(shortcut, Tensor):
        straight = residual * shortcut.to(y.dtype)[:, None, None]
    else:
        straight = residual if shortcut == 1 else residual * shortcut
    return straight + branch if factor is None else torch.addcmul(straight, branch, factor)
