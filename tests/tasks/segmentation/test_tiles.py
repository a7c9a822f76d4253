from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from metaformer.tasks.segmentation.resize_matrix import Span
from metaformer.tasks.segmentation.tiled_inference import tiles, whole, windows


def total(side: int, spans: list[Span]) -> torch.Tensor:
    weight = torch.zeros(side)
    for span in spans:
        weight[span.start : span.stop] += span.weight
    return weight


@given(st.integers(1, 500), st.integers(1, 80), st.integers(1, 80))
@settings(max_examples=200, deadline=None)
def test_windows_cover_all_and_weigh_one(side: int, window: int, stride: int) -> None:
    spans = windows(side, window, min(stride, window))
    torch.testing.assert_close(total(side, spans), torch.ones(side))
    assert all(len(span.weight) == min(side, window) for span in spans)


def test_windows_lie_as_in_mmsegmentation() -> None:
    assert [span.start for span in windows(683, 512, 341)] == [0, 171]
    assert [span.start for span in windows(1024, 512, 341)] == [0, 341, 512]
    assert [span.start for span in windows(512, 512, 341)] == [0]
    assert [(span.start, span.stop) for span in windows(300, 512, 341)] == [(0, 300)]


@given(st.integers(1, 150), st.integers(2, 6), st.integers(0, 5))
@settings(max_examples=200, deadline=None)
def test_tiles_cover_all_and_weigh_one(blocks: int, tile: int, overlap: int) -> None:
    side, tile, overlap = blocks * 32, tile * 32, min(overlap, tile - 1) * 32
    spans = tiles(side, tile, overlap)
    torch.testing.assert_close(total(side, spans), torch.ones(side))
    assert all(span.start % 32 == 0 and (span.weight > 0).all() for span in spans)
    assert all(first.stop - second.start >= overlap for first, second in pairwise(spans))


def test_tiles_fade_into_each_other() -> None:
    first, second = tiles(224, 128, 32)
    assert (second.start, first.stop) == (96, 128)
    assert (first.weight[:96] == 1).all() and (second.weight[32:] == 1).all()
    steps = first.weight[96:].diff()
    torch.testing.assert_close(steps, torch.full((31,), -1 / 32))


@pytest.mark.parametrize("spans", [whole(7), windows(7, 7, 3), windows(7, 20, 20), tiles(96, 96, 32)])
def test_one_window_over_all_counts_exactly_once(spans: list[Span]) -> None:
    assert len(spans) == 1 and (spans[0].weight == 1).all()
