"""Multi-head self-attention from the queries, keys and values of one linear layer, https://arxiv.org/abs/1706.03762."""

import torch.nn.functional as F
from torch import Tensor

from metaformer.ops import cpp
from metaformer.ops.cpp import kernels


def attention(qkv: Tensor) -> Tensor:
    """softmax(q · kᵀ / √D) · v of qkv (B, N, 3, heads, D): (B, N, heads · D)."""
    batch, tokens, _, heads, head_dim = qkv.shape
    if not cpp.supports(qkv) or head_dim % cpp.lanes():
        return reference(qkv)
    out = qkv.new_empty(batch, tokens, heads * head_dim)
    kernels.attention(qkv=qkv, out=out, batch=batch, tokens=tokens, heads=heads, head_dim=head_dim)
    return out


def reference(qkv: Tensor) -> Tensor:
    """The same in plain PyTorch."""
    q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (B, heads, N, D)
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
