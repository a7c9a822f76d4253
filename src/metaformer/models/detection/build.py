"""A detector from its configuration."""

from torch import nn

from metaformer.models.detection.config import DetectorConfig
from metaformer.models.detection.detector import Detector


def build_detector(config: DetectorConfig, backbone: nn.Module | None = None) -> Detector:
    """The detector that a configuration describes; see `Detector`."""
    if config.kind == "retinanet":
        from metaformer.models.detection.retinanet import RetinaNet

        return RetinaNet(config, backbone)
    from metaformer.models.detection.rcnn import TwoStage

    return TwoStage(config, backbone)
