"""One picture file to RGB, safely: whatever the file holds, only `BadImage` comes out."""

import logging
import os
import warnings
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image, UnidentifiedImageError

from metaformer.errors import BadImage

FORMATS: Final = ("JPEG", "PNG", "WEBP", "BMP", "GIF")
"""What is decoded, recognised by content; Pillow's rarer decoders stay closed to hostile files."""

MAX_PIXELS: Final = 50_000_000
_ORIENTATION_TAG: Final = 0x0112
_UPRIGHT: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_log = logging.getLogger(__name__)


def read_image(path: str | Path, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Read a picture as 8-bit RGB, turned upright by its EXIF orientation.

    Transparency is dropped, not blended, as in torchvision and timm (`convert("RGB")`); 16-bit grey is
    scaled to 8 bits; of an animation the first frame is taken and a warning logged.

    Args:
        path: the file; its format is found by content, not by extension.
        max_pixels: larger pictures are refused from their header, before anything is decoded.

    Raises:
        BadImage: the file is missing, empty, damaged, too large, or no JPEG, PNG, WebP, BMP or GIF.
    """
    if not os.path.isfile(path):  # a pipe or a device would be waited for without end
        raise BadImage(path, "is no ordinary file" if os.path.exists(path) else "no such file")
    try:
        with warnings.catch_warnings():
            # Pillow warns about odd metadata and about sizes; sizes are checked here, and as an error.
            warnings.simplefilter("ignore")
            with Image.open(path, formats=FORMATS) as picture:
                return _decode(picture, path, max_pixels)
    except BadImage:
        raise
    except Exception as error:  # Pillow's decoders raise nearly every class there is on damaged files
        raise BadImage(path, _reason(error, Path(path), max_pixels)) from error


def _decode(picture: Image.Image, path: str | Path, max_pixels: int) -> Image.Image:
    width, height = picture.size
    if width * height > max_pixels:
        raise BadImage(path, f"{width}x{height} is more than the {max_pixels:,} pixels allowed")
    if getattr(picture, "is_animated", False):
        _log.warning("%s: animated, only its first frame is used", path)
        picture.seek(0)
    picture.load()
    rgb = _rgb(picture)
    turn = _UPRIGHT.get(_orientation(picture))
    return rgb if turn is None else rgb.transpose(turn)


def _rgb(picture: Image.Image) -> Image.Image:
    if picture.mode == "I" or picture.mode.startswith("I;16"):
        # convert("RGB") clips at 255 here and turns nearly every 16-bit picture white
        grey = np.clip(np.asarray(picture).astype(np.int64), 0, 65535)
        picture = Image.fromarray(((grey + 128) // 257).astype(np.uint8))
    rgb = picture.convert("RGB")
    if rgb is picture:
        rgb = picture.copy()  # the opened picture is closed on the way out
    rgb.info = {}
    return rgb


def _orientation(picture: Image.Image) -> int:
    try:
        value = picture.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:  # damaged metadata does not make the pixels unusable
        return 1
    return value if isinstance(value, int) else 1


def _reason(error: Exception, path: Path, max_pixels: int) -> str:
    match error:
        case PermissionError():
            return "no permission to read it"
        case Image.DecompressionBombError():
            return f"more than the {max_pixels:,} pixels allowed"
        case UnidentifiedImageError():
            if path.stat().st_size == 0:
                return "the file is empty"
            return "not a JPEG, PNG, WebP, BMP or GIF picture, or its header is damaged"
        case _:
            return f"damaged or truncated ({str(error) or type(error).__name__})"
