"""Gradients of products, by the library's own matrix products, in slices that bound what is wide."""

from collections.abc import Iterator

import torch
from torch import Tensor

from metaformer.ops.kernels.activation import activation_gradient

_WIDE, _LEAST = 1 << 26, 1024
"""Elements of a wide tensor that a slice may have, and rows that it has at least."""


def outer(a: Tensor, b: Tensor) -> Tensor:
    """aᵀ · b of rows (N, K) and (N, C): (K, C), summed and kept in float32."""
    if a.dtype == torch.float32:
        return a.t() @ b
    if a.is_cuda:
        return torch.mm(a.t(), b, out_dtype=torch.float32)
    return a.t().float() @ b.float()


def slices(number: int, width: int) -> Iterator[slice]:
    """Cut `number` rows so that a tensor `width` wide stays small."""
    step = max(_LEAST, _WIDE // width)
    for start in range(0, number, step):
        yield slice(start, min(start + step, number))


def product_of(a: Tensor, w: Tensor, bias: Tensor | None) -> Tensor:
    """A · wᵀ + bias of rows (N, K)."""
    return a @ w.t() if bias is None else torch.addmm(bias.to(a.dtype), a, w.t())


def mlp_gradient(
    inner: Tensor,
    grad: Tensor,
    w1: Tensor,
    b1: Tensor | None,
    w2: Tensor,
    act: str,
    star: Tensor | None,
    offset: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of an MLP whose hidden tensor is made again, slice by slice.

    Args:
        inner: rows (N, C) that go in.
        grad: rows (N, C) of the gradient that comes back, not yet scaled.
        w1: (M, C).
        b1: (M,).
        w2: (C, M), scaled.
        act: the activation.
        star: StarReLU's factor.
        offset: StarReLU's offset.

    Returns:
        Gradients for `inner`, w1, b1, and gradᵀ · hidden, and StarReLU's two, all but the first in float32.
    """
    of_inner = torch.empty_like(inner)
    of_w1 = w1.new_zeros(w1.shape, dtype=torch.float32)
    crossed = w2.new_zeros(w2.shape, dtype=torch.float32)
    of_b1 = w1.new_zeros(w1.shape[0], dtype=torch.float32)
    of_stars = w1.new_zeros(2, dtype=torch.float32)
    for part in slices(inner.shape[0], w1.shape[0]):
        hidden = product_of(inner[part], w1, b1)
        back = grad[part] @ w2
        sums, stars = activation_gradient(hidden, back, act, star, offset, keep=True)
        crossed += outer(grad[part], hidden)
        of_w1 += outer(back, inner[part])
        torch.mm(back, w1, out=of_inner[part])
        of_b1 += sums
        of_stars += stars
    return of_inner, of_w1, of_b1, crossed, of_stars


def activated_gradient(
    inner: Tensor,
    grad: Tensor,
    w: Tensor,
    bias: Tensor | None,
    act: str,
    star: Tensor | None,
    offset: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of act(inner · wᵀ + bias) for `inner`, w, the bias and StarReLU's two; see `mlp_gradient`."""
    of_inner = torch.empty_like(inner)
    of_w = w.new_zeros(w.shape, dtype=torch.float32)
    of_bias = w.new_zeros(w.shape[0], dtype=torch.float32)
    of_stars = w.new_zeros(2, dtype=torch.float32)
    for part in slices(inner.shape[0], w.shape[0]):
        before = product_of(inner[part], w, bias)
        back = grad[part].clone()
        sums, stars = activation_gradient(before, back, act, star, offset, keep=False)
        of_w += outer(back, inner[part])
        torch.mm(back, w, out=of_inner[part])
        of_bias += sums
        of_stars += stars
    return of_inner, of_w, of_bias, of_stars


def fit(gradient: Tensor, of: Tensor | None) -> Tensor:
    """Give a gradient as its tensor is, in memory of its own; nothing where there is no tensor."""
    if of is None:
        return gradient.new_empty(0, dtype=torch.float32)
    return gradient.to(of.dtype, copy=True).view(of.shape)


def like(x: Tensor, of: Tensor | None) -> Tensor:
    """What `fit` will give, empty."""
    return x.new_empty(0, dtype=torch.float32) if of is None else x.new_empty(of.shape, dtype=of.dtype)
