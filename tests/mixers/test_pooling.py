import pytest
import torch
from torch import nn

from metaformer.errors import ConfigError
from metaformer.layers.norm import NORMS
from metaformer.layers.scale import Scale
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


@pytest.mark.parametrize("scaled", [True, False])
@pytest.mark.parametrize("norm", list(NORMS))
def test_fused_is_norm_pooling_and_scale(norm: str, scaled: bool) -> None:
    torch.manual_seed(0)
    pooling, before = MIXERS.build("pooling", 5), NORMS.build(norm, 5).double()
    scale = Scale(5).double() if scaled else nn.Identity()
    parameters = [*before.parameters(), *scale.parameters()]
    for parameter in parameters:
        nn.init.normal_(parameter)
    x = torch.randn(2, 5, 4, 7, dtype=torch.float64, requires_grad=True)
    found, wanted = pooling.fused(x, before, scale), scale(pooling(before(x)))
    torch.testing.assert_close(found, wanted)
    for ours, theirs in zip(
        *(torch.autograd.grad(y.pow(3).sum(), (x, *parameters)) for y in (found, wanted)), strict=True
    ):
        torch.testing.assert_close(ours, theirs, atol=1e-9, rtol=1e-7)
