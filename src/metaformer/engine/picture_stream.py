"""Pictures and clips in, what a network sees in them out, one after another."""

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from PIL import Image

from metaformer.engine.output.clip import frames, is_clip
from metaformer.engine.output.sink import Result, Seen
from metaformer.engine.pictures import Pictures
from metaformer.errors import ConfigError

Read = TypeVar("Read")


class PictureStream(ABC):
    """A trained network as a function of pictures of any size; each task says what it sees in one.

    Args:
        workers: threads that read pictures ahead; 0 reads each when it is due.

    Raises:
        ConfigError: fewer than no threads.
    """

    def __init__(self, workers: int = 0) -> None:
        if workers < 0:
            raise ConfigError(f"workers is {workers}: it must be 0 or more")
        self.workers = workers

    @abstractmethod
    def see(self, picture: Image.Image, path: str, name: str) -> Result:
        """Look at a picture; `path` goes into the result, `name` into errors."""

    def stream(self, source: Pictures) -> Iterator[Seen]:
        """Results at the pictures' own size, in order; each frame of a clip is one.

        Raises:
            BadImage: a picture cannot be read.
            TrainingError: figures that are not finite.
        """

        def read(index: int) -> Image.Image | None:
            path = source.path(index)
            return None if path and is_clip(path) else source.image(index)

        for index, picture in enumerate(read_ahead(read, len(source), self.workers)):
            path = source.path(index)
            if picture is not None:
                yield Seen(picture, self.see(picture, path, path or "the picture"))
                continue
            for number, frame in enumerate(frames(path)):
                result = self.see(frame.picture, path, f"{path}, frame {number}")
                yield Seen(frame.picture, result, number, frame.milliseconds)


def read_ahead(read: Callable[[int], Read], count: int, workers: int) -> Iterator[Read]:
    """`read(0)` to `read(count - 1)` in order, made by threads that keep as many ready as they are."""
    if workers < 1:
        yield from map(read, range(count))
        return
    with ThreadPoolExecutor(workers) as pool:
        waiting = deque(pool.submit(read, index) for index in range(min(workers, count)))
        for following in range(len(waiting), count + len(waiting)):
            done = waiting.popleft().result()
            if following < count:
                waiting.append(pool.submit(read, following))
            yield done
