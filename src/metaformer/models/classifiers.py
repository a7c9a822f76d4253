"""Classifiers by name: `create_model("poolformer_s12", pretrained=True)`."""

import logging
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from metaformer.backbones.config import MetaFormerConfig
from metaformer.backbones.skeleton import MetaFormer, MetaFormerFeatures
from metaformer.backbones.variants import UNAVAILABLE, VARIANTS
from metaformer.errors import ConfigError, UnknownName
from metaformer.models.names import matching
from metaformer.weights.card import pretrained_cfg
from metaformer.weights.download import fetch
from metaformer.weights.fit import Classifier
from metaformer.weights.load import load_weights
from metaformer.weights.sources import SOURCES, Source, find_source, split_name, tags

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
    partial: bool = False,
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
        partial: load what fits, as after a swap of mixers; the log says what did not.
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
            classifier = "fresh"
    if weights is not None:
        logger.info("%s", load_weights(model, weights, partial, classifier=classifier))
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
