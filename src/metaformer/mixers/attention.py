"""Multi-head self-attention, https://arxiv.org/abs/1706.03762."""

from contextlib import nullcontext

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from metaformer.errors import ConfigError
from metaformer.layers.pointwise import Pointwise
from metaformer.mixers import MIXERS
from metaformer.ops.backend import is_transformed


@MIXERS.register("attention")
class Attention(nn.Module):
    """Every position attends to all; heads of `head_dim` channels, at least one head."""

    def __init__(
        self,
        dim: int,
        head_dim: int = 32,
        qkv_bias: bool = False,
        proj_bias: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if head_dim < 1:
            raise ConfigError(f"attention head_dim {head_dim} must be at least 1")
        self.heads = max(1, dim // head_dim)
        self.head_dim = head_dim
        self.dropout = dropout
        self.qkv = Pointwise(dim, 3 * self.heads * head_dim, qkv_bias)
        self.proj = Pointwise(self.heads * head_dim, dim, proj_bias)

    def forward(self, x: Tensor) -> Tensor:
        batch, _, height, width = x.shape
        q, k, v = self._split(x)
        # PyTorch's fused attention has no forward-mode derivative
        with sdpa_kernel(SDPBackend.MATH) if is_transformed() else nullcontext():
            y = F.scaled_dot_product_attention(q, k, v, dropout_p=self.dropout if self.training else 0.0)
        y = y.transpose(1, 2).reshape(batch, height, width, self.heads * self.head_dim).permute(0, 3, 1, 2)
        return self.proj(y)

    def attention_weights(self, x: Tensor) -> Tensor:
        """How much each position takes of each, (B, heads, N, N): softmax(q · kᵀ / √D)."""
        q, k, _ = self._split(x)
        return (q @ k.transpose(-2, -1) / self.head_dim**0.5).softmax(-1)

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, each (B, heads, N, D)."""
        tokens = self.qkv(x).flatten(2).transpose(1, 2)  # (B, N, 3·heads·D)
        q, k, v = tokens.unflatten(2, (3, self.heads, self.head_dim)).permute(2, 0, 3, 1, 4)
        return q, k, v
