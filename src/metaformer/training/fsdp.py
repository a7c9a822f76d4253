"""FSDP2: each device keeps a part of every tensor, and has a block whole only while it computes with it."""

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
from metaformer.training.ddp import DataParallel

PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16}


class FullyShardedParallel(DataParallel):
    """Parameters, gradients and optimizer state are shared out (fully sharded data parallel)."""

    sharded = True

    def __init__(self, runtime: RuntimeConfig, world: World) -> None:
        super().__init__(runtime, world)
        self.mesh = init_device_mesh(world.device.type, (world.size,))

    def place(self, model: nn.Module) -> None:
        """Share out a model's parameters, each block's and then the rest; buffers stay with every rank."""
        model.to(memory_format=torch.contiguous_format)  # rows are dealt out
        self._share([*model.parameters(), *model.buffers()])
        policy = self._policy(model)
        for module in [module for module in model.modules() if isinstance(module, Block)]:
            fully_shard(module, mesh=self.mesh, mp_policy=policy, reshard_after_forward=True)
        # the rest is needed again as soon as the backward pass begins
        fully_shard(model, mesh=self.mesh, mp_policy=policy, reshard_after_forward=False)

    def wrap(self, model: nn.Module) -> nn.Module:
        """Share out the model that learns; it is compiled block by block, between the exchanges."""
        self._convert_batch_norm(model)
        if self.runtime.compile:
            for module in model.modules():
                if isinstance(module, Block):
                    module.compile()
        self.place(model)
        return model

    def synchronized(self, model: nn.Module, last: bool) -> AbstractContextManager[object]:
        """Around a micro-batch's two passes: devices exchange gradients with the last one only."""
        assert isinstance(model, FSDPModule)
        model.set_requires_gradient_sync(last)
        return nullcontext()

    @contextmanager
    def gathered(self, model: nn.Module) -> Iterator[None]:
        """While each rank runs the model on its own, as often as it likes: all of it is on every device."""
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

    def _policy(self, model: nn.Module) -> MixedPrecisionPolicy:
        """Send what autocast rounds anyway in half the bytes, and the rest as it is."""
        low = PRECISIONS.get(self.runtime.amp)
        known = {field.name for field in fields(MixedPrecisionPolicy)}
        if low is None or "param_dtype_override_fn" not in known:  # PyTorch 2.15 or later
            return MixedPrecisionPolicy(cast_forward_inputs=False)
        rounded = {
            id(parameter)
            for module in model.modules()
            if isinstance(module, nn.Conv2d | nn.Linear)
            for parameter in module.parameters(recurse=False)
        }

        def kept(parameter: nn.Parameter) -> torch.dtype | None:
            return None if id(parameter) in rounded else parameter.dtype

        chosen: dict[str, Any] = {"param_dtype_override_fn": kept}
        return MixedPrecisionPolicy(low, torch.float32, cast_forward_inputs=False, **chosen)
