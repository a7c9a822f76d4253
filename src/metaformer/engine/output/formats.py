"""Several files of the same results, written side by side as results come."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from metaformer.engine.output.file_names import FileNames
from metaformer.engine.output.sink import Seen, Sink
from metaformer.errors import ConfigError, OutputError


class Format(NamedTuple):
    """One of the things that are written."""

    sink: AbstractContextManager[Sink]
    what: str
    """What to tell that was written."""
    file: Path
    folder: Path | None = None
    """Where it puts a file for each picture."""


def write_formats(found: Iterable[Seen], formats: Sequence[Format]) -> Iterator[str]:
    """Write each result in every format, then tell what was written.

    Raises:
        OutputError: they cannot be written, or pictures lie where results go.
    """
    names, count = _Names(), 0
    taken = {one.folder.resolve() for one in formats if one.folder is not None}
    with ExitStack() as stack:
        sinks = [stack.enter_context(one.sink) for one in formats]
        for seen in found:
            if seen.result.path and Path(seen.result.path).resolve().parent in taken:
                raise OutputError(
                    f"{seen.result.path}: lies where results are written to: choose another folder for them"
                )
            name = names.of(seen)
            for sink in sinks:
                sink(name, seen)
            count += 1
    yield from (f"{count} {one.what}: {one.folder or one.file}" for one in formats)


def check_fps(fps: float | None, pictures: bool) -> None:
    """Refuse an animation without pictures, or of no speed.

    Raises:
        ConfigError: the message tells which.
    """
    if fps is None:
        return
    if not pictures:
        raise ConfigError("fps: joins drawn pictures to an animation: ask for pictures too")
    if not 0 < fps <= 1000:
        raise ConfigError(f"fps is {fps:g}: it must be above 0, and at most 1000")


def json_line(seen: Seen) -> dict[str, Any]:
    """A result's plain values, with the place of a frame in its clip."""
    line = seen.result.to_dict()
    return line if seen.frame is None else {**line, "frame": seen.frame}


class _Names:
    """Names of what is written: of pictures their own, of frames their clip's with a number."""

    def __init__(self) -> None:
        self._names, self._clips = FileNames(), dict[str, str]()

    def of(self, seen: Seen) -> str:
        path = seen.result.path
        if seen.frame is None:
            return self._names.of(path)
        if path not in self._clips:
            self._clips[path] = self._names.of(path)
        return self._names.unlike(f"{self._clips[path]}_{seen.frame:06d}")
