"""Parallel scan of every image of a source, robust against images that kill their reader."""

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

from metaformer.color import Color
from metaformer.data.dataset import BAD_SHARE, Source
from metaformer.errors import BadImage, ConfigError, DataError
from metaformer.process import cores

CHUNK: Final = 32
"""Images that a process reads at once."""
DEADLY: Final = "the process that read it died"
_source: Any
_read: "ReadFn"


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """What a scan found out about one image."""

    index: int
    width: int = 0
    height: int = 0
    digest: bytes = b""
    """Hash of the pixels."""
    animated: bool = False
    hides_colors: bool = False
    """Whether it has transparent pixels, whose colors show where no background is given."""
    error: str = ""
    """Why the image cannot be used; empty for a good one."""
    labels: Any = None
    """What a task's own reader found out about the labels of pixels."""
    label_error: str = ""
    """Why those cannot be used; empty for good ones, and where there are none."""


ReadFn = Callable[[Any, int], ImageInfo]
"""Reads the image of a source at an index."""


def inspect(source: Source, index: int, background: Color | None = None) -> ImageInfo:
    """Decode and hash an image, its transparent pixels blended on a color if one is given."""
    try:
        image = source.image(index, background)
    except DataError as error:
        return ImageInfo(index, error=reason(error))
    marks = ("animated" in image.info, "hides_colors" in image.info)
    return ImageInfo(index, *image.size, digest(image.size, image.tobytes()), *marks)


def digest(size: tuple[int, int], pixels: bytes) -> bytes:
    """Hash of an image's pixels."""
    return hashlib.blake2b(repr(size).encode() + pixels, digest_size=16).digest()


def reason(error: DataError) -> str:
    """Message of an error, without the file's name where the error has it apart."""
    return error.reason if isinstance(error, BadImage) else str(error)


def scan(
    source: Source,
    *,
    workers: int | None = None,
    label: str = "images",
    progress: bool = True,
    read: ReadFn = inspect,
    indices: range | None = None,
) -> list[ImageInfo]:
    """Read images in order of index; errors are part of the result and not raised.

    Args:
        source: the images; it must be picklable.
        workers: processes, at most one per core, which is the default.
        label: name of the progress bar on stderr.
        progress: show it.
        read: reads one image.
        indices: which images; all when not given.

    Raises:
        ConfigError: fewer than one process.
    """
    if workers is not None and workers < 1:
        raise ConfigError(f"workers is {workers}: it must be at least 1")
    indices = range(len(source)) if indices is None else indices
    count = min(workers or cores(), cores(), -(-len(indices) // CHUNK) or 1)
    infos: dict[int, ImageInfo] = {}
    pool = _ReaderPool(source, read)
    with tqdm(total=len(indices), desc=label, unit="image", file=sys.stderr, disable=not progress) as bar:

        def add(found: Sequence[ImageInfo]) -> None:
            infos.update((info.index, info) for info in found)
            bar.update(len(found))

        chunks = [indices[first : first + CHUNK] for first in range(0, len(indices), CHUNK)]
        while chunks:
            chunks = pool.read(chunks, count, add)
            # The pool has handed out one chunk per process, and as many and one more in advance: the image
            # that killed a process is among these. Each is read alone, also because several large images at
            # once may need more memory than there is where each alone does not.
            suspects, chunks = chunks[: 2 * count + 1], chunks[2 * count + 1 :]
            pool.read_singly([range(i, i + 1) for chunk in suspects for i in chunk], add)
    return [infos[index] for index in indices]


def scan_part(
    source: Source,
    read: ReadFn,
    label: str,
    *,
    part: tuple[int, int] = (0, 1),
    skip_bad: bool = False,
    workers: int | None = None,
    progress: bool = True,
) -> tuple[list[ImageInfo], list[ImageInfo]]:
    """Scan a part of a source; returns all of its images, and those that cannot be used.

    Args:
        source: the images.
        read: reads one image.
        label: name of the progress bar on stderr.
        part: which part, and of how many: a process's rank and the number of processes.
        skip_bad: return none of these where they are few: a training that leaves them out will name them.
        workers: processes that read; one per core when not given.
        progress: show the bar.

    Raises:
        ConfigError: fewer than one process.
    """
    rank, world = part
    if not 0 <= rank < world:
        raise ConfigError(f"part is {part}: it must be a rank and a number of processes")
    indices = range(rank, len(source), world)
    infos = scan(source, workers=workers, label=label, progress=progress, read=read, indices=indices)
    bad = [info for info in infos if info.error or info.label_error]
    return infos, [] if skip_bad and len(bad) <= BAD_SHARE * len(indices) else bad


AddFn = Callable[[Sequence[ImageInfo]], None]


class _ReaderPool:
    """Processes that read images."""

    def __init__(self, source: Source, read: ReadFn) -> None:
        self.source, self.read_image = source, read

    def read_singly(self, chunks: list[range], add: AddFn) -> None:
        """Read chunks of one image with one process, so that the image that kills it is known."""
        while chunks:
            chunks = self.read(chunks, 1, add)
            if chunks:
                add([ImageInfo(chunks[0].start, error=DEADLY)])
                chunks = chunks[1:]

    def read(self, chunks: Sequence[range], workers: int, add: AddFn) -> list[range]:
        """Read chunks; returns those that are left, in order, when a process has died."""
        left = dict.fromkeys(chunks)
        initargs = (self.source, self.read_image)
        with ProcessPoolExecutor(workers, initializer=_init_process, initargs=initargs) as pool:
            try:
                tasks = {pool.submit(_read_chunk, chunk): chunk for chunk in chunks}
                for task in as_completed(tasks):
                    add(task.result())
                    del left[tasks[task]]
            except BrokenProcessPool:
                # Chunks that were finished between the death and its discovery are read again.
                return list(left)
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        return list(left)


def _init_process(source: Source, read: ReadFn) -> None:
    global _source, _read
    _source, _read = source, read
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the main process
    logging.getLogger("metaformer").setLevel(logging.ERROR)


def _read_chunk(chunk: range) -> list[ImageInfo]:
    return [_read(_source, index) for index in chunk]
