"""ConvFormer's mixing: MobileNetV2's inverted separable convolution, https://arxiv.org/abs/2210.13452.

Yu et al. MetaFormer Baselines for Vision. TPAMI 2024.
"""

from torch import Tensor, nn

from metaformer.layers.act import ACTS
from metaformer.layers.mlp import EXPANSION
from metaformer.layers.pointwise import Pointwise
from metaformer.mixers import MIXERS
from metaformer.serialize import ODD, check_value


@MIXERS.register("sepconv")
class SepConv(nn.Module):
    """Linear layer to more channels, activation, depthwise convolution, linear layer back.

        y = W₂ · dwconv(act(W₁ · x))

    Args:
        dim: channels.
        expansion: channels between over dim.
        kernel: height and width of the convolution, odd.
        act: activation.
        bias: in all three layers.
    """

    def __init__(
        self, dim: int, expansion: float = 2, kernel: int = 7, act: str = "star_relu", bias: bool = False
    ) -> None:
        super().__init__()
        check_value("sepconv kernel", kernel, ODD)
        check_value("sepconv expansion", expansion, EXPANSION)
        hidden = max(1, int(expansion * dim))
        self.pwconv1 = Pointwise(dim, hidden, bias)
        self.act1 = ACTS.build(act)
        self.dwconv = nn.Conv2d(hidden, hidden, kernel, padding=kernel // 2, groups=hidden, bias=bias)
        self.pwconv2 = Pointwise(hidden, dim, bias)
        nn.init.trunc_normal_(self.dwconv.weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        return self.pwconv2(self.dwconv(self.act1(self.pwconv1(x))))
