"""Reading every picture of a source once, in parallel, whatever the pictures do to those who read them."""

import hashlib
import logging
import signal
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Final

from tqdm import tqdm

from metaformer.data.dataset import Source
from metaformer.errors import BadImage, ConfigError, DataError
from metaformer.ops.process import cores

CHUNK: Final = 32
DEADLY: Final = "the process that read it died"
_source: Source


@dataclass(frozen=True, slots=True)
class Seen:
    """What reading one picture told."""

    index: int
    width: int = 0
    height: int = 0
    digest: bytes = b""
    """The same for pictures with the same pixels."""
    animated: bool = False
    trouble: str = ""
    """Why it cannot be used; empty for a good picture."""


def survey(
    source: Source, *, workers: int | None = None, label: str = "pictures", progress: bool = True
) -> list[Seen]:
    """Read all pictures, in order of index; what cannot be read is told, not raised.

    Args:
        source: the pictures; it must be one that can be sent to other processes.
        workers: processes, at most one per core, which is the default.
        label: name of the progress bar on stderr.
        progress: show it.

    Raises:
        ConfigError: fewer than one process.
    """
    if workers is not None and workers < 1:
        raise ConfigError(f"workers is {workers}: it must be at least 1")
    count = min(workers or cores(), cores(), -(-len(source) // CHUNK) or 1)
    seen: dict[int, Seen] = {}
    with tqdm(total=len(source), desc=label, unit="picture", file=sys.stderr, disable=not progress) as bar:

        def note(found: Sequence[Seen]) -> None:
            seen.update((one.index, one) for one in found)
            bar.update(len(found))

        left = [range(first, min(first + CHUNK, len(source))) for first in range(0, len(source), CHUNK)]
        while left:
            left = _read(source, left, count, note)
            # Tasks are handed out in order, one to each process and as many and one more in advance; what
            # killed a process is among these. If many at once had no memory, each alone may well have.
            suspects, left = left[: 2 * count + 1], left[2 * count + 1 :]
            _read_singly(source, [range(i, i + 1) for part in suspects for i in part], note)
    return [seen[index] for index in range(len(source))]


def _read_singly(source: Source, parts: list[range], note: Callable[[Sequence[Seen]], None]) -> None:
    """Read with one process, so that it is known at which picture one dies."""
    while parts:
        parts = _read(source, parts, 1, note)
        if parts:
            note([Seen(parts[0].start, trouble=DEADLY)])
            parts = parts[1:]


def _read(
    source: Source, parts: Sequence[range], workers: int, note: Callable[[Sequence[Seen]], None]
) -> list[range]:
    """Read parts in processes; gives back those that are left, in order, when one has died."""
    left = dict.fromkeys(parts)
    with ProcessPoolExecutor(workers, initializer=_begin, initargs=(source,)) as pool:
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


def _begin(source: Source) -> None:
    global _source
    _source = source
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the main process's to answer
    logging.getLogger("metaformer").setLevel(logging.ERROR)


def _look(part: range) -> list[Seen]:
    return [_see(index) for index in part]


def _see(index: int) -> Seen:
    try:
        picture = _source.image(index)
    except BadImage as error:
        return Seen(index, trouble=error.reason)
    except DataError as error:
        return Seen(index, trouble=str(error))
    digest = hashlib.blake2b(repr(picture.size).encode() + picture.tobytes(), digest_size=16).digest()
    return Seen(index, *picture.size, digest, "animated" in picture.info)
