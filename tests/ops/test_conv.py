import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from metaformer.ops import cpp
from metaformer.ops.conv import conv, pack
from ops.numerics import DTYPES, close, needs_linear, threads

LANES = cpp.lanes()


@needs_linear
@settings(max_examples=120, deadline=None)
@given(
    st.integers(1, 3), st.integers(1, 20), st.integers(1, 20), st.sampled_from([1, 3, 5, LANES, 2 * LANES]),
    st.integers(1, 6), st.sampled_from([(7, 4, 2), (3, 2, 1), (2, 2, 0), (4, 3, 3), (1, 2, 0)]),
    st.sampled_from(list(DTYPES)), st.booleans(), st.integers(1, 5),
)  # fmt: skip
def test_agrees_with_float64(
    batch: int, height: int, width: int, channels: int, groups: int, geometry: tuple[int, int, int],
    dtype: torch.dtype, biased: bool, worker: int,
) -> None:  # fmt: skip
    kernel, stride, padding = geometry
    height, width = (max(side, kernel - 2 * padding) for side in (height, width))
    torch.manual_seed(0)
    x = torch.randn(batch, height, width, channels).to(dtype)
    weight = (torch.randn(groups * LANES - 3, channels, kernel, kernel) / kernel).to(dtype)
    bias = torch.randn(len(weight)).to(dtype) if biased else None
    before = x.clone()
    with threads(worker):
        found = conv(x, pack(weight, bias), kernel, stride, padding)
    wide = None if bias is None else bias.double()
    wanted = F.conv2d(x.double().permute(0, 3, 1, 2), weight.double(), wide, stride, padding)
    assert found.dtype == dtype and found.is_contiguous() and torch.equal(x, before)
    close(found, wanted.permute(0, 2, 3, 1), DTYPES[dtype])


@needs_linear
@pytest.mark.parametrize("dtype", list(DTYPES))
def test_numbers_that_are_not_finite_stay_in_their_patches(dtype: torch.dtype) -> None:
    x, weight = torch.zeros(1, 8, 8, 3), torch.ones(LANES, 3, 3, 3)
    x[0, 5, 5] = torch.tensor([1.0, torch.nan, torch.inf])
    found = conv(x.to(dtype), pack(weight.to(dtype), None), 3, 2, 1)
    wanted = F.conv2d(x.permute(0, 3, 1, 2), weight, None, 2, 1).permute(0, 2, 3, 1)
    assert torch.equal(found.isfinite(), wanted.isfinite())
