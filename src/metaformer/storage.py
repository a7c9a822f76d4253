"""Atomic files, locks and the cache directory."""

import hashlib
import logging
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, TextIO

from metaformer.errors import MetaFormerError, OutputError

TEMPORARY = ".tmp-"
"""First part of the name of what is not complete yet."""
MAX_NAME = 200
"""Bytes of an output's name without its ending; file systems take 255."""
PATIENCE = 10.0
"""Seconds to wait for a lock, which may outlive a killed process by as much as its data workers do."""


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Path of a temporary file beside `path`, which replaces it at the end; an error leaves `path` as it was.

    Raises:
        OutputError: it cannot be written.
    """
    check_replaceable(path)
    temporary = path.with_name(f"{TEMPORARY}{secrets.token_hex(8)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        sync(temporary)
        temporary.replace(path)
        sync(path.parent)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and not isinstance(error, MetaFormerError):
            raise OutputError(f"{path}: cannot write ({error.strerror or error})") from error
        raise


@contextmanager
def atomic_text(path: Path) -> Iterator[TextIO]:
    """Open a UTF-8 text file that appears under its name once it is complete; see `atomic_path`."""
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as stream:
        yield stream


@contextmanager
def atomic_bytes(path: Path) -> Iterator[BinaryIO]:
    """The same for bytes; the stream can also be read and sought in."""
    with atomic_path(path) as temporary, temporary.open("w+b") as stream:
        yield stream


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file as `atomic_text` does."""
    with atomic_text(path) as stream:
        stream.write(text)


def check_writable(path: Path) -> None:
    """Check before long work that `atomic_path` can write there.

    Raises:
        OutputError: it cannot.
    """
    check_replaceable(path)
    probe = path.with_name(f"{TEMPORARY}{secrets.token_hex(8)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise OutputError(f"{path}: cannot write ({error.strerror or error})") from error


def check_replaceable(path: Path) -> None:
    """Refuse to replace anything but an ordinary file, such as a device.

    Raises:
        OutputError: `path` is something else.
    """
    if path.exists() and not path.is_file():
        raise OutputError(f"{path}: cannot write (it is no ordinary file)")


def apply_umask(path: Path) -> None:
    """Give a file that was created private, as safetensors does, the access that the user's umask allows."""
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


@contextmanager
def lock(file: Path, what: str, patience: float | None = None) -> Iterator[None]:
    """Hold a lock file, so that no two processes write the same thing; it ends with the process.

    Args:
        file: the lock file; it is created where it is missing.
        what: what is written meanwhile, for the message.
        patience: seconds to wait for another process; PATIENCE by default.

    Raises:
        OutputError: another process holds it, or it cannot be created.
    """
    from filelock import FileLock, Timeout

    timeout = PATIENCE if patience is None else patience
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        held = FileLock(file, timeout=timeout, poll_interval=0.2, fallback_to_soft=False)
        held.acquire()
    except Timeout:
        raise OutputError(f"{what}: another process is writing it: wait for that one, or stop it") from None
    except OSError as error:
        raise OutputError(f"{file.parent}: cannot write here ({error.strerror})") from error
    try:
        yield
    finally:
        held.release()


def is_held(file: Path) -> bool:
    """Whether some process holds a lock file; it is not created."""
    from filelock import lock_descriptor

    try:
        with file.open() as stream:
            return not lock_descriptor(stream.fileno(), blocking=False)
    except OSError:
        return False


def cache_dir() -> Path:
    """`$METAFORMER_HOME`, or `metaformer` in `$XDG_CACHE_HOME` or ~/.cache.

    Raises:
        OutputError: the user has no home directory, as in a container that runs under a bare number.
    """
    home = os.environ.get("METAFORMER_HOME")
    folder = home or os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "metaformer")
    try:
        return Path(folder).expanduser()
    except RuntimeError as error:
        raise OutputError(f"{folder}: no such home directory; set METAFORMER_HOME to a folder") from error


_log = logging.getLogger(__name__)


class FileNames:
    """Distinct file names for outputs: the stem of each input, numbered where it was taken before.

    Names that differ in case only count as the same, as on some file systems.
    """

    def __init__(self) -> None:
        self._taken: set[str] = set()

    def of(self, path: str | Path) -> str:
        """A new name for an input; `image` for an image in memory, whose path is empty."""
        return self.unique(self._short(Path(path).stem or "image"))

    def _short(self, name: str) -> str:
        """A name to which endings and numbers can be added; the hash of the whole tells cut ones apart."""
        content = os.fsencode(name)
        if len(content) <= MAX_NAME:
            return name
        digest = hashlib.sha256(content).hexdigest()[:8]
        cut = content[: MAX_NAME - len(digest) - 1].decode(errors="ignore")
        _log.warning("%s…: too long a name for outputs, which are called %s~%s", name[:40], cut, digest)
        return f"{cut}~{digest}"

    def unique(self, wanted: str) -> str:
        """This name, or with the first number that makes it new."""
        name, number = wanted, 1
        while name.casefold() in self._taken:
            number += 1
            name = f"{wanted}_{number}"
        self._taken.add(name.casefold())
        return name
