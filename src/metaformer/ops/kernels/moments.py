# mypy: ignore-errors
# Triton's language is not Python's: its functions cannot be typed.
"""Mean and 1/σ, of each sample or of each position, without the difference of two large sums."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from metaformer.ops.kernels.launch import cdiv, launch, power_of_two

_FLOAT = torch.float32
_CHUNK = 8192
"""Elements of a sample that one program reads; more only where a sample has more than 512 such chunks."""


@triton.jit
def _merge(mean, spread, count, mean2, spread2, count2):
    """Mean, sum of squared deviations and count of two sets together (Chan et al., 1979)."""
    total = count + count2
    delta = mean2 - mean
    share = count2 / total
    return mean + delta * share, spread + spread2 + delta * delta * count * share, total


@triton.jit
def _chunk_kernel(x, out, size, chunk, splits, BLOCK: tl.constexpr):
    """Mean and sum of squared deviations of one chunk of one sample."""
    pid = tl.program_id(0)
    sample = pid // splits
    start = (pid % splits) * chunk
    stop = tl.minimum(start + chunk, size)
    x += sample.to(tl.int64) * size
    mean, spread, count = 0.0, 0.0, 0.0
    for at in range(start, stop, BLOCK):
        index = at + tl.arange(0, BLOCK)
        inside = index < stop
        value = tl.load(x + index, mask=inside, other=0.0).to(tl.float32)
        number = tl.minimum(stop - at, BLOCK).to(tl.float32)
        middle = tl.sum(value, axis=0) / number
        deviation = tl.where(inside, value - middle, 0.0)
        mean, spread, count = _merge(
            mean, spread, count, middle, tl.sum(deviation * deviation, axis=0), number
        )
    tl.store(out + pid * 2, mean)
    tl.store(out + pid * 2 + 1, spread)


@triton.jit
def _finish_kernel(parts, out, size, chunk, splits, eps, BLOCK: tl.constexpr):
    """Mean and 1/σ of one sample from those of its chunks."""
    sample = tl.program_id(0)
    parts += sample * splits * 2
    mean, spread, count = 0.0, 0.0, 0.0
    for at in range(0, splits, BLOCK):
        part = at + tl.arange(0, BLOCK)
        inside = part < splits
        number = tl.where(inside, tl.minimum(size - part * chunk, chunk), 0).to(tl.float32)
        means = tl.load(parts + part * 2, mask=inside, other=0.0)
        spreads = tl.load(parts + part * 2 + 1, mask=inside, other=0.0)
        total = tl.sum(number, axis=0)
        middle = tl.sum(number * means, axis=0) / total
        deviation = means - middle
        around = tl.sum(spreads + number * deviation * deviation, axis=0)
        mean, spread, count = _merge(mean, spread, count, middle, around, total)
    tl.store(out + sample * 2, mean)
    tl.store(out + sample * 2 + 1, 1.0 / tl.sqrt(spread / count + eps))


@triton.jit
def tile_moments(value, inside, DIM: tl.constexpr, eps):
    """Mean and 1/σ of each row of a tile (rows, channels), of which `inside` says what counts."""
    mean = tl.sum(value, axis=1) / DIM
    deviation = tl.where(inside, value - mean[:, None], 0.0)
    return mean, 1.0 / tl.sqrt(tl.sum(deviation * deviation, axis=1) / DIM + eps)


@triton.jit
def _position_kernel(x, out, number, eps, DIM: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    channel = tl.arange(0, BLOCK)
    inside = (row < number)[:, None] & (channel < DIM)[None, :]
    value = tl.load(x + row.to(tl.int64)[:, None] * DIM + channel[None, :], mask=inside, other=0.0)
    mean, inverse = tile_moments(value.to(tl.float32), inside, DIM, eps)
    tl.store(out + row * 2, mean, mask=row < number)
    tl.store(out + row * 2 + 1, inverse, mask=row < number)


def sample_moments(x: Tensor, eps: float) -> Tensor:
    """Mean and 1/σ over everything of each sample, (B, 2), of rows (B, H, W, C)."""
    batch, height, width, dim = x.shape
    size = height * width * dim
    chunk = _CHUNK * cdiv(size, _CHUNK * 512)
    splits = cdiv(size, chunk)
    parts = x.new_empty((batch, splits, 2), dtype=_FLOAT)
    out = x.new_empty((batch, 2), dtype=_FLOAT)
    launch(_chunk_kernel, batch * splits, x, x, parts, size, chunk, splits, BLOCK=4096, num_warps=4)
    launch(_finish_kernel, batch, x, parts, out, size, chunk, splits, eps, BLOCK=64, num_warps=1)
    return out


def position_moments(x: Tensor, eps: float) -> Tensor:
    """Mean and 1/σ over the channels of each position, (B·H·W, 2), of rows (B, H, W, C)."""
    dim = x.shape[3]
    number = x.shape[0] * x.shape[1] * x.shape[2]
    out = x.new_empty((number, 2), dtype=_FLOAT)
    block = power_of_two(dim)
    many = max(1, 4096 // block)
    launch(
        _position_kernel, cdiv(number, many), x, x, out, number, eps, DIM=dim, ROWS=many, BLOCK=block,
        num_warps=4,
    )  # fmt: skip
    return out


def moments(x: Tensor, norm: str, eps: float) -> Tensor:
    """What the norm needs of `x` (B, H, W, C): two numbers per sample or position, or nothing."""
    if norm == "group_norm":
        return sample_moments(x, eps)
    if norm == "layer_norm":
        return position_moments(x, eps)
    return x.new_empty((0, 2), dtype=_FLOAT)
