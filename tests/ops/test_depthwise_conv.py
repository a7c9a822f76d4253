import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from metaformer.ops import cpp
from metaformer.ops.depthwise_conv import (
    KERNELS,
    Star,
    depthwise_conv,
    pack,
    reference,
    star_relu,
    supports_weight,
)
from ops.numerics import DTYPES, backends, close, mode, needs_cpp, threads

LANES = cpp.lanes()
STAR = (0.9, -0.4)


def exact(x: Tensor, weight: Tensor, bias: Tensor | None, star: Star | None) -> Tensor:
    return reference(x.double(), weight.double(), None if bias is None else bias.double(), star)


def compare(size: tuple[int, ...], kernel: int, dtype: torch.dtype, biased: bool, star: Star | None) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(*size).to(dtype), (torch.randn(size[-1], 1, kernel, kernel) / kernel).to(dtype)
    bias = torch.randn(size[-1]).to(dtype) if biased else None
    before = x.clone()
    found = depthwise_conv(x, weight, bias, star, pack(weight))
    assert found.dtype == dtype and torch.equal(x, before)
    close(found, exact(x, weight, bias, star), DTYPES[dtype])


@backends("reference", "cpp")
@settings(max_examples=120, deadline=None)
@given(
    st.integers(1, 3), st.integers(1, 9), st.integers(1, 40), st.integers(1, 3), st.sampled_from(KERNELS),
    st.sampled_from(list(DTYPES)), st.booleans(), st.sampled_from([None, (1.0, 0.0), STAR]),
    st.integers(1, 5),
)  # fmt: skip
def test_agrees_with_float64(
    backend: str, batch: int, height: int, width: int, groups: int, kernel: int, dtype: torch.dtype,
    biased: bool, star: Star | None, worker: int,
) -> None:  # fmt: skip
    with threads(worker), mode(backend):
        compare((batch, height, width, groups * LANES), kernel, dtype, biased, star)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 6), (6, 1), (2, 3), (4, 4)])
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("star", [None, STAR])
def test_inputs_smaller_than_the_kernel(height: int, width: int, kernel: int, star: Star | None) -> None:
    compare((2, height, width, LANES), kernel, torch.float32, True, star)


@pytest.mark.parametrize(("height", "width"), [(40, 300), (9, 900), (200, 60)])
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("worker", [1, 3])
def test_inputs_of_several_bands(height: int, width: int, kernel: int, worker: int) -> None:
    with threads(worker):
        compare((1, height, width, LANES), kernel, torch.float32, True, STAR)


@needs_cpp
@pytest.mark.parametrize("star", [None, STAR])
def test_nan_stays_in_its_window_and_channel(star: Star | None) -> None:
    x, weight = torch.randn(2, 20, 20, 2 * LANES), torch.randn(2 * LANES, 1, 5, 5)
    broken = x.clone()
    broken[1, 9, 10, 3] = torch.nan
    whole, found = (depthwise_conv(each, weight, None, star, pack(weight)) for each in (x, broken))
    reached = torch.zeros_like(x, dtype=torch.bool)
    reached[1, 7:12, 8:13, 3] = True
    assert torch.equal(found.isnan(), reached)
    close(found[~reached], whole[~reached], 1e-5)


@needs_cpp
def test_packed_taps() -> None:
    weight = torch.randn(3 * LANES, 1, 5, 5).bfloat16()
    taps = pack(weight)
    assert taps.shape == (3, 25, LANES) and taps.dtype == torch.float32 and taps.is_contiguous()
    for c in (0, 1, LANES, 3 * LANES - 1):
        assert torch.equal(taps[c // LANES, :, c % LANES], weight[c].float().flatten())


@needs_cpp
def test_supported_weights() -> None:
    assert all(supports_weight(torch.zeros(2 * LANES, 1, k, k)) for k in KERNELS)
    assert not any(supports_weight(torch.zeros(2 * LANES, 1, k, k)) for k in (1, 3, 4, 9))
    shapes = (LANES + 1, 1, 7, 7), (LANES // 2, 1, 7, 7), (LANES, 1, 5, 7), (LANES, 2, 7, 7)
    assert not any(supports_weight(torch.zeros(shape)) for shape in shapes)


@pytest.mark.parametrize(("channels", "kernel"), [(3, 7), (5, 3), (LANES, 3)])
def test_without_a_packed_weight_the_reference_runs(channels: int, kernel: int) -> None:
    x, bias = torch.randn(2, 6, 5, channels), torch.randn(channels)
    weight = torch.randn(channels, 1, kernel, kernel)
    close(depthwise_conv(x, weight, bias, STAR), exact(x, weight, bias, STAR), 1e-5)


def test_gaps_in_memory_and_other_dtypes_take_the_reference() -> None:
    x, weight = torch.randn(2, 6, 8, LANES)[:, :, ::2], torch.randn(LANES, 1, 5, 5)
    assert not cpp.supports(x) and not cpp.supports(x.double())
    close(depthwise_conv(x, weight, None, None, pack(weight)), exact(x, weight, None, None), 1e-5)
    double = x.double(), weight.double()
    close(depthwise_conv(*double, None, None, pack(weight)), exact(x, weight, None, None), 1e-12)


def test_has_a_gradient() -> None:
    x, weight = torch.randn(1, 3, 4, LANES, requires_grad=True), torch.randn(LANES, 1, 5, 5)
    assert not cpp.supports(x)
    y = depthwise_conv(x, weight, None, STAR, pack(weight))
    (found,) = torch.autograd.grad(y.square().sum(), x)
    (wanted,) = torch.autograd.grad(exact(x, weight, None, STAR).square().sum(), x)
    close(found, wanted, 1e-5)


def test_star_relu_squares_what_is_positive() -> None:
    x = torch.tensor([-2.0, 0.0, 3.0, torch.nan])
    close(star_relu(x, (0.5, 1.0)), torch.tensor([1.0, 1.0, 5.5, torch.nan]), 1e-6)
