"""Norms of tokens: over channels (layer norm), over a sample (group norm of one group), by known moments."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from metaformer.ops import cpp
from metaformer.ops.cpp import kernels

_ATEN = torch.ops.aten


class SampleNorm(NamedTuple):
    """A group norm of one group as C++ kernels take it, in float32."""

    moments: Tensor
    """Mean and 1/σ of each sample, (B, 2)."""
    gamma: Tensor | None
    """Weight (C,), or none."""
    beta: Tensor | None
    """Bias (C,), or none; it needs a weight."""


def layer_norm(x: Tensor, eps: float, weight: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
    """(x − mean) / √(var + eps) · weight + bias over the channels of x (…, C); a bias needs a weight."""
    channels = x.shape[-1]
    if not cpp.supports(x) or needs_gradient(weight, bias):
        return F.layer_norm(x, (channels,), weight, bias, eps)
    out = torch.empty_like(x)
    weight, bias = (None if vector is None else vector.float().contiguous() for vector in (weight, bias))
    tokens = x.numel() // channels
    kernels.layer_norm(x=x, weight=weight, bias=bias, out=out, tokens=tokens, channels=channels, eps=eps)
    return out


def needs_gradient(*constants: object) -> bool:
    """Whether any of these is a tensor that asks for a gradient, which C++ forms have not."""
    return torch.is_grad_enabled() and any(isinstance(x, Tensor) and x.requires_grad for x in constants)


def group_norm(x: Tensor, eps: float, weight: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
    """(x − mean) / √(var + eps) · weight + bias over each sample of x (B, H, W, C)."""
    return F.group_norm(x.permute(0, 3, 1, 2), 1, weight, bias, eps).permute(0, 2, 3, 1)


def normalize(x: Tensor, moments: Tensor) -> Tensor:
    """(x − mean) / σ of x (B, H, W, C) by the samples' mean and 1/σ, moments (B, 2)."""
    mean, inverse = moments.to(x.dtype)[:, :, None, None, None].unbind(1)
    return (x - mean) * inverse


def norm(x: Tensor, name: str, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """The norm of x (B, H, W, C) by name: "group_norm", "layer_norm" or "none"; plain PyTorch."""
    if name == "group_norm":
        return group_norm(x, eps, weight, bias)
    return F.layer_norm(x, x.shape[-1:], weight, bias, eps) if name == "layer_norm" else x


def norm_forward(
    x: Tensor, name: str, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, ...]:
    """`norm` of contiguous x for operations with their own backward pass: the result, and mean and 1/σ."""
    if name == "group_norm":
        batch, height, width, dim = x.shape
        x = x.permute(0, 3, 1, 2)
        n, mean, inverse = torch.native_group_norm(x, weight, bias, batch, dim, height * width, 1, eps)
        return n.permute(0, 2, 3, 1).contiguous(), mean, inverse
    if name == "layer_norm":
        return torch.native_layer_norm(x, x.shape[-1:], weight, bias, eps)
    return (x,)


def sample_moments(x: Tensor, eps: float) -> Tensor:
    """Mean and 1/σ of each sample of x (B, …, C), (B, 2), by C++: x is contiguous, of one of its dtypes."""
    batch, channels = len(x), x.shape[-1]
    out = torch.empty(batch, 2, dtype=torch.float32, device=x.device)
    positions = x.numel() // channels // batch
    kernels.sample_moments(x=x, out=out, batch=batch, positions=positions, channels=channels, eps=eps)
    return out


def sample_norm_backward(
    grad_out: Tensor, x: Tensor, norm: SampleNorm, residual: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients for x (B, …, C), to which `residual` is added, and for weight and bias, by C++.

    All are contiguous, x and `residual` of one of its dtypes, the rest in float32.
    """
    batch, channels = len(x), x.shape[-1]
    grad_x = torch.empty_like(x)
    grad_gamma, grad_beta = (grad_out.new_empty(channels) for _ in range(2))
    kernels.group_norm_backward(
        x=x, grad_out=grad_out, residual=residual, moments=norm.moments, gamma=norm.gamma, grad_x=grad_x,
        grad_gamma=grad_gamma, grad_beta=grad_beta, batch=batch,
        positions=x.numel() // channels // batch, channels=channels,
    )  # fmt: skip
    return grad_x, grad_gamma, grad_beta


def norm_backward(
    grad_out: Tensor,
    x: Tensor,
    moments: Sequence[Tensor],
    name: str,
    weight: Tensor | None,
    bias: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients for x, weight and bias, by the moments of `norm_forward`; zeros for those that are none."""
    zeros = x.new_zeros(x.shape[-1], dtype=None if weight is None else weight.dtype)
    if name == "none":
        return grad_out, zeros, zeros.clone()
    wanted = [True, weight is not None, bias is not None]
    if name == "group_norm":
        batch, height, width, dim = x.shape
        grad_x, *grad_affine = _ATEN.native_group_norm_backward(
            grad_out.permute(0, 3, 1, 2), x.permute(0, 3, 1, 2), *moments, weight,
            batch, dim, height * width, 1, wanted,
        )  # fmt: skip
        grad_x = grad_x.permute(0, 2, 3, 1).contiguous()
    else:
        grad_x, *grad_affine = _ATEN.native_layer_norm_backward(
            grad_out, x, x.shape[-1:], *moments, weight, bias, wanted
        )
    grad_weight, grad_bias = (
        grad if there else zeros.clone() for grad, there in zip(grad_affine, wanted[1:], strict=True)
    )
    return grad_x, grad_weight, grad_bias
