"""What the processes of a run tell each other, over the CPU; one process alone tells itself."""

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


class Interrupted(Exception):
    """A wait that a wish to stop has ended; nobody is told of it, the run saves itself and leaves."""


def world_size() -> int:
    """Number of processes that work together."""
    ready = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_world_size() if ready else 1


def rank() -> int:
    """Number of this process among them."""
    return torch.distributed.get_rank() if world_size() > 1 else 0


def barrier() -> None:
    """Wait for all ranks."""
    if world_size() > 1:
        torch.distributed.barrier()


def all_reduce_sum(counts: Tensor) -> Tensor:
    """Sum a tensor over all ranks."""
    if world_size() > 1:
        counts = counts.clone()
        torch.distributed.all_reduce(counts)
    return counts


def any_rank(*flags: bool) -> list[bool]:
    """Say, for each flag, whether any rank raised it; all ranks get the same answer."""
    if world_size() == 1:
        return list(flags)
    raised = torch.tensor(flags, dtype=torch.int32)
    torch.distributed.all_reduce(raised, op=torch.distributed.ReduceOp.MAX)
    return [bool(flag) for flag in raised.tolist()]


def all_gather_object(item: T) -> list[T]:
    """One item of every rank, in rank order."""
    if world_size() == 1:
        return [item]
    items: list[Any] = [None] * world_size()
    torch.distributed.all_gather_object(items, item)
    return items


def all_gather_list(items: list[T]) -> list[T]:
    """All ranks' items in one list, in rank order."""
    return [item for part in all_gather_object(items) for item in part]


def raise_on_all_ranks(trouble: Exception | None) -> None:
    """Raise on every rank what befell one of them, so that none waits for a rank that has left.

    Args:
        trouble: what this rank caught, if anything.

    Raises:
        RankError: on the ranks whose own work went well; it says which rank failed, and of what.
        Interrupted: some rank was asked to stop, and none failed.
    """
    if world_size() == 1:
        if trouble is not None:
            raise trouble
        return
    failed = trouble is not None and not isinstance(trouble, Interrupted)
    failure, interrupted = any_rank(failed, isinstance(trouble, Interrupted))
    if failure:
        told = all_gather_object(_words(trouble) if failed else None)
        if failed and trouble is not None:
            raise trouble
        culprit = next(number for number, words in enumerate(told) if words is not None)
        raise RankError(culprit, str(told[culprit]))
    if interrupted:
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
    """Yield a rank's items while all ranks keep pace; what befalls one as it makes its item, befalls all.

    Args:
        items: this rank's; it may have fewer than others, and then only keeps pace.
        count: how many the rank with the most has.

    Raises:
        RankError, Interrupted: see `raise_on_all_ranks`.
    """
    for _ in range(count):
        item, trouble = None, None
        try:
            item = next(items, None)
        except Exception as error:
            trouble = error
        raise_on_all_ranks(trouble)
        if item is not None:
            yield item


def _words(trouble: Exception | None) -> str:
    return str(trouble) if isinstance(trouble, MetaFormerError) else repr(trouble)


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


def find_world(device: str) -> World:
    """Read from the environment which of how many processes this is, as torchrun and its like set it.

    Raises:
        ConfigError: no such device.
    """
    rank, local, size = (int(os.environ.get(key, first)) for key, first in _ENVIRONMENT)
    return World(rank, local, size, find_device(device, local))


def join(device: str, timeout: float = 600.0) -> World:
    """Enter the group of processes that torchrun described in the environment, if it did.

    Args:
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        timeout: seconds that a process waits for the others.

    The group stays till the process ends: a second one, made on the same address while the first is being
    taken down, can hang.

    Raises:
        ConfigError: no such device.
    """
    world = find_world(device)
    if world.device.type == "cuda":
        torch.cuda.set_device(world.device)
    if world.size > 1 and not torch.distributed.is_initialized():
        # what ranks tell each other goes over the CPU, whatever the model runs on
        backend = "cpu:gloo,cuda:nccl" if world.device.type == "cuda" else "gloo"
        torch.distributed.init_process_group(backend, timeout=timedelta(seconds=timeout))
        atexit.register(_leave)
    return world


def _leave() -> None:
    if torch.distributed.is_initialized():
        gc.collect()  # a DistributedDataParallel that outlives the group can abort the process as it ends
        torch.distributed.destroy_process_group()


LOST = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Broken pipe",
    "Timed out waiting",
    "timeout",
)
"""Words in the errors of torch.distributed that tell of a process that is gone or does not answer."""


PAUSE = 5.0
"""Seconds before a process that lost another one leaves: the launcher names the first that it sees end."""


@contextmanager
def merge_connection_errors(world: World) -> Iterator[None]:
    """Turn the many errors that the loss of another process causes into one.

    A process that only suffers from another's failure waits a moment, so that the launcher finds the one
    whose failure it was.

    Raises:
        RankError: another process failed or is gone.
    """
    try:
        yield
    except RankError:
        time.sleep(PAUSE)
        raise
    except RuntimeError as error:
        if world.size == 1 or isinstance(error, MetaFormerError) or not any(w in str(error) for w in LOST):
            raise
        time.sleep(PAUSE)
        words = " ".join(str(error).split())
        raise RankError(
            None, f"lost contact with another process of the run, whose own message tells why ({words[:200]})"
        ) from error


_ENVIRONMENT = (("RANK", 0), ("LOCAL_RANK", 0), ("WORLD_SIZE", 1))


def is_sharded(tensor: object) -> bool:
    """Tell whether a tensor is shared out over the ranks (a DTensor, whose package is slow to import)."""
    return hasattr(tensor, "to_local")


def local(tensor: Any) -> Tensor:
    """This rank's part of a tensor that is shared out; else the tensor."""
    part: Tensor = tensor.to_local() if is_sharded(tensor) else tensor
    return part
