"""This process: its memory, its threads and the signals that stop it; for programs to call, not libraries."""

import ctypes
import gc
import os
import resource
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType

# Parameter numbers in glibc's malloc.h
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


def keep_freed_memory(largest: int = 1 << 30) -> bool:
    """Serve blocks of up to `largest` bytes from a heap that is not given back, where the C library can.

    Activations of a step are freed and asked for again at the next. By default glibc returns each large block
    to the system and gets zeroed pages for the next one. Other C libraries are left as they are, and False is
    returned.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # no glibc
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, largest) and mallopt(M_TRIM_THRESHOLD, largest))


def sleep_rather_than_spin() -> None:
    """Let OpenMP's threads sleep while they wait for each other, unless the environment says otherwise.

    Threads that spin on a core that another process wants can slow a training step down twentyfold. This only
    takes effect before torch is imported.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")


@contextmanager
def paused_gc() -> Iterator[None]:
    """Pause the garbage collector, which would visit millions of objects that all stay, again and again."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def cores() -> int:
    """Number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory() -> int:
    """Bytes of memory that this process may have: the machine's, or less by its own limit (`ulimit -v`)."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return whole if limit == resource.RLIM_INFINITY else min(whole, limit)


class StopSignals:
    """Context that records SIGTERM and SIGINT as a request to stop; a second one ends the process at once.

    `number` is the signal that was received, or 0.
    """

    def __init__(self) -> None:
        self.number = 0
        self._previous: dict[int, object] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():  # Python allows handlers only there
            self._previous = {number: signal.signal(number, self._handle) for number in STOP_SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def requested(self) -> bool:
        """Whether a signal was received."""
        return self.number != 0

    @property
    def exit_status(self) -> int:
        """What a shell expects of a process that a signal ended: 143 for SIGTERM, 130 for SIGINT."""
        return 128 + self.number

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.number:
            os._exit(128 + number)
        self.number = number
