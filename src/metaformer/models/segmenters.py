"""Segmentation networks by name: `create_segmenter("upernet", …)`."""

from pathlib import Path

from torch import nn

from metaformer.backbones.config import MetaFormerConfig
from metaformer.dense.config import HEAD_DIMS, SegmenterConfig
from metaformer.dense.criterion import SegmentationLoss
from metaformer.dense.segmenter import Segmenter
from metaformer.errors import UnknownName
from metaformer.models.names import combined, matching, split
from metaformer.models.start import Start, backbone_config, choose_backbone
from metaformer.weights.card import segmenter_cfg
from metaformer.weights.fit import Classifier
from metaformer.weights.segmentation_sources import SEGMENTATION_SOURCES, find_segmentation_source
from metaformer.weights.sources import split_name


def create_segmenter(
    kind: str,
    backbone: str | MetaFormerConfig | nn.Module | None = None,
    num_classes: int = 150,
    pretrained: bool = False,
    checkpoint_path: str | Path | None = None,
    *,
    feature_norm: str | None = "fresh",
    fpn_dim: int = 256,
    head_dim: int | None = None,
    dropout: float = 0.1,
    auxiliary: bool = False,
    drop_path_rate: float | None = None,
    in_chans: int | None = None,
    backbone_pretrained: bool = False,
    backbone_checkpoint: str | Path | None = None,
    classifier: Classifier = "keep",
    partial: bool = False,
    criterion: SegmentationLoss | None = None,
) -> Segmenter:
    """Build a network that tells the class of every pixel: (B, 3, H, W) to logits (B, num_classes, H, W).

    Args:
        kind: `semantic_fpn` or `upernet`; or with backbone and perhaps tag, as `list_segmenters` names them.
        backbone: a name, a configuration, or a module that gives a list of maps, finest first, and tells
            their channels by `feature_info.channels()`; `poolformer_s24` when not given.
        num_classes: outputs. Another number than published starts a fresh classifier with `pretrained`; with
            `checkpoint_path` it is an error by default.
        pretrained: download the published weights of the whole network once and load them.
        checkpoint_path: load a file of any published format; one of a backbone leaves neck and head fresh.
        feature_norm: norms on the backbone's maps: `fresh`, `none` or `head`; None as its configuration says.
        fpn_dim: channels of the feature pyramid of `semantic_fpn`.
        head_dim: channels of the head; 128 for `semantic_fpn` and 512 for `upernet` when not given.
        dropout: share of channels left out before the classifier.
        auxiliary: add a small head on the third map, which helps to train.
        drop_path_rate: stochastic depth at the backbone's last block; None as its configuration says.
        in_chans: channels of the input; None as the backbone's configuration says.
        backbone_pretrained: download the published weights of the backbone once and load them.
        backbone_checkpoint: load a file of any published format into the backbone alone.
        classifier: what becomes of a file's classifier, see `load_weights`.
        partial: load what fits; the log says what did not.
        criterion: the loss; cross-entropy over the pixels that count when not given.

    Raises:
        UnknownName: no such kind, model or tag; the nearest names are offered.
        ConfigError: a network that cannot be built, or a wrong value.
        DownloadError: the published weights could not be fetched.
        WeightsError: the weights do not fit the network.
    """
    start = Start(
        pretrained=pretrained,
        checkpoint_path=checkpoint_path,
        backbone_pretrained=backbone_pretrained,
        backbone_checkpoint=backbone_checkpoint,
        classifier=classifier,
        partial=partial,
    )
    head, inside, tag = split_segmenter(kind)
    below = choose_backbone(kind, inside, backbone, "poolformer_s24")
    changes = {"feature_norm": feature_norm, "drop_path_rate": drop_path_rate, "in_chans": in_chans}
    config = SegmenterConfig(
        kind=head,
        backbone=backbone_config(below, changes),
        num_classes=num_classes,
        fpn_dim=fpn_dim,
        head_dim=head_dim,
        dropout=dropout,
        auxiliary=auxiliary,
    )
    model = Segmenter(config, criterion, below if isinstance(below, nn.Module) else None)
    name = f"{head}_{split_name(below)[0]}" if isinstance(below, str) else head
    source = find_segmentation_source(name, tag) if pretrained or tag else None
    model.pretrained_cfg = segmenter_cfg(name, config, source)
    start.fill(model, below, source)
    return model


def list_segmenters(filter: str = "", pretrained: bool = False) -> list[str]:
    """Names of the segmentation networks, or with `pretrained` of their published weights (`name.tag`).

    Args:
        filter: a pattern with `*` and `?`, held against name and name.tag.
        pretrained: list weights instead of networks.
    """
    return matching(SEGMENTATION_SOURCES if pretrained else combined(HEAD_DIMS), filter)


def is_segmenter(name: str) -> bool:
    """Tell whether `create_segmenter` knows a name of kind and backbone, with or without tag."""
    model, _, tag = name.partition(".")
    return name in SEGMENTATION_SOURCES or (not tag and model in combined(HEAD_DIMS))


def split_segmenter(name: str) -> tuple[str, str, str]:
    """Split a segmentation network's name into kind, backbone and tag; the latter two may be empty.

    Raises:
        UnknownName: no such kind or backbone; the nearest names are offered.
    """
    parts = split(name, HEAD_DIMS)
    if parts is None:
        raise UnknownName("segmenter", name, [*HEAD_DIMS, *list_segmenters(), *SEGMENTATION_SOURCES])
    return parts
