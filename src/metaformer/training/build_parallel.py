"""How the devices of a run share a model: each has it whole (here), or a part of every tensor (parts.py)."""

from metaformer.config import RuntimeConfig
from metaformer.distributed import World
from metaformer.training.ddp import DataParallel


def build_parallel(runtime: RuntimeConfig, world: World) -> DataParallel:
    """Choose as the configuration says; one device alone has all."""
    if runtime.parallel == "ddp" or world.size == 1:
        return DataParallel(runtime, world)
    from metaformer.training.fsdp import FullyShardedParallel

    return FullyShardedParallel(runtime, world)
