"""PoolFormer's mixing: the average of the neighbors, https://arxiv.org/abs/2111.11418."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metaformer.errors import ConfigError
from metaformer.layers.norm import GroupNorm
from metaformer.layers.scale import Scale
from metaformer.mixers import MIXERS
from metaformer.ops.pool import pool_minus_self


@MIXERS.register("pooling")
class Pooling(nn.Module):
    """Average over a window, less the token itself, which the shortcut adds back.

    Only positions inside the map are averaged (`count_include_pad=False`): a constant map gives zero.
    """

    def __init__(self, dim: int, size: int = 3) -> None:
        super().__init__()
        if size < 1 or size % 2 == 0:
            raise ConfigError(f"pooling size {size} must be odd: an even window would change the map's size")
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        return pool_minus_self(x, self.size)

    def fused(self, x: Tensor, norm: nn.Module, scale: nn.Module) -> Tensor:
        """Give scale(pool(norm(x)) − norm(x)); in training a group norm's constants take the scale over."""
        if not torch.is_grad_enabled() or type(norm) is not GroupNorm or type(scale) is not Scale:
            return scale(self(norm(x)))
        weight = norm.weight * scale.scale
        bias = None if norm.bias is None else norm.bias * scale.scale
        return self(F.group_norm(x, 1, weight, bias, norm.eps))

    def extra_repr(self) -> str:
        return f"size={self.size}"
