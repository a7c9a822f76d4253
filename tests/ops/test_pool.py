from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from metaformer.ops import cpp, onednn
from metaformer.ops.cpp import kernels
from metaformer.ops.norm import group_norm, normalize
from metaformer.ops.pool import pool_minus_self, pool_residual, reference
from ops.numerics import (
    LOW,
    agrees,
    backends,
    check_operation,
    close,
    low_or_not,
    mode,
    needs_cpp,
    random,
    same_gradients,
    threads,
    triton_alone,
)

DTYPES = {torch.float32: 3e-6, torch.bfloat16: 2e-2}
sides = st.integers(1, 9)


def pooled(x: Tensor, size: int) -> Tensor:
    """pool(x) − x of (B, C, H, W)."""
    return F.avg_pool2d(x, size, 1, size // 2, count_include_pad=False) - x


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 3), st.integers(1, 5), sides, sides, st.sampled_from([1, 3, 5]), st.booleans())
def test_pool_minus_self(batch: int, dim: int, height: int, width: int, size: int, last: bool) -> None:
    x = torch.randn(batch, dim, height, width, dtype=torch.float64)
    x = x.to(memory_format=torch.channels_last if last else torch.contiguous_format).requires_grad_()
    found, wanted = pool_minus_self(x, size), pooled(x, size)
    assert torch.equal(found, wanted)
    assert not last or not batch or found.is_contiguous(memory_format=torch.channels_last)
    grad = torch.randn_like(found)
    (ours,), (theirs,) = (torch.autograd.grad(y, x, grad) for y in (found, wanted))
    torch.testing.assert_close(ours, theirs)


@needs_cpp
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [(2, 5, 7, 9), (1, 3, 1, 4), (3, 2, 4, 1)])
@pytest.mark.parametrize("autocast", [False, True])
def test_pool_minus_self_in_cpp_and_its_transpose(
    autocast: bool, size: tuple[int, ...], dtype: torch.dtype
) -> None:
    x = torch.randn(size).to(memory_format=torch.channels_last, dtype=dtype).requires_grad_()
    exact = x.detach().double().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast), kernels.record_calls() as calls:
        found = pool_minus_self(x, 3)
    wanted = pooled(exact, 3)
    assert len(calls) == onednn.has_dtype(dtype) and found.dtype == dtype
    close(found.detach(), wanted.detach(), DTYPES[dtype])
    grad = torch.randn_like(found)
    (ours,), (theirs,) = (
        torch.autograd.grad(found, x, grad),
        torch.autograd.grad(wanted, exact, grad.double()),
    )
    close(ours, theirs, DTYPES[dtype])


def test_pool_minus_self_has_gradients_of_gradients_and_saves_nothing() -> None:
    x = torch.randn(1, 2, 4, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x: pool_minus_self(x, 3).square(), (x,))
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(saved.append, lambda _: torch.empty(0)):
        pool_minus_self(torch.randn(1, 2, 4, 4, requires_grad=True), 3)
    assert not saved


def test_pool_minus_self_under_vmap() -> None:
    x = torch.randn(3, 2, 2, 4, 4)
    got = torch.vmap(lambda each: pool_minus_self(each, 3))(x)
    assert torch.equal(got, torch.stack([pooled(each, 3) for each in x]))


def formula(x: Tensor, gamma: Tensor, beta: Tensor, scale: Tensor, size: int) -> Tensor:
    """The block's half as the paper writes it."""
    n = F.group_norm(x.permute(0, 3, 1, 2), 1, gamma, beta)
    return x + scale * pooled(n, size).permute(0, 2, 3, 1)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 3), st.integers(2, 9), sides, sides, st.sampled_from([1, 3, 5]), st.booleans())
def test_is_norm_pooling_scale_and_residual(
    batch: int, dim: int, height: int, width: int, size: int, gaps: bool
) -> None:
    torch.manual_seed(0)
    x = torch.randn(batch, height, 2 * width, dim, dtype=torch.float64) + 1
    x = (x[:, :, ::2] if gaps else x[:, :, :width].contiguous()).requires_grad_()
    gamma, beta, scale = (torch.randn(dim, dtype=torch.float64, requires_grad=True) for _ in range(3))
    found, _ = pool_residual(x, gamma * scale, size=size)
    same_gradients(found, formula(x, gamma, beta, scale, size), (x, gamma, scale))


@backends("reference", "cpp")
@settings(max_examples=60, deadline=None)
@given(st.integers(1, 4), sides, sides, st.integers(2, 40), st.sampled_from(list(DTYPES)), st.integers(1, 3))
def test_result_and_moments_agree_with_float64(
    backend: str, batch: int, height: int, width: int, dim: int, dtype: torch.dtype, worker: int
) -> None:
    torch.manual_seed(0)
    x = (torch.randn(batch, height, width, dim) * 2 + 5).to(dtype)
    weight, residual_scale = torch.randn(dim), torch.randn(dim)
    before = x.clone()
    with threads(worker), mode(backend):
        y, moments = pool_residual(x, weight, residual_scale, eps=1e-2, next_eps=2e-2)
    assert moments is not None and moments.dtype == torch.float32
    assert y.dtype == dtype and torch.equal(x, before)
    bound = DTYPES[dtype] * (1 if backend == "cpp" else 3)  # the reference rounds in between
    close(y, reference(x.double(), weight.double(), residual_scale.double(), 3, 1e-2), bound)
    variance, mean = torch.var_mean(y.double().flatten(1), 1, correction=0)  # of y as it was written
    close(moments, torch.stack([mean, (variance + 2e-2).rsqrt()], 1), 3e-6)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 4), sides, sides, st.integers(2, 40))
def test_moments_normalize_as_the_next_norm_does(batch: int, height: int, width: int, dim: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(batch, height, width, dim) * 2 + 5
    y, moments = pool_residual(x, torch.randn(dim), torch.randn(dim), eps=1e-2, next_eps=1e-2)
    assert moments is not None
    close(normalize(y, moments), group_norm(y.double(), 1e-2), 1e-5)


@needs_cpp
def test_a_mean_far_from_zero_costs_no_digits() -> None:
    x = torch.randn(2, 8, 8, 16) + 1e4
    y, moments = pool_residual(x, torch.ones(16), torch.zeros(16), next_eps=1e-5)
    wanted = reference(x.double(), torch.ones(16), torch.zeros(16))
    close(y, wanted, 2e-3)  # of an input that holds three digits behind the point
    variance, mean = torch.var_mean(wanted, (1, 2, 3), correction=0)
    assert moments is not None
    close(moments, torch.stack([mean, (variance + 1e-5).rsqrt()], 1), 2e-3)


@backends("reference", "cpp")
@pytest.mark.parametrize("size", [1, 3, 5])
def test_residual_scales_and_windows(backend: str, size: int) -> None:
    x, weight, each = torch.randn(2, 4, 4, 5), torch.randn(5), torch.randn(5)
    with mode(backend):
        branch, nothing = pool_residual(x, weight, 0.0, size=size)
        assert nothing is None
        for scale, factor in ((None, 1.0), (1.0, 1.0), (0.5, 0.5), (each, each)):
            found, _ = pool_residual(x, weight, scale, size=size)
            torch.testing.assert_close(found, x * factor + branch, rtol=1e-5, atol=1e-5)
    close(branch, reference(x.double(), weight.double(), 0.0, size), 3e-6)


def test_no_samples() -> None:
    x = torch.zeros(0, 4, 4, 5, requires_grad=True)
    y, _ = pool_residual(x, torch.ones(5))
    y.sum().backward()
    assert y.shape == (0, 4, 4, 5)


def test_half_precision_measures_in_float32() -> None:
    x = (torch.randn(1, 16, 16, 64) * 100).half()  # squares and sums beyond what float16 holds
    exact, _ = pool_residual(x.double(), torch.ones(64).double())
    found, _ = pool_residual(x, torch.ones(64).half())
    torch.testing.assert_close(found.double(), exact, rtol=1e-2, atol=1)


def test_nan_reaches_its_sample_alone() -> None:
    x = torch.randn(2, 4, 4, 3)
    x[0, 1, 1, 1] = torch.nan
    y, moments = pool_residual(x, torch.ones(3), next_eps=1e-5)
    assert moments is not None
    assert y[0].isnan().all() and moments[0].isnan().all()
    assert not y[1].isnan().any() and not moments[1].isnan().any()


def test_gaps_in_memory_other_dtypes_and_gradients_take_the_reference() -> None:
    x, weight = torch.randn(2, 4, 8, 6)[:, :, ::2], torch.ones(6)
    assert not cpp.supports(x) and not cpp.supports(x.double())
    close(pool_residual(x, weight)[0], reference(x.double(), weight.double()), 1e-5)
    weight.requires_grad_()
    assert pool_residual(x.contiguous(), weight)[0].requires_grad


def test_autocast_chooses_the_dtype() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert pool_residual(torch.randn(1, 5, 5, 4), torch.ones(4))[0].dtype == torch.bfloat16


def test_gradients_of_gradients() -> None:
    x = torch.randn(1, 4, 4, 2, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x, w: pool_residual(x, w)[0], (x, weight))


def test_compiles_without_graph_breaks() -> None:
    def double(x: Tensor, weight: Tensor) -> Tensor:
        return pool_residual(x, weight)[0] * 2

    x, weight = torch.randn(1, 5, 5, 4), torch.randn(4)
    compiled = torch.compile(double, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, weight), double(x, weight))


def by_triton(x: Tensor, weight: Tensor, scale: Any = None, size: int = 3) -> Tensor:
    return pool_residual(x, weight, scale, size=size)[0]


@triton_alone
@low_or_not
@pytest.mark.parametrize(
    ("shape", "size"),
    [((2, 7, 9, 5), 3), ((1, 3, 2, 70), 3), ((2, 4, 6, 3), 5), ((2, 1, 1, 4), 3), ((1, 3, 3, 4), 1)],
)
def test_gradients_agree_with_float64(
    backend: str, shape: tuple[int, ...], size: int, dtype: torch.dtype
) -> None:
    tensors = [torch.randn(shape) + 2, torch.randn(shape[-1])]
    agrees(lambda x, w: by_triton(x, w, size=size), tensors, dtype)


@triton_alone
@low_or_not
def test_gradients_with_a_residual_scale(backend: str, dtype: torch.dtype) -> None:
    tensors = [torch.randn(2, 4, 3, 6), torch.randn(6)]
    if dtype != LOW:
        for scale in (0.0, 0.5):
            agrees(lambda x, w, scale=scale: by_triton(x, w, scale), tensors, dtype)
    agrees(by_triton, [*tensors, torch.randn(6)], dtype)


@triton_alone
@pytest.mark.parametrize(
    ("x", "weight", "scale"),
    [
        (torch.randn(4, 8, 6, 12)[::2, 1:, ::2, 1::2], torch.randn(12)[::2], 1.0),
        # a difference of two sums of squares would lose all digits here
        (torch.randn(2, 5, 5, 6) + 1000, torch.randn(6), 0.0),
    ],
    ids=["gaps", "mean"],
)
def test_gradients_with_gaps_in_memory_and_a_mean_far_from_zero(
    backend: str, x: Tensor, weight: Tensor, scale: float
) -> None:
    agrees(lambda x, w: by_triton(x, w, scale), [x, weight], torch.float32)


@triton_alone
@pytest.mark.filterwarnings("ignore:The .grad attribute")
def test_torch_knows_the_operation(backend: str) -> None:
    x, weight = random(2, 4, 3, 5), random(5)
    check_operation("pool_residual", lambda: by_triton(x, weight), x, weight, None, 3, 1e-5, 1.0)
