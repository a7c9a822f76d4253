import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from metaformer.ops.norm import (
    SampleNorm,
    group_norm,
    layer_norm,
    norm,
    norm_backward,
    norm_forward,
    normalize,
    sample_moments,
    sample_norm_backward,
)
from ops.numerics import DTYPES, backends, close, mode, needs_cpp, threads


@backends("reference", "cpp")
@settings(max_examples=40, deadline=None)
@given(st.integers(0, 9), st.integers(1, 70), st.sampled_from(["none", "weight", "both"]), st.booleans())
def test_layer_norm_agrees_with_float64(
    backend: str, tokens: int, dim: int, constants: str, low: bool
) -> None:
    torch.manual_seed(0)
    dtype, tolerance = (torch.bfloat16, 3e-2) if low else (torch.float32, 1e-5)
    x = (torch.randn(2, tokens, dim) * 3 + 20).to(dtype)
    weight = None if constants == "none" else torch.randn(dim).to(dtype)
    bias = torch.randn(dim).to(dtype) if constants == "both" else None
    with mode(backend):
        found = layer_norm(x, 1e-2, weight, bias)
    wide = [None if part is None else part.double() for part in (weight, bias)]
    assert found.dtype == dtype
    torch.testing.assert_close(
        found.double(), F.layer_norm(x.double(), (dim,), *wide, 1e-2), rtol=tolerance, atol=tolerance
    )


def test_layer_norm_has_gradients_of_constants_too() -> None:
    x = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: layer_norm(x, 1e-5), x)
    weight = torch.ones(5, requires_grad=True)
    layer_norm(x.detach().float(), 1e-5, weight).sum().backward()
    assert weight.grad is not None


def test_normalizing_by_moments_is_the_group_norm() -> None:
    x = torch.randn(2, 3, 4, 5) * 2 + 5
    variance, mean = torch.var_mean(x.flatten(1), 1, correction=0)
    found = normalize(x, torch.stack([mean, (variance + 1e-2).rsqrt()], 1))
    torch.testing.assert_close(found, group_norm(x, 1e-2), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("affine", ["none", "weight", "both"])
@pytest.mark.parametrize("name", ["group_norm", "layer_norm", "none"])
@pytest.mark.parametrize("size", [(2, 5, 3, 6), (1, 1, 1, 4), (3, 2, 7, 1)])
def test_forward_and_backward(name: str, affine: str, size: tuple[int, int, int, int]) -> None:
    x = torch.randn(size, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(size[-1], dtype=torch.float64, requires_grad=True) if affine != "none" else None
    bias = torch.randn(size[-1], dtype=torch.float64, requires_grad=True) if affine == "both" else None
    wanted, grad_out = norm(x, name, weight, bias, 1e-5) * 1.0, torch.randn(size, dtype=torch.float64)
    plain, *constants = (None if tensor is None else tensor.detach() for tensor in (x, weight, bias))
    assert isinstance(plain, Tensor)
    found, *moments = norm_forward(plain, name, *constants, 1e-5)
    torch.testing.assert_close(found, wanted)
    grads = norm_backward(grad_out, plain, moments, name, *constants)
    for ours, tensor in zip(grads, (x, weight, bias), strict=True):
        assert ours.shape == (size if tensor is x else size[-1:])
        if tensor is not None and (tensor is x or name != "none"):
            (theirs,) = torch.autograd.grad(wanted, tensor, grad_out, retain_graph=True)
            torch.testing.assert_close(ours, theirs)


@needs_cpp
@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 5), st.integers(1, 150), st.integers(2, 40), st.sampled_from(list(DTYPES)),
    st.integers(1, 3), st.booleans(), st.booleans(),
)  # fmt: skip
def test_moments_and_gradients_of_samples(
    batch: int, positions: int, dim: int, dtype: torch.dtype, count: int, affine: bool, residual: bool
) -> None:
    torch.manual_seed(0)
    x = (torch.randn(batch, positions, dim) * 2 + 30).to(dtype)
    gamma, beta = (torch.randn(dim) if affine else None for _ in range(2))
    grad_out, shortcut = torch.randn(x.shape), torch.randn(x.shape).to(dtype)
    with threads(count):
        moments = sample_moments(x, 1e-2)
        found, again = (
            sample_norm_backward(
                grad_out, x, SampleNorm(moments, gamma, beta), shortcut if residual else None
            )
            for _ in range(2)
        )
    variance, mean = torch.var_mean(x.double().flatten(1), 1, correction=0)
    close(moments, torch.stack([mean, (variance + 1e-2).rsqrt()], 1), 3e-6)
    assert all(map(torch.equal, found, again))
    exact, gamma, beta = (
        each.double().requires_grad_()
        for each in (x, torch.ones(dim) if gamma is None else gamma, torch.zeros(dim))
    )
    y = group_norm(exact[:, None], 1e-2, gamma, beta)[:, 0]
    grad_x, *wanted = torch.autograd.grad(y, (exact, gamma, beta), grad_out.double())
    grad_x = grad_x + shortcut.double() if residual else grad_x
    for ours, theirs in zip(found, (grad_x, *wanted), strict=True):
        close(ours, theirs, DTYPES[dtype])
