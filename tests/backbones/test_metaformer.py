from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from metaformer.backbones.config import MetaFormerConfig
from metaformer.backbones.metaformer import FeatureInfo, MetaFormer, MetaFormerFeatures
from metaformer.backbones.variants import VARIANTS
from metaformer.errors import ConfigError, SizeError

TINY = MetaFormerConfig(depths=(1, 1, 2, 1), dims=(4, 8, 12, 16), num_classes=5, image_size=(64, 64))
X = torch.randn(2, 3, 64, 64)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 130), st.integers(1, 130), st.integers(0, 3), st.sampled_from([1, 3, 4]))
def test_any_size_or_an_error_that_names_the_minimum(height: int, width: int, batch: int, chans: int) -> None:
    model = MetaFormer(replace(TINY, in_chans=chans)).eval()
    x = torch.randn(batch, chans, height, width)
    if min(height, width) < 3:
        with pytest.raises(SizeError, match=f"{height}×{width} pixels.* at least 3×3"):
            model(x)
    else:
        assert model(x).shape == (batch, 5)


@pytest.mark.parametrize(("name", "least"), [("convnext_atto", 32), ("mambaout_femto", 1)])
def test_the_minimum_follows_the_convolutions(name: str, least: int) -> None:
    config = replace(VARIANTS[name], depths=(1,) * 4, dims=(8, 8, 12, 16), num_classes=5)
    model = MetaFormer(config).eval()
    assert model.min_size == least and model(torch.randn(1, 3, least, least + 1)).shape == (1, 5)
    assert model.feature_info.reduction() == [4, 8, 16, 32]
    if least > 1:
        with pytest.raises(SizeError, match=f"at least {least}×{least}"):
            model(torch.randn(1, 3, least - 1, 64))


def test_wrong_channels() -> None:
    with pytest.raises(SizeError, match=r"expected images \(B, 3, H, W\), got \(1, 1, 8, 8\)"):
        MetaFormer(TINY)(torch.zeros(1, 1, 8, 8))


def test_interface_of_timm() -> None:
    model = MetaFormer(TINY).eval()
    features = model.forward_features(X)
    assert features.shape == (2, 16, 2, 2)
    torch.testing.assert_close(model.forward_head(features), model(X))
    assert model.forward_head(features, pre_logits=True).shape == (2, model.num_features)
    assert model.get_classifier().out_features == model.num_classes == 5
    model.reset_classifier(3)
    assert model(X).shape == (2, 3) and model.num_classes == 3
    model.reset_classifier(0, "")
    assert model(X).shape == (2, 16, 2, 2)
    assert model.feature_info.channels() == [4, 8, 12, 16]
    assert model.no_weight_decay() == set()


def test_intermediates() -> None:
    model = MetaFormer(TINY).eval()
    last, features = model.forward_intermediates(X)
    assert [m.shape[1:] for m in features] == [(4, 16, 16), (8, 8, 8), (12, 4, 4), (16, 2, 2)]
    assert torch.equal(last, features[-1])
    two = model.forward_intermediates(X, 2, norm=True, output_fmt="NHWC", intermediates_only=True)
    torch.testing.assert_close(two[1], model.head.norm(last).permute(0, 2, 3, 1))
    first = model.forward_intermediates(X, [0], stop_early=True)[0]
    assert torch.equal(first, features[0])
    with pytest.raises(ConfigError, match="NCWH"):
        model.forward_intermediates(X, output_fmt="NCWH")


def test_pyramid_with_and_without_norms() -> None:
    plain = MetaFormerFeatures(TINY, (1, -1))
    assert [m.shape[1] for m in plain(X)] == [8, 16] and plain.feature_info.reduction() == [8, 32]
    normed = MetaFormerFeatures(replace(TINY, feature_norm="fresh"), (1, 3))
    assert set(normed.norms) == {"1", "3"} and not hasattr(normed, "head")
    level = normed(X)[0]
    assert level.mean((1, 2, 3)).abs().max() < 1e-4 and (level.std((1, 2, 3)) - 1).abs().max() < 0.05
    with pytest.raises(ConfigError, match="must name stages"):
        MetaFormerFeatures(TINY, (4,))


def test_position_embedding_and_fixed_grids_at_another_size() -> None:
    config = replace(
        TINY, mixers=("pooling", "pooling", "random", "spatial_fc"), pos_embed=(False, False, True, False)
    )
    with pytest.raises(SizeError, match="grid of 4×4 positions and got 6×6"):
        MetaFormer(config)(torch.randn(1, 3, 96, 96))
    assert MetaFormer(replace(config, grid_mode="interpolate"))(torch.randn(1, 3, 96, 70)).shape == (1, 5)


def test_grad_checkpointing_reaches_every_stage() -> None:
    model = MetaFormer(TINY)
    model.set_grad_checkpointing()
    assert all(stage.grad_checkpointing for stage in model.stages)
    model.train()(X).sum().backward()
    assert model.stem.conv.weight.grad is not None
    model.set_grad_checkpointing("mlp")
    assert all(stage.grad_checkpointing == "mlp" for stage in model.stages)
    with pytest.raises(ConfigError, match="'blocks' is none of True, False and 'mlp'"):
        model.set_grad_checkpointing("blocks")  # type: ignore[arg-type]


def test_group_matcher_orders_all_parameters() -> None:
    from timm.models import group_parameters

    model = MetaFormer(TINY)
    groups = group_parameters(model, model.group_matcher(coarse=False), reverse=True)
    assert set(groups) == {name for name, _ in model.named_parameters()}
    assert (
        groups["stem.conv.weight"]
        < groups["stages.0.blocks.0.norm1.weight"]
        < groups["stages.2.blocks.1.norm1.weight"]
    )
    assert (
        groups["stages.2.blocks.1.norm1.weight"]
        < groups["stages.3.downsample.conv.weight"]
        < groups["head.fc.weight"]
    )


def test_whole_network_is_channels_last() -> None:
    model = MetaFormer(TINY).eval()
    layouts = []
    for stage in model.stages:
        stage.register_forward_hook(
            lambda _m, _i, out: layouts.append(out.is_contiguous(memory_format=torch.channels_last))
        )
    model(X)
    assert layouts == [True] * 4


@pytest.mark.parametrize(
    ("config", "channels", "reduction"),
    [
        (MetaFormerConfig(), [64, 128, 320, 512], [4, 8, 16, 32]),
        (
            MetaFormerConfig(dims=(64, 64, 320, 512), downsamples=(False, True, True)),
            [64, 64, 320, 512],
            [4, 4, 8, 16],
        ),
    ],
)
def test_feature_info(config: MetaFormerConfig, channels: list[int], reduction: list[int]) -> None:
    info = FeatureInfo.of(config)
    assert (info.channels(), info.reduction()) == (channels, reduction)
    assert info.pick((1, 3)).module_name() == ["stages.1", "stages.3"]
