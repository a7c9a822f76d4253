"""Models by name."""

import logging
from pathlib import Path

import pytest
import torch

from metaformer import models
from metaformer.backbones.skeleton import MetaFormer, MetaFormerFeatures
from metaformer.backbones.variants import UNAVAILABLE, VARIANTS
from metaformer.dense.criterion import SegmentationLoss
from metaformer.dense.segmenter import Segmenter
from metaformer.errors import ConfigError, DownloadError, UnknownName, WeightsError
from metaformer.models import (
    create_model,
    create_segmenter,
    is_model,
    is_segmenter,
    list_models,
    list_segmenters,
    model_config,
)
from metaformer.weights.adapt import class_map_21k
from metaformer.weights.io import write_state
from metaformer.weights.keymap import from_ours
from metaformer.weights.segmentation_sources import SEGMENTATION_SOURCES
from metaformer.weights.sources import ALIASES, SOURCES

PUBLISHED_PARAMETERS = {
    "poolformer_s12": 11_915_176,
    "poolformer_s24": 21_388_968,
    "poolformer_s36": 30_862_760,
    "poolformer_m36": 56_172_520,
    "poolformer_m48": 73_473_448,
    "metaformer_pppa_s12": 14_038_440,
    "metaformer_ppaa_s12": 16_535_592,
    "metaformer_pppf_s12": 11_919_978,
    "metaformer_ppff_s12": 12_150_474,
    "cyclemlp_b1": 15_155_400,
    "cyclemlp_b2": 26_802_504,
    "cyclemlp_b3": 38_385_720,
    "cyclemlp_b4": 51_796_552,
    "cyclemlp_b5": 75_747_280,
    "identityformer_s12": 11_891_712,
    "poolformerv2_s12": 11_891_712,
    "convformer_s18": 26_774_448,
    "caformer_s18": 26_341_656,
    "caformer_b36": 98_753_614,
}
SMALL = {"depths": (1, 1, 1, 1), "dims": (8, 8, 32, 32)}


@pytest.mark.parametrize("name", PUBLISHED_PARAMETERS)
def test_published_parameter_counts(name: str) -> None:
    with torch.device("meta"):
        model = create_model(name)
    assert sum(parameter.numel() for parameter in model.parameters()) == PUBLISHED_PARAMETERS[name]


@pytest.mark.parametrize("name", [*SOURCES, *(alias for alias in ALIASES if is_model(alias))])
def test_every_published_name_builds_what_its_weights_are_of(name: str) -> None:
    source = models.find_source(name)
    config = model_config(name)
    assert config.num_classes == source.num_classes and config.image_size == (source.image_size,) * 2
    with torch.device("meta"):
        model = create_model(name)
    assert model.pretrained_cfg["url"] == source.url
    assert model.pretrained_cfg["input_size"] == (3, source.image_size, source.image_size)
    assert model.get_submodule(model.pretrained_cfg["classifier"]).out_features == source.num_classes


@pytest.mark.parametrize("name", VARIANTS)
def test_options_reach_every_variant(name: str) -> None:
    model = create_model(
        name, num_classes=5, in_chans=4, drop_path_rate=0.1, global_pool="max", **SMALL
    ).eval()
    assert isinstance(model, MetaFormer) and model.config.drop_path_rate == 0.1
    with torch.no_grad():
        assert model(torch.randn(2, 4, 224, 224)).shape == (2, 5)


def test_features_only() -> None:
    model = create_model("caformer_s18", features_only=True, out_indices=(1, 3), **SMALL).eval()
    assert isinstance(model, MetaFormerFeatures)
    with torch.no_grad():
        maps = model(torch.randn(1, 3, 64, 96))
    assert [tuple(level.shape) for level in maps] == [(1, 8, 8, 12), (1, 32, 2, 3)]
    assert model.feature_info.channels() == [8, 32] and model.feature_info.reduction() == [8, 32]


def test_unknown_names_offer_the_nearest() -> None:
    with pytest.raises(UnknownName, match="poolformer_s12"):
        create_model("poolformer_s13")
    with pytest.raises(UnknownName, match="sail_in1k_384"):
        create_model("caformer_s18.sail_in1k_348")
    with pytest.raises(UnknownName, match="mlp_ratios"):
        create_model("poolformer_s12", mlp_ratio=3)


@pytest.mark.parametrize("name", [*UNAVAILABLE, "CycleMLP_tiny"])
def test_models_without_code_say_why(name: str) -> None:
    with pytest.raises(ConfigError, match="published without code"):
        create_model(name)
    assert not is_model(name)


def test_lists() -> None:
    assert list_models() == list(VARIANTS)
    assert list_models("caformer*") == [f"caformer_{size}" for size in ("s18", "s36", "m36", "b36")]
    assert list_models("caformer_s18", pretrained=True) == [
        n for n in SOURCES if n.startswith("caformer_s18.")
    ]
    assert len(list_models("*.sail_in22k", pretrained=True)) == 8
    assert all(is_model(name) for name in [*list_models(), *list_models(pretrained=True), *VARIANTS])
    assert not is_model("poolformer_s13") and not is_model("poolformer_s12.sail_in22k")


def test_a_checkpoint_of_other_classes(tmp_path: Path) -> None:
    path = tmp_path / "own.pth.tar"
    trained = create_model("poolformer_s12", num_classes=7, **SMALL)
    write_state(path, from_ours(trained.state_dict(), "poolformer"))
    with pytest.raises(WeightsError, match=r"own\.pth\.tar: its classifier has 7 classes, the model 1000"):
        create_model("poolformer_s12", checkpoint_path=path, **SMALL)
    with pytest.raises(WeightsError, match="7 classes"):
        create_model("poolformer_s12", checkpoint_path=path, num_classes=5, **SMALL)
    model = create_model("poolformer_s12", checkpoint_path=path, num_classes=5, classifier="fresh", **SMALL)
    assert torch.equal(model.stem.conv.weight, trained.stem.conv.weight)
    same = create_model("poolformer_s12", checkpoint_path=path, num_classes=7, **SMALL)
    assert torch.equal(same.get_classifier().weight, trained.get_classifier().weight)


def test_mixers_are_swapped_and_the_rest_kept(tmp_path: Path) -> None:
    trained = create_model("poolformer_s12", **SMALL)
    write_state(tmp_path / "x.pth", from_ours(trained.state_dict(), "poolformer"))
    options = {"checkpoint_path": tmp_path / "x.pth", "mixers": ("pooling",) * 3 + ("attention",), **SMALL}
    with pytest.raises(WeightsError, match=r"token_mixer.*\n.*partial=True"):
        create_model("poolformer_s12", **options)
    model = create_model("poolformer_s12", partial=True, **options)
    assert torch.equal(model.stages[3].blocks[0].mlp.fc1.weight, trained.stages[3].blocks[0].mlp.fc1.weight)


def test_two_sources_of_weights_are_one_too_many(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="choose one"):
        create_model("poolformer_s12", pretrained=True, checkpoint_path=tmp_path / "x.pth")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache directory that downloads would have filled."""
    monkeypatch.setenv("METAFORMER_HOME", str(tmp_path))
    return tmp_path / "weights"


def test_published_weights_come_from_the_cache(cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    published = create_model("poolformer_s12").eval()
    write_state(cache / "poolformer_s12.pth.tar", from_ours(published.state_dict(), "poolformer"))
    with caplog.at_level(logging.INFO):
        model = create_model("poolformer_s12", pretrained=True).eval()
    assert "100.0% of the model" in caplog.text
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(model(image), published(image))
    other = create_model("poolformer_s12", pretrained=True, num_classes=3, in_chans=1)
    assert torch.equal(other.stages[3].blocks[1].mlp.fc2.weight, published.stages[3].blocks[1].mlp.fc2.weight)
    assert other.get_classifier().out_features == 3
    features = create_model("poolformer_s12", pretrained=True, features_only=True).eval()
    with torch.no_grad():
        assert torch.equal(features(image)[-1], published.forward_features(image))


def test_a_21k_classifier_is_mapped_by_class(cache: Path) -> None:
    published = create_model("caformer_s18.sail_in22k", **SMALL)
    write_state(cache / "caformer_s18_in21k.pth", from_ours(published.state_dict(), "baselines"))
    whole = create_model("caformer_s18.sail_in22k", pretrained=True, **SMALL)
    assert whole.get_classifier().fc2.out_features == 21841
    options = {"pretrained": True, "num_classes": 1000, **SMALL}
    model = create_model("caformer_s18_in21k", classifier="map_21k", **options)
    theirs, ours = (net.get_classifier().fc2.weight.detach() for net in (published, model))
    for i, row in enumerate(class_map_21k()):
        assert torch.allclose(ours[i], theirs.mean(0) if row is None else theirs[row], atol=1e-7)
    with pytest.raises(WeightsError, match="21841 classes, the model 1000"):
        create_model("caformer_s18", checkpoint_path=cache / "caformer_s18_in21k.pth", **SMALL)


def test_a_model_without_published_weights(cache: Path) -> None:
    with pytest.raises(WeightsError, match="poolformer_n: no weights were published"):
        create_model("poolformer_n", pretrained=True)


def test_offline(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")
    monkeypatch.setattr("metaformer.weights.download.ATTEMPTS", 1)
    with pytest.raises(DownloadError, match=r"poolformer_s24\.pth\.tar.*checkpoint_path"):
        create_model("poolformer_s24", pretrained=True)


def test_the_cards_of_models_without_weights() -> None:
    card = create_model("poolformer_n").pretrained_cfg
    assert card["url"] == "" and card["input_size"] == (3, 224, 224) and card["num_classes"] == 1000


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
    criterion = SegmentationLoss(average="all")
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
        assert model.raw(torch.randn(1, 3, 64, 64)).shape == (1, 3, 8, 8)
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
