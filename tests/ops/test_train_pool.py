"""PoolFormer's token mixing in one operation: against float64, by layouts, threads and what PyTorch asks."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from metaformer.ops.cpp import kernels
from metaformer.ops.train_pool import reference, supports, train_pool, train_pool_backward
from ops.numerics import close, mode, needs_cpp, threads

pytestmark = needs_cpp
DTYPES = {torch.float32: 5e-6, torch.bfloat16: 2e-2}
EPS = 1e-2, 2e-2
sides = st.integers(1, 9)


def drawn(
    size: tuple[int, int, int, int], dtype: torch.dtype = torch.float32, drops: bool = False
) -> list[Tensor | None]:
    """x, the weight and bias, which are to have gradients, and the samples' factors."""
    torch.manual_seed(0)
    x = (torch.randn(size) * 2 + 3).to(dtype, memory_format=torch.channels_last).requires_grad_()
    weight, bias = (torch.randn(size[1], requires_grad=True) for _ in range(2))
    return [x, weight, bias, torch.rand(size[0]).round() * 2 if drops else None]


def doubled(tensors: list[Tensor | None]) -> list[Tensor | None]:
    return [None if t is None else t.detach().double().requires_grad_(t.requires_grad) for t in tensors]


@settings(max_examples=80, deadline=None)
@given(
    st.integers(1, 5), sides, sides, st.integers(2, 40), st.sampled_from(list(DTYPES)), st.integers(1, 3),
    st.booleans(), st.booleans(),
)  # fmt: skip
def test_result_moments_and_gradients_agree_with_float64(
    batch: int, height: int, width: int, dim: int, dtype: torch.dtype, count: int, drops: bool, last: bool
) -> None:
    inputs = drawn((batch, dim, height, width), dtype, drops)
    if not last:
        inputs[0] = inputs[0].detach().contiguous().requires_grad_()  # type: ignore[union-attr]
    exact = doubled(inputs)
    with threads(count):
        y, *moments = train_pool(*inputs, *EPS)
        grad_out = torch.randn_like(y)
        found = torch.autograd.grad(y, inputs[:3], grad_out)  # type: ignore[arg-type]
    wanted = reference(*exact, *EPS)  # type: ignore[arg-type]
    close(y.detach(), wanted.detach(), DTYPES[dtype])
    assert y.is_contiguous(memory_format=torch.channels_last) and not y._is_view()
    for tensor, each, eps in zip((exact[0], y), moments, EPS, strict=True):
        variance, mean = torch.var_mean(tensor.detach().double().flatten(1), 1, correction=0)  # type: ignore[union-attr]
        close(each, torch.stack([mean, (variance + eps).rsqrt()], 1), 5e-6)
    grads = torch.autograd.grad(wanted, exact[:2], grad_out.double())  # type: ignore[arg-type]
    for ours, theirs, tensor in zip(found, (*grads, torch.zeros(dim)), inputs, strict=False):
        assert tensor is not None and ours.shape == tensor.shape and ours.dtype == tensor.dtype
        close(ours, theirs, 2 * DTYPES[dtype])


def test_a_mean_far_from_zero_costs_no_digits() -> None:
    x, weight, _, _ = drawn((2, 16, 8, 8))
    assert x is not None and weight is not None
    far = (x + 1e4).detach().requires_grad_()
    y, *_ = train_pool(far, weight, None, None, 1e-5, 1e-5)
    exact, grad_out = far.detach().double().requires_grad_(), torch.randn_like(y)
    (ours,) = torch.autograd.grad(y, far, grad_out)
    wanted = reference(exact, weight.detach().double(), None, None, 1e-5, 1e-5)
    (theirs,) = torch.autograd.grad(wanted, exact, grad_out.double())
    close(ours, theirs, 2e-3)  # of an input that holds three digits behind the point


@pytest.mark.parametrize("dtype", list(DTYPES))
@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_the_same_twice_with_as_many_threads(count: int, dtype: torch.dtype) -> None:
    inputs = drawn((5, 24, 7, 6), dtype)
    results = []
    with threads(count):
        for _ in range(2):
            y, *moments = train_pool(*inputs, *EPS)
            results.append([y, *moments, *torch.autograd.grad(y.square().sum(), inputs[:2])])  # type: ignore[arg-type]
    assert all(map(torch.equal, *results))


def test_gradients_of_gradients() -> None:
    inputs = drawn((2, 3, 4, 5), drops=True)
    second = []
    for tensors, function in (
        (inputs, lambda *t: train_pool(*t, *EPS)[0]),
        (doubled(inputs), lambda *t: reference(*t, *EPS)),
    ):
        x, weight, *_ = tensors
        assert x is not None and weight is not None
        (grad,) = torch.autograd.grad(function(*tensors).pow(3).sum(), x, create_graph=True)
        second.append(torch.autograd.grad(grad.square().sum(), (x, weight)))
    for ours, theirs in zip(*second, strict=True):
        close(ours, theirs, 1e-4)


def test_only_the_input_is_saved() -> None:
    inputs, saved = drawn((2, 6, 5, 5)), []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        train_pool(*inputs, *EPS)
    assert sum(saved) == 2 * 6 * 5 * 5 + 6 + 6 + 2 * 2


def test_nan_reaches_its_sample_alone() -> None:
    x, weight, bias, _ = drawn((2, 3, 4, 4))
    assert x is not None
    with torch.no_grad():
        x[0, 1, 1, 1] = torch.nan
    y, _, moments = train_pool(x, weight, bias, None, *EPS)
    (grad,) = torch.autograd.grad(y.sum(), x)
    for tensor in (y, moments, grad):
        assert tensor[0].isnan().all() and not tensor[1].isnan().any()


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # PyTorch's own check reads it
@pytest.mark.parametrize("drops", [False, True])
def test_torch_knows_the_operations(drops: bool) -> None:
    inputs = drawn((2, 4, 3, 5), drops=drops)
    torch.library.opcheck(train_pool, (*inputs, *EPS))
    x, weight, _, factors = (None if tensor is None else tensor.detach() for tensor in inputs)
    assert x is not None
    tests = ("test_schema", "test_faketensor")
    arguments = x, x, weight, factors, x.new_ones(2, 2)
    torch.library.opcheck(train_pool_backward, arguments, test_utils=tests)


def test_where_it_runs() -> None:
    x = torch.randn(2, 3, 4, 4)
    assert supports(x, 3) and supports(x.bfloat16(), 3) and supports(x.requires_grad_(), 3)
    assert not supports(x, 5) and not supports(x.double(), 3) and not supports(x.to("meta"), 3)
    assert not supports(x[:0], 3) and not supports(x[:1, :1, :1, :1], 3)
    torch.vmap(lambda each: None if supports(each, 3) else each)(x[None])
    with torch.no_grad():
        assert supports(x, 3)
    with mode("reference"):
        assert not supports(x, 3)


def test_both_passes_are_one_kernel_each() -> None:
    x, weight, bias, _ = drawn((2, 3, 4, 4))
    with kernels.record_calls() as calls:
        train_pool(x, weight, bias, None, *EPS)[0].sum().backward()
    names = [getattr(function, "__name__", "") for function, _ in calls]
    assert names == ["pool_residual_float32", "pool_residual_backward_float32"]
