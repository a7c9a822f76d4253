"""Square windows of a map as batches of tokens, and what belongs to relative positions in them."""

import torch
import torch.nn.functional as F
from torch import Tensor


def count(size: int, side: int) -> int:
    """Windows along an axis of `size` positions, the last one filled up."""
    return (size + side - 1) // side


def pad(x: Tensor, side: int, halo: int = 0) -> Tensor:
    """Put zeros around (B, C, H, W), so that windows of `side` with `halo` around them can be split off."""
    height, width = x.shape[2], x.shape[3]
    below, right = (count(n, side) * side - n for n in (height, width))
    # the map moves by the halo, so that the last window ends 2·halo positions into one more
    rest = side - halo if halo else 0
    return F.pad(x, (halo, right + rest, halo, below + rest))


def split(x: Tensor, side: int, halo: int = 0) -> Tensor:
    """Windows of a padded (B, C, H, W) as tokens (B · windows, (side + 2·halo)², C), row by row.

    Args:
        x: from `pad`.
        side: height and width of a window.
        halo: positions around a window that belong to it too, at most half of `side`.
    """
    rows = _split_axis(x.permute(0, 2, 3, 1), 1, side, halo)  # (B, rows, side, W, C)
    windows = _split_axis(rows, 3, side, halo).transpose(2, 3)  # (B, rows, columns, side, side, C)
    return windows.flatten(3, 4).flatten(0, 2)


def merge(tokens: Tensor, side: int, height: int, width: int) -> Tensor:
    """The inverse of `split` without halo, (B, C, height, width); the sizes are whole windows."""
    rows, columns = height // side, width // side
    windows = tokens.unflatten(1, (side, side)).unflatten(0, (-1, rows, columns))
    return windows.transpose(2, 3).flatten(3, 4).flatten(1, 2).permute(0, 3, 1, 2)


def roll(x: Tensor, axis: int, steps: int) -> Tensor:
    """Put the first `steps` positions of an axis behind the last.

    Unlike `torch.roll`'s, the number may depend on the size of an image in an exported file.
    """
    rest = x.shape[axis] - steps
    return torch.cat((x.narrow(axis, steps, rest), x.narrow(axis, 0, steps)), axis)


def crop(x: Tensor, height: int, width: int) -> Tensor:
    """The upper left part of (B, C, H, W), dense in channels-last memory."""
    part = x.permute(0, 2, 3, 1).narrow(1, 0, height).narrow(2, 0, width)
    return part.contiguous().permute(0, 3, 1, 2)


def by_relative_position(table: Tensor, queries: int, keys: int) -> Tensor:
    """The entry j − i + keys − 1 of a table for query i and key j, (queries, keys, …).

    Slices rather than an index: they have every derivative, and no buffer.
    """
    return torch.stack([table.narrow(0, keys - 1 - i, keys) for i in range(queries)])


def _split_axis(x: Tensor, axis: int, side: int, halo: int) -> Tensor:
    """Split an axis in two: the window, and the position in it."""
    windows = x.unflatten(axis, (-1, side))
    if not halo:
        return windows
    # padding moved the map by the halo: a window goes on in the first positions of the next
    last = windows.shape[axis] - 1
    following = windows.narrow(axis, 1, last).narrow(axis + 1, 0, 2 * halo)
    return torch.cat((windows.narrow(axis, 0, last), following), axis + 1)
