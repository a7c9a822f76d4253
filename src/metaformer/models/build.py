"""Networks by configuration: one table of the kinds that stand on a backbone."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from metaformer.backbones.config import MetaFormerConfig
from metaformer.backbones.metaformer import MetaFormer
from metaformer.models.detection.config import KINDS, DetectorConfig
from metaformer.models.segmentation.config import HEAD_DIMS, SegmenterConfig
from metaformer.models.segmentation.segmenter import Segmenter

NetworkConfig = MetaFormerConfig | SegmenterConfig | DetectorConfig


@dataclass(frozen=True)
class NetworkKind:
    """Networks of one task on any backbone."""

    task: str
    """The task in their cards."""
    title: str
    """What errors call them."""
    heads: tuple[str, ...]
    """First parts of their names, which the backbone's name follows."""
    config: type[Any]
    build: Callable[[Any, nn.Module | None], Any]


def _build_detector(config: DetectorConfig, backbone: nn.Module | None) -> nn.Module:
    from metaformer.models.detection.rcnn import RCNN  # imports torchvision
    from metaformer.models.detection.retinanet import RetinaNet

    return (RetinaNet if config.kind == "retinanet" else RCNN)(config, backbone)


SEGMENTER = NetworkKind(
    "segment",
    "segmenter",
    tuple(HEAD_DIMS),
    SegmenterConfig,
    lambda config, backbone: Segmenter(config, backbone=backbone),
)
DETECTOR = NetworkKind("detect", "detector", KINDS, DetectorConfig, _build_detector)
DENSE_KINDS = (SEGMENTER, DETECTOR)


def kind_of(config: NetworkConfig) -> NetworkKind | None:
    """The kind of network that a configuration describes; None for a classifier or backbone."""
    return next((kind for kind in DENSE_KINDS if isinstance(config, kind.config)), None)


def build_network(config: NetworkConfig, backbone: nn.Module | None = None) -> Any:
    """The network that a configuration describes, its weights still random.

    Args:
        config: of a classifier or of a network on a backbone.
        backbone: a module in place of the configuration's backbone.
    """
    kind = kind_of(config)
    if kind is not None:
        return kind.build(config, backbone)
    assert isinstance(config, MetaFormerConfig)
    return MetaFormer(config)
