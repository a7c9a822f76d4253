"""Feature pyramids: their neck, sizes and extra levels."""

from collections import OrderedDict

import torch
from torch import nn

from metaformer.models.fpn import DetectionPyramid, FeaturePyramid

SIZES = [(24, 33), (12, 17), (6, 9), (3, 5)]
FEATURES = [torch.randn(2, dim, side, side + 3) for dim, side in ((5, 13), (6, 7), (8, 4))]


def test_computes_what_torchvisions_does() -> None:
    from torchvision.ops import FeaturePyramidNetwork

    dims = (8, 16, 20, 28)
    ours, theirs = FeaturePyramid(dims, 12), FeaturePyramidNetwork(list(dims), 12)
    for mine, other in (
        *zip(ours.laterals, theirs.inner_blocks, strict=True),
        *zip(ours.outputs, theirs.layer_blocks, strict=True),
    ):
        other[0].load_state_dict(mine.state_dict())
    maps = [torch.randn(2, dim, *size) for dim, size in zip(dims, SIZES, strict=True)]
    expected = theirs(OrderedDict((str(i), level) for i, level in enumerate(maps))).values()
    for level, other in zip(ours(maps), expected, strict=True):
        assert torch.allclose(level, other, atol=1e-6)


def test_starts_as_published() -> None:
    neck = FeaturePyramid((8, 16), 12)
    for conv in (*neck.laterals, *neck.outputs):
        assert isinstance(conv, nn.Conv2d) and conv.bias is not None and not conv.bias.any()
        fan_in, fan_out = conv.weight[0].numel(), conv.weight[:, 0].numel()
        bound = (6 / (fan_in + fan_out)) ** 0.5
        assert 0.9 * bound < float(conv.weight.detach().abs().max()) <= bound


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
