"""A file that one process at a time can hold; the operating system lets go of it when that process ends."""

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from metaformer.errors import OutputError

PATIENCE = 10.0
"""Seconds to wait for a holder: the data workers of a killed process hold its files till they notice."""


@contextmanager
def lock(file: Path, what: str, patience: float | None = None) -> Iterator[None]:
    """Hold a file, made where it is missing, so that no two processes write the same thing.

    Args:
        file: what is held.
        what: what is written meanwhile, for the message.
        patience: seconds to wait for another process to let go; PATIENCE when not given.

    Raises:
        OutputError: another process holds it, or it cannot be made.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        stream = file.open("a")
    except OSError as error:
        raise OutputError(f"{file.parent}: cannot make this folder ({error.strerror})") from error
    with stream:
        until = time.monotonic() + (PATIENCE if patience is None else patience)
        while not (held := _take(stream, fcntl.LOCK_EX)) and time.monotonic() < until:
            time.sleep(0.2)
        if not held:
            raise OutputError(f"{what}: another process is writing it: wait for that one, or stop it")
        yield


def is_held(file: Path) -> bool:
    """Tell whether some process holds a file; makes none."""
    try:
        with file.open() as stream:
            return not _take(stream, fcntl.LOCK_SH)
    except OSError:
        return False


def _take(stream: TextIO, kind: int) -> bool:
    try:
        fcntl.flock(stream, kind | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
