# mypy: ignore-errors
"""The channel MLP of narrow maps in one kernel: what lies between the products never leaves the chip."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from metaformer.ops.kernels.activation import activate
from metaformer.ops.kernels.launch import cdiv, launch, power_of_two, precision
from metaformer.ops.kernels.moments import tile_moments

WIDEST = 128
"""Channels up to which the accumulators of both products fit a program."""


@triton.jit
def normed(
    value, inside, row, channel, gamma, beta, moments, per_sample, eps,
    DIM: tl.constexpr, NORM: tl.constexpr, HAS_GAMMA: tl.constexpr, HAS_BETA: tl.constexpr,
):  # fmt: skip
    """Normalize a float32 tile (rows, all channels), with zeros outside."""
    if NORM != "none":
        if NORM == "group_norm":
            of = row // per_sample * 2
            mean = tl.load(moments + of)
            inverse = tl.load(moments + of + 1)
        else:
            mean, inverse = tile_moments(value, inside, DIM, eps)
        value = (value - mean[:, None]) * inverse[:, None]
        if HAS_GAMMA:
            value *= tl.load(gamma + channel, mask=channel < DIM, other=0.0).to(tl.float32)[None, :]
        if HAS_BETA:
            value += tl.load(beta + channel, mask=channel < DIM, other=0.0).to(tl.float32)[None, :]
        value = tl.where(inside, value, 0.0)
    return value


@triton.jit
def _mlp_kernel(
    x, out, w1, b1, w2, b2, gamma, beta, moments, scale, shortcut, star_at, offset_at,
    rows, per_sample, factor, eps,
    DIM: tl.constexpr, HIDDEN: tl.constexpr, NORM: tl.constexpr, ACT: tl.constexpr,
    HAS_B1: tl.constexpr, HAS_B2: tl.constexpr, HAS_GAMMA: tl.constexpr, HAS_BETA: tl.constexpr,
    HAS_SCALE: tl.constexpr, HAS_STAR: tl.constexpr, SHORTCUT: tl.constexpr, PRECISION: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    channel = tl.arange(0, BLOCK)
    here = channel < DIM
    inside = (row < rows)[:, None] & here[None, :]
    at = row.to(tl.int64)[:, None] * DIM + channel[None, :]
    value = tl.load(x + at, mask=inside, other=0.0)
    row_at = tl.minimum(row, rows - 1)
    left = normed(
        value.to(tl.float32), inside, row_at, channel, gamma, beta, moments, per_sample, eps,
        DIM, NORM, HAS_GAMMA, HAS_BETA,
    ).to(value.dtype)  # fmt: skip
    star, offset = 1.0, 0.0
    if HAS_STAR:
        star = tl.load(star_at).to(tl.float32)
        offset = tl.load(offset_at).to(tl.float32)
    result = tl.zeros((ROWS, BLOCK), dtype=tl.float32)
    for done in range(0, HIDDEN, CHUNK):
        unit = done + tl.arange(0, CHUNK)
        known = unit < HIDDEN
        to_wide = w1 + unit[None, :] * DIM + channel[:, None]
        to_narrow = w2 + channel[None, :] * HIDDEN + unit[:, None]
        if HIDDEN % CHUNK == 0 and DIM == BLOCK:
            first = tl.load(to_wide)
            second = tl.load(to_narrow)
        else:
            first = tl.load(to_wide, mask=here[:, None] & known[None, :], other=0.0)
            second = tl.load(to_narrow, mask=here[None, :] & known[:, None], other=0.0)
        wide = tl.dot(left, first, input_precision=PRECISION)
        if HAS_B1:
            wide += tl.load(b1 + unit, mask=known, other=0.0).to(tl.float32)[None, :]
        wide = activate(wide, star, offset, ACT).to(value.dtype)
        result = tl.dot(wide, second, result, input_precision=PRECISION)
    if HAS_B2:
        result += tl.load(b2 + channel, mask=here, other=0.0).to(tl.float32)[None, :]
    if HAS_SCALE:
        result *= tl.load(scale + channel, mask=here, other=0.0).to(tl.float32)[None, :]
    # Read again rather than kept in registers all along
    straight = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    if SHORTCUT == "vector":
        result += straight * tl.load(shortcut + channel, mask=here, other=0.0).to(tl.float32)[None, :]
    elif SHORTCUT == "factor":
        result += straight * factor
    tl.store(out + at, result.to(out.dtype.element_ty), mask=inside)


def narrow_mlp(
    x: Tensor,
    w1: Tensor,
    b1: Tensor | None,
    w2: Tensor,
    b2: Tensor | None,
    gamma: Tensor | None,
    beta: Tensor | None,
    moments: Tensor,
    scale: Tensor | None,
    shortcut: Tensor | None,
    star: Tensor | None,
    offset: Tensor | None,
    *,
    factor: float | None,
    eps: float,
    norm: str,
    act: str,
) -> Tensor:
    """The channel MLP of rows (B, H, W, C); `shortcut` (C,), where given, stands for `factor`."""
    batch, height, width, dim = x.shape
    number = batch * height * width
    out = x.new_empty(x.shape)
    blocks = _blocks(number, dim, x.dtype)
    straight = "vector" if shortcut is not None else "none" if factor is None else "factor"
    launch(
        _mlp_kernel, cdiv(number, blocks["ROWS"]), x, x, out, w1, w1 if b1 is None else b1, w2,
        w1 if b2 is None else b2, w1 if gamma is None else gamma, w1 if beta is None else beta, moments,
        w1 if scale is None else scale, w1 if shortcut is None else shortcut, w1 if star is None else star,
        w1 if offset is None else offset, number, height * width, 1.0 if factor is None else factor, eps,
        DIM=dim, HIDDEN=w1.shape[0], NORM=norm, ACT=act, HAS_B1=b1 is not None, HAS_B2=b2 is not None,
        HAS_GAMMA=gamma is not None, HAS_BETA=beta is not None, HAS_SCALE=scale is not None,
        HAS_STAR=star is not None, SHORTCUT=straight, PRECISION=precision(x.dtype), **blocks,
    )  # fmt: skip
    return out


def _blocks(rows: int, dim: int, dtype: torch.dtype) -> dict[str, int]:
    """Tile of a program, from a fixed table."""
    block = power_of_two(dim)
    if dtype == torch.float32:
        return {"ROWS": 32, "BLOCK": block, "CHUNK": 32, "num_warps": 4, "num_stages": 1}
    if rows < 16384:  # an image alone: more programs, each of them smaller
        return {"ROWS": 64, "BLOCK": block, "CHUNK": 64, "num_warps": 4, "num_stages": 2}
    return {"ROWS": 128, "BLOCK": block, "CHUNK": 64, "num_warps": 8, "num_stages": 2}
