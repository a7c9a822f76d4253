"""What is our own in torchvision's networks of two stages; test_torchvision_compat.py has the rest."""

import copy
from typing import Any

import pytest
import torch

from metaformer.backbones.config import MetaFormerConfig
from metaformer.detection.config import DetectorConfig
from metaformer.detection.results import Targets
from metaformer.detection.torchvision_rcnn import TorchvisionRCNN
from metaformer.errors import ConfigError

TINY = MetaFormerConfig(depths=(1,) * 4, dims=(8, 16, 20, 28), feature_norm="fresh")
BOX = torch.tensor([[4.0, 4, 40, 50]])


def tiny(kind: str = "mask_rcnn", **options: Any) -> TorchvisionRCNN:
    torch.manual_seed(0)
    given: dict[str, Any] = {"num_classes": 3, "fpn_dim": 16, "box_fc_dim": 24, "proposals": 50, **options}
    return TorchvisionRCNN(DetectorConfig(kind=kind, backbone=TINY, compat="torchvision", **given))


def test_levels_are_pooled_by_their_strides_whatever_was_seen_first() -> None:
    """Where torchvision keeps what it guesses from the first pictures, small ones spoil all others."""
    model = tiny("faster_rcnn").eval()
    large = torch.randn(1, 3, 128, 160)
    (expected,) = copy.deepcopy(model)(large)
    model(torch.randn(1, 3, 33, 33), image_sizes=[(3, 5)])
    (found,) = model(large)
    assert torch.equal(found.boxes, expected.boxes)


def test_parameters_are_counted_once_and_copies_keep_the_parts_together() -> None:
    model = tiny()
    twin = copy.deepcopy(model)
    torch.nn.init.zeros_(twin.box_predictor.cls_score.weight)
    torch.nn.init.zeros_(twin.box_predictor.cls_score.bias)
    for one in twin.eval()(torch.randn(1, 3, 64, 64)):
        assert torch.allclose(one.scores, torch.tensor(0.25))  # the copy's pooling uses the copy's layers
    assert model.box_predictor.cls_score.weight.any()
    assert len(list(model.parameters())) == len(model.state_dict())


def test_masks_that_are_missing_are_told() -> None:
    with pytest.raises(ConfigError, match="masks=True"):
        tiny()(torch.randn(1, 3, 64, 64), [Targets(BOX, torch.tensor([0]))])


def test_nothing_is_above_the_threshold() -> None:
    (found,) = tiny(score_threshold=0.99).eval()(torch.randn(1, 3, 64, 64))
    assert len(found) == 0 and found.masks is not None and found.masks.shape == (0, 28, 28)
