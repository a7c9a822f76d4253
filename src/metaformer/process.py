"""How a program's process deals with memory and with its neighbors; for programs to call, not libraries."""

import ctypes
import os

# The parameters' numbers in glibc's malloc.h
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3


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


def cores() -> int:
    """Number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
