"""XCiT's mixing: cross-covariance attention, https://arxiv.org/abs/2106.09681.

El-Nouby et al. XCiT: Cross-Covariance Image Transformers. NeurIPS 2021.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metaformer.layers.attention import attend, count_heads, merge_heads, split_heads, to_map, to_tokens
from metaformer.layers.pointwise import Pointwise
from metaformer.mixers import MIXERS


@MIXERS.register("xca")
class XCA(nn.Module):
    """Channels attend to channels: the weights are their covariance over all positions, of unit vectors.

        q, k, v = W · x                      of each head, channels × positions
        y = W' · softmax(τ · q̂ · k̂ᵀ) · v     q̂ and k̂ of length 1, τ learned by head

    Args:
        dim: channels.
        head_dim: channels of a head, which attend to each other.
        qkv_bias: bias of queries, keys and values.
    """

    def __init__(self, dim: int, head_dim: int = 32, qkv_bias: bool = True) -> None:
        super().__init__()
        self.heads = count_heads("xca", dim, head_dim)
        self.temperature = nn.Parameter(torch.ones(self.heads, 1, 1))
        self.qkv = Pointwise(dim, 3 * self.heads * head_dim, qkv_bias)
        self.proj = Pointwise(self.heads * head_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = split_heads(to_tokens(self.qkv(x)), 3, self.heads).transpose(3, 4)
        q, k = F.normalize(q, dim=-1) * self.temperature, F.normalize(k, dim=-1)
        y = attend(q, k, v, scale=1.0).transpose(2, 3)
        return self.proj(to_map(merge_heads(y), x.shape[2], x.shape[3]))
