"""A file that appears under its name only when it is complete."""

import contextlib
import fcntl
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, TextIO

from safetensors import SafetensorError

from metaformer.errors import MetaFormerError, OutputError


@contextmanager
def whole_file(path: Path) -> Iterator[TextIO]:
    """Open a text file for writing; an error inside leaves what was there before.

    Raises:
        OutputError: it cannot be written.
    """
    with _draft(path) as draft, draft.open("w", encoding="utf-8", newline="") as stream:
        yield stream
        stream.flush()
        os.fsync(stream.fileno())


@contextmanager
def whole_bytes(path: Path) -> Iterator[BinaryIO]:
    """Do the same for a file of bytes, which can also be read and sought in.

    Raises:
        OutputError: it cannot be written.
    """
    with _draft(path) as draft, draft.open("w+b") as stream:
        yield stream
        stream.flush()
        os.fsync(stream.fileno())


@contextmanager
def _draft(path: Path) -> Iterator[Path]:
    check_replaceable(path)
    draft = path.with_name(f".tmp-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield draft
        draft.replace(path)
    except BaseException as error:
        with suppress(OSError):
            draft.unlink(missing_ok=True)
        if isinstance(error, OSError) and not isinstance(error, MetaFormerError):
            raise OutputError(f"{path}: cannot write ({error.strerror or error})") from error
        raise


def check_place(path: Path) -> None:
    """Find out before long work whether `whole_file` could write there.

    Raises:
        OutputError: it could not.
    """
    check_replaceable(path)
    probe = path.with_name(f".tmp-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise OutputError(f"{path}: cannot write ({error.strerror or error})") from error


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


def cache_dir() -> Path:
    """`$METAFORMER_HOME`, or `metaformer` in `$XDG_CACHE_HOME` or ~/.cache."""
    home = os.environ.get("METAFORMER_HOME")
    if home:
        return Path(home).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "metaformer"


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` make a file beside `path` and move it there, so that `path` is whole or as it was.

    Raises:
        OutputError: the place cannot be written to.
    """
    check_replaceable(path)
    try:
        with _beside(path) as place:
            write(place)
            unlock(place)
            sync(place)
            os.replace(place, path)
        sync(path.parent)
    except (OSError, SafetensorError, RuntimeError) as error:
        raise OutputError(f"{path}: cannot be written ({error})") from error


def check_replaceable(path: Path) -> None:
    """Refuse a name that a whole file cannot be moved to; a device would be replaced by a file.

    Raises:
        OutputError: there is something there that is no ordinary file.
    """
    if path.exists() and not path.is_file():
        raise OutputError(f"{path}: cannot be written (it is no ordinary file)")


def unlock(path: Path) -> None:
    """Give a file that was made private, as mkstemp and safetensors do, the access of the user's own mask."""
    mask = os.umask(0)
    os.umask(mask)
    os.chmod(path, 0o666 & ~mask)


def sync(path: Path) -> None:
    """Make a file or directory reach the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def _beside(path: Path) -> Iterator[Path]:
    """A new file's name in the same directory; what is left of it is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    os.close(handle)
    try:
        yield Path(name)
    finally:
        Path(name).unlink(missing_ok=True)


class FileNames:
    """Give each image the name of its own file without ending, numbered where two would be the same.

    Names that differ in capitals only count as the same: some file systems think so.
    """

    def __init__(self) -> None:
        self._taken: set[str] = set()

    def of(self, path: str | Path) -> str:
        """A name that was not given before; `image` for an image in memory, whose path is empty."""
        return self.unlike(Path(path).stem or "image")

    def unlike(self, wanted: str) -> str:
        """This name, or with the first number that makes it one that was not given before."""
        name, number = wanted, 1
        while name.casefold() in self._taken:
            number += 1
            name = f"{wanted}_{number}"
        self._taken.add(name.casefold())
        return name
