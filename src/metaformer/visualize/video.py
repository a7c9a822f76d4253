"""Frames of videos and of animated GIF, WebP or PNG files."""

import warnings
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from struct import unpack
from typing import Any, Final, NamedTuple

from PIL import Image

from metaformer.color import Color
from metaformer.data.image import FORMATS, MAX_PIXELS, upright_rgb
from metaformer.errors import BadImage, DataError, MetaFormerError, MissingPackage

VIDEOS: Final = frozenset({".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ogv", ".webm", ".wmv"})
"""Suffixes of the files that PyAV reads."""
_ANIMATED: Final = frozenset({".gif", ".webp", ".png", ".apng"})
_UPRIGHT: Final = {
    (-1, 0, 0, 1): Image.Transpose.FLIP_LEFT_RIGHT,
    (-1, 0, 0, -1): Image.Transpose.ROTATE_180,
    (1, 0, 0, -1): Image.Transpose.FLIP_TOP_BOTTOM,
    (0, 1, 1, 0): Image.Transpose.TRANSPOSE,
    (0, 1, -1, 0): Image.Transpose.ROTATE_270,
    (0, -1, -1, 0): Image.Transpose.TRANSVERSE,
    (0, -1, 1, 0): Image.Transpose.ROTATE_90,
}
"""By the signs of a display matrix a, b, c, d: a pixel x, y is shown at a·x + c·y, b·x + d·y."""
_DEFAULT_DURATION: Final = 100
"""Milliseconds of a frame without a duration, as in browsers."""


class Frame(NamedTuple):
    """One image and its duration."""

    image: Image.Image
    milliseconds: int


def is_video(path: str | Path) -> bool:
    """Whether a file name is that of a video."""
    return Path(path).suffix.lower() in VIDEOS


def is_animated(path: str | Path) -> bool:
    """Whether a file is a video or an animation; it may still be damaged."""
    if is_video(path):
        return True
    if Path(path).suffix.lower() not in _ANIMATED:
        return False
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(path, formats=FORMATS) as image:
            return bool(getattr(image, "is_animated", False))
    except Exception:  # reading it will say what is wrong
        return False


def frames(path: str | Path, background: Color | None = None) -> Iterator[Frame]:
    """Frames of a video or animation in RGB, one by one.

    Args:
        path: the file.
        background: color that an animation's transparent pixels are blended on; None drops transparency.

    Raises:
        BadImage: the file is damaged, or a frame too large.
        MissingPackage: videos need PyAV.
    """
    number = 0
    try:
        for frame in _video(path) if is_video(path) else _animation(path, background):
            if frame.image.width * frame.image.height > MAX_PIXELS:
                raise BadImage(path, f"more than the {MAX_PIXELS:,} pixels allowed in a frame")
            yield frame
            number += 1
    except (MetaFormerError, MemoryError):
        raise
    except Exception as error:  # decoders raise nearly every class there is on damaged files
        reason = str(error) or type(error).__name__
        raise BadImage(path, f"cannot be read beyond frame {number} ({reason})") from error
    if not number:
        raise BadImage(path, "has no frames")


def _animation(path: str | Path, background: Color | None) -> Iterator[Frame]:
    with warnings.catch_warnings(action="ignore"), Image.open(path, formats=FORMATS) as image:
        if image.width * image.height > MAX_PIXELS:
            raise BadImage(path, f"more than the {MAX_PIXELS:,} pixels allowed in a frame")
        for number in range(getattr(image, "n_frames", 1)):
            image.seek(number)
            rgb = upright_rgb(image, background)  # loads the frame, and with it the duration
            yield Frame(rgb, round(image.info.get("duration", 0)) or _DEFAULT_DURATION)


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
            image, turn = frame.to_image(), _turn(frame)
            yield Frame(image if turn is None else image.transpose(turn), max(1, round(1000 / rate)))


def _turn(frame: Any) -> Image.Transpose | None:
    """What turns a frame upright, by its display matrix; None where it is."""
    for data in frame.side_data:
        if data.type.name == "DISPLAYMATRIX" and len(bytes(data)) >= 36:
            a, b, _, c, d, *_ = unpack("=9i", bytes(data)[:36])
            if abs(a) + abs(d) >= abs(b) + abs(c):
                b = c = 0
            else:
                a = d = 0
            return _UPRIGHT.get(tuple((value > 0) - (value < 0) for value in (a, b, c, d)))
    return None


def _av(path: str | Path) -> Any:
    try:
        import av
    except ImportError as error:
        raise MissingPackage("PyAV", "video", f"{path}: reading videos") from error
    return av
