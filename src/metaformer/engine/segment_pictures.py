"""Pictures and clips in, the classes of their pixels out."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
from PIL import Image

from metaformer.data.dense_preprocess import DensePreprocess
from metaformer.engine.bundle import Bundle
from metaformer.engine.output.clip import frames, is_clip
from metaformer.engine.output.sink import Seen
from metaformer.engine.pictures import Pictures
from metaformer.tasks.inference import Inference
from metaformer.tasks.segment_results import Segmentation

Read = TypeVar("Read")


class PictureSegmenter:
    """A trained network as a function of pictures of any size, one after another.

    Args:
        bundle: the network.
        classes: its class names.
        inference: how pictures are looked at.
        workers: threads that read pictures ahead; 0 reads each when it is due.
    """

    def __init__(
        self, bundle: Bundle, classes: Sequence[str], inference: Inference, workers: int = 0
    ) -> None:
        assert isinstance(bundle.preprocess, DensePreprocess)
        self.bundle, self.classes, self.inference, self.workers = bundle, tuple(classes), inference, workers
        self._preprocess = bundle.preprocess

    def stream(self, source: Pictures) -> Iterator[Seen]:
        """Results at the pictures' own size, in order; each frame of a clip is one.

        Raises:
            BadImage: a picture cannot be read.
            TrainingError: logits that are not finite.
        """

        def read(index: int) -> Image.Image | None:
            path = source.path(index)
            return None if path and is_clip(path) else source.image(index)

        for index, picture in enumerate(read_ahead(read, len(source), self.workers)):
            path = source.path(index)
            if picture is not None:
                yield Seen(picture, self._segment(picture, path, path or "the picture"))
                continue
            for number, frame in enumerate(frames(path)):
                result = self._segment(frame.picture, path, f"{path}, frame {number}")
                yield Seen(frame.picture, result, number, frame.milliseconds)

    def _segment(self, picture: Image.Image, path: str, name: str) -> Segmentation:
        found = self.inference.label_map(self.bundle.forward, picture, self._preprocess, name=name).numpy()
        kind = np.uint8 if len(self.classes) <= 256 else np.uint16
        return Segmentation(path, found.astype(kind, copy=False), self.classes, self.bundle.palette)


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
