"""Depthwise convolution; of kernel 7 it is ConvNeXt's mixing, https://arxiv.org/abs/2201.03545."""

from torch import Tensor, nn

from metaformer.errors import ConfigError
from metaformer.layers.init import init_normal
from metaformer.mixers import MIXERS


@MIXERS.register("dwconv")
class DepthwiseConv(nn.Module):
    """Depthwise convolution, the learned counterpart of pooling (PoolFormer paper, Table 5).

    Its weight begins as PyTorch's do, or with `std` as a normal distribution cut at ±2.
    """

    def __init__(self, dim: int, kernel: int = 3, bias: bool = True, std: float | None = None) -> None:
        super().__init__()
        if kernel < 1 or kernel % 2 == 0:
            raise ConfigError(f"dwconv kernel {kernel} must be odd")
        if std is not None and not 0 < std <= 1:
            raise ConfigError(f"dwconv std {std} must be above 0 and at most 1")
        self.conv = nn.Conv2d(dim, dim, kernel, padding=kernel // 2, groups=dim, bias=bias)
        if std is not None:
            init_normal(self.conv, std)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)
