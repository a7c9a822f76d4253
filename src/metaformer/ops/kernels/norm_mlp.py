"""The channel MLP with its norm, scale and shortcut as an operation of torch, with its gradient."""

from typing import Any

import torch
from torch import Tensor

from metaformer.ops.kernels.launch import as_map, backward_op, empty_map, forward_op, rows
from metaformer.ops.kernels.matrix_gradient import fit, like, mlp_gradient
from metaformer.ops.kernels.moments import moments, position_moments
from metaformer.ops.kernels.narrow_mlp import WIDEST, narrow_mlp
from metaformer.ops.kernels.norm_gradient import norm_gradient, normalized
from metaformer.ops.kernels.product import fold, product


@forward_op("norm_mlp")
def norm_mlp(
    x: Tensor,
    w1: Tensor,
    b1: Tensor | None,
    w2: Tensor,
    b2: Tensor | None,
    gamma: Tensor | None,
    beta: Tensor | None,
    scale: Tensor | None,
    shortcut: Tensor | None,
    star: Tensor | None,
    offset: Tensor | None,
    factor: float | None,
    eps: float,
    norm: str,
    act: str,
) -> tuple[Tensor, Tensor]:
    """The result, and for a norm over samples each one's mean and 1/σ; `shortcut` stands for `factor`."""
    y = rows(x)
    of_samples = moments(y, "group_norm" if norm == "group_norm" else "none", eps)
    if y.shape[3] <= WIDEST:
        out = narrow_mlp(
            y, w1, b1, w2, b2, gamma, beta, of_samples, scale, shortcut, star, offset,
            factor=factor, eps=eps, norm=norm, act=act,
        )  # fmt: skip
        return as_map(out), of_samples
    found = position_moments(y, eps) if norm == "layer_norm" else of_samples
    folded, total, bias = (w1, None, b1) if norm == "none" else fold(w1, gamma, beta, b1)
    hidden = product(
        y, folded, bias, moments=found, total=total, norm=norm, act=act, star=star, offset=offset
    )
    residual = None if shortcut is None and factor is None else y
    out = product(
        hidden, w2, b2, scale=scale, residual=residual, shortcut=shortcut,
        factor=1.0 if factor is None else factor,
    )  # fmt: skip
    return as_map(out), of_samples


def _empty(x: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    samples = x.shape[0] if rest[-2] == "group_norm" else 0
    return empty_map(x), x.new_empty((samples, 2), dtype=torch.float32)


@backward_op("norm_mlp_backward")
def norm_mlp_backward(
    grad: Tensor,
    x: Tensor,
    w1: Tensor,
    b1: Tensor | None,
    w2: Tensor,
    b2: Tensor | None,
    gamma: Tensor | None,
    beta: Tensor | None,
    scale: Tensor | None,
    shortcut: Tensor | None,
    star: Tensor | None,
    offset: Tensor | None,
    of_samples: Tensor,
    factor: float | None,
    eps: float,
    norm: str,
    act: str,
) -> list[Tensor]:
    """Gradients for x and the ten tensors after it, empty for those that are not there."""
    y, given = rows(x), rows(grad)
    found = position_moments(y, eps) if norm == "layer_norm" else of_samples
    inner = normalized(y, gamma, beta, found, norm, eps)
    scaled = w2 if scale is None else (w2.float() * scale.float()[:, None]).to(w2.dtype)
    of_inner, of_w1, of_b1, crossed, of_stars = mlp_gradient(
        inner.flatten(0, 2), given.flatten(0, 2), w1, b1, scaled, act, star, offset
    )
    of_x, (of_beta, of_gamma, total, of_shortcut) = norm_gradient(
        y, of_inner.view(y.shape), given, gamma, found, shortcut, norm=norm, factor=factor
    )
    of_scale = (crossed * w2).sum(1) if b2 is None else (crossed * w2).sum(1) + total * b2
    if scale is not None:
        crossed, total = crossed * scale[:, None], total * scale
    found_for = (of_w1, of_b1, crossed, total, of_gamma, of_beta, of_scale, of_shortcut, *of_stars.split(1))
    inputs = (w1, b1, w2, b2, gamma, beta, scale, shortcut, star, offset)
    return [as_map(of_x), *map(fit, found_for, inputs)]


def _empty_gradients(grad: Tensor, x: Tensor, *rest: Any) -> list[Tensor]:
    return [empty_map(x), *(like(x, tensor) for tensor in rest[:10])]


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:11], output[1])
    ctx.settings = inputs[11:]


def _gradients(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    tensors = ctx.saved_tensors
    found = torch.ops.metaformer.norm_mlp_backward(grad, *tensors, *ctx.settings)
    given = (None if t is None else g for t, g in zip(tensors[:11], found, strict=True))
    return (*given, None, None, None, None)


norm_mlp.register_autograd(_gradients, setup_context=_keep)
norm_mlp.register_fake(_empty)
norm_mlp_backward.register_fake(_empty_gradients)
