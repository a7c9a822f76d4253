"""HaloNet's mixing: local attention in blocks with a halo, https://arxiv.org/abs/2103.12731.

Vaswani et al. Scaling Local Self-Attention for Parameter Efficient Visual Backbones. CVPR 2021.
"""

import torch
from torch import Tensor, nn

from metaformer.errors import ConfigError
from metaformer.layers import windows
from metaformer.layers.attention import attend, count_heads, merge_heads
from metaformer.layers.pointwise import Pointwise
from metaformer.mixers import MIXERS
from metaformer.serialize import POSITIVE_INT, Range, check_value


@MIXERS.register("halo_attention")
class HaloAttention(nn.Module):
    """Positions of a block attend to the block and a halo around it, with zeros beyond the map.

        q = W · x                     of each block's positions
        k, v = W' · x                 of the positions of block and halo
        y = softmax(q · kᵀ / √D + q · (r_row + r_column)ᵀ) · v

    Args:
        dim: channels, divided among the heads' values.
        block: height and width of a block.
        halo: positions around it, at most half of `block`; 0 for local attention.
        head_dim: channels of a head's queries and keys; dim over it is the number of heads.
        qkv_bias: bias of queries, keys and values.
    """

    def __init__(
        self, dim: int, block: int = 8, halo: int = 3, head_dim: int = 32, qkv_bias: bool = False
    ) -> None:
        super().__init__()
        check_value("halo_attention block", block, POSITIVE_INT)
        check_value("halo_attention halo", halo, Range(0, block // 2, integer=True))
        self.block, self.halo, self.head_dim = block, halo, head_dim
        self.heads = count_heads("halo_attention", dim, head_dim)
        if dim % self.heads:
            raise ConfigError(
                f"halo_attention head_dim {head_dim}: {self.heads} heads do not divide dim {dim}"
            )
        self.q = Pointwise(dim, self.heads * head_dim, qkv_bias)
        self.kv = Pointwise(dim, self.heads * head_dim + dim, qkv_bias)
        self.window = block + 2 * halo
        self.height_rel = nn.Parameter(torch.empty(2 * self.window - 1, head_dim))
        self.width_rel = nn.Parameter(torch.empty(2 * self.window - 1, head_dim))
        for table in (self.height_rel, self.width_rel):
            nn.init.trunc_normal_(table, std=head_dim**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2], x.shape[3]
        padded = (windows.count(n, self.block) * self.block for n in (height, width))
        queries = windows.split(windows.pad(self.q(x), self.block), self.block)
        keys = windows.split(windows.pad(self.kv(x), self.block, self.halo), self.block, self.halo)
        q, kv = (tokens.unflatten(2, (self.heads, -1)).transpose(1, 2) for tokens in (queries, keys))
        k, v = kv.narrow(3, 0, self.head_dim), kv.narrow(3, self.head_dim, kv.shape[3] - self.head_dim)
        y = merge_heads(attend(q, k, v, self._bias(q)))
        return windows.crop(windows.merge(y, self.block, *padded), height, width)

    def _bias(self, q: Tensor) -> Tensor:
        """What each query adds to the logit of each relative position, (B · blocks, heads, N, M)."""
        rows, columns = (
            windows.by_relative_position(table, self.block, self.window)
            for table in (self.height_rel, self.width_rel)
        )
        q = q.unflatten(2, (self.block, self.block))
        by_row = torch.einsum("bhrcd,rkd->bhrck", q, rows).unsqueeze(5)
        by_column = torch.einsum("bhrcd,ckd->bhrck", q, columns).unsqueeze(4)
        return (by_row + by_column).flatten(4, 5).flatten(2, 3)
