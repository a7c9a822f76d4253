"""The 1×1 product with a norm before and an activation behind it, as an operation of torch."""

from typing import Any

import torch
from torch import Tensor

from metaformer.ops.kernels.launch import as_map, backward_op, empty_map, forward_op, rows
from metaformer.ops.kernels.matrix_gradient import activated_gradient, fit, like
from metaformer.ops.kernels.moments import moments, position_moments
from metaformer.ops.kernels.norm_gradient import norm_gradient, normalized
from metaformer.ops.kernels.product import fold, product


@forward_op("pointwise_act")
def pointwise_act(
    x: Tensor,
    w: Tensor,
    bias: Tensor | None,
    gamma: Tensor | None,
    beta: Tensor | None,
    star: Tensor | None,
    offset: Tensor | None,
    eps: float,
    norm: str,
    act: str,
) -> tuple[Tensor, Tensor]:
    """act(w · norm(x) + bias), and for a norm over samples each one's mean and 1/σ."""
    y = rows(x)
    found = moments(y, norm, eps)
    folded, total, constant = (w, None, bias) if norm == "none" else fold(w, gamma, beta, bias)
    out = product(
        y, folded, constant, moments=found, total=total, norm=norm, act=act, star=star, offset=offset
    )
    return as_map(out), found if norm == "group_norm" else found.new_empty((0, 2))


def _empty(x: Tensor, w: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    samples = x.shape[0] if rest[-2] == "group_norm" else 0
    return empty_map(x, w.shape[0]), x.new_empty((samples, 2), dtype=torch.float32)


@backward_op("pointwise_act_backward")
def pointwise_act_backward(
    grad: Tensor,
    x: Tensor,
    w: Tensor,
    bias: Tensor | None,
    gamma: Tensor | None,
    beta: Tensor | None,
    star: Tensor | None,
    offset: Tensor | None,
    of_samples: Tensor,
    eps: float,
    norm: str,
    act: str,
) -> list[Tensor]:
    """Gradients for x and the six tensors after it, empty for those that are not there."""
    y, given = rows(x), rows(grad)
    found = position_moments(y, eps) if norm == "layer_norm" else of_samples
    inner = normalized(y, gamma, beta, found, norm, eps)
    of_inner, of_w, of_bias, of_stars = activated_gradient(
        inner.flatten(0, 2), given.flatten(0, 2), w, bias, act, star, offset
    )
    of_x = of_inner.view(y.shape)
    of_gamma = of_beta = of_bias
    if norm != "none":
        of_x, (of_beta, of_gamma, _, _) = norm_gradient(
            y, of_x, None, gamma, found, None, norm=norm, factor=None
        )
    found_for = (of_w, of_bias, of_gamma, of_beta, *of_stars.split(1))
    return [as_map(of_x), *map(fit, found_for, (w, bias, gamma, beta, star, offset))]


def _empty_gradients(grad: Tensor, x: Tensor, *rest: Any) -> list[Tensor]:
    return [empty_map(x), *(like(x, tensor) for tensor in rest[:6])]


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:7], output[1])
    ctx.settings = inputs[7:]


def _gradients(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    tensors = ctx.saved_tensors
    found = torch.ops.metaformer.pointwise_act_backward(grad, *tensors, *ctx.settings)
    given = (None if t is None else g for t, g in zip(tensors[:7], found, strict=True))
    return (*given, None, None, None)


pointwise_act.register_autograd(_gradients, setup_context=_keep)
pointwise_act.register_fake(_empty)
pointwise_act_backward.register_fake(_empty_gradients)
