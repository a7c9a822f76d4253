"""Several files of the same results, written side by side as results come."""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from PIL import Image
from torch import Tensor

from metaformer.errors import ConfigError, OutputError
from metaformer.storage import FileNames


class Result(Protocol):
    """What was found in one image."""

    @property
    def path(self) -> str:
        """The image's file; empty for an image in memory."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, a line of predictions.jsonl."""


R = TypeVar("R", bound=Result)


class Prediction(NamedTuple, Generic[R]):
    """An image and what was found in it."""

    image: Image.Image
    result: R
    frame: int | None = None
    """Its place in the clip that `result.path` names, from 0; None for an image of its own."""
    milliseconds: int = 0
    """How long a frame is shown."""

    @property
    def path(self) -> str:
        """The file of the image or clip."""
        return self.result.path


Writer = Callable[[str, Prediction[R]], None]
"""Is given each result, with the name that its files have."""


LARGEST_MATRIX = 200
"""Classes up to which a confusion matrix is written out whole; beyond, its non-zero entries."""


class Format(NamedTuple):
    """One of the things that are written."""

    sink: AbstractContextManager[Writer[Any]]
    what: str
    """What to tell that was written."""
    file: Path
    folder: Path | None = None
    """Where it puts a file for each image."""


def write_formats(found: Iterable[Prediction[Any]], formats: Sequence[Format]) -> Iterator[str]:
    """Write each result in every format, then tell what was written.

    Raises:
        OutputError: they cannot be written, or images lie where results go.
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


def check_fps(fps: float | None, images: bool) -> None:
    """Refuse an animation without images, or of no speed.

    Raises:
        ConfigError: the message tells which.
    """
    if fps is None:
        return
    if not images:
        raise ConfigError("fps: joins drawn images to an animation: ask for images too")
    if not 0 < fps <= 1000:
        raise ConfigError(f"fps is {fps:g}: it must be above 0, and at most 1000")


def json_line(seen: Prediction[Any]) -> dict[str, Any]:
    """A result's plain values, with the place of a frame in its clip."""
    line = seen.result.to_dict()
    return line if seen.frame is None else {**line, "frame": seen.frame}


class _Names:
    """Names of what is written: of images their own, of frames their clip's with a number."""

    def __init__(self) -> None:
        self._names, self._clips = FileNames(), dict[str, str]()

    def of(self, seen: Prediction[Any]) -> str:
        path = seen.result.path
        if seen.frame is None:
            return self._names.of(path)
        if path not in self._clips:
            self._clips[path] = self._names.of(path)
        return self._names.unlike(f"{self._clips[path]}_{seen.frame:06d}")


class ImageNumbers:
    """Numbers of images: the one that a name is, as in COCO, else the next free."""

    def __init__(self) -> None:
        self._taken: set[int] = set()

    def of(self, name: str) -> int:
        """The number of one more image."""
        number = int(name) if name.isdecimal() else 0
        if number < 1 or number in self._taken:
            number = len(self._taken) + 1
            while number in self._taken:
                number += 1
        self._taken.add(number)
        return number


def confusion_values(confusion: Tensor) -> dict[str, Any]:
    """A matrix (K, K) as a report's JSON holds it: rows, or of many classes the entries that are not zero."""
    if len(confusion) <= LARGEST_MATRIX:
        return {"confusion": confusion.tolist()}
    rows, columns = confusion.nonzero(as_tuple=True)
    entries = zip(rows.tolist(), columns.tolist(), confusion[rows, columns].tolist(), strict=True)
    return {"confusion_entries": [list(entry) for entry in entries]}


def write_report(values: dict[str, Any], path: str | Path) -> Path:
    """Write a report's values as a JSON file.

    Raises:
        OutputError: it cannot be written.
    """
    file = Path(path)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(values, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{file}: cannot write ({error.strerror})") from error
    return file
