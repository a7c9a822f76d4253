"""What a dense network is built on, and which weights it begins with."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from metaformer.backbones.config import MetaFormerConfig
from metaformer.errors import ConfigError
from metaformer.models.classifiers import model_config
from metaformer.weights.dense_source import DenseSource
from metaformer.weights.download import fetch
from metaformer.weights.fit import Classifier
from metaformer.weights.load import load_weights
from metaformer.weights.sources import find_source

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
    partial: bool
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
                classifier = "fresh"
        if self.backbone_pretrained:
            if not isinstance(below, str):
                raise ConfigError(
                    "backbone_pretrained=True: only a backbone given by its name has such weights"
                )
            weights = fetch(find_source(below))
        if weights is not None:
            logger.info("%s", load_weights(target, weights, self.partial, classifier=classifier))


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
