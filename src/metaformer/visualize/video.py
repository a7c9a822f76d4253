"""Clips: the images of an animated GIF, WebP or PNG, or of a video, one after another."""

import warnings
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, Final, NamedTuple

from PIL import Image

from metaformer.data.image import FORMATS, MAX_PIXELS
from metaformer.errors import BadImage, DataError, MetaFormerError, MissingPackage

VIDEOS: Final = frozenset({".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ogv", ".webm", ".wmv"})
"""Endings of the files that PyAV is asked to read."""
_ANIMATED: Final = frozenset({".gif", ".webp", ".png", ".apng"})
_UNTOLD: Final = 100
"""Milliseconds for which a frame is shown that does not say it, as browsers do."""


class Frame(NamedTuple):
    """One image of a clip."""

    image: Image.Image
    milliseconds: int
    """How long it is shown."""


def is_video(path: str | Path) -> bool:
    """Tell whether a file's name is that of a video."""
    return Path(path).suffix.lower() in VIDEOS


def is_clip(path: str | Path) -> bool:
    """Tell whether a file holds more than one image to be shown in turn; not whether it can be read."""
    if is_video(path):
        return True
    if Path(path).suffix.lower() not in _ANIMATED:
        return False
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(path, formats=FORMATS) as image:
            return bool(getattr(image, "is_animated", False))
    except Exception:  # whoever reads it says what is wrong with it
        return False


def frames(path: str | Path) -> Iterator[Frame]:
    """Read the images of a clip as RGB, one by one.

    Raises:
        BadImage: damaged, or an image in it too large; the message tells which.
        MissingPackage: a video, and nothing is installed that reads it.
    """
    number = 0
    try:
        for frame in _video(path) if is_video(path) else _animation(path):
            if frame.image.width * frame.image.height > MAX_PIXELS:
                raise BadImage(path, f"more than the {MAX_PIXELS:,} pixels allowed in a frame")
            yield frame
            number += 1
    except (MetaFormerError, MemoryError):
        raise
    except Exception as error:  # decoders raise nearly every class there is on damaged files
        words = str(error) or type(error).__name__
        raise BadImage(path, f"cannot be read beyond frame {number} ({words})") from error
    if not number:
        raise BadImage(path, "holds no image")


def _animation(path: str | Path) -> Iterator[Frame]:
    with warnings.catch_warnings(action="ignore"), Image.open(path, formats=FORMATS) as image:
        if image.width * image.height > MAX_PIXELS:
            raise BadImage(path, f"more than the {MAX_PIXELS:,} pixels allowed in a frame")
        for number in range(getattr(image, "n_frames", 1)):
            image.seek(number)
            image.load()
            yield Frame(image.convert("RGB"), round(image.info.get("duration", 0)) or _UNTOLD)


def _video(path: str | Path) -> Iterator[Frame]:
    av = _av(path)
    if not Path(path).is_file():
        raise DataError(f"{path}: no such file")
    with av.open(str(path)) as container:
        if not container.streams.video:
            return
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        rate = stream.average_rate or Fraction(25)
        for frame in container.decode(stream):
            yield Frame(frame.to_image(), max(1, round(1000 / rate)))


def _av(path: str | Path) -> Any:
    try:
        import av
    except ImportError as error:
        raise MissingPackage("PyAV", "video", f"{path}: reading videos") from error
    return av
