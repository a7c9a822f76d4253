"""The parts of the heads."""

import torch

from metaformer.models.segmentation.layers import Classifier, ConvNorm, resize


def test_a_convolution_without_bias_a_norm_and_a_relu() -> None:
    part = ConvNorm(3, 4, 3).eval()
    x = torch.randn(2, 3, 5, 7)
    expected = part.norm(part.conv(x)).clamp(min=0)
    assert torch.equal(part(x), expected) and part.conv.bias is None
    assert part.norm.eps == 1e-5 and part.norm.momentum == 0.1


def test_classifiers_start_small() -> None:
    part = Classifier(64, 150)
    assert 0.009 < float(part.weight.detach().std()) < 0.011 and not part.bias.any()


def test_equal_sizes_are_left_alone() -> None:
    x = torch.randn(1, 2, 3, 5)
    assert resize(x, (3, 5)) is x
    doubled = resize(x, (6, 10))
    assert torch.equal(doubled, torch.nn.functional.interpolate(x, scale_factor=2, mode="bilinear"))
