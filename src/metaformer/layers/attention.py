"""Attention of several heads between tokens, https://arxiv.org/abs/1706.03762."""

from contextlib import nullcontext

import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from metaformer.ops.backend import is_transformed
from metaformer.serialize import POSITIVE_INT, check_value


def count_heads(mixer: str, dim: int, head_dim: int) -> int:
    """Heads of `head_dim` channels in `dim`, at least one.

    Raises:
        ConfigError: `head_dim` is no positive integer; the message names the mixer.
    """
    check_value(f"{mixer} head_dim", head_dim, POSITIVE_INT)
    return max(1, dim // head_dim)


def to_tokens(x: Tensor) -> Tensor:
    """Positions of (B, C, H, W) as tokens (B, N, C)."""
    return x.flatten(2).transpose(1, 2)


def to_map(tokens: Tensor, height: int, width: int) -> Tensor:
    """Tokens (B, N, C) as (B, C, H, W), channels-last."""
    return tokens.contiguous().unflatten(1, (height, width)).permute(0, 3, 1, 2)


def split_heads(tokens: Tensor, parts: int, heads: int) -> Tensor:
    """Tokens (B, N, parts · heads · D) as (parts, B, heads, N, D)."""
    return tokens.unflatten(2, (parts, heads, -1)).permute(2, 0, 3, 1, 4)


def merge_heads(x: Tensor) -> Tensor:
    """Tokens (B, N, heads · D) of (B, heads, N, D)."""
    return x.transpose(1, 2).flatten(2)


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None = None,
    *,
    scale: float | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Attention, softmax(scale · q · kᵀ + bias) · v, (B, heads, N, D).

    Args:
        q: queries (B, heads, N, E).
        k: keys (B, heads, M, E).
        v: values (B, heads, M, D).
        bias: added to the logits, (B, heads, N, M), or with 1 in place of B.
        scale: 1/√E by default.
        dropout: probability of leaving a weight out.
    """
    # PyTorch's fused attention has no forward-mode derivative
    with sdpa_kernel(SDPBackend.MATH) if is_transformed() else nullcontext():
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=dropout, scale=scale)
