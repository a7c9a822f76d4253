"""Run-length encoding (RLE) of masks as in COCO: down the columns, as numbers or as compressed text."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from metaformer.errors import DataError

Mask = dict[str, Any]
"""COCO's RLE of a mask: `size`, height and width, and `counts`, run lengths or compressed text."""
Runs = NDArray[np.int64]
"""Lengths of runs of pixels that lie outside the mask, inside, outside and so on."""

_FIRST: Final = 48
"""Character of compressed text that stands for 0."""
_BITS: Final = 5
"""Bits of a number in each character; a sixth says whether more follow."""
_LONGEST: Final = 7
"""Characters of a number: 34 bits and a sign."""
_PIXELS: Final = 1 << 31


def run_lengths(label_map: NDArray[Any]) -> Iterator[tuple[int, list[int]]]:
    """Run lengths of the mask of each value in a label map (H, W), in the order of the values."""
    flat = label_map.ravel(order="F")
    bounds = _stretches(flat)
    starts, ends = bounds[:-1], bounds[1:]
    values = flat[starts]
    order = np.argsort(values, kind="stable")
    found, first = np.unique(values[order], return_index=True)
    for value, stretches in zip(found.tolist(), np.split(order, first[1:]), strict=True):
        turns = np.stack([starts[stretches], ends[stretches]], axis=1).ravel()
        counts = np.diff(turns, prepend=0).tolist()
        rest = flat.size - int(turns[-1])
        yield int(value), [*counts, rest] if rest else counts


def encode(mask: NDArray[np.bool_], left: int = 0, right: int | None = None) -> Mask:
    """Compressed RLE of a mask (H, W), the same as pycocotools'.

    Args:
        mask: the pixels.
        left: first column that may have pixels, as is known of a small object in a large image.
        right: column after the last one.
    """
    height, width = mask.shape
    flat = mask[:, left:right].ravel(order="F")
    runs = np.diff(_stretches(flat))
    if flat.size and flat[0]:
        runs = np.concatenate([[0], runs])
    runs[0] += left * height
    rest = mask.size - left * height - flat.size
    if len(runs) % 2:
        runs[-1] += rest
    elif rest:
        runs = np.append(runs, rest)
    return {"size": [height, width], "counts": compress(runs)}


def _stretches(flat: NDArray[Any]) -> NDArray[np.int64]:
    """Bounds of the stretches of equal values, from 0 to the size."""
    return np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1, [flat.size]])


def decode(rle: Mapping[str, Any]) -> NDArray[np.bool_]:
    """Mask (H, W) of an RLE.

    Raises:
        DataError: the run lengths are damaged, or do not fit the size.
    """
    return fill(read_counts(rle), _size(rle))


def fill(runs: Runs, size: tuple[int, int]) -> NDArray[np.bool_]:
    """Mask (H, W) of valid run lengths."""
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(size, order="F")


def read_counts(rle: Mapping[str, Any]) -> Runs:
    """Run lengths of an RLE, be they numbers or text.

    Raises:
        DataError: they are damaged, or do not fit the size.
    """
    height, width = _size(rle)
    counts = rle.get("counts")
    if isinstance(counts, str | bytes):
        _, _, runs = _decompress([_encoded(counts)], "")
    else:
        runs = _numbers(counts)
    _check(runs, np.zeros(len(runs), np.int64), 1, (height, width), "")
    return runs


def mask_areas(masks: Sequence[Mask], size: tuple[int, int]) -> NDArray[np.int64]:
    """Numbers of pixels of the compressed masks of one image, all at once: a data set has half a million.

    Args:
        masks: with `counts` as text or bytes.
        size: height and width of the image.

    Raises:
        DataError: a mask is damaged, or of another size; the message has its index.
    """
    texts = []
    for number, mask in enumerate(masks):
        own, counts = (mask.get("size"), mask.get("counts")) if isinstance(mask, dict) else (None, None)
        if not isinstance(counts, str | bytes) or not isinstance(own, list | tuple):
            raise DataError(f"mask {number}: no compressed run lengths with a size")
        if tuple(own) != size:
            raise DataError(f"mask {number}: its height and width are {list(own)}, the image's {list(size)}")
        texts.append(_encoded(counts))
    owners, positions, runs = _decompress(texts, "mask {}: ")
    _check(runs, owners, len(texts), size, "mask {}: ")
    return np.bincount(owners, runs * (positions % 2), len(texts)).astype(np.int64)


def compress(runs: Runs) -> str:
    """Compressed text of run lengths: each but the first three as the difference to the last but one."""
    rest = runs.copy()
    rest[3:] -= runs[1:-2]
    characters = np.zeros((len(rest), _LONGEST), dtype=np.uint8)
    used = np.zeros(characters.shape, dtype=np.bool_)
    going = np.ones(len(rest), dtype=np.bool_)
    for digit in range(_LONGEST):
        bits = rest & 31
        rest >>= _BITS
        more = rest != np.where(bits & 16, -1, 0)
        characters[:, digit] = bits + 32 * more + _FIRST
        used[:, digit] = going
        going &= more
    return characters[used].tobytes().decode("ascii")


def _decompress(texts: Sequence[bytes], prefix: str) -> tuple[NDArray[np.int64], NDArray[np.int64], Runs]:
    """Index of the text, position in it, and run length of all runs in several compressed texts.

    A number is its characters' low five bits, the lowest first; bit 0x20 says that more follow, and bit 0x10
    of the last that the number is negative.
    """
    bits = np.frombuffer(b"".join(texts), np.uint8).astype(np.int64) - _FIRST
    lengths = np.array([len(text) for text in texts], np.int64)
    text_of = np.arange(len(texts)).repeat(lengths)  # of each character
    _refuse(text_of[bits & ~63 != 0], prefix, "run lengths hold characters that they cannot have")
    _refuse(np.flatnonzero(lengths == 0), prefix, "no run lengths")
    last = bits < 32
    _refuse(np.flatnonzero(~last[lengths.cumsum() - 1]), prefix, "run lengths are cut off within a number")
    ends = np.flatnonzero(last)
    starts = np.zeros_like(ends)
    starts[1:] = ends[:-1] + 1
    digits = ends - starts + 1
    _refuse(text_of[ends[digits > _LONGEST]], prefix, "run lengths hold a number that is too long")
    shifted = (bits & 31) << _BITS * (np.arange(len(bits)) - starts.repeat(digits))
    numbers = np.add.reduceat(shifted, starts) if len(starts) else starts
    numbers -= (bits[ends] >> 4) << _BITS * digits  # the sign

    owners = text_of[ends]  # of each number
    counts = np.bincount(owners, minlength=len(texts))
    first = counts.cumsum() - counts  # index of each text's first number
    positions = np.arange(len(owners)) - first.repeat(counts)
    # Undo the differences: running sums of the odd positions, and of the even ones but the very first.
    odd, begins = positions % 2 == 1, positions == 0
    runs = np.where(
        odd, _running_sum(numbers, odd, first, counts), _running_sum(numbers, ~odd & ~begins, first, counts)
    )
    runs[begins] = numbers[begins]
    return owners, positions, runs


def _running_sum(
    numbers: NDArray[np.int64], which: NDArray[np.bool_], first: NDArray[np.int64], counts: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Running sum of some of the numbers, begun anew with each text."""
    sums = np.where(which, numbers, 0).cumsum()
    return sums - (sums[first] - np.where(which[first], numbers[first], 0)).repeat(counts)


def _check(runs: Runs, owners: NDArray[np.int64], count: int, size: tuple[int, int], prefix: str) -> None:
    """Refuse run lengths of some masks of one size that are negative or of another number of pixels."""
    _refuse(owners[runs < 0], prefix, "a run length is below 0")
    sums = np.bincount(owners, runs, count)  # float64: exact up to the size, and too large beyond it
    if len(wrong := np.flatnonzero(sums != size[0] * size[1])):
        pixels = f"{size[1]}×{size[0]} are {size[0] * size[1]:,}"
        _refuse(wrong, prefix, f"run lengths add up to {int(sums[wrong[0]]):,} pixels, but {pixels}")


def _refuse(masks: NDArray[np.int64], prefix: str, why: str) -> None:
    if len(masks):
        raise DataError(prefix.format(masks[0]) + why)


def _encoded(text: str | bytes) -> bytes:
    return text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")


def _size(rle: Mapping[str, Any]) -> tuple[int, int]:
    match rle.get("size"):
        case [int(height), int(width)] if height >= 0 and width >= 0 and height * width < _PIXELS:
            return height, width
        case other:
            raise DataError(f"size of the run lengths is {other!r}, not height and width")


def _numbers(counts: Any) -> Runs:
    try:
        runs = np.asarray(counts)
        if runs.ndim == 1 and (runs.dtype.kind in "iu" or not runs.size):
            return runs.astype(np.int64)
    except (ValueError, TypeError, OverflowError):
        pass
    raise DataError("run lengths must be whole numbers, or compressed text")
