"""Reading every image of a source once, in parallel, whatever the images do to those who read them."""

import hashlib
import logging
import signal
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any, Final

from tqdm import tqdm

from metaformer.data.dataset import BAD_SHARE, Source
from metaformer.errors import BadImage, ConfigError, DataError
from metaformer.process import cores

CHUNK: Final = 32
DEADLY: Final = "the process that read it died"
_source: Any
_see: "ReadFn"


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """What reading one image told."""

    index: int
    width: int = 0
    height: int = 0
    digest: bytes = b""
    """The same for images with the same pixels."""
    animated: bool = False
    trouble: str = ""
    """Why it cannot be used; empty for a good image."""
    labels: "SeenLabels | None" = None
    """What its label map told, where it has one that can be read."""
    label_trouble: str = ""
    """Why the label map cannot be used; empty for a good one, and where there is none."""


@dataclass(frozen=True, slots=True)
class SeenLabels:
    """What reading one label map told."""

    digest: bytes
    """The same for label maps with the same numbers."""
    pixels: dict[int, int]
    """How many pixels each class has; those that have any."""
    ignored: int
    """How many pixels do not count."""


ReadFn = Callable[[Any, int], ImageInfo]
"""Reads what a source has at an index."""


def inspect(source: Source, index: int) -> ImageInfo:
    """Read an image."""
    try:
        image = source.image(index)
    except DataError as error:
        return ImageInfo(index, trouble=reason(error))
    return ImageInfo(index, *image.size, digest(image.size, image.tobytes()), "animated" in image.info)


def digest(size: tuple[int, int], pixels: bytes) -> bytes:
    """Hash an image's pixels."""
    return hashlib.blake2b(repr(size).encode() + pixels, digest_size=16).digest()


def reason(error: DataError) -> str:
    """What is wrong, without the name of the file where the error has it apart."""
    return error.reason if isinstance(error, BadImage) else str(error)


def scan(
    source: Source,
    *,
    workers: int | None = None,
    label: str = "images",
    progress: bool = True,
    look: ReadFn = inspect,
    which: range | None = None,
) -> list[ImageInfo]:
    """Read all images, in order of index; what cannot be read is told, not raised.

    Args:
        source: the images; it must be one that can be sent to other processes.
        workers: processes, at most one per core, which is the default.
        label: name of the progress bar on stderr.
        progress: show it.
        look: what is done with each.
        which: the indices; all when not given.

    Raises:
        ConfigError: fewer than one process.
    """
    if workers is not None and workers < 1:
        raise ConfigError(f"workers is {workers}: it must be at least 1")
    which = range(len(source)) if which is None else which
    count = min(workers or cores(), cores(), -(-len(which) // CHUNK) or 1)
    seen: dict[int, ImageInfo] = {}
    readers = _Readers(source, look)
    with tqdm(total=len(which), desc=label, unit="image", file=sys.stderr, disable=not progress) as bar:

        def note(found: Sequence[ImageInfo]) -> None:
            seen.update((one.index, one) for one in found)
            bar.update(len(found))

        left = [which[first : first + CHUNK] for first in range(0, len(which), CHUNK)]
        while left:
            left = readers.read(left, count, note)
            # Tasks are handed out in order, one to each process and as many and one more in advance; what
            # killed a process is among these. If many at once had no memory, each alone may well have.
            suspects, left = left[: 2 * count + 1], left[2 * count + 1 :]
            readers.read_singly([range(i, i + 1) for part in suspects for i in part], note)
    return [seen[index] for index in which]


def bad_ones(
    source: Source,
    look: ReadFn,
    label: str,
    *,
    part: tuple[int, int] = (0, 1),
    skip_bad: bool = False,
    workers: int | None = None,
    progress: bool = True,
) -> list[ImageInfo]:
    """Look at a share of a source, and give what cannot be used.

    Args:
        source: what is looked at.
        look: reads one.
        label: name of the progress bar on stderr.
        part: which share, and of how many: a process's rank and the number of processes.
        skip_bad: give none where they are few, which a training that leaves them out will then name.
        workers: processes that read; one per core when not given.
        progress: show the bar.

    Raises:
        ConfigError: fewer than one process.
    """
    rank, world = part
    if not 0 <= rank < world:
        raise ConfigError(f"part is {part}: it must be a rank and a number of processes")
    which = range(rank, len(source), world)
    seen = scan(source, workers=workers, label=label, progress=progress, look=look, which=which)
    bad = [one for one in seen if one.trouble or one.label_trouble]
    return [] if skip_bad and len(bad) <= BAD_SHARE * len(which) else bad


Note = Callable[[Sequence[ImageInfo]], None]


class _Readers:
    """Processes that read."""

    def __init__(self, source: Source, look: ReadFn) -> None:
        self.source, self.look = source, look

    def read_singly(self, parts: list[range], note: Note) -> None:
        """Read with one process, so that it is known at which image one dies."""
        while parts:
            parts = self.read(parts, 1, note)
            if parts:
                note([ImageInfo(parts[0].start, trouble=DEADLY)])
                parts = parts[1:]

    def read(self, parts: Sequence[range], workers: int, note: Note) -> list[range]:
        """Read parts; gives back those that are left, in order, when a process has died."""
        left = dict.fromkeys(parts)
        with ProcessPoolExecutor(workers, initializer=_begin, initargs=(self.source, self.look)) as pool:
            try:
                tasks = {pool.submit(_look, part): part for part in parts}
                for task in as_completed(tasks):
                    note(task.result())
                    del left[tasks[task]]
            except BrokenProcessPool:
                # others may have ended between the death and its discovery: they are read again
                return list(left)
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        return list(left)


def _begin(source: Source, look: ReadFn) -> None:
    global _source, _see
    _source, _see = source, look
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the main process's to answer
    logging.getLogger("metaformer").setLevel(logging.ERROR)


def _look(part: range) -> list[ImageInfo]:
    return [_see(_source, index) for index in part]
