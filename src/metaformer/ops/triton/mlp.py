# mypy: ignore-errors
"""Channel MLP of tokens (B, H, W, C) in Triton, with its norm, scale and residual.

out = residual_scale · x + scale · (act(norm(x) · W1ᵀ + b1) · W2ᵀ + b2). Up to `WIDEST` channels one kernel
does it, and the hidden activations never leave the chip; beyond that two linear layers.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from metaformer.ops import triton as backend
from metaformer.ops.mlp import reference
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
from metaformer.ops.triton.linear import (
    act_gradient,
    activate,
    fold,
    fused_linear,
    outer,
    rows_linear,
    slices,
)
from metaformer.ops.triton.norm import moments_for, norm_gradient, normalize, normalize_tile, token_moments

WIDEST = 128
"""Channels up to which the accumulators of both products fit a program."""


@triton.jit
def _mlp_kernel(
    x, out, w1, b1, w2, b2, gamma, beta, moments, scale, residual_scale, star_at, offset_at,
    rows, per_sample, factor, eps,
    DIM: tl.constexpr, HIDDEN: tl.constexpr, NORM: tl.constexpr, ACT: tl.constexpr,
    HAS_B1: tl.constexpr, HAS_B2: tl.constexpr, HAS_GAMMA: tl.constexpr, HAS_BETA: tl.constexpr,
    HAS_SCALE: tl.constexpr, HAS_STAR: tl.constexpr, RESIDUAL: tl.constexpr, PRECISION: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    # ROWS tokens with all their channels, BLOCK ≥ DIM, through CHUNK hidden channels after the other
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    channel = tl.arange(0, BLOCK)
    known = channel < DIM
    inside = (row < rows)[:, None] & known[None, :]
    index = row.to(tl.int64)[:, None] * DIM + channel[None, :]
    value = tl.load(x + index, mask=inside, other=0.0)
    row_inside = tl.minimum(row, rows - 1)
    n = normalize_tile(
        value.to(tl.float32), inside, row_inside, channel, gamma, beta, moments, per_sample, eps,
        DIM, NORM, HAS_GAMMA, HAS_BETA,
    ).to(value.dtype)  # fmt: skip
    star, offset = 1.0, 0.0
    if HAS_STAR:
        star = tl.load(star_at).to(tl.float32)
        offset = tl.load(offset_at).to(tl.float32)
    result = tl.zeros((ROWS, BLOCK), dtype=tl.float32)
    for done in range(0, HIDDEN, CHUNK):
        unit = done + tl.arange(0, CHUNK)
        live = unit < HIDDEN
        w1_at = w1 + unit[None, :] * DIM + channel[:, None]  # (BLOCK, CHUNK) of W1ᵀ
        w2_at = w2 + channel[None, :] * HIDDEN + unit[:, None]  # (CHUNK, BLOCK) of W2ᵀ
        if HIDDEN % CHUNK == 0 and DIM == BLOCK:
            first = tl.load(w1_at)
            second = tl.load(w2_at)
        else:
            first = tl.load(w1_at, mask=known[:, None] & live[None, :], other=0.0)
            second = tl.load(w2_at, mask=known[None, :] & live[:, None], other=0.0)
        hidden = tl.dot(n, first, input_precision=PRECISION)
        if HAS_B1:
            hidden += tl.load(b1 + unit, mask=live, other=0.0).to(tl.float32)[None, :]
        # units beyond HIDDEN: StarReLU makes its bias of them, and their rows of W2ᵀ are zeros
        hidden = activate(hidden, star, offset, ACT).to(value.dtype)
        result = tl.dot(hidden, second, result, input_precision=PRECISION)
    if HAS_B2:
        result += tl.load(b2 + channel, mask=known, other=0.0).to(tl.float32)[None, :]
    if HAS_SCALE:
        result *= tl.load(scale + channel, mask=known, other=0.0).to(tl.float32)[None, :]
    # Read again rather than kept in registers all along
    residual = tl.load(x + index, mask=inside, other=0.0).to(tl.float32)
    if RESIDUAL == "vector":
        result += residual * tl.load(residual_scale + channel, mask=known, other=0.0).to(tl.float32)[None, :]
    elif RESIDUAL == "factor":
        result += residual * factor
    tl.store(out + index, result.to(out.dtype.element_ty), mask=inside)


def _narrow_mlp(
    x: Tensor, w1: Tensor, b1: Tensor | None, w2: Tensor, b2: Tensor | None, gamma: Tensor | None,
    beta: Tensor | None, moments: Tensor, scale: Tensor | None, residual_scale: Tensor | None,
    star: Tensor | None, offset: Tensor | None, *, factor: float | None, eps: float, norm: str, act: str,
) -> Tensor:  # fmt: skip
    batch, height, width, dim = x.shape
    number = batch * height * width
    out = x.new_empty(x.shape)
    blocks = _blocks(number, dim, x.dtype)
    residual = "vector" if residual_scale is not None else "none" if factor is None else "factor"
    launch(
        _mlp_kernel, cdiv(number, blocks["ROWS"]), x, x, out, w1, b1, w2, b2, gamma, beta, moments, scale,
        residual_scale, star, offset, number, height * width, 1.0 if factor is None else factor, eps,
        DIM=dim, HIDDEN=w1.shape[0], NORM=norm, ACT=act,
        HAS_B1=b1 is not None, HAS_B2=b2 is not None, HAS_GAMMA=gamma is not None, HAS_BETA=beta is not None,
        HAS_SCALE=scale is not None, HAS_STAR=star is not None, RESIDUAL=residual,
        PRECISION=precision(x.dtype), **blocks,
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


@forward_op("mlp")
def mlp(
    x: Tensor, w1: Tensor, b1: Tensor | None, w2: Tensor, b2: Tensor | None, gamma: Tensor | None,
    beta: Tensor | None, scale: Tensor | None, residual_scale: Tensor | None, star: Tensor | None,
    offset: Tensor | None, factor: float | None, eps: float, norm: str, act: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The result, and for a norm over samples each one's mean and 1/σ.

    The residual is x times `residual_scale`, or where there is none `factor`; neither: no residual.
    """
    sample_moments = moments_for(x, "group_norm" if norm == "group_norm" else "none", eps)
    if x.shape[3] <= WIDEST:
        out = _narrow_mlp(
            x, w1, b1, w2, b2, gamma, beta, sample_moments, scale, residual_scale, star, offset,
            factor=factor, eps=eps, norm=norm, act=act,
        )  # fmt: skip
        return out, sample_moments
    moments = token_moments(x, eps) if norm == "layer_norm" else sample_moments
    folded, total, bias = (w1, None, b1) if norm == "none" else fold(w1, gamma, beta, b1)
    hidden = fused_linear(
        x, folded, bias, moments=moments, total=total, norm=norm, act=act, star=star, offset=offset
    )
    residual = None if residual_scale is None and factor is None else x
    out = fused_linear(
        hidden, w2, b2, scale=scale, residual=residual, residual_scale=residual_scale,
        factor=1.0 if factor is None else factor,
    )  # fmt: skip
    return out, sample_moments


def _empty(x: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    samples = x.shape[0] if rest[-2] == "group_norm" else 0
    return x.new_empty(x.shape), x.new_empty((samples, 2), dtype=torch.float32)


def _rows_gradient(
    n: Tensor, grad: Tensor, w1: Tensor, b1: Tensor | None, w2: Tensor, act: str, star: Tensor | None,
    offset: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients for rows n (N, C), and in float32 for w1, b1, then gradᵀ · hidden, and StarReLU's two.

    `grad` (N, C) is not scaled yet, w2 is. Hidden activations are recomputed slice by slice.
    """
    grad_n = torch.empty_like(n)
    grad_w1 = w1.new_zeros(w1.shape, dtype=torch.float32)
    crossed = w2.new_zeros(w2.shape, dtype=torch.float32)
    grad_b1 = w1.new_zeros(w1.shape[0], dtype=torch.float32)
    grad_star = w1.new_zeros(2, dtype=torch.float32)
    for part in slices(n.shape[0], w1.shape[0]):
        hidden = rows_linear(n[part], w1, b1)
        grad_hidden = grad[part] @ w2
        sums, star_sums = act_gradient(hidden, grad_hidden, act, star, offset, activate=True)
        crossed += outer(grad[part], hidden)
        grad_w1 += outer(grad_hidden, n[part])
        torch.mm(grad_hidden, w1, out=grad_n[part])
        grad_b1 += sums
        grad_star += star_sums
    return grad_n, grad_w1, grad_b1, crossed, grad_star


@backward_op("mlp_backward")
def mlp_backward(
    grad_out: Tensor, x: Tensor, w1: Tensor, b1: Tensor | None, w2: Tensor, b2: Tensor | None,
    gamma: Tensor | None, beta: Tensor | None, scale: Tensor | None, residual_scale: Tensor | None,
    star: Tensor | None, offset: Tensor | None, sample_moments: Tensor, factor: float | None, eps: float,
    norm: str, act: str,
) -> list[Tensor]:  # fmt: skip
    """Gradients for x and the ten tensors after it, empty for those that are not there."""
    grad_out = grad_out.contiguous()
    moments = token_moments(x, eps) if norm == "layer_norm" else sample_moments
    n = normalize(x, gamma, beta, moments, norm, eps)
    scaled = w2 if scale is None else (w2.float() * scale.float()[:, None]).to(w2.dtype)
    grad_n, grad_w1, grad_b1, crossed, grad_star = _rows_gradient(
        n.flatten(0, 2), grad_out.flatten(0, 2), w1, b1, scaled, act, star, offset
    )
    grad_x, (grad_beta, grad_gamma, grad_b2, grad_residual_scale) = norm_gradient(
        x, grad_n.view(x.shape), grad_out, gamma, moments, residual_scale, norm=norm, factor=factor
    )
    # Σ grad · (hidden · W2ᵀ + b2), from what the other gradients sum up anyway
    grad_scale = (crossed * w2).sum(1) if b2 is None else (crossed * w2).sum(1) + grad_b2 * b2
    if scale is not None:
        crossed, grad_b2 = crossed * scale[:, None], grad_b2 * scale
    grads = (grad_w1, grad_b1, crossed, grad_b2, grad_gamma, grad_beta, grad_scale, grad_residual_scale)
    tensors = (w1, b1, w2, b2, gamma, beta, scale, residual_scale, star, offset)
    return [grad_x, *map(gradient_like, (*grads, *grad_star.split(1)), tensors)]


def _empty_gradients(grad_out: Tensor, x: Tensor, *rest: Any) -> list[Tensor]:
    return [x.new_empty(x.shape), *(empty_gradient(x, tensor) for tensor in rest[:10])]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:11], output[1])
    ctx.options = inputs[11:]


def _backward(ctx: Any, grad_out: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    *tensors, moments = ctx.saved_tensors
    factor, eps, norm, act = ctx.options

    def plain(x, w1, b1, w2, b2, gamma, beta, scale, residual_scale, star, offset):
        options = {"norm": norm, "gamma": gamma, "beta": beta, "eps": eps, "act": act, "scale": scale}
        residual = None if residual_scale is None and factor is None else x
        factors = {"residual_scale": factor if residual_scale is None else residual_scale}
        star_relu = {"act_scale": star, "act_bias": offset}
        return reference(x, w1, b1, w2, b2, **options, **star_relu, residual=residual, **factors)

    grads = backend.gradients("mlp_backward", plain, grad_out, tensors, moments, *ctx.options)
    return (*grads, *[None] * 4)


mlp.register_autograd(_backward, setup_context=_setup_context)
mlp.register_fake(_empty)
mlp_backward.register_fake(_empty_gradients)
