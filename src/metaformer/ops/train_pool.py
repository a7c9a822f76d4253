"""PoolFormer's token mixing with its norm, scale and residual as created, on CPUs: one operation in C++.

y = x + f · w/σ · (pool(x) − x), where w is the norm's weight times LayerScale's, σ is each sample's and f its
factor of drop path: pooling that only averages positions inside keeps constants, so of the group norm neither
mean nor bias is left. https://arxiv.org/abs/2111.11418
"""

from typing import Any

import torch
from torch import Tensor
from torch.library import custom_op

from metaformer.ops import cpp
from metaformer.ops.backend import is_traced, mode
from metaformer.ops.cpp import kernels
from metaformer.ops.linear import to_float32
from metaformer.ops.pool import SIZE
from metaformer.ops.pool import reference as pool_reference


def supports(x: Tensor, size: int) -> bool:
    """Whether `train_pool` mixes x (B, C, H, W) by a window of this size: on a CPU, untraced."""
    return (
        not is_traced(x)
        and size == SIZE
        and x.device.type == "cpu"
        and x.dtype in cpp.SUFFIXES
        and x.numel() > 1  # group norm of one number is an error, and plain PyTorch says so
        and mode() != "reference"
        and cpp.load() is not None
    )


@custom_op("metaformer::train_pool", mutates_args=(), device_types="cpu")
def train_pool(
    x: Tensor, weight: Tensor, bias: Tensor | None, factors: Tensor | None, eps: float, next_eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Token mixing and residual; moments of x and of the result, mean and 1/σ of each sample, (B, 2).

    Args:
        x: the activations (B, C, H, W), two numbers at least; channels-last is fastest.
        weight: (C,): the norm's weight, times LayerScale's.
        bias: the norm's bias (C,), or none: the result does not depend on it, and its gradient is 0.
        factors: what each sample's branch is multiplied by, (B,), or none.
        eps: added to the variance of x.
        next_eps: the same of the result.
    """
    tokens = x.permute(0, 2, 3, 1).contiguous()
    batch, height, width, channels = tokens.shape
    y, x_moments, moments = _empty(x)
    kernels.pool_residual(
        x=tokens, weight=to_float32(weight), residual_scale=x.new_ones(channels, dtype=torch.float32),
        factors=None if factors is None else to_float32(factors), out=y, x_moments=x_moments,
        moments=moments, batch=batch, height=height, width=width, channels=channels, eps=eps,
        next_eps=next_eps,
    )  # fmt: skip
    return y, x_moments, moments


@custom_op("metaformer::train_pool_backward", mutates_args=(), device_types="cpu")
def train_pool_backward(
    grad_out: Tensor, x: Tensor, weight: Tensor, factors: Tensor | None, moments: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients for x, whose moments these are, and for the weight."""
    tokens, grad_out = (tensor.permute(0, 2, 3, 1).contiguous() for tensor in (x, grad_out))
    batch, height, width, channels = tokens.shape
    grad_x, grad_weight = _empty(x)[0], x.new_empty(channels, dtype=torch.float32)
    kernels.pool_residual_backward(
        grad_out=grad_out, x=tokens, weight=to_float32(weight),
        factors=None if factors is None else to_float32(factors), moments=moments, grad_x=grad_x,
        grad_weight=grad_weight, batch=batch, height=height, width=width, channels=channels,
    )  # fmt: skip
    return grad_x, grad_weight.to(weight.dtype)


def reference(
    x: Tensor, weight: Tensor, bias: Tensor | None, factors: Tensor | None, eps: float, next_eps: float
) -> Tensor:
    """The first result in plain PyTorch."""
    scale = weight if factors is None else weight * factors[:, None, None, None]
    return pool_reference(x.permute(0, 2, 3, 1), scale, eps=eps).permute(0, 3, 1, 2)


def _empty(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Memory for the results, and no views of something else: FSDP's hooks ask for that."""
    moments = x.new_empty((len(x), 2), dtype=torch.float32)
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    return y, moments, torch.empty_like(moments)


@train_pool.register_fake
def _(x: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    return _empty(x)


@train_pool_backward.register_fake
def _(grad_out: Tensor, x: Tensor, weight: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return _empty(x)[0], torch.empty_like(weight)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.eps, ctx.next_eps = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors, output[1])


def _backward(ctx: Any, grad_out: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad_out is None:
        return (None,) * 6
    x, weight, bias, factors, moments = ctx.saved_tensors
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():  # gradients of gradients
        y = reference(x, weight, bias, factors, ctx.eps, ctx.next_eps)
        wanted = [tensor for tensor in (x, weight) if tensor.requires_grad]
        grads = iter(torch.autograd.grad(y, wanted, grad_out, create_graph=True))
        grad_x, grad_weight = (next(grads) if tensor.requires_grad else None for tensor in (x, weight))
    else:
        grad_x, grad_weight = train_pool_backward(grad_out, x, weight, factors, moments)
    return grad_x, grad_weight, None if bias is None else torch.zeros_like(bias), None, None, None


train_pool.register_autograd(_backward, setup_context=_setup_context)
