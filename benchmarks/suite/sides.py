"""Whose network is measured: ours, timm's, or CycleMLP as it was published."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from metaformer.errors import ConfigError, UnknownName

Side = Callable[[str, int], nn.Module]
"""From a model's name and the images' height and width to a fresh network in float32 on the CPU."""


def build(side: str, model: str, size: int) -> nn.Module:
    """Make a side's network, its weights drawn from the same seed each time.

    Raises:
        UnknownName: no such side, or no such model on it.
        ConfigError: a package is missing.
    """
    if side not in SIDES:
        raise UnknownName("side of a contender", side, SIDES)
    torch.manual_seed(0)
    return _trained(SIDES[side](model, size))


def _trained(network: nn.Module) -> nn.Module:
    """Move scales and biases away from their first values: a block scaled by 1e-5 hides its mistakes."""
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.5 * torch.rand_like(parameter))
    return network


def _ours(model: str, size: int) -> nn.Module:
    from metaformer.factory import create_model

    return create_model(model, image_size=(size, size))


def _timm(model: str, size: int) -> nn.Module:
    try:
        import timm
    except ImportError as error:
        raise ConfigError("timm is not installed: pip install timm") from error
    if not timm.is_model(model):
        raise ConfigError(f"timm has no {model}")
    network: nn.Module = timm.create_model(model)
    return network


def _original(form: str) -> Side:
    def make(model: str, size: int) -> nn.Module:
        from benchmarks.original_cyclemlp import original
        from metaformer.factory import create_model

        network: Any = create_model(model, image_size=(size, size))
        return original(network, form)

    return make


SIDES: dict[str, Side] = {
    "ours": _ours,
    "timm": _timm,
    "deformable": _original("deformable"),
    "padded": _original("padded"),
}
