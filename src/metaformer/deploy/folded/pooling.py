"""Pooling with its norm, scale and shortcut."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metaformer.deploy.folded.norm import BareGroupNorm, take_apart
from metaformer.deploy.folded.shortcut import Shortcut
from metaformer.mixers.pooling import Pooling
from metaformer.ops.backend import triton_usable
from metaformer.ops.pool_residual import pool_residual


class FoldedPooling(nn.Module):
    """shortcut + γ·s·(pool(n) − n): pooling keeps constants, so the norm's bias cancels out."""

    def __init__(self, mixer: Pooling, norm: nn.Module, scale: Tensor | None, shortcut: Shortcut) -> None:
        super().__init__()
        self.norm, gain, _ = take_apart(norm)
        self.shortcut, self.size = shortcut, mixer.size
        factor = gain if scale is None else scale if gain is None else gain * scale
        self.scale = None if factor is None else nn.Parameter(factor.clone(), requires_grad=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map (B, H, W, C) to the same shape."""
        if self.scale is not None and isinstance(self.norm, BareGroupNorm) and triton_usable(tokens):
            factor = self.shortcut.factor
            weight = self.scale.expand(tokens.shape[-1])
            y = pool_residual(
                tokens.permute(0, 3, 1, 2),
                weight,
                self.size,
                self.norm.eps,
                0.0 if factor is None else factor,
            )
            return y.permute(0, 2, 3, 1)
        n = self.norm(tokens)
        pooled = F.avg_pool2d(n.permute(0, 3, 1, 2), self.size, 1, self.size // 2, count_include_pad=False)
        branch = pooled.permute(0, 2, 3, 1) - n
        past = self.shortcut(tokens)
        if past is None:
            return branch if self.scale is None else branch * self.scale
        return past + branch if self.scale is None else torch.addcmul(past, branch, self.scale)
