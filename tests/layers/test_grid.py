import pytest
import torch
from torch import Tensor

from metaformer.errors import GridError
from metaformer.layers.grid import FixedGrid


class Reverse(FixedGrid):
    """Swap first and last position."""

    def mix(self, tokens: Tensor) -> Tensor:
        return tokens.flip(-1)


def test_mixes_on_its_grid_only_unless_asked() -> None:
    x = torch.arange(4.0).reshape(1, 1, 2, 2)
    assert Reverse((2, 2))(x).flatten().tolist() == [3, 2, 1, 0]
    with pytest.raises(GridError, match="Reverse mixer is made for a grid of 2×2 positions and got 4×4"):
        Reverse((2, 2))(torch.zeros(1, 1, 4, 4))


def test_interpolation_mixes_at_the_grid_and_returns_at_the_input_size() -> None:
    x = torch.zeros(1, 1, 4, 4)
    x[..., :2, :2] = 1
    y = Reverse((2, 2), "interpolate")(x)
    assert y.shape == x.shape
    assert y[0, 0, 3, 3] > 0.9 and y[0, 0, 0, 0] < 0.1
