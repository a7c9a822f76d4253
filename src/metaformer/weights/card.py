"""What a model says about its weights and their preprocessing, in timm's words."""

from typing import Any

from metaformer.backbones.config import MetaFormerConfig
from metaformer.models.detection.config import DetectorConfig
from metaformer.models.segmentation.config import SegmenterConfig
from metaformer.weights.detection_sources import DetectionSource
from metaformer.weights.segmentation_sources import SegmentationSource
from metaformer.weights.sources import IMAGENET_MEAN, IMAGENET_STD, Source


def pretrained_cfg(name: str, config: MetaFormerConfig, source: Source | None) -> dict[str, Any]:
    """Describe a model, with these weights or none, as timm's dictionary does."""
    classifier = "head.fc.fc2" if config.head == "pool_norm_mlp" else "head.fc"
    card: dict[str, Any] = {
        "url": "",
        "architecture": name,
        "tag": "",
        "num_classes": config.num_classes,
        "input_size": (config.in_chans, *config.image_size),
        "pool_size": config.grid(config.stages - 1),
        "crop_pct": 0.9,
        "crop_mode": "center",
        "interpolation": "bicubic",
        "mean": IMAGENET_MEAN,
        "std": IMAGENET_STD,
        "first_conv": "stem.conv",
        "classifier": classifier,
        "license": "apache-2.0",
    }
    if source is not None:
        card |= source.pretrained_cfg(classifier)
    return card


def segmenter_cfg(name: str, config: SegmenterConfig, source: SegmentationSource | None) -> dict[str, Any]:
    """Describe a segmentation network, with these weights or none, in the same words."""
    channels = 3 if config.backbone is None else config.backbone.in_chans
    card: dict[str, Any] = {
        "url": "",
        "architecture": name,
        "tag": "",
        "num_classes": config.num_classes,
        "input_size": (channels, 512, 512),
        "mean": IMAGENET_MEAN,
        "std": IMAGENET_STD,
        "first_conv": "backbone.stem.conv",
        "classifier": "head.classifier",
        "license": "apache-2.0",
    }
    if source is not None:
        card |= source.pretrained_cfg()
    return card


def detector_cfg(name: str, config: DetectorConfig, source: DetectionSource | None) -> dict[str, Any]:
    """Describe a detector, with these weights or none, in the same words."""
    channels = 3 if config.backbone is None else config.backbone.in_chans
    retina = config.kind == "retinanet"
    card: dict[str, Any] = {
        "url": "",
        "architecture": name,
        "tag": "",
        "num_classes": config.num_classes,
        "input_size": (channels, 800, 1333),
        "mean": IMAGENET_MEAN,
        "std": IMAGENET_STD,
        "first_conv": "backbone.stem.conv",
        "classifier": "head.classification_head.cls_logits" if retina else "box_predictor.cls_score",
        "license": "apache-2.0",
    }
    if source is not None:
        card |= source.pretrained_cfg()
    return card
