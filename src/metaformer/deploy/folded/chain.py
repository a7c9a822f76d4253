"""The blocks of a stage for inference."""

from collections.abc import Iterable
from functools import partial
from itertools import count
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn

from metaformer.deploy.folded.plan import record
from metaformer.deploy.folded.prepared import Prepared
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
