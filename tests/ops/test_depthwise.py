import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from metaformer.ops.depthwise import SIDES, Star, depthwise, pack, reference, star_relu, supported
from metaformer.ops.native import library
from ops.numerics import DTYPES, close, threads

compiled = pytest.mark.skipif(library.load() is None, reason=library.describe())
LANES = library.lanes()
stars = st.sampled_from([None, (1.0, 0.0), (0.9, -0.4)])


def wide(tokens: Tensor, weight: Tensor, bias: Tensor | None, star: Star | None) -> Tensor:
    return reference(tokens.double(), weight.double(), None if bias is None else bias.double(), star)


def compare(size: tuple[int, ...], side: int, dtype: torch.dtype, biased: bool, star: Star | None) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(*size).to(dtype), (torch.randn(size[-1], 1, side, side) / side).to(dtype)
    bias = torch.randn(size[-1]).to(dtype) if biased else None
    before = x.clone()
    found = depthwise(x, weight, bias, star, pack(weight))
    assert found.dtype == dtype and torch.equal(x, before)
    close(found, wide(x, weight, bias, star), DTYPES[dtype])


@settings(max_examples=120, deadline=None)
@given(
    st.integers(1, 3),
    st.integers(1, 9),
    st.integers(1, 40),
    st.integers(1, 3),
    st.sampled_from(SIDES),
    st.sampled_from(list(DTYPES)),
    st.booleans(),
    stars,
    st.integers(1, 5),
)
def test_is_what_float64_gives(
    batch: int,
    height: int,
    width: int,
    groups: int,
    side: int,
    dtype: torch.dtype,
    biased: bool,
    star: Star | None,
    worker: int,
) -> None:
    with threads(worker):
        compare((batch, height, width, groups * LANES), side, dtype, biased, star)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 6), (6, 1), (2, 3), (4, 4)])
@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("star", [None, (0.9, -0.4)])
def test_maps_smaller_than_the_window(height: int, width: int, side: int, star: Star | None) -> None:
    compare((2, height, width, LANES), side, torch.float32, True, star)


@pytest.mark.parametrize(("height", "width"), [(40, 300), (9, 900), (200, 60)])
@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("worker", [1, 3])
def test_maps_that_take_several_bands(height: int, width: int, side: int, worker: int) -> None:
    with threads(worker):
        compare((1, height, width, LANES), side, torch.float32, True, (0.9, -0.4))


@compiled
@pytest.mark.parametrize("star", [None, (0.9, -0.4)])
def test_what_is_no_number_stays_in_its_window_and_channel(star: Star | None) -> None:
    x, weight = torch.randn(2, 20, 20, 2 * LANES), torch.randn(2 * LANES, 1, 5, 5)
    broken = x.clone()
    broken[1, 9, 10, 3] = torch.nan
    whole, found = (depthwise(map_, weight, None, star, pack(weight)) for map_ in (x, broken))
    reached = torch.zeros_like(x, dtype=torch.bool)
    reached[1, 7:12, 8:13, 3] = True
    assert torch.equal(found.isnan(), reached)
    close(found[~reached], whole[~reached], 1e-5)


@compiled
def test_each_tap_lies_where_it_is_read() -> None:
    weight = torch.randn(3 * LANES, 1, 5, 5).bfloat16()
    taps = pack(weight)
    assert taps.shape == (3, 25, LANES) and taps.dtype == torch.float32 and taps.is_contiguous()
    for c in (0, 1, LANES, 3 * LANES - 1):
        assert torch.equal(taps[c // LANES, :, c % LANES], weight[c].float().flatten())


@compiled
def test_what_the_kernel_takes() -> None:
    assert all(supported(torch.zeros(2 * LANES, 1, side, side)) for side in SIDES)
    assert not any(supported(torch.zeros(2 * LANES, 1, side, side)) for side in (1, 3, 4, 9))
    assert not supported(torch.zeros(LANES + 1, 1, 7, 7)) and not supported(torch.zeros(LANES // 2, 1, 7, 7))
    assert not supported(torch.zeros(LANES, 1, 5, 7)) and not supported(torch.zeros(LANES, 2, 7, 7))


@pytest.mark.parametrize(("channels", "side"), [(3, 7), (5, 3), (LANES, 3)])
def test_without_a_packed_weight_plain_pytorch_runs(channels: int, side: int) -> None:
    x, weight, bias = (
        torch.randn(2, 6, 5, channels),
        torch.randn(channels, 1, side, side),
        torch.randn(channels),
    )
    found = depthwise(x, weight, bias, (0.9, -0.4))
    close(found, wide(x, weight, bias, (0.9, -0.4)), 1e-5)


def test_gaps_in_memory_and_other_types_take_plain_pytorch() -> None:
    x, weight = torch.randn(2, 6, 8, LANES)[:, :, ::2], torch.randn(LANES, 1, 5, 5)
    assert not library.usable(x) and not library.usable(x.double())
    close(depthwise(x, weight, None, None, pack(weight)), wide(x, weight, None, None), 1e-5)
    double = x.double(), weight.double()
    close(depthwise(*double, None, None, pack(weight)), wide(x, weight, None, None), 1e-12)


def test_has_a_gradient() -> None:
    x, weight = torch.randn(1, 3, 4, LANES, requires_grad=True), torch.randn(LANES, 1, 5, 5)
    assert not library.usable(x)
    (found,) = torch.autograd.grad(depthwise(x, weight, None, (0.9, 0.1), pack(weight)).square().sum(), x)
    (wanted,) = torch.autograd.grad(wide(x, weight, None, (0.9, 0.1)).square().sum(), x)
    close(found, wanted, 1e-5)


def test_star_relu_squares_what_is_positive() -> None:
    x = torch.tensor([-2.0, 0.0, 3.0, torch.nan])
    close(star_relu(x, (0.5, 1.0)), torch.tensor([1.0, 1.0, 5.5, torch.nan]), 1e-6)
