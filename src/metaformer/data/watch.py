"""What each data worker is reading, seen from the main process: so that its end can be told with a name."""

import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch
from torch.utils.data import get_worker_info

Name = Callable[[int], str | Path]


class Watch:
    """A note of each worker in shared memory: which picture, and since when.

    Args:
        workers: how many there are.
    """

    def __init__(self, workers: int) -> None:
        self._index = torch.full((max(workers, 1),), -1, dtype=torch.int64).share_memory_()
        self._since = torch.zeros(max(workers, 1), dtype=torch.float64).share_memory_()

    @contextmanager
    def reading(self, index: int) -> Iterator[None]:
        """Note that this worker reads a picture, for as long as it does."""
        info = get_worker_info()
        worker = 0 if info is None else info.id
        self._index[worker] = index
        self._since[worker] = time.monotonic()
        try:
            yield
        finally:
            self._since[worker] = 0.0

    def tell(self, workers: Sequence[BaseProcess], name: Name) -> str:
        """Say what became of workers that gave no batch: who died at what, or who reads what for how long."""
        dead = [number for number, worker in enumerate(workers) if not worker.is_alive()]
        if dead:
            return "; ".join(self._ended(workers[number], number, name) for number in dead)
        busy = sorted((since, n) for n, since in enumerate(self._since.tolist()) if since)
        now = time.monotonic()
        return "; ".join(
            f"a worker reads {name(int(self._index[number]))} for {now - since:.0f} s"
            for since, number in busy
        )

    def _ended(self, worker: BaseProcess, number: int, name: Name) -> str:
        code = worker.exitcode or 0
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"left with status {code}"
        index = int(self._index[number])
        if index < 0:
            return f"a worker {how} before its first picture"
        return f"a worker {how} {'at' if float(self._since[number]) else 'after'} {name(index)}"
