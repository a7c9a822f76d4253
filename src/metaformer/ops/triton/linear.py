# mypy: ignore-errors
"""Linear layers of tokens in Triton, `linear_act` with norm and activation, `linear_residual` with residual.

The norm costs the product nothing. With γ folded into the weight, W' = W γ,
    W · norm(x) + b = (W' · x − μ Σ W') / σ + (W · β + b),
and the operands stay as they are in memory. Σ W' is of the rounded weight, so that the mean cancels exactly.
Gradients are the library's own matrix products, in slices that bound the memory of wide activations.
"""

from collections.abc import Iterator
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from metaformer.ops import triton as backend
from metaformer.ops.linear import reference
from metaformer.ops.triton.launch import (
    backward_op,
    cdiv,
    empty_gradient,
    forward_op,
    gradient_like,
    launch,
    power_of_two,
    precision,
)
from metaformer.ops.triton.norm import moments_for, norm_gradient, normalize, token_moments

# A program of the activation's gradient
_ROWS, _COLUMNS = 64, 64
_WIDE, _LEAST = 1 << 26, 1024
"""Elements of wide activations that a slice may have, and rows that it has at least."""


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
def _slope(a, star, ACT: tl.constexpr):
    """Derivative of the activation; GELU's is cdf(a) + a · pdf(a)."""
    if ACT == "gelu":
        density = tl.exp(-0.5 * a * a) * 0.3989422804014327
        return 0.5 * (1.0 + tl.erf(a * 0.7071067811865476)) + a * density
    elif ACT == "relu":
        return tl.where(a > 0.0, 1.0, 0.0)
    elif ACT == "squared_relu":
        return 2.0 * tl.maximum(a, 0.0)
    elif ACT == "star_relu":
        return 2.0 * star * tl.maximum(a, 0.0)
    else:
        return tl.full(a.shape, 1.0, tl.float32)


@triton.jit
def _act_gradient_kernel(
    pre_act, grad, sums, star_sums, star_at, offset_at, rows, WIDTH: tl.constexpr, ACT: tl.constexpr,
    HAS_STAR: tl.constexpr, ACTIVATE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    # In place: grad becomes grad · act'(pre_act); with ACTIVATE, pre_act becomes act(pre_act).
    # Also sums over ROWS rows: of the new grad, sums (tiles down, WIDTH), and for StarReLU's scale and bias
    # of grad · max(pre_act, 0)² and of grad, star_sums (programs, 2).
    across: tl.constexpr = (WIDTH + COLUMNS - 1) // COLUMNS
    pid = tl.program_id(0)  # tile down * across + tile across
    row = (pid // across) * ROWS + tl.arange(0, ROWS)
    column = (pid % across) * COLUMNS + tl.arange(0, COLUMNS)
    offset_2d = row.to(tl.int64)[:, None] * WIDTH + column[None, :]
    inside = (row < rows)[:, None] & (column < WIDTH)[None, :]
    a = tl.load(pre_act + offset_2d, mask=inside, other=0.0).to(tl.float32)
    grad_out = tl.load(grad + offset_2d, mask=inside, other=0.0).to(tl.float32)
    star, offset = 1.0, 0.0
    if HAS_STAR:
        star = tl.load(star_at).to(tl.float32)
        offset = tl.load(offset_at).to(tl.float32)
        positive = tl.maximum(a, 0.0)
        tl.store(star_sums + pid * 2, tl.sum(tl.sum(grad_out * positive * positive, axis=1), axis=0))
        tl.store(star_sums + pid * 2 + 1, tl.sum(tl.sum(grad_out, axis=1), axis=0))
    grad_in = grad_out * _slope(a, star, ACT)
    tl.store(grad + offset_2d, grad_in.to(grad.dtype.element_ty), mask=inside)
    to = sums + (pid // across).to(tl.int64) * WIDTH + column
    tl.store(to, tl.sum(grad_in, axis=0), mask=column < WIDTH)
    if ACTIVATE:
        tl.store(
            pre_act + offset_2d, activate(a, star, offset, ACT).to(pre_act.dtype.element_ty), mask=inside
        )


@triton.jit
def _fold_kernel(
    w, gamma, beta, bias, folded, total, offset, width, DIM: tl.constexpr,
    HAS_GAMMA: tl.constexpr, HAS_BETA: tl.constexpr, HAS_BIAS: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Folded = W γ, total = Σ folded, offset = W · β + bias, for ROWS of the weight's `width` outputs."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    channel = tl.arange(0, BLOCK)
    live = row < width
    known = channel < DIM
    index = row[:, None] * DIM + channel[None, :]
    inside = live[:, None] & known[None, :]
    weight = tl.load(w + index, mask=inside, other=0.0).to(tl.float32)
    constant = tl.zeros((ROWS,), dtype=tl.float32)
    if HAS_BETA:
        shift = tl.load(beta + channel, mask=known, other=0.0).to(tl.float32)
        constant += tl.sum(weight * shift[None, :], axis=1)
    if HAS_BIAS:
        constant += tl.load(bias + row, mask=live, other=0.0).to(tl.float32)
    if HAS_GAMMA:
        gain = tl.load(gamma + channel, mask=known, other=0.0).to(tl.float32)
        rounded = (weight * gain[None, :]).to(folded.dtype.element_ty)
        tl.store(folded + index, rounded, mask=inside)
        weight = rounded.to(tl.float32)
    tl.store(total + row, tl.sum(weight, axis=1), mask=live)
    tl.store(offset + row, constant, mask=live)


@triton.jit
def _linear_kernel(
    x, w, out, bias, total, moments, residual, scale, residual_scale, star_at, offset_at, rows, per_sample,
    factor,
    WIDTH: tl.constexpr, DIM: tl.constexpr, NORM: tl.constexpr, HAS_BIAS: tl.constexpr, ACT: tl.constexpr,
    HAS_STAR: tl.constexpr, HAS_SCALE: tl.constexpr, RESIDUAL: tl.constexpr, PRECISION: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    # A tile (ROWS, COLUMNS) of residual_scale · residual + scale · act((x · wᵀ − μ total) / σ + bias)
    across: tl.constexpr = (WIDTH + COLUMNS - 1) // COLUMNS
    pid = tl.program_id(0)  # tile down * across + tile across: neighbors read the same rows of x
    row = (pid // across) * ROWS + tl.arange(0, ROWS)
    column = (pid % across) * COLUMNS + tl.arange(0, COLUMNS)
    depth = tl.arange(0, DEPTH)
    # What lies beyond the last row or column is read from there instead, and not stored
    row_inside = tl.minimum(row, rows - 1)
    column_inside = tl.minimum(column, WIDTH - 1)
    x_at = x + row_inside.to(tl.int64)[:, None] * DIM + depth[None, :]
    w_at = w + column_inside[None, :] * DIM + depth[:, None]
    result = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    for done in range(0, DIM, DEPTH):
        if DIM % DEPTH == 0:
            left = tl.load(x_at)
            right = tl.load(w_at)
        else:
            left = tl.load(x_at, mask=(depth < DIM - done)[None, :], other=0.0)
            right = tl.load(w_at, mask=(depth < DIM - done)[:, None], other=0.0)
        result = tl.dot(left, right, result, input_precision=PRECISION)
        x_at += DEPTH
        w_at += DEPTH
    if NORM != "none":
        index = (row_inside // per_sample if NORM == "group_norm" else row_inside) * 2
        mean = tl.load(moments + index)
        inverse = tl.load(moments + index + 1)
        result = (result - mean[:, None] * tl.load(total + column_inside)[None, :]) * inverse[:, None]
    if HAS_BIAS:
        result += tl.load(bias + column_inside).to(tl.float32)[None, :]
    star, offset = 1.0, 0.0
    if HAS_STAR:
        star = tl.load(star_at).to(tl.float32)
        offset = tl.load(offset_at).to(tl.float32)
    result = activate(result, star, offset, ACT)
    if HAS_SCALE:
        result *= tl.load(scale + column_inside).to(tl.float32)[None, :]
    index_2d = row.to(tl.int64)[:, None] * WIDTH + column[None, :]
    inside = (row < rows)[:, None] & (column < WIDTH)[None, :]
    if RESIDUAL != "none":
        added = tl.load(residual + index_2d, mask=inside, other=0.0).to(tl.float32)
        if RESIDUAL == "vector":
            added *= tl.load(residual_scale + column_inside).to(tl.float32)[None, :]
        else:
            added *= factor
        result += added
    tl.store(out + index_2d, result.to(out.dtype.element_ty), mask=inside)


def fold(
    w: Tensor, gamma: Tensor | None, beta: Tensor | None, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """The weight (N, K) times γ, its sums (N,), and the constant w · β + b (N,)."""
    width, dim = w.shape
    folded = w if gamma is None else w.new_empty(w.shape)
    total = w.new_empty((width,), dtype=torch.float32)
    offset = w.new_empty((width,), dtype=torch.float32)
    block = power_of_two(dim)
    rows = max(1, 2048 // block)
    launch(
        _fold_kernel, cdiv(width, rows), w, w, gamma, beta, bias, total if gamma is None else folded, total,
        offset, width, DIM=dim, HAS_GAMMA=gamma is not None, HAS_BETA=beta is not None,
        HAS_BIAS=bias is not None, ROWS=rows, BLOCK=block, num_warps=4,
    )  # fmt: skip
    return folded, total, offset


def fused_linear(
    x: Tensor, w: Tensor, bias: Tensor | None, *, moments: Tensor | None = None, total: Tensor | None = None,
    norm: str = "none", act: str = "none", star: Tensor | None = None, offset: Tensor | None = None,
    scale: Tensor | None = None, residual: Tensor | None = None, residual_scale: Tensor | None = None,
    factor: float = 1.0,
) -> Tensor:  # fmt: skip
    """residual_scale · residual + scale · act(w · norm(x) + bias) of x (B, H, W, K) by a weight (N, K).

    With a norm, w, `total` and bias are those of `fold`, and `moments` are its samples' or tokens'. The
    residual is (B, H, W, N), its factor `residual_scale` (N,) or, where there is none, `factor`.
    """
    batch, height, width, dim = x.shape
    out = x.new_empty((batch, height, width, w.shape[0]))
    number = batch * height * width
    blocks = _blocks(number, w.shape[0], x.dtype)
    kind = "none" if residual is None else "factor" if residual_scale is None else "vector"
    launch(
        _linear_kernel, cdiv(number, blocks["ROWS"]) * cdiv(w.shape[0], blocks["COLUMNS"]), x,
        x, w, out, bias, total, moments, residual, scale, residual_scale, star, offset, number,
        height * width, factor, WIDTH=w.shape[0], DIM=dim, NORM=norm, HAS_BIAS=bias is not None, ACT=act,
        HAS_STAR=star is not None, HAS_SCALE=scale is not None, RESIDUAL=kind, PRECISION=precision(x.dtype),
        **blocks,
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


def outer(a: Tensor, b: Tensor) -> Tensor:
    """aᵀ · b of rows (N, K) and (N, C): (K, C), summed and kept in float32."""
    if a.dtype == torch.float32:
        return a.t() @ b
    if a.is_cuda:
        return torch.mm(a.t(), b, out_dtype=torch.float32)
    return a.t().float() @ b.float()


def act_gradient(
    pre_act: Tensor, grad: Tensor, act: str, star: Tensor | None, offset: Tensor | None, activate: bool
) -> tuple[Tensor, Tensor]:
    """Turn `grad` (N, M), in place, into the gradient before `act`; returns its sums, and StarReLU's.

    With `activate`, pre_act (N, M) becomes act(pre_act); both lie contiguous.
    """
    number, width = pre_act.shape
    down, across = cdiv(number, _ROWS), cdiv(width, _COLUMNS)
    sums = pre_act.new_empty((down, width), dtype=torch.float32)
    star_sums = pre_act.new_empty((down * across, 2) if star is not None else (1, 2), dtype=torch.float32)
    launch(
        _act_gradient_kernel, down * across, pre_act, pre_act, grad, sums, star_sums, star, offset, number,
        WIDTH=width, ACT=act, HAS_STAR=star is not None, ACTIVATE=activate, ROWS=_ROWS, COLUMNS=_COLUMNS,
        num_warps=4,
    )  # fmt: skip
    return sums.sum(0), star_sums.sum(0)


def slices(number: int, width: int) -> Iterator[slice]:
    """Cut `number` rows so that activations `width` wide stay small."""
    step = max(_LEAST, _WIDE // width)
    for start in range(0, number, step):
        yield slice(start, min(start + step, number))


def rows_linear(x: Tensor, w: Tensor, bias: Tensor | None) -> Tensor:
    """Linear layer of rows (N, K), by the library's own product."""
    return x @ w.t() if bias is None else torch.addmm(bias.to(x.dtype), x, w.t())


def _linear_act_gradient(
    n: Tensor, grad: Tensor, w: Tensor, bias: Tensor | None, act: str, star: Tensor | None,
    offset: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of act(n · wᵀ + bias) for rows n (N, K), and in float32 for w, bias and StarReLU's two."""
    grad_n = torch.empty_like(n)
    grad_w = w.new_zeros(w.shape, dtype=torch.float32)
    grad_bias = w.new_zeros(w.shape[0], dtype=torch.float32)
    grad_star = w.new_zeros(2, dtype=torch.float32)
    for part in slices(n.shape[0], w.shape[0]):
        pre_act = rows_linear(n[part], w, bias)
        grad_pre_act = grad[part].clone()
        sums, star_sums = act_gradient(pre_act, grad_pre_act, act, star, offset, activate=False)
        grad_w += outer(grad_pre_act, n[part])
        torch.mm(grad_pre_act, w, out=grad_n[part])
        grad_bias += sums
        grad_star += star_sums
    return grad_n, grad_w, grad_bias, grad_star


@forward_op("linear_act")
def linear_act(
    x: Tensor, w: Tensor, bias: Tensor | None, gamma: Tensor | None, beta: Tensor | None, star: Tensor | None,
    offset: Tensor | None, eps: float, norm: str, act: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """act(w · norm(x) + bias), and for a norm over samples each one's mean and 1/σ."""
    moments = moments_for(x, norm, eps)
    folded, total, constant = (w, None, bias) if norm == "none" else fold(w, gamma, beta, bias)
    out = fused_linear(
        x, folded, constant, moments=moments, total=total, norm=norm, act=act, star=star, offset=offset
    )
    return out, moments if norm == "group_norm" else moments.new_empty((0, 2))


def _empty(x: Tensor, w: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    samples = x.shape[0] if rest[-2] == "group_norm" else 0
    return x.new_empty((*x.shape[:3], w.shape[0])), x.new_empty((samples, 2), dtype=torch.float32)


@backward_op("linear_act_backward")
def linear_act_backward(
    grad_out: Tensor, x: Tensor, w: Tensor, bias: Tensor | None, gamma: Tensor | None, beta: Tensor | None,
    star: Tensor | None, offset: Tensor | None, sample_moments: Tensor, eps: float, norm: str, act: str,
) -> list[Tensor]:  # fmt: skip
    """Gradients for x and the six tensors after it, empty for those that are not there."""
    grad_out = grad_out.contiguous()
    moments = token_moments(x, eps) if norm == "layer_norm" else sample_moments
    n = normalize(x, gamma, beta, moments, norm, eps)
    grad_n, grad_w, grad_bias, grad_star = _linear_act_gradient(
        n.flatten(0, 2), grad_out.flatten(0, 2), w, bias, act, star, offset
    )
    grad_x = grad_n.view(x.shape)
    grad_gamma = grad_beta = grad_bias
    if norm != "none":
        grad_x, (grad_beta, grad_gamma, _, _) = norm_gradient(
            x, grad_x, None, gamma, moments, None, norm=norm, factor=None
        )
    grads = (grad_w, grad_bias, grad_gamma, grad_beta, *grad_star.split(1))
    return [grad_x, *map(gradient_like, grads, (w, bias, gamma, beta, star, offset))]


def _empty_gradients(grad_out: Tensor, x: Tensor, *rest: Any) -> list[Tensor]:
    return [x.new_empty(x.shape), *(empty_gradient(x, tensor) for tensor in rest[:6])]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:7], output[1])
    ctx.options = inputs[7:]


def _backward(ctx: Any, grad_out: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    *tensors, moments = ctx.saved_tensors
    eps, norm, act = ctx.options

    def plain(x, w, bias, gamma, beta, star, offset):
        options = {"norm": norm, "gamma": gamma, "beta": beta, "eps": eps, "act": act}
        return reference(x, w, bias, **options, act_scale=star, act_bias=offset)

    grads = backend.gradients("linear_act_backward", plain, grad_out, tensors, moments, eps, norm, act)
    return (*grads, None, None, None)


linear_act.register_autograd(_backward, setup_context=_setup_context)
linear_act.register_fake(_empty)
linear_act_backward.register_fake(_empty_gradients)


@forward_op("linear_residual")
def linear_residual(
    x: Tensor, w: Tensor, bias: Tensor | None, scale: Tensor | None, residual: Tensor | None,
    residual_scale: Tensor | None, factor: float,
) -> Tensor:  # fmt: skip
    """Linear layer with scale and residual, whose factor is `residual_scale` or, without one, `factor`."""
    return fused_linear(
        x, w, bias, scale=scale, residual=residual, residual_scale=residual_scale, factor=factor
    )


def _empty_residual(x: Tensor, w: Tensor, *rest: Any) -> Tensor:
    return x.new_empty((*x.shape[:3], w.shape[0]))


@backward_op("linear_residual_backward")
def linear_residual_backward(
    grad_out: Tensor, x: Tensor, w: Tensor, bias: Tensor | None, scale: Tensor | None
) -> list[Tensor]:
    """Gradients for x and the three tensors after it, empty for those that are not there."""
    rows = grad_out.contiguous().flatten(0, 2)
    scaled = w if scale is None else (w.float() * scale.float()[:, None]).to(w.dtype)
    grad_x = (rows @ scaled).view(x.shape)
    grad_w = outer(rows, x.flatten(0, 2))
    grad_bias = rows.sum(0, dtype=torch.float32)
    # Σ grad · (w · x + bias), from what the other gradients sum up anyway
    grad_scale = (grad_w * w).sum(1) if bias is None else (grad_w * w).sum(1) + grad_bias * bias
    if scale is not None:
        grad_w, grad_bias = grad_w * scale[:, None], grad_bias * scale
    return [
        grad_x,
        gradient_like(grad_w, w),
        gradient_like(grad_bias, bias),
        gradient_like(grad_scale, scale),
    ]


def _empty_residual_gradients(grad_out: Tensor, x: Tensor, *rest: Any) -> list[Tensor]:
    return [x.new_empty(x.shape), *(empty_gradient(x, tensor) for tensor in rest)]


def _setup_residual(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, residual, residual_scale, ctx.factor = inputs
    ctx.has_residual = residual is not None
    ctx.save_for_backward(*tensors, residual if residual_scale is not None else None, residual_scale)


def _backward_residual(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
    *tensors, residual, residual_scale = ctx.saved_tensors

    def plain(x, w, bias, scale):
        return reference(x, w, bias, scale=scale)

    grads = backend.gradients("linear_residual_backward", plain, grad_out, tensors)
    grad_residual, grad_residual_scale = None, None
    if residual_scale is not None:
        grad_residual = grad_out * residual_scale.to(grad_out.dtype)
        grad_residual_scale = (grad_out.float() * residual).sum((0, 1, 2)).to(residual_scale.dtype)
    elif ctx.has_residual:
        grad_residual = grad_out if ctx.factor == 1.0 else grad_out * ctx.factor
    return (*grads, grad_residual, grad_residual_scale, None)


linear_residual.register_autograd(_backward_residual, setup_context=_setup_residual)
linear_residual.register_fake(_empty_residual)
linear_residual_backward.register_fake(_empty_residual_gradients)
