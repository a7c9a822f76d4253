"""Monitoring of data workers: what each is reading, and a watchdog for those that hang."""

import os
import signal
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch
from torch.utils.data import get_worker_info

NameOf = Callable[[int], str | Path]
"""Name of the image at an index."""


class WorkerMonitor:
    """Shared memory in which each worker notes the image that it reads, and since when.

    Args:
        workers: number of workers.
    """

    def __init__(self, workers: int) -> None:
        self._index = torch.full((max(workers, 1),), -1, dtype=torch.int64).share_memory_()
        self._since = torch.zeros(max(workers, 1), dtype=torch.float64).share_memory_()

    @contextmanager
    def reading(self, index: int) -> Iterator[None]:
        """Note that this worker is reading the image at an index."""
        info = get_worker_info()
        worker = 0 if info is None else info.id
        self._index[worker] = index
        self._since[worker] = time.monotonic()
        try:
            yield
        finally:
            self._since[worker] = 0.0

    def describe(self, workers: Sequence[BaseProcess], name: NameOf) -> str:
        """Why no batch comes: which workers died or were stopped at which image, else what each reads."""
        dead = [number for number, worker in enumerate(workers) if not worker.is_alive()]
        if dead:
            return "; ".join(self._death(workers[number], number, name) for number in dead)
        stopped = [number for number, worker in enumerate(workers) if _is_stopped(worker)]
        if stopped:
            return "; ".join(f"a worker {self._at(number, name)} is held by a signal" for number in stopped)
        busy = sorted((since, n) for n, since in enumerate(self._since.tolist()) if since)
        now = time.monotonic()
        return "; ".join(
            f"a worker reads {name(int(self._index[number]))} for {now - since:.0f} s"
            for since, number in busy
        )

    def _death(self, worker: BaseProcess, number: int, name: NameOf) -> str:
        code = worker.exitcode or 0
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"left with status {code}"
        return f"a worker {how} {self._at(number, name)}"

    def _at(self, number: int, name: NameOf) -> str:
        index = int(self._index[number])
        if index < 0:
            return "before its first image"
        return f"{'at' if float(self._since[number]) else 'after'} {name(index)}"


class Watchdog:
    """Thread that kills the workers when a wait for them has no timeout of its own and lasts too long.

    A worker that is stopped while it hands over a batch causes one: PyTorch waits for its file descriptor.

    Args:
        workers: the processes.
        timeout: seconds that a wait may last.
        describe: why no batch comes; called before the workers are killed.
    """

    def __init__(self, workers: Sequence[BaseProcess], timeout: float, describe: Callable[[], str]) -> None:
        self.workers, self.timeout, self.describe = workers, timeout, describe
        self.report: str | None = None
        """What `describe` returned, once the workers have been killed."""
        self._since: float | None = None
        self._closed = threading.Event()
        # A weak reference, so that the thread ends with a loader that was never closed.
        arguments = (weakref.ref(self), self._closed)
        threading.Thread(target=_poll, args=arguments, name="watchdog", daemon=True).start()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Guard a wait for a worker."""
        self._since = time.monotonic()
        try:
            yield
        finally:
            self._since = None

    def close(self) -> None:
        """Stop the thread."""
        self._closed.set()

    def check(self) -> None:
        """Kill the workers if the wait has lasted too long."""
        since = self._since
        if since is not None and time.monotonic() - since > self.timeout:
            self.report = self.describe()
            for worker in self.workers:
                worker.kill()
            self.close()


def _poll(reference: "weakref.ref[Watchdog]", closed: threading.Event) -> None:
    while not closed.wait(1.0) and (watchdog := reference()) is not None:
        watchdog.check()
        del watchdog


def _is_stopped(worker: BaseProcess) -> bool:
    """Whether a child process is stopped by SIGSTOP."""
    if worker.pid is None or not hasattr(os, "waitid"):
        return False
    try:
        return os.waitid(os.P_PID, worker.pid, os.WSTOPPED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return False
