# mypy: ignore-errors
"""CycleFC's products: along the width, along the height and plain, summed with weights of each sample.

A channel is read at an offset that its class, the channel modulo the kernel, decides. Side by side in memory
lie channels of all classes, so a tile is read whole at each offset, and of each reading the class is taken.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from metaformer.ops.kernels.launch import cdiv, launch, precision

# Of the weights' gradient: the most positions of one sample in a sum, and the sums that fill a device
_CHUNK, _PROGRAMS = 1024, 264


@triton.jit
def _gathered(x, row, place, length, stride, live, channel, DIM: tl.constexpr, KERNEL: tl.constexpr):
    """A tile (positions, channels) shifted along one axis, zero beyond the border.

    Args:
        x: the map.
        row: number of each position.
        place: of each position along the axis.
        length: of the axis.
        stride: positions from one place to the next.
        live: which positions there are.
        channel: numbers of the channels.
        DIM: channels of the map.
        KERNEL: number of classes.
    """
    here = channel < DIM
    kind = channel % KERNEL
    tile = tl.load(x + row[:, None] * DIM + channel[None, :], mask=live[:, None] & here[None, :], other=0.0)
    for residue in tl.static_range(1, KERNEL):
        offset = (residue + KERNEL // 2) % KERNEL - KERNEL // 2
        inside = live & (place + offset >= 0) & (place + offset < length)
        moved = tl.load(
            x + (row + offset * stride)[:, None] * DIM + channel[None, :],
            mask=inside[:, None] & here[None, :],
            other=0.0,
        )
        tile = tl.where((kind == residue)[None, :], moved, tile)
    return tile


@triton.jit
def _weights_tile(w, output, channel, OUT: tl.constexpr, DIM: tl.constexpr):
    """Weights (channels, outputs) of (OUT, DIM)."""
    return tl.load(
        w + output[None, :] * DIM + channel[:, None],
        mask=(output < OUT)[None, :] & (channel < DIM)[:, None],
        other=0.0,
    )


@triton.jit
def _forward_kernel(
    x, along, down, plain, weights, out, rows, height, width,
    DIM: tl.constexpr, KERNEL: tl.constexpr, PRECISION: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    across: tl.constexpr = (DIM + COLUMNS - 1) // COLUMNS
    pid = tl.program_id(0)
    row = (pid // across) * ROWS + tl.arange(0, ROWS)
    output = (pid % across) * COLUMNS + tl.arange(0, COLUMNS)
    live = row < rows
    column = row % width
    line = row // width % height
    sample = row // (width * height)
    at = row.to(tl.int64)
    first = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    second = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    third = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    for done in range(0, DIM, DEPTH):
        channel = done + tl.arange(0, DEPTH)
        tile = _gathered(x, at, column, width, 1, live, channel, DIM, KERNEL)
        first = tl.dot(
            tile, _weights_tile(along, output, channel, DIM, DIM), first, input_precision=PRECISION
        )
        tile = _gathered(x, at, line, height, width, live, channel, DIM, KERNEL)
        second = tl.dot(
            tile, _weights_tile(down, output, channel, DIM, DIM), second, input_precision=PRECISION
        )
        tile = _gathered(x, at, line, height, width, live, channel, DIM, 1)
        third = tl.dot(
            tile, _weights_tile(plain, output, channel, DIM, DIM), third, input_precision=PRECISION
        )
    inside = live[:, None] & (output < DIM)[None, :]
    share = weights + sample[:, None] * (3 * DIM) + output[None, :]
    result = first * tl.load(share, mask=inside, other=0.0).to(tl.float32)
    result += second * tl.load(share + DIM, mask=inside, other=0.0).to(tl.float32)
    result += third * tl.load(share + 2 * DIM, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + at[:, None] * DIM + output[None, :], result.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _branch_gradient(
    result, grad, row, shift, inside, w, share, place, width,
    DIM: tl.constexpr, PRECISION: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """Add one branch's part: the weighted gradient, read at one offset, times its weights."""
    for done in range(0, DIM, DEPTH):
        output = done + tl.arange(0, DEPTH)
        known = output < DIM
        given = tl.load(
            grad + (row + shift)[:, None] * DIM + output[None, :],
            mask=inside[:, None] & known[None, :],
            other=0.0,
        )
        part = tl.load(share + output, mask=known, other=0.0).to(tl.float32)
        right = tl.load(
            w + output[:, None] * width + place[None, :],
            mask=known[:, None] & (place < width)[None, :],
            other=0.0,
        )
        left = (given.to(tl.float32) * part[None, :]).to(right.dtype)
        result = tl.dot(left, right, result, input_precision=PRECISION)
    return result


@triton.jit
def _map_gradient_kernel(
    grad, along, down, plain, weights, out, height, width,
    DIM: tl.constexpr, KERNEL: tl.constexpr, CLASS: tl.constexpr, PRECISION: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """A tile is of one sample and of one class of channels, all of which have the same offset.

    Weights are (KERNEL, DIM, CLASS): those of a class lie side by side.
    """
    blocks: tl.constexpr = (CLASS + COLUMNS - 1) // COLUMNS
    pid = tl.program_id(0)
    kind = pid % KERNEL
    block = pid // KERNEL % blocks
    tile = pid // (KERNEL * blocks)
    parts = tl.cdiv(height * width, ROWS)
    sample = tile // parts
    position = (tile % parts) * ROWS + tl.arange(0, ROWS)
    live = position < height * width
    offset = (kind + KERNEL // 2) % KERNEL - KERNEL // 2
    place = block * COLUMNS + tl.arange(0, COLUMNS)
    channel = place * KERNEL + kind
    own = kind * (DIM * CLASS)
    row = sample.to(tl.int64) * (height * width) + position
    column = position % width - offset
    line = position // width - offset
    share = weights + sample * (3 * DIM)
    result = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    inside = live & (column >= 0) & (column < width)
    result = _branch_gradient(
        result, grad, row, -offset, inside, along + own, share, place, CLASS, DIM, PRECISION, DEPTH
    )
    inside = live & (line >= 0) & (line < height)
    result = _branch_gradient(
        result,
        grad,
        row,
        -offset * width,
        inside,
        down + own,
        share + DIM,
        place,
        CLASS,
        DIM,
        PRECISION,
        DEPTH,
    )
    result = _branch_gradient(
        result, grad, row, 0, live, plain + own, share + 2 * DIM, place, CLASS, DIM, PRECISION, DEPTH
    )
    to = out + row[:, None] * DIM + channel[None, :]
    tl.store(to, result.to(out.dtype.element_ty), mask=live[:, None] & (channel < DIM)[None, :])


@triton.jit
def _share_gradient(
    crossed, total, w, weights, share_to, output, channel, DIM: tl.constexpr,
):  # fmt: skip
    """Of one sample's gradᵀ · x: the branch weights' part, stored; its weighted sum, given back."""
    known = output < DIM
    weight = tl.load(
        w + output[:, None] * DIM + channel[None, :],
        mask=known[:, None] & (channel < DIM)[None, :],
        other=0.0,
    ).to(tl.float32)
    tl.store(share_to + output, tl.sum(crossed * weight, axis=1), mask=known)
    part = tl.load(weights + output, mask=known, other=0.0).to(tl.float32)
    return total + crossed * part[:, None]


@triton.jit
def _weight_gradient_kernel(
    grad, x, along, down, plain, weights, sums, shares, units, chunks, splits, height, width,
    DIM: tl.constexpr, KERNEL: tl.constexpr, PRECISION: tl.constexpr, CHUNK: tl.constexpr,
    OUTPUTS: tl.constexpr, CHANNELS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Every `splits`-th unit, a unit being a chunk of a sample; nothing of (B, C, C) is stored."""
    blocks: tl.constexpr = (DIM + CHANNELS - 1) // CHANNELS
    tall: tl.constexpr = (DIM + OUTPUTS - 1) // OUTPUTS
    pid = tl.program_id(0)
    block = pid % blocks
    split = pid // (blocks * tall)
    output = (pid // blocks % tall) * OUTPUTS + tl.arange(0, OUTPUTS)
    channel = block * CHANNELS + tl.arange(0, CHANNELS)
    of_along = tl.zeros((OUTPUTS, CHANNELS), dtype=tl.float32)
    of_down = tl.zeros((OUTPUTS, CHANNELS), dtype=tl.float32)
    of_plain = tl.zeros((OUTPUTS, CHANNELS), dtype=tl.float32)
    for unit in range(split, units, splits):
        sample = unit // chunks
        first = tl.zeros((OUTPUTS, CHANNELS), dtype=tl.float32)
        second = tl.zeros((OUTPUTS, CHANNELS), dtype=tl.float32)
        third = tl.zeros((OUTPUTS, CHANNELS), dtype=tl.float32)
        start = (unit % chunks) * CHUNK
        stop = tl.minimum(start + CHUNK, height * width)
        for done in range(start, stop, ROWS):
            position = done + tl.arange(0, ROWS)
            live = position < stop
            row = sample.to(tl.int64) * (height * width) + position
            given = tl.load(
                grad + row[:, None] * DIM + output[None, :],
                mask=live[:, None] & (output < DIM)[None, :],
                other=0.0,
            )
            given = tl.trans(given)
            tile = _gathered(x, row, position % width, width, 1, live, channel, DIM, KERNEL)
            first = tl.dot(given, tile, first, input_precision=PRECISION)
            tile = _gathered(x, row, position // width, height, width, live, channel, DIM, KERNEL)
            second = tl.dot(given, tile, second, input_precision=PRECISION)
            tile = _gathered(x, row, position, height, width, live, channel, DIM, 1)
            third = tl.dot(given, tile, third, input_precision=PRECISION)
        share = weights + sample * (3 * DIM)
        to = shares + (unit * blocks + block).to(tl.int64) * (3 * DIM)
        of_along = _share_gradient(first, of_along, along, share, to, output, channel, DIM)
        of_down = _share_gradient(second, of_down, down, share + DIM, to + DIM, output, channel, DIM)
        of_plain = _share_gradient(
            third, of_plain, plain, share + 2 * DIM, to + 2 * DIM, output, channel, DIM
        )
    at = sums + split.to(tl.int64) * (3 * DIM * DIM) + output[:, None] * DIM + channel[None, :]
    inside = (output < DIM)[:, None] & (channel < DIM)[None, :]
    tl.store(at, of_along, mask=inside)
    tl.store(at + DIM * DIM, of_down, mask=inside)
    tl.store(at + 2 * DIM * DIM, of_plain, mask=inside)


def shift_product(
    x: Tensor, along: Tensor, down: Tensor, plain: Tensor, weights: Tensor, kernel: int
) -> Tensor:
    """Weighted sum of the three products of rows (B, H, W, C); `weights` is (B, 3, C)."""
    batch, height, width, dim = x.shape
    number = batch * height * width
    out = x.new_empty(x.shape)
    blocks = _forward_blocks(number, x.dtype)
    launch(
        _forward_kernel, cdiv(number, blocks["ROWS"]) * cdiv(dim, blocks["COLUMNS"]), x, x, along, down,
        plain, weights, out, number, height, width, DIM=dim, KERNEL=kernel, PRECISION=precision(x.dtype),
        **blocks,
    )  # fmt: skip
    return out


def map_gradient(
    grad: Tensor, along: Tensor, down: Tensor, plain: Tensor, weights: Tensor, kernel: int
) -> Tensor:
    """Gradient for x."""
    batch, height, width, dim = grad.shape
    out = grad.new_empty(grad.shape)
    along, down, plain = (_by_class(w, kernel) for w in (along, down, plain))
    blocks = _map_gradient_blocks(along.shape[2], grad.dtype)
    parts = cdiv(height * width, blocks["ROWS"])
    programs = batch * parts * kernel * cdiv(along.shape[2], blocks["COLUMNS"])
    launch(
        _map_gradient_kernel, programs, grad, grad, along, down, plain, weights, out, height, width, DIM=dim,
        KERNEL=kernel, CLASS=along.shape[2], PRECISION=precision(grad.dtype), **blocks,
    )  # fmt: skip
    return out


def weight_gradient(
    grad: Tensor, x: Tensor, along: Tensor, down: Tensor, plain: Tensor, weights: Tensor, kernel: int
) -> tuple[Tensor, Tensor]:
    """Gradients for the three weights, (3, C, C), and for the branch weights, (B, 3, C), in float32."""
    batch, height, width, dim = x.shape
    blocks = _weight_gradient_blocks(x.dtype)
    across, tall = cdiv(dim, blocks["CHANNELS"]), cdiv(dim, blocks["OUTPUTS"])
    chunks = cdiv(height * width, _CHUNK)
    units = batch * chunks
    splits = min(units, cdiv(_PROGRAMS, across * tall))
    sums = x.new_empty((splits, 3, dim, dim), dtype=torch.float32)
    shares = x.new_empty((batch, chunks, across, 3, dim), dtype=torch.float32)
    launch(
        _weight_gradient_kernel, splits * tall * across, x, grad, x, along, down, plain, weights, sums,
        shares, units, chunks, splits, height, width, DIM=dim, KERNEL=kernel, PRECISION=precision(x.dtype),
        CHUNK=_CHUNK, **blocks,
    )  # fmt: skip
    return sums.sum(0), shares.sum((1, 2))


def _by_class(w: Tensor, kernel: int) -> Tensor:
    """Weights (C, C) as (kernel, C, C/kernel), filled up with zeros to whole cache lines."""
    outputs, dim = w.shape
    each = 16 * cdiv(cdiv(dim, kernel), 16)
    padded = torch.nn.functional.pad(w, (0, each * kernel - dim))
    return padded.view(outputs, each, kernel).permute(2, 0, 1).contiguous()


def _forward_blocks(rows: int, dtype: torch.dtype) -> dict[str, int]:
    if dtype == torch.float32:
        return {"ROWS": 64, "COLUMNS": 32, "DEPTH": 16, "num_warps": 4, "num_stages": 2}
    if rows < 4096:  # an image alone: more programs, each of them smaller
        return {"ROWS": 64, "COLUMNS": 32, "DEPTH": 32, "num_warps": 4, "num_stages": 2}
    return {"ROWS": 128, "COLUMNS": 64, "DEPTH": 32, "num_warps": 8, "num_stages": 2}


def _map_gradient_blocks(channels: int, dtype: torch.dtype) -> dict[str, int]:
    if dtype == torch.float32:
        return {"ROWS": 64, "COLUMNS": 32, "DEPTH": 16, "num_warps": 4, "num_stages": 2}
    columns = 32 if channels <= 32 else 64
    return {"ROWS": 64, "COLUMNS": columns, "DEPTH": 64, "num_warps": 4, "num_stages": 3}


def _weight_gradient_blocks(dtype: torch.dtype) -> dict[str, int]:
    if dtype == torch.float32:
        return {"OUTPUTS": 32, "CHANNELS": 32, "ROWS": 16, "num_warps": 4, "num_stages": 2}
    return {"OUTPUTS": 64, "CHANNELS": 64, "ROWS": 64, "num_warps": 8, "num_stages": 2}
