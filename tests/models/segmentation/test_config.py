"""Segmentation networks as data."""

import json
from dataclasses import replace
from typing import Any

import pytest

from metaformer.backbones.config import MetaFormerConfig
from metaformer.errors import ConfigError, UnknownName
from metaformer.models.segmentation.config import SegmenterConfig

TINY = MetaFormerConfig(depths=(1,) * 4, dims=(8, 8, 8, 8), feature_norm="fresh")
CONFIG = SegmenterConfig(backbone=TINY, num_classes=7, head_dim=16, auxiliary=True)


def test_json_round_trip() -> None:
    for config in (CONFIG, replace(CONFIG, kind="upernet", head_dim=None)):
        assert SegmenterConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_published_head_channels() -> None:
    assert SegmenterConfig().head_channels == 128 and SegmenterConfig(kind="upernet").head_channels == 512
    assert CONFIG.head_channels == 16


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_classes", 0),
        ("num_classes", True),
        ("fpn_dim", None),
        ("head_dim", -1),
        ("head_dim", 1.5),
        ("dropout", 1.0),
        ("dropout", "much"),
        ("auxiliary", 1),
        ("backbone", "poolformer_s12"),
    ],
)
def test_wrong_values_name_the_field(field: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"^{field}: "):
        replace(CONFIG, **{field: value})


def test_unknown_kinds_and_fields() -> None:
    with pytest.raises(UnknownName, match="did you mean upernet"):
        SegmenterConfig(kind="uppernet")
    with pytest.raises(UnknownName, match="did you mean head_dim"):
        SegmenterConfig.from_dict({**CONFIG.to_dict(), "head_dims": 3})
    with pytest.raises(ConfigError, match=r"^backbone: "):
        SegmenterConfig.from_dict({"kind": "upernet"})


def test_module_backbone_is_not_saved() -> None:
    with pytest.raises(ConfigError, match=r"^backbone: "):
        SegmenterConfig().to_dict()
