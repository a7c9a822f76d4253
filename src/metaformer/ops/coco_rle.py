"""Masks as COCO writes them: run lengths down the columns, plain or compressed, checked when read."""

from collections.abc import Mapping
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
