"""What is made of a module's weights once, for the operations it calls."""

from collections.abc import Callable, Hashable
from typing import Any, Self, TypeVar

import torch
from torch import nn

T = TypeVar("T")


class Prepared(nn.Module):
    """A module that keeps what it makes of its weights until they are moved, converted or loaded."""

    def __init__(self) -> None:
        super().__init__()
        self._kept: dict[Hashable, Any] = {}
        self._last: torch.Size | None = None

    def kept(self, name: Hashable, make: Callable[[], T]) -> T:
        """What `make` gave when it was first called for this name."""
        if name not in self._kept:
            self._kept[name] = make()
        found: T = self._kept[name]
        return found

    def kept_for(self, shape: torch.Size, make: Callable[[], T]) -> T | None:
        """What `make` gave for maps of this shape, if the last call was of that too; otherwise nothing.

        oneDNN's layouts of a convolution's weight fit one shape, and are many times slower at others: so one
        is made when a shape comes again, and the one before is given up.
        """
        last, self._last = self._last, shape
        if last != shape or not shape.numel():
            return None
        if shape not in self._kept:
            for other in [name for name in self._kept if isinstance(name, torch.Size)]:
                del self._kept[other]
        return self.kept(shape, make)

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        self._forget()
        return super()._apply(fn, recurse)

    def _load_from_state_dict(self, *words: Any) -> None:
        self._forget()
        super()._load_from_state_dict(*words)

    def _forget(self) -> None:
        self._kept.clear()
        self._last = None

    def __getstate__(self) -> dict[str, Any]:
        """A copy makes it anew: oneDNN's layouts belong to this process."""
        return {**self.__dict__, "_kept": {}, "_last": None}
