"""Backbone configuration and initial weights of a run's network."""

import logging
from pathlib import Path
from typing import Any

from metaformer.backbones.config import MetaFormerConfig
from metaformer.config import ModelConfig
from metaformer.errors import ConfigError
from metaformer.models.base import DenseNetwork


def model_fields(network: ModelConfig, **defaults: Any) -> dict[str, Any]:
    """Fields of `MetaFormerConfig` that a run sets: defaults, its overrides, mixers, stochastic depth.

    Raises:
        ConfigError: an override that has a field of its own.
    """
    for name in ("num_classes", "drop_path_rate"):
        if name in network.overrides:
            raise ConfigError(f"model.overrides: {name} has a field of its own, model.{name}")
    fields: dict[str, Any] = {**defaults, **network.overrides, "drop_path_rate": network.drop_path_rate}
    if network.mixers is not None:
        fields["mixers"] = network.mixers if isinstance(network.mixers, str) else tuple(network.mixers)
    return fields


def backbone_config(network: ModelConfig, **defaults: Any) -> MetaFormerConfig:
    """Configuration of a dense network's backbone; overrides take precedence over `defaults`.

    Raises:
        ConfigError: an unknown model or field, or a value that does not fit.
    """
    from metaformer.factory import model_config

    return model_config(network.name, **model_fields(network, **defaults))


def load_initial_weights(model: DenseNetwork, network: ModelConfig) -> None:
    """Load the configured checkpoint or published weights, and enable activation checkpointing.

    A file of a classifier or backbone leaves neck and heads random; one of other classes, the last layers.

    Raises:
        WeightsError: the checkpoint cannot be read or does not fit.
    """
    weights: str | Path | None = network.checkpoint
    if network.pretrained and weights is None:
        from metaformer.weights.download import fetch
        from metaformer.weights.sources import find_source

        weights = fetch(find_source(network.name))
    if weights is not None:
        from metaformer.weights.load import load_weights

        report = load_weights(model, weights, classifier="reset", grid="interpolate")
        logging.getLogger(__name__).info("%s", report)
    if network.grad_checkpointing:
        model.set_grad_checkpointing(network.grad_checkpointing)
