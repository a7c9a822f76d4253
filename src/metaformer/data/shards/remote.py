"""Files by path or by address: those of this machine, and those of object storage, through fsspec."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from metaformer.errors import DataError


def is_remote(place: str | Path) -> bool:
    """Tell an address of fsspec, such as `s3://bucket/data`, from a path."""
    return "://" in str(place)


def read_bytes(address: str, first: int = 0, end: int | None = None, missing: bytes | None = None) -> bytes:
    """Read a file, or the bytes of it from `first` to before `end`.

    Args:
        address: a path, or an address of fsspec.
        first: where to begin.
        end: where to stop; the end of the file when not given.
        missing: what to give when there is no such file; an error when not given.

    Raises:
        DataError: it cannot be read.
    """
    if not is_remote(address) and not os.path.isfile(address):  # a pipe would be waited for without end
        if missing is not None:
            return missing
        raise DataError(f"{address}: no such file")
    with _told(address):
        try:
            if not is_remote(address):
                with open(address, "rb") as stream:
                    stream.seek(first)
                    return stream.read(-1 if end is None else end - first)
            system, path = _system(address)
            data: bytes = system.cat_file(path, start=first or None, end=end)
            return data
        except FileNotFoundError:
            if missing is None:
                raise
            return missing


@contextmanager
def open_address(address: str) -> Iterator[BinaryIO]:
    """Open a file to be read from its beginning.

    Raises:
        DataError: it cannot be opened.
    """
    with _told(address):
        stream = _opened(address)
    with stream:
        yield stream


def list_names(folder: str) -> list[str]:
    """Names of what a folder holds, sorted; none where there is no such folder."""
    with _told(folder):
        try:
            if not is_remote(folder):
                return sorted(os.listdir(folder))
            system, path = _system(folder)
            return sorted(str(name).rstrip("/").rpartition("/")[2] for name in system.ls(path, detail=False))
        except (FileNotFoundError, NotADirectoryError):
            return []


def size_and_tag(address: str) -> tuple[int, str]:
    """Tell a file's size, and a word that changes with its contents: a hash or the time it was written.

    Raises:
        DataError: there is no such file.
    """
    with _told(address):
        if not is_remote(address):
            status = os.stat(address)
            return status.st_size, str(status.st_mtime_ns)
        system, path = _system(address)
        info = system.info(path)
    tag = next((info[key] for key in ("ETag", "etag", "mtime", "created") if key in info), "")
    return int(info.get("size") or 0), str(tag)


def _opened(address: str) -> BinaryIO:
    if not is_remote(address):
        return open(address, "rb")
    system, path = _system(address)
    stream: BinaryIO = system.open(path, "rb")
    return stream


def _system(address: str) -> tuple[Any, str]:
    """The file system of an address; asked for anew each time, since connections do not survive forks."""
    from fsspec.core import url_to_fs  # never webdataset's gopen: it runs `pipe:` commands

    system, path = url_to_fs(address)
    return system, str(path)


@contextmanager
def _told(address: str) -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        raise DataError(f"{address}: {error}") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise DataError(f"{address}: cannot be read ({reason})") from error
