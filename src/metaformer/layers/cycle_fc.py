"""CycleFC: a linear layer over channels that are read along a staircase, https://arxiv.org/abs/2107.10224."""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from metaformer.errors import ConfigError
from metaformer.layers.pointwise import Pointwise
from metaformer.ops.cycle import shift_channels

AXES = {"height": 2, "width": 3}


class CycleFC(Pointwise):
    """Linear layer whose input channel c is read `staircase(kernel)[c % kernel]` positions along one axis.

        y = W · z + b     where z[c] at p is x[c] at p + staircase[c mod kernel]

    Exactly the original's deformable convolution with its fixed integer offsets, without that operation.

    Args:
        dim: channels.
        kernel: steps of the staircase, odd.
        axis: along which it goes.
        bias: add a bias.
    """

    def __init__(
        self, dim: int, kernel: int = 3, axis: Literal["width", "height"] = "width", bias: bool = True
    ) -> None:
        if axis not in AXES:
            raise ConfigError(f"cycle_fc axis {axis!r} is neither 'width' nor 'height'")
        if kernel < 1 or kernel % 2 == 0:
            raise ConfigError(f"cycle_fc kernel {kernel} must be odd")
        super().__init__(dim, dim, bias)
        self.staircase = kernel
        self.axis = axis

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(shift_channels(x, self.staircase, AXES[self.axis]), self.weight, self.bias)
