"""Sums and lists over the ranks of a run; of one process, they are its own."""

from typing import Any

import torch
from torch import Tensor


def world_size() -> int:
    """Number of processes that evaluate together."""
    ready = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_world_size() if ready else 1


def rank() -> int:
    """Number of this process among them."""
    return torch.distributed.get_rank() if world_size() > 1 else 0


def total(counts: Tensor) -> Tensor:
    """Sum a tensor over all ranks."""
    if world_size() > 1:
        counts = counts.clone()
        torch.distributed.all_reduce(counts)
    return counts


def collect(items: list[Any]) -> list[Any]:
    """All ranks' items, in rank order."""
    if world_size() == 1:
        return items
    parts: list[list[Any]] = [[] for _ in range(world_size())]
    torch.distributed.all_gather_object(parts, items)
    return [item for part in parts for item in part]
