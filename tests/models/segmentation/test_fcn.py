"""The auxiliary head."""

import torch

from metaformer.models.segmentation.fcn import FCNHead


def test_one_convolution_and_a_classifier() -> None:
    head = FCNHead(8, 6, 5, 0.1).eval()
    x = torch.randn(2, 8, 4, 7)
    assert torch.equal(head(x), head.classifier(head.conv(x))) and head(x).shape == (2, 5, 4, 7)
