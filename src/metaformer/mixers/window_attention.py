"""Swin Transformer's mixing: attention in shifted windows, https://arxiv.org/abs/2103.14030.

Liu et al. Swin Transformer: Hierarchical Vision Transformer using Shifted Windows. ICCV 2021.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metaformer.layers import windows
from metaformer.layers.attention import attend, count_heads, merge_heads, split_heads
from metaformer.layers.pointwise import Pointwise
from metaformer.mixers import MIXERS
from metaformer.serialize import POSITIVE_INT, Range, check_value


@MIXERS.register("window_attention")
class WindowAttention(nn.Module):
    """Every position attends to those in its window; shifted windows in every second block join them.

        q, k, v = W · x                            of each window's positions
        y = W' · softmax(q · kᵀ / √D + bias) · v   bias learned by head and relative position

    A map that windows do not divide gets zeros below and to the right, which are attended to.

    Args:
        dim: channels.
        window: height and width of a window.
        shift: positions by which the windows are shifted, half of `window` in every second block.
        head_dim: channels of a head.
        qkv_bias: bias of queries, keys and values.
    """

    def __init__(
        self, dim: int, window: int = 7, shift: int = 0, head_dim: int = 32, qkv_bias: bool = True
    ) -> None:
        super().__init__()
        check_value("window_attention window", window, POSITIVE_INT)
        check_value("window_attention shift", shift, Range(0, window - 1, integer=True))
        self.window, self.shift = window, shift
        self.heads = count_heads("window_attention", dim, head_dim)
        self.qkv = Pointwise(dim, 3 * self.heads * head_dim, qkv_bias)
        self.proj = Pointwise(self.heads * head_dim, dim)
        self.relative_bias = nn.Parameter(torch.empty(2 * window - 1, 2 * window - 1, self.heads))
        nn.init.trunc_normal_(self.relative_bias, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2], x.shape[3]
        # none along an axis of one window
        down, right = (self.shift * (1 - 1 // windows.count(n, self.window)) for n in (height, width))
        x, bias = windows.pad(x, self.window), self._bias()
        padded = x.shape[2], x.shape[3]
        if self.shift:
            x = windows.roll(windows.roll(x, 2, down), 3, right)
            # the original's 100: a weight of e⁻¹⁰⁰ is none
            bias = torch.where(self._apart(x, down, right), bias - 100, bias).repeat(x.shape[0], 1, 1, 1)
        q, k, v = split_heads(windows.split(self.qkv(x), self.window), 3, self.heads)
        y = windows.merge(merge_heads(attend(q, k, v, bias)), self.window, *padded)
        if self.shift:
            y = windows.roll(windows.roll(y, 2, padded[0] - down), 3, padded[1] - right)
        return self.proj(windows.crop(y, height, width))

    def _bias(self) -> Tensor:
        """The relative positions' biases by query and key, (1, heads, N, N)."""
        # the table holds i − j, of rows and of columns
        rows = windows.by_relative_position(self.relative_bias.flip(0, 1), self.window, self.window)
        both = windows.by_relative_position(rows.movedim(2, 0), self.window, self.window)
        return both.permute(4, 2, 0, 3, 1).flatten(3, 4).flatten(1, 2).unsqueeze(0)

    def _apart(self, x: Tensor, down: int, right: int) -> Tensor:
        """Pairs of positions that only the roll brought into one window, (windows, 1, N, N)."""
        height, width = x.shape[2], x.shape[3]
        rows = F.pad(x.new_zeros((1, 1, height - down, width)), (0, 0, 0, down), value=1.0)
        columns = F.pad(x.new_zeros((1, 1, height, width - right)), (0, right, 0, 0), value=2.0)
        region = windows.split(rows + columns, self.window)  # (windows, N, 1)
        return (region != region.transpose(1, 2)).unsqueeze(1)
