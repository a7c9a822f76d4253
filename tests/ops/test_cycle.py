from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from metaformer.ops import cpp
from metaformer.ops.cycle import (
    MAX_KERNEL,
    cycle_means,
    cycle_mix,
    cycle_softmax,
    reference,
    reference_means,
    shift_channels,
    staircase,
)
from metaformer.ops.linear import pack
from ops.numerics import (
    DTYPES,
    agrees,
    backends,
    check_operation,
    close,
    low_or_not,
    mode,
    needs_cpp,
    needs_linear,
    random,
    same_gradients,
    threads,
    triton_alone,
)

LANES = cpp.lanes()
HEIGHT, WIDTH = 2, 3
Layers = list[tuple[Tensor, Tensor]]
dtypes = st.sampled_from(list(DTYPES))
sides = st.integers(1, 9)
odd = st.sampled_from([1, 3, 5, 7])
workers = st.integers(1, 5)


def by_definition(x: Tensor, kernel: int, axis: int) -> Tensor:
    """The shift, channel by channel and position by position."""
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
@given(
    st.sampled_from([1, 3, 5, 7, 9]), st.sampled_from([2, 3]), sides, sides, st.integers(1, 40),
    st.sampled_from([torch.float32, torch.bfloat16, torch.float64]), st.booleans(),
)  # fmt: skip
def test_shift(
    kernel: int, axis: int, height: int, width: int, dim: int, dtype: torch.dtype, autocast: bool
) -> None:
    x = torch.randn(2, dim, height, width).to(memory_format=torch.channels_last, dtype=dtype).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found = shift_channels(x, kernel, axis)
    assert torch.equal(found, by_definition(x, kernel, axis))
    grad = torch.randn_like(found)
    wanted = by_definition(grad.flip(axis), kernel, axis).flip(axis)  # the opposite shift
    assert torch.equal(torch.autograd.grad(found, x, grad)[0], wanted)


@pytest.mark.parametrize("axis", [2, 3])
def test_gradients_of_the_shift(axis: int) -> None:
    x = torch.randn(1, 5, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: shift_channels(t, 3, axis), x)
    assert torch.autograd.gradgradcheck(lambda t: shift_channels(t, 3, axis), x)


def test_the_shift_stays_channels_last_and_zero_beyond_the_border() -> None:
    x = torch.randn(2, 8, 5, 5).to(memory_format=torch.channels_last)
    assert shift_channels(x, 3, 3).is_contiguous(memory_format=torch.channels_last)
    x = torch.full((1, 2, 2, 2), float("inf"))
    assert shift_channels(x, 3, 3)[0, 1, :, 1].eq(0).all()


def shifted(x: Tensor, kernel: int) -> list[Tensor]:
    """X (B, H, W, C) in float64, read along the width, the height, and in place."""
    y = x.double().permute(0, 3, 1, 2)
    shifts = by_definition(y, kernel, WIDTH), by_definition(y, kernel, HEIGHT), y
    return [each.permute(0, 2, 3, 1) for each in shifts]


def layers(channels: int, dtype: torch.dtype = torch.float32) -> Layers:
    """Weight and bias of the three branches, and of the projection."""
    size = channels, channels
    return [
        ((torch.randn(*size) / channels**0.5).to(dtype), torch.randn(channels).to(dtype)) for _ in range(4)
    ]


def formula(
    x: Tensor, weights: Tensor, of: Layers, kernel: int, residual: Any = None, scale: Any = None
) -> Tensor:
    *branches, proj = ([part.double() for part in layer] for layer in of)
    y = torch.zeros_like(x, dtype=torch.float64)
    for i, (each, layer) in enumerate(zip(shifted(x, kernel), branches, strict=True)):
        y += F.linear(each, *layer) * weights[:, None, None, i].double()
    y = F.linear(y, *proj)
    return y if residual is None else y + residual.double() * (1 if scale is None else scale.double())


def by(
    backend: str, x: Tensor, weights: Tensor, of: Layers, kernel: int, residual: Any = None, scale: Any = None
) -> Tensor:
    options = {"residual": residual, "residual_scale": scale}
    parts: list[Any] = [pack(*layer) for layer in of] if backend == "cpp" else of
    with mode(backend):
        return cycle_mix(x, parts[:3], weights, parts[3], kernel, **options)


@backends("reference", "cpp", "triton")
@settings(max_examples=80, deadline=None)
@given(st.integers(1, 3), sides, sides, st.integers(1, 70), odd, dtypes, workers)
def test_means_are_those_of_the_shifted_inputs(
    backend: str, batch: int, height: int, width: int, channels: int, kernel: int, dtype: torch.dtype,
    worker: int,
) -> None:  # fmt: skip
    torch.manual_seed(0)
    x = (torch.randn(batch, height, width, channels) + 2).to(dtype)
    with threads(worker), mode(backend):
        found = cycle_means(x, kernel)
    assert found.dtype == dtype
    wanted = torch.stack([each.mean((1, 2)) for each in shifted(x, kernel)], 1)
    close(found, wanted, DTYPES[dtype])


def test_means_have_a_gradient() -> None:
    x = torch.randn(2, 3, 4, 7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: reference_means(x, 5), x)


@backends("reference", "cpp")
@settings(max_examples=40, deadline=None)
@given(st.integers(1, 4), st.integers(1, 70), st.sampled_from([1.0, 100.0]), dtypes, workers)
def test_softmax_over_branches(
    backend: str, batch: int, channels: int, size: float, dtype: torch.dtype, worker: int
) -> None:
    torch.manual_seed(0)
    logits = (torch.randn(batch, channels, 3) * size).to(dtype)
    with threads(worker), mode(backend):
        found = cycle_softmax(logits)
    assert found.dtype == torch.float32
    close(found, logits.double().softmax(-1).transpose(1, 2), 1e-6)


def test_softmax_of_nan_is_nan() -> None:
    logits = torch.randn(2, 5, 3)
    logits[1, 2, 0] = torch.nan
    missing = cycle_softmax(logits).isnan()
    assert missing[1, :, 2].all() and missing.sum() == 3


@backends("reference", "cpp", "triton")
@pytest.mark.parametrize("added", ["nothing", "residual", "scaled", "x"])
@pytest.mark.parametrize("kernel", [1, MAX_KERNEL])
def test_every_backend_agrees_with_float64(backend: str, kernel: int, added: str) -> None:
    torch.manual_seed(0)
    x, of = torch.randn(2, 5, 3, 2 * LANES), layers(2 * LANES)
    if backend == "cpp" and not cpp.supports(x, weight=of[0][0]):
        return
    weights, scale = torch.rand(2, 3, 2 * LANES), torch.randn(2 * LANES) if added == "scaled" else None
    residual = {"nothing": None, "x": x}.get(added, torch.randn_like(x))
    found = by(backend, x, weights, of, kernel, residual, scale)
    close(found, formula(x, weights, of, kernel, residual, scale), 1e-5)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 3), st.integers(1, 9), sides, sides, odd)
def test_reference_is_the_weighted_sum_and_its_projection(
    batch: int, dim: int, height: int, width: int, kernel: int
) -> None:
    torch.manual_seed(0)
    x = torch.randn(batch, height, width, dim, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(batch, 3, dim, dtype=torch.float64, requires_grad=True)
    of = [(w.requires_grad_(), b.requires_grad_()) for w, b in layers(dim, torch.float64)]
    y = x.permute(0, 3, 1, 2)
    shifts = (shift_channels(y, kernel, axis).permute(0, 2, 3, 1) for axis in (WIDTH, HEIGHT))
    inputs = (*shifts, x)
    wanted = sum((F.linear(z, *of[i]) * weights[:, i, None, None] for i, z in enumerate(inputs)), x * 0)
    leaves = (x, weights, *(part for layer in of for part in layer))
    same_gradients(reference(x, of[:3], weights, of[3], kernel), F.linear(wanted, *of[3]), leaves)


def test_compiles_without_graph_breaks() -> None:
    of = layers(6)

    def mix(x: Tensor) -> Tensor:
        means = cycle_means(x, 3)
        return cycle_mix(x, of[:3], means.softmax(1), of[3], 3, residual=x)

    x = torch.randn(1, 5, 5, 6)
    torch.testing.assert_close(torch.compile(mix, backend="aot_eager", fullgraph=True)(x), mix(x))


# C++


@needs_linear
@settings(max_examples=80, deadline=None)
@given(
    st.integers(1, 3), sides, sides, st.integers(1, 9), st.sampled_from([1, 3]), dtypes,
    st.sampled_from(["nothing", "residual", "scaled", "x"]), workers,
)  # fmt: skip
def test_packed_layers_agree_with_float64(
    batch: int, height: int, width: int, groups: int, kernel: int, dtype: torch.dtype, added: str, worker: int
) -> None:
    torch.manual_seed(0)
    channels = groups * LANES
    x, weights = torch.randn(batch, height, width, channels).to(dtype), torch.rand(batch, 3, channels)
    residual = {"nothing": None, "x": x}.get(added, torch.randn_like(x))
    scale = torch.randn(channels) if added == "scaled" else None
    of, before = layers(channels, dtype), x.clone()
    with threads(worker):
        found = by("cpp", x, weights, of, kernel, residual, scale)
    assert found.dtype == dtype and torch.equal(x, before)
    close(found, formula(x, weights, of, kernel, residual, scale), DTYPES[dtype])


@needs_linear
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 8), (8, 1), (40, 40)])
@pytest.mark.parametrize("kernel", [1, 3])
def test_single_tokens_lines_and_inputs_larger_than_the_cache(
    height: int, width: int, kernel: int, dtype: torch.dtype
) -> None:
    channels = 5 * LANES
    x, weights = torch.randn(2, height, width, channels).to(dtype), torch.rand(2, 3, channels)
    of = layers(channels, dtype)
    close(by("cpp", x, weights, of, kernel), formula(x, weights, of, kernel), DTYPES[dtype])


@needs_linear
@pytest.mark.parametrize("worker", range(1, 6))
def test_nan_reaches_its_neighbors_alone(worker: int) -> None:
    torch.manual_seed(0)
    x, weights, of = torch.randn(2, 6, 7, 3 * LANES), torch.rand(2, 3, 3 * LANES), layers(3 * LANES)
    broken = x.clone()
    broken[1, 3, 4, 1] = torch.nan  # whose channel is read one token further on
    with threads(worker):
        whole, found = (by("cpp", each, weights, of, 3) for each in (x, broken))
    reached = torch.zeros(2, 6, 7, dtype=torch.bool)
    reached[1, 3, 4] = reached[1, 2, 4] = reached[1, 3, 3] = True
    assert found[reached].isnan().all()
    assert torch.equal(found[~reached], whole[~reached])


@needs_cpp
def test_longer_staircases_take_the_reference() -> None:
    x = torch.randn(2, 5, 3, 8)
    assert torch.equal(cycle_means(x, MAX_KERNEL + 2), reference_means(x, MAX_KERNEL + 2))


# Triton


def parts(batch: int, dim: int) -> list[Tensor]:
    """Three weights and the branch weights."""
    return [torch.randn(dim, dim) / dim**0.5 for _ in range(3)] + [torch.randn(batch, 3, dim).softmax(1)]


def mix(
    x: Tensor, w_width: Tensor, w_height: Tensor, w_plain: Tensor, weights: Tensor, kernel: int
) -> Tensor:
    branches = [(w, None) for w in (w_width, w_height, w_plain)]
    identity = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
    return cycle_mix(x, branches, weights, (identity, None), kernel)


@triton_alone
@low_or_not
@pytest.mark.parametrize(
    ("shape", "kernel"),
    [((2, 5, 7, 20), 3), ((1, 2, 9, 40), 5), ((3, 1, 1, 16), 3), ((1, 3, 2, 5), 7), ((1, 3, 3, 4), 1)],
)
def test_gradients_agree_with_float64(
    backend: str, shape: tuple[int, ...], kernel: int, dtype: torch.dtype
) -> None:
    tensors = [torch.randn(shape), *parts(shape[0], shape[-1])]
    agrees(lambda *tensors: mix(*tensors, kernel), tensors, dtype)


@triton_alone
def test_gradients_with_gaps_in_memory(backend: str) -> None:
    x = torch.randn(4, 8, 6, 12)[::2, 1:, ::2, ::2]
    tensors = [x, *parts(2, 6)[:3], torch.randn(2, 6, 3).mT]
    agrees(lambda *tensors: mix(*tensors, 3), tensors, torch.float32)


@triton_alone
def test_gradients_of_long_inputs_are_summed_in_parts(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from metaformer.ops.triton import cycle

    monkeypatch.setattr(cycle, "_CHUNK", 32)
    agrees(lambda *tensors: mix(*tensors, 3), [torch.randn(2, 7, 9, 4), *parts(2, 4)], torch.float32)


@triton_alone
@pytest.mark.filterwarnings("ignore:The .grad attribute")
def test_torch_knows_the_operation(backend: str) -> None:
    tensors = [random(*shape) for shape in ((2, 4, 3, 5), (5, 5), (5, 5), (5, 5), (2, 3, 5))]
    check_operation("cycle_mix", lambda: mix(*tensors, 3), *tensors, 3)
