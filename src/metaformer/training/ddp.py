"""How the devices of a run share a model: each has it whole (here), or a part of every tensor (parts.py)."""

import logging
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from metaformer.config import RuntimeConfig
from metaformer.distributed import World, is_sharded


class DataParallel:
    """Each device has the whole model, and they average their gradients; or there is one device only."""

    sharded = False
    """Whether every rank must take part in whatever touches the weights, a checkpoint among that."""

    def __init__(self, runtime: RuntimeConfig, world: World) -> None:
        self.runtime, self.world = runtime, world

    def place(self, model: nn.Module) -> None:
        """Lay a model out on the devices; before an optimizer is made for it."""

    def wrap(self, model: nn.Module) -> nn.Module:
        """Place the model that learns, and give what its losses are computed with."""
        self._convert_batch_norm(model)
        wrapped: nn.Module = torch.compile(model) if self.runtime.compile else model  # type: ignore[assignment]
        if self.world.size > 1:
            devices = [self.world.device.index] if self.world.device.type == "cuda" else None
            wrapped = DistributedDataParallel(wrapped, device_ids=devices)
        return wrapped

    def synchronized(self, model: nn.Module, last: bool) -> AbstractContextManager[object]:
        """Around a micro-batch's two passes: devices exchange gradients with the last one only."""
        if isinstance(model, DistributedDataParallel) and not last:
            return model.no_sync()
        return nullcontext()

    def gradient_norm(self, parameters: Iterable[nn.Parameter]) -> Tensor:
        """The norm of all gradients together."""
        norm: Any = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        return norm.full_tensor() if is_sharded(norm) else norm

    @contextmanager
    def gathered(self, model: nn.Module) -> Iterator[None]:
        """While each rank runs the model on its own, as often as it likes: all of it is on every device."""
        yield

    def whole_state(self, model: nn.Module) -> dict[str, Tensor]:
        """A model's state in whole tensors on the first rank's CPU; nothing elsewhere. All ranks call it."""
        state: dict[str, Tensor] = {}
        for name, value in model.state_dict().items():
            value = value.full_tensor() if is_sharded(value) else value
            if self.world.main:
                state[name] = value.cpu()
        return state

    def share_buffers(self, *models: nn.Module) -> None:
        """Give all ranks the first one's running statistics, which each has gathered from its own images."""
        self._share(buffer for model in models for buffer in model.buffers())

    def _share(self, tensors: Iterable[Tensor]) -> None:
        if self.world.size > 1:
            for tensor in tensors:
                torch.distributed.broadcast(tensor.detach(), 0)

    def _convert_batch_norm(self, model: nn.Module) -> None:
        if not self.runtime.sync_batch_norm or self.world.size == 1:
            return
        if self.world.device.type == "cuda":
            nn.SyncBatchNorm.convert_sync_batchnorm(model)
        elif self.world.main and any(isinstance(module, _BatchNorm) for module in model.modules()):
            logging.getLogger(__name__).warning(
                "runtime.sync_batch_norm works on CUDA devices only: on the CPU each of the %d processes "
                "normalizes by its own images, and the first one's running statistics are kept",
                self.world.size,
            )
