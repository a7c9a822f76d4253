# mypy: ignore-errors
# Triton's language is not Python's: its functions cannot be typed.
"""Norms of tokens (B, H, W, C) in Triton: their moments, their result, and their gradients.

n = (x − μ)/σ · γ + β, with μ and σ over each sample (group_norm) or over each token's channels (layer_norm).
Moments are (samples or tokens, 2): μ and 1/σ.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from metaformer.ops.triton.launch import cdiv, launch, power_of_two

_FLOAT = torch.float32
_CHUNK = 8192
"""Elements of a sample that one program reads; more only where a sample has more than 512 such chunks."""
# Of the sums' programs: tokens of one sample, of which so many at a time, and channels
_ROWS, _STEP, _CHANNELS = 256, 32, 64


@triton.jit
def _merge(mean, spread, count, mean2, spread2, count2):
    """Mean, sum of squared deviations and count of two sets together (Chan et al., 1979)."""
    total = count + count2
    delta = mean2 - mean
    share = count2 / total
    return mean + delta * share, spread + spread2 + delta * delta * count * share, total


@triton.jit
def _chunk_kernel(x, out, size, chunk, splits, BLOCK: tl.constexpr):
    # Mean and sum of squared deviations of one chunk of one sample: out (samples, splits, 2)
    pid = tl.program_id(0)  # sample * splits + chunk's number
    sample = pid // splits
    start = (pid % splits) * chunk
    stop = tl.minimum(start + chunk, size)
    x += sample.to(tl.int64) * size
    mean, spread, count = 0.0, 0.0, 0.0
    for first in range(start, stop, BLOCK):
        index = first + tl.arange(0, BLOCK)
        inside = index < stop
        value = tl.load(x + index, mask=inside, other=0.0).to(tl.float32)
        number = tl.minimum(stop - first, BLOCK).to(tl.float32)
        block_mean = tl.sum(value, axis=0) / number
        deviation = tl.where(inside, value - block_mean, 0.0)
        mean, spread, count = _merge(
            mean, spread, count, block_mean, tl.sum(deviation * deviation, axis=0), number
        )
    tl.store(out + pid * 2, mean)
    tl.store(out + pid * 2 + 1, spread)


@triton.jit
def _finish_kernel(parts, out, size, chunk, splits, eps, BLOCK: tl.constexpr):
    # Moments of one sample from those of its chunks, all of `chunk` elements but the last
    sample = tl.program_id(0)
    parts += sample * splits * 2
    mean, spread, count = 0.0, 0.0, 0.0
    for first in range(0, splits, BLOCK):
        part = first + tl.arange(0, BLOCK)
        inside = part < splits
        number = tl.where(inside, tl.minimum(size - part * chunk, chunk), 0).to(tl.float32)
        means = tl.load(parts + part * 2, mask=inside, other=0.0)
        spreads = tl.load(parts + part * 2 + 1, mask=inside, other=0.0)
        total = tl.sum(number, axis=0)
        block_mean = tl.sum(number * means, axis=0) / total
        deviation = means - block_mean
        block_spread = tl.sum(spreads + number * deviation * deviation, axis=0)
        mean, spread, count = _merge(mean, spread, count, block_mean, block_spread, total)
    tl.store(out + sample * 2, mean)
    tl.store(out + sample * 2 + 1, 1.0 / tl.sqrt(spread / count + eps))


@triton.jit
def _tile_moments(value, inside, DIM: tl.constexpr, eps):
    """Mean and 1/σ of each row of a tile (rows, channels); `inside` masks what counts."""
    mean = tl.sum(value, axis=1) / DIM
    deviation = tl.where(inside, value - mean[:, None], 0.0)
    return mean, 1.0 / tl.sqrt(tl.sum(deviation * deviation, axis=1) / DIM + eps)


@triton.jit
def _token_kernel(x, out, number, eps, DIM: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    channel = tl.arange(0, BLOCK)
    inside = (row < number)[:, None] & (channel < DIM)[None, :]
    value = tl.load(x + row.to(tl.int64)[:, None] * DIM + channel[None, :], mask=inside, other=0.0)
    mean, inverse = _tile_moments(value.to(tl.float32), inside, DIM, eps)
    tl.store(out + row * 2, mean, mask=row < number)
    tl.store(out + row * 2 + 1, inverse, mask=row < number)


@triton.jit
def normalize_tile(
    value, inside, row, channel, gamma, beta, moments, per_sample, eps,
    DIM: tl.constexpr, NORM: tl.constexpr, HAS_GAMMA: tl.constexpr, HAS_BETA: tl.constexpr,
):  # fmt: skip
    """The norm of a float32 tile (rows, all channels), zeros outside; a sample has `per_sample` rows."""
    if NORM != "none":
        if NORM == "group_norm":
            index = row // per_sample * 2
            mean = tl.load(moments + index)
            inverse = tl.load(moments + index + 1)
        else:
            mean, inverse = _tile_moments(value, inside, DIM, eps)
        value = (value - mean[:, None]) * inverse[:, None]
        if HAS_GAMMA:
            value *= tl.load(gamma + channel, mask=channel < DIM, other=0.0).to(tl.float32)[None, :]
        if HAS_BETA:
            value += tl.load(beta + channel, mask=channel < DIM, other=0.0).to(tl.float32)[None, :]
        value = tl.where(inside, value, 0.0)
    return value


@triton.jit
def _normalize_kernel(
    x, out, gamma, beta, moments, rows, per_sample, eps, DIM: tl.constexpr, NORM: tl.constexpr,
    HAS_GAMMA: tl.constexpr, HAS_BETA: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    channel = tl.arange(0, BLOCK)
    inside = (row < rows)[:, None] & (channel < DIM)[None, :]
    offset = row.to(tl.int64)[:, None] * DIM + channel[None, :]
    value = tl.load(x + offset, mask=inside, other=0.0).to(tl.float32)
    value = normalize_tile(
        value, inside, tl.minimum(row, rows - 1), channel, gamma, beta, moments, per_sample, eps,
        DIM, NORM, HAS_GAMMA, HAS_BETA,
    )  # fmt: skip
    tl.store(out + offset, value.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _sums_kernel(
    x, grad_n, grad_out, moments, sums, per_sample, DIM: tl.constexpr, NORM: tl.constexpr,
    HAS_GRAD_OUT: tl.constexpr, ROWS: tl.constexpr, STEP: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    # Sums over ROWS tokens of a sample, sums (samples, parts, 4, DIM): Σ ∂n, Σ ∂n · x̂, Σ ∂out and Σ ∂out · x,
    # x̂ = (x − μ)/σ. The first two are the gradients of β and γ, the last that of a residual's scale.
    blocks: tl.constexpr = (DIM + CHANNELS - 1) // CHANNELS
    parts = tl.cdiv(per_sample, ROWS)
    pid = tl.program_id(0)  # (sample * parts + part) * blocks + block of channels
    tile = pid // blocks
    sample = tile // parts
    channel = (pid % blocks) * CHANNELS + tl.arange(0, CHANNELS)
    known = channel < DIM
    sum_n = tl.zeros((CHANNELS,), dtype=tl.float32)
    sum_n_x = tl.zeros((CHANNELS,), dtype=tl.float32)
    sum_out = tl.zeros((CHANNELS,), dtype=tl.float32)
    sum_out_x = tl.zeros((CHANNELS,), dtype=tl.float32)
    for done in range(0, ROWS, STEP):
        position = (tile % parts) * ROWS + done + tl.arange(0, STEP)
        live = position < per_sample
        row = sample.to(tl.int64) * per_sample + position
        offset = row[:, None] * DIM + channel[None, :]
        inside = live[:, None] & known[None, :]
        value = tl.load(x + offset, mask=inside, other=0.0).to(tl.float32)
        if NORM != "none":
            index = (tl.zeros((STEP,), dtype=tl.int64) + sample if NORM == "group_norm" else row) * 2
            mean = tl.load(moments + index, mask=live, other=0.0)
            inverse = tl.load(moments + index + 1, mask=live, other=0.0)
            grad = tl.load(grad_n + offset, mask=inside, other=0.0).to(tl.float32)
            sum_n += tl.sum(grad, axis=0)
            sum_n_x += tl.sum(grad * (value - mean[:, None]) * inverse[:, None], axis=0)
        if HAS_GRAD_OUT:
            grad = tl.load(grad_out + offset, mask=inside, other=0.0).to(tl.float32)
            sum_out += tl.sum(grad, axis=0)
            sum_out_x += tl.sum(grad * value, axis=0)
    to = sums + tile.to(tl.int64) * 4 * DIM + channel
    tl.store(to, sum_n, mask=known)
    tl.store(to + DIM, sum_n_x, mask=known)
    tl.store(to + 2 * DIM, sum_out, mask=known)
    tl.store(to + 3 * DIM, sum_out_x, mask=known)


@triton.jit
def _gradient_kernel(
    x, grad_n, grad_out, out, gamma, moments, means, residual_scale, rows, per_sample, factor,
    DIM: tl.constexpr, NORM: tl.constexpr, HAS_GAMMA: tl.constexpr, RESIDUAL: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    # ∂x = (γ ∂n − mean(γ ∂n) − x̂ mean(γ ∂n · x̂)) / σ + residual_scale · ∂out, means as the norm takes them
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    channel = tl.arange(0, BLOCK)
    known = channel < DIM
    inside = (row < rows)[:, None] & known[None, :]
    offset = row.to(tl.int64)[:, None] * DIM + channel[None, :]
    result = tl.load(grad_n + offset, mask=inside, other=0.0).to(tl.float32)
    if NORM != "none":
        value = tl.load(x + offset, mask=inside, other=0.0).to(tl.float32)
        row_inside = tl.minimum(row, rows - 1)
        index = (row_inside // per_sample if NORM == "group_norm" else row_inside) * 2
        mean = tl.load(moments + index)
        inverse = tl.load(moments + index + 1)
        normalized = tl.where(inside, (value - mean[:, None]) * inverse[:, None], 0.0)
        if HAS_GAMMA:
            result *= tl.load(gamma + channel, mask=known, other=0.0).to(tl.float32)[None, :]
        if NORM == "group_norm":  # over a sample, from _sums_kernel
            mean_n = tl.load(means + index)
            mean_n_x = tl.load(means + index + 1)
        else:
            mean_n = tl.sum(result, axis=1) / DIM
            mean_n_x = tl.sum(result * normalized, axis=1) / DIM
        result = (result - mean_n[:, None] - normalized * mean_n_x[:, None]) * inverse[:, None]
    if RESIDUAL != "none":
        passed = tl.load(grad_out + offset, mask=inside, other=0.0).to(tl.float32)
        if RESIDUAL == "vector":
            passed *= tl.load(residual_scale + channel, mask=known, other=0.0).to(tl.float32)[None, :]
        else:
            passed *= factor
        result += passed
    tl.store(out + offset, result.to(out.dtype.element_ty), mask=inside)


def sample_moments(x: Tensor, eps: float) -> Tensor:
    """Mean and 1/σ over each sample of x (B, H, W, C): (B, 2)."""
    batch, height, width, dim = x.shape
    size = height * width * dim
    chunk = _CHUNK * cdiv(size, _CHUNK * 512)
    splits = cdiv(size, chunk)
    parts = x.new_empty((batch, splits, 2), dtype=_FLOAT)
    out = x.new_empty((batch, 2), dtype=_FLOAT)
    launch(_chunk_kernel, batch * splits, x, x, parts, size, chunk, splits, BLOCK=4096, num_warps=4)
    launch(_finish_kernel, batch, x, parts, out, size, chunk, splits, eps, BLOCK=64, num_warps=1)
    return out


def token_moments(x: Tensor, eps: float) -> Tensor:
    """Mean and 1/σ over the channels of each token of x (B, H, W, C): (B·H·W, 2)."""
    dim = x.shape[3]
    number = x.shape[0] * x.shape[1] * x.shape[2]
    out = x.new_empty((number, 2), dtype=_FLOAT)
    blocks = _blocks(dim)
    launch(_token_kernel, cdiv(number, blocks["ROWS"]), x, x, out, number, eps, DIM=dim, **blocks)
    return out


def moments_for(x: Tensor, norm: str, eps: float) -> Tensor:
    """What a norm needs of x (B, H, W, C): moments of samples or tokens, or nothing, (0, 2)."""
    if norm == "group_norm":
        return sample_moments(x, eps)
    if norm == "layer_norm":
        return token_moments(x, eps)
    return x.new_empty((0, 2), dtype=_FLOAT)


def normalize(
    x: Tensor, gamma: Tensor | None, beta: Tensor | None, moments: Tensor, norm: str, eps: float
) -> Tensor:
    """The norm of x (B, H, W, C)."""
    if norm == "none":
        return x
    batch, height, width, dim = x.shape
    number = batch * height * width
    out = x.new_empty(x.shape)
    blocks = _blocks(dim)
    launch(
        _normalize_kernel, cdiv(number, blocks["ROWS"]), x, x, out, gamma, beta, moments, number,
        height * width, eps, DIM=dim, NORM=norm, HAS_GAMMA=gamma is not None, HAS_BETA=beta is not None,
        **blocks,
    )  # fmt: skip
    return out


def norm_gradient(
    x: Tensor, grad_n: Tensor, grad_out: Tensor | None, gamma: Tensor | None, moments: Tensor,
    residual_scale: Tensor | None, *, norm: str, factor: float | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Gradient for x (B, H, W, C) of norm and residual, and sums (4, C) of `_sums_kernel` over all tokens.

    `grad_n` is the gradient behind the norm, `grad_out` that of the result which the residual x is part of,
    if it is: times `residual_scale` (C,) or, where there is none, `factor`; neither: no residual.
    """
    batch, height, width, dim = x.shape
    per_sample = height * width
    parts = cdiv(per_sample, _ROWS)
    sums = x.new_empty((batch, parts, 4, dim), dtype=torch.float32)
    launch(
        _sums_kernel, batch * parts * cdiv(dim, _CHANNELS), x, x, grad_n, grad_out, moments, sums, per_sample,
        DIM=dim, NORM=norm, HAS_GRAD_OUT=grad_out is not None, ROWS=_ROWS, STEP=_STEP, CHANNELS=_CHANNELS,
        num_warps=4,
    )  # fmt: skip
    sample_sums = sums.sum(1)  # (B, 4, C)
    gain = 1.0 if gamma is None else gamma.float()
    means = (sample_sums[:, :2] * gain).sum(2) / (per_sample * dim)  # (B, 2)
    out = x.new_empty(x.shape)
    residual = "vector" if residual_scale is not None else "none" if factor is None else "factor"
    number, blocks = batch * per_sample, _blocks(dim)
    launch(
        _gradient_kernel, cdiv(number, blocks["ROWS"]), x, x, grad_n, grad_out, out, gamma, moments, means,
        residual_scale, number, per_sample, 1.0 if factor is None else factor, DIM=dim, NORM=norm,
        HAS_GAMMA=gamma is not None, RESIDUAL=residual, **blocks,
    )  # fmt: skip
    return out, sample_sums.sum(0)


def _blocks(dim: int) -> dict[str, int]:
    """Tile of a program that reads whole tokens: some of them, with all their channels."""
    block = power_of_two(dim)
    return {"ROWS": max(1, 4096 // block), "BLOCK": block, "num_warps": 4}
