import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from metaformer.ops.native import library
from metaformer.ops.pool_norm import normalised, pool_norm, reference

DTYPES = {torch.float32: 3e-6, torch.bfloat16: 2e-2}
sides = st.integers(1, 9)


def close(found: tuple[Tensor, Tensor], wanted: tuple[Tensor, Tensor], tolerance: float) -> None:
    for ours, theirs in zip(found, wanted, strict=True):
        largest = theirs.abs().max().item()
        torch.testing.assert_close(ours.double(), theirs, rtol=0, atol=tolerance * max(1.0, largest))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 4), sides, sides, st.integers(2, 40), st.sampled_from(list(DTYPES)), st.integers(1, 3))
def test_is_what_float64_gives(
    batch: int, height: int, width: int, dim: int, dtype: torch.dtype, threads: int
) -> None:
    torch.manual_seed(0)
    x = (torch.randn(batch, height, width, dim) * 2 + 5).to(dtype)
    weight, shortcut = torch.randn(dim), torch.randn(dim)
    before, kept = torch.get_num_threads(), x.clone()
    torch.set_num_threads(threads)
    try:
        found = pool_norm(x, weight, shortcut, 3, 1e-2, 1e-2)
    finally:
        torch.set_num_threads(before)
    y, _ = reference(x.double(), weight.double(), shortcut.double(), 3, 1e-2, 1e-2)
    close(found, (y, normalised(found[0].double(), 1e-2)), DTYPES[dtype])
    assert torch.equal(x, kept)


def test_a_mean_far_from_zero_costs_no_digits() -> None:
    x = torch.randn(2, 8, 8, 16) + 1e4
    y, z = pool_norm(x, torch.ones(16), torch.zeros(16), 3, 1e-5, 1e-5)
    wanted = reference(x.double(), torch.ones(16), torch.zeros(16), 3, 1e-5, 1e-5)
    close((y, z), wanted, 2e-3)  # of an input that holds three digits behind the point


@pytest.mark.parametrize("size", [1, 3, 5])
def test_any_window(size: int) -> None:
    x, weight, shortcut = torch.randn(2, 4, 5, 6), torch.randn(6), torch.ones(6)
    wanted = reference(x.double(), weight.double(), shortcut.double(), size, 1e-5, 1e-5)
    close(pool_norm(x, weight, shortcut, size, 1e-5, 1e-5), wanted, 3e-6)


def test_what_is_no_number_is_not_hidden() -> None:
    x = torch.randn(2, 4, 4, 3)
    x[0, 1, 1, 1] = torch.nan
    y, z = pool_norm(x, torch.ones(3), torch.ones(3), 3, 1e-5, 1e-5)
    assert y[0].isnan().all() and z[0].isnan().all()
    assert not y[1].isnan().any() and not z[1].isnan().any()


def test_gaps_in_memory_and_other_types_take_plain_pytorch() -> None:
    x = torch.randn(2, 4, 8, 6)[:, :, ::2]
    assert not library.usable(x) and not library.usable(x.double())
    wanted = reference(x.double(), torch.ones(6), torch.ones(6), 3, 1e-5, 1e-5)
    close(pool_norm(x, torch.ones(6), torch.ones(6), 3, 1e-5, 1e-5), wanted, 3e-6)
