"""What each data worker is reading, seen from the main process: so that its end can be told with a name."""

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

Name = Callable[[int], str | Path]


class WorkerMonitor:
    """A note of each worker in shared memory: which image, and since when.

    Args:
        workers: how many there are.
    """

    def __init__(self, workers: int) -> None:
        self._index = torch.full((max(workers, 1),), -1, dtype=torch.int64).share_memory_()
        self._since = torch.zeros(max(workers, 1), dtype=torch.float64).share_memory_()

    @contextmanager
    def reading(self, index: int) -> Iterator[None]:
        """Note that this worker reads an image, for as long as it does."""
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
        held = [number for number, worker in enumerate(workers) if _is_stopped(worker)]
        if held:
            return "; ".join(f"a worker {self._at(number, name)} is held by a signal" for number in held)
        busy = sorted((since, n) for n, since in enumerate(self._since.tolist()) if since)
        now = time.monotonic()
        return "; ".join(
            f"a worker reads {name(int(self._index[number]))} for {now - since:.0f} s"
            for since, number in busy
        )

    def _ended(self, worker: BaseProcess, number: int, name: Name) -> str:
        code = worker.exitcode or 0
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"left with status {code}"
        return f"a worker {how} {self._at(number, name)}"

    def _at(self, number: int, name: Name) -> str:
        index = int(self._index[number])
        if index < 0:
            return "before its first image"
        return f"{'at' if float(self._since[number]) else 'after'} {name(index)}"


class Watchdog:
    """Ends workers that hold the main process in a call without a time limit.

    One that is stopped while it hands over a batch does so: PyTorch asks it for a file descriptor, and waits.

    Args:
        workers: the processes.
        patience: seconds that a wait may last.
        tell: says what became of them; asked before they are ended.
    """

    def __init__(self, workers: Sequence[BaseProcess], patience: float, tell: Callable[[], str]) -> None:
        self.workers, self.patience, self.tell = workers, patience, tell
        self.told: str | None = None
        """What was said, once they have been ended."""
        self._since: float | None = None
        self._over = threading.Event()
        own = weakref.ref(self)  # so that it ends with the loader that nobody has closed
        threading.Thread(target=_look, args=(own, self._over), name="release", daemon=True).start()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Around a wait for a worker."""
        self._since = time.monotonic()
        try:
            yield
        finally:
            self._since = None

    def close(self) -> None:
        """Look no longer."""
        self._over.set()

    def look(self) -> None:
        """End the workers if the wait has lasted too long."""
        since = self._since
        if since is not None and time.monotonic() - since > self.patience:
            self.told = self.tell()
            for worker in self.workers:
                worker.kill()
            self.close()


def _look(at: "weakref.ref[Watchdog]", over: threading.Event) -> None:
    while not over.wait(1.0) and (release := at()) is not None:
        release.look()
        del release


def _is_stopped(worker: BaseProcess) -> bool:
    """Tell whether a child is held by SIGSTOP."""
    if worker.pid is None or not hasattr(os, "waitid"):
        return False
    try:
        return os.waitid(os.P_PID, worker.pid, os.WSTOPPED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return False
