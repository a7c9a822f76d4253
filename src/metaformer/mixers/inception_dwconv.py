"""InceptionNeXt's mixing: depthwise convolutions of three shapes, https://arxiv.org/abs/2303.16900.

Yu et al. InceptionNeXt: When Inception Meets ConvNeXt. CVPR 2024.
"""

import torch
from torch import Tensor, nn

from metaformer.errors import ConfigError
from metaformer.layers.init import init_normal
from metaformer.mixers import MIXERS
from metaformer.serialize import ODD, check_value


@MIXERS.register("inception_dwconv")
class InceptionDepthwiseConv(nn.Module):
    """A square, a wide and a high depthwise convolution, each of a share of the channels; the rest stays.

        y = concat(x₀, dwconv k×k(x₁), dwconv 1×b(x₂), dwconv b×1(x₃))     x in four parts by channel

    Args:
        dim: channels.
        kernel: height and width k of the square, odd.
        band: length b of the other two, odd.
        ratio: share of the channels that each takes, at least one channel.
    """

    def __init__(self, dim: int, kernel: int = 3, band: int = 11, ratio: float = 0.125) -> None:
        super().__init__()
        check_value("inception_dwconv kernel", kernel, ODD)
        check_value("inception_dwconv band", band, ODD)
        if not 0 < ratio <= 1 or 3 * max(1, int(dim * ratio)) > dim:
            raise ConfigError(
                f"inception_dwconv ratio {ratio}: three shares, of a channel at least, do not fit into {dim}"
            )
        share = max(1, int(dim * ratio))
        self.shares = (dim - 3 * share, share, share, share)
        square, line = kernel // 2, band // 2
        self.dwconv_hw = nn.Conv2d(share, share, kernel, padding=square, groups=share)
        self.dwconv_w = nn.Conv2d(share, share, (1, band), padding=(0, line), groups=share)
        self.dwconv_h = nn.Conv2d(share, share, (band, 1), padding=(line, 0), groups=share)
        for conv in (self.dwconv_hw, self.dwconv_w, self.dwconv_h):
            init_normal(conv)

    def forward(self, x: Tensor) -> Tensor:
        rest, square, wide, high = x.split(self.shares, 1)
        return torch.cat((rest, self.dwconv_hw(square), self.dwconv_w(wide), self.dwconv_h(high)), 1)
