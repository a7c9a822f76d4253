"""Pyramid Vision Transformer's mixing: attention to a smaller map, https://arxiv.org/abs/2106.13797.

Wang et al. PVT v2: Improved Baselines with Pyramid Vision Transformer. Computational Visual Media 2022.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from metaformer.layers.attention import attend, count_heads, merge_heads, split_heads, to_map, to_tokens
from metaformer.layers.norm import LayerNorm
from metaformer.layers.pointwise import Pointwise
from metaformer.mixers import MIXERS
from metaformer.serialize import POSITIVE_INT, check_value

POOLED = 7
"""Height and width of the linear form's keys and values (PVT v2, section 3.2)."""


@MIXERS.register("spatial_reduction_attention")
class SpatialReductionAttention(nn.Module):
    """Every position attends to a map of fewer positions: a strided convolution's, or a pooled one.

        z = norm(conv(x))            or, linear, z = gelu(norm(W₁ · pool(x)))
        q, k, v = W₂ · x, W₃ · z
        y = W₄ · softmax(q · kᵀ / √D) · v

    Args:
        dim: channels.
        reduction: kernel and stride of the convolution, 1 for none; the paper's stages have 8, 4, 2 and 1.
        linear: pool to 7×7 positions instead, so that the cost grows linearly.
        head_dim: channels of a head.
        qkv_bias: bias of queries, keys and values.
    """

    def __init__(
        self, dim: int, reduction: int = 2, linear: bool = False, head_dim: int = 32, qkv_bias: bool = True
    ) -> None:
        super().__init__()
        check_value("spatial_reduction_attention reduction", reduction, POSITIVE_INT)
        self.heads = count_heads("spatial_reduction_attention", dim, head_dim)
        self.reduction = 1 if linear else reduction
        self.q = Pointwise(dim, self.heads * head_dim, qkv_bias)
        self.kv = Pointwise(dim, 2 * self.heads * head_dim, qkv_bias)
        self.proj = Pointwise(self.heads * head_dim, dim)
        self.reduce: nn.Module = nn.Identity()
        if linear:
            pool = nn.AdaptiveAvgPool2d(POOLED)
            self.reduce = nn.Sequential(pool, Pointwise(dim, dim), LayerNorm(dim), nn.GELU())
        elif reduction > 1:
            self.reduce = nn.Sequential(nn.Conv2d(dim, dim, reduction, reduction), LayerNorm(dim))

    def forward(self, x: Tensor) -> Tensor:
        (q,) = split_heads(to_tokens(self.q(x)), 1, self.heads)
        k, v = split_heads(to_tokens(self.kv(self.reduce(self._one_window(x)))), 2, self.heads)
        return self.proj(to_map(merge_heads(attend(q, k, v)), x.shape[2], x.shape[3]))

    def _one_window(self, x: Tensor) -> Tensor:
        """The map, filled up with zeros where it is smaller than the convolution's kernel."""
        if self.reduction == 1:
            return x
        # max(0, kernel - n), in arithmetic that symbolic sizes have too
        below, right = (
            (1 // (n // self.reduction + 1)) * (self.reduction - n) for n in (x.shape[2], x.shape[3])
        )
        return F.pad(x, (0, right, 0, below))
