"""Depthwise convolution, the learned counterpart of pooling in the PoolFormer paper's Table 5."""

from torch import Tensor, nn

from metaformer.errors import ConfigError
from metaformer.mixers import MIXERS


@MIXERS.register("dwconv")
class DepthwiseConv(nn.Module):
    """Depthwise convolution."""

    def __init__(self, dim: int, kernel: int = 3, bias: bool = True) -> None:
        super().__init__()
        if kernel < 1 or kernel % 2 == 0:
            raise ConfigError(f"dwconv kernel {kernel} must be odd")
        self.conv = nn.Conv2d(dim, dim, kernel, padding=kernel // 2, groups=dim, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)
