import json
from dataclasses import replace

import pytest
from torch import nn

from metaformer.backbones.config import MetaFormerConfig
from metaformer.backbones.variants import VARIANTS
from metaformer.errors import ConfigError, UnknownName


@pytest.mark.parametrize("name", list(VARIANTS))
def test_every_variant_survives_json(name: str) -> None:
    assert MetaFormerConfig.from_dict(json.loads(json.dumps(VARIANTS[name].to_dict()))) == VARIANTS[name]


def test_mixers_for_all_per_stage_and_per_block() -> None:
    assert MetaFormerConfig(mixers="identity").mixers == ("identity",) * 4  # type: ignore[arg-type]
    config = MetaFormerConfig(mixers=("pooling", ("identity", "pooling(size=5)"), "attention", "attention"))
    assert config.block_mixers(1) == ("identity", "pooling(size=5)")
    assert config.block_mixers(2) == ("attention",) * 6


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dims": (8, 8)}, "dims: .* must hold 4 values"),
        ({"downsamples": (True,)}, "downsamples: .* must hold 3 values"),
        ({"mixers": ("poling",) * 4}, "unknown mixer 'poling': did you mean pooling"),
        ({"mixers": (("pooling",), "pooling", "pooling", "pooling")}, "stage 0 names 1 mixers for 2 blocks"),
        ({"norm": "layernorm"}, "unknown norm 'layernorm': did you mean layer_norm"),
        ({"act": "gel"}, "unknown act 'gel': did you mean gelu"),
        ({"head": "mlp"}, "head 'mlp'"),
        ({"grid_mode": "x"}, "grid_mode"),
        ({"in_chans": 0}, "in_chans: 0"),
        ({"drop_path_rate": 1.0}, "drop_path_rate"),
        ({"depths": (2, 2, 0, 2)}, "depths"),
        ({"num_classes": -1}, "num_classes: -1"),
        ({"stem_padding": -1}, "stem_padding"),
        ({"norm_eps": 0.0}, "norm_eps: 0.0"),
        ({"skip_lam": 0.0}, "skip_lam"),
        ({"mlp_ratios": (4, 4, -1, 4)}, "mlp_ratios"),
        ({"num_classes": "7"}, "num_classes: '7'"),
        ({"in_chans": 3.0}, "in_chans"),
        ({"act": 5}, "act: 5"),
        ({"image_size": 64}, "image_size: 64"),
        ({"depths": "abcd"}, "depths"),
        ({"dims": (8.5, 8, 8, 8)}, "dims"),
        ({"mlp_ratios": 4}, "mlp_ratios"),
        ({"layer_scale": "abcd"}, "layer_scale"),
        ({"residual": "no"}, "residual"),
        ({"mixers": (1, 2, 3, 4)}, "mixers"),
        ({"mixers": None}, "mixers"),
    ],
)
def test_wrong_values_name_the_field(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(MetaFormerConfig(), **changes)


def test_unknown_fields_and_unsaveable_mixers() -> None:
    with pytest.raises(UnknownName, match="did you mean depths"):
        MetaFormerConfig.from_dict({"depth": [1]})
    with pytest.raises(ConfigError, match="no registered name"):
        MetaFormerConfig(mixers=(nn.Identity,) * 4).to_dict()


def test_grid_follows_the_convolutions() -> None:
    config = MetaFormerConfig(image_size=(225, 96))
    assert [config.grid(i) for i in range(4)] == [(56, 24), (28, 12), (14, 6), (7, 3)]
