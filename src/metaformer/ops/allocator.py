"""Let a process keep the memory it frees, so that a training step does not fault the same pages in again."""

import ctypes

# The parameters' numbers in glibc's malloc.h
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3


def keep_freed_memory(largest: int = 1 << 30) -> bool:
    """Serve blocks of up to `largest` bytes from a heap that is not given back, where the C library can.

    Activations of a step are freed and asked for again at the next. By default glibc returns each large block
    to the system and gets zeroed pages for the next one. Other C libraries are left as they are, and False is
    returned. It is for programs to call, not for libraries.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # no glibc
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, largest) and mallopt(M_TRIM_THRESHOLD, largest))
