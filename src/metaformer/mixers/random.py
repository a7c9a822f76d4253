"""RandFormer's mixing: a random matrix that is never trained, https://arxiv.org/abs/2210.13452.

Yu et al. MetaFormer Baselines for Vision. TPAMI 2024.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metaformer.layers.grid import FixedGrid
from metaformer.mixers import MIXERS


@MIXERS.register("random", fixed_grid=True)
class RandomMixing(FixedGrid):
    """Average over all positions with frozen random weights; each row of the matrix sums to one.

        y = softmax(R) · x     over the positions of each channel, R uniform

    Args:
        dim: channels.
        grid: height and width of the map.
        grid_mode: what happens at another size.
    """

    def __init__(self, dim: int, grid: tuple[int, int], grid_mode: str = "strict") -> None:
        super().__init__(grid, grid_mode)
        positions = grid[0] * grid[1]
        self.random_matrix = nn.Parameter(torch.rand(positions, positions).softmax(-1), requires_grad=False)

    def mix(self, tokens: Tensor) -> Tensor:
        return F.linear(tokens, self.random_matrix)
