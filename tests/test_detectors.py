"""Detectors by name."""

import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from metaformer import Detector, DetectorConfig
from metaformer.backbones.metaformer import MetaFormerFeatures
from metaformer.backbones.variants import VARIANTS
from metaformer.errors import ConfigError, UnknownName, WeightsError
from metaformer.factory import (
    create_detector,
    create_model,
    is_detector,
    is_segmenter,
    list_detectors,
    model_config,
)
from metaformer.models.detection.config import KINDS
from metaformer.weights.detection_sources import DETECTION_SOURCES
from metaformer.weights.io import write_state
from metaformer.weights.keymap import from_ours

SMALL: dict[str, Any] = {"depths": (1, 1, 1, 1), "dims": (8, 8, 16, 16)}
NARROW: dict[str, Any] = {"fpn_dim": 8, "box_fc_dim": 8}


@pytest.mark.parametrize(
    ("kind", "published"), [("retinanet", (21.7, 31.1, 40.6)), ("mask_rcnn", (31.6, 41.0, 50.5))]
)
def test_published_parameters(kind: str, published: tuple[float, ...]) -> None:
    for size, expected in zip(("s12", "s24", "s36"), published, strict=True):
        with torch.device("meta"):
            model = create_detector(kind, backbone=f"poolformer_{size}")
        params = sum(parameter.numel() for parameter in model.parameters())
        assert round(params / 1e6, 1) == expected


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("kind", KINDS)
def test_on_every_variant(kind: str, name: str) -> None:
    backbone = model_config(name, grid_mode="interpolate", depths=(1,) * 4, dims=(8, 8, 32, 32))
    model = create_detector(kind, backbone=backbone, num_classes=3, **NARROW).eval()
    with torch.no_grad():
        (found,) = model(torch.randn(1, 3, 75, 96))
    assert (found.masks is not None) == (kind == "mask_rcnn") == model.has_masks


def test_options_reach_the_detector() -> None:
    model = create_detector(
        "mask_rcnn_poolformer_n",
        num_classes=3,
        drop_path_rate=0.2,
        in_chans=4,
        fpn_dim=8,
        head_dim=6,
        box_fc_dim=10,
        score_threshold=0.2,
        nms_threshold=0.6,
        max_detections=7,
        anchor_scale=2,
    )
    config = model.config
    assert isinstance(config, DetectorConfig) and isinstance(model, Detector) and config.kind == "mask_rcnn"
    assert (config.backbone.drop_path_rate, config.backbone.in_chans) == (0.2, 4)  # type: ignore[union-attr]
    assert (config.fpn_dim, config.head_dim, config.box_fc_dim, config.anchor_scale) == (8, 6, 10, 2)
    assert (config.score_threshold, config.nms_threshold, config.max_detections) == (0.2, 0.6, 7)
    assert model.num_classes == 3 and model.pretrained_cfg["architecture"] == "mask_rcnn_poolformer_n"
    assert model.pretrained_cfg["input_size"][0] == 4
    assert create_detector("retinanet", **NARROW).config.backbone == model_config(
        "poolformer_s24", feature_norm="fresh", grid_mode="interpolate"
    )


def test_a_module_as_backbone() -> None:
    pyramid = MetaFormerFeatures(model_config("poolformer_n", **SMALL))
    model = create_detector("faster_rcnn", backbone=pyramid, num_classes=3, **NARROW).eval()
    assert model.backbone is pyramid and model.config.backbone is None
    with pytest.raises(ConfigError, match=r"in_chans: .* build the module"):
        create_detector("retinanet", backbone=pyramid, in_chans=4)
    with pytest.raises(ConfigError, match="neither a name, a MetaFormerConfig nor a module"):
        create_detector("retinanet", backbone=3)  # type: ignore[arg-type]


def test_unknown_detectors_offer_the_nearest() -> None:
    for name, hint in (
        ("mask_rcn", "mask_rcnn"),
        ("retinanet_poolformer_s13", "retinanet_poolformer_s12"),
        ("retinanet_poolformer_s12.sail_coco", "sail_coco_1x"),
    ):
        with pytest.raises(UnknownName, match=f"did you mean .*{hint}"):
            create_detector(name)
    with pytest.raises(UnknownName, match=r"did you mean .*poolformer_s12"):
        create_detector("mask_rcnn", backbone="poolformer_s13")
    with pytest.raises(UnknownName, match="did you mean nms_threshold"):
        create_detector("retinanet", nms_treshold=0.3)
    with pytest.raises(ConfigError, match="in its name, and backbone= names another"):
        create_detector("retinanet_poolformer_s12", backbone="poolformer_s24")


def test_lists() -> None:
    assert len(list_detectors()) == len(KINDS) * len(VARIANTS)
    assert list_detectors("mask_rcnn_poolformer_s*") == [f"mask_rcnn_poolformer_s{n}" for n in (12, 24, 36)]
    assert list_detectors(pretrained=True) == list(DETECTION_SOURCES)
    assert all(is_detector(name) for name in [*list_detectors(), *list_detectors(pretrained=True)])
    for name in ("retinanet", "poolformer_s12", "faster_rcnn_poolformer_s12.sail_coco_1x"):
        assert not is_detector(name)
    assert not any(is_segmenter(name) for name in list_detectors())


def test_names_need_no_torchvision() -> None:
    script = (
        "import sys; sys.modules['torchvision'] = None; import metaformer as m; m.is_detector('x'); "
        "m.list_detectors(); m.Detections, m.Targets, m.DetectorConfig; m.create_model('poolformer_n')"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)


@pytest.fixture
def published(cache: Path) -> Detector:
    """What a download of the published S12 would have put into the cache."""
    torch.manual_seed(0)
    model = create_detector("retinanet_poolformer_s12").eval()
    state = from_ours(model.state_dict(), "mmdetection")
    theirs = {key: value for key, value in state.items() if not key.startswith("backbone.norm0.")}
    source = DETECTION_SOURCES["retinanet_poolformer_s12.sail_coco_1x"]
    write_state(cache / source.file, theirs, wrapper="state_dict")
    return model


def test_published_detectors_come_from_the_cache(
    published: Detector, caplog: pytest.LogCaptureFixture
) -> None:
    name = "retinanet_poolformer_s12"
    with caplog.at_level(logging.INFO):
        model = create_detector(f"{name}.sail_coco_1x", pretrained=True).eval()
    assert "mmdetection format" in caplog.text and "100.0% of the model" in caplog.text
    assert model.pretrained_cfg["tag"] == "sail_coco_1x" and model.pretrained_cfg["data"] == "coco"
    ours, theirs = model.state_dict(), published.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs) and ours.keys() == theirs.keys()
    other = create_detector("retinanet", "poolformer_s12", 11, pretrained=True)
    assert other.num_classes == 11 and not other.state_dict().keys() ^ theirs.keys()
    with pytest.raises(WeightsError, match="no weights were published"):
        create_detector("faster_rcnn", "poolformer_s12", pretrained=True)


@pytest.mark.parametrize("kind", KINDS)
def test_published_backbones_go_under_a_detector(
    kind: str, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    backbone = create_model("poolformer_s12")
    write_state(cache / "poolformer_s12.pth.tar", from_ours(backbone.state_dict(), "poolformer"))
    with caplog.at_level(logging.INFO):
        model = create_detector(kind, "poolformer_s12", 3, backbone_pretrained=True, **NARROW)
    assert "fresh: norms." in caplog.text
    for options in (
        {},
        {"checkpoint_path": cache / "poolformer_s12.pth.tar"},
        {"backbone_checkpoint": cache / "poolformer_s12.pth.tar"},
    ):
        if options:
            model = create_detector(kind, "poolformer_s12", 3, **NARROW, **options)
        assert torch.equal(model.backbone.get_submodule("stem.conv").weight, backbone.stem.conv.weight)
    with pytest.raises(ConfigError, match="backbone given by its name"):
        create_detector(kind, model_config("poolformer_s12"), backbone_pretrained=True)
    with pytest.raises(ConfigError, match="choose one"):
        create_detector(kind, "poolformer_s12", pretrained=True, backbone_pretrained=True)
