"""A detector's configuration: refused values, JSON and back."""

import json
from dataclasses import replace
from typing import Any

import pytest

from metaformer.backbones.config import MetaFormerConfig
from metaformer.errors import ConfigError
from metaformer.models.detection.config import DetectorConfig

CONFIG = DetectorConfig(kind="mask_rcnn", backbone=MetaFormerConfig(), num_classes=3, score_threshold=0.3)


def test_defaults_depend_on_the_kind() -> None:
    assert replace(CONFIG, kind="retinanet").anchor_size == 4 and CONFIG.anchor_size == 8
    assert replace(CONFIG, anchor_scale=2).anchor_size == 2
    assert CONFIG.head_channels == 256 and replace(CONFIG, head_dim=32).head_channels == 32
    assert CONFIG.has_masks and not replace(CONFIG, kind="faster_rcnn").has_masks


def test_json_and_back() -> None:
    assert DetectorConfig.from_dict(json.loads(json.dumps(CONFIG.to_dict()))) == CONFIG


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("kind", "yolo", "kind 'yolo'"),
        ("backbone", "poolformer_s12", "backbone"),
        ("num_classes", 0, "num_classes: 0"),
        ("fpn_dim", None, "fpn_dim: None"),
        ("head_dim", True, "head_dim: True"),
        ("rpn_post_nms_topk", 1.5, "rpn_post_nms_topk: 1.5"),
        ("score_threshold", 1.1, "from 0 to 1"),
        ("nms_threshold", "0.5", "from 0 to 1"),
        ("anchor_scale", 0, "above 0"),
        ("anchor_scale", float("nan"), "anchor_scale"),
    ],
)
def test_wrong_values_are_refused(field: str, value: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(CONFIG, **{field: value})


def test_unknown_fields_and_a_missing_backbone() -> None:
    with pytest.raises(ConfigError, match="anchor_scale"):
        DetectorConfig.from_dict({**CONFIG.to_dict(), "anchor_scales": 3})
    with pytest.raises(ConfigError, match=r"^backbone: "):
        DetectorConfig.from_dict({"kind": "retinanet"})
    with pytest.raises(ConfigError, match="cannot be saved"):
        DetectorConfig().to_dict()
