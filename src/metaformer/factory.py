"""Networks by name: `create_model("poolformer_s12", pretrained=True)`."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

from torch import nn

from metaformer.backbones.config import MetaFormerConfig
from metaformer.backbones.metaformer import MetaFormer, MetaFormerFeatures
from metaformer.backbones.variants import UNAVAILABLE, VARIANTS
from metaformer.errors import ConfigError, UnknownName
from metaformer.models.build import (
    DENSE_KINDS,
    DETECTOR,
    SEGMENTER,
    NetworkKind,
    build_network,
    check_memory,
    kind_of,
)
from metaformer.models.segmentation.loss import SegmentationLoss
from metaformer.models.segmentation.segmenter import Segmenter
from metaformer.storage import as_path
from metaformer.weights.card import pretrained_cfg
from metaformer.weights.download import fetch
from metaformer.weights.load import Classifier, GridPolicy, LoadReport, load_weights
from metaformer.weights.saved import SavedNetwork, find_saved, fitting, need_saved
from metaformer.weights.sources import SOURCES, Source, find_source, split_name, tags

if TYPE_CHECKING:
    from metaformer.models.detection.detector import Detector

Backbone = str | MetaFormerConfig | nn.Module
DEFAULT_BACKBONE = "poolformer_s24"
logger = logging.getLogger(__name__)


@overload
def create_model(
    name: str,
    pretrained: bool = False,
    checkpoint_path: str | Path | None = None,
    num_classes: int | None = None,
    in_chans: int = 3,
    features_only: Literal[False] = False,
    out_indices: Sequence[int] = (0, 1, 2, 3),
    drop_path_rate: float = 0.0,
    global_pool: str = "avg",
    *,
    classifier: Classifier = "keep",
    strict: bool = True,
    ema: bool | None = None,
    **config_overrides: Any,
) -> MetaFormer: ...


@overload
def create_model(
    name: str,
    pretrained: bool = False,
    checkpoint_path: str | Path | None = None,
    num_classes: int | None = None,
    in_chans: int = 3,
    *,
    features_only: Literal[True],
    out_indices: Sequence[int] = (0, 1, 2, 3),
    drop_path_rate: float = 0.0,
    global_pool: str = "avg",
    classifier: Classifier = "keep",
    strict: bool = True,
    ema: bool | None = None,
    **config_overrides: Any,
) -> MetaFormerFeatures: ...


@overload
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
    ema: bool | None = None,
    **config_overrides: Any,
) -> MetaFormer | MetaFormerFeatures: ...


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
    ema: bool | None = None,
    **config_overrides: Any,
) -> MetaFormer | MetaFormerFeatures:
    """Build a classifier, or a backbone, with random or published weights or those of a file.

    Args:
        name: a variant, `variant.tag`, a name of the original repositories (`caformer_s18_384_in21ft1k`), or
            the directory of a run, a checkpoint or of `save_pretrained`, which brings network and weights.
        pretrained: download the published weights once and load them; the tag says which.
        checkpoint_path: load a file of any published format instead; a directory as above also brings what
            its network has changed in the variant, where nothing else is asked for.
        num_classes: outputs; 1000, or as many as the weights named by the tag have. Another number resets the
            classifier with `pretrained`; with `checkpoint_path` it is an error by default.
        in_chans: channels of the input; an RGB stem is adapted to others.
        features_only: return the list of the stages' outputs instead of logits.
        out_indices: which stages' outputs.
        drop_path_rate: stochastic depth at the last block.
        global_pool: `avg`, `max`, or empty.
        classifier: how a file's classifier is loaded, see `load_weights`.
        strict: False loads what fits, as after a swap of mixers; the log lists the rest.
        ema: of raw and averaged weights in a file take the averaged ones, or with False the raw ones.
        config_overrides: any other field of `MetaFormerConfig`.

    Raises:
        UnknownName: no such model, tag or field; the nearest names are offered.
        ConfigError: a model that cannot be built, or a wrong value.
        DownloadError: the published weights could not be fetched.
        WeightsError: the weights do not fit the model.
    """
    weights = InitialWeights(
        pretrained=pretrained, checkpoint_path=checkpoint_path, classifier=classifier, strict=strict, ema=ema
    )
    if num_classes is not None:
        config_overrides["num_classes"] = num_classes
    local = find_local(name, VARIANTS)
    base, saved = _saved_config(name, local, checkpoint_path, config_overrides, features_only)
    inherited = {"in_chans": in_chans, "global_pool": global_pool}
    if base is not None:  # what was not asked for is as it was saved
        inherited = {
            key: value for key, value in inherited.items() if value != _default(MetaFormerConfig, key)
        }
    config_overrides = {"drop_path_rate": drop_path_rate, **inherited, **config_overrides}
    if base is None:
        config = model_config(name, **config_overrides)
    else:
        _check_options(MetaFormerConfig, config_overrides, "create_model")
        config = replace(base, **config_overrides)
    check_memory(lambda: MetaFormer(config))
    model = MetaFormerFeatures(config, out_indices) if features_only else MetaFormer(config)
    variant, tag = (local.variant, "") if local else split_name(name)
    source = find_source(name) if not local and (pretrained or tag or tags(variant)) else None
    model.pretrained_cfg = pretrained_cfg(variant, VARIANTS[variant], source)
    if base is not None and saved is not None and kind_of(saved.config) is None:
        model.pretrained_cfg |= _notes(saved, config.num_classes)
    weights.from_local(local, config.num_classes).load_into(model, source)
    return model


def _saved_config(
    name: str,
    local: SavedNetwork | None,
    checkpoint: str | Path | None,
    overrides: Mapping[str, Any],
    features_only: bool,
) -> tuple[MetaFormerConfig | None, SavedNetwork | None]:
    """The configuration that a directory brings for a classifier or backbone, and the directory's network."""
    saved = local
    if local is None:
        saved = None if checkpoint is None else find_saved(checkpoint)
        variant = split_name(name)[0]
        if saved is None or variant not in VARIANTS:
            return None, saved
        base = fitting(saved, variant, model_config(name, **overrides))
    else:
        base = local.backbone
        if base is None:
            raise ConfigError(f"{name}: its backbone is a module, which no configuration describes")
    if base is not None and saved is not None and kind_of(saved.config) is not None:
        own = VARIANTS[saved.variant]  # what a network on it has changed does not concern a classifier
        base = replace(base, num_classes=own.num_classes, grid_mode=own.grid_mode)
        base = base if features_only else replace(base, feature_norm=own.feature_norm)
    return base, saved


def create_segmenter(
    kind: str,
    backbone: Backbone | None = None,
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
    ema: bool | None = None,
    criterion: SegmentationLoss | None = None,
) -> Segmenter:
    """Build a semantic segmentation network: images (B, 3, H, W) to logits (B, num_classes, H, W).

    Args:
        kind: `semantic_fpn` or `upernet`; or with backbone and perhaps tag, as `list_segmenters` names them;
            or the directory of a run, a checkpoint or of `save_pretrained`.
        backbone: a name, a configuration, or a module that returns a list of features, finest first, whose
            channels are `feature_info.channels()`; also a directory; `poolformer_s24` by default.
        num_classes: outputs. Another number than published resets the classifier with `pretrained`; with
            `checkpoint_path` it is an error by default.
        pretrained: download the published weights of the whole network once and load them.
        checkpoint_path: load a file of any published format; one of a backbone leaves neck and head random. A
            directory as above brings its network: what is left at its default is as there.
        feature_norm: norms on the backbone's outputs: `fresh`, `none` or `head`; None as its configuration.
        fpn_dim: channels of the feature pyramid of `semantic_fpn`.
        head_dim: channels of the head; by default 128 for `semantic_fpn` and 512 for `upernet`.
        dropout: dropout of channels before the classifier.
        auxiliary: add an auxiliary FCN head on the third stage, for training.
        drop_path_rate: stochastic depth at the backbone's last block; None as its configuration says.
        in_chans: channels of the input; None as the backbone's configuration says.
        backbone_pretrained: download the published weights of the backbone once and load them.
        backbone_checkpoint: load a file of any published format into the backbone alone.
        classifier: how a file's classifier is loaded, see `load_weights`.
        strict: False loads what fits; the log lists the rest.
        ema: of raw and averaged weights in a file take the averaged ones, or with False the raw ones.
        criterion: the loss; by default cross-entropy over the labeled pixels.

    Raises:
        UnknownName: no such kind, model or tag; the nearest names are offered.
        ConfigError: a network that cannot be built, or a wrong value.
        DownloadError: the published weights could not be fetched.
        WeightsError: the weights do not fit the network.
    """
    weights = InitialWeights(
        pretrained=pretrained,
        checkpoint_path=checkpoint_path,
        backbone_pretrained=backbone_pretrained,
        backbone_checkpoint=backbone_checkpoint,
        classifier=classifier,
        strict=strict,
        ema=ema,
    )
    model: Segmenter = _create_dense(
        SEGMENTER,
        kind,
        backbone,
        {"feature_norm": feature_norm, "drop_path_rate": drop_path_rate, "in_chans": in_chans},
        weights,
        num_classes=num_classes,
        fpn_dim=fpn_dim,
        head_dim=head_dim,
        dropout=dropout,
        auxiliary=auxiliary,
    )
    if criterion is not None:
        model.criterion = criterion
    return model


def create_detector(
    kind: str,
    backbone: Backbone | None = None,
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
    ema: bool | None = None,
    **config_overrides: Any,
) -> "Detector":
    """Build an object detector, with `mask_rcnn` an instance segmentation network.

    Args:
        kind: `retinanet`, `faster_rcnn` or `mask_rcnn`; or with backbone and perhaps tag, as `list_detectors`
            names them; or the directory of a run, a checkpoint or of `save_pretrained`.
        backbone: a name, a configuration, or a module that returns a list of features, finest first, whose
            channels are `feature_info.channels()`; also a directory; `poolformer_s24` by default.
        num_classes: classes of objects, without background. Another number than published resets the
            classifiers with `pretrained`; with `checkpoint_path` it is an error by default.
        pretrained: download the published weights of the whole network once and load them.
        checkpoint_path: load a file of any published format; one of a backbone leaves neck and heads random.
            A directory as above brings its network: what is left at its default is as there.
        feature_norm: norms on the backbone's outputs: `fresh`, `none` or `head`; None as its configuration.
        fpn_dim: channels of the feature pyramid.
        head_dim: channels of the heads' convolutions; `fpn_dim` by default.
        box_fc_dim: channels of the two-stage networks' box head.
        score_threshold: detections with a lower score are dropped.
        drop_path_rate: stochastic depth at the backbone's last block; None as its configuration says.
        in_chans: channels of the input; None as the backbone's configuration says.
        backbone_pretrained: download the published weights of the backbone once and load them.
        backbone_checkpoint: load a file of any published format into the backbone alone.
        classifier: how a file's layers with outputs for each class are loaded, see `load_weights`.
        strict: False loads what fits; the log lists the rest.
        ema: of raw and averaged weights in a file take the averaged ones, or with False the raw ones.
        config_overrides: any other field of `DetectorConfig`.

    Raises:
        UnknownName: no such kind, model, tag or field; the nearest names are offered.
        ConfigError: a network that cannot be built, or a wrong value.
        DownloadError: the published weights could not be fetched.
        WeightsError: the weights do not fit the network.
    """
    weights = InitialWeights(
        pretrained=pretrained,
        checkpoint_path=checkpoint_path,
        backbone_pretrained=backbone_pretrained,
        backbone_checkpoint=backbone_checkpoint,
        classifier=classifier,
        strict=strict,
        ema=ema,
    )
    model: Detector = _create_dense(
        DETECTOR,
        kind,
        backbone,
        {"feature_norm": feature_norm, "drop_path_rate": drop_path_rate, "in_chans": in_chans},
        weights,
        num_classes=num_classes,
        fpn_dim=fpn_dim,
        head_dim=head_dim,
        box_fc_dim=box_fc_dim,
        score_threshold=score_threshold,
        **config_overrides,
    )
    return model


def create_network(
    name: str,
    num_classes: int | None = None,
    pretrained: bool = False,
    checkpoint_path: str | Path | None = None,
    **options: Any,
) -> Any:
    """Build the network of any known name: a classifier, `semantic_fpn_NAME`, `mask_rcnn_NAME` ….

    Args:
        name: as `create_model`, `create_segmenter` or `create_detector` takes it, perhaps with a tag.
        num_classes: outputs; as the function that builds such networks has it by default.
        pretrained: download the published weights of the whole network once and load them.
        checkpoint_path: load a file of any published format instead.
        options: what that function takes, or any field of the backbone's `MetaFormerConfig`.

    Raises:
        UnknownName: no such network or option; the nearest names are offered.
        ConfigError: a network that cannot be built, or a wrong value.
        DownloadError: the published weights could not be fetched.
        WeightsError: the weights do not fit the network.
    """
    kind = next((kind for kind in DENSE_KINDS if split_network(name, kind) is not None), None)
    local = find_local(name, VARIANTS) if kind is None else None
    if local is not None:
        kind = kind_of(local.config)
    if kind is None:
        if local is None and split_name(name)[0] not in (*VARIANTS, *UNAVAILABLE):
            dense = combined(head for kind in DENSE_KINDS for head in kind.heads)
            raise UnknownName("network", name, [*VARIANTS, *UNAVAILABLE, *dense])
        return create_model(name, pretrained, checkpoint_path, num_classes, **options)
    if num_classes is not None:
        options["num_classes"] = num_classes
    of_weights, of_network = (
        {field.name: options.pop(field.name) for field in fields(owner) if field.name in options}
        for owner in (InitialWeights, kind.config)
    )
    weights = InitialWeights(pretrained=pretrained, checkpoint_path=checkpoint_path, **of_weights)
    return _create_dense(kind, name, None, {"feature_norm": "fresh", **options}, weights, **of_network)


def list_models(filter: str = "", pretrained: bool = False) -> list[str]:
    """Names of the models, or with `pretrained` of their published weights (`name.tag`).

    Args:
        filter: a pattern with `*` and `?`, matched against name and name.tag.
        pretrained: list weights instead of networks.
    """
    return _names(list(VARIANTS), filter, pretrained)


def list_segmenters(filter: str = "", pretrained: bool = False) -> list[str]:
    """Names of the segmentation networks, or of their published weights; arguments as of `list_models`."""
    return _names(combined(SEGMENTER.heads), filter, pretrained)


def list_detectors(filter: str = "", pretrained: bool = False) -> list[str]:
    """Names of the detectors, or of their published weights; arguments as of `list_models`."""
    return _names(combined(DETECTOR.heads), filter, pretrained)


def is_model(name: str) -> bool:
    """Whether `create_model` knows a name, with or without tag."""
    return _is_known(name, list(VARIANTS))


def is_segmenter(name: str) -> bool:
    """Whether `create_segmenter` knows a name of kind and backbone, with or without tag."""
    return _is_known(name, combined(SEGMENTER.heads))


def is_detector(name: str) -> bool:
    """Whether `create_detector` knows a name of kind and backbone, with or without tag."""
    return _is_known(name, combined(DETECTOR.heads))


def model_config(name: str, **overrides: Any) -> MetaFormerConfig:
    """The configuration behind a name, with some fields changed.

    A tag sets the number of classes and the image size of its weights.

    Raises:
        UnknownName: no such model, tag or field; the nearest names are offered.
        ConfigError: a model that cannot be built, or a wrong value.
    """
    variant, tag = split_name(name)
    if variant in UNAVAILABLE:
        raise ConfigError(f"{variant} is not available: {UNAVAILABLE[variant]}")
    if variant not in VARIANTS:
        raise UnknownName("model", name, [*VARIANTS, *UNAVAILABLE])
    _check_options(MetaFormerConfig, overrides, "create_model")
    of_tag: dict[str, Any] = {}
    if tag:
        source = find_source(name)
        of_tag = {"num_classes": source.num_classes, "image_size": source.image_size}
    return replace(VARIANTS[variant], **{**of_tag, **overrides})


@dataclass(frozen=True, kw_only=True)
class InitialWeights:
    """The weights that a new network starts from: at most one of four, else random ones.

    Raises:
        ConfigError: more than one.
    """

    pretrained: bool = False
    """Download the published weights of the whole network."""
    checkpoint_path: str | Path | None = None
    """A file for the whole network, or its backbone."""
    backbone_pretrained: bool = False
    """Download the published weights of the backbone."""
    backbone_checkpoint: str | Path | None = None
    """A file for the backbone."""
    classifier: Classifier = "keep"
    """How a file's classifier is loaded."""
    strict: bool = True
    """False loads what fits."""
    ema: bool | None = None
    """Of raw and averaged weights in a file take the averaged ones, or with False the raw ones."""

    def __post_init__(self) -> None:
        files = (self.checkpoint_path is not None, self.backbone_checkpoint is not None)
        if sum((self.pretrained, self.backbone_pretrained, *files)) > 1:
            raise ConfigError(
                "pretrained=True, backbone_pretrained=True, checkpoint_path= and backbone_checkpoint= each "
                "name weights: choose one"
            )

    def from_local(self, local: SavedNetwork | None, num_classes: int) -> "InitialWeights":
        """The same, from a directory that was given in place of a name where nothing else is named.

        Its classifier is reset for another number of classes, as that of published weights.
        """
        others = (self.checkpoint_path, self.backbone_checkpoint)
        if local is None or self.backbone_pretrained or any(other is not None for other in others):
            return self
        reset = self.classifier == "keep" and num_classes != local.config.num_classes
        classifier: Classifier = "reset" if reset else self.classifier
        return replace(self, pretrained=False, checkpoint_path=local.path, classifier=classifier)

    def load_into(
        self,
        model: nn.Module,
        source: Source | None,
        backbone: Backbone | None = None,
        grid: GridPolicy = "strict",
    ) -> LoadReport | None:
        """Load the weights into a network; the log says what was loaded, and so does the report.

        Args:
            model: the network.
            source: its published weights.
            backbone: the backbone of a dense network, as it was asked for.
            grid: how tensors of another grid are loaded, see `load_weights`.

        Raises:
            ConfigError: published weights of a backbone without a name.
            DownloadError: the published weights could not be fetched.
            WeightsError: the weights do not fit.
        """
        target: Any = model
        weights, classifier = self.checkpoint_path, self.classifier
        if self.pretrained and source is not None:
            weights = fetch(source)
            if classifier == "keep" and target.config.num_classes != source.num_classes:
                classifier = "reset"
        elif self.backbone_pretrained:
            if not isinstance(backbone, str):
                raise ConfigError(
                    "backbone_pretrained=True: only a backbone given by its name has such weights"
                )
            weights, target = fetch(find_source(backbone)), target.backbone
        elif self.backbone_checkpoint is not None:
            weights, target = self.backbone_checkpoint, target.backbone
        if weights is None:
            return None
        options: dict[str, Any] = {"classifier": classifier, "grid": grid, "ema": self.ema}
        report = load_weights(target, weights, self.strict, **options)
        logger.info("%s", report)
        return report


def _create_dense(
    kind: NetworkKind,
    name: str,
    backbone: Backbone | None,
    changes: Mapping[str, Any],
    weights: InitialWeights,
    **options: Any,
) -> Any:
    """Build a network on a backbone: `changes` are fields of the backbone, `options` those of the network."""
    local = find_local(name, combined(kind.heads))
    if local is not None:
        if not isinstance(local.config, kind.config):
            raise ConfigError(f"{name}: holds {local.name}, no {kind.title}")
        head, variant, tag = local.config.kind, "", ""
    else:
        parts = split_network(name, kind)
        if parts is None:
            known = combined(kind.heads)
            published = [name for name in SOURCES if name.partition(".")[0] in known]
            raise UnknownName(kind.title, name, [*kind.heads, *known, *published])
        head, variant, tag = parts
    _check_options(kind.config, options, f"create_{kind.title}")
    if variant and backbone is not None and backbone != variant:
        raise ConfigError(f"{name}: has the backbone {variant} in its name, and backbone= names another")
    asked = variant or backbone
    whole = local or _saved_whole(kind, head, asked, weights.checkpoint_path)
    config: Any
    if whole is not None and not isinstance(asked, nn.Module):
        given = {key: value for key, value in options.items() if value != _default(kind.config, key)}
        fields = {key: value for key, value in changes.items() if (key, value) != ("feature_norm", "fresh")}
        own = backbone_config(whole.backbone, fields) if whole.backbone is not None else None
        of_whole: Any = whole.config
        config = replace(of_whole, backbone=own, **given)
        model, network = build_network(config), whole.name
    else:
        chosen, network, weights = _saved_backbone(asked, weights)
        config = kind.config(kind=head, backbone=backbone_config(chosen, changes), **options)
        model = build_network(config, chosen if isinstance(chosen, nn.Module) else None)
        network = f"{head}_{network}" if network else head
    source = find_source(f"{network}.{tag}") if (weights.pretrained and local is None) or tag else None
    model.pretrained_cfg = pretrained_cfg(network, config, source)
    if whole is not None:
        model.pretrained_cfg |= _notes(whole, config.num_classes)
    weights.from_local(local, config.num_classes).load_into(model, source, asked or DEFAULT_BACKBONE)
    return model


def _saved_whole(
    kind: NetworkKind, head: str, backbone: Backbone | None, checkpoint: str | Path | None
) -> SavedNetwork | None:
    """The network that a checkpoint brings, where it is the one asked for, head and backbone."""
    saved = None if checkpoint is None else find_saved(checkpoint)
    if saved is None or not isinstance(saved.config, kind.config) or saved.config.kind != head:
        return None
    if isinstance(backbone, str):
        variant = split_name(backbone)[0]
        if variant not in VARIANTS or fitting(saved, variant, VARIANTS[variant]) is None:
            return None
    return saved if backbone is None or isinstance(backbone, str) else None


def _saved_backbone(
    backbone: Backbone | None, weights: InitialWeights
) -> tuple[Backbone, str, InitialWeights]:
    """The backbone of a dense network, its name where it has one, and the weights to begin with.

    A directory of weights brings its network, given as the backbone or as a checkpoint.
    """
    asked = DEFAULT_BACKBONE if backbone is None else backbone
    if not isinstance(asked, str):
        return asked, "", weights
    local, variant = find_local(asked, VARIANTS), split_name(asked)[0]
    saved = local
    if local is None:
        file = weights.checkpoint_path or weights.backbone_checkpoint
        saved = None if file is None else find_saved(file)
        fits = saved is not None and (
            backbone is None
            or (variant in VARIANTS and fitting(saved, variant, VARIANTS[variant]) is not None)
        )
        if not fits:
            return asked, variant, weights
    elif not (weights.pretrained or weights.checkpoint_path or weights.backbone_checkpoint):
        weights = replace(weights, backbone_pretrained=False, backbone_checkpoint=local.path)
    assert saved is not None
    if saved.backbone is None:
        raise ConfigError(f"{saved.path}: its backbone is a module, which no configuration describes")
    return replace(saved.backbone, grid_mode="interpolate"), saved.variant, weights


def find_local(name: str, known: Iterable[str]) -> SavedNetwork | None:
    """The network of a directory that is given in place of a name; a known name is no directory.

    Raises:
        ConfigError, WeightsError: a directory without a network of ours.
    """
    path = as_path(name, "name", expand=True)
    if split_name(str(name))[0] in {*known, *UNAVAILABLE} or not path.is_dir():
        return None
    return need_saved(path)


def _notes(saved: SavedNetwork, num_classes: int) -> dict[str, Any]:
    """What a saved network's card says, without its classes where they are replaced."""
    notes = saved.notes
    if notes.get("num_classes", num_classes) != num_classes:
        of_classes = ("num_classes", "label_names", "palette", "category_ids", "thresholds")
        notes = {key: value for key, value in notes.items() if key not in of_classes}
    return notes


def _default(config: type[Any], field: str) -> Any:
    return next(one.default for one in fields(config) if one.name == field)


def backbone_config(backbone: Backbone, changes: Mapping[str, Any]) -> MetaFormerConfig | None:
    """The configuration of a dense network's backbone; one given by name takes images of any size.

    Args:
        backbone: a name, a configuration or a module, which has none.
        changes: fields to change; None leaves one as it is.

    Raises:
        UnknownName: no such model or field.
        ConfigError: none of the three, or changes to a module.
    """
    changes = {name: value for name, value in changes.items() if value is not None}
    if isinstance(backbone, nn.Module):
        for name in changes:
            if name != "feature_norm":
                raise ConfigError(
                    f"{name}: of no use for a backbone that is a module: build the module with it"
                )
        return None
    if isinstance(backbone, str):
        return model_config(backbone, grid_mode="interpolate", **changes)
    if not isinstance(backbone, MetaFormerConfig):
        raise ConfigError(f"backbone: {backbone!r} is neither a name, a MetaFormerConfig nor a module")
    return replace(backbone, **changes)


def split_network(name: str, kind: NetworkKind) -> tuple[str, str, str] | None:
    """Head, backbone and tag in a network's name, the latter two perhaps empty; None where it has no head."""
    split_name(name)  # raises for what is no text
    model, _, tag = name.partition(".")
    for head in kind.heads:
        if model == head or model.startswith(f"{head}_"):
            backbone = model[len(head) + 1 :]
            if not backbone or backbone in VARIANTS:
                return head, backbone, tag
    return None


def combined(heads: Iterable[str]) -> list[str]:
    """Names of each head on each backbone."""
    return [f"{head}_{variant}" for head in heads for variant in VARIANTS]


def _names(networks: list[str], pattern: str, pretrained: bool) -> list[str]:
    """Networks, or their published weights, that match a pattern with or without tag."""
    known = set(networks)
    names = [source.name for source in SOURCES.values() if source.model in known] if pretrained else networks
    return [
        name
        for name in names
        if not pattern or fnmatch(name, pattern) or fnmatch(name.partition(".")[0], pattern)
    ]


def _is_known(name: str, networks: list[str]) -> bool:
    model, tag = split_name(name)
    return model in networks and (not tag or tag in tags(model))


def _check_options(config: type[Any], options: Iterable[str], function: str) -> None:
    known = {field.name for field in fields(config)}
    for name in options:
        if name not in known:
            raise UnknownName(f"{function} option", name, known)
