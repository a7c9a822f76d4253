"""Collectives of a run's processes, over the CPU; without a process group each is the identity."""

import atexit
import gc
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor

from metaformer.errors import ConfigError, MetaFormerError, RankError

T = TypeVar("T")
LOST = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Broken pipe",
    "Timed out waiting",
    "timeout",
)
"""Parts of torch.distributed's messages about a process that is gone or does not answer."""
PAUSE = 5.0
"""Seconds that a process which lost another one waits: the launcher names the first that ends."""


class Interrupted(Exception):
    """A wait that a request to stop has ended; the run saves itself and ends without an error."""


@dataclass(frozen=True)
class World:
    """This process among those of the run."""

    rank: int = 0
    local_rank: int = 0
    size: int = 1
    device: torch.device = torch.device("cpu")  # noqa: RUF009 - a device is a value

    @property
    def main(self) -> bool:
        """Whether this process writes and prints."""
        return self.rank == 0


def find_device(name: str, local_rank: int = 0) -> torch.device:
    """Resolve `auto`, `cpu`, `cuda` or `cuda:N` to an existing device.

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
        device = None
    if device is not None and device.type in ("mps", "xpu", "hpu", "xla"):
        raise ConfigError(f"device: {name!r} is not supported, only cpu and CUDA's devices are; set cpu")
    if device is None or device.type not in ("cpu", "cuda"):
        raise ConfigError(f"device: {name!r} is none of auto, cpu, cuda, cuda:N")
    if device.type == "cuda" and (not cuda or (device.index or 0) >= torch.cuda.device_count()):
        found = f"{torch.cuda.device_count()} CUDA devices are" if cuda else "PyTorch finds no CUDA device"
        raise ConfigError(f"device: {name!r} is not there ({found} available); 'auto' uses what there is")
    return device


def find_world(device: str) -> World:
    """Read rank and world size from the environment, as torchrun and the like set it.

    Raises:
        ConfigError: no such device.
    """
    defaults = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1}
    own, local_rank, size = (int(os.environ.get(key, value)) for key, value in defaults.items())
    return World(own, local_rank, size, find_device(device, local_rank))


def join(device: str, timeout: float = 600.0) -> World:
    """Join the process group that torchrun described in the environment, if it did.

    The group lasts until the process ends: a second one on the same address can hang while the first is being
    destroyed.

    Args:
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        timeout: seconds that a process waits for the others.

    Raises:
        ConfigError: no such device.
    """
    world = find_world(device)
    if world.device.type == "cuda":
        torch.cuda.set_device(world.device)
    if world.size > 1 and not torch.distributed.is_initialized():
        # the collectives of this file go over the CPU, whatever the model runs on
        backend = "cpu:gloo,cuda:nccl" if world.device.type == "cuda" else "gloo"
        torch.distributed.init_process_group(backend, timeout=timedelta(seconds=timeout))
        atexit.register(_leave)
    return world


def _leave() -> None:
    if torch.distributed.is_initialized():
        gc.collect()  # a DistributedDataParallel that outlives the group can abort the process as it ends
        torch.distributed.destroy_process_group()


def world_size() -> int:
    """Number of processes."""
    ready = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_world_size() if ready else 1


def rank() -> int:
    """Rank of this process."""
    return torch.distributed.get_rank() if world_size() > 1 else 0


def barrier() -> None:
    """Wait for all ranks."""
    if world_size() > 1:
        torch.distributed.barrier()


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """Sum of a tensor over all ranks."""
    if world_size() > 1:
        tensor = tensor.clone()
        torch.distributed.all_reduce(tensor)
    return tensor


def any_rank(*flags: bool) -> list[bool]:
    """Whether any rank has each flag set; the same on all ranks."""
    if world_size() == 1:
        return list(flags)
    raised = torch.tensor(flags, dtype=torch.int32)
    torch.distributed.all_reduce(raised, op=torch.distributed.ReduceOp.MAX)
    return [bool(flag) for flag in raised.tolist()]


def all_gather_object(item: T) -> list[T]:
    """The items of all ranks, in rank order."""
    if world_size() == 1:
        return [item]
    items: list[Any] = [None] * world_size()
    torch.distributed.all_gather_object(items, item)
    return items


def all_gather_list(items: list[T]) -> list[T]:
    """The lists of all ranks, concatenated in rank order."""
    return [item for part in all_gather_object(items) for item in part]


def raise_on_all_ranks(error: Exception | None) -> None:
    """Raise the error of one rank on every rank, so that none waits for a rank that has left.

    Args:
        error: what this rank caught, if anything.

    Raises:
        RankError: on the other ranks; it names the rank that failed and its error.
        Interrupted: some rank was asked to stop, and none failed.
    """
    if world_size() == 1:
        if error is not None:
            raise error
        return
    failed = error is not None and not isinstance(error, Interrupted)
    any_failed, any_interrupted = any_rank(failed, isinstance(error, Interrupted))
    if any_failed:
        messages = all_gather_object(_message(error) if failed else None)
        if failed and error is not None:
            raise error
        first = next(number for number, message in enumerate(messages) if message is not None)
        raise RankError(first, str(messages[first]))
    if any_interrupted:
        raise Interrupted


@contextmanager
def errors_on_all_ranks(*kinds: type[Exception]) -> Iterator[None]:
    """Context whose errors of these kinds are raised on every rank; see `raise_on_all_ranks`."""
    caught: Exception | None = None
    try:
        yield
    except kinds as error:
        caught = error
    raise_on_all_ranks(caught)


def lockstep(items: Iterator[T], count: int) -> Iterator[T]:
    """Yield a rank's items in step with the other ranks; an error of one rank is raised on all.

    Args:
        items: this rank's items; it may have fewer than others.
        count: number of items of the rank with the most.

    Raises:
        RankError, Interrupted: see `raise_on_all_ranks`.
    """
    for _ in range(count):
        item = None
        with errors_on_all_ranks(Exception):
            item = next(items, None)
        if item is not None:
            yield item


@contextmanager
def merge_connection_errors(world: World) -> Iterator[None]:
    """Turn the many errors that the loss of another process causes into one.

    A process that fails because of another one pauses before it ends, so that the launcher names the other.

    Raises:
        RankError: another process failed or is gone.
    """
    try:
        yield
    except RankError:
        time.sleep(PAUSE)
        raise
    except RuntimeError as error:
        lost = any(part in str(error) for part in LOST)
        if world.size == 1 or isinstance(error, MetaFormerError) or not lost:
            raise
        time.sleep(PAUSE)
        message = " ".join(str(error).split())[:200]
        raise RankError(
            None, f"lost contact with another process of the run, whose own message says why ({message})"
        ) from error


def is_sharded(tensor: object) -> bool:
    """Whether a tensor is sharded over the ranks: a DTensor, whose module is slow to import."""
    return hasattr(tensor, "to_local")


def local(tensor: Any) -> Tensor:
    """This rank's shard of a sharded tensor; else the tensor."""
    shard: Tensor = tensor.to_local() if is_sharded(tensor) else tensor
    return shard


def _message(error: Exception | None) -> str:
    return str(error) if isinstance(error, MetaFormerError) else repr(error)
