"""First values of parameters as a function of seed and name: networks that share parts begin alike there."""

import functools
import hashlib
from collections.abc import Callable
from contextvars import ContextVar
from typing import Concatenate, Final, ParamSpec, TypeVar

import torch
from torch import nn

P = ParamSpec("P")
T = TypeVar("T")
Self = TypeVar("Self")
_place: Final[ContextVar[tuple[int, str] | None]] = ContextVar("place", default=None)
"""Number drawn for the network that is being built, and the name of the part that is."""


def init_by_name(init: Callable[Concatenate[Self, P], None]) -> Callable[Concatenate[Self, P], None]:
    """Constructor of a network whose `init_part` parts begin as a function of one number and their names.

    That number is all that the network draws for them from PyTorch's random stream.
    """

    @functools.wraps(init)
    def wrapped(self: Self, /, *args: P.args, **kwargs: P.kwargs) -> None:
        if _place.get() is not None:  # a part of another network
            return init(self, *args, **kwargs)
        token = _place.set((_draw(), ""))
        try:
            return init(self, *args, **kwargs)
        finally:
            _place.reset(token)

    return wrapped


def init_part(name: str, build: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """Build or fill a part with random numbers of its own, whatever its siblings have drawn.

    Args:
        name: of the part in the module that it belongs to.
        build: makes the part, or fills it.
        args: for `build`.
        kwargs: for `build`.
    """
    number, above = _place.get() or (_draw(), "")
    path = f"{above}.{name}".lstrip(".")
    digest = hashlib.sha256(f"{number} {path}".encode()).digest()
    generators = _generators()
    states = [generator.get_state() for generator in generators]
    token = _place.set((number, path))
    try:
        for generator in generators:
            generator.manual_seed(int.from_bytes(digest[:8]))
        return build(*args, **kwargs)
    finally:
        _place.reset(token)
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)


def init_normal(layer: nn.Conv2d | nn.Linear, std: float = 0.02) -> None:
    """Fill a layer's weight from a normal distribution cut at ±2, its bias with zeros."""
    nn.init.trunc_normal_(layer.weight, std=std)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def _draw() -> int:
    return int(torch.randint(1 << 62, (), device="cpu"))


def _generators() -> list[torch.Generator]:
    """Generators of the devices on which parameters are made: the CPU, and a default device of CUDA."""
    device = torch.get_default_device()
    if device.type != "cuda":
        return [torch.default_generator]
    torch.cuda.init()
    index = torch.cuda.current_device() if device.index is None else device.index
    return [torch.default_generator, torch.cuda.default_generators[index]]
