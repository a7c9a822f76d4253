"""Safe decoding of one image to RGB: whatever its bytes are, the error is `BadImage`."""

import errno
import io
import logging
import os
import warnings
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from metaformer.color import Color
from metaformer.errors import BadImage, DataError, TooManyPixels

FORMATS: Final = ("JPEG", "PNG", "WEBP", "BMP", "GIF")
"""Formats that are decoded, recognized by content; hostile files do not reach Pillow's rarer decoders."""

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
_NO_MEMORY: Final = "out of memory"  # what Pillow's decoders make of their code for it, an OSError
_log = logging.getLogger(__name__)


def read_image(
    path: str | Path, max_pixels: int = MAX_PIXELS, *, background: Color | None = None
) -> Image.Image:
    """Read an image file as 8-bit RGB, turned upright by its EXIF orientation; see `decode_image`.

    Args:
        path: the file; its format is found by content, not by extension.
        max_pixels: larger images are refused from their header, before anything is decoded.
        background: color that transparent pixels are blended on.

    Raises:
        BadImage: the file is missing, empty, damaged, too large, or no JPEG, PNG, WebP, BMP or GIF.
        DataError: not the file's fault: out of memory, or too many open files.
    """
    need_file(path)
    try:
        with open(path, "rb") as stream:
            return decode_image(stream, path, max_pixels, background=background)
    except OSError as error:
        raise explain(error, path, max_pixels) from error


def need_file(path: str | Path) -> None:
    """Check that a path is a regular file; reading a pipe or a device could block forever.

    Raises:
        BadImage: it is not, or does not exist.
    """
    if not os.path.isfile(path):
        raise BadImage(path, "is no ordinary file" if os.path.exists(path) else "no such file")


def image_size(path: str | Path) -> tuple[int, int]:
    """Width and height that `read_image` would give, from the header alone.

    Raises:
        BadImage: the file is missing, empty or no image.
        DataError: not the file's fault: out of memory, or too many open files.
    """
    need_file(path)
    try:
        with warnings.catch_warnings(), Image.open(path, formats=FORMATS) as image:
            warnings.simplefilter("ignore")
            # Pillow reads all of a PNG to see whether an orientation comes behind the pixels
            late = image.format == "PNG" and "exif" not in image.info
            turned = not late and _orientation(image) in range(5, 9)
            return image.size[::-1] if turned else image.size
    except Exception as error:
        raise explain(error, path, MAX_PIXELS) from error


def decode_image(
    data: bytes | BinaryIO,
    name: str | Path,
    max_pixels: int = MAX_PIXELS,
    *,
    background: Color | None = None,
) -> Image.Image:
    """Decode an image to 8-bit RGB, turned upright by its EXIF orientation.

    Without a background transparency is dropped, as in torchvision and timm (`convert("RGB")`), and
    `info["hides_colors"]` set where pixels have any; 16-bit gray is scaled to 8 bits; of an animation the
    first frame is taken, a warning logged, and `info["animated"]` set.

    Args:
        data: the encoded image, or an open file that can be sought.
        name: its name in errors.
        max_pixels: larger images are refused from their header, before anything is decoded.
        background: color that transparent pixels are blended on.

    Raises:
        BadImage: empty, damaged, too large, or no JPEG, PNG, WebP, BMP or GIF.
        DataError: not the file's fault: out of memory, or too many open files.
    """
    stream = io.BytesIO(data) if isinstance(data, bytes) else data
    try:
        with warnings.catch_warnings():
            # Pillow warns about odd metadata and about sizes; sizes are checked here, and as an error.
            warnings.simplefilter("ignore")
            with Image.open(stream, formats=FORMATS) as image:
                return _decode(image, name, max_pixels, background)
    except BadImage:
        raise
    except Exception as error:  # Pillow's decoders raise nearly every class there is on damaged files
        if isinstance(error, UnidentifiedImageError) and not stream.seek(0, io.SEEK_END):
            raise BadImage(name, "the file is empty") from error
        raise explain(error, name, max_pixels) from error


def _decode(image: Image.Image, name: str | Path, max_pixels: int, background: Color | None) -> Image.Image:
    width, height = image.size
    if width * height > max_pixels:
        raise TooManyPixels(name, f"{width}x{height} is more than the {max_pixels:,} pixels allowed")
    # further images of a phone's MPO are previews and depth maps of the first, not an animation
    animated = image.format != "MPO" and bool(getattr(image, "is_animated", False))
    if animated:
        _log.warning("%s: animated, only its first frame is used", name)
        image.seek(0)
    rgb = upright_rgb(image, background)
    marks = {"animated": animated, "hides_colors": background is None and _hides_colors(image)}
    rgb.info = {mark: True for mark, found in marks.items() if found}
    return rgb


def image_in_memory(
    image: Image.Image | NDArray[Any], name: str = "the image", background: Color | None = None
) -> Image.Image:
    """An image in memory as `read_image` gives the same image from a file.

    Args:
        image: an image of Pillow, of which the current frame is taken; or an array (H, W, 3) uint8 in the
            order red, green, blue, also (H, W, 4), or gray (H, W) of 8 or 16 bits.
        name: its name in errors.
        background: color that transparent pixels are blended on.

    Raises:
        BadImage: it is damaged.
        DataError: another array; out of memory.
    """
    if isinstance(image, np.ndarray):
        image = _array_image(image, name)
    try:
        with warnings.catch_warnings(action="ignore"):
            rgb = upright_rgb(image, background)
            rgb = image.copy() if rgb is image else rgb
    except Exception as error:
        raise explain(error, name, MAX_PIXELS) from error
    rgb.info = {}
    return rgb


def _array_image(array: NDArray[Any], name: str) -> Image.Image:
    color = array.ndim == 3 and array.shape[2] in (3, 4) and array.dtype == np.uint8
    gray = array.ndim == 2 and array.dtype in (np.uint8, np.uint16, np.int32)
    if not (color or gray) or not array.size:
        form = f"an array {array.shape} of {array.dtype}"
        raise DataError(f"{name}: is {form}: give (H, W, 3) of uint8, red, green and blue of 0 to 255")
    return Image.fromarray(np.ascontiguousarray(array))


def upright_rgb(image: Image.Image, background: Color | None = None) -> Image.Image:
    """The current frame as 8-bit RGB, turned by its EXIF orientation; it may share its pixels.

    Transparent pixels are blended on a color if one is given.
    """
    key = _color_key(image)
    image.load()
    if key is not None:
        image.info["transparency"] = key
    turn = _UPRIGHT.get(_orientation(image))
    rgb = _rgb(image, background)
    return rgb if turn is None else rgb.transpose(turn)


def _color_key(image: Image.Image) -> int | tuple[int, ...] | None:
    """The clear value of a PNG in the numbers of its decoded pixels, where Pillow scales the pixels alone."""
    tiles: Any = getattr(image, "tile", None)  # how Pillow reads an opened file
    key, raw = image.info.get("transparency"), tiles[0][3] if tiles else None
    if isinstance(key, int) and raw in ("L;2", "L;4"):
        return key * (85 if raw == "L;2" else 17)
    if isinstance(key, tuple) and raw == "RGB;16B":
        return tuple(channel >> 8 for channel in key)
    return None


def _rgb(image: Image.Image, background: Color | None) -> Image.Image:
    if image.mode == "RGB" and image.format == "JPEG":
        return image  # its pixels outlive its file, and copying them can take as long as decoding
    image = _eight_bits(image)
    if background is not None and image.has_transparency_data:
        below = Image.new("RGBA", image.size, background)
        return Image.alpha_composite(below, image.convert("RGBA")).convert("RGB")
    rgb = image.convert("RGB")
    if rgb is image:
        rgb = image.copy()  # the opened image is closed on the way out
    return rgb


def _eight_bits(image: Image.Image) -> Image.Image:
    """16-bit gray as 8 bits, with an alpha channel where it has a clear value; others as they are.

    `convert("RGB")` clips it at 255, which turns nearly every such image white, and forgets the clear value.
    """
    if image.mode != "I" and not image.mode.startswith("I;16"):
        return image
    values = np.asarray(image)
    gray = np.clip(values.astype(np.int64), 0, 65535)
    eight = Image.fromarray(((gray + 128) // 257).astype(np.uint8))
    if isinstance(clear := image.info.get("transparency"), int):
        eight.putalpha(Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8)))
    return eight


def _hides_colors(image: Image.Image) -> bool:
    """Whether an image that is decoded has transparent pixels, whose colors viewers hide."""
    if not image.has_transparency_data:
        return False
    try:
        image = _eight_bits(image)
        alpha = (image if "A" in image.getbands() else image.convert("RGBA")).getchannel("A")
    except Exception:  # Pillow cannot make alpha of a damaged color key; the colors are good all the same
        return False
    return bool(np.asarray(alpha).min() < 255)


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(_ORIENTATION_TAG, 1)
    except MemoryError:
        raise
    except Exception:  # damaged metadata does not make the pixels unusable
        return 1
    return value if isinstance(value, int) else 1


def explain(error: Exception, name: str | Path, max_pixels: int) -> DataError:
    """Turn an error of Pillow into one with a remedy.

    Errors of the machine are no `BadImage`, so that skipping bad images never hides them.
    """
    number = error.errno if isinstance(error, OSError) else None
    if isinstance(error, MemoryError) or number == errno.ENOMEM or str(error).startswith(_NO_MEMORY):
        return DataError(f"not enough memory to decode {name}: take fewer data.workers, or smaller images")
    if number in (errno.EMFILE, errno.ENFILE):
        return DataError(f"too many open files to read {name}: raise the limit (ulimit -n)")
    match error:
        case PermissionError():
            reason = "no permission to read it"
        case Image.DecompressionBombError():
            return TooManyPixels(name, f"more than the {max_pixels:,} pixels allowed")
        case UnidentifiedImageError():
            reason = "not a JPEG, PNG, WebP, BMP or GIF image, or its header is damaged"
        case OSError(strerror=str(message)):
            reason = f"cannot be read ({message})"
        case _:
            reason = f"damaged or truncated ({str(error) or type(error).__name__})"
    return BadImage(name, reason)
