"""The pyramid's neck."""

from collections import OrderedDict

import torch
from torch import nn

from metaformer.models.fpn import FeaturePyramid

SIZES = [(24, 33), (12, 17), (6, 9), (3, 5)]


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
