# mypy: ignore-errors
"""The normalized map, and the norm's gradients, with those of the shortcut beside it."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from metaformer.ops.kernels.launch import cdiv, launch, power_of_two
from metaformer.ops.kernels.narrow_mlp import normed

# Of the sums' programs: positions of one sample, and channels
_ROWS, _STEP, _CHANNELS = 256, 32, 64


@triton.jit
def _normed_kernel(
    x, out, gamma, beta, moments, rows, per_sample, eps, DIM: tl.constexpr, NORM: tl.constexpr,
    HAS_GAMMA: tl.constexpr, HAS_BETA: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    channel = tl.arange(0, BLOCK)
    inside = (row < rows)[:, None] & (channel < DIM)[None, :]
    at = row.to(tl.int64)[:, None] * DIM + channel[None, :]
    value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    value = normed(
        value, inside, tl.minimum(row, rows - 1), channel, gamma, beta, moments, per_sample, eps,
        DIM, NORM, HAS_GAMMA, HAS_BETA,
    )  # fmt: skip
    tl.store(out + at, value.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _sums_kernel(
    x, inner, grad, moments, sums, per_sample, DIM: tl.constexpr, NORM: tl.constexpr, HAS_GRAD: tl.constexpr,
    ROWS: tl.constexpr, STEP: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Sums over a sample's part of inner, inner · x̂, grad and grad · x."""
    blocks: tl.constexpr = (DIM + CHANNELS - 1) // CHANNELS
    parts = tl.cdiv(per_sample, ROWS)
    pid = tl.program_id(0)
    tile = pid // blocks
    sample = tile // parts
    channel = (pid % blocks) * CHANNELS + tl.arange(0, CHANNELS)
    here = channel < DIM
    plain = tl.zeros((CHANNELS,), dtype=tl.float32)
    turned = tl.zeros((CHANNELS,), dtype=tl.float32)
    given = tl.zeros((CHANNELS,), dtype=tl.float32)
    straight = tl.zeros((CHANNELS,), dtype=tl.float32)
    for done in range(0, ROWS, STEP):
        position = (tile % parts) * ROWS + done + tl.arange(0, STEP)
        own = position < per_sample
        row = sample.to(tl.int64) * per_sample + position
        at = row[:, None] * DIM + channel[None, :]
        inside = own[:, None] & here[None, :]
        value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
        if NORM != "none":
            of = (tl.zeros((STEP,), dtype=tl.int64) + sample if NORM == "group_norm" else row) * 2
            mean = tl.load(moments + of, mask=own, other=0.0)
            inverse = tl.load(moments + of + 1, mask=own, other=0.0)
            of_inner = tl.load(inner + at, mask=inside, other=0.0).to(tl.float32)
            plain += tl.sum(of_inner, axis=0)
            turned += tl.sum(of_inner * (value - mean[:, None]) * inverse[:, None], axis=0)
        if HAS_GRAD:
            of_grad = tl.load(grad + at, mask=inside, other=0.0).to(tl.float32)
            given += tl.sum(of_grad, axis=0)
            straight += tl.sum(of_grad * value, axis=0)
    to = sums + tile.to(tl.int64) * 4 * DIM + channel
    tl.store(to, plain, mask=here)
    tl.store(to + DIM, turned, mask=here)
    tl.store(to + 2 * DIM, given, mask=here)
    tl.store(to + 3 * DIM, straight, mask=here)


@triton.jit
def _gradient_kernel(
    x, inner, grad, out, gamma, moments, pulls, shortcut, rows, per_sample, factor,
    DIM: tl.constexpr, NORM: tl.constexpr, HAS_GAMMA: tl.constexpr, SHORTCUT: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    channel = tl.arange(0, BLOCK)
    here = channel < DIM
    inside = (row < rows)[:, None] & here[None, :]
    at = row.to(tl.int64)[:, None] * DIM + channel[None, :]
    result = tl.load(inner + at, mask=inside, other=0.0).to(tl.float32)
    if NORM != "none":
        value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
        row_at = tl.minimum(row, rows - 1)
        of = (row_at // per_sample if NORM == "group_norm" else row_at) * 2
        mean = tl.load(moments + of)
        inverse = tl.load(moments + of + 1)
        turned = tl.where(inside, (value - mean[:, None]) * inverse[:, None], 0.0)
        if HAS_GAMMA:
            result *= tl.load(gamma + channel, mask=here, other=0.0).to(tl.float32)[None, :]
        if NORM == "group_norm":
            of_mean = tl.load(pulls + of)
            of_spread = tl.load(pulls + of + 1)
        else:
            of_mean = tl.sum(result, axis=1) / DIM
            of_spread = tl.sum(result * turned, axis=1) / DIM
        result = (result - of_mean[:, None] - turned * of_spread[:, None]) * inverse[:, None]
    if SHORTCUT != "none":
        straight = tl.load(grad + at, mask=inside, other=0.0).to(tl.float32)
        if SHORTCUT == "vector":
            straight *= tl.load(shortcut + channel, mask=here, other=0.0).to(tl.float32)[None, :]
        else:
            straight *= factor
        result += straight
    tl.store(out + at, result.to(out.dtype.element_ty), mask=inside)


def normalized(
    x: Tensor, gamma: Tensor | None, beta: Tensor | None, moments: Tensor, norm: str, eps: float
) -> Tensor:
    """norm(x) of rows (B, H, W, C)."""
    if norm == "none":
        return x
    batch, height, width, dim = x.shape
    number = batch * height * width
    out = x.new_empty(x.shape)
    block = power_of_two(dim)
    many = max(1, 4096 // block)
    launch(
        _normed_kernel, cdiv(number, many), x, x, out, x if gamma is None else gamma,
        x if beta is None else beta, moments, number, height * width, eps, DIM=dim, NORM=norm,
        HAS_GAMMA=gamma is not None, HAS_BETA=beta is not None, ROWS=many, BLOCK=block, num_warps=4,
    )  # fmt: skip
    return out


def norm_gradient(
    x: Tensor,
    inner: Tensor,
    grad: Tensor | None,
    gamma: Tensor | None,
    moments: Tensor,
    shortcut: Tensor | None,
    *,
    norm: str,
    factor: float | None,
) -> tuple[Tensor, Tensor]:
    """Gradient for x of norm and shortcut, and sums (4, C) over all of inner, inner · x̂, grad and grad · x.

    Args:
        x: rows (B, H, W, C).
        inner: gradient behind the norm; of its shape.
        grad: gradient of the result, where there is a shortcut.
        gamma: the norm's weight.
        moments: mean and 1/σ of each sample or position, as `norm` says.
        shortcut: (C,); where there is none, it is `factor`.
        norm: "group_norm", "layer_norm" or "none".
        factor: see `shortcut`; None where there is no shortcut at all.
    """
    batch, height, width, dim = x.shape
    per_sample = height * width
    parts = cdiv(per_sample, _ROWS)
    sums = x.new_empty((batch, parts, 4, dim), dtype=torch.float32)
    launch(
        _sums_kernel, batch * parts * cdiv(dim, _CHANNELS), x, x, inner, x if grad is None else grad, moments,
        sums, per_sample, DIM=dim, NORM=norm, HAS_GRAD=grad is not None, ROWS=_ROWS, STEP=_STEP,
        CHANNELS=_CHANNELS, num_warps=4,
    )  # fmt: skip
    of_sample = sums.sum(1)  # (B, 4, C)
    gain = 1.0 if gamma is None else gamma.float()
    pulls = (of_sample[:, :2] * gain).sum(2) / (per_sample * dim)  # (B, 2)
    out = x.new_empty(x.shape)
    straight = "vector" if shortcut is not None else "none" if factor is None else "factor"
    block = power_of_two(dim)
    many = max(1, 4096 // block)
    launch(
        _gradient_kernel, cdiv(batch * per_sample, many), x, x, inner, x if grad is None else grad, out,
        x if gamma is None else gamma, moments, pulls, x if shortcut is None else shortcut,
        batch * per_sample, per_sample, 1.0 if factor is None else factor, DIM=dim, NORM=norm,
        HAS_GAMMA=gamma is not None, SHORTCUT=straight, ROWS=many, BLOCK=block, num_warps=4,
    )  # fmt: skip
    return out, of_sample.sum(0)
