"""The processes of a run: one, or as many as torchrun started."""

import atexit
import gc
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch

from metaformer.errors import ConfigError, MetaFormerError, RankError


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
def losing_no_words(world: World) -> Iterator[None]:
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
