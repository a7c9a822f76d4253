"""Memory of tensors, counted as they come and go."""

import weakref
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class TensorMemory(TorchDispatchMode):
    """Bytes of the tensors that operations make while it is entered, as long as they live.

    Unlike the resident memory of a process it is the same on every machine, whatever has been freed before.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._known: dict[int, weakref.finalize[Any, Any]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = {_address(leaf) for leaf in tree_leaves((args, kwargs or {})) if isinstance(leaf, Tensor)}
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor) and _address(leaf) not in given | self._known.keys():
                self._add(leaf)
        return out

    def _add(self, tensor: Tensor) -> None:
        storage, key = tensor.untyped_storage(), _address(tensor)
        self.live += storage.nbytes()
        self.peak = max(self.peak, self.live)
        self._known[key] = weakref.finalize(storage, self._free, key, storage.nbytes())

    def _free(self, key: int, size: int) -> None:
        self.live -= size
        del self._known[key]


def _address(tensor: Tensor) -> int:
    """What tells storages apart, as long as they live."""
    return int(tensor.untyped_storage()._cdata)
