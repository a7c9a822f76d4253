import pytest
import torch

from metaformer.errors import ConfigError
from metaformer.mixers import MIXERS


@pytest.mark.parametrize("size", [1, 3, 5, 9])
def test_average_of_the_positions_inside_less_the_token(size: int) -> None:
    x = torch.randn(1, 2, 4, 6)
    y = MIXERS.build(f"pooling(size={size})", 2)(x)
    for row in range(4):
        for column in range(6):
            reach = size // 2
            window = x[
                ..., max(0, row - reach) : row + reach + 1, max(0, column - reach) : column + reach + 1
            ]
            torch.testing.assert_close(y[..., row, column], window.mean((2, 3)) - x[..., row, column])


def test_a_constant_map_gives_zero_at_the_border_too() -> None:
    assert MIXERS.build("pooling", 1)(torch.ones(1, 1, 5, 5)).abs().max() < 1e-6


@pytest.mark.parametrize("size", [0, 2, -3])
def test_even_windows_are_refused(size: int) -> None:
    with pytest.raises(ConfigError, match="odd"):
        MIXERS.build(f"pooling(size={size})", 4)
