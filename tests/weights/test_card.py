"""What a model says about its weights."""

import pytest
import torch

from metaformer.backbones.variants import VARIANTS
from metaformer.models.detection.build import build_detector
from metaformer.models.detection.config import KINDS, DetectorConfig
from metaformer.weights.card import detector_cfg, pretrained_cfg
from metaformer.weights.detection_sources import DETECTION_SOURCES
from metaformer.weights.sources import SOURCES


@pytest.mark.parametrize("name", VARIANTS)
def test_cards_name_layers_that_exist(name: str) -> None:
    card = pretrained_cfg(name, VARIANTS[name], None)
    assert card["classifier"] == ("head.fc.fc2" if name.startswith(("convformer", "caformer")) else "head.fc")
    assert card["pool_size"] == (7, 7) and card["first_conv"] == "stem.conv" and card["url"] == ""


def test_published_weights_fill_the_card() -> None:
    source = SOURCES["caformer_b36.sail_in22k_ft_in1k_384"]
    card = pretrained_cfg("caformer_b36", VARIANTS["caformer_b36"], source)
    assert card["input_size"] == (3, 384, 384) and card["tag"] == source.tag and card["crop_pct"] == 1.0


@pytest.mark.parametrize("kind", KINDS)
def test_cards_of_detectors_name_layers_that_exist(kind: str) -> None:
    config = DetectorConfig(kind=kind, backbone=VARIANTS["poolformer_s12"], num_classes=7)
    card = detector_cfg(f"{kind}_poolformer_s12", config, None)
    with torch.device("meta"):
        model = build_detector(config)
    assert model.get_submodule(card["classifier"]) and model.get_submodule(card["first_conv"])
    assert card["num_classes"] == 7 and card["url"] == "" and "data" not in card


def test_published_weights_fill_the_card_of_a_detector() -> None:
    source = DETECTION_SOURCES["mask_rcnn_poolformer_s36.sail_coco_1x"]
    config = DetectorConfig(kind="mask_rcnn", backbone=VARIANTS["poolformer_s36"], num_classes=7)
    card = detector_cfg(source.model, config, source)
    assert card["url"] == source.url and card["data"] == "coco" and card["num_classes"] == 80
    assert card["classifier"] == "box_predictor.cls_score"
