"""Convolution of all channels or of groups of them: ResNeXt's mixing, https://arxiv.org/abs/1611.05431.

Xie et al. Aggregated Residual Transformations for Deep Neural Networks. CVPR 2017.
"""

from torch import Tensor, nn

from metaformer.errors import ConfigError
from metaformer.mixers import MIXERS
from metaformer.serialize import ODD, POSITIVE_INT, check_value


@MIXERS.register("conv")
class Conv(nn.Module):
    """Convolution that keeps the size; it mixes the channels of a group too.

        y[c] = Σ W[c, d, i, j] · x[d] moved by (i, j)     over the channels d of c's group

    Args:
        dim: channels.
        kernel: height and width.
        groups: groups of channels that do not meet, 1 for a dense convolution.
        bias: add a bias.
    """

    def __init__(self, dim: int, kernel: int = 3, groups: int = 1, bias: bool = True) -> None:
        super().__init__()
        check_value("conv kernel", kernel, ODD)
        check_value("conv groups", groups, POSITIVE_INT)
        if dim % groups:
            raise ConfigError(f"conv groups {groups} do not divide dim {dim}")
        self.conv = nn.Conv2d(dim, dim, kernel, padding=kernel // 2, groups=groups, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)
