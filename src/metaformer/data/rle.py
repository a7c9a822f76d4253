"""Masks as COCO writes them: run lengths down the columns, plain or compressed, checked when read."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from metaformer.errors import DataError

Runs = NDArray[np.int64]
"""How many pixels lie outside, inside, outside and so on."""


_FIRST: Final = 48
"""The character that stands for 0."""


_BITS: Final = 5
"""Of the number in each character; a sixth says whether more follow."""


_LONGEST: Final = 7
"""Characters of a number; more would not fit what others read it into."""


_PIXELS: Final = 1 << 31


def encode(mask: NDArray[np.bool_]) -> dict[str, Any]:
    """Compress a mask (H, W), to what pycocotools gives for it: `size` (height, width) and `counts`, text."""
    flat = mask.ravel(order="F")
    turns = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    runs = np.diff(np.concatenate([[0], turns, [flat.size]]))
    if flat.size and flat[0]:
        runs = np.concatenate([[0], runs])
    return {"size": list(mask.shape), "counts": compress(runs)}


def decode(rle: Mapping[str, Any]) -> NDArray[np.bool_]:
    """Give the mask (H, W) of run lengths.

    Raises:
        DataError: they are damaged, or do not fit their size.
    """
    return fill(counts_of(rle), _size(rle))


def fill(runs: Runs, size: tuple[int, int]) -> NDArray[np.bool_]:
    """Give the mask (H, W) of run lengths that were checked."""
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(size, order="F")


def counts_of(rle: Mapping[str, Any]) -> Runs:
    """Give the run lengths of a mask, whether they are numbers or compressed to text.

    Raises:
        DataError: they are damaged, or do not add up to their size.
    """
    height, width = _size(rle)
    counts = rle.get("counts")
    runs = _decompressed(counts) if isinstance(counts, str | bytes) else _plain(counts)
    if len(runs) and not 0 <= int(runs.min()) <= int(runs.max()) <= height * width:
        extent = f"{runs.min():,} to {runs.max():,} pixels"
        raise DataError(f"run lengths of {extent} in a mask of {width}x{height}")
    if (total := int(runs.sum())) != height * width:
        wanted = f"width {width} times height {height} is {height * width:,}"
        raise DataError(f"run lengths add up to {total:,} pixels, but {wanted}")
    return runs


def compress(runs: Runs) -> str:
    """Write run lengths as text: each but the first three as the difference to the last but one."""
    rest = runs.copy()
    rest[3:] -= runs[1:-2]
    characters = np.zeros((len(rest), _LONGEST), dtype=np.uint8)
    used = np.zeros(characters.shape, dtype=np.bool_)
    going = np.ones(len(rest), dtype=np.bool_)
    for place in range(_LONGEST):
        bits = rest & 31
        rest >>= _BITS
        more = rest != np.where(bits & 16, -1, 0)
        characters[:, place] = bits + 32 * more + _FIRST
        used[:, place] = going
        going &= more
    return characters[used].tobytes().decode("ascii")


def _size(rle: Mapping[str, Any]) -> tuple[int, int]:
    match rle.get("size"):
        case [int(height), int(width)] if height >= 0 and width >= 0 and height * width < _PIXELS:
            return height, width
        case other:
            raise DataError(f"size of the run lengths is {other!r}, not height and width")


def _plain(counts: Any) -> Runs:
    try:
        runs = np.asarray(counts)
        if runs.ndim == 1 and (runs.dtype.kind in "iu" or not runs.size):
            return runs.astype(np.int64)
    except (ValueError, TypeError, OverflowError):
        pass
    raise DataError("run lengths must be whole numbers, or compressed text")


def _decompressed(text: str | bytes) -> Runs:
    try:
        data = text.encode("ascii") if isinstance(text, str) else text
    except UnicodeEncodeError as error:
        raise DataError(f"run lengths hold the character {error.object[error.start]!r}") from error
    bits = np.frombuffer(data, dtype=np.uint8).astype(np.int64) - _FIRST
    if len(strange := np.flatnonzero((bits < 0) | (bits > 63))):
        raise DataError(f"run lengths hold the character {chr(data[strange[0]])!r}")
    if not len(bits):
        return bits
    ends = np.flatnonzero(bits < 32)
    if bits[-1] >= 32:
        raise DataError("run lengths are cut off within a number")
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > _LONGEST:
        raise DataError("run lengths hold a number that is too long")
    place = np.arange(len(bits)) - np.repeat(starts, lengths)
    runs = np.add.reduceat((bits & 31) << _BITS * place, starts)
    runs -= np.where(bits[ends] & 16, 1 << _BITS * lengths, 0)
    runs[1::2] = np.cumsum(runs[1::2])
    runs[2::2] = np.cumsum(runs[2::2])
    return runs


def run_lengths(label_map: NDArray[Any]) -> Iterator[tuple[int, list[int]]]:
    """Each class that a label map holds, with COCO's uncompressed run lengths of its mask.

    They go down the columns and take turns, beginning with the pixels before the first of the class.
    """
    flat = label_map.ravel(order="F")
    starts = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1])
    ends = np.concatenate([starts[1:], [flat.size]])
    of = flat[starts]
    order = np.argsort(of, kind="stable")
    found, first = np.unique(of[order], return_index=True)
    for index, runs in zip(found.tolist(), np.split(order, first[1:]), strict=True):
        turns = np.stack([starts[runs], ends[runs]], axis=1).ravel()
        counts = np.diff(turns, prepend=0).tolist()
        rest = flat.size - int(turns[-1])
        yield int(index), [*counts, rest] if rest else counts


Mask = dict[str, Any]
"""A mask as COCO's results hold it: `size`, height and width, and `counts`, its compressed run lengths."""


_LONGEST_RUN = 6
"""Characters of the longest run length that is read: 29 bits and a sign, more than any image needs."""


def mask_areas(masks: Sequence[Mask], size: tuple[int, int]) -> NDArray[np.int64]:
    """Count the pixels of the masks of one image, all at once: a data set has half a million.

    Args:
        masks: `counts` may be text or bytes.
        size: height and width of the image.

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
        raise DataError(f"mask {number}: its height and width are {list(own)}, the image's {list(size)}")
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
    _refuse(of[ends[long > _LONGEST_RUN]], "a run length beyond any image")
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
