"""Saving and loading as Hugging Face does."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from metaformer.backbones.config import MetaFormerConfig
from metaformer.backbones.metaformer import MetaFormer, MetaFormerFeatures
from metaformer.errors import ConfigError, DownloadError, OutputError, WeightsError
from metaformer.factory import create_detector, create_model, create_segmenter
from metaformer.models.detection.config import KINDS
from metaformer.models.detection.detector import Detector
from metaformer.models.segmentation.segmenter import Segmenter
from metaformer.weights.hub import from_pretrained, push_to_hub, read_config, save_pretrained
from metaformer.weights.io import write_state

TINY = MetaFormerConfig(depths=(1, 1, 2, 1), dims=(8, 16, 20, 28), num_classes=7, image_size=(64, 64))
CONFIGS = [
    TINY,
    replace(TINY, mixers=(("pooling(size=5)",), ("identity",), ("random", "pooling"), ("spatial_fc",))),
    replace(TINY, head="pool_norm_mlp", norm="layer_norm(bias=False)", head_dropout=0.1, num_classes=3),
]


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_a_model_comes_back_as_it_was(tmp_path: Path, config: MetaFormerConfig) -> None:
    model = MetaFormer(config).eval()
    save_pretrained(model, tmp_path / "new" / "model")
    assert {path.name for path in (tmp_path / "new" / "model").iterdir()} == {
        "config.json",
        "model.safetensors",
    }
    loaded = from_pretrained(tmp_path / "new" / "model")
    assert loaded.config == config and not loaded.training
    image = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(loaded(image), model(image))


def test_a_pyramid_comes_back_as_it_was(tmp_path: Path) -> None:
    model = MetaFormerFeatures(replace(TINY, feature_norm="fresh"), out_indices=(1, 3)).eval()
    with torch.no_grad():
        model.norms["1"].weight.normal_()
    save_pretrained(model, tmp_path)
    loaded = from_pretrained(str(tmp_path))
    assert isinstance(loaded, MetaFormerFeatures) and loaded.out_indices == (1, 3)
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert all(torch.equal(a, b) for a, b in zip(loaded(image), model(image), strict=True))


def test_what_was_published_about_the_weights_is_kept(tmp_path: Path) -> None:
    model = create_model("cyclemlp_b1", depths=(1,) * 4, dims=(8,) * 4)
    save_pretrained(model, tmp_path)
    kept = from_pretrained(tmp_path).pretrained_cfg
    assert kept["crop_pct"] == 0.875 and kept["architecture"] == "cyclemlp_b1" and kept["license"] == "mit"
    card = json.loads((tmp_path / "config.json").read_text())
    assert card["library_name"] == "metaformer" and card["config"]["mixers"] == ["cycle_mlp"] * 4


def test_a_new_classifier_is_saved_with_its_classes(tmp_path: Path) -> None:
    model = MetaFormer(TINY)
    model.reset_classifier(11)
    save_pretrained(model, tmp_path)
    assert from_pretrained(tmp_path).config.num_classes == 11


def test_models_with_nameless_mixers_are_not_saved(tmp_path: Path) -> None:
    model = MetaFormer(replace(TINY, mixers=(lambda dim: nn.Identity(),) * 4))
    with pytest.raises(ConfigError, match="no registered name"):
        save_pretrained(model, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_directories_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"config\.json"):
        from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(WeightsError, match="not an object"):
        from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"architecture": "resnet50"}')
    with pytest.raises(ConfigError, match="resnet50"):
        from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"config": {"depth": 3}}')
    with pytest.raises(ConfigError, match="depth"):
        from_pretrained(tmp_path)
    with pytest.raises(WeightsError, match="neither a directory nor"):
        from_pretrained(tmp_path / "nothing")


def test_repositories_of_timm_are_read(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "poolformerv2_s12", "num_classes": 5}))
    model = create_model("poolformerv2_s12", num_classes=5).eval()
    write_state(tmp_path / "model.safetensors", model.state_dict())
    loaded = from_pretrained(tmp_path)
    image = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(loaded(image), model(image))


def test_a_configuration_of_transformers_is_read() -> None:
    config = read_config(
        {"model_type": "poolformer", "depths": [1, 1, 2, 1], "hidden_sizes": [8, 16, 20, 28]}
    )
    assert config == replace(TINY, num_classes=2, mixers="pooling(size=3)", image_size=(224, 224))


def test_offline_is_one_clear_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(DownloadError, match=r"owner/model: config\.json could not be fetched") as caught:
        from_pretrained("owner/model")
    assert "\n" not in str(caught.value)
    with pytest.raises(OutputError, match="owner/model: not uploaded"):
        push_to_hub(MetaFormer(TINY), "owner/model", token="none")


@pytest.mark.parametrize("kind", ["semantic_fpn", "upernet"])
def test_a_segmenter_comes_back_as_it_was(tmp_path: Path, kind: str) -> None:
    model = create_segmenter(
        kind, backbone=TINY, num_classes=7, fpn_dim=12, head_dim=6, dropout=0.2, auxiliary=True
    ).eval()
    save_pretrained(model, tmp_path)
    card = json.loads((tmp_path / "config.json").read_text())
    assert card["task"] == "segment" and card["architecture"] == kind and "out_indices" not in card
    loaded = from_pretrained(tmp_path)
    assert isinstance(loaded, Segmenter) and loaded.config == model.config and not loaded.training
    assert loaded.pretrained_cfg == model.pretrained_cfg
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(loaded(image), model(image))


def test_segmenters_that_cannot_be_saved_or_read(tmp_path: Path) -> None:
    model = create_segmenter("upernet", backbone=MetaFormerFeatures(TINY), num_classes=7, head_dim=6)
    with pytest.raises(ConfigError, match="cannot be saved"):
        save_pretrained(model, tmp_path / "new")
    assert not (tmp_path / "new").exists()
    (tmp_path / "config.json").write_text('{"task": "segment", "config": {"kind": "upernet"}}')
    with pytest.raises(ConfigError, match=r"config\.json: backbone"):
        from_pretrained(tmp_path)


@pytest.mark.parametrize("kind", KINDS)
def test_a_detector_comes_back_as_it_was(tmp_path: Path, kind: str) -> None:
    model = create_detector(
        kind, backbone=TINY, num_classes=3, fpn_dim=12, box_fc_dim=6, nms_threshold=0.6
    ).eval()
    save_pretrained(model, tmp_path)
    card = json.loads((tmp_path / "config.json").read_text())
    assert card["task"] == "detect" and card["architecture"] == kind and "out_indices" not in card
    loaded = from_pretrained(tmp_path)
    assert isinstance(loaded, Detector) and loaded.config == model.config and not loaded.training
    assert loaded.pretrained_cfg == model.pretrained_cfg
    ours, theirs = loaded.state_dict(), model.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_detectors_that_cannot_be_saved_or_read(tmp_path: Path) -> None:
    model = create_detector("retinanet", backbone=MetaFormerFeatures(TINY), num_classes=3, fpn_dim=8)
    with pytest.raises(ConfigError, match="cannot be saved"):
        save_pretrained(model, tmp_path / "new")
    (tmp_path / "config.json").write_text('{"task": "detect", "config": {"kind": "retinanet"}}')
    with pytest.raises(ConfigError, match=r"config\.json: backbone"):
        from_pretrained(tmp_path)
