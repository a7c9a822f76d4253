# mypy: ignore-errors
"""PoolFormer's token mixing of tokens (B, H, W, C) in Triton.

out = residual_scale · x + w/σ · (pool(x) − x), where pool(x) averages the positions of a window that lie
inside: it sums and divides by their count. Its gradient is the transpose, which divides by the counts before
it sums.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from metaformer.ops import triton as backend
from metaformer.ops.pool import reference
from metaformer.ops.triton.launch import backward_op, cdiv, forward_op, launch
from metaformer.ops.triton.norm import sample_moments

# A program takes ROWS rows of COLUMNS positions: 7, 14, 28 and 56 leave little of either unused, and a single
# small image still makes enough programs.
_ROWS, _COLUMNS = 4, 8


@triton.jit
def _count(index, length, REACH: tl.constexpr):
    """How many positions of the window around `index` lie inside, along one axis; never none."""
    first, last = tl.maximum(index - REACH, 0), tl.minimum(index + REACH, length - 1)
    return tl.maximum(last - first + 1, 1).to(tl.float32)


@triton.jit
def _row_sum(
    x, row, column, channel, height, width, DIM: tl.constexpr, SIZE: tl.constexpr, TRANSPOSED: tl.constexpr
):
    # Sum of the window's part in one row, (columns, channels); TRANSPOSED divides each by its own window's
    # count
    total = tl.zeros((column.shape[0], channel.shape[0]), dtype=tl.float32)
    for step in tl.static_range(SIZE):
        neighbor = column + step - SIZE // 2
        inside = (row >= 0) & (row < height) & (neighbor >= 0) & (neighbor < width)
        value = tl.load(
            x + (row * width + neighbor)[:, None] * DIM + channel[None, :],
            mask=inside[:, None] & (channel < DIM)[None, :],
            other=0.0,
        ).to(tl.float32)
        if TRANSPOSED:
            value = value / _count(neighbor, width, SIZE // 2)[:, None]
        total += value
    if TRANSPOSED:
        total = total / _count(row, height, SIZE // 2)[:, None]
    return total


@triton.jit
def _tile(
    height, width, DIM: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, CHANNELS: tl.constexpr
):
    """Sample, first row (for each column), columns and channels of this program, and its tile's number.

    Programs are ((sample * down + tile down) * across + tile across) * blocks + block of channels.
    """
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
def _first_rows(
    x, row, column, channel, height, width, DIM: tl.constexpr, SIZE: tl.constexpr, TRANSPOSED: tl.constexpr
):
    """Sums of the upper two rows of the first 3 × 3 window, which is around `row`; else zeros."""
    above = tl.zeros((column.shape[0], channel.shape[0]), dtype=tl.float32)
    here = above
    if SIZE == 3:
        above = _row_sum(x, row - 1, column, channel, height, width, DIM, SIZE, TRANSPOSED)
        here = _row_sum(x, row, column, channel, height, width, DIM, SIZE, TRANSPOSED)
    return above, here


@triton.jit
def _window_sum(
    x, row, column, channel, height, width, above, here,
    DIM: tl.constexpr, SIZE: tl.constexpr, TRANSPOSED: tl.constexpr,
):  # fmt: skip
    """Sum of the window around `row`, and of the two rows that a 3 × 3 one shares with the next row's."""
    if SIZE == 3:
        below = _row_sum(x, row + 1, column, channel, height, width, DIM, SIZE, TRANSPOSED)
        total = above + here + below
        above = here
        here = below
    else:
        total = _row_sum(x, row - SIZE // 2, column, channel, height, width, DIM, SIZE, TRANSPOSED)
        for step in tl.static_range(1, SIZE):
            total += _row_sum(
                x, row + step - SIZE // 2, column, channel, height, width, DIM, SIZE, TRANSPOSED
            )
    return total, above, here


@triton.jit
def _forward_kernel(
    x, weight, moments, residual_scale, out, factor, height, width,
    DIM: tl.constexpr, SIZE: tl.constexpr, VECTOR: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    # out = residual_scale · x + gain · (pool(x) − x), gain = w/σ; VECTOR: residual_scale of each channel
    sample, first, column, channel, _ = _tile(height, width, DIM, ROWS, COLUMNS, CHANNELS)
    base = sample.to(tl.int64) * height * width * DIM
    x += base
    out += base
    known = channel < DIM
    gain = tl.load(weight + channel, mask=known, other=0.0).to(tl.float32) * tl.load(moments + sample * 2 + 1)
    scale = tl.zeros((CHANNELS,), dtype=tl.float32) + factor
    if VECTOR:
        scale = tl.load(residual_scale + channel, mask=known, other=0.0).to(tl.float32)
    count_across = _count(column, width, SIZE // 2)
    above, here = _first_rows(x, first, column, channel, height, width, DIM, SIZE, False)
    for step in tl.static_range(ROWS):
        row = first + step
        total, above, here = _window_sum(
            x, row, column, channel, height, width, above, here, DIM, SIZE, False
        )
        index = (row * width + column)[:, None] * DIM + channel[None, :]
        inside = ((row < height) & (column < width))[:, None] & known[None, :]
        value = tl.load(x + index, mask=inside, other=0.0).to(tl.float32)
        mean = total / (count_across * _count(row, height, SIZE // 2))[:, None]
        result = scale[None, :] * value + gain[None, :] * (mean - value)
        tl.store(out + index, result.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _sums_kernel(
    x, grad_out, sums, height, width,
    DIM: tl.constexpr, SIZE: tl.constexpr, VECTOR: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    # Sums over a tile of ∂out · (pool(x) − x) and, with VECTOR, of ∂out · x: sums (tiles, 1 or 2, DIM)
    sample, first, column, channel, tile = _tile(height, width, DIM, ROWS, COLUMNS, CHANNELS)
    base = sample.to(tl.int64) * height * width * DIM
    x += base
    grad_out += base
    known = channel < DIM
    count_across = _count(column, width, SIZE // 2)
    sum_branch = tl.zeros((COLUMNS, CHANNELS), dtype=tl.float32)
    sum_x = tl.zeros((COLUMNS, CHANNELS), dtype=tl.float32)
    above, here = _first_rows(x, first, column, channel, height, width, DIM, SIZE, False)
    for step in tl.static_range(ROWS):
        row = first + step
        total, above, here = _window_sum(
            x, row, column, channel, height, width, above, here, DIM, SIZE, False
        )
        index = (row * width + column)[:, None] * DIM + channel[None, :]
        inside = ((row < height) & (column < width))[:, None] & known[None, :]
        value = tl.load(x + index, mask=inside, other=0.0).to(tl.float32)
        grad = tl.load(grad_out + index, mask=inside, other=0.0).to(tl.float32)
        mean = total / (count_across * _count(row, height, SIZE // 2))[:, None]
        sum_branch += grad * (mean - value)
        sum_x += grad * value
    to = sums + tile.to(tl.int64) * DIM * (2 if VECTOR else 1) + channel
    tl.store(to, tl.sum(sum_branch, axis=0), mask=known)
    if VECTOR:
        tl.store(to + DIM, tl.sum(sum_x, axis=0), mask=known)


@triton.jit
def _backward_kernel(
    x, grad_out, weight, moments, pull, residual_scale, out, factor, height, width,
    DIM: tl.constexpr, SIZE: tl.constexpr, VECTOR: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    # ∂x = residual_scale · ∂out + gain · (poolᵀ(∂out) − ∂out) − pull · (x − μ), the last since σ depends on x
    sample, first, column, channel, _ = _tile(height, width, DIM, ROWS, COLUMNS, CHANNELS)
    base = sample.to(tl.int64) * height * width * DIM
    x += base
    grad_out += base
    out += base
    known = channel < DIM
    mean = tl.load(moments + sample * 2)
    gain = tl.load(weight + channel, mask=known, other=0.0).to(tl.float32) * tl.load(moments + sample * 2 + 1)
    spread = tl.load(pull + sample)
    scale = tl.zeros((CHANNELS,), dtype=tl.float32) + factor
    if VECTOR:
        scale = tl.load(residual_scale + channel, mask=known, other=0.0).to(tl.float32)
    above, here = _first_rows(grad_out, first, column, channel, height, width, DIM, SIZE, True)
    for step in tl.static_range(ROWS):
        row = first + step
        total, above, here = _window_sum(
            grad_out, row, column, channel, height, width, above, here, DIM, SIZE, True
        )
        index = (row * width + column)[:, None] * DIM + channel[None, :]
        inside = ((row < height) & (column < width))[:, None] & known[None, :]
        value = tl.load(x + index, mask=inside, other=0.0).to(tl.float32)
        grad = tl.load(grad_out + index, mask=inside, other=0.0).to(tl.float32)
        result = scale[None, :] * grad + gain[None, :] * (total - grad) - spread * (value - mean)
        tl.store(out + index, result.to(out.dtype.element_ty), mask=inside)


@forward_op("pool_residual")
def pool_residual(
    x: Tensor, weight: Tensor, residual_scale: Tensor | None, size: int, eps: float, factor: float
) -> tuple[Tensor, Tensor]:
    """The result, and mean and 1/σ of each sample; `residual_scale`, where given, stands for `factor`."""
    moments = sample_moments(x, eps)
    out = x.new_empty(x.shape)
    launch(
        _forward_kernel, _programs(x), x, x, weight, moments, residual_scale, out, factor, x.shape[1],
        x.shape[2], VECTOR=residual_scale is not None, **_options(x, size),
    )  # fmt: skip
    return out, moments


def _empty(
    x: Tensor, weight: Tensor, residual_scale: Tensor | None, size: int, eps: float, factor: float
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty((x.shape[0], 2), dtype=torch.float32)


@backward_op("pool_residual_backward")
def pool_residual_backward(
    grad_out: Tensor, x: Tensor, weight: Tensor, residual_scale: Tensor | None, moments: Tensor, size: int,
    factor: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients for x, the weight and the residual's scale."""
    grad_out = grad_out.contiguous()
    batch, height, width, dim = x.shape
    is_vector = residual_scale is not None
    tiles = cdiv(height, _ROWS) * cdiv(width, _COLUMNS)
    sums = x.new_empty((batch, tiles, 2 if is_vector else 1, dim), dtype=torch.float32)
    options = _options(x, size)
    launch(_sums_kernel, _programs(x), x, x, grad_out, sums, height, width, VECTOR=is_vector, **options)
    sums = sums.sum(1)  # (B, 1 or 2, C)
    inverse = moments[:, 1]
    # ∂(1/σ)/∂x = −(x − μ) / (σ³ · H · W · C)
    pull = (sums[:, 0] * weight.float()).sum(1) * inverse**3 / (height * width * dim)  # (B,)
    grad_x = x.new_empty(x.shape)
    launch(
        _backward_kernel, _programs(x), x, x, grad_out, weight, moments, pull, residual_scale, grad_x, factor,
        height, width, VECTOR=is_vector, **options,
    )  # fmt: skip
    grad_weight = (sums[:, 0] * inverse[:, None]).sum(0).to(weight.dtype)
    if residual_scale is None:
        return grad_x, grad_weight, weight.new_empty(0)
    return grad_x, grad_weight, sums[:, 1].sum(0).to(residual_scale.dtype)


def _empty_gradients(
    grad_out: Tensor, x: Tensor, weight: Tensor, residual_scale: Tensor | None, moments: Tensor, size: int,
    factor: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    grad_scale = weight.new_empty(0) if residual_scale is None else torch.empty_like(residual_scale)
    return x.new_empty(x.shape), torch.empty_like(weight), grad_scale


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, weight, residual_scale, ctx.size, ctx.eps, ctx.factor = inputs
    ctx.save_for_backward(x, weight, residual_scale, output[1])


def _backward(ctx: Any, grad_out: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    *tensors, moments = ctx.saved_tensors

    def plain(x, weight, residual_scale):
        scale = ctx.factor if residual_scale is None else residual_scale
        return reference(x, weight, scale, ctx.size, ctx.eps)

    grads = backend.gradients(
        "pool_residual_backward", plain, grad_out, tensors, moments, ctx.size, ctx.factor
    )
    return (*grads, None, None, None)


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


pool_residual.register_autograd(_backward, setup_context=_setup_context)
pool_residual.register_fake(_empty)
pool_residual_backward.register_fake(_empty_gradients)
