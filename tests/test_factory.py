"""Networks by name."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from metaformer.backbones.config import MetaFormerConfig
from metaformer.backbones.metaformer import MetaFormer, MetaFormerFeatures
from metaformer.backbones.variants import UNAVAILABLE, VARIANTS
from metaformer.errors import ConfigError, DownloadError, UnknownName, WeightsError
from metaformer.factory import (
    backbone_config,
    create_detector,
    create_model,
    create_network,
    create_segmenter,
    is_detector,
    is_model,
    is_segmenter,
    list_detectors,
    list_models,
    list_segmenters,
    model_config,
    split_network,
)
from metaformer.models.build import DENSE_KINDS, DETECTOR, SEGMENTER, NetworkKind
from metaformer.models.segmentation.loss import SegmentationLoss
from metaformer.weights.adapt import class_map_21k
from metaformer.weights.io import write_state
from metaformer.weights.keymap import from_ours
from metaformer.weights.sources import ALIASES, SOURCES, find_source

PUBLISHED_MILLIONS = {
    "semantic_fpn": {"s12": 15.7, "s24": 25.1, "s36": 34.6, "m36": 59.8, "m48": 77.1},
    "retinanet": {"s12": 21.7, "s24": 31.1, "s36": 40.6},
    "mask_rcnn": {"s12": 31.6, "s24": 41.0, "s36": 50.5},
}
SMALL: dict[str, Any] = {"depths": (1, 1, 1, 1), "dims": (8, 8, 32, 32)}
NARROW: dict[str, Any] = {"fpn_dim": 8, "head_dim": 8}
CREATE: dict[NetworkKind, Any] = {SEGMENTER: create_segmenter, DETECTOR: create_detector}
LISTED = {SEGMENTER: (list_segmenters, is_segmenter), DETECTOR: (list_detectors, is_detector)}
HEADS = [(kind, head) for kind in DENSE_KINDS for head in kind.heads]
each_head = pytest.mark.parametrize(("kind", "head"), HEADS, ids=[head for _, head in HEADS])
each_kind = pytest.mark.parametrize("kind", DENSE_KINDS, ids=lambda kind: kind.title)


def narrow(kind: NetworkKind) -> dict[str, Any]:
    return NARROW if kind is SEGMENTER else {**NARROW, "box_fc_dim": 8}


@pytest.mark.parametrize("head", PUBLISHED_MILLIONS)
def test_published_parameter_counts(head: str) -> None:
    for size, millions in PUBLISHED_MILLIONS[head].items():
        with torch.device("meta"):
            model = create_network(f"{head}_poolformer_{size}")
        assert round(sum(parameter.numel() for parameter in model.parameters()) / 1e6, 1) == millions


IMAGENET = [name for name, source in SOURCES.items() if not source.data]


@pytest.mark.parametrize("name", [*IMAGENET, *(alias for alias in ALIASES if is_model(alias))])
def test_every_published_name_builds_what_its_weights_are_of(name: str) -> None:
    source = find_source(name)
    config = model_config(name)
    assert config.num_classes == source.num_classes and config.image_size == source.image_size
    with torch.device("meta"):
        model = create_model(name)
    assert model.pretrained_cfg["url"] == source.url
    assert model.pretrained_cfg["input_size"] == (3, *source.image_size)
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
        name for name in SOURCES if name.startswith("caformer_s18.")
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


@pytest.mark.parametrize("name", VARIANTS)
@each_head
def test_every_head_on_every_variant(kind: NetworkKind, head: str, name: str) -> None:
    backbone = model_config(name, grid_mode="interpolate", **SMALL)
    model = CREATE[kind](head, backbone=backbone, num_classes=3, **narrow(kind)).eval()
    with torch.no_grad():
        (found,) = model(torch.randn(1, 3, 75, 96))
    if kind is SEGMENTER:
        assert found.shape == (3, 75, 96)
    else:
        assert (found.masks is not None) == (head == "mask_rcnn") == model.has_masks


@each_head
def test_options_reach_a_dense_network(kind: NetworkKind, head: str) -> None:
    own = (
        {"dropout": 0.3, "auxiliary": True} if kind is SEGMENTER else {"nms_threshold": 0.6, "box_fc_dim": 8}
    )
    of_backbone = {"drop_path_rate": 0.2, "in_chans": 4}
    options = {"num_classes": 3, **NARROW, **own, **of_backbone}
    model = CREATE[kind](f"{head}_poolformer_n", **options)
    for name, value in options.items():
        assert getattr(model.config.backbone if name in of_backbone else model.config, name) == value
    assert model.config.kind == head and model.num_classes == 3
    assert model.pretrained_cfg["architecture"] == f"{head}_poolformer_n"
    assert model.pretrained_cfg["input_size"] == (4, *kind.config.image_size)
    same = create_network(f"{head}_poolformer_n", mixers="identity", **options)
    assert same.config.backbone.mixers == ("identity",) * 4
    changed = model_config("poolformer_n", grid_mode="interpolate", feature_norm="fresh", **of_backbone)
    assert model.config.backbone == changed


def test_a_network_of_any_name() -> None:
    for name in ("poolformer_n", *(f"{head}_poolformer_n" for _, head in HEADS)):
        with torch.device("meta"):
            model = create_network(name, num_classes=3, image_size=(64, 64))
        assert model.config.num_classes == 3
        assert (model.config if name == "poolformer_n" else model.config.backbone).image_size == (64, 64)
    for name, near in (
        ("poolformer_s13", "poolformer_s12"),
        ("mask_rcnn_poolformer_x", "mask_rcnn_poolformer_n"),
    ):
        with pytest.raises(UnknownName, match=f"did you mean .*{near}"):
            create_network(name)
    for name, option in (("poolformer_n", "fpn_dim"), ("upernet_poolformer_n", "nms_threshold")):
        with pytest.raises(UnknownName, match=option):
            create_network(name, **{option: 1})


def test_the_loss_is_given() -> None:
    criterion = SegmentationLoss(reduction="all")
    assert (
        create_segmenter("upernet", "poolformer_n", 3, criterion=criterion, head_dim=6).criterion is criterion
    )


@each_kind
def test_a_backbone_by_name_or_configuration(kind: NetworkKind) -> None:
    create, head = CREATE[kind], kind.heads[0]
    named = model_config("poolformer_s24", feature_norm="fresh", grid_mode="interpolate")
    with torch.device("meta"):
        assert create(head).config.backbone == named
    config = model_config("poolformer_n", drop_path_rate=0.3, feature_norm="none", **SMALL)
    assert create(head, backbone=config, feature_norm=None, **narrow(kind)).config.backbone == config
    changed = create(head, backbone=config, drop_path_rate=0.0, **narrow(kind)).config.backbone
    assert changed.drop_path_rate == 0.0 and changed.feature_norm == "fresh"
    assert backbone_config(config, {"drop_path_rate": None, "in_chans": None}) == config


@each_kind
def test_a_module_as_backbone(kind: NetworkKind) -> None:
    pyramid = MetaFormerFeatures(model_config("poolformer_n", **SMALL))
    model = CREATE[kind](kind.heads[0], backbone=pyramid, num_classes=3, **narrow(kind))
    assert model.backbone is pyramid and model.config.backbone is None
    assert backbone_config(nn.Identity(), {"feature_norm": "fresh"}) is None
    for backbone, option, message in ((pyramid, {"in_chans": 4}, "in_chans"), (3, {}, "backbone: 3")):
        with pytest.raises(ConfigError, match=message):
            CREATE[kind](kind.heads[0], backbone=backbone, **option)


@each_head
def test_unknown_dense_networks_offer_the_nearest(kind: NetworkKind, head: str) -> None:
    create = CREATE[kind]
    for name, near in ((f"{head}x", head), (f"{head}_poolformer_s13", f"{head}_poolformer_s12")):
        with pytest.raises(UnknownName, match=f"did you mean .*{near}"):
            create(name)
    with pytest.raises(UnknownName, match=r"did you mean .*poolformer_s12"):
        create(head, backbone="poolformer_s13")
    with pytest.raises(ConfigError, match="poolformer_s12 in its name"):
        create(f"{head}_poolformer_s12", backbone="poolformer_s24")
    if kind is DETECTOR:
        with pytest.raises(UnknownName, match="did you mean nms_threshold"):
            create(head, nms_treshold=0.3)


@each_kind
def test_lists_of_dense_networks(kind: NetworkKind) -> None:
    (listed, known), head = LISTED[kind], kind.heads[0]
    assert len(listed()) == len(kind.heads) * len(VARIANTS)
    assert listed(f"{head}_poolformer_s*") == [f"{head}_poolformer_s{n}" for n in (12, 24, 36)]
    published = listed(pretrained=True)
    assert published == [n for n, s in SOURCES.items() if split_network(s.model, kind)] and published
    assert listed("*_s36", pretrained=True) == [name for name in published if "_s36." in name]
    assert all(known(name) for name in [*listed(), *published])
    unpublished = next(name for name in listed() if not any(name in one for one in published))
    for name in (head, "poolformer_s12", f"{unpublished}.{published[0].partition('.')[2]}"):
        assert not known(name)
    assert not any(
        other(name) for kinds, (_, other) in LISTED.items() if kinds is not kind for name in listed()
    )


def test_every_name_is_split_into_what_it_is_made_of() -> None:
    kind = NetworkKind(
        "", "", "", ("rcnn", "mask_rcnn", "mask"), MetaFormerConfig, lambda config, backbone: None
    )
    for head in kind.heads:
        assert split_network(head, kind) == (head, "", "")
        for variant in VARIANTS:
            assert split_network(f"{head}_{variant}.tag", kind) == (head, variant, "tag")
    assert split_network("mask_rcnn_resnet50", kind) is None and split_network("masked", kind) is None


@pytest.mark.parametrize(
    ("name", "format_name"),
    [
        ("semantic_fpn_poolformer_s12.mmseg_ade20k", "mmsegmentation"),
        ("retinanet_poolformer_s12.sail_coco_1x", "mmdetection"),
    ],
)
def test_published_dense_networks_come_from_the_cache(
    name: str, format_name: str, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = find_source(name)
    kind = next(kind for kind in DENSE_KINDS if split_network(name, kind))
    published = create_network(source.model)
    state = from_ours(published.state_dict(), format_name)
    # the published detectors lack the norm of a map that RetinaNet does not use
    theirs = {key: value for key, value in state.items() if not key.startswith("backbone.norm0.")}
    kept = theirs if kind is DETECTOR else state
    write_state(cache / source.file, kept, wrapper="state_dict")
    head, create = split_network(name, kind)[0], CREATE[kind]  # type: ignore[index]
    for model in (
        create(name, pretrained=True),
        create(source.model, pretrained=True),
        create(head, backbone="poolformer_s12", pretrained=True),
        create_network(name, pretrained=True),
    ):
        ours, expected = model.state_dict(), published.state_dict()
        assert model.pretrained_cfg["url"] == source.url and model.pretrained_cfg["data"] == source.data
        assert ours.keys() == expected.keys() and all(torch.equal(ours[key], expected[key]) for key in ours)
    with caplog.at_level(logging.INFO):
        other = create(head, "poolformer_s12", 11, pretrained=True)
    assert f"{format_name} format" in caplog.text and other.num_classes == 11
    assert torch.equal(other.backbone.stem.conv.weight, published.backbone.stem.conv.weight)
    with pytest.raises(WeightsError, match="no weights were published"):
        create(kind.heads[1], "poolformer_s12", pretrained=True)


@each_head
def test_published_backbones_go_under_a_head(
    kind: NetworkKind, head: str, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    published, file = create_model("poolformer_s12"), cache / "poolformer_s12.pth.tar"
    write_state(file, from_ours(published.state_dict(), "poolformer"))
    create = CREATE[kind]
    for weights in ({"backbone_pretrained": True}, {"checkpoint_path": file}, {"backbone_checkpoint": file}):
        caplog.clear()
        with caplog.at_level(logging.INFO):
            model = create(head, "poolformer_s12", 3, **weights, **narrow(kind))
        assert "fresh: norms." in caplog.text or "fresh: backbone.norms." in caplog.text
        assert torch.equal(model.backbone.stem.conv.weight, published.stem.conv.weight)
    with pytest.raises(ConfigError, match="backbone given by its name"):
        create(head, model_config("poolformer_s12", **SMALL), backbone_pretrained=True, **narrow(kind))
    with pytest.raises(ConfigError, match="choose one"):
        create(head, "poolformer_s12", pretrained=True, backbone_pretrained=True)
