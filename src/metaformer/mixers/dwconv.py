"""Depthwise convolution; of kernel 7 it is ConvNeXt's mixing, https://arxiv.org/abs/2201.03545.

Liu et al. A ConvNet for the 2020s. CVPR 2022.
"""

from torch import Tensor, nn

from metaformer.layers.init import init_normal
from metaformer.mixers import MIXERS
from metaformer.serialize import ODD, Range, check_value


@MIXERS.register("dwconv")
class DepthwiseConv(nn.Module):
    """Depthwise convolution, the learned counterpart of pooling (PoolFormer paper, Table 5).

        y[c] = Σ w[c, i, j] · x[c] moved by (i, j)

    Args:
        dim: channels.
        kernel: height and width, odd.
        bias: add a bias.
        std: the weight begins as a normal distribution of it, cut at ±2; as PyTorch's by default.
    """

    def __init__(self, dim: int, kernel: int = 3, bias: bool = True, std: float | None = None) -> None:
        super().__init__()
        check_value("dwconv kernel", kernel, ODD)
        if std is not None:
            check_value("dwconv std", std, Range(0, 1, above=True))
        self.conv = nn.Conv2d(dim, dim, kernel, padding=kernel // 2, groups=dim, bias=bias)
        if std is not None:
            init_normal(self.conv, std)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)
