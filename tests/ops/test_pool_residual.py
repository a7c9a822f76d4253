import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from metaformer.ops.pool_residual import pool_residual

sides = st.integers(1, 9)


def naive(x: Tensor, gamma: Tensor, beta: Tensor, scale: Tensor, size: int) -> Tensor:
    """The block's half as the paper writes it."""
    normed = F.group_norm(x, 1, gamma, beta)
    pooled = F.avg_pool2d(normed, size, 1, size // 2, count_include_pad=False)
    return x + scale[:, None, None] * (pooled - normed)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 3), st.integers(2, 9), sides, sides, st.sampled_from([1, 3, 5]), st.booleans())
def test_is_norm_pooling_scale_and_shortcut(
    batch: int, dim: int, height: int, width: int, size: int, gaps: bool
) -> None:
    torch.manual_seed(0)
    x = torch.randn(batch, dim, height, 2 * width, dtype=torch.float64) + 1
    x = (x[..., ::2] if gaps else x[..., :width].contiguous()).requires_grad_()
    gamma, beta, scale = (torch.randn(dim, dtype=torch.float64, requires_grad=True) for _ in range(3))
    got, wanted = pool_residual(x, gamma * scale, size, 1e-5), naive(x, gamma, beta, scale, size)
    torch.testing.assert_close(got, wanted)
    for ours, theirs in zip(
        torch.autograd.grad(got.square().sum(), (x, gamma, scale)),
        torch.autograd.grad(wanted.square().sum(), (x, gamma, scale)),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


def test_shortcuts() -> None:
    x, weight = torch.randn(2, 5, 4, 4), torch.randn(5)
    branch = pool_residual(x, weight, 3, 1e-5, 0.0)
    torch.testing.assert_close(pool_residual(x, weight, 3, 1e-5), x + branch)
    torch.testing.assert_close(pool_residual(x, weight, 3, 1e-5, 0.5), 0.5 * x + branch)
    each = torch.randn(5)
    torch.testing.assert_close(pool_residual(x, weight, 3, 1e-5, each), x * each[:, None, None] + branch)


def test_no_samples() -> None:
    x = torch.zeros(0, 5, 4, 4, requires_grad=True)
    y = pool_residual(x, torch.ones(5), 3, 1e-5)
    y.sum().backward()
    assert y.shape == (0, 5, 4, 4)


def test_half_precision_measures_in_float32() -> None:
    x = (torch.randn(1, 64, 16, 16) * 100).half()  # squares and sums beyond what float16 holds
    exact = pool_residual(x.double(), torch.ones(64).double(), 3, 1e-5)
    torch.testing.assert_close(
        pool_residual(x, torch.ones(64).half(), 3, 1e-5).double(), exact, rtol=1e-2, atol=1
    )


def test_autocast_chooses_the_type() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = pool_residual(torch.randn(1, 4, 5, 5), torch.ones(4), 3, 1e-5)
    assert y.dtype == torch.bfloat16


def test_gradients_of_gradients() -> None:
    x = torch.randn(1, 2, 4, 4, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x, w: pool_residual(x, w, 3, 1e-5), (x, weight))


def test_compiles_whole() -> None:
    def double(x: Tensor, weight: Tensor) -> Tensor:
        return pool_residual(x, weight, 3, 1e-5) * 2

    x, weight = torch.randn(1, 4, 5, 5), torch.randn(4)
    compiled = torch.compile(double, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, weight), double(x, weight))
