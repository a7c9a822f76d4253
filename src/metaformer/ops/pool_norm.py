"""PoolFormer's token mixing and the norm after it, in one pass over a sample: for inference on CPUs."""

import torch
import torch.nn.functional as F
from torch import Tensor

from metaformer.ops.native import library

SIZE = 3
"""The kernel's window; others take plain PyTorch."""


def pool_norm(
    tokens: Tensor, weight: Tensor, shortcut: Tensor, size: int, eps: float, next_eps: float
) -> tuple[Tensor, Tensor]:
    """Give y = shortcut · x + weight/σ · (pool(x) − x), and y with mean 0 and variance 1 over each sample.

    Args:
        tokens: the map (B, H, W, C).
        weight: (C,) in float32: the norm's weight, times LayerScale's.
        shortcut: (C,) in float32.
        size: odd width and height of the window; positions outside the map do not count.
        eps: added to the variance over each sample of x, whose root is σ.
        next_eps: the same of y.
    """
    if size != SIZE or not library.usable(tokens):
        return reference(tokens, weight, shortcut, size, eps, next_eps)
    y, z = torch.empty_like(tokens), torch.empty_like(tokens)
    library.call("pool_norm", tokens.dtype, tokens, weight, shortcut, y, z, *tokens.shape, eps, next_eps)
    return y, z


def reference(
    tokens: Tensor, weight: Tensor, shortcut: Tensor, size: int, eps: float, next_eps: float
) -> tuple[Tensor, Tensor]:
    """The same in plain PyTorch."""
    n = normalised(tokens, eps)
    pooled = F.avg_pool2d(n.permute(0, 3, 1, 2), size, 1, size // 2, count_include_pad=False)
    branch = pooled.permute(0, 2, 3, 1) - n
    y = torch.addcmul(tokens * shortcut.to(n.dtype), branch, weight.to(n.dtype))
    return y, normalised(y, next_eps)


def normalised(tokens: Tensor, eps: float) -> Tensor:
    """Mean 0 and variance 1 over all of a sample of (B, H, W, C)."""
    return F.group_norm(tokens.permute(0, 3, 1, 2), 1, eps=eps).permute(0, 2, 3, 1)
