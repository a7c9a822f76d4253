"""MambaOut's mixing: a gated depthwise convolution, https://arxiv.org/abs/2405.07992.

Yu and Wang. MambaOut: Do We Really Need Mamba for Vision? CVPR 2025.
"""

import torch
from torch import Tensor, nn

from metaformer.errors import ConfigError
from metaformer.layers.act import ACTS
from metaformer.layers.init import init_normal
from metaformer.layers.pointwise import Pointwise
from metaformer.mixers import MIXERS
from metaformer.serialize import ODD, check_value


@MIXERS.register("gated_dwconv")
class GatedDepthwiseConv(nn.Module):
    """Linear layer to gates and values, depthwise convolution of a part of the values, linear layer back.

        g, u, v = W₁ · x                                gates, and values in two parts
        y = W₂ · (act(g) · concat(u, dwconv(v)))

    In a block without a channel MLP it is MambaOut's Gated CNN block: it mixes channels too.

    Args:
        dim: channels.
        expansion: gates, and values, over dim.
        kernel: height and width of the convolution, odd.
        conv_ratio: convolved values over dim.
        act: activation of the gates.
        bias: in all three layers.
    """

    def __init__(
        self,
        dim: int,
        expansion: float = 8 / 3,
        kernel: int = 7,
        conv_ratio: float = 1.0,
        act: str = "gelu",
        bias: bool = True,
    ) -> None:
        super().__init__()
        check_value("gated_dwconv kernel", kernel, ODD)
        if not 0 < conv_ratio <= expansion <= 1000:
            raise ConfigError(
                f"gated_dwconv conv_ratio {conv_ratio} must be above 0 and at most its expansion, {expansion}"
            )
        hidden, convolved = max(1, int(expansion * dim)), max(1, int(conv_ratio * dim))
        self.parts = (hidden, hidden - convolved, convolved)
        self.fc1 = Pointwise(dim, 2 * hidden, bias)
        self.act = ACTS.build(act)
        self.conv = nn.Conv2d(convolved, convolved, kernel, padding=kernel // 2, groups=convolved, bias=bias)
        self.fc2 = Pointwise(hidden, dim, bias)
        init_normal(self.conv)

    def forward(self, x: Tensor) -> Tensor:
        gates, rest, convolved = self.fc1(x).split(self.parts, 1)
        return self.fc2(self.act(gates) * torch.cat((rest, self.conv(convolved)), 1))
