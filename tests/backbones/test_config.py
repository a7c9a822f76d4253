"""Configurations, and the published variants."""

import json
from dataclasses import replace

import pytest
import torch
from torch import nn

from metaformer.backbones.config import MetaFormerConfig
from metaformer.backbones.metaformer import MetaFormer
from metaformer.backbones.variants import POOLFORMER, UNAVAILABLE, VARIANTS
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
        ({"head_mlp_act": "gel"}, "unknown act 'gel': did you mean gelu"),
        ({"block": "metanex"}, "block 'metanex'.*metanext"),
        ({"block": "metanext", "mlp_ratios": (4, 4, 0, 4)}, "mlp_ratios: .* metanext block needs one"),
        ({"head": "pool_mlp", "feature_norm": "head"}, "feature_norm: 'head'"),
        ({"stem": "patch"}, "stem 'patch'"),
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
    two = replace(config, stem="conv_act_conv", stem_kernel=3, stem_stride=2, stem_padding=1)
    assert [two.grid(i) for i in range(4)] == [(57, 24), (29, 12), (15, 6), (8, 3)]


# The official counts; RandFormer's include the frozen matrices.
PARAMETERS = {
    "poolformer_s12": 11_915_176, "poolformer_s24": 21_388_968, "poolformer_s36": 30_862_760,
    "poolformer_m36": 56_172_520, "poolformer_m48": 73_473_448,
    "cyclemlp_b1": 15_155_400, "cyclemlp_b2": 26_802_504, "cyclemlp_b3": 38_385_720,
    "cyclemlp_b4": 51_796_552, "cyclemlp_b5": 75_747_280,
    "metaformer_pppa_s12": 14_038_440, "metaformer_ppaa_s12": 16_535_592, "metaformer_pppf_s12": 11_919_978,
    "metaformer_ppff_s12": 12_150_474,
    "convformer_s18": 26_774_448, "caformer_s18": 26_341_656, "caformer_b36": 98_753_614,
    "poolformerv2_s12": 11_891_712, "identityformer_s12": 11_891_712,
}  # fmt: skip
MILLIONS = {
    "identityformer_s24": 21.3, "identityformer_s36": 30.8, "identityformer_m36": 56.1,
    "identityformer_m48": 73.3,
    "poolformerv2_s24": 21.3, "poolformerv2_s36": 30.8, "poolformerv2_m36": 56.1, "poolformerv2_m48": 73.3,
    "convformer_s36": 40, "convformer_m36": 57, "convformer_b36": 100, "caformer_s36": 39, "caformer_m36": 56,
}  # fmt: skip

# Table 5 of the PoolFormer paper: each row is a change of PoolFormer-S12.
ABLATIONS = {
    "identity": {"mixers": ("identity",) * 4},
    "random": {"mixers": ("random",) * 4},
    "dwconv": {"mixers": ("dwconv",) * 4},
    **{f"pool{k}": {"mixers": (f"pooling(size={k})",) * 4} for k in (5, 7, 9)},
    **{norm: {"norm": norm} for norm in ("layer_norm", "batch_norm", "none")},
    **{act: {"act": act} for act in ("relu", "silu")},
    "no residual": {"residual": False},
    "no channel MLP": {"mlp_ratios": (0, 0, 0, 0)},
    "pppa": {"mixers": ("pooling", "pooling", "pooling", "attention")},
    "ppaa": {"mixers": ("pooling", "pooling", "attention", "attention")},
    "pppf": {"mixers": ("pooling", "pooling", "pooling", "spatial_fc")},
    "ppff": {"mixers": ("pooling", "pooling", "spatial_fc", "spatial_fc")},
}


def count(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", list(VARIANTS))
def test_every_variant_builds_runs_and_counts(name: str) -> None:
    with torch.device("meta"):
        model = MetaFormer(VARIANTS[name])
        assert model(torch.zeros(1, 3, 224, 224)).shape == (1, 1000)
    if name in PARAMETERS:
        assert count(model) == PARAMETERS[name]
    if name in MILLIONS:
        assert round(count(model) / 1e6, 1 if name[0] in "ip" else None) == MILLIONS[name]


@pytest.mark.parametrize(
    ("size", "extra"), [("s12", 0.2), ("s24", 0.5), ("s36", 0.7), ("m36", 0.7), ("m48", 0.9)]
)
def test_randformer_adds_frozen_matrices_to_identityformer(size: str, extra: float) -> None:
    with torch.device("meta"):
        random, identity = (MetaFormer(VARIANTS[f"{f}_{size}"]) for f in ("randformer", "identityformer"))
    frozen = sum(p.numel() for p in random.parameters() if not p.requires_grad)
    assert count(random) - frozen == count(identity) and round(frozen / 1e6, 1) == extra


@pytest.mark.parametrize("row", list(ABLATIONS))
def test_every_ablation_of_table_5_builds_and_runs(row: str) -> None:
    with torch.device("meta"):
        model = MetaFormer(replace(POOLFORMER, **ABLATIONS[row]))  # type: ignore[arg-type]
        assert model(torch.zeros(2, 3, 224, 224)).shape == (2, 1000)
    if row == "no channel MLP":
        assert round(count(model) / 1e6, 1) == 2.5
    if row == "random":
        assert round(sum(p.numel() for p in model.parameters() if not p.requires_grad) / 1e6) == 21


def test_unavailable_models_give_a_reason_and_are_not_variants() -> None:
    assert set(UNAVAILABLE) == {"cyclemlp_t", "cyclemlp_s", "cyclemlp_b"}
    assert not set(UNAVAILABLE) & set(VARIANTS)
    assert all("without code" in reason for reason in UNAVAILABLE.values())


def test_a_kernel_larger_than_the_image_names_the_size() -> None:
    config = replace(VARIANTS["poolformer_s12"], dims=(8,) * 4, image_size=(64, 64), down_kernel=256)
    with pytest.raises(ConfigError, match="image_size"):
        config.grid(1)
    with pytest.raises(ConfigError, match="image_size"):
        MetaFormer(replace(config, pos_embed=(False, True, False, False)))
