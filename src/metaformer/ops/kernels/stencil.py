# mypy: ignore-errors
"""Averages over a window on channels-last maps, and what their gradients need."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from metaformer.ops.kernels.launch import cdiv, launch

# A program takes ROWS rows of COLUMNS positions: 7, 14, 28 and 56 leave little of either unused, and a single
# small map still makes enough programs.
_ROWS, _COLUMNS = 4, 8


@triton.jit
def _inside(at, length, REACH: tl.constexpr):
    """How many positions of the window around `at` lie within the map, along one axis; never none."""
    return tl.maximum(tl.minimum(at + REACH, length - 1) - tl.maximum(at - REACH, 0) + 1, 1).to(tl.float32)


@triton.jit
def _row_sum(
    x, row, column, channel, height, width, DIM: tl.constexpr, SIZE: tl.constexpr, SHARED: tl.constexpr
):
    """Sum of the window's part in one row; SHARED divides each by its own window's count (the adjoint)."""
    total = tl.zeros((column.shape[0], channel.shape[0]), dtype=tl.float32)
    for step in tl.static_range(SIZE):
        at = column + step - SIZE // 2
        inside = (row >= 0) & (row < height) & (at >= 0) & (at < width)
        value = tl.load(
            x + (row * width + at)[:, None] * DIM + channel[None, :],
            mask=inside[:, None] & (channel < DIM)[None, :],
            other=0.0,
        ).to(tl.float32)
        if SHARED:
            value = value / _inside(at, width, SIZE // 2)[:, None]
        total += value
    if SHARED:
        total = total / _inside(row, height, SIZE // 2)[:, None]
    return total


@triton.jit
def _tile(
    height, width, DIM: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, CHANNELS: tl.constexpr
):
    """Sample, first row (for each column), columns and channels of this program, and its tile's number."""
    blocks: tl.constexpr = (DIM + CHANNELS - 1) // CHANNELS
    across = tl.cdiv(width, COLUMNS)
    down = tl.cdiv(height, ROWS)
    pid = tl.program_id(0)
    tile = pid // blocks
    channel = (pid % blocks) * CHANNELS + tl.arange(0, CHANNELS)
    column = (tile % across) * COLUMNS + tl.arange(0, COLUMNS)
    row = (tile // across) % down * ROWS + tl.zeros((COLUMNS,), dtype=tl.int32)
    return tile // (across * down), row, column, channel, tile


@triton.jit
def _window_sum(
    x, row, column, channel, height, width, above, here, below,
    DIM: tl.constexpr, SIZE: tl.constexpr, SHARED: tl.constexpr,
):  # fmt: skip
    """Sum of a window; a 3 × 3 one from the sums of three rows that its neighbors share."""
    if SIZE == 3:
        total = above + here + below
    else:
        total = _row_sum(x, row - SIZE // 2, column, channel, height, width, DIM, SIZE, SHARED)
        for step in tl.static_range(1, SIZE):
            total += _row_sum(x, row + step - SIZE // 2, column, channel, height, width, DIM, SIZE, SHARED)
    return total


@triton.jit
def _forward_kernel(
    x, weight, moments, shortcut, out, factor, height, width,
    DIM: tl.constexpr, SIZE: tl.constexpr, VECTOR: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    sample, first, column, channel, _ = _tile(height, width, DIM, ROWS, COLUMNS, CHANNELS)
    base = sample.to(tl.int64) * height * width * DIM
    x += base
    out += base
    here_only = channel < DIM
    gain = tl.load(weight + channel, mask=here_only, other=0.0).to(tl.float32) * tl.load(
        moments + sample * 2 + 1
    )
    keep = tl.zeros((CHANNELS,), dtype=tl.float32) + factor
    if VECTOR:
        keep = tl.load(shortcut + channel, mask=here_only, other=0.0).to(tl.float32)
    across = _inside(column, width, SIZE // 2)
    above = tl.zeros((COLUMNS, CHANNELS), dtype=tl.float32)
    here = above
    below = above
    if SIZE == 3:
        here = _row_sum(x, first - 1, column, channel, height, width, DIM, SIZE, False)
        below = _row_sum(x, first, column, channel, height, width, DIM, SIZE, False)
    for step in tl.static_range(ROWS):
        row = first + step
        if SIZE == 3:
            above = here
            here = below
            below = _row_sum(x, row + 1, column, channel, height, width, DIM, SIZE, False)
        total = _window_sum(x, row, column, channel, height, width, above, here, below, DIM, SIZE, False)
        at = (row * width + column)[:, None] * DIM + channel[None, :]
        inside = ((row < height) & (column < width))[:, None] & here_only[None, :]
        value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
        mean = total / (across * _inside(row, height, SIZE // 2))[:, None]
        result = keep[None, :] * value + gain[None, :] * (mean - value)
        tl.store(out + at, result.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _sums_kernel(
    x, grad, sums, height, width,
    DIM: tl.constexpr, SIZE: tl.constexpr, VECTOR: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Sums over a tile of grad · (pool(x) − x) and, with VECTOR, of grad · x."""
    sample, first, column, channel, tile = _tile(height, width, DIM, ROWS, COLUMNS, CHANNELS)
    base = sample.to(tl.int64) * height * width * DIM
    x += base
    grad += base
    here_only = channel < DIM
    across = _inside(column, width, SIZE // 2)
    above = tl.zeros((COLUMNS, CHANNELS), dtype=tl.float32)
    here = above
    below = above
    branch = above
    straight = above
    if SIZE == 3:
        here = _row_sum(x, first - 1, column, channel, height, width, DIM, SIZE, False)
        below = _row_sum(x, first, column, channel, height, width, DIM, SIZE, False)
    for step in tl.static_range(ROWS):
        row = first + step
        if SIZE == 3:
            above = here
            here = below
            below = _row_sum(x, row + 1, column, channel, height, width, DIM, SIZE, False)
        total = _window_sum(x, row, column, channel, height, width, above, here, below, DIM, SIZE, False)
        at = (row * width + column)[:, None] * DIM + channel[None, :]
        inside = ((row < height) & (column < width))[:, None] & here_only[None, :]
        value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
        pull = tl.load(grad + at, mask=inside, other=0.0).to(tl.float32)
        mean = total / (across * _inside(row, height, SIZE // 2))[:, None]
        branch += pull * (mean - value)
        straight += pull * value
    to = sums + tile.to(tl.int64) * DIM * (2 if VECTOR else 1) + channel
    tl.store(to, tl.sum(branch, axis=0), mask=here_only)
    if VECTOR:
        tl.store(to + DIM, tl.sum(straight, axis=0), mask=here_only)


@triton.jit
def _backward_kernel(
    x, grad, weight, moments, pull, shortcut, out, factor, height, width,
    DIM: tl.constexpr, SIZE: tl.constexpr, VECTOR: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    sample, first, column, channel, _ = _tile(height, width, DIM, ROWS, COLUMNS, CHANNELS)
    base = sample.to(tl.int64) * height * width * DIM
    x += base
    grad += base
    out += base
    here_only = channel < DIM
    middle = tl.load(moments + sample * 2)
    gain = tl.load(weight + channel, mask=here_only, other=0.0).to(tl.float32) * tl.load(
        moments + sample * 2 + 1
    )
    spread = tl.load(pull + sample)
    keep = tl.zeros((CHANNELS,), dtype=tl.float32) + factor
    if VECTOR:
        keep = tl.load(shortcut + channel, mask=here_only, other=0.0).to(tl.float32)
    above = tl.zeros((COLUMNS, CHANNELS), dtype=tl.float32)
    here = above
    below = above
    if SIZE == 3:
        here = _row_sum(grad, first - 1, column, channel, height, width, DIM, SIZE, True)
        below = _row_sum(grad, first, column, channel, height, width, DIM, SIZE, True)
    for step in tl.static_range(ROWS):
        row = first + step
        if SIZE == 3:
            above = here
            here = below
            below = _row_sum(grad, row + 1, column, channel, height, width, DIM, SIZE, True)
        total = _window_sum(grad, row, column, channel, height, width, above, here, below, DIM, SIZE, True)
        at = (row * width + column)[:, None] * DIM + channel[None, :]
        inside = ((row < height) & (column < width))[:, None] & here_only[None, :]
        value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
        given = tl.load(grad + at, mask=inside, other=0.0).to(tl.float32)
        result = keep[None, :] * given + gain[None, :] * (total - given) - spread * (value - middle)
        tl.store(out + at, result.to(out.dtype.element_ty), mask=inside)


def pooled(
    x: Tensor, weight: Tensor, moments: Tensor, shortcut: Tensor | None, factor: float, size: int
) -> Tensor:
    """Shortcut · x + weight/σ · (pool(x) − x) of rows (B, H, W, C)."""
    out = x.new_empty(x.shape)
    launch(
        _forward_kernel, _programs(x), x, x, weight, moments, weight if shortcut is None else shortcut, out,
        factor, x.shape[1], x.shape[2], VECTOR=shortcut is not None, **_options(x, size),
    )  # fmt: skip
    return out


def pooled_sums(x: Tensor, grad: Tensor, size: int, vector: bool) -> Tensor:
    """Sums over positions of grad · (pool(x) − x), and with `vector` of grad · x: (B, 1 or 2, C)."""
    batch, height, width, dim = x.shape
    tiles = cdiv(height, _ROWS) * cdiv(width, _COLUMNS)
    sums = x.new_empty((batch, tiles, 2 if vector else 1, dim), dtype=torch.float32)
    launch(_sums_kernel, _programs(x), x, x, grad, sums, height, width, VECTOR=vector, **_options(x, size))
    return sums.sum(1)


def pooled_gradient(
    x: Tensor, grad: Tensor, weight: Tensor, moments: Tensor, pull: Tensor, shortcut: Tensor | None,
    factor: float, size: int,
) -> Tensor:  # fmt: skip
    """Gradient for x; `pull` (B,) is what each sample's σ passes on per unit of x − μ."""
    out = x.new_empty(x.shape)
    launch(
        _backward_kernel, _programs(x), x, x, grad, weight, moments, pull,
        weight if shortcut is None else shortcut, out, factor, x.shape[1], x.shape[2],
        VECTOR=shortcut is not None, **_options(x, size),
    )  # fmt: skip
    return out


def _channels(dim: int) -> int:
    return 64 if dim > 32 else 32


def _programs(x: Tensor) -> int:
    batch, height, width, dim = x.shape
    return batch * cdiv(height, _ROWS) * cdiv(width, _COLUMNS) * cdiv(dim, _channels(dim))


def _options(x: Tensor, size: int) -> dict[str, int]:
    dim = x.shape[3]
    channels = _channels(dim)
    return {
        "DIM": dim, "SIZE": size, "ROWS": _ROWS, "COLUMNS": _COLUMNS, "CHANNELS": channels,
        "num_warps": channels // 32,
    }  # fmt: skip
