"""The stages of a network, which maps are made of."""

from torch import nn

from metaformer.backbones.metaformer import Trunk
from metaformer.errors import ConfigError


def trunk_of(network: nn.Module) -> Trunk:
    """Stem and stages of a classifier, or of the backbone of a segmenter or detector.

    Raises:
        ConfigError: a module without them, such as a compiled or rewritten network.
    """
    trunk = getattr(network, "backbone", network)
    if not isinstance(trunk, Trunk):
        raise ConfigError(
            f"{type(trunk).__name__}: has no stages to look into: give a network of this library"
        )
    return trunk


def stage_of(network: nn.Module, stage: int) -> nn.Module:
    """One of its stages, counted from 0, or backwards from −1.

    Raises:
        ConfigError: there is no such stage.
    """
    stages = trunk_of(network).stages
    if not -len(stages) <= stage < len(stages):
        raise ConfigError(f"stage {stage}: the network has stages 0 … {len(stages) - 1}")
    return stages[stage]
