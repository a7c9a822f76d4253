"""PoolFormer's mixing: the average of the neighbours, https://arxiv.org/abs/2111.11418."""

import torch.nn.functional as F
from torch import Tensor, nn

from metaformer.errors import ConfigError
from metaformer.mixers import MIXERS


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
        return F.avg_pool2d(x, self.size, 1, self.size // 2, count_include_pad=False) - x

    def extra_repr(self) -> str:
        return f"size={self.size}"
