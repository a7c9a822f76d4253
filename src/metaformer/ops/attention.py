"""Attention of all to all from the product that made queries, keys and values: for inference on CPUs."""

import torch
import torch.nn.functional as F
from torch import Tensor

from metaformer.ops.native import library


def attention(qkv: Tensor) -> Tensor:
    """Map (B, N, 3, heads, D) to softmax(q kᵀ / √D) v, (B, N, heads · D), https://arxiv.org/abs/1706.03762."""
    batch, tokens, _, heads, depth = qkv.shape
    if not library.usable(qkv) or depth % library.lanes():
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (B, heads, N, D)
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    out = torch.empty(batch, tokens, heads * depth, dtype=qkv.dtype)
    library.call("attention", qkv.dtype, qkv, out, batch, tokens, heads, depth)
    return out
