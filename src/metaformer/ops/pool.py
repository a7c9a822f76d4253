"""PoolFormer's token mixing: average pooling minus the input, alone or with norm, scale and residual.

Pooling that only averages positions inside keeps constants, so of a norm over the sample pool(n) − n needs
neither mean nor bias: it is weight/σ · (pool(x) − x). https://arxiv.org/abs/2111.11418
"""

from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor

from metaformer.ops import cpp, triton
from metaformer.ops.backend import is_traced, without_autocast, working_dtype
from metaformer.ops.cpp import kernels
from metaformer.ops.linear import Scale, contiguous, split_scale
from metaformer.ops.norm import group_norm, needs_gradient

SIZE: Final = 3
"""Window of the C++ forms; others take plain PyTorch."""


def pool_minus_self(x: Tensor, size: int) -> Tensor:
    """Average pooling minus its input, (B, C, H, W), channels-last; only positions inside are averaged.

    The gradient is the transposed stencil and saves no tensor, where PyTorch's pooling saves its input.

    Args:
        x: the activations.
        size: odd width and height of the window.
    """
    if is_traced(x) and not torch.compiler.is_compiling():
        return _pool(x, size) - x
    return _PoolMinusSelf.apply(x, size, False)


def pool_residual(
    x: Tensor,
    weight: Tensor,
    residual_scale: Scale = None,
    *,
    size: int = SIZE,
    eps: float = 1e-5,
    next_eps: float | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Pooling branch and residual, y = residual_scale · x + weight/σ · (pool(x) − x), and moments of y.

    Args:
        x: the activations (B, H, W, C).
        weight: (C,): the norm's weight, times LayerScale's.
        residual_scale: a number or (C,); 0 gives the branch alone, none is 1.
        size: odd width and height of the window.
        eps: added to the variance over each sample of x, whose root is σ.
        next_eps: the same of y; asks for each sample's mean and 1/σ of y, (B, 2) in float32.
    """
    if size == SIZE and cpp.supports(x) and not needs_gradient(weight, residual_scale):
        y, moments = _by_cpp(x, weight, residual_scale, eps, eps if next_eps is None else next_eps)
        return y, None if next_eps is None else moments
    x = x.to(working_dtype(x))
    with without_autocast(x):
        if triton.supports(x):
            vector, factor = split_scale(residual_scale)
            arguments = *contiguous(x, weight, vector), size, eps, factor
            plain = lambda: (reference(x, weight, residual_scale, size, eps),)  # noqa: E731
            y = triton.call("pool_residual", plain, *arguments)[0]
        else:
            y = reference(x, weight, residual_scale, size, eps)
        return y, None if next_eps is None else _moments(y, next_eps)


def reference(
    x: Tensor, weight: Tensor, residual_scale: Scale = None, size: int = SIZE, eps: float = 1e-5
) -> Tensor:
    """The first result in plain PyTorch: residual_scale · x + weight · (pool(n) − n), n = group_norm(x)."""
    n = group_norm(x, eps)
    branch = _pool(n.permute(0, 3, 1, 2), size).permute(0, 2, 3, 1) - n
    if isinstance(residual_scale, Tensor):
        residual_scale = residual_scale.to(x.dtype)
    return torch.addcmul(x if residual_scale is None else x * residual_scale, branch, weight.to(x.dtype))


def _pool(x: Tensor, size: int) -> Tensor:
    """Average of the positions inside the window, (B, C, H, W)."""
    return F.avg_pool2d(x, size, 1, size // 2, count_include_pad=False)


def _by_cpp(
    x: Tensor, weight: Tensor, residual_scale: Scale, eps: float, next_eps: float
) -> tuple[Tensor, Tensor]:
    y, moments = torch.empty_like(x), torch.empty(len(x), 2, dtype=torch.float32, device="cpu")
    batch, height, width, channels = x.shape
    if not isinstance(residual_scale, Tensor):
        residual_scale = torch.full((channels,), 1.0 if residual_scale is None else residual_scale)
    kernels.pool_residual(
        x=x, weight=weight.float().contiguous(), residual_scale=residual_scale.float().contiguous(),
        factors=None, out=y, x_moments=None, moments=moments, batch=batch, height=height, width=width,
        channels=channels, eps=eps, next_eps=next_eps,
    )  # fmt: skip
    return y, moments


def _moments(y: Tensor, eps: float) -> Tensor:
    wide = torch.promote_types(y.dtype, torch.float32)
    variance, mean = torch.var_mean(y.to(wide), (1, 2, 3), correction=0)
    return torch.stack([mean, torch.rsqrt(variance + eps)], 1)


class _PoolMinusSelf(torch.autograd.Function):
    """The stencil, or its transpose."""

    @staticmethod
    def forward(x: Tensor, size: int, transposed: bool) -> Tensor:
        tokens = x.permute(0, 2, 3, 1)
        if size == SIZE and cpp.supports_under_autocast(tokens):
            out = torch.empty_like(tokens)
            batch, height, width, channels = tokens.shape
            kernels.pool_minus_self(
                x=tokens, out=out, batch=batch, height=height, width=width, channels=channels,
                transposed=int(transposed),
            )  # fmt: skip
            return out.permute(0, 3, 1, 2)
        if not transposed:
            return _pool(x, size).sub_(x)
        window, padding = [size, size], [size // 2, size // 2]
        # of the second argument only the shape is read
        spread = torch.ops.aten.avg_pool2d_backward(x, x, window, [1, 1], padding, False, False, None)
        return spread.sub_(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, int, bool], output: Tensor) -> None:
        _, *ctx.options = inputs

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        size, transposed = ctx.options
        return _PoolMinusSelf.apply(grads[0], size, not transposed), None, None
