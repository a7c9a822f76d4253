"""Classifiers by name."""

import logging
from pathlib import Path

import pytest
import torch

from metaformer.backbones.metaformer import MetaFormer, MetaFormerFeatures
from metaformer.backbones.variants import UNAVAILABLE, VARIANTS
from metaformer.errors import ConfigError, DownloadError, UnknownName, WeightsError
from metaformer.factory import create_model, is_model, list_models, model_config
from metaformer.weights.adapt import class_map_21k
from metaformer.weights.io import write_state
from metaformer.weights.keymap import from_ours
from metaformer.weights.sources import ALIASES, SOURCES, find_source

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
    source = find_source(name)
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
    model = create_model("poolformer_s12", checkpoint_path=path, num_classes=5, classifier="reset", **SMALL)
    assert torch.equal(model.stem.conv.weight, trained.stem.conv.weight)
    same = create_model("poolformer_s12", checkpoint_path=path, num_classes=7, **SMALL)
    assert torch.equal(same.get_classifier().weight, trained.get_classifier().weight)


def test_mixers_are_swapped_and_the_rest_kept(tmp_path: Path) -> None:
    trained = create_model("poolformer_s12", **SMALL)
    write_state(tmp_path / "x.pth", from_ours(trained.state_dict(), "poolformer"))
    options = {"checkpoint_path": tmp_path / "x.pth", "mixers": ("pooling",) * 3 + ("attention",), **SMALL}
    with pytest.raises(WeightsError, match=r"token_mixer.*\n.*strict=False"):
        create_model("poolformer_s12", **options)
    model = create_model("poolformer_s12", strict=False, **options)
    assert torch.equal(model.stages[3].blocks[0].mlp.fc1.weight, trained.stages[3].blocks[0].mlp.fc1.weight)


def test_two_sources_of_weights_are_one_too_many(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="choose one"):
        create_model("poolformer_s12", pretrained=True, checkpoint_path=tmp_path / "x.pth")


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
