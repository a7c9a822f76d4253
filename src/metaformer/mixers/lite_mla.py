"""EfficientViT's mixing: linear attention at several scales, https://arxiv.org/abs/2205.14756.

Cai et al. EfficientViT: Lightweight Multi-Scale Attention for High-Resolution Dense Prediction. ICCV 2023.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metaformer.layers.attention import count_heads, to_map
from metaformer.layers.norm import BatchNorm
from metaformer.layers.pointwise import Pointwise
from metaformer.mixers import MIXERS
from metaformer.ops.backend import without_autocast, without_half
from metaformer.serialize import ODD, check_value

EPS = 1e-5
"""Added to the sum of a position's weights."""


@MIXERS.register("lite_mla")
class LiteMLA(nn.Module):
    """Attention with ReLU in place of softmax: keys times values first, so that its cost is linear.

        q, k, v = W · x, and the same convolved by each of `scales`
        y = norm(W' · relu(q) · (relu(k)ᵀ · v) / relu(q) · Σ relu(k))

    Args:
        dim: channels.
        head_dim: channels of a head.
        scales: kernels of the depthwise convolutions.
    """

    def __init__(self, dim: int, head_dim: int = 32, scales: tuple[int, ...] = (5,)) -> None:
        super().__init__()
        for scale in scales:
            check_value("lite_mla scales", scale, ODD)
        heads = count_heads("lite_mla", dim, head_dim)
        width = 3 * heads * head_dim
        self.head_dim = head_dim
        self.qkv = Pointwise(dim, width, bias=False)
        self.scales = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(width, width, scale, padding=scale // 2, groups=width, bias=False),
                nn.Conv2d(width, width, 1, groups=3 * heads, bias=False),
            )
            for scale in scales
        )
        self.proj = Pointwise(heads * head_dim * (1 + len(scales)), dim, bias=False)
        self.norm = BatchNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(x)
        qkv = torch.cat([qkv, *(scale(qkv) for scale in self.scales)], 1)
        heads = qkv.flatten(2).unflatten(1, (-1, 3 * self.head_dim)).transpose(2, 3)  # (B, heads, N, 3·D)
        with without_autocast(x):  # sums over all positions leave float16's range
            q, k, v = without_half(heads).chunk(3, 3)
            q, k = F.relu(q), F.relu(k)
            weights = (q * k.sum(2, keepdim=True)).sum(3, keepdim=True)
            y = q @ (k.transpose(2, 3) @ v) / (weights + EPS)
        y = y.to(qkv.dtype).transpose(1, 2).flatten(2)
        return self.norm(self.proj(to_map(y, x.shape[2], x.shape[3])))
