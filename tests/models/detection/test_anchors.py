"""Anchors and encoded boxes; `test_golden_detection` has mmdetection's numbers."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from metaformer.models.detection.anchors import MAX_LOG_SCALE, Anchors, BoxCoder, clip_boxes, rescale_boxes

ANCHORS = Anchors((8, 64), (4, 8))


def test_order_and_caching() -> None:
    first, second = ANCHORS.per_level([(3, 5), (1, 1)])
    assert ANCHORS.per_cell == 6 and first.shape == (90, 4) and second.shape == (6, 4)
    assert ANCHORS.per_level([(3, 5), (2, 1)])[0] is first
    cells = first.view(3, 5, 6, 4)
    centers = (cells[..., :2] + cells[..., 2:]) / 2
    assert torch.equal(centers[1, 2], torch.tensor([[16.0, 8]]).expand(6, 2))
    width, height = (cells[0, 0, :, 2:] - cells[0, 0, :, :2]).unbind(1)
    assert torch.allclose(height / width, torch.tensor([0.5, 0.5, 1, 1, 2, 2]))
    assert torch.allclose((height * width).sqrt(), torch.tensor([32.0, 64] * 3))


def test_anchors_cached_in_inference_can_be_used_in_training() -> None:
    with torch.inference_mode():
        (level,) = Anchors((7,), (3,)).per_level([(2, 2)])
    assert not level.is_inference()


def test_valid_flags_end_at_an_images_own_padding() -> None:
    shapes = [(16, 24), (2, 3)]
    assert ANCHORS.valid_flags(shapes, (128, 161)).all()  # padded to 192
    fine, coarse = ANCHORS.valid_flags(shapes, (65, 33)).split([16 * 24 * 6, 36])
    assert fine.view(16, 24, 6)[:12, :8].all() and fine.sum() == 12 * 8 * 6
    assert coarse.view(2, 3, 6)[:2, :1].all() and coarse.sum() == 2 * 6


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
    assert torch.allclose(sides, torch.tensor([[625.0], [0.16]]).expand(2, 2)) and MAX_LOG_SCALE > 4.13
    low = BoxCoder().decode(deltas.bfloat16(), anchors, (20, 8))
    assert low.dtype == torch.float32 and torch.equal(low[0], torch.tensor([0.0, 0, 8, 20]))


def test_clipping() -> None:
    outside = torch.tensor([[-5.0, -1, 30, 12], [90, 95, 99, 98]])
    assert clip_boxes(outside, (10, 20)).tolist() == [[0, 0, 20, 10], [20, 10, 20, 10]]


@given(*(st.tuples(st.integers(1, 1333), st.integers(1, 1333)) for _ in range(2)))
def test_rescaling_keeps_the_whole_image(size: tuple[int, int], other: tuple[int, int]) -> None:
    whole = torch.tensor([[0.0, 0, size[1], size[0]]])
    assert rescale_boxes(whole, size, other).tolist() == [[0, 0, other[1], other[0]]]
