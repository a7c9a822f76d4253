"""What is our own in torchvision's RetinaNet; test_torchvision_compat.py has the rest."""

import pytest
import torch

from metaformer.backbones.config import MetaFormerConfig
from metaformer.detection.config import DetectorConfig
from metaformer.detection.torchvision_retinanet import TorchvisionRetinaNet
from metaformer.errors import ConfigError

TINY = MetaFormerConfig(depths=(1,) * 4, dims=(8, 16, 20, 28), feature_norm="fresh")
CONFIG = DetectorConfig(backbone=TINY, num_classes=3, fpn_dim=16, compat="torchvision")


def test_anchors_are_those_of_the_padded_batch() -> None:
    """In a batch of 160 pixels, whose coarsest map has 2 positions, they lie 80 pixels apart and not 128."""
    with torch.no_grad():
        raw = TorchvisionRetinaNet(CONFIG).raw(torch.randn(1, 3, 160, 160))
    assert [len(level) for level in raw.anchors] == [9 * side**2 for side in (20, 10, 5, 3, 2)]
    centre = (raw.anchors[-1][:, :2] + raw.anchors[-1][:, 2:]) / 2
    assert centre.unique().tolist() == [0, 80]


def test_its_head_has_the_pyramids_channels() -> None:
    with pytest.raises(ConfigError, match="head_dim"):
        TorchvisionRetinaNet(DetectorConfig(**{**vars(CONFIG), "head_dim": 32}))


def test_nothing_is_above_the_threshold() -> None:
    (found,) = TorchvisionRetinaNet(CONFIG).eval()(torch.randn(1, 3, 64, 64))
    assert len(found) == 0 and found.masks is None
