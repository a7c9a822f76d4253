"""CycleMLP's three weighted products as an operation of torch, with its gradient."""

from typing import Any

import torch
from torch import Tensor

from metaformer.ops.kernels.launch import as_map, backward_op, empty_map, forward_op, rows
from metaformer.ops.kernels.matrix_gradient import fit, like
from metaformer.ops.kernels.shift_product import map_gradient, shift_product, weight_gradient


@forward_op("cycle_mix")
def cycle_mix(
    x: Tensor, w_width: Tensor, w_height: Tensor, w_plain: Tensor, weights: Tensor, kernel: int
) -> Tensor:
    """Weighted sum of the products along the width, along the height, and plain; weights (B, 3, C)."""
    return as_map(shift_product(rows(x), w_width, w_height, w_plain, weights, kernel))


def _empty(x: Tensor, *rest: Any) -> Tensor:
    return empty_map(x)


@backward_op("cycle_mix_backward")
def cycle_mix_backward(
    grad: Tensor, x: Tensor, w_width: Tensor, w_height: Tensor, w_plain: Tensor, weights: Tensor, kernel: int
) -> list[Tensor]:
    """Gradients for the five tensors behind `grad`."""
    y, given = rows(x), rows(grad)
    of_x = map_gradient(given, w_width, w_height, w_plain, weights, kernel)
    of_products, of_weights = weight_gradient(given, y, w_width, w_height, w_plain, weights, kernel)
    found = (*of_products, of_weights)
    return [as_map(of_x), *map(fit, found, (w_width, w_height, w_plain, weights))]


def _empty_gradients(grad: Tensor, x: Tensor, *rest: Any) -> list[Tensor]:
    return [empty_map(x), *(like(x, tensor) for tensor in rest[:4])]


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.kernel = inputs
    ctx.save_for_backward(*tensors)


def _gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    found = torch.ops.metaformer.cycle_mix_backward(grad, *ctx.saved_tensors, ctx.kernel)
    return (*found, None)


cycle_mix.register_autograd(_gradients, setup_context=_keep)
cycle_mix.register_fake(_empty)
cycle_mix_backward.register_fake(_empty_gradients)
