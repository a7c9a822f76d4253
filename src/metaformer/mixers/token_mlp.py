"""MLP-Mixer's mixing: an MLP over positions, https://arxiv.org/abs/2105.01601.

Tolstikhin et al. MLP-Mixer: An all-MLP Architecture for Vision. NeurIPS 2021.
"""

from torch import Tensor, nn

from metaformer.layers.act import ACTS
from metaformer.layers.grid import FixedGrid
from metaformer.layers.init import init_normal
from metaformer.layers.mlp import EXPANSION
from metaformer.mixers import MIXERS
from metaformer.serialize import check_value


@MIXERS.register("token_mlp", fixed_grid=True)
class TokenMLP(FixedGrid):
    """The same two linear maps of the N positions for every channel, with an activation between.

        y = W₂ · act(W₁ · x + b₁) + b₂     over the positions of each channel

    Args:
        dim: channels.
        grid: height and width of the map.
        grid_mode: what happens at another size.
        expansion: hidden width over dim.
        act: activation.
    """

    def __init__(
        self,
        dim: int,
        grid: tuple[int, int],
        grid_mode: str = "strict",
        expansion: float = 0.5,
        act: str = "gelu",
    ) -> None:
        super().__init__(grid, grid_mode)
        check_value("token_mlp expansion", expansion, EXPANSION)
        positions, hidden = grid[0] * grid[1], max(1, int(expansion * dim))
        self.fc1 = nn.Linear(positions, hidden)
        self.act = ACTS.build(act)
        self.fc2 = nn.Linear(hidden, positions)
        init_normal(self.fc1)
        init_normal(self.fc2)

    def mix(self, tokens: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(tokens)))
