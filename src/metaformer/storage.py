"""Files: read with a limit, written atomically; locks and the cache directory."""

import codecs
import hashlib
import logging
import os
import secrets
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader
from itertools import takewhile
from lzma import LZMAError
from pathlib import Path
from struct import error as StructError
from typing import Any, BinaryIO, Final, TextIO
from zipfile import BadZipFile, ZipFile
from zlib import error as ZlibError

from metaformer.errors import ConfigError, DataError, MetaFormerError, OutputError
from metaformer.process import encoding_remedy
from metaformer.serialize import DEPTH, is_text, parse_json, shown

TEMPORARY = ".tmp-"
"""First part of the name of what is not complete yet."""
MAX_NAME = 200
"""Bytes of an output's name without its ending; file systems take 255."""
PATIENCE = 10.0
"""Seconds to wait for a lock, which may outlive a killed process by as much as its data workers do."""

_WIDE: Final = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
"""Encodings by their byte-order marks; the mark of UTF-32 begins with that of UTF-16."""
LARGEST_TEXT: Final = 64 << 20
"""Bytes of a text or JSON file that a program reads at once, where its reader does not say otherwise."""
_ZIP_ERRORS: Final = (
    *(BadZipFile, ZlibError, LZMAError, StructError, NotImplementedError, RuntimeError, ValueError),
    *(EOFError, OverflowError, KeyError),
)
"""What `zipfile` raises on damaged, encrypted and odd archives."""
_BLOCK: Final = 1 << 20
_LONGEST_NAME: Final = 255
_LONGEST_PATH: Final = 4096


def as_path(
    value: Any, name: str, error: type[MetaFormerError] = ConfigError, *, expand: bool = False
) -> Path:
    """A caller's path.

    Args:
        value: text or `os.PathLike`; anything else is refused.
        name: of the argument, for errors.
        error: class of the errors.
        expand: `~` stands for the home directory.

    Raises:
        MetaFormerError: of class `error`: it is no path, or one that no file can have.
    """
    text = value if isinstance(value, str) else os.fspath(value) if isinstance(value, os.PathLike) else None
    if not isinstance(text, str):
        raise error(f"{name}: {shown(value)} must be a path")
    try:
        encoded = os.fsencode(text)
    except UnicodeEncodeError:
        remedy = encoding_remedy(text) if is_text(text) else ""
        raise error(f"{name}: {shown(text)} must be a path; no file can have this name{remedy}") from None
    too_long = len(encoded) >= _LONGEST_PATH or any(len(p) > _LONGEST_NAME for p in encoded.split(b"/"))
    if b"\0" in encoded or too_long:
        raise error(f"{name}: {shown(text)} must be a path; no file can have this name")
    try:
        return Path(text).expanduser() if expand else Path(text)
    except RuntimeError as failure:  # no such user, or one without a home directory
        raise error(f"{name}: {shown(text)}: {failure}") from failure


@contextmanager
def open_regular(path: str | Path, error: type[MetaFormerError] = DataError) -> Iterator[BufferedReader]:
    """Open a regular file for reading; a pipe or a device, which could block forever, is refused at once.

    Raises:
        MetaFormerError: of class `error`: it cannot be opened, or is something else.
    """
    try:
        # a pipe without a writer would block in open, too, but for O_NONBLOCK
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except (OSError, ValueError) as failure:
        raise error(f"{path}: cannot be read ({getattr(failure, 'strerror', None) or failure})") from failure
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise error(f"{path}: cannot be read (it is no ordinary file)")
    try:
        with open(handle, "rb") as stream:
            yield stream
    except OSError as failure:
        if isinstance(failure, MetaFormerError):
            raise
        raise error(f"{path}: cannot be read ({failure.strerror or failure})") from failure


def need_regular(path: str | Path, error: type[MetaFormerError] = DataError) -> None:
    """Check a file before another library opens it by its name.

    Raises:
        MetaFormerError: of class `error`: it cannot be opened, or is no regular file.
    """
    with open_regular(path, error):
        pass


def read_bytes(
    path: str | Path, error: type[MetaFormerError] = DataError, *, largest: int = LARGEST_TEXT
) -> bytes:
    """Content of a regular file.

    Args:
        path: the file.
        error: class of the errors.
        largest: bytes that it may have.

    Raises:
        MetaFormerError: of class `error`: it cannot be read, or is larger.
    """
    with open_regular(path, error) as stream:
        size = os.fstat(stream.fileno()).st_size
        data = stream.read(size + 1) if size <= largest else b""
        while len(data) > size and len(data) <= largest and (more := stream.read(_BLOCK)):
            data += more  # it grew meanwhile, or is one of /proc, whose sizes are 0
    if max(size, len(data)) > largest:
        raise error(f"{path}: is larger than the {largest:,} bytes allowed")
    return data


def read_text(
    path: str | Path,
    error: type[MetaFormerError] = DataError,
    *,
    largest: int = LARGEST_TEXT,
    tell: Callable[[str], object] | None = None,
) -> str:
    r"""Text of a file as any program writes it; lines end with \n.

    It is UTF-8, with or without a byte-order mark, or UTF-16 or UTF-32 with one.

    Args:
        path: the file.
        error: class of the errors.
        largest: bytes that it may have.
        tell: called with a line about a file in another encoding than UTF-8; a warning by default.

    Raises:
        MetaFormerError: of class `error`: it cannot be read, is larger, or in another encoding.
    """
    data = read_bytes(path, error, largest=largest)
    encoding = next((name for mark, name in _WIDE.items() if data.startswith(mark)), "utf-8-sig")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as failure:
        line = data[: failure.start].count(b"\n") + 1
        name = "UTF-8" if encoding == "utf-8-sig" else encoding
        raise error(f"{path}: cannot be read (line {line} is not {name} text)") from failure
    if encoding != "utf-8-sig":
        (tell or _log.warning)(f"{path}: is {encoding}, read as such: other programs may need UTF-8")
    elif "\0" in text:
        raise error(
            f"{path}: cannot be read (it holds zero bytes, as UTF-16 without a byte-order mark does: save it "
            "as UTF-8)"
        )
    del data  # a large file is not held twice
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


def read_json(
    path: str | Path,
    error: type[MetaFormerError] = DataError,
    *,
    largest: int = LARGEST_TEXT,
    depth: int = DEPTH,
) -> Any:
    """Plain values of a JSON file; see `parse_json`.

    Raises:
        MetaFormerError: of class `error`: it cannot be read, is larger, is no JSON, or is nested deeper.
    """
    return parse_json(read_text(path, error, largest=largest), path, error, depth=depth)


@contextmanager
def open_zip(
    path: str | Path, error: type[MetaFormerError] = DataError, what: str = "zip archive"
) -> Iterator[ZipFile]:
    """Open a zip archive; an error of it or of a member is one of class `error`.

    Args:
        path: the file.
        error: class of the errors.
        what: what the archive should be, for errors.

    Raises:
        MetaFormerError: of class `error`: it is no zip, damaged, encrypted, or of a kind that is not read.
    """
    with open_regular(path, error) as stream:
        try:
            with ZipFile(stream) as archive:
                yield archive
        except MetaFormerError:
            raise
        except _ZIP_ERRORS as failure:
            reason = shown(str(failure), quote=False) or type(failure).__name__
            raise error(f"{path}: no {what}, or damaged or encrypted ({reason})") from failure


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Path of a temporary file beside `path`, which replaces it at the end; an error leaves `path` as it was.

    Raises:
        OutputError: it cannot be written.
    """
    check_replaceable(path)
    temporary = path.with_name(f"{TEMPORARY}{secrets.token_hex(8)}")
    new = _missing_folders(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        sync(temporary)
        temporary.replace(path)
        sync(path.parent)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        _remove_empty(new)
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


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Path of a temporary folder beside `path`, which becomes `path` at the end; an error leaves nothing.

    Without fsync: of thousands of small files, that takes minutes.

    Args:
        path: a new or empty folder.

    Raises:
        OutputError: it holds something, is a file, or cannot be written.
    """
    temporary = path.with_name(f"{TEMPORARY}{path.name}")
    try:
        if path.exists() and not (path.is_dir() and not any(path.iterdir())):
            raise OutputError(f"{path}: is not empty; choose another folder")
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        yield temporary
        if path.exists():
            path.rmdir()
        temporary.rename(path)
    except OSError as error:
        if isinstance(error, MetaFormerError):
            raise
        raise OutputError(f"{path}: cannot write ({error.strerror or error})") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_writable(path: Path) -> None:
    """Check before long work that `atomic_path` can write there.

    Raises:
        OutputError: it cannot.
    """
    check_replaceable(path)
    probe = path.with_name(f"{TEMPORARY}{secrets.token_hex(8)}")
    new = _missing_folders(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise OutputError(f"{path}: cannot write ({error.strerror or error})") from error
    finally:
        _remove_empty(new)


def _missing_folders(path: Path) -> list[Path]:
    """The folders above a path that do not exist yet, the innermost first."""
    return list(takewhile(lambda folder: not os.path.lexists(folder), path.parents))


def _remove_empty(folders: Iterable[Path]) -> None:
    """Remove folders as far as they are empty."""
    with suppress(OSError):
        for folder in folders:
            folder.rmdir()


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
        with open_regular(file, OutputError) as stream:
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
