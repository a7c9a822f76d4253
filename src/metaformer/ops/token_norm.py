"""Norms of tokens (B, H, W, C) and their gradients, as plain functions for operations that keep x alone."""

from collections.abc import Sequence

import torch
from torch import Tensor

_ATEN = torch.ops.aten


def token_norm(
    tokens: Tensor, gamma: Tensor | None, beta: Tensor | None, norm: str, eps: float
) -> tuple[Tensor, ...]:
    """Normalize tokens (B, H, W, C); gives the result, and the mean and 1/σ that the gradient needs.

    Args:
        tokens: without gaps.
        gamma: weight (C,), or none.
        beta: bias (C,), or none.
        norm: "group_norm" (of one group), "layer_norm" (over channels) or "none".
        eps: added to the variance.
    """
    if norm == "group_norm":
        batch, height, width, dim = tokens.shape
        x = tokens.permute(0, 3, 1, 2)
        n, mean, inverse = torch.native_group_norm(x, gamma, beta, batch, dim, height * width, 1, eps)
        return n.permute(0, 2, 3, 1).contiguous(), mean, inverse
    if norm == "layer_norm":
        return torch.native_layer_norm(tokens, tokens.shape[-1:], gamma, beta, eps)
    return (tokens,)


def token_norm_gradient(
    grad: Tensor,
    tokens: Tensor,
    moments: Sequence[Tensor],
    gamma: Tensor | None,
    beta: Tensor | None,
    norm: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients for tokens, gamma and beta, by that of the result; zeros for those that are none."""
    nothing = tokens.new_zeros(tokens.shape[-1], dtype=None if gamma is None else gamma.dtype)
    if norm == "none":
        return grad, nothing, nothing.clone()
    wanted = [True, gamma is not None, beta is not None]
    if norm == "group_norm":
        batch, height, width, dim = tokens.shape
        of_x, *of_affine = _ATEN.native_group_norm_backward(
            grad.permute(0, 3, 1, 2), tokens.permute(0, 3, 1, 2), *moments, gamma,
            batch, dim, height * width, 1, wanted,
        )  # fmt: skip
        of_x = of_x.permute(0, 2, 3, 1).contiguous()
    else:
        of_x, *of_affine = _ATEN.native_layer_norm_backward(
            grad, tokens, tokens.shape[-1:], *moments, gamma, beta, wanted
        )
    of_gamma, of_beta = (
        of if there else nothing.clone() for of, there in zip(of_affine, wanted[1:], strict=True)
    )
    return of_x, of_gamma, of_beta
