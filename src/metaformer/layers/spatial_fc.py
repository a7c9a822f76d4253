"""Linear layer over positions."""

from torch import Tensor, nn

from metaformer.layers.grid import FixedGrid


class SpatialFC(FixedGrid):
    """The same linear map of the N positions for every channel.

        y = W · x     over the positions of each channel

    Args:
        dim: channels.
        grid: height and width of the map.
        grid_mode: what happens at another size.
        bias: add a bias by position.
    """

    def __init__(
        self, dim: int, grid: tuple[int, int], grid_mode: str = "strict", bias: bool = False
    ) -> None:
        super().__init__(grid, grid_mode)
        positions = grid[0] * grid[1]
        self.fc = nn.Linear(positions, positions, bias=bias)
        nn.init.trunc_normal_(self.fc.weight, std=0.02)

    def mix(self, tokens: Tensor) -> Tensor:
        return self.fc(tokens)
