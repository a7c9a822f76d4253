"""What the processes of a run tell each other, over the CPU; one process alone tells itself."""

from collections.abc import Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor

from metaformer.errors import MetaFormerError, RankError

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


def total(counts: Tensor) -> Tensor:
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


def gather(item: T) -> list[T]:
    """One item of every rank, in rank order."""
    if world_size() == 1:
        return [item]
    items: list[Any] = [None] * world_size()
    torch.distributed.all_gather_object(items, item)
    return items


def collect(items: list[T]) -> list[T]:
    """All ranks' items in one list, in rank order."""
    return [item for part in gather(items) for item in part]


def share_trouble(trouble: Exception | None) -> None:
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
        told = gather(_words(trouble) if failed else None)
        if failed and trouble is not None:
            raise trouble
        culprit = next(number for number, words in enumerate(told) if words is not None)
        raise RankError(culprit, str(told[culprit]))
    if interrupted:
        raise Interrupted


def in_step(items: Iterator[T], count: int) -> Iterator[T]:
    """Yield a rank's items while all ranks keep pace; what befalls one as it makes its item, befalls all.

    Args:
        items: this rank's; it may have fewer than others, and then only keeps pace.
        count: how many the rank with the most has.

    Raises:
        RankError, Interrupted: see `share_trouble`.
    """
    for _ in range(count):
        item, trouble = None, None
        try:
            item = next(items, None)
        except Exception as error:
            trouble = error
        share_trouble(trouble)
        if item is not None:
            yield item


def _words(trouble: Exception | None) -> str:
    return str(trouble) if isinstance(trouble, MetaFormerError) else repr(trouble)
