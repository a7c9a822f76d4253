"""Convolutions with packed weights."""

import copy

import pytest
import torch
from torch import nn

from metaformer.deploy.folded.conv import FoldedConv, FoldedDepthwise, can_fold, fold_conv

CONVS = {
    "strided": nn.Conv2d(3, 8, 7, 4, 2),
    "depthwise": nn.Conv2d(8, 8, 7, 1, 3, groups=8, bias=False),
    "wide depthwise": nn.Conv2d(16, 16, 7, 1, 3, groups=16),
    "dilated": nn.Conv2d(4, 6, 3, 1, (2, 1), (2, 1)),
}


@pytest.mark.parametrize("name", CONVS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
def test_any_sequence_of_shapes(name: str, dtype: torch.dtype, tolerance: float) -> None:
    conv = copy.deepcopy(CONVS[name])
    folded = fold_conv(conv).to(dtype)
    conv = copy.deepcopy(conv).double()
    with torch.inference_mode():
        for size in (16, 16, 16, 20, 16, 20, 20, 0):
            batch = 2 if size else 0
            x = torch.randn(batch, conv.in_channels, size or 16, size or 16).to(dtype)
            x = x.contiguous(memory_format=torch.channels_last)
            torch.testing.assert_close(folded(x).double(), conv(x.double()), rtol=tolerance, atol=tolerance)


def test_one_packed_weight_is_cached_and_follows_the_weight() -> None:
    folded = FoldedConv(nn.Conv2d(3, 4, 3)).requires_grad_(False)
    images = [torch.randn(1, 3, size, size) for size in (8, 8, 9, 9)]
    for x in images:
        folded(x)
    assert len(folded._cache) == 1
    folded.load_state_dict({"weight": torch.ones(4, 3, 3, 3), "bias": torch.zeros(4)})
    torch.testing.assert_close(folded(images[-1])[0, 0, 0, 0], images[-1][0, :, :3, :3].sum())
    assert copy.deepcopy(folded)._cache == {}


def test_star_relu() -> None:
    x = torch.randn(2, 16, 9, 5).contiguous(memory_format=torch.channels_last)
    for conv in (nn.Conv2d(16, 16, 7, padding=3, groups=16), nn.Conv2d(16, 4, 3)):
        with torch.inference_mode():
            expected = conv(0.8 * x.relu().square() - 0.4)
            torch.testing.assert_close(fold_conv(conv)(x, (0.8, -0.4)), expected, rtol=1e-4, atol=1e-5)


def test_depthwise_convolutions_that_keep_the_size() -> None:
    assert isinstance(fold_conv(nn.Conv2d(16, 16, 7, padding=3, groups=16)), FoldedDepthwise)
    for other in (
        nn.Conv2d(16, 16, 7, padding=2, groups=16),
        nn.Conv2d(16, 16, 7, 2, padding=3, groups=16),
        nn.Conv2d(16, 32, 7, padding=3, groups=16),
        nn.Conv2d(16, 16, 7, padding=6, dilation=2, groups=16),
        nn.Conv2d(16, 16, (7, 5), padding=(3, 2), groups=16),
        nn.Conv2d(16, 16, 7, padding=3, groups=8),
    ):
        assert isinstance(fold_conv(other), FoldedConv)


def test_which_convolutions_are_folded() -> None:
    assert can_fold(nn.Conv2d(3, 4, 3, padding=1)) and not can_fold(nn.ConvTranspose2d(3, 4, 3))
    assert not can_fold(nn.Conv2d(3, 4, 3, padding="same"))
    assert not can_fold(nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"))
