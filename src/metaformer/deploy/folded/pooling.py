"""Pooling with its norm, scale and shortcut."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metaformer.deploy.folded.norm import BareGroupNorm, take_apart
from metaformer.deploy.folded.prepared import Prepared
from metaformer.deploy.folded.shortcut import Shortcut
from metaformer.mixers.pooling import Pooling
from metaformer.ops.backend import triton_usable
from metaformer.ops.pool_norm import pool_norm
from metaformer.ops.pool_residual import pool_residual


class FoldedPooling(Prepared):
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

    def with_norm(self, tokens: Tensor, next_eps: float) -> tuple[Tensor, Tensor]:
        """Give what `forward` gives, and that normalized over each sample; the own norm is of one group."""
        weight, past = self.kept("constants", lambda: self._constants(tokens.shape[-1]))
        eps: Any = self.norm.eps
        return pool_norm(tokens, weight, past, self.size, eps, next_eps)

    def _constants(self, dim: int) -> tuple[Tensor, Tensor]:
        """The branch's and the shortcut's factors, (C,) in float32."""
        branch = torch.ones(1) if self.scale is None else self.scale.float()
        past = self.shortcut.factor
        past = past.float() if isinstance(past, Tensor) else torch.tensor([past or 0.0])
        return branch.expand(dim).contiguous(), past.expand(dim).contiguous()
