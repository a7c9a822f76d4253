"""PoolFormer's token mixing with its norm, scale and shortcut, https://arxiv.org/abs/2111.11418.

Pooling that only counts positions inside the map keeps constants, so pool(n(x)) − n(x) needs neither the mean
nor the bias of a GroupNorm n of one group: it is γ/σ · (pool(x) − x). And the gradient of that is a stencil
again, which needs nothing but x.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from metaformer.ops.backend import triton_usable, without_autocast, working_dtype


def pool_residual(x: Tensor, weight: Tensor, size: int, eps: float, shortcut: float | Tensor = 1.0) -> Tensor:
    """Give shortcut · x + weight/σ · (pool(x) − x) for (B, C, H, W).

    Args:
        x: the map; channels-last is fastest.
        weight: (C,): the norm's weight, times LayerScale's.
        size: odd width and height of the window.
        eps: added to the variance over channels and positions of each sample, whose root is σ.
        shortcut: a number or (C,); 0 gives the branch alone.
    """
    x = x.to(working_dtype(x))
    with without_autocast(x):
        if not triton_usable(x):
            return reference(x, weight, size, eps, shortcut)
        vector = shortcut.contiguous() if isinstance(shortcut, Tensor) else None
        factor = 1.0 if isinstance(shortcut, Tensor) else float(shortcut)
        results = torch.ops.metaformer.pool_residual(x, weight.contiguous(), vector, size, eps, factor)
        return results[0]


def reference(x: Tensor, weight: Tensor, size: int, eps: float, shortcut: float | Tensor = 1.0) -> Tensor:
    """The same in plain PyTorch."""
    if x.shape[0] == 0:  # torch warns of variances over nothing
        return x * weight[:, None, None].to(x.dtype)
    wide = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
    variance = wide.var((1, 2, 3), correction=0, keepdim=True)
    gain = (weight[:, None, None] * (variance + eps).rsqrt()).to(x.dtype)  # (B, C, 1, 1)
    mean = F.avg_pool2d(x, size, 1, size // 2, count_include_pad=False)
    if isinstance(shortcut, Tensor):
        straight = x * shortcut.to(x.dtype)[:, None, None]
    elif shortcut == 0:
        return gain * (mean - x)
    else:
        straight = x if shortcut == 1 else x * shortcut
    return torch.addcmul(straight, gain, mean - x)
