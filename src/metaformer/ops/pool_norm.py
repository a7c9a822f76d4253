"""PoolFormer's token mixing, and the moments of what comes out, in one pass: for inference on CPUs."""

import torch
import torch.nn.functional as F
from torch import Tensor

from metaformer.ops.native import library

SIZE = 3
"""The kernel's window; others take plain PyTorch."""


def pool_norm(
    tokens: Tensor, weight: Tensor, shortcut: Tensor, size: int, eps: float, next_eps: float
) -> tuple[Tensor, Tensor]:
    """Give y = shortcut · x + weight/σ · (pool(x) − x), and each sample's mean of y and 1/σ of y, (B, 2).

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
    y, moments = torch.empty_like(tokens), torch.empty(len(tokens), 2, dtype=torch.float32, device="cpu")
    library.call(
        "pool_norm", tokens.dtype, tokens, weight, shortcut, y, moments, *tokens.shape, eps, next_eps
    )
    return y, moments


def reference(
    tokens: Tensor, weight: Tensor, shortcut: Tensor, size: int, eps: float, next_eps: float
) -> tuple[Tensor, Tensor]:
    """The same in plain PyTorch."""
    n = group_norm(tokens, eps)
    pooled = F.avg_pool2d(n.permute(0, 3, 1, 2), size, 1, size // 2, count_include_pad=False)
    branch = pooled.permute(0, 2, 3, 1) - n
    y = torch.addcmul(tokens * shortcut.to(n.dtype), branch, weight.to(n.dtype))
    wide = torch.promote_types(y.dtype, torch.float32)
    variance, mean = torch.var_mean(y.to(wide), (1, 2, 3), correction=0)
    return y, torch.stack([mean, torch.rsqrt(variance + next_eps)], 1)


def group_norm(tokens: Tensor, eps: float) -> Tensor:
    """Mean 0 and variance 1 over all of a sample of (B, H, W, C)."""
    return F.group_norm(tokens.permute(0, 3, 1, 2), 1, eps=eps).permute(0, 2, 3, 1)


def normalized(tokens: Tensor, moments: Tensor) -> Tensor:
    """The same by moments (B, 2) that are known."""
    mean, factor = moments.to(tokens.dtype)[:, :, None, None, None].unbind(1)
    return (tokens - mean) * factor
