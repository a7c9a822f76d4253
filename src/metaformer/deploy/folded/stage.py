"""The blocks of a stage for inference."""

from collections.abc import Callable, Iterable
from functools import partial
from itertools import count
from threading import Lock
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from metaformer.deploy.folded.linear import Prepared
from metaformer.ops.native import library

_NUMBERED: "WeakValueDictionary[int, Chain]" = WeakValueDictionary()


_numbers = count()


class Chain(Prepared, nn.Sequential):
    """Blocks one after the other, (B, C, H, W) to the same shape.

    Where they call nothing but the C++ kernels, the calls are noted when a shape comes twice in a row, and
    from then on made without Python between them, until another shape comes; not while blocks have hooks.
    """

    def __init__(self, blocks: Iterable[nn.Module]) -> None:
        super().__init__()
        self.extend(blocks)
        self.number: int | None = None

    def forward(self, x: Tensor) -> Tensor:
        if torch.compiler.is_compiling():
            if self.number is None or torch.compiler.is_exporting():
                return nn.Sequential.forward(self, x)
            result: Tensor = torch.ops.metaformer.chain(x, self.number)
            return result
        if not library.usable(x.permute(0, 2, 3, 1)) or any(_hooked(block) for block in self):
            return nn.Sequential.forward(self, x)
        plan = self.kept_for(x.shape, partial(record, partial(nn.Sequential.forward, self), x))
        return nn.Sequential.forward(self, x) if plan is None or plan.dtype != x.dtype else plan(x)

    def join_graphs(self, x: Tensor) -> None:
        """Become one operation of compiled graphs, if maps like x (B, C, H, W) need nothing but the kernels.

        A compiler has no better form of them, and cannot see into them.
        """
        run = partial(nn.Sequential.forward, self)
        run(x)  # lays the weights out
        if record(run, x) is not None:
            self._take_number()

    def _take_number(self) -> None:
        self.number = next(_numbers)
        _NUMBERED[self.number] = self

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if self.number is not None:  # that is the original's
            self._take_number()


@torch.library.custom_op("metaformer::chain", mutates_args=(), device_types="cpu")
def _chain(x: Tensor, number: int) -> Tensor:
    """A chain's forward, by its number."""
    return _NUMBERED[number](x.contiguous(memory_format=torch.channels_last))


@_chain.register_fake
def _(x: Tensor, number: int) -> Tensor:
    return torch.empty_like(x, memory_format=torch.channels_last)


def _hooked(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)


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
