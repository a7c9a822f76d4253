"""Differences of boxes: there and back, limits, and other images' pixels."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from metaformer.models.detection.box_coder import LIMIT, BoxCoder, clip, rescale


def boxes(seed: int, count: int = 20) -> Tensor:
    corner, size = torch.rand(2, count, 2, generator=torch.Generator().manual_seed(seed))
    return torch.cat([corner * 100, corner * 100 + size * 50 + 1], 1)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.sampled_from([(1.0,) * 4, (0.1, 0.1, 0.2, 0.2)]))
def test_decoding_undoes_encoding(seed: int, stds: tuple[float, ...]) -> None:
    coder, wanted, anchors = BoxCoder(stds), boxes(seed), boxes(seed + 1)
    assert torch.allclose(coder.decode(coder.encode(wanted, anchors), anchors), wanted, atol=1e-3)


def test_boxes_grow_and_shrink_within_limits() -> None:
    deltas = torch.tensor([[0.0, 0, 100, 100], [0, 0, -100, -100]])
    anchors = torch.tensor([[0.0, 0, 10, 10]]).expand(2, 4)
    sides = (decoded := BoxCoder().decode(deltas, anchors))[:, 2:] - decoded[:, :2]
    assert torch.allclose(sides, torch.tensor([[625.0], [0.16]]).expand(2, 2)) and LIMIT > 4.13
    low = BoxCoder().decode(deltas.bfloat16(), anchors, (20, 8))
    assert low.dtype == torch.float32 and torch.equal(low[0], torch.tensor([0.0, 0, 8, 20]))


def test_clipping() -> None:
    outside = torch.tensor([[-5.0, -1, 30, 12], [90, 95, 99, 98]])
    assert clip(outside, (10, 20)).tolist() == [[0, 0, 20, 10], [20, 10, 20, 10]]


@given(*(st.tuples(st.integers(1, 1333), st.integers(1, 1333)) for _ in range(2)))
def test_the_whole_image_stays_the_whole_image(size: tuple[int, int], other: tuple[int, int]) -> None:
    whole = torch.tensor([[0.0, 0, size[1], size[0]]])
    assert rescale(whole, size, other).tolist() == [[0, 0, other[1], other[0]]]
