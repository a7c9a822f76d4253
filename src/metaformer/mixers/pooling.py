"""PoolFormer's mixing: average pooling, https://arxiv.org/abs/2111.11418.

Yu et al. MetaFormer Is Actually What You Need for Vision. CVPR 2022.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metaformer.errors import ConfigError
from metaformer.layers.drop_path import DropPath
from metaformer.layers.norm import GroupNorm
from metaformer.layers.scale import Scale
from metaformer.mixers import MIXERS
from metaformer.ops import train_pool
from metaformer.ops.pool import pool_minus_self


@MIXERS.register("pooling")
class Pooling(nn.Module):
    """Average pooling minus the input, which the residual adds back.

        y(p) = mean(x(q) of the positions q in the window of p) − x(p)

    Only positions inside are averaged (`count_include_pad=False`): a constant input gives zero.

    Args:
        dim: channels.
        size: height and width of the window, odd.
    """

    def __init__(self, dim: int, size: int = 3) -> None:
        super().__init__()
        if size < 1 or size % 2 == 0:
            raise ConfigError(f"pooling size {size} must be odd: an even window changes the output's size")
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        return pool_minus_self(x, self.size)

    def fused(self, x: Tensor, norm: nn.Module, scale: nn.Module) -> Tensor:
        """scale(pool(norm(x)) − norm(x)); in training the scale is folded into a group norm's constants."""
        if not torch.is_grad_enabled() or type(norm) is not GroupNorm or type(scale) is not Scale:
            return scale(self(norm(x)))
        weight = norm.weight * scale.scale
        bias = None if norm.bias is None else norm.bias * scale.scale
        return self(F.group_norm(x, 1, weight, bias, norm.eps))

    def fused_residual(
        self, x: Tensor, norm: nn.Module, scale: nn.Module, drop_path: DropPath, next_eps: float
    ) -> tuple[Tensor, Tensor] | None:
        """X + drop_path(scale(pool(norm(x)) − norm(x))) as one operation; none where it does not run.

        With it come the result's moments, by `next_eps`: mean and 1/σ of each sample, (B, 2).
        """
        known = type(norm) is GroupNorm and type(scale) in (Scale, nn.Identity)
        if not known or not train_pool.supports(x, self.size):
            return None
        assert isinstance(norm, GroupNorm)
        weight = norm.weight * scale.scale if isinstance(scale, Scale) else norm.weight
        factors = drop_path.factors(x)
        factors = None if factors is None else factors.flatten()
        y, _, moments = train_pool.train_pool(x, weight, norm.bias, factors, norm.eps, next_eps)
        return y, moments.detach()

    def extra_repr(self) -> str:
        return f"size={self.size}"
