"""Heads and their layers; golden values are in test_golden_dense.py and test_transformers.py."""

import torch
import torch.nn.functional as F

from metaformer.models.segmentation.layers import Classifier, ConvNorm, FCNHead, resize
from metaformer.models.segmentation.semantic_fpn import SemanticFPNHead
from metaformer.models.segmentation.upernet import UperNetHead


def test_conv_norm_is_convolution_without_bias_norm_and_relu() -> None:
    layer = ConvNorm(3, 4, 3).eval()
    x = torch.randn(2, 3, 5, 7)
    assert torch.equal(layer(x), layer.norm(layer.conv(x)).clamp(min=0)) and layer.conv.bias is None
    assert layer.norm.eps == 1e-5 and layer.norm.momentum == 0.1


def test_classifier_initialization() -> None:
    classifier = Classifier(64, 150)
    assert 0.009 < float(classifier.weight.detach().std()) < 0.011 and not classifier.bias.any()


def test_resize() -> None:
    x = torch.randn(1, 2, 3, 5)
    assert resize(x, (3, 5)) is x
    assert torch.equal(resize(x, (6, 10)), F.interpolate(x, scale_factor=2, mode="bilinear"))


def test_fcn_head_is_one_convolution_and_a_classifier() -> None:
    head = FCNHead(8, 6, 5, 0.1).eval()
    x = torch.randn(2, 8, 4, 7)
    assert torch.equal(head(x), head.classifier(head.conv(x))) and head(x).shape == (2, 5, 4, 7)


def test_semantic_fpn_has_one_convolution_per_doubling() -> None:
    head = SemanticFPNHead(12, (4, 8, 16, 32), 6, 5, 0.1)
    assert [len(convs) for convs in head.scales] == [1, 1, 2, 3]
    assert head.scales[3][0].conv.in_channels == 12 and head.scales[3][1].conv.in_channels == 6


def test_semantic_fpn_on_levels_of_equal_size() -> None:
    head = SemanticFPNHead(12, (4, 8, 16, 16), 6, 5, 0.1).eval()
    assert [len(convs) for convs in head.scales] == [1, 1, 2, 2]
    assert head([torch.randn(1, 12, size, size) for size in (16, 8, 4, 4)]).shape == (1, 5, 16, 16)


def test_dropout_zeroes_whole_channels_in_training_only() -> None:
    head = SemanticFPNHead(4, (4,), 64, 5, 0.5)
    inputs: list[torch.Tensor] = []
    head.classifier.register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    levels = [torch.randn(2, 4, 8, 8)]
    head.train()(levels)
    assert 0.2 < float((inputs[0] == 0).all((2, 3)).float().mean()) < 0.8
    head.eval()(levels)
    assert torch.equal(inputs[1], head.features(levels))


def test_upernet_at_any_size() -> None:
    head = UperNetHead((8, 12, 16), 6, 5, 0.1).eval()
    for sizes in ([(16, 16), (8, 8), (4, 4)], [(13, 7), (7, 4), (4, 2)], [(1, 1)] * 3):
        features = [torch.randn(1, dim, *size) for dim, size in zip((8, 12, 16), sizes, strict=True)]
        with torch.no_grad():
            logits = head(features)
        assert logits.shape == (1, 5, *sizes[0]) and logits.isfinite().all()
    assert UperNetHead((8,), 6, 5, 0.0).eval()([torch.randn(1, 8, 9, 9)]).shape == (1, 5, 9, 9)
