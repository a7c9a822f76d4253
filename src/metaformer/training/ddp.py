"""Data parallelism: every device holds the whole model (DDP); also the case of a single device."""

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
    """DistributedDataParallel over the ranks; on a single device the model itself."""

    sharded = False
    """Whether weights are sharded, so that all ranks must take part in reading and saving them."""

    def __init__(self, runtime: RuntimeConfig, world: World) -> None:
        self.runtime, self.world = runtime, world

    def shard(self, model: nn.Module) -> None:
        """Shard a model's parameters, before an optimizer is built for it; nothing under DDP."""

    def wrap(self, model: nn.Module) -> nn.Module:
        """Prepare the model that is trained; the result computes its losses."""
        self._convert_sync_batch_norm(model)
        wrapped: nn.Module = torch.compile(model) if self.runtime.compile else model  # type: ignore[assignment]
        if self.world.size > 1:
            devices = [self.world.device.index] if self.world.device.type == "cuda" else None
            wrapped = DistributedDataParallel(wrapped, device_ids=devices)
        return wrapped

    def gradient_sync(self, model: nn.Module, last: bool) -> AbstractContextManager[object]:
        """Context of a micro-batch's forward and backward pass: only the last one reduces gradients."""
        if isinstance(model, DistributedDataParallel) and not last:
            return model.no_sync()
        return nullcontext()

    def gradient_norm(self, parameters: Iterable[nn.Parameter]) -> Tensor:
        """L2 norm of all gradients together."""
        norm: Any = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        return norm.full_tensor() if is_sharded(norm) else norm

    @contextmanager
    def summon_full_params(self, model: nn.Module) -> Iterator[None]:
        """Context in which each rank holds the full parameters and may run the model on its own."""
        yield

    def full_state_dict(self, model: nn.Module) -> dict[str, Tensor]:
        """Unsharded state dict on the first rank's CPU, empty on the others. All ranks call it."""
        state: dict[str, Tensor] = {}
        for name, value in model.state_dict().items():
            value = value.full_tensor() if is_sharded(value) else value
            if self.world.main:
                state[name] = value.cpu()
        return state

    def broadcast_buffers(self, *models: nn.Module) -> None:
        """Copy the first rank's buffers to all: running statistics are of each rank's own images."""
        self._broadcast(buffer for model in models for buffer in model.buffers())

    def _broadcast(self, tensors: Iterable[Tensor]) -> None:
        if self.world.size > 1:
            for tensor in tensors:
                torch.distributed.broadcast(tensor.detach(), 0)

    def _convert_sync_batch_norm(self, model: nn.Module) -> None:
        if not self.runtime.sync_batch_norm or self.world.size == 1:
            return
        if self.world.device.type == "cuda":
            nn.SyncBatchNorm.convert_sync_batchnorm(model)
        elif self.world.main and any(isinstance(module, _BatchNorm) for module in model.modules()):
            logging.getLogger(__name__).warning(
                "runtime.sync_batch_norm needs CUDA devices: on the CPU each of the %d processes normalizes "
                "by its own images, and the running statistics of rank 0 are saved",
                self.world.size,
            )
