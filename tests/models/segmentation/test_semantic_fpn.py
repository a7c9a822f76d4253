"""Semantic FPN's head; its numbers are in tests/test_golden_dense.py."""

import torch

from metaformer.models.segmentation.semantic_fpn import SemanticFPNHead


def test_each_level_has_a_convolution_for_each_doubling() -> None:
    head = SemanticFPNHead(12, (4, 8, 16, 32), 6, 5, 0.1)
    assert [len(convs) for convs in head.scales] == [1, 1, 2, 3]
    assert head.scales[3][0].conv.in_channels == 12 and head.scales[3][1].conv.in_channels == 6


def test_backbones_that_do_not_halve_every_time() -> None:
    head = SemanticFPNHead(12, (4, 8, 16, 16), 6, 5, 0.1).eval()
    assert [len(convs) for convs in head.scales] == [1, 1, 2, 2]
    maps = [torch.randn(1, 12, size, size) for size in (16, 8, 4, 4)]
    assert head(maps).shape == (1, 5, 16, 16)


def test_whole_channels_are_dropped_in_training_only() -> None:
    head = SemanticFPNHead(4, (4,), 64, 5, 0.5)
    seen: list[torch.Tensor] = []
    head.classifier.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    maps = [torch.randn(2, 4, 8, 8)]
    head.train()(maps)
    gone = (seen[0] == 0).all((2, 3)).float().mean()
    assert 0.2 < float(gone) < 0.8
    head.eval()(maps)
    assert torch.equal(seen[1], head.features(maps))
