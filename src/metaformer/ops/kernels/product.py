# mypy: ignore-errors
"""The 1×1 product with a norm before it, and bias, activation, scale and shortcut behind it, in one kernel.

The norm costs the product nothing: with γ folded into the weights, w · norm(x) + b is
(w' · x − μ Σw') / σ + (w · β + b), and the operands stay as they are in memory. Of these, Σw' is taken of the
rounded weights, so that the mean goes out exactly.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from metaformer.ops.kernels.activation import activate
from metaformer.ops.kernels.launch import cdiv, launch, power_of_two, precision


@triton.jit
def _fold_kernel(
    w, gamma, beta, bias, folded, total, offset, width, DIM: tl.constexpr,
    HAS_GAMMA: tl.constexpr, HAS_BETA: tl.constexpr, HAS_BIAS: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    channel = tl.arange(0, BLOCK)
    own = row < width
    here = channel < DIM
    at = row[:, None] * DIM + channel[None, :]
    inside = own[:, None] & here[None, :]
    weight = tl.load(w + at, mask=inside, other=0.0).to(tl.float32)
    constant = tl.zeros((ROWS,), dtype=tl.float32)
    if HAS_BETA:
        shift = tl.load(beta + channel, mask=here, other=0.0).to(tl.float32)
        constant += tl.sum(weight * shift[None, :], axis=1)
    if HAS_BIAS:
        constant += tl.load(bias + row, mask=own, other=0.0).to(tl.float32)
    if HAS_GAMMA:
        gain = tl.load(gamma + channel, mask=here, other=0.0).to(tl.float32)
        rounded = (weight * gain[None, :]).to(folded.dtype.element_ty)
        tl.store(folded + at, rounded, mask=inside)
        weight = rounded.to(tl.float32)
    tl.store(total + row, tl.sum(weight, axis=1), mask=own)
    tl.store(offset + row, constant, mask=own)


@triton.jit
def _product_kernel(
    a, w, out, bias, total, moments, residual, scale, shortcut, star_at, offset_at, rows, per_sample, factor,
    WIDTH: tl.constexpr, DIM: tl.constexpr, NORM: tl.constexpr, HAS_BIAS: tl.constexpr, ACT: tl.constexpr,
    HAS_STAR: tl.constexpr, HAS_SCALE: tl.constexpr, SHORTCUT: tl.constexpr, PRECISION: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    across: tl.constexpr = (WIDTH + COLUMNS - 1) // COLUMNS
    pid = tl.program_id(0)
    row = (pid // across) * ROWS + tl.arange(0, ROWS)
    column = (pid % across) * COLUMNS + tl.arange(0, COLUMNS)
    depth = tl.arange(0, DEPTH)
    # What lies beyond the last row or column is read from there instead, and not stored
    row_at = tl.minimum(row, rows - 1)
    column_at = tl.minimum(column, WIDTH - 1)
    a_at = a + row_at.to(tl.int64)[:, None] * DIM + depth[None, :]
    w_at = w + column_at[None, :] * DIM + depth[:, None]
    result = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    for done in range(0, DIM, DEPTH):
        if DIM % DEPTH == 0:
            left = tl.load(a_at)
            right = tl.load(w_at)
        else:
            left = tl.load(a_at, mask=(depth < DIM - done)[None, :], other=0.0)
            right = tl.load(w_at, mask=(depth < DIM - done)[:, None], other=0.0)
        result = tl.dot(left, right, result, input_precision=PRECISION)
        a_at += DEPTH
        w_at += DEPTH
    if NORM != "none":
        of = (row_at // per_sample if NORM == "group_norm" else row_at) * 2
        mean = tl.load(moments + of)
        inverse = tl.load(moments + of + 1)
        result = (result - mean[:, None] * tl.load(total + column_at)[None, :]) * inverse[:, None]
    if HAS_BIAS:
        result += tl.load(bias + column_at).to(tl.float32)[None, :]
    star, offset = 1.0, 0.0
    if HAS_STAR:
        star = tl.load(star_at).to(tl.float32)
        offset = tl.load(offset_at).to(tl.float32)
    result = activate(result, star, offset, ACT)
    if HAS_SCALE:
        result *= tl.load(scale + column_at).to(tl.float32)[None, :]
    at = row.to(tl.int64)[:, None] * WIDTH + column[None, :]
    inside = (row < rows)[:, None] & (column < WIDTH)[None, :]
    if SHORTCUT != "none":
        straight = tl.load(residual + at, mask=inside, other=0.0).to(tl.float32)
        if SHORTCUT == "vector":
            straight *= tl.load(shortcut + column_at).to(tl.float32)[None, :]
        else:
            straight *= factor
        result += straight
    tl.store(out + at, result.to(out.dtype.element_ty), mask=inside)


def fold(
    w: Tensor, gamma: Tensor | None, beta: Tensor | None, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """The weights (N, K) times γ, their sums (N,), and the constant w · β + b (N,)."""
    width, dim = w.shape
    folded = w if gamma is None else w.new_empty(w.shape)
    total = w.new_empty((width,), dtype=torch.float32)
    offset = w.new_empty((width,), dtype=torch.float32)
    block = power_of_two(dim)
    many = max(1, 2048 // block)
    launch(
        _fold_kernel, cdiv(width, many), w, w, w if gamma is None else gamma, w if beta is None else beta,
        w if bias is None else bias, folded if gamma is not None else total, total, offset, width, DIM=dim,
        HAS_GAMMA=gamma is not None, HAS_BETA=beta is not None, HAS_BIAS=bias is not None,
        ROWS=many, BLOCK=block, num_warps=4,
    )  # fmt: skip
    return folded, total, offset


def product(
    a: Tensor,
    w: Tensor,
    bias: Tensor | None,
    *,
    moments: Tensor | None = None,
    total: Tensor | None = None,
    norm: str = "none",
    act: str = "none",
    star: Tensor | None = None,
    offset: Tensor | None = None,
    scale: Tensor | None = None,
    residual: Tensor | None = None,
    shortcut: Tensor | None = None,
    factor: float = 1.0,
) -> Tensor:
    """Shortcut · residual + scale · act(norm · w + bias) of rows (B, H, W, K) with weights (N, K).

    Args:
        a: the rows.
        w: weights, with γ folded in where there is a norm.
        bias: (N,), with w · β in it where there is a norm.
        moments: mean and 1/σ of each sample or position, as `norm` says.
        total: sums of the folded weights.
        norm: "group_norm", "layer_norm" or "none".
        act: the activation, or "none".
        star: StarReLU's factor.
        offset: StarReLU's offset.
        scale: (N,).
        residual: rows (B, H, W, N) to add.
        shortcut: (N,), what the residual is multiplied with; `factor` where there is none.
        factor: see `shortcut`.
    """
    batch, height, width, dim = a.shape
    out = a.new_empty((batch, height, width, w.shape[0]))
    number = batch * height * width
    blocks = _blocks(number, w.shape[0], a.dtype)
    straight = "none" if residual is None else "factor" if shortcut is None else "vector"
    launch(
        _product_kernel, cdiv(number, blocks["ROWS"]) * cdiv(w.shape[0], blocks["COLUMNS"]), a,
        a, w, out, w if bias is None else bias, w if total is None else total,
        w if moments is None else moments, w if residual is None else residual, w if scale is None else scale,
        w if shortcut is None else shortcut, w if star is None else star, w if offset is None else offset,
        number, height * width, factor, WIDTH=w.shape[0], DIM=dim, NORM=norm, HAS_BIAS=bias is not None,
        ACT=act, HAS_STAR=star is not None, HAS_SCALE=scale is not None, SHORTCUT=straight,
        PRECISION=precision(a.dtype), **blocks,
    )  # fmt: skip
    return out


def _blocks(rows: int, width: int, dtype: torch.dtype) -> dict[str, int]:
    """Tile of a program; a table, as a choice by timing could differ between a run and its resumption."""
    if dtype == torch.float32:
        return {"ROWS": 64, "COLUMNS": 64, "DEPTH": 16, "num_warps": 4, "num_stages": 2}
    if rows < 2048:  # an image alone: more programs, each of them smaller
        return {"ROWS": 64, "COLUMNS": 64, "DEPTH": 64, "num_warps": 4, "num_stages": 4}
    if width <= 64:
        return {"ROWS": 128, "COLUMNS": 64, "DEPTH": 64, "num_warps": 4, "num_stages": 3}
    return {"ROWS": 128, "COLUMNS": 128, "DEPTH": 64, "num_warps": 8, "num_stages": 3}
