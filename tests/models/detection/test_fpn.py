"""Feature pyramid of detectors: sizes and extra levels."""

import torch

from metaformer.models.detection.fpn import DetectionPyramid

FEATURES = [torch.randn(2, dim, side, side + 3) for dim, side in ((5, 13), (6, 7), (8, 4))]


def test_an_extra_level_by_subsampling() -> None:
    pyramid = DetectionPyramid((5, 6, 8), 12)
    levels = pyramid(FEATURES)
    assert pyramid.extra_levels == 1 and [tuple(level.shape[1:]) for level in levels] == [
        (12, 13, 16), (12, 7, 10), (12, 4, 7), (12, 2, 4),
    ]  # fmt: skip
    assert torch.equal(levels[-1], levels[-2][..., ::2, ::2])


def test_extra_convolutions_on_the_backbones_last_features() -> None:
    pyramid = DetectionPyramid((5, 6, 8), 12, convs=True)
    *_, p6, p7 = pyramid(FEATURES)
    assert pyramid.extra_levels == 2 and p6.shape == (2, 12, 2, 4) and p7.shape == (2, 12, 1, 2)
    assert pyramid.extra is not None
    assert torch.equal(p6, pyramid.extra.p6(FEATURES[-1])) and torch.equal(p7, pyramid.extra.p7(p6))


def test_one_position_is_enough() -> None:
    for convs in (False, True):
        levels = DetectionPyramid((4,), 4, convs=convs)([torch.randn(1, 4, 1, 1)])
        assert all(level.shape == (1, 4, 1, 1) for level in levels)
