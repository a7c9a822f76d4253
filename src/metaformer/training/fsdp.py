"""FSDP2: parameters are sharded over the devices; a block is gathered only while it computes."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import fields
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from metaformer.backbones.block import Block
from metaformer.config import RuntimeConfig
from metaformer.distributed import World
from metaformer.models.base import PRECISIONS
from metaformer.training.ddp import DataParallel


class FullyShardedParallel(DataParallel):
    """Fully sharded data parallelism: parameters, gradients and optimizer state are sharded."""

    sharded = True

    def __init__(self, runtime: RuntimeConfig, world: World) -> None:
        super().__init__(runtime, world)
        self.mesh = init_device_mesh(world.device.type, (world.size,))

    def shard(self, model: nn.Module) -> None:
        """Shard a model's parameters, block by block and then the rest; buffers stay on every rank."""
        model.to(memory_format=torch.contiguous_format)  # shards are rows
        self._broadcast([*model.parameters(), *model.buffers()])
        policy = self._mixed_precision(model)
        for module in [module for module in model.modules() if isinstance(module, Block)]:
            fully_shard(module, mesh=self.mesh, mp_policy=policy, reshard_after_forward=True)
        # the rest is needed again as soon as the backward pass starts
        fully_shard(model, mesh=self.mesh, mp_policy=policy, reshard_after_forward=False)

    def wrap(self, model: nn.Module) -> nn.Module:
        """Shard the model that is trained; it is compiled block by block, between the all-gathers."""
        self._convert_sync_batch_norm(model)
        if self.runtime.compile:
            for module in model.modules():
                if isinstance(module, Block):
                    module.compile()
        self.shard(model)
        return model

    def gradient_sync(self, model: nn.Module, last: bool) -> AbstractContextManager[object]:
        """Context of a micro-batch's forward and backward pass: only the last one reduces gradients."""
        assert isinstance(model, FSDPModule)
        model.set_requires_gradient_sync(last)
        return nullcontext()

    @contextmanager
    def summon_full_params(self, model: nn.Module) -> Iterator[None]:
        """Context in which each rank holds the full parameters and may run the model on its own."""
        units = [module for module in model.modules() if isinstance(module, FSDPModule)]
        for unit in units:
            unit.set_reshard_after_forward(False, recurse=False)
            unit.unshard()
        try:
            yield
        finally:
            for unit in units:
                unit.set_reshard_after_forward(unit is not model, recurse=False)
                unit.reshard()

    def _mixed_precision(self, model: nn.Module) -> MixedPrecisionPolicy:
        """Gather what autocast casts anyway (weights of convolutions and linear layers) in low precision."""
        low = PRECISIONS[self.runtime.amp]
        known = {field.name for field in fields(MixedPrecisionPolicy)}
        if low is None or "param_dtype_override_fn" not in known:  # PyTorch 2.15 or later
            return MixedPrecisionPolicy(cast_forward_inputs=False)
        autocasted = {
            id(parameter)
            for module in model.modules()
            if isinstance(module, nn.Conv2d | nn.Linear)
            for parameter in module.parameters(recurse=False)
        }

        def own_dtype(parameter: nn.Parameter) -> torch.dtype | None:
            return None if id(parameter) in autocasted else parameter.dtype

        override: dict[str, Any] = {"param_dtype_override_fn": own_dtype}
        return MixedPrecisionPolicy(low, torch.float32, cast_forward_inputs=False, **override)
