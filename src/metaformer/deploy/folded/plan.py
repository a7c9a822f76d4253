"""The kernel calls of some blocks, noted once for a shape and then made without the Python around them."""

from collections.abc import Callable
from threading import Lock
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from metaformer.ops.native import library


class _Watch(TorchDispatchMode):
    """Keeps the tensors that are made, and says whether PyTorch computed anything."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[Tensor] = []
        self.computed = False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket in (torch.ops.aten.empty, torch.ops.aten.new_empty, torch.ops.aten.empty_like):
            self.made.append(result)
        elif func._schema.is_mutable or not _shares(result, args):
            self.computed = True
        return result


def _shares(result: Any, args: tuple[Any, ...]) -> bool:
    """Say whether a result is a view of the first argument."""
    tensors = [part for part in (result, *args[:1]) if isinstance(part, Tensor)]
    plain = len(tensors) == 2 and all(tensor.layout == torch.strided for tensor in tensors)
    return plain and _home(tensors[0]) == _home(tensors[1])


def _home(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


class Plan:
    """What `record` noted, to be called with other maps of the shape, type and layout.

    What lies between kernels has memory of its own; the result is a new map each time.
    """

    def __init__(self, calls: list[library.Call], made: list[Tensor], x: Tensor, y: Tensor) -> None:
        self.dtype, self.lock, self.layout = x.dtype, Lock(), (y.shape, y.stride())
        sizes = {_home(tensor): tensor.untyped_storage().nbytes() for tensor in made}
        del sizes[_home(y)]
        rooms = _rooms(calls, sizes)
        self.calls: list[tuple[Callable[..., None], list[Any]]] = []
        self.ends: dict[int, list[tuple[list[Any], int, int]]] = {_home(x): [], _home(y): []}
        self.held: list[Tensor] = list(rooms.values())  # what the calls know by its address alone
        for function, arguments in calls:
            words = list(arguments)
            self.calls.append((function, words))
            for i, word in enumerate(words):
                if not isinstance(word, Tensor):
                    continue
                home, words[i] = _home(word), word.data_ptr()
                if home in rooms:
                    words[i] = rooms[home].data_ptr() + word.data_ptr() - home
                elif home in self.ends:
                    self.ends[home].append((words, i, word.data_ptr() - home))
                else:
                    self.held.append(word)
        self.start = x.data_ptr() - _home(x)

    def __call__(self, x: Tensor) -> Tensor:
        """Make the calls for a map."""
        y = torch.empty_strided(*self.layout, dtype=self.dtype)
        starts = x.data_ptr() - self.start, y.data_ptr()
        with self.lock:
            for start, places in zip(starts, self.ends.values(), strict=True):
                for words, i, offset in places:
                    words[i] = start + offset
            threads = torch.get_num_threads()
            for function, words in self.calls:
                function(*words, threads)
        return y


def _rooms(calls: list[library.Call], homes: dict[int, int]) -> dict[int, Tensor]:
    """Memory for each map between kernels, by its address; those that are not needed at once share it."""
    spans: dict[int, list[int]] = {}
    for step, (_, arguments) in enumerate(calls):
        for word in arguments:
            if isinstance(word, Tensor) and _home(word) in homes:
                spans.setdefault(_home(word), [step, step])[1] = step
    rooms: list[tuple[Tensor, int]] = []
    found: dict[int, Tensor] = {}
    for home, (first, last) in spans.items():
        free = [i for i, (room, until) in enumerate(rooms) if until < first and len(room) >= homes[home]]
        if free:
            best = min(free, key=lambda i: len(rooms[i][0]))
            room = rooms.pop(best)[0]
        else:
            room = torch.empty(homes[home], dtype=torch.uint8)
        rooms.append((room, last))
        found[home] = room
    return found


def record(function: Callable[[Tensor], Tensor], x: Tensor) -> Plan | None:
    """Note the kernel calls of `function(x)`; None where PyTorch computes anything in it."""
    with library.noted() as calls, _Watch() as watch:
        y = function(x)
    made = {_home(tensor) for tensor in watch.made}
    return None if watch.computed or _home(y) not in made else Plan(calls, watch.made, x, y)
