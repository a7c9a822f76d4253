# mypy: ignore-errors
"""Activations inside kernels, and their gradients."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from metaformer.ops.kernels.launch import cdiv, launch

# What a program of the gradient takes
_ROWS, _COLUMNS = 64, 64


@triton.jit
def activate(a, star, offset, ACT: tl.constexpr):
    """The activation of a float32 tile; star · max(a, 0)² + offset for StarReLU."""
    if ACT == "gelu":
        a = 0.5 * a * (1.0 + tl.erf(a * 0.7071067811865476))
    elif ACT != "none":
        a = tl.maximum(a, 0.0)
        if ACT != "relu":
            a = a * a
        if ACT == "star_relu":
            a = star * a + offset
    return a


@triton.jit
def slope(a, star, ACT: tl.constexpr):
    """Derivative of the activation."""
    if ACT == "gelu":
        bell = tl.exp(-0.5 * a * a) * 0.3989422804014327
        return 0.5 * (1.0 + tl.erf(a * 0.7071067811865476)) + a * bell
    elif ACT == "relu":
        return tl.where(a > 0.0, 1.0, 0.0)
    elif ACT == "squared_relu":
        return 2.0 * tl.maximum(a, 0.0)
    elif ACT == "star_relu":
        return 2.0 * star * tl.maximum(a, 0.0)
    else:
        return tl.full(a.shape, 1.0, tl.float32)


@triton.jit
def _gradient_kernel(
    before, grad, sums, stars, star_at, offset_at, rows, WIDTH: tl.constexpr,
    ACT: tl.constexpr, HAS_STAR: tl.constexpr, KEEP: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """In place: grad becomes that before the activation; with KEEP, `before` becomes what comes after it."""
    blocks: tl.constexpr = (WIDTH + COLUMNS - 1) // COLUMNS
    pid = tl.program_id(0)
    row = (pid // blocks) * ROWS + tl.arange(0, ROWS)
    column = (pid % blocks) * COLUMNS + tl.arange(0, COLUMNS)
    at = row.to(tl.int64)[:, None] * WIDTH + column[None, :]
    inside = (row < rows)[:, None] & (column < WIDTH)[None, :]
    a = tl.load(before + at, mask=inside, other=0.0).to(tl.float32)
    given = tl.load(grad + at, mask=inside, other=0.0).to(tl.float32)
    star, offset = 1.0, 0.0
    if HAS_STAR:
        star = tl.load(star_at).to(tl.float32)
        offset = tl.load(offset_at).to(tl.float32)
        positive = tl.maximum(a, 0.0)
        tl.store(stars + pid * 2, tl.sum(tl.sum(given * positive * positive, axis=1), axis=0))
        tl.store(stars + pid * 2 + 1, tl.sum(tl.sum(given, axis=1), axis=0))
    passed = given * slope(a, star, ACT)
    tl.store(grad + at, passed.to(grad.dtype.element_ty), mask=inside)
    tl.store(
        sums + (pid // blocks).to(tl.int64) * WIDTH + column, tl.sum(passed, axis=0), mask=column < WIDTH
    )
    if KEEP:
        tl.store(before + at, activate(a, star, offset, ACT).to(before.dtype.element_ty), mask=inside)


def activation_gradient(
    before: Tensor, grad: Tensor, act: str, star: Tensor | None, offset: Tensor | None, keep: bool
) -> tuple[Tensor, Tensor]:
    """Turn `grad` (N, C), in place, into the gradient before the activation; gives its sums, and StarReLU's.

    Args:
        before: what was activated; with `keep` it becomes what came of that.
        grad: after the activation, both of them rows side by side.
        act: the activation.
        star: StarReLU's factor, where there is one.
        offset: StarReLU's offset.
        keep: see `before`.
    """
    number, width = before.shape
    down, blocks = cdiv(number, _ROWS), cdiv(width, _COLUMNS)
    sums = before.new_empty((down, width), dtype=torch.float32)
    stars = before.new_empty((down * blocks, 2) if star is not None else (1, 2), dtype=torch.float32)
    launch(
        _gradient_kernel, down * blocks, before, before, grad, sums, stars,
        sums if star is None else star, sums if offset is None else offset, number, WIDTH=width, ACT=act,
        HAS_STAR=star is not None, KEEP=keep, ROWS=_ROWS, COLUMNS=_COLUMNS, num_warps=4,
    )  # fmt: skip
    return sums.sum(0), stars.sum(0)
