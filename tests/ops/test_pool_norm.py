import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from metaformer.ops.native import library
from metaformer.ops.pool_norm import group_norm, normalized, pool_norm, reference
from ops.numerics import close, threads

compiled = pytest.mark.skipif(library.load() is None, reason=library.describe())
DTYPES = {torch.float32: 3e-6, torch.bfloat16: 2e-2}
sides = st.integers(1, 9)


def both_close(found: tuple[Tensor, Tensor], wanted: tuple[Tensor, Tensor], tolerance: float) -> None:
    for ours, theirs in zip(found, wanted, strict=True):
        close(ours, theirs, tolerance)


def moments(y: Tensor, eps: float) -> Tensor:
    """Mean and 1/σ of each sample, in float64."""
    variance, mean = torch.var_mean(y.double().flatten(1), 1, correction=0)
    return torch.stack([mean, (variance + eps).rsqrt()], 1)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 4), sides, sides, st.integers(2, 40), st.sampled_from(list(DTYPES)), st.integers(1, 3))
def test_is_what_float64_gives(
    batch: int, height: int, width: int, dim: int, dtype: torch.dtype, worker: int
) -> None:
    torch.manual_seed(0)
    x = (torch.randn(batch, height, width, dim) * 2 + 5).to(dtype)
    weight, shortcut = torch.randn(dim), torch.randn(dim)
    before = x.clone()
    with threads(worker):
        y, found = pool_norm(x, weight, shortcut, 3, 1e-2, 2e-2)
    assert y.dtype == dtype and found.dtype == torch.float32 and torch.equal(x, before)
    wanted, _ = reference(x.double(), weight.double(), shortcut.double(), 3, 1e-2, 2e-2)
    close(y, wanted, DTYPES[dtype])
    close(found, moments(y, 2e-2), 3e-6)  # of y as it was written


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 4), sides, sides, st.integers(2, 40))
def test_moments_normalize_as_the_next_norm_does(batch: int, height: int, width: int, dim: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(batch, height, width, dim) * 2 + 5
    y, found = pool_norm(x, torch.randn(dim), torch.randn(dim), 3, 1e-2, 1e-2)
    close(normalized(y, found), group_norm(y.double(), 1e-2), 1e-5)


@compiled
def test_a_mean_far_from_zero_costs_no_digits() -> None:
    x = torch.randn(2, 8, 8, 16) + 1e4
    found = pool_norm(x, torch.ones(16), torch.zeros(16), 3, 1e-5, 1e-5)
    wanted = reference(x.double(), torch.ones(16), torch.zeros(16), 3, 1e-5, 1e-5)
    both_close(found, wanted, 2e-3)  # of an input that holds three digits behind the point


@pytest.mark.parametrize("size", [1, 3, 5])
def test_any_window(size: int) -> None:
    x, weight, shortcut = torch.randn(2, 4, 5, 6), torch.randn(6), torch.ones(6)
    wanted = reference(x.double(), weight.double(), shortcut.double(), size, 1e-5, 1e-5)
    both_close(pool_norm(x, weight, shortcut, size, 1e-5, 1e-5), wanted, 3e-6)


def test_what_is_no_number_is_not_hidden() -> None:
    x = torch.randn(2, 4, 4, 3)
    x[0, 1, 1, 1] = torch.nan
    y, found = pool_norm(x, torch.ones(3), torch.ones(3), 3, 1e-5, 1e-5)
    assert y[0].isnan().all() and found[0].isnan().all()
    assert not y[1].isnan().any() and not found[1].isnan().any()


def test_gaps_in_memory_and_other_types_take_plain_pytorch() -> None:
    x = torch.randn(2, 4, 8, 6)[:, :, ::2]
    assert not library.usable(x) and not library.usable(x.double())
    wanted = reference(x.double(), torch.ones(6), torch.ones(6), 3, 1e-5, 1e-5)
    both_close(pool_norm(x, torch.ones(6), torch.ones(6), 3, 1e-5, 1e-5), wanted, 3e-6)
