"""The processes of a run: one, or as many as torchrun started."""

import atexit
import os
from dataclasses import dataclass

import torch
from torch import Tensor

from metaformer.errors import ConfigError


@dataclass(frozen=True)
class World:
    """This process among the run's."""

    rank: int = 0
    local_rank: int = 0
    size: int = 1
    device: torch.device = torch.device("cpu")  # noqa: RUF009 - a device is a value

    @property
    def main(self) -> bool:
        """Tell whether this process writes and prints."""
        return self.rank == 0

    def barrier(self) -> None:
        """Wait for all processes."""
        if self.size > 1:
            torch.distributed.barrier()

    def mean(self, value: Tensor) -> Tensor:
        """Average a tensor over the processes."""
        if self.size > 1:
            value = value.clone()
            torch.distributed.all_reduce(value)
            value /= self.size
        return value

    def any(self, *flags: bool) -> list[bool]:
        """Say, for each flag, whether any process raised it; all processes get the same answer."""
        if self.size == 1:
            return list(flags)
        raised = torch.tensor(flags, dtype=torch.int32, device=self.device)
        torch.distributed.all_reduce(raised, op=torch.distributed.ReduceOp.MAX)
        return [bool(flag) for flag in raised.tolist()]

    def gather(self, item: object) -> list[object]:
        """All processes' objects, in rank order."""
        if self.size == 1:
            return [item]
        items: list[object] = [None] * self.size
        torch.distributed.all_gather_object(items, item)
        return items


def find_device(name: str, local_rank: int = 0) -> torch.device:
    """Turn `auto`, `cpu`, `cuda` or `cuda:N` into a device that is there.

    Raises:
        ConfigError: no such device.
    """
    cuda = torch.cuda.is_available()
    if name == "auto":
        name = "cuda" if cuda else "cpu"
    if name == "cuda":
        name = f"cuda:{local_rank}"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"device: {name!r} is none of auto, cpu, cuda, cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"device: {name!r} is none of auto, cpu, cuda, cuda:N")
    if device.type == "cuda" and (not cuda or (device.index or 0) >= torch.cuda.device_count()):
        there = f"{torch.cuda.device_count()} CUDA devices are" if cuda else "PyTorch finds no CUDA device"
        raise ConfigError(f"device: {name!r} is not there ({there} available); 'auto' takes what there is")
    return device


def join(device: str) -> World:
    """Enter the group of processes that torchrun described in the environment, if it did.

    The group stays till the process ends: a second one, made on the same address while the first is being
    taken down, can hang.

    Raises:
        ConfigError: no such device.
    """
    rank, local, size = (int(os.environ.get(key, first)) for key, first in _ENVIRONMENT)
    world = World(rank, local, size, find_device(device, local))
    if world.device.type == "cuda":
        torch.cuda.set_device(world.device)
    if size > 1 and not torch.distributed.is_initialized():
        # counts of an evaluation are summed on the CPU whatever the model runs on
        torch.distributed.init_process_group("cpu:gloo,cuda:nccl" if world.device.type == "cuda" else "gloo")
        atexit.register(_leave)
    return world


def _leave() -> None:
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


_ENVIRONMENT = (("RANK", 0), ("LOCAL_RANK", 0), ("WORLD_SIZE", 1))
