"""DaViT's mixing of channels by all positions, https://arxiv.org/abs/2204.03645.

Ding et al. DaViT: Dual Attention Vision Transformers. ECCV 2022.
"""

from torch import Tensor, nn

from metaformer.layers.attention import attend, count_heads, merge_heads, split_heads, to_map, to_tokens
from metaformer.layers.pointwise import Pointwise
from metaformer.mixers import MIXERS


@MIXERS.register("channel_attention")
class ChannelAttention(nn.Module):
    """Channels attend to channels of their group; in the paper with window attention in every second block.

        q, k, v = W · x                      of each group, channels × positions
        y = W' · softmax(k · vᵀ / √D) · q

    Args:
        dim: channels.
        head_dim: channels of a group, which attend to each other.
        qkv_bias: bias of queries, keys and values.
    """

    def __init__(self, dim: int, head_dim: int = 32, qkv_bias: bool = True) -> None:
        super().__init__()
        self.heads = count_heads("channel_attention", dim, head_dim)
        self.scale = head_dim**-0.5
        self.qkv = Pointwise(dim, 3 * self.heads * head_dim, qkv_bias)
        self.proj = Pointwise(self.heads * head_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = split_heads(to_tokens(self.qkv(x)), 3, self.heads).transpose(3, 4)
        y = attend(k, v, q, scale=self.scale).transpose(2, 3)  # the published code's names
        return self.proj(to_map(merge_heads(y), x.shape[2], x.shape[3]))
