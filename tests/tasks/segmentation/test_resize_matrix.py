import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from metaformer.tasks.segmentation.resize_matrix import Axis, Span, bilinear, reach

SIDES = st.integers(1, 90)
CPU = torch.device("cpu")


def dense(index: Tensor, share: Tensor, source: int) -> Tensor:
    return torch.zeros(len(index), source).scatter_add_(1, index, share)


@given(SIDES, SIDES)
@settings(max_examples=200, deadline=None)
def test_two_neighbors_make_a_pixel_as_torch_has_it(source: int, target: int) -> None:
    ours = dense(*bilinear(source, target), source)
    torchs = F.interpolate(torch.eye(source)[None, :, :, None], (target, 1), mode="bilinear")[0, :, :, 0].T
    torch.testing.assert_close(ours, torchs, rtol=0, atol=2e-7)


@pytest.mark.parametrize(("source", "target"), [(1504, 6000), (6016, 6000), (100_000, 30), (3, 50_000)])
def test_large_sides_differ_by_the_rounding_of_places(source: int, target: int) -> None:
    values = torch.randn(source, generator=torch.Generator().manual_seed(0))
    index, share = bilinear(source, target)
    torchs = F.interpolate(values[None, None, :, None], (target, 1), mode="bilinear")[0, 0, :, 0]
    step = values.diff().abs().max().item() * source * torch.finfo(torch.float32).eps
    torch.testing.assert_close((values[index] * share).sum(1), torchs, rtol=0, atol=1e-6 + step)


@given(SIDES, SIDES, SIDES, st.data())
@settings(max_examples=200, deadline=None)
def test_bands_of_two_resizes_are_those_of_the_whole(
    cells: int, side: int, pixels: int, data: st.DataObject
) -> None:
    axis = Axis(cells, Span(0, torch.ones(side)), side, pixels, CPU)
    values = torch.randn(1, 1, cells, 1, generator=torch.Generator().manual_seed(cells))
    whole = F.interpolate(F.interpolate(values, (side, 1), mode="bilinear"), (pixels, 1), mode="bilinear")
    start = data.draw(st.integers(0, pixels - 1))
    stop = data.draw(st.integers(start + 1, pixels))
    part, matrix = axis.part(start, stop)
    torch.testing.assert_close(matrix @ values[0, 0, part, 0], whole[0, 0, start:stop, 0], rtol=0, atol=1e-6)


def test_a_window_reaches_where_it_has_part() -> None:
    span = Span(4, torch.ones(4))
    assert reach(span, 12, 12) == (4, 8)
    assert reach(span, 12, 24) == (7, 17)  # the neighbors on both sides are blends
    assert reach(span, 12, 1) == (0, 1) and reach(Span(0, torch.ones(4)), 12, 1) == (0, 0)


def test_outside_its_reach_a_window_adds_nothing() -> None:
    axis = Axis(1, Span(4, torch.ones(4)), 12, 12, CPU)
    cells, matrix = axis.part(2, 10)
    assert cells == slice(0, 1) and matrix[:, 0].tolist() == [0, 0, 1, 1, 1, 1, 0, 0]
