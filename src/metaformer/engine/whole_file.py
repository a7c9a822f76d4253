"""A file that appears under its name only when it is complete."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, TextIO

from metaformer.errors import MetaFormerError, OutputError
from metaformer.weights.io import check_replaceable


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
