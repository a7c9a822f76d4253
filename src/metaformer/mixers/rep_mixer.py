"""FastViT's mixing: depthwise convolutions that become one, https://arxiv.org/abs/2303.14189.

Vasu et al. FastViT: A Fast Hybrid Vision Transformer using Structural Reparameterization. ICCV 2023.
"""

from torch import Tensor, nn

from metaformer.layers.norm import BatchNorm
from metaformer.mixers import MIXERS
from metaformer.serialize import ODD, check_value


@MIXERS.register("rep_mixer")
class RepMixer(nn.Module):
    """Normalized branches less the normalized input, which the residual adds back.

        y = bn(x) + bn(conv 1×1(x)) + bn(conv k×k(x)) − bn(x)     each with a batch norm of its own

    Of a network optimized for inference it is one depthwise convolution, which holds the residual too where
    the block has no norm (`norm="none"`, as in the paper).

    Args:
        dim: channels.
        kernel: height and width of the larger convolution.
    """

    def __init__(self, dim: int, kernel: int = 3) -> None:
        super().__init__()
        check_value("rep_mixer kernel", kernel, ODD)
        self.norm = BatchNorm(dim)
        self.skip_norm = BatchNorm(dim)
        self.point = nn.Conv2d(dim, dim, 1, groups=dim, bias=False)
        self.point_norm = BatchNorm(dim)
        self.conv = nn.Conv2d(dim, dim, kernel, padding=kernel // 2, groups=dim, bias=False)
        self.conv_norm = BatchNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        mixed = self.skip_norm(x) + self.point_norm(self.point(x)) + self.conv_norm(self.conv(x))
        return mixed - self.norm(x)
