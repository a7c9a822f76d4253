# mypy: ignore-errors
"""CycleMLP's weighted sum of three linear layers of tokens (B, H, W, C) in Triton.

y = Σᵢ sᵢ · shiftᵢ(x) · Wᵢᵀ over i = width, height, plain, with s (B, 3, C) of each sample and output channel.
Channel c is read at the offset of its class, c % KERNEL. Classes alternate in memory, so a tile is read
whole at each offset, and of each reading the class is taken.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from metaformer.ops import triton as backend
from metaformer.ops.cycle import weighted_sum as reference
from metaformer.ops.triton.launch import (
    backward_op,
    cdiv,
    empty_gradient,
    forward_op,
    gradient_like,
    launch,
    precision,
)

# Of the weights' gradient: the most positions of one sample in a sum, and the sums that fill a device
_CHUNK, _PROGRAMS = 1024, 264


@triton.jit
def _gathered(x, row, index, length, stride, live, channel, DIM: tl.constexpr, KERNEL: tl.constexpr):
    # A tile (positions, channels) of x shifted along one axis, zero beyond the border: position number `row`
    # has `index` of `length` along the axis, where neighbors are `stride` positions apart. `live` masks the
    # positions there are.
    known = channel < DIM
    residue_of = channel % KERNEL
    tile = tl.load(x + row[:, None] * DIM + channel[None, :], mask=live[:, None] & known[None, :], other=0.0)
    for residue in tl.static_range(1, KERNEL):
        offset = (residue + KERNEL // 2) % KERNEL - KERNEL // 2  # `staircase(KERNEL)[residue]`
        inside = live & (index + offset >= 0) & (index + offset < length)
        shifted = tl.load(
            x + (row + offset * stride)[:, None] * DIM + channel[None, :],
            mask=inside[:, None] & known[None, :],
            other=0.0,
        )
        tile = tl.where((residue_of == residue)[None, :], shifted, tile)
    return tile


@triton.jit
def _weights_tile(w, output, channel, DIM: tl.constexpr):
    """A tile (channels, outputs) of wᵀ, w (DIM, DIM)."""
    return tl.load(
        w + output[None, :] * DIM + channel[:, None],
        mask=(output < DIM)[None, :] & (channel < DIM)[:, None],
        other=0.0,
    )


@triton.jit
def _forward_kernel(
    x, w_width, w_height, w_plain, weights, out, rows, height, width,
    DIM: tl.constexpr, KERNEL: tl.constexpr, PRECISION: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    # A tile (ROWS positions, COLUMNS outputs) of y; its positions may be of several samples.
    across: tl.constexpr = (DIM + COLUMNS - 1) // COLUMNS
    pid = tl.program_id(0)  # tile down * across + tile across
    row = (pid // across) * ROWS + tl.arange(0, ROWS)  # (sample * height + line) * width + column
    output = (pid % across) * COLUMNS + tl.arange(0, COLUMNS)
    live = row < rows
    column = row % width
    line = row // width % height
    sample = row // (width * height)
    row_64 = row.to(tl.int64)
    sum_width = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    sum_height = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    sum_plain = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    for done in range(0, DIM, DEPTH):
        channel = done + tl.arange(0, DEPTH)
        tile = _gathered(x, row_64, column, width, 1, live, channel, DIM, KERNEL)
        right = _weights_tile(w_width, output, channel, DIM)
        sum_width = tl.dot(tile, right, sum_width, input_precision=PRECISION)
        tile = _gathered(x, row_64, line, height, width, live, channel, DIM, KERNEL)
        right = _weights_tile(w_height, output, channel, DIM)
        sum_height = tl.dot(tile, right, sum_height, input_precision=PRECISION)
        tile = _gathered(x, row_64, line, height, width, live, channel, DIM, 1)
        right = _weights_tile(w_plain, output, channel, DIM)
        sum_plain = tl.dot(tile, right, sum_plain, input_precision=PRECISION)
    inside = live[:, None] & (output < DIM)[None, :]
    share = weights + sample[:, None] * (3 * DIM) + output[None, :]
    result = sum_width * tl.load(share, mask=inside, other=0.0).to(tl.float32)
    result += sum_height * tl.load(share + DIM, mask=inside, other=0.0).to(tl.float32)
    result += sum_plain * tl.load(share + 2 * DIM, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row_64[:, None] * DIM + output[None, :], result.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _branch_gradient(
    result, grad_out, row, shift, inside, w, share, member, width,
    DIM: tl.constexpr, PRECISION: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """Add one branch's part of ∂x: (∂y · s, read `shift` positions away) · w, w (DIM, width) of one class."""
    for done in range(0, DIM, DEPTH):
        output = done + tl.arange(0, DEPTH)
        known = output < DIM
        grad = tl.load(
            grad_out + (row + shift)[:, None] * DIM + output[None, :],
            mask=inside[:, None] & known[None, :],
            other=0.0,
        )
        part = tl.load(share + output, mask=known, other=0.0).to(tl.float32)
        right = tl.load(
            w + output[:, None] * width + member[None, :],
            mask=known[:, None] & (member < width)[None, :],
            other=0.0,
        )
        left = (grad.to(tl.float32) * part[None, :]).to(right.dtype)
        result = tl.dot(left, right, result, input_precision=PRECISION)
    return result


@triton.jit
def _input_gradient_kernel(
    grad_out, w_width, w_height, w_plain, weights, out, height, width,
    DIM: tl.constexpr, KERNEL: tl.constexpr, CLASS: tl.constexpr, PRECISION: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    # A tile (ROWS positions of one sample, COLUMNS channels of one class) of ∂x.
    # Position p of x went to p − offset, so its gradient is read there; all channels of a class have one
    # offset. Weights are (KERNEL, DIM, CLASS): `member` of a class is channel member * KERNEL + residue.
    blocks: tl.constexpr = (CLASS + COLUMNS - 1) // COLUMNS
    pid = tl.program_id(0)  # (tile * blocks + block) * KERNEL + residue, tile = sample * parts + part
    residue = pid % KERNEL
    block = pid // KERNEL % blocks
    tile = pid // (KERNEL * blocks)
    parts = tl.cdiv(height * width, ROWS)
    sample = tile // parts
    position = (tile % parts) * ROWS + tl.arange(0, ROWS)
    live = position < height * width
    offset = (residue + KERNEL // 2) % KERNEL - KERNEL // 2  # `staircase(KERNEL)[residue]`
    member = block * COLUMNS + tl.arange(0, COLUMNS)
    channel = member * KERNEL + residue
    own = residue * (DIM * CLASS)
    row = sample.to(tl.int64) * (height * width) + position
    column = position % width - offset
    line = position // width - offset
    share = weights + sample * (3 * DIM)
    result = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    inside = live & (column >= 0) & (column < width)
    result = _branch_gradient(
        result, grad_out, row, -offset, inside, w_width + own, share, member, CLASS, DIM, PRECISION, DEPTH
    )
    inside = live & (line >= 0) & (line < height)
    result = _branch_gradient(
        result, grad_out, row, -offset * width, inside, w_height + own, share + DIM, member, CLASS,
        DIM, PRECISION, DEPTH,
    )  # fmt: skip
    result = _branch_gradient(
        result, grad_out, row, 0, live, w_plain + own, share + 2 * DIM, member, CLASS, DIM, PRECISION, DEPTH
    )
    to = out + row[:, None] * DIM + channel[None, :]
    tl.store(to, result.to(out.dtype.element_ty), mask=live[:, None] & (channel < DIM)[None, :])


@triton.jit
def _share_gradient(
    crossed, total, w, weights, share_to, output, channel, DIM: tl.constexpr,
):  # fmt: skip
    """From one sample's ∂yᵀ · shift(x): stores ∂s = Σ over channels of it · w, and returns total + it · s."""
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
    grad_out, x, w_width, w_height, w_plain, weights, sums, shares, units, chunks, splits, height, width,
    DIM: tl.constexpr, KERNEL: tl.constexpr, PRECISION: tl.constexpr, CHUNK: tl.constexpr,
    OUTPUTS: tl.constexpr, CHANNELS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    # A tile (OUTPUTS, CHANNELS) of the three ∂W, summed over every `splits`-th unit, CHUNK positions of a
    # sample. sums is (splits, 3, DIM, DIM), shares (units, blocks, 3, DIM): nothing of (B, C, C) is stored.
    blocks: tl.constexpr = (DIM + CHANNELS - 1) // CHANNELS
    tall: tl.constexpr = (DIM + OUTPUTS - 1) // OUTPUTS
    pid = tl.program_id(0)  # (split * tall + tile down) * blocks + block
    block = pid % blocks
    split = pid // (blocks * tall)
    output = (pid // blocks % tall) * OUTPUTS + tl.arange(0, OUTPUTS)
    channel = block * CHANNELS + tl.arange(0, CHANNELS)
    grad_width = tl.zeros((OUTPUTS, CHANNELS), dtype=tl.float32)
    grad_height = tl.zeros((OUTPUTS, CHANNELS), dtype=tl.float32)
    grad_plain = tl.zeros((OUTPUTS, CHANNELS), dtype=tl.float32)
    for unit in range(split, units, splits):
        sample = unit // chunks
        crossed_width = tl.zeros((OUTPUTS, CHANNELS), dtype=tl.float32)
        crossed_height = tl.zeros((OUTPUTS, CHANNELS), dtype=tl.float32)
        crossed_plain = tl.zeros((OUTPUTS, CHANNELS), dtype=tl.float32)
        start = (unit % chunks) * CHUNK
        stop = tl.minimum(start + CHUNK, height * width)
        for done in range(start, stop, ROWS):
            position = done + tl.arange(0, ROWS)
            live = position < stop
            row = sample.to(tl.int64) * (height * width) + position
            grad = tl.load(
                grad_out + row[:, None] * DIM + output[None, :],
                mask=live[:, None] & (output < DIM)[None, :],
                other=0.0,
            )
            grad = tl.trans(grad)
            tile = _gathered(x, row, position % width, width, 1, live, channel, DIM, KERNEL)
            crossed_width = tl.dot(grad, tile, crossed_width, input_precision=PRECISION)
            tile = _gathered(x, row, position // width, height, width, live, channel, DIM, KERNEL)
            crossed_height = tl.dot(grad, tile, crossed_height, input_precision=PRECISION)
            tile = _gathered(x, row, position, height, width, live, channel, DIM, 1)
            crossed_plain = tl.dot(grad, tile, crossed_plain, input_precision=PRECISION)
        share = weights + sample * (3 * DIM)
        to = shares + (unit * blocks + block).to(tl.int64) * (3 * DIM)
        grad_width = _share_gradient(crossed_width, grad_width, w_width, share, to, output, channel, DIM)
        grad_height = _share_gradient(
            crossed_height, grad_height, w_height, share + DIM, to + DIM, output, channel, DIM
        )
        grad_plain = _share_gradient(
            crossed_plain, grad_plain, w_plain, share + 2 * DIM, to + 2 * DIM, output, channel, DIM
        )
    to = sums + split.to(tl.int64) * (3 * DIM * DIM) + output[:, None] * DIM + channel[None, :]
    inside = (output < DIM)[:, None] & (channel < DIM)[None, :]
    tl.store(to, grad_width, mask=inside)
    tl.store(to + DIM * DIM, grad_height, mask=inside)
    tl.store(to + 2 * DIM * DIM, grad_plain, mask=inside)


def _input_gradient(
    grad_out: Tensor, w_width: Tensor, w_height: Tensor, w_plain: Tensor, weights: Tensor, kernel: int
) -> Tensor:
    batch, height, width, dim = grad_out.shape
    out = grad_out.new_empty(grad_out.shape)
    by_class = [_by_class(w, kernel) for w in (w_width, w_height, w_plain)]
    size = by_class[0].shape[2]
    blocks = _input_gradient_blocks(size, grad_out.dtype)
    parts = cdiv(height * width, blocks["ROWS"])
    programs = batch * parts * kernel * cdiv(size, blocks["COLUMNS"])
    launch(
        _input_gradient_kernel, programs, grad_out, grad_out, *by_class, weights, out, height, width, DIM=dim,
        KERNEL=kernel, CLASS=size, PRECISION=precision(grad_out.dtype), **blocks,
    )  # fmt: skip
    return out


def _weight_gradient(
    grad_out: Tensor, x: Tensor, w_width: Tensor, w_height: Tensor, w_plain: Tensor, weights: Tensor,
    kernel: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
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
        _weight_gradient_kernel, splits * tall * across, x, grad_out, x, w_width, w_height, w_plain, weights,
        sums, shares, units, chunks, splits, height, width, DIM=dim, KERNEL=kernel,
        PRECISION=precision(x.dtype), CHUNK=_CHUNK, **blocks,
    )  # fmt: skip
    return sums.sum(0), shares.sum((1, 2))


def _by_class(w: Tensor, kernel: int) -> Tensor:
    """The weight (C, C) as (kernel, C, C/kernel), padded with zeros to whole cache lines."""
    outputs, dim = w.shape
    size = 16 * cdiv(cdiv(dim, kernel), 16)
    padded = torch.nn.functional.pad(w, (0, size * kernel - dim))
    return padded.view(outputs, size, kernel).permute(2, 0, 1).contiguous()


def _forward_blocks(rows: int, dtype: torch.dtype) -> dict[str, int]:
    if dtype == torch.float32:
        return {"ROWS": 64, "COLUMNS": 32, "DEPTH": 16, "num_warps": 4, "num_stages": 2}
    if rows < 4096:  # an image alone: more programs, each of them smaller
        return {"ROWS": 64, "COLUMNS": 32, "DEPTH": 32, "num_warps": 4, "num_stages": 2}
    return {"ROWS": 128, "COLUMNS": 64, "DEPTH": 32, "num_warps": 8, "num_stages": 2}


def _input_gradient_blocks(channels: int, dtype: torch.dtype) -> dict[str, int]:
    if dtype == torch.float32:
        return {"ROWS": 64, "COLUMNS": 32, "DEPTH": 16, "num_warps": 4, "num_stages": 2}
    columns = 32 if channels <= 32 else 64
    return {"ROWS": 64, "COLUMNS": columns, "DEPTH": 64, "num_warps": 4, "num_stages": 3}


def _weight_gradient_blocks(dtype: torch.dtype) -> dict[str, int]:
    if dtype == torch.float32:
        return {"OUTPUTS": 32, "CHANNELS": 32, "ROWS": 16, "num_warps": 4, "num_stages": 2}
    return {"OUTPUTS": 64, "CHANNELS": 64, "ROWS": 64, "num_warps": 8, "num_stages": 2}


@forward_op("cycle_mix")
def cycle_mix(
    x: Tensor, w_width: Tensor, w_height: Tensor, w_plain: Tensor, weights: Tensor, kernel: int
) -> Tensor:
    """Weighted sum of the products along the width, along the height, and plain; weights (B, 3, C)."""
    batch, height, width, dim = x.shape
    number = batch * height * width
    out = x.new_empty(x.shape)
    blocks = _forward_blocks(number, x.dtype)
    launch(
        _forward_kernel, cdiv(number, blocks["ROWS"]) * cdiv(dim, blocks["COLUMNS"]), x, x, w_width, w_height,
        w_plain, weights, out, number, height, width, DIM=dim, KERNEL=kernel, PRECISION=precision(x.dtype),
        **blocks,
    )  # fmt: skip
    return out


def _empty(x: Tensor, *rest: Any) -> Tensor:
    return x.new_empty(x.shape)


@backward_op("cycle_mix_backward")
def cycle_mix_backward(
    grad_out: Tensor, x: Tensor, w_width: Tensor, w_height: Tensor, w_plain: Tensor, weights: Tensor,
    kernel: int,
) -> list[Tensor]:  # fmt: skip
    """Gradients for the five tensors behind `grad_out`."""
    grad_out = grad_out.contiguous()
    tensors = (w_width, w_height, w_plain, weights)
    grad_x = _input_gradient(grad_out, *tensors, kernel)
    grad_linear, grad_weights = _weight_gradient(grad_out, x, *tensors, kernel)
    return [grad_x, *map(gradient_like, (*grad_linear, grad_weights), tensors)]


def _empty_gradients(grad_out: Tensor, x: Tensor, *rest: Any) -> list[Tensor]:
    return [x.new_empty(x.shape), *(empty_gradient(x, tensor) for tensor in rest[:4])]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.kernel = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
    tensors = ctx.saved_tensors

    def plain(x, w_width, w_height, w_plain, weights):
        return reference(x, (w_width, w_height, w_plain), weights, ctx.kernel)

    return (*backend.gradients("cycle_mix_backward", plain, grad_out, tensors, ctx.kernel), None)


cycle_mix.register_autograd(_backward, setup_context=_setup_context)
cycle_mix.register_fake(_empty)
cycle_mix_backward.register_fake(_empty_gradients)
