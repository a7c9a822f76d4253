"""A network as a function from images to tensors alone, which is what can be packaged."""

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn


class Tensors(nn.Module):
    """What a network says in tensors, in the order of their names."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Map images (B, C, H, W) to one or more tensors."""
        return tuple(network_outputs(self.network, images).values())


def network_outputs(network: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """What a network says in tensors, by name: `output` where it is one alone."""
    raw: Any = getattr(network, "raw", None)
    return dict(named_tensors(network(images) if raw is None else raw(images)))


def named_tensors(outputs: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Walk through what a network gave: each tensor with the way to it, such as `logits.0`."""
    if isinstance(outputs, Tensor):
        yield name or "output", outputs
        return
    fields = getattr(outputs, "_fields", range(len(outputs)))
    parts = outputs.items() if isinstance(outputs, dict) else zip(fields, outputs, strict=True)
    for key, part in parts:
        yield from named_tensors(part, f"{name}.{key}".lstrip("."))
