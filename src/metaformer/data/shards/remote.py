"""Files on this machine or in object storage, by path or fsspec URL."""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Final

from metaformer.errors import DataError, MetaFormerError, MissingPackage
from metaformer.serialize import shown
from metaformer.storage import open_regular

LARGEST: Final = 1 << 30
"""Bytes of an index, a list or an image."""


def is_remote(url: str | Path) -> bool:
    """Whether this is an fsspec URL, such as `s3://bucket/data`, not a path."""
    return "://" in str(url)


def read_bytes(url: str, start: int = 0, end: int | None = None, missing: bytes | None = None) -> bytes:
    """Bytes of a file, from `start` to before `end`.

    Args:
        url: a path or fsspec URL.
        start: first byte.
        end: byte to stop before; the end of the file when not given.
        missing: returned when there is no such file; an error when not given.

    Raises:
        DataError: it cannot be read.
    """
    if not is_remote(url) and not os.path.exists(url):
        if missing is not None:
            return missing
        raise DataError(f"{url}: no such file")
    with _data_errors(url):
        try:
            if not is_remote(url):
                with open_regular(url) as stream:
                    size = os.fstat(stream.fileno()).st_size
                    if (size if end is None else end - start) > LARGEST:
                        raise DataError(f"{url}: more than {LARGEST:,} bytes at once are not read")
                    stream.seek(start)
                    return stream.read(-1 if end is None else end - start)
            system, path = _file_system(url)
            data: bytes = system.cat_file(path, start=start or None, end=end)
            return data
        except FileNotFoundError:
            if missing is None:
                raise
            return missing


@contextmanager
def open_file(url: str) -> Iterator[BinaryIO]:
    """Open a file for reading.

    Raises:
        DataError: it cannot be opened.
    """
    if not is_remote(url):
        with open_regular(url) as stream:
            yield stream
        return
    with _data_errors(url):
        system, path = _file_system(url)
        opened: BinaryIO = system.open(path, "rb")
    with opened:
        yield opened


def list_folder(url: str) -> list[str]:
    """Names in a folder, sorted; none where there is no such folder."""
    with _data_errors(url):
        try:
            if not is_remote(url):
                return sorted(os.listdir(url))
            system, path = _file_system(url)
            return sorted(str(name).rstrip("/").rpartition("/")[2] for name in system.ls(path, detail=False))
        except (FileNotFoundError, NotADirectoryError):
            return []


def size_and_version(url: str) -> tuple[int, str]:
    """Size of a file in bytes, and its ETag or modification time.

    Raises:
        DataError: there is no such file.
    """
    with _data_errors(url):
        if not is_remote(url):
            status = os.stat(url)
            if not stat.S_ISREG(status.st_mode):  # other libraries would block on a pipe
                raise DataError(f"{url}: cannot be read (it is no ordinary file)")
            return status.st_size, str(status.st_mtime_ns)
        system, path = _file_system(url)
        info = system.info(path)
    version = next((info[key] for key in ("ETag", "etag", "mtime", "created") if key in info), "")
    return int(info.get("size") or 0), str(version)


def _file_system(url: str) -> tuple[Any, str]:
    """File system and path of a URL; looked up each time, since connections do not survive forks."""
    from fsspec.core import url_to_fs  # never webdataset's gopen: it runs `pipe:` commands

    system, path = url_to_fs(url)
    return system, str(path)


@contextmanager
def _data_errors(url: str) -> Iterator[None]:
    """Turn errors of the file system into DataError; those of a package that it needs into MissingPackage."""
    try:
        yield
    except MetaFormerError:
        raise
    except Exception as error:  # fsspec lets through whatever the client of a storage raises
        cause = error.__cause__ or error
        if isinstance(cause, ModuleNotFoundError) and cause.name:
            package = cause.name.partition(".")[0]
            extra = "shards" if package == "fsspec" else None
            raise MissingPackage(package, extra, f"{url}: reading it") from error
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        reason = shown(" ".join(reason.split()), quote=False)
        raise DataError(f"{url}: cannot be read ({reason})") from error
