"""The 1×1 product with scale and shortcut behind it, as an operation of torch."""

from typing import Any

import torch
from torch import Tensor

from metaformer.ops.kernels.launch import as_map, backward_op, empty_map, forward_op, rows
from metaformer.ops.kernels.matrix_gradient import fit, like, outer
from metaformer.ops.kernels.product import product


@forward_op("pointwise_residual")
def pointwise_residual(
    y: Tensor,
    w: Tensor,
    bias: Tensor | None,
    scale: Tensor | None,
    residual: Tensor | None,
    shortcut: Tensor | None,
    factor: float,
) -> Tensor:
    """Shortcut · residual + scale · (w · y + bias); `shortcut`, where given, stands for `factor`."""
    straight = None if residual is None else rows(residual)
    out = product(rows(y), w, bias, scale=scale, residual=straight, shortcut=shortcut, factor=factor)
    return as_map(out)


def _empty(y: Tensor, w: Tensor, *rest: Any) -> Tensor:
    return empty_map(y, w.shape[0])


@backward_op("pointwise_residual_backward")
def pointwise_residual_backward(
    grad: Tensor, y: Tensor, w: Tensor, bias: Tensor | None, scale: Tensor | None
) -> list[Tensor]:
    """Gradients for y and the three tensors after it, empty for those that are not there."""
    given = rows(grad)
    flat = given.flatten(0, 2)
    scaled = w if scale is None else (w.float() * scale.float()[:, None]).to(w.dtype)
    of_y = (flat @ scaled).view(*given.shape[:3], w.shape[1])
    of_w = outer(flat, rows(y).flatten(0, 2))
    of_bias = flat.sum(0, dtype=torch.float32)
    of_scale = (of_w * w).sum(1) if bias is None else (of_w * w).sum(1) + of_bias * bias
    if scale is not None:
        of_w, of_bias = of_w * scale[:, None], of_bias * scale
    return [as_map(of_y), fit(of_w, w), fit(of_bias, bias), fit(of_scale, scale)]


def _empty_gradients(grad: Tensor, y: Tensor, *rest: Any) -> list[Tensor]:
    return [empty_map(y), *(like(y, tensor) for tensor in rest)]


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, shortcut, ctx.factor = inputs
    residual = tensors.pop()
    ctx.straight = residual is not None
    ctx.save_for_backward(*tensors, residual if shortcut is not None else None, shortcut)


def _gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    *tensors, residual, shortcut = ctx.saved_tensors
    found = torch.ops.metaformer.pointwise_residual_backward(grad, *tensors)
    given = (None if t is None else g for t, g in zip(tensors, found, strict=True))
    of_residual, of_shortcut = None, None
    if shortcut is not None:
        of_residual = grad * shortcut.to(grad.dtype)[:, None, None]
        of_shortcut = (grad.float() * residual).sum((0, 2, 3)).to(shortcut.dtype)
    elif ctx.straight:
        of_residual = grad if ctx.factor == 1.0 else grad * ctx.factor
    return (*given, of_residual, of_shortcut, None)


pointwise_residual.register_autograd(_gradients, setup_context=_keep)
pointwise_residual.register_fake(_empty)
pointwise_residual_backward.register_fake(_empty_gradients)
