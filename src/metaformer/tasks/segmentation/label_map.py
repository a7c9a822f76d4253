"""One label map: a PNG with a number for each pixel, and what the numbers mean."""

import os
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from metaformer.data.image import MAX_PIXELS, explain, need_file
from metaformer.errors import BadImage

LabelMap = NDArray[np.uint8] | NDArray[np.uint16]
"""(H, W); uint16 where there are more than 255 classes."""
IGNORE: Final = 255
WIDE_IGNORE: Final = 65535
_NUMBERS: Final = 65536
_SHOWN: Final = 5
_HINT: Final = "save one number a pixel, as a gray or palette PNG"
_UNKNOWN: Final = -1


def ignore_index(classes: int) -> int:
    """The value that stands for pixels that do not count, among this many classes."""
    return IGNORE if classes <= IGNORE else WIDE_IGNORE


def read_label_map(path: str | Path) -> LabelMap:
    """Read the numbers of a label map as they are in the file: gray, or places in the palette.

    Raises:
        BadImage: the file is missing, empty, damaged, too large, no PNG, or holds colors and no numbers.
        DataError: the machine is to blame: no memory, or too many open files.
    """
    need_file(path)
    try:
        with warnings.catch_warnings(), Image.open(path, formats=("PNG",)) as image:
            warnings.simplefilter("ignore")
            return _numbers(image, path)
    except BadImage:
        raise
    except UnidentifiedImageError as error:
        empty = os.path.getsize(path) == 0
        reason = (
            "the file is empty" if empty else "is no PNG, or its header is damaged; label maps must be PNG"
        )
        raise BadImage(path, reason) from error
    except Exception as error:
        raise explain(error, path, MAX_PIXELS) from error


def _numbers(image: Image.Image, path: str | Path) -> LabelMap:
    if image.width * image.height > MAX_PIXELS:
        size = f"{image.width}x{image.height}"
        raise BadImage(path, f"{size} is more than the {MAX_PIXELS:,} pixels allowed")
    if image.mode in ("RGB", "RGBA", "LA", "PA"):
        raise BadImage(path, f"is an {image.mode} image, no label map: {_HINT}")
    depth = _few_bits(image)
    if depth:
        raise BadImage(
            path, f"is gray of {depth} bits, which programs read as different numbers: save 8 bits"
        )
    numbers = np.asarray(image)
    if numbers.dtype == np.bool_:
        return numbers.astype(np.uint8)
    return numbers if numbers.dtype == np.uint8 else numbers.astype(np.uint16)


def _few_bits(image: Image.Image) -> int:
    """Bits of a gray image that Pillow stretches to 8: 2 or 4, else 0."""
    tiles = getattr(image, "tile", ())
    return {"L;2": 2, "L;4": 4}.get(str(tiles[0].args), 0) if tiles else 0


class LabelTable:
    """Which number in the files is which class, which are ignored, and which must not be there.

    Args:
        numbers: the number of each class in the files.
        ignored: the numbers of pixels that do not count; a number of a class may be among them.
    """

    def __init__(self, numbers: Iterable[int], ignored: Iterable[int]) -> None:
        self.numbers, self.ignored = tuple(numbers), tuple(dict.fromkeys(ignored))
        self.ignore_index = ignore_index(len(self.numbers))
        self._table = np.full(_NUMBERS, _UNKNOWN, dtype=np.int32)
        self._table[list(self.numbers)] = np.arange(len(self.numbers))
        self._table[list(self.ignored)] = self.ignore_index

    def translate(self, numbers: LabelMap, path: str | Path) -> LabelMap:
        """Give classes, 0 to K − 1 or `ignore_index`, for a file's numbers.

        Raises:
            BadImage: numbers that are no class's.
        """
        labels: NDArray[np.int32] = self._table[numbers]
        if labels.size and labels.min() < 0:
            raise BadImage(path, self.complaint(count(numbers)))
        return labels.astype(np.uint8) if self.ignore_index == IGNORE else labels.astype(np.uint16)

    def pixels(self, counts: Mapping[int, int]) -> tuple[list[int], int]:
        """Count the pixels of each class, and the ignored ones."""
        pixels, ignored = [0] * len(self.numbers), 0
        for number, many in counts.items():
            label = int(self._table[number])
            if label == self.ignore_index:
                ignored += many
            elif label != _UNKNOWN:
                pixels[label] += many
        return pixels, ignored

    def complaint(self, counts: Mapping[int, int]) -> str:
        """Say which of these numbers are no class's; empty where all are known."""
        strange = [number for number in sorted(counts) if self._table[number] == _UNKNOWN]
        if not strange:
            return ""
        shown = ", ".join(
            f"{number} ({counts[number]:,} pixel{'s' * (counts[number] > 1)})" for number in strange[:_SHOWN]
        )
        more = f" and {len(strange) - _SHOWN} more" if len(strange) > _SHOWN else ""
        known = f"classes are {_ranges(set(self.numbers) - set(self.ignored))}"
        return f"label {shown}{more}: {known}, ignored {_ranges(self.ignored)}"


def count(numbers: LabelMap) -> dict[int, int]:
    """Count the pixels of each number."""
    if numbers.dtype == np.uint8:  # Pillow counts these several times as fast
        counts = np.array(Image.fromarray(numbers).histogram())
    else:
        counts = np.bincount(numbers.ravel())
    return {int(number): int(counts[number]) for number in np.flatnonzero(counts)}


def _ranges(numbers: Iterable[int]) -> str:
    """Write numbers as people do: 0 to 10, 12."""
    runs: list[tuple[int, int]] = []
    for number in sorted(numbers):
        if runs and runs[-1][1] == number - 1:
            runs[-1] = (runs[-1][0], number)
        else:
            runs.append((number, number))
    return ", ".join(str(a) if a == b else f"{a} to {b}" for a, b in runs) or "none"
