import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from metaformer.ops.cycle_shift import cycle_shift, cycle_weigh_, reference, usable

DTYPES = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
sides = st.integers(1, 8)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 3),
    sides,
    sides,
    st.integers(1, 40),
    st.sampled_from([1, 3, 5, 7]),
    st.sampled_from(list(DTYPES)),
)
def test_is_the_staircase_with_its_means(
    batch: int, height: int, width: int, dim: int, kernel: int, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    x = torch.randn(batch, height, width, dim).to(dtype)
    assert usable(x)
    wide, high, means = cycle_shift(x, kernel)
    theirs = reference(x.double(), kernel)
    assert torch.equal(wide.double(), theirs[0]) and torch.equal(high.double(), theirs[1])
    torch.testing.assert_close(means.double(), theirs[2], rtol=0, atol=DTYPES[dtype])


def test_what_lies_beside_is_not_touched() -> None:
    x = torch.zeros(1, 1, 3, 3)
    x[0, 0, 1, 0] = torch.inf  # channel 0 stays where it is
    wide, high, _ = cycle_shift(x, 3)
    assert wide[..., 1:].eq(0).all() and high[..., 1:].eq(0).all()


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES.items())
def test_weighted_sum(dtype: torch.dtype, tolerance: float) -> None:
    h, w, c = torch.randn(3, 2, 3, 5, 7).to(dtype)
    share = torch.rand(3, 2, 7).to(dtype)
    wanted = sum(a.double() * b.double()[:, None, None] for a, b in zip((h, w, c), share, strict=True))
    found = cycle_weigh_(h, w, c, share)
    torch.testing.assert_close(found.double(), wanted, rtol=tolerance, atol=tolerance)
    assert found.data_ptr() == h.data_ptr()


def test_gaps_in_memory_take_plain_pytorch() -> None:
    x = torch.randn(2, 4, 8, 6)[:, :, ::2]
    assert not usable(x.double())
    for ours, theirs in zip(cycle_shift(x, 3), reference(x.double(), 3), strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=0, atol=1e-5)
