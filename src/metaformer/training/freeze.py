"""Stages of a backbone that training leaves as they are."""

from torch import nn

from metaformer.backbones.metaformer import Trunk
from metaformer.errors import ConfigError


def freeze_stages(model: nn.Module, count: int) -> list[nn.Module]:
    """Freeze the stem and the first stages of a network's backbone, and give these parts.

    They belong in evaluation mode: their batch norms then keep their statistics, and nothing is dropped.
    Arguments and errors are those of `first_stages`.
    """
    parts = first_stages(model, count)
    for part in parts:
        part.requires_grad_(False)
    return parts


def first_stages(model: nn.Module, count: int) -> list[nn.Module]:
    """The stem and the first stages of a network's backbone.

    Args:
        model: a network of any task.
        count: stages; 0 gives nothing, not even the stem.

    Raises:
        ConfigError: the backbone has fewer stages, or is not of this library.
    """
    if not count:
        return []
    trunk = next((module for module in model.modules() if isinstance(module, Trunk)), None)
    if trunk is None:
        raise ConfigError(f"model.freeze is {count}: the network has no backbone of this library")
    if count > len(trunk.stages):
        raise ConfigError(f"model.freeze is {count}: the backbone has {len(trunk.stages)} stages")
    return [trunk.stem, *trunk.stages[:count]]
