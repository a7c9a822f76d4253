"""Multi-head self-attention, https://arxiv.org/abs/1706.03762.

Vaswani et al. Attention Is All You Need. NeurIPS 2017.
"""

from torch import Tensor, nn

from metaformer.layers.attention import attend, count_heads, merge_heads, split_heads, to_map, to_tokens
from metaformer.layers.pointwise import Pointwise
from metaformer.mixers import MIXERS


@MIXERS.register("attention")
class Attention(nn.Module):
    """Every position attends to all; heads of `head_dim` channels, at least one head.

        q, k, v = W · x
        y = W' · softmax(q · kᵀ / √D) · v

    Args:
        dim: channels.
        head_dim: channels of a head, D.
        qkv_bias: bias of queries, keys and values.
        proj_bias: bias of the last linear layer.
        dropout: probability of leaving out a weight of the attention in training.
    """

    def __init__(
        self,
        dim: int,
        head_dim: int = 32,
        qkv_bias: bool = False,
        proj_bias: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.heads = count_heads("attention", dim, head_dim)
        self.head_dim = head_dim
        self.dropout = dropout
        self.qkv = Pointwise(dim, 3 * self.heads * head_dim, qkv_bias)
        self.proj = Pointwise(self.heads * head_dim, dim, proj_bias)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self._split(x)
        y = attend(q, k, v, dropout=self.dropout if self.training else 0.0)
        return self.proj(to_map(merge_heads(y), x.shape[2], x.shape[3]))

    def attention_weights(self, x: Tensor) -> Tensor:
        """How much each position takes of each, (B, heads, N, N): softmax(q · kᵀ / √D)."""
        q, k, _ = self._split(x)
        return (q @ k.transpose(-2, -1) / self.head_dim**0.5).softmax(-1)

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, each (B, heads, N, D)."""
        q, k, v = split_heads(to_tokens(self.qkv(x)), 3, self.heads)
        return q, k, v
