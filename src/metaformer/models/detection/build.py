"""Detector of a configuration."""

from torch import nn

from metaformer.models.detection.config import DetectorConfig
from metaformer.models.detection.detector import Detector
from metaformer.models.detection.rcnn import RCNN
from metaformer.models.detection.retinanet import RetinaNet


def build_detector(config: DetectorConfig, backbone: nn.Module | None = None) -> Detector:
    """Detector of a configuration; see `Detector`."""
    return (RetinaNet if config.kind == "retinanet" else RCNN)(config, backbone)
