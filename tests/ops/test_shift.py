import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from metaformer.ops.shift import shift_channels, staircase

odd = st.sampled_from([1, 3, 5, 7, 9])
axes = st.sampled_from([2, 3])


def one_by_one(x: torch.Tensor, kernel: int, axis: int) -> torch.Tensor:
    """The definition, element by element."""
    out = torch.zeros_like(x)
    for c in range(x.shape[1]):
        offset = (c + kernel // 2) % kernel - kernel // 2
        for p in range(x.shape[axis]):
            if 0 <= p + offset < x.shape[axis]:
                out[:, c].select(axis - 1, p).copy_(x[:, c].select(axis - 1, p + offset))
    return out


def test_the_stairs_start_at_the_center() -> None:
    assert staircase(3) == [0, 1, -1]
    assert staircase(5) == [0, 1, 2, -2, -1]
    assert staircase(1) == [0]


@settings(max_examples=60, deadline=None)
@given(odd, axes, st.integers(1, 9), st.integers(1, 9), st.integers(1, 12))
def test_shift_is_its_definition(kernel: int, axis: int, height: int, width: int, dim: int) -> None:
    x = torch.randn(2, dim, height, width).to(memory_format=torch.channels_last)
    assert torch.equal(shift_channels(x, kernel, axis), one_by_one(x, kernel, axis))


@pytest.mark.parametrize("axis", [2, 3])
def test_gradients(axis: int) -> None:
    x = torch.randn(1, 5, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: shift_channels(t, 3, axis), x)
    assert torch.autograd.gradgradcheck(lambda t: shift_channels(t, 3, axis), x)


def test_channels_last_stays() -> None:
    x = torch.randn(2, 8, 5, 5).to(memory_format=torch.channels_last)
    assert shift_channels(x, 3, 3).is_contiguous(memory_format=torch.channels_last)


def test_border_is_zero_even_beside_infinities() -> None:
    x = torch.full((1, 2, 2, 2), float("inf"))
    assert shift_channels(x, 3, 3)[0, 1, :, 1].eq(0).all()
