"""Kernel calls that are captured once for a shape and replayed without Python between; stages that do so."""

from collections.abc import Callable, Hashable, Iterable
from functools import partial
from itertools import count
from threading import Lock
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from torch.utils._python_dispatch import TorchDispatchMode

from metaformer.deploy.folded.linear import WeightCache
from metaformer.ops import cpp, onednn
from metaformer.ops.cpp import kernels
from metaformer.ops.norm import needs_gradient

aten = torch.ops.aten
_STAGES: "WeakValueDictionary[int, ReplayableStage]" = WeakValueDictionary()
_numbers = count()


class ReplayableStage(WeightCache, nn.Sequential):
    """Blocks one after the other, (B, C, H, W) to the same shape.

    Where they call C++ kernels alone, the calls are captured when a shape comes again and replayed from then
    on; not while a block has hooks.
    """

    def __init__(self, blocks: Iterable[nn.Module]) -> None:
        super().__init__()
        self.extend(blocks)
        self.number: int | None = None
        """By which compiled graphs call the stage as one operation; None where they trace its blocks."""

    def forward(self, x: Tensor) -> Tensor:
        if torch.compiler.is_compiling():
            if self.number is None or torch.compiler.is_exporting():
                return nn.Sequential.forward(self, x)
            result: Tensor = torch.ops.metaformer.replay_stage(x, self.number)
            return result
        run = partial(nn.Sequential.forward, self)
        if kernels.is_recording() or any(has_hooks(block) for block in self):
            return run(x)
        return replay(self, run, x)

    def hide_from_compiler(self, x: Tensor) -> None:
        """Become one operation of compiled graphs, if inputs like x (B, C, H, W) need C++ kernels alone.

        A compiler has no faster form of the kernels and cannot trace them.
        """
        run = partial(nn.Sequential.forward, self)
        run(x)  # packs the weights
        if capture(run, x) is not None:
            self._register()

    def _register(self) -> None:
        self.number = next(_numbers)
        _STAGES[self.number] = self

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if self.number is not None:  # the number is the original's
            self._register()


@torch.library.custom_op("metaformer::replay_stage", mutates_args=(), device_types="cpu")
def _replay_stage(x: Tensor, number: int) -> Tensor:
    return _STAGES[number](x.contiguous(memory_format=torch.channels_last))


@_replay_stage.register_fake
def _(x: Tensor, number: int) -> Tensor:
    return torch.empty_like(x, memory_format=torch.channels_last)


def replay(cache: WeightCache, run: Callable[[Tensor], Tensor], x: Tensor, *key: Hashable) -> Tensor:
    """run(x) of x (B, C, H, W), by captured calls from the second time on that a shape comes.

    Args:
        cache: where the captured calls are kept.
        run: the function.
        x: its input.
        key: what the calls depend on beside x's shape and dtype and the weights of `WeightCache` modules.
    """
    if not cpp.supports(x.permute(0, 2, 3, 1)) or needs_gradient(*cache.parameters()):
        return run(x)
    key = x.shape, x.dtype, WeightCache.generation, *key
    graph = cache.get_repeated(key, partial(capture, run, x))
    # a graph has one set of buffers: beside another thread it would wait
    return run(x) if graph is None or graph.lock.locked() else graph(x)


def has_hooks(module: nn.Module) -> bool:
    """Whether a module has forward hooks, or all modules have, so that it has to be called itself."""
    own = module._forward_hooks or module._forward_pre_hooks
    return bool(own or torch_module._has_any_global_hook())


def capture(function: Callable[[Tensor], Tensor], x: Tensor) -> "CapturedGraph | None":
    """Capture the kernel calls of `function(x)`; None where PyTorch computes any part of it."""
    onednn.has_dtype(x.dtype)  # cached from here on: the first time it calls an operation
    with kernels.record_calls() as calls, _AllocationMode() as mode:
        y = function(x)
    allocated = {_storage_ptr(tensor) for tensor in mode.allocated}
    if mode.computed or _storage_ptr(y) not in allocated:
        return None
    return CapturedGraph(calls, mode.allocated, x, y)


class CapturedGraph:
    """Captured kernel calls, to be replayed on inputs of the same shape, type and strides.

    Intermediate tensors have buffers of the graph's own; the output is a new tensor each time.

    Args:
        calls: kernels with their arguments, as they were made for x.
        allocated: all tensors that were allocated meanwhile, y among them.
        x: the input.
        y: the output.
    """

    def __init__(self, calls: list[kernels.Call], allocated: list[Tensor], x: Tensor, y: Tensor) -> None:
        self.dtype, self.lock, self.layout = x.dtype, Lock(), (y.shape, y.stride())
        sizes = {_storage_ptr(tensor): tensor.untyped_storage().nbytes() for tensor in allocated}
        del sizes[_storage_ptr(y)]
        buffers = _allocate_buffers(calls, sizes)
        self.calls: list[tuple[Callable[..., None], list[Any]]] = []
        # arguments that point into x or y, set at each replay: (arguments, index, offset in the storage)
        self.pointers: dict[int, list[tuple[list[Any], int, int]]] = {
            _storage_ptr(x): [],
            _storage_ptr(y): [],
        }
        self.owned: list[Tensor] = list(buffers.values())  # the calls hold addresses alone
        for function, arguments in calls:
            args = list(arguments)
            self.calls.append((function, args))
            for i, arg in enumerate(args):
                if not isinstance(arg, Tensor):
                    continue
                storage, args[i] = _storage_ptr(arg), arg.data_ptr()
                if storage in buffers:
                    args[i] = buffers[storage].data_ptr() + arg.data_ptr() - storage
                elif storage in self.pointers:
                    self.pointers[storage].append((args, i, arg.data_ptr() - storage))
                else:
                    self.owned.append(arg)
        self.x_offset = x.data_ptr() - _storage_ptr(x)

    def __call__(self, x: Tensor) -> Tensor:
        """Replay the calls on an input."""
        y = torch.empty_strided(*self.layout, dtype=self.dtype, device="cpu")
        starts = x.data_ptr() - self.x_offset, y.data_ptr()
        with self.lock:
            for start, pointers in zip(starts, self.pointers.values(), strict=True):
                for args, i, offset in pointers:
                    args[i] = start + offset
            threads = torch.get_num_threads()
            for function, args in self.calls:
                function(*args, threads)
        return y


def _allocate_buffers(calls: list[kernels.Call], sizes: dict[int, int]) -> dict[int, Tensor]:
    """Buffers for intermediate tensors by their storage's address; tensors not alive at once share one.

    Args:
        calls: kernels with their arguments, in order.
        sizes: bytes of each storage.
    """
    spans: dict[int, list[int]] = {}  # first and last call that uses a storage
    for step, (_, arguments) in enumerate(calls):
        for arg in arguments:
            if isinstance(arg, Tensor) and _storage_ptr(arg) in sizes:
                spans.setdefault(_storage_ptr(arg), [step, step])[1] = step
    pool: list[tuple[Tensor, int]] = []  # buffer, and the last call that uses it
    buffers: dict[int, Tensor] = {}
    for storage, (first, last) in spans.items():
        size = sizes[storage]
        free = [i for i, (buffer, until) in enumerate(pool) if until < first and len(buffer) >= size]
        if free:
            buffer, _ = pool.pop(min(free, key=lambda i: len(pool[i][0])))
        else:
            buffer = torch.empty(size, dtype=torch.uint8, device="cpu")
        pool.append((buffer, last))
        buffers[storage] = buffer
    return buffers


class _AllocationMode(TorchDispatchMode):
    """Records the tensors that are allocated, and whether PyTorch computed anything."""

    sees_kernels = True
    """The kernels' calls are recorded beside it: they run under this mode."""

    def __init__(self) -> None:
        super().__init__()
        self.allocated: list[Tensor] = []
        self.computed = False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket in (aten.empty, aten.new_empty, aten.empty_like):
            self.allocated.append(result)
        elif func._schema.is_mutable or not _is_view(result, args):
            self.computed = True
        return result


def _is_view(result: Any, args: tuple[Any, ...]) -> bool:
    """Whether a result is a view of the first argument."""
    tensors = [value for value in (result, *args[:1]) if isinstance(value, Tensor)]
    strided = len(tensors) == 2 and all(tensor.layout == torch.strided for tensor in tensors)
    return strided and _storage_ptr(tensors[0]) == _storage_ptr(tensors[1])


def _storage_ptr(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
