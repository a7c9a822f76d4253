"""Detectors by name: `create_detector("mask_rcnn", …)`."""

from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from metaformer.backbones.config import MetaFormerConfig
from metaformer.detection.config import KINDS, DetectorConfig
from metaformer.errors import UnknownName
from metaformer.models.names import combined, matching, split
from metaformer.models.start import Start, backbone_config, choose_backbone
from metaformer.weights.card import detector_cfg
from metaformer.weights.detection_sources import DETECTION_SOURCES, find_detection_source
from metaformer.weights.fit import Classifier
from metaformer.weights.sources import split_name

if TYPE_CHECKING:
    from metaformer.detection.detector import Detector


def create_detector(
    kind: str,
    backbone: str | MetaFormerConfig | nn.Module | None = None,
    num_classes: int = 80,
    pretrained: bool = False,
    checkpoint_path: str | Path | None = None,
    *,
    compat: str = "mmdet",
    feature_norm: str | None = "fresh",
    fpn_dim: int = 256,
    head_dim: int | None = None,
    box_fc_dim: int = 1024,
    score_threshold: float = 0.05,
    drop_path_rate: float | None = None,
    in_chans: int | None = None,
    backbone_pretrained: bool = False,
    backbone_checkpoint: str | Path | None = None,
    classifier: Classifier = "keep",
    partial: bool = False,
    **config_overrides: Any,
) -> "Detector":
    """Build a network that tells which objects are in a picture, where, and with `mask_rcnn` their masks.

    Args:
        kind: `retinanet`, `faster_rcnn` or `mask_rcnn`; or with backbone and perhaps tag, as `list_detectors`
            names them.
        backbone: a name, a configuration, or a module that gives a list of maps, finest first, and tells
            their channels by `feature_info.channels()`; `poolformer_s24` when not given.
        num_classes: classes of objects, without a background. Another number than published starts fresh
            classifiers with `pretrained`; with `checkpoint_path` it is an error by default.
        pretrained: download the published weights of the whole network once and load them.
        checkpoint_path: load a file of any published format; one of a backbone leaves neck and heads fresh.
        compat: compute what mmdetection computes, as the published networks were trained, or `torchvision`.
        feature_norm: norms on the backbone's maps: `fresh`, `none` or `head`; None as its configuration says.
        fpn_dim: channels of the feature pyramid.
        head_dim: channels of the heads' convolutions; `fpn_dim` when not given.
        box_fc_dim: channels of the two-stage networks' box head.
        score_threshold: results are more probable than this.
        drop_path_rate: stochastic depth at the backbone's last block; None as its configuration says.
        in_chans: channels of the input; None as the backbone's configuration says.
        backbone_pretrained: download the published weights of the backbone once and load them.
        backbone_checkpoint: load a file of any published format into the backbone alone.
        classifier: what becomes of a file's layers with outputs for each class, see `load_weights`.
        partial: load what fits; the log says what did not.
        config_overrides: any other field of `DetectorConfig`.

    Raises:
        UnknownName: no such kind, model, tag or field; the nearest names are offered.
        ConfigError: a network that cannot be built, or a wrong value.
        DownloadError: the published weights could not be fetched.
        WeightsError: the weights do not fit the network.
    """
    from metaformer.detection.detector import build_detector  # which imports torchvision

    start = Start(
        pretrained=pretrained,
        checkpoint_path=checkpoint_path,
        backbone_pretrained=backbone_pretrained,
        backbone_checkpoint=backbone_checkpoint,
        classifier=classifier,
        partial=partial,
    )
    known = {field.name for field in fields(DetectorConfig)}
    for field in config_overrides:
        if field not in known:
            raise UnknownName("create_detector option", field, known)
    head, inside, tag = split_detector(kind)
    below = choose_backbone(kind, inside, backbone, "poolformer_s24")
    changes = {"feature_norm": feature_norm, "drop_path_rate": drop_path_rate, "in_chans": in_chans}
    config = DetectorConfig(
        kind=head,
        backbone=backbone_config(below, changes),
        num_classes=num_classes,
        compat=compat,
        fpn_dim=fpn_dim,
        head_dim=head_dim,
        box_fc_dim=box_fc_dim,
        score_threshold=score_threshold,
        **config_overrides,
    )
    model = build_detector(config, below if isinstance(below, nn.Module) else None)
    name = f"{head}_{split_name(below)[0]}" if isinstance(below, str) else head
    source = find_detection_source(name, tag) if pretrained or tag else None
    model.pretrained_cfg = detector_cfg(name, config, source)
    start.fill(model, below, source)
    return model


def list_detectors(filter: str = "", pretrained: bool = False) -> list[str]:
    """Names of the detectors, or with `pretrained` of their published weights (`name.tag`).

    Args:
        filter: a pattern with `*` and `?`, held against name and name.tag.
        pretrained: list weights instead of networks.
    """
    return matching(DETECTION_SOURCES if pretrained else combined(KINDS), filter)


def is_detector(name: str) -> bool:
    """Tell whether `create_detector` knows a name of kind and backbone, with or without tag."""
    model, _, tag = name.partition(".")
    return name in DETECTION_SOURCES or (not tag and model in combined(KINDS))


def split_detector(name: str) -> tuple[str, str, str]:
    """Split a detector's name into kind, backbone and tag; the latter two may be empty.

    Raises:
        UnknownName: no such kind or backbone; the nearest names are offered.
    """
    parts = split(name, KINDS)
    if parts is None:
        raise UnknownName("detector", name, [*KINDS, *list_detectors(), *DETECTION_SOURCES])
    return parts
