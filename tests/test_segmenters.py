"""Segmentation networks by name."""

import logging
from pathlib import Path

import pytest
import torch

from metaformer.backbones.metaformer import MetaFormerFeatures
from metaformer.backbones.variants import VARIANTS
from metaformer.errors import ConfigError, UnknownName, WeightsError
from metaformer.factory import create_model, create_segmenter, is_segmenter, list_segmenters, model_config
from metaformer.models.segmentation.loss import SegmentationLoss
from metaformer.models.segmentation.segmenter import Segmenter
from metaformer.weights.io import write_state
from metaformer.weights.keymap import from_ours
from metaformer.weights.segmentation_sources import SEGMENTATION_SOURCES

SMALL = {"depths": (1, 1, 1, 1), "dims": (8, 8, 32, 32)}


@pytest.mark.parametrize(
    ("size", "published", "exact"),
    [
        ("s12", 15.7, 15_669_846),
        ("s24", 25.1, 25_143_638),
        ("s36", 34.6, 34_617_430),
        ("m36", 59.8, 59_778_006),
        ("m48", 77.1, 77_078_934),
    ],
)
def test_semantic_fpn_has_the_published_parameters(size: str, published: float, exact: int) -> None:
    with torch.device("meta"):
        model = create_segmenter("semantic_fpn", backbone=f"poolformer_{size}")
    params = sum(parameter.numel() for parameter in model.parameters())
    assert params == exact and round(params / 1e6, 1) == published


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("kind", ["semantic_fpn", "upernet"])
def test_segmenters_on_every_variant(kind: str, name: str) -> None:
    backbone = model_config(name, grid_mode="interpolate", **SMALL)
    for norm in ("fresh", "none"):
        model = create_segmenter(
            kind, backbone=backbone, num_classes=3, feature_norm=norm, fpn_dim=8, head_dim=8
        ).eval()
        assert len(model.backbone.norms) == (4 if norm == "fresh" else 0)
        with torch.no_grad():
            assert model(torch.randn(1, 3, 75, 96)).shape == (1, 3, 75, 96)


def test_segmenters_by_name_work_at_any_size() -> None:
    assert create_segmenter("upernet", backbone="randformer_s12").config.backbone.grid_mode == "interpolate"
    default = create_segmenter("semantic_fpn", num_classes=3).config
    assert default.backbone == model_config("poolformer_s24", feature_norm="fresh", grid_mode="interpolate")


def test_options_reach_the_segmenter() -> None:
    criterion = SegmentationLoss(reduction="all")
    model = create_segmenter(
        "semantic_fpn_poolformer_n",
        num_classes=3,
        drop_path_rate=0.2,
        in_chans=4,
        fpn_dim=8,
        head_dim=6,
        dropout=0.3,
        auxiliary=True,
        criterion=criterion,
    )
    config = model.config
    assert (config.backbone.drop_path_rate, config.backbone.in_chans) == (0.2, 4)
    assert (config.fpn_dim, config.head_dim, config.dropout, config.auxiliary) == (8, 6, 0.3, True)
    assert model.criterion is criterion and model.num_classes == 3
    assert model.pretrained_cfg["architecture"] == "semantic_fpn_poolformer_n"
    assert model.pretrained_cfg["input_size"] == (4, 512, 512)


def test_a_configuration_keeps_what_is_not_changed() -> None:
    config = model_config("poolformer_n", drop_path_rate=0.3, feature_norm="none", **SMALL)
    assert create_segmenter("upernet", backbone=config, feature_norm=None).config.backbone == config
    changed = create_segmenter("upernet", backbone=config, drop_path_rate=0.0).config.backbone
    assert changed.drop_path_rate == 0.0 and changed.feature_norm == "fresh"


def test_a_module_as_backbone() -> None:
    pyramid = MetaFormerFeatures(model_config("poolformer_n", **SMALL), out_indices=(1, 2, 3))
    model = create_segmenter("semantic_fpn", backbone=pyramid, num_classes=3, fpn_dim=8, head_dim=8).eval()
    assert model.backbone is pyramid and model.config.backbone is None
    with torch.no_grad():
        assert model.forward_head(torch.randn(1, 3, 64, 64)).shape == (1, 3, 8, 8)
    with pytest.raises(ConfigError, match=r"in_chans: .* build the module"):
        create_segmenter("semantic_fpn", backbone=pyramid, in_chans=4)
    with pytest.raises(ConfigError, match="neither a name, a MetaFormerConfig nor a module"):
        create_segmenter("semantic_fpn", backbone=3)  # type: ignore[arg-type]


def test_unknown_segmenters_offer_the_nearest() -> None:
    with pytest.raises(UnknownName, match="did you mean semantic_fpn"):
        create_segmenter("semantic_fnp")
    with pytest.raises(UnknownName, match=r"did you mean .*semantic_fpn_poolformer_s12"):
        create_segmenter("semantic_fpn_poolformer_s13")
    with pytest.raises(UnknownName, match="did you mean mmseg_ade20k"):
        create_segmenter("semantic_fpn_poolformer_s12.mmseg_ade")
    with pytest.raises(UnknownName, match=r"did you mean .*poolformer_s12"):
        create_segmenter("upernet", backbone="poolformer_s13")
    with pytest.raises(ConfigError, match="in its name, and backbone= names another"):
        create_segmenter("upernet_poolformer_s12", backbone="poolformer_s24")


def test_lists_of_segmenters() -> None:
    assert len(list_segmenters()) == 2 * len(VARIANTS)
    assert list_segmenters("upernet_poolformer_s*") == [f"upernet_poolformer_s{n}" for n in (12, 24, 36)]
    assert list_segmenters(pretrained=True) == list(SEGMENTATION_SOURCES)
    assert list_segmenters("*_m48", pretrained=True) == ["semantic_fpn_poolformer_m48.mmseg_ade20k"]
    assert all(is_segmenter(name) for name in [*list_segmenters(), *list_segmenters(pretrained=True)])
    for name in ("semantic_fpn", "poolformer_s12", "upernet_poolformer_s12.mmseg_ade20k"):
        assert not is_segmenter(name)


@pytest.fixture
def segmenter(cache: Path) -> Segmenter:
    """What a download of the published S12 would have put into the cache."""
    torch.manual_seed(0)
    model = create_segmenter("semantic_fpn_poolformer_s12").eval()
    source = SEGMENTATION_SOURCES["semantic_fpn_poolformer_s12.mmseg_ade20k"]
    write_state(cache / source.file, from_ours(model.state_dict(), "mmsegmentation"), wrapper="state_dict")
    return model


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("semantic_fpn_poolformer_s12.mmseg_ade20k", {}),
        ("semantic_fpn_poolformer_s12", {}),
        ("semantic_fpn", {"backbone": "poolformer_s12"}),
    ],
)
def test_published_segmenters_come_from_the_cache(
    segmenter: Segmenter, kind: str, options: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        model = create_segmenter(kind, pretrained=True, **options).eval()
    assert "mmsegmentation format" in caplog.text and "100.0% of the model" in caplog.text
    assert model.pretrained_cfg["url"].endswith("-b5aa2f49.pth")
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(model(image), segmenter(image))


def test_published_segmenters_for_other_classes(segmenter: Segmenter) -> None:
    model = create_segmenter("semantic_fpn", "poolformer_s12", 11, pretrained=True, auxiliary=True)
    assert torch.equal(model.head.scales[3][2].conv.weight, segmenter.head.scales[3][2].conv.weight)
    assert model.head.classifier.out_channels == 11
    with pytest.raises(WeightsError, match="no weights were published"):
        create_segmenter("upernet", "poolformer_s12", pretrained=True)


def test_published_backbones_go_under_a_segmenter(cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    published = create_model("poolformer_s12")
    write_state(cache / "poolformer_s12.pth.tar", from_ours(published.state_dict(), "poolformer"))
    with caplog.at_level(logging.INFO):
        model = create_segmenter("upernet", "poolformer_s12", 3, backbone_pretrained=True, head_dim=8)
    assert "fresh: norms.0.weight" in caplog.text
    assert torch.equal(model.backbone.stem.conv.weight, published.stem.conv.weight)
    for options in (
        {"checkpoint_path": cache / "poolformer_s12.pth.tar"},
        {"backbone_checkpoint": cache / "poolformer_s12.pth.tar"},
    ):
        other = create_segmenter("upernet", "poolformer_s12", 3, head_dim=8, **options)
        assert torch.equal(other.backbone.stem.conv.weight, published.stem.conv.weight)
    with pytest.raises(ConfigError, match="backbone given by its name"):
        create_segmenter("upernet", model_config("poolformer_s12"), backbone_pretrained=True)
    with pytest.raises(ConfigError, match="choose one"):
        create_segmenter("upernet", "poolformer_s12", pretrained=True, backbone_pretrained=True)
