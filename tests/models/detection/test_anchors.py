"""Anchors: shared, ordered, and those outside an image; `test_golden_detection` has the numbers."""

import torch

from metaformer.models.detection.anchors import Anchors

ANCHORS = Anchors((8, 64), (4, 8))


def test_order_and_sharing() -> None:
    first, second = ANCHORS.per_level([(3, 5), (1, 1)])
    assert ANCHORS.count == 6 and first.shape == (90, 4) and second.shape == (6, 4)
    assert ANCHORS.per_level([(3, 5), (2, 1)])[0] is first
    cells = first.view(3, 5, 6, 4)
    centers = (cells[..., :2] + cells[..., 2:]) / 2
    assert torch.equal(centers[1, 2], torch.tensor([[16.0, 8]]).expand(6, 2))
    width, height = (cells[0, 0, :, 2:] - cells[0, 0, :, :2]).unbind(1)
    assert torch.allclose(height / width, torch.tensor([0.5, 0.5, 1, 1, 2, 2]))
    assert torch.allclose((height * width).sqrt(), torch.tensor([32.0, 64] * 3))


def test_anchors_made_for_inference_can_be_learned_from() -> None:
    with torch.inference_mode():
        (level,) = Anchors((7,), (3,)).per_level([(2, 2)])
    assert not level.is_inference()


def test_cells_outside_an_images_own_padding() -> None:
    shapes = [(16, 24), (2, 3)]
    assert ANCHORS.inside(shapes, (128, 161)).all()  # padded to 192
    fine, coarse = ANCHORS.inside(shapes, (65, 33)).split([16 * 24 * 6, 36])
    assert fine.view(16, 24, 6)[:12, :8].all() and fine.sum() == 12 * 8 * 6
    assert coarse.view(2, 3, 6)[:2, :1].all() and coarse.sum() == 2 * 6
