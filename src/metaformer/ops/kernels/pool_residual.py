"""The pooling residual as an operation of torch, with its gradient."""

from typing import Any

import torch
from torch import Tensor

from metaformer.ops.kernels.launch import as_map, backward_op, empty_map, forward_op, rows
from metaformer.ops.kernels.moments import sample_moments
from metaformer.ops.kernels.stencil import pooled, pooled_gradient, pooled_sums


@forward_op("pool_residual")
def pool_residual(
    x: Tensor, weight: Tensor, shortcut: Tensor | None, size: int, eps: float, factor: float
) -> tuple[Tensor, Tensor]:
    """The result, and mean and 1/σ of each sample; `shortcut`, where given, stands for `factor`."""
    y = rows(x)
    moments = sample_moments(y, eps)
    return as_map(pooled(y, weight, moments, shortcut, factor, size)), moments


def _empty(
    x: Tensor, weight: Tensor, shortcut: Tensor | None, size: int, eps: float, factor: float
) -> tuple[Tensor, Tensor]:
    return empty_map(x), x.new_empty((x.shape[0], 2), dtype=torch.float32)


@backward_op("pool_residual_backward")
def pool_residual_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    shortcut: Tensor | None,
    moments: Tensor,
    size: int,
    factor: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients for x, the weight and the shortcut."""
    y, given = rows(x), rows(grad)
    sums = pooled_sums(y, given, size, shortcut is not None)  # (B, 1 or 2, C)
    inverse = moments[:, 1]
    pull = (sums[:, 0] * weight.float()).sum(1) * inverse**3 / (y.shape[1] * y.shape[2] * y.shape[3])
    of_x = pooled_gradient(y, given, weight, moments, pull, shortcut, factor, size)
    of_weight = (sums[:, 0] * inverse[:, None]).sum(0).to(weight.dtype)
    if shortcut is None:
        return as_map(of_x), of_weight, weight.new_empty(0)
    return as_map(of_x), of_weight, sums[:, 1].sum(0).to(shortcut.dtype)


def _empty_gradients(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    shortcut: Tensor | None,
    moments: Tensor,
    size: int,
    factor: float,
) -> tuple[Tensor, Tensor, Tensor]:
    of_shortcut = weight.new_empty(0) if shortcut is None else torch.empty_like(shortcut)
    return empty_map(x), torch.empty_like(weight), of_shortcut


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, weight, shortcut, ctx.size, _, ctx.factor = inputs
    ctx.save_for_backward(x, weight, shortcut, output[1])


def _gradients(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, shortcut, moments = ctx.saved_tensors
    of_x, of_weight, of_shortcut = torch.ops.metaformer.pool_residual_backward(
        grad, x, weight, shortcut, moments, ctx.size, ctx.factor
    )
    return of_x, of_weight, None if shortcut is None else of_shortcut, None, None, None


pool_residual.register_autograd(_gradients, setup_context=_keep)
pool_residual.register_fake(_empty)
pool_residual_backward.register_fake(_empty_gradients)
