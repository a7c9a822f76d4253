"""What a run's network begins as: its backbone's configuration, and the weights it starts from."""

import logging
from pathlib import Path
from typing import Any

from metaformer.backbones.config import MetaFormerConfig
from metaformer.config import ModelConfig
from metaformer.models.base import DenseNetwork


def dense_backbone(network: ModelConfig, **defaults: Any) -> MetaFormerConfig:
    """The configuration of a dense network's backbone; `defaults` are fields that may be overridden.

    Raises:
        ConfigError: an unknown model or field, or a value that does not fit.
    """
    from metaformer.factory import model_config

    fields: dict[str, Any] = {**defaults, **network.overrides}
    if network.mixers is not None:
        fields["mixers"] = network.mixers if isinstance(network.mixers, str) else tuple(network.mixers)
    return model_config(network.name, drop_path_rate=network.drop_path_rate, **fields)


def begin_with_weights(model: DenseNetwork, network: ModelConfig) -> None:
    """Load own or published weights where they are asked for.

    A file of a backbone leaves neck and heads fresh; one of other classes gives all but the last layers.

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
