"""A learned matrix over positions, the spatial MLP of ResMLP in one layer (PoolFormer paper, Table 5)."""

from torch import Tensor, nn

from metaformer.layers.grid import FixedGrid
from metaformer.mixers import MIXERS


@MIXERS.register("spatial_fc", fixed_grid=True)
class SpatialFC(FixedGrid):
    """The same linear map of the N positions for every channel."""

    def __init__(
        self, dim: int, grid: tuple[int, int], grid_mode: str = "strict", bias: bool = False
    ) -> None:
        super().__init__(grid, grid_mode)
        positions = grid[0] * grid[1]
        self.fc = nn.Linear(positions, positions, bias=bias)
        nn.init.trunc_normal_(self.fc.weight, std=0.02)

    def mix(self, tokens: Tensor) -> Tensor:
        return self.fc(tokens)
