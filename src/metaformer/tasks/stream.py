"""Images and videos to predict on, and predictors that take them one at a time."""

import glob
import logging
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from metaformer.color import Color
from metaformer.data.folder import EXTENSIONS, LinkCircle, check_name, files_below, log_hidden
from metaformer.data.image import image_in_memory, read_image
from metaformer.errors import BadImage, ConfigError, DataError
from metaformer.storage import as_path
from metaformer.tasks.outputs import Prediction, R
from metaformer.visualize.video import frames, is_animated

Read = TypeVar("Read")
_log = logging.getLogger(__name__)


OnBad = Callable[[BadImage], None]
"""What is done about an image that cannot be read: it may raise the error."""


def raise_bad(error: BadImage) -> None:
    """Raise the error of an image that cannot be read."""
    raise error


ImageInput = str | Path | Image.Image | NDArray[Any]
"""A file, a folder (with all below it but what is hidden), a glob, or an image: Pillow's, or an
array (H, W, 3) uint8."""


_KINDS: Final = (str, Path, Image.Image, np.ndarray)


class ImageList:
    """Source of images without labels, which are read when they are needed.

    Raises:
        DataError: a path that does not exist, or no images in it.
    """

    def __init__(self, images: ImageInput | Iterable[ImageInput]) -> None:
        single = isinstance(images, _KINDS) or not isinstance(images, Iterable)
        inputs: list[ImageInput] = [images] if single else list(images)  # type: ignore[list-item, arg-type]
        self._images: list[Path | Image.Image | NDArray[Any]] = []
        for image in inputs:
            if not isinstance(image, _KINDS):
                kinds = "a path, an image of Pillow or an array (H, W, 3) of uint8"
                raise DataError(f"{type(image).__name__} {image!r:.40}: is no image: give {kinds}")
            self._images += _files(image) if isinstance(image, str | Path) else [image]
        if not self._images:
            raise DataError("no images were given")

    def __len__(self) -> int:
        return len(self._images)

    @property
    def labels(self) -> Sequence[int]:
        """Zeros, since the labels are unknown."""
        return [0] * len(self)

    def path(self, index: int) -> str:
        """File of an image; empty for an image in memory."""
        image = self._images[index]
        return str(image) if isinstance(image, Path) else ""

    def image(self, index: int, background: Color | None = None) -> Image.Image:
        """The image as RGB.

        Raises:
            BadImage: it cannot be read.
            DataError: an array of another form.
        """
        image = self._images[index]
        if isinstance(image, Path):
            return read_image(image, background=background)
        return image_in_memory(image, background=background)


class StreamPredictor(ABC, Generic[R]):
    """A network as a function of images and videos of any size, one image at a time.

    Args:
        workers: threads that read images ahead; 0 reads each when it is due.
        background: color that transparent pixels are blended on.

    Raises:
        ConfigError: `workers` below 0.
    """

    settings: Mapping[str, Any]
    """Options that change the results, as plain values."""

    def __init__(self, workers: int = 0, background: Color | None = None) -> None:
        if workers < 0:
            raise ConfigError(f"workers is {workers}: it must be 0 or more")
        self.workers, self.background = workers, background

    @abstractmethod
    def predict_image(self, image: Image.Image, path: str, name: str) -> R:
        """Result of an RGB image; `path` goes into it, `name` into error messages."""

    def predict(self, source: ImageList, on_bad: OnBad = raise_bad) -> Iterator[Prediction[R]]:
        """Predictions in order, at the images' own size; one for each frame of a video.

        Args:
            source: the images.
            on_bad: gets the error of each image that cannot be read; raises it by default.

        Raises:
            BadImage: an image cannot be read.
            TrainingError: outputs that are not finite.
        """

        def read(index: int) -> Image.Image | BadImage | None:
            path = source.path(index)
            try:
                return None if path and is_animated(path) else source.image(index, self.background)
            except BadImage as error:
                return error

        for index, image in enumerate(read_ahead(read, len(source), self.workers)):
            path = source.path(index)
            if isinstance(image, BadImage):
                on_bad(image)
            elif image is not None:
                result = self.predict_image(image, path, path or "the image")
                yield Prediction(result, image, background=self.background)
            else:
                yield from self._predict_frames(path, on_bad)

    def predict_images(self, images: Sequence[Image.Image]) -> list[R]:
        """Results of RGB images in memory, computed one by one."""
        return [self.predict_image(image, "", "the image") for image in images]

    def _predict_frames(self, path: str, on_bad: OnBad) -> Iterator[Prediction[R]]:
        """One prediction for each frame of a video, up to the first that cannot be read."""
        reading = enumerate(frames(path, self.background))
        while True:
            try:
                number, frame = next(reading)
            except StopIteration:
                return
            except BadImage as error:
                return on_bad(error)
            result = self.predict_image(frame.image, path, f"{path}, frame {number}")
            yield Prediction(result, frame.image, number, frame.milliseconds, self.background)


def read_ahead(read: Callable[[int], Read], count: int, workers: int) -> Iterator[Read]:
    """`read(0)` to `read(count - 1)` in order, from threads that each prefetch one item."""
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


def _may_be_image(file: Path) -> bool:
    """Whether it is a regular file or a link to nothing, which reading names, and no pipe or device."""
    return file.is_file() or not file.exists()


def _skip_circle(error: DataError) -> None:
    """A link to a folder above brings nothing new; a folder that cannot be read is an error."""
    if not isinstance(error, LinkCircle):
        raise error
    _log.warning("left out: %s", error)


def _files(pattern: str | Path) -> list[Path]:
    """Image files of a file, folder or glob, sorted."""
    path = as_path(pattern, "images", DataError)
    if path.is_file():
        check_name(path)
        return [path]
    if path.is_dir():
        hidden: Counter[str] = Counter()
        below = [path / name for name in files_below(path, _skip_circle, hidden=hidden)]
        found = [file for file in below if file.suffix.lower() in EXTENSIONS and _may_be_image(file)]
        log_hidden(path, hidden)
        kind = "folder"
    elif glob.has_magic(str(pattern)):
        matches = map(Path, glob.glob(str(pattern), recursive=True))
        found, kind = [file for file in matches if file.is_file()], "pattern"
    else:
        raise DataError(f"{pattern}: no such file or folder")
    if not found:
        raise DataError(f"{pattern}: no images in this {kind}")
    for file in found:
        check_name(file)
    return sorted(found)
