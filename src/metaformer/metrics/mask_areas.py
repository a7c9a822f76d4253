"""Areas of masks in COCO's compressed run lengths, and with them the certainty that they are such."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metaformer.errors import DataError

Mask = dict[str, Any]
"""A mask as COCO's results hold it: `size`, height and width, and `counts`, its compressed run lengths."""
_LONGEST = 6
"""Characters of the longest run length that is read: 29 bits and a sign, more than any picture needs."""


def mask_areas(masks: Sequence[Mask], size: tuple[int, int]) -> NDArray[np.int64]:
    """Count the pixels of the masks of one picture, all at once: a data set has half a million.

    Args:
        masks: `counts` may be text or bytes.
        size: height and width of the picture.

    Raises:
        DataError: a mask is damaged, or not of this size; the message tells its place, from 0.
    """
    texts = [_text(mask, number, size) for number, mask in enumerate(masks)]
    owners, numbers = _numbers(texts)
    many = np.bincount(owners, minlength=len(texts))
    first = many.cumsum() - many
    place = np.arange(len(owners)) - first.repeat(many)
    odd, begins = place % 2 == 1, place == 0
    runs = np.where(odd, _summed(numbers, odd, first, many), _summed(numbers, ~odd & ~begins, first, many))
    runs[begins] = numbers[begins]
    _refuse(owners[runs < 0], "a run length below 0")
    sums = np.bincount(owners, runs, len(texts))
    _refuse(np.flatnonzero(sums != size[0] * size[1]), f"not the run lengths of {size[1]}×{size[0]} pixels")
    return np.bincount(owners, runs * odd, len(texts)).astype(np.int64)


def _text(mask: Mask, number: int, size: tuple[int, int]) -> bytes:
    own, counts = (mask.get("size"), mask.get("counts")) if isinstance(mask, dict) else (None, None)
    if not isinstance(counts, str | bytes) or not isinstance(own, list | tuple):
        raise DataError(f"mask {number}: no compressed run lengths with a size")
    if tuple(own) != size:
        raise DataError(f"mask {number}: its height and width are {list(own)}, the picture's {list(size)}")
    return counts if isinstance(counts, bytes) else counts.encode("utf-8", "surrogatepass")


def _numbers(texts: Sequence[bytes]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The numbers in texts, one after another, and which text each is from.

    A number is its characters' low five bits, the lowest first; bit 0x20 says that more follow, and bit 0x10
    of the last that it is negative.
    """
    bits = np.frombuffer(b"".join(texts), np.uint8).astype(np.int64) - 48
    lengths = np.array([len(text) for text in texts], np.int64)
    of = np.arange(len(texts)).repeat(lengths)
    _refuse(of[(bits < 0) | (bits > 63)], "characters that run lengths do not have")
    last = bits < 32
    _refuse(np.flatnonzero(lengths == 0), "no run lengths")
    _refuse(np.flatnonzero(~last[lengths.cumsum() - 1]), "ends within a number")
    ends = np.flatnonzero(last)
    starts = np.concatenate([[0], ends + 1])[:-1].astype(np.int64)
    long = ends - starts + 1
    _refuse(of[ends[long > _LONGEST]], "a run length beyond any picture")
    shifted = (bits & 31) << 5 * (np.arange(len(bits)) - starts.repeat(long))
    numbers = np.add.reduceat(shifted, starts) if len(starts) else starts
    return of[ends], numbers - np.where(bits[ends] & 16, 1 << 5 * long, 0)


def _summed(
    numbers: NDArray[np.int64], wanted: NDArray[np.bool_], first: NDArray[np.int64], many: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Sums of each mask's wanted numbers up to each place; runs are written as differences."""
    sums = np.where(wanted, numbers, 0).cumsum()
    return sums - (sums[first] - np.where(wanted[first], numbers[first], 0)).repeat(many)


def _refuse(masks: NDArray[np.int64], why: str) -> None:
    if len(masks):
        raise DataError(f"mask {masks[0]}: {why}")
