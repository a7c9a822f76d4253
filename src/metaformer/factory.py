"""Classifiers by name: `create_model("poolformer_s12", pretrained=True)`."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from metaformer.backbones.config import MetaFormerConfig
from metaformer.backbones.metaformer import MetaFormer, MetaFormerFeatures
from metaformer.backbones.variants import UNAVAILABLE, VARIANTS
from metaformer.errors import ConfigError, UnknownName
from metaformer.models.detection.config import KINDS, DetectorConfig
from metaformer.models.segmentation.config import HEAD_DIMS, SegmenterConfig
from metaformer.models.segmentation.loss import SegmentationLoss
from metaformer.models.segmentation.segmenter import Segmenter
from metaformer.weights.card import detector_cfg, pretrained_cfg, segmenter_cfg
from metaformer.weights.dense_source import DenseSource
from metaformer.weights.detection_sources import DETECTION_SOURCES, find_detection_source
from metaformer.weights.download import fetch
from metaformer.weights.fit import Classifier
from metaformer.weights.load import load_weights
from metaformer.weights.segmentation_sources import SEGMENTATION_SOURCES, find_segmentation_source
from metaformer.weights.sources import SOURCES, Source, find_source, split_name, tags

if TYPE_CHECKING:
    from metaformer.models.detection.detector import Detector


logger = logging.getLogger(__name__)


def create_model(
    name: str,
    pretrained: bool = False,
    checkpoint_path: str | Path | None = None,
    num_classes: int | None = None,
    in_chans: int = 3,
    features_only: bool = False,
    out_indices: Sequence[int] = (0, 1, 2, 3),
    drop_path_rate: float = 0.0,
    global_pool: str = "avg",
    *,
    classifier: Classifier = "keep",
    strict: bool = True,
    **config_overrides: Any,
) -> MetaFormer | MetaFormerFeatures:
    """Build a published network, with random or published weights or those of a file.

    Args:
        name: a variant, `variant.tag`, or a name of the original repositories (`caformer_s18_384_in21ft1k`).
        pretrained: download the published weights once and load them; the tag says which.
        checkpoint_path: load a file of any published format instead.
        num_classes: outputs; 1000, or as many as the weights named by the tag have. Another number starts a
            fresh classifier with `pretrained`; with `checkpoint_path` it is an error by default.
        in_chans: channels of the input; a stem for RGB is fitted to others.
        features_only: give the list of the stages' maps instead of logits.
        out_indices: which stages' maps.
        drop_path_rate: stochastic depth at the last block.
        global_pool: `avg`, `max`, or empty.
        classifier: what becomes of a file's classifier, see `load_weights`.
        strict: False loads what fits, as after a swap of mixers; the log says what did not.
        config_overrides: any other field of `MetaFormerConfig`.

    Raises:
        UnknownName: no such model, tag or field; the nearest names are offered.
        ConfigError: a model that cannot be built, or a wrong value.
        DownloadError: the published weights could not be fetched.
        WeightsError: the weights do not fit the model.
    """
    if pretrained and checkpoint_path is not None:
        raise ConfigError("pretrained=True and checkpoint_path= both name weights: choose one")
    given = {"num_classes": num_classes, "drop_path_rate": drop_path_rate, "global_pool": global_pool}
    config = model_config(
        name, in_chans=in_chans, **{k: v for k, v in given.items() if v is not None}, **config_overrides
    )
    model = MetaFormerFeatures(config, out_indices) if features_only else MetaFormer(config)
    variant, tag = split_name(name)
    source = find_source(name) if pretrained or tag else _default_source(variant)
    model.pretrained_cfg = pretrained_cfg(variant, VARIANTS[variant], source)
    weights = checkpoint_path
    if pretrained and source is not None:
        weights = fetch(source)
        if classifier == "keep" and config.num_classes != source.num_classes:
            classifier = "reset"
    if weights is not None:
        logger.info("%s", load_weights(model, weights, strict, classifier=classifier))
    return model


def model_config(name: str, **overrides: Any) -> MetaFormerConfig:
    """The configuration behind a name, with some fields changed.

    A tag brings its weights' number of classes and image size along.

    Raises:
        UnknownName: no such model, tag or field; the nearest names are offered.
        ConfigError: a model that cannot be built, or a wrong value.
    """
    variant, tag = split_name(name)
    if variant in UNAVAILABLE:
        raise ConfigError(f"{variant} is not available: {UNAVAILABLE[variant]}")
    if variant not in VARIANTS:
        raise UnknownName("model", name, [*VARIANTS, *UNAVAILABLE])
    known = {field.name for field in fields(MetaFormerConfig)}
    for field in overrides:
        if field not in known:
            raise UnknownName("create_model option", field, known)
    of_tag: dict[str, Any] = {}
    if tag:
        source = find_source(name)
        of_tag = {"num_classes": source.num_classes, "image_size": (source.image_size,) * 2}
    return replace(VARIANTS[variant], **{**of_tag, **overrides})


def list_models(filter: str = "", pretrained: bool = False) -> list[str]:
    """Names of the models, or with `pretrained` of their published weights (`name.tag`).

    Args:
        filter: a pattern with `*` and `?`, held against name and name.tag.
        pretrained: list weights instead of networks.
    """
    return matching(SOURCES if pretrained else VARIANTS, filter)


def is_model(name: str) -> bool:
    """Tell whether `create_model` knows a name, with or without tag."""
    variant, tag = split_name(name)
    return variant in VARIANTS and (not tag or tag in tags(variant))


def _default_source(variant: str) -> Source | None:
    return find_source(variant) if tags(variant) else None


def create_detector(
    kind: str,
    backbone: str | MetaFormerConfig | nn.Module | None = None,
    num_classes: int = 80,
    pretrained: bool = False,
    checkpoint_path: str | Path | None = None,
    *,
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
    strict: bool = True,
    **config_overrides: Any,
) -> "Detector":
    """Build a network that tells which objects are in an image, where, and with `mask_rcnn` their masks.

    Args:
        kind: `retinanet`, `faster_rcnn` or `mask_rcnn`; or with backbone and perhaps tag, as `list_detectors`
            names them.
        backbone: a name, a configuration, or a module that gives a list of maps, finest first, and tells
            their channels by `feature_info.channels()`; `poolformer_s24` when not given.
        num_classes: classes of objects, without a background. Another number than published starts fresh
            classifiers with `pretrained`; with `checkpoint_path` it is an error by default.
        pretrained: download the published weights of the whole network once and load them.
        checkpoint_path: load a file of any published format; one of a backbone leaves neck and heads fresh.
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
        strict: False loads what fits; the log says what did not.
        config_overrides: any other field of `DetectorConfig`.

    Raises:
        UnknownName: no such kind, model, tag or field; the nearest names are offered.
        ConfigError: a network that cannot be built, or a wrong value.
        DownloadError: the published weights could not be fetched.
        WeightsError: the weights do not fit the network.
    """
    from metaformer.models.detection.build import build_detector  # which imports torchvision

    start = Start(
        pretrained=pretrained,
        checkpoint_path=checkpoint_path,
        backbone_pretrained=backbone_pretrained,
        backbone_checkpoint=backbone_checkpoint,
        classifier=classifier,
        strict=strict,
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


def matching(names: Iterable[str], pattern: str) -> list[str]:
    """The names that fit a pattern with `*` and `?`, held against name and name.tag; all if it is empty."""
    return [
        name
        for name in names
        if not pattern or fnmatch(name, pattern) or fnmatch(name.partition(".")[0], pattern)
    ]


def combined(kinds: Iterable[str]) -> list[str]:
    """Each kind on each backbone."""
    return [f"{kind}_{variant}" for kind in kinds for variant in VARIANTS]


def split(name: str, kinds: Iterable[str]) -> tuple[str, str, str] | None:
    """Kind, backbone and tag in a name, the latter two perhaps empty; None where no kind is in it."""
    model, _, tag = name.partition(".")
    for kind in kinds:
        if model == kind or model.startswith(f"{kind}_"):
            backbone = model[len(kind) + 1 :]
            if not backbone or backbone in VARIANTS:
                return kind, backbone, tag
    return None


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
    strict: bool = True,
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
        strict: False loads what fits; the log says what did not.
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
        strict=strict,
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


logger = logging.getLogger(__name__)


Backbone = str | MetaFormerConfig | nn.Module


@dataclass(frozen=True, kw_only=True)
class Start:
    """The weights that a dense network begins with, as `create_segmenter` and `create_detector` take them."""

    pretrained: bool
    """Download the published weights of the whole network."""
    checkpoint_path: str | Path | None
    """A file for the whole network."""
    backbone_pretrained: bool
    """Download the published weights of the backbone."""
    backbone_checkpoint: str | Path | None
    """A file for the backbone."""
    classifier: Classifier
    """What becomes of the classifier."""
    strict: bool
    """Load what fits."""

    def __post_init__(self) -> None:
        files = (self.checkpoint_path is not None, self.backbone_checkpoint is not None)
        if sum((self.pretrained, self.backbone_pretrained, *files)) > 1:
            raise ConfigError(
                "pretrained=True, backbone_pretrained=True, checkpoint_path= and backbone_checkpoint= all "
                "name weights: choose one"
            )

    def fill(self, model: nn.Module, below: Backbone, source: DenseSource | None) -> None:
        """Fill a network with the weights; the log says what came of it.

        Args:
            model: the network, with `backbone` and `num_classes`.
            below: the backbone, as it was given.
            source: the published weights of the whole network, where asked for.

        Raises:
            ConfigError: published weights of a backbone without a name.
            DownloadError: the published weights could not be fetched.
            WeightsError: the weights do not fit.
        """
        whole: Any = model
        classifier, target = self.classifier, whole if self.checkpoint_path else whole.backbone
        weights = self.checkpoint_path or self.backbone_checkpoint
        if self.pretrained and source is not None:
            weights, target = fetch(source), whole
            if classifier == "keep" and whole.num_classes != source.num_classes:
                classifier = "reset"
        if self.backbone_pretrained:
            if not isinstance(below, str):
                raise ConfigError(
                    "backbone_pretrained=True: only a backbone given by its name has such weights"
                )
            weights = fetch(find_source(below))
        if weights is not None:
            logger.info("%s", load_weights(target, weights, self.strict, classifier=classifier))


def choose_backbone(kind: str, inside: str, given: Backbone | None, default: str) -> Backbone:
    """The backbone that is given, or named inside the kind, or the default.

    Raises:
        ConfigError: name and argument differ.
    """
    if inside and given is not None and given != inside:
        raise ConfigError(f"{kind}: has the backbone {inside} in its name, and backbone= names another")
    return given if given is not None else inside or default


def backbone_config(backbone: Backbone, changes: Mapping[str, Any]) -> MetaFormerConfig | None:
    """What is known of a backbone, with some fields changed; a named one works at any size.

    Args:
        backbone: a name, a configuration or a module, of which nothing is known.
        changes: fields to change; None leaves one as it is.

    Raises:
        UnknownName: no such model.
        ConfigError: none of the three, or changes to a module.
    """
    changes = {name: value for name, value in changes.items() if value is not None}
    if isinstance(backbone, nn.Module):
        for name in ("drop_path_rate", "in_chans"):
            if name in changes:
                raise ConfigError(
                    f"{name}: of no use to a backbone that is a module: build the module with it"
                )
        return None
    if isinstance(backbone, str):
        return model_config(backbone, grid_mode="interpolate", **changes)
    if not isinstance(backbone, MetaFormerConfig):
        raise ConfigError(f"backbone: {backbone!r} is neither a name, a MetaFormerConfig nor a module")
    return replace(backbone, **changes)
