"""Saving and loading as Hugging Face does."""

import json
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

from metaformer.backbones.config import MetaFormerConfig
from metaformer.backbones.metaformer import MetaFormer, MetaFormerFeatures
from metaformer.errors import ConfigError, DownloadError, OutputError, WeightsError
from metaformer.factory import create_detector, create_model, create_segmenter
from metaformer.inference.model import load_model
from metaformer.models.build import DENSE_KINDS
from metaformer.models.detection.config import KINDS
from metaformer.weights.card import read_config
from metaformer.weights.hub import from_pretrained, push_to_hub, save_pretrained
from metaformer.weights.io import write_state
from metaformer.weights.saved import find_saved

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
        "README.md",
        "config.json",
        "model.safetensors",
    }
    loaded = from_pretrained(tmp_path / "new" / "model")
    assert loaded.config == config and not loaded.training
    image = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(loaded(image), model(image))


NETWORKS = {
    "image-classification": lambda: create_model("poolformer_n", num_classes=3),
    "image-segmentation": lambda: create_segmenter("semantic_fpn_poolformer_n", num_classes=3, fpn_dim=8),
    "object-detection": lambda: create_detector("retinanet_poolformer_n", num_classes=3, fpn_dim=8),
}


@pytest.mark.parametrize("pipeline", NETWORKS)
def test_networks_save_themselves_with_a_model_card(pipeline: str, tmp_path: Path) -> None:
    model = NETWORKS[pipeline]()
    model.pretrained_cfg["label_names"] = ("a_b", "<i>", "c\n# d")
    model.save_pretrained(tmp_path)
    again = from_pretrained(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), model.parameters(), strict=True))
    text = (tmp_path / "README.md").read_text()
    start, head, body = text.split("---\n", 2)
    values = yaml.safe_load(head)
    assert not start and values["pipeline_tag"] == pipeline and values["library_name"] == "metaformer"
    assert "license" not in values, "weights of one's own have the license that their owner gives them"
    assert (
        f"| parameters | {sum(p.numel() for p in model.parameters()):,} |" in body
        and "| classes | 3 |" in body
    )
    assert r"Classes: a\_b, \<i\>, c \# d" in body and "from_pretrained" in body
    (tmp_path / "README.md").write_text("my own")
    model.save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == "my own"


def test_the_license_of_published_weights_is_in_the_card(tmp_path: Path) -> None:
    create_model("cyclemlp_b1", depths=(1,) * 4, dims=(8,) * 4).save_pretrained(tmp_path)
    text = (tmp_path / "README.md").read_text()
    assert 'license: "mit"' in text and "| input | 3 × 224 × 224 |" in text
    create_model("poolformer_n", features_only=True).save_pretrained(tmp_path / "pyramid")
    assert "Predictor" not in (tmp_path / "pyramid" / "README.md").read_text()


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


@pytest.mark.parametrize("kind", [head for kind in DENSE_KINDS for head in kind.heads])
def test_a_dense_network_comes_back_as_it_was(tmp_path: Path, kind: str) -> None:
    small: dict[str, Any] = {"fpn_dim": 12, "head_dim": 6}
    small |= {"box_fc_dim": 6, "nms_threshold": 0.6} if kind in KINDS else {"dropout": 0.2, "auxiliary": True}
    create: Any = create_detector if kind in KINDS else create_segmenter
    model = create(kind, backbone=TINY, num_classes=7, **small).eval()
    save_pretrained(model, tmp_path)
    card = json.loads((tmp_path / "config.json").read_text())
    assert card["architecture"] == kind and "out_indices" not in card
    loaded = from_pretrained(tmp_path)
    assert type(loaded) is type(model) and loaded.config == model.config and not loaded.training
    assert loaded.pretrained_cfg == model.pretrained_cfg
    ours, theirs = loaded.state_dict(), model.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("kind", [head for kind in DENSE_KINDS for head in kind.heads])
def test_dense_networks_that_cannot_be_saved_or_read(tmp_path: Path, kind: str) -> None:
    create: Any = create_detector if kind in KINDS else create_segmenter
    model = create(kind, backbone=MetaFormerFeatures(TINY), num_classes=7, fpn_dim=8, head_dim=6)
    with pytest.raises(ConfigError, match="cannot be saved"):
        save_pretrained(model, tmp_path / "new")
    assert not (tmp_path / "new").exists()
    task = "detect" if kind in KINDS else "segment"
    (tmp_path / "config.json").write_text(json.dumps({"task": task, "config": {"kind": kind}}))
    with pytest.raises(ConfigError, match=r"config\.json: backbone"):
        from_pretrained(tmp_path)


def test_cards_of_the_development_version_are_read_or_refused_in_one_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = create_segmenter("upernet", backbone=TINY, num_classes=7, head_dim=6)
    save_pretrained(model, tmp_path)
    card = json.loads((tmp_path / "config.json").read_text())
    assert card.pop("version") == metadata.version("metaformer")
    (tmp_path / "config.json").write_text(json.dumps(card))
    assert from_pretrained(tmp_path).config == model.config
    card["pretrained_cfg"]["preprocess"] = {"multiple": 64, "short_side": 96, "long_side": 128}
    (tmp_path / "config.json").write_text(json.dumps(card))
    loaded = load_model(tmp_path)
    assert (loaded.preprocess.size_divisor, loaded.preprocess.short_side) == (64, 96)
    old = {"task": "detect", "config": {"kind": "retinanet", "backbone": card["config"]["backbone"]}}
    for name in ("box_samples", "nms_candidates", "train_candidates"):
        (tmp_path / "config.json").write_text(json.dumps(old | {"config": {**old["config"], name: 100}}))
        with pytest.raises(ConfigError, match=f"config.json: .*development version .*{name}") as error:
            from_pretrained(tmp_path)
        assert "\n" not in str(error.value)
        caplog.clear()
        assert find_saved(tmp_path / "model.safetensors") is None  # weights of a network given by its name
        assert f"development version before 0.1.0 (unknown field {name!r}" in caplog.text
