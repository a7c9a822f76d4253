"""The staircase shift as oneDNN runs it fastest."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metaformer.layers.cycle_fc import AXES, CycleFC
from metaformer.ops.shift import staircase


class Shift(nn.Module):
    """What `shift_channels` does, as a convolution of each channel with a one and zeros.

    Half the time of copies that take every third channel: it reads and writes whole cache lines.
    """

    weight: Tensor

    def __init__(self, layer: CycleFC) -> None:
        super().__init__()
        kernel, dim = layer.staircase, layer.in_channels
        taps = torch.tensor(staircase(kernel))[torch.arange(dim) % kernel] + kernel // 2
        along_height = AXES[layer.axis] == 2
        shape, self.padding = (
            ((kernel, 1), (kernel // 2, 0)) if along_height else ((1, kernel), (0, kernel // 2))
        )
        weight = F.one_hot(taps, kernel).to(layer.weight.dtype).reshape(dim, 1, *shape)
        self.register_buffer("weight", weight, persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Shift (B, H, W, C)."""
        maps = tokens.permute(0, 3, 1, 2)
        return F.conv2d(maps, self.weight, padding=self.padding, groups=len(self.weight)).permute(0, 2, 3, 1)
