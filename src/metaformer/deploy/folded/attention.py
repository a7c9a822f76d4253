"""Self-attention with its norm, scale and shortcut."""

import torch.nn.functional as F
from torch import Tensor, nn

from metaformer.deploy.folded.norm import take_apart
from metaformer.deploy.folded.product import folded
from metaformer.deploy.folded.shortcut import Shortcut
from metaformer.mixers.attention import Attention


class FoldedAttention(nn.Module):
    """The norm's constants are in the first product, scale and shortcut in the second."""

    def __init__(self, mixer: Attention, norm: nn.Module, scale: Tensor | None, shortcut: Shortcut) -> None:
        super().__init__()
        self.norm, gain, shift = take_apart(norm)
        self.shortcut, self.heads, self.head_dim = shortcut, mixer.heads, mixer.head_dim
        self.qkv = folded(mixer.qkv.weight, mixer.qkv.bias, gain=gain, shift=shift)
        self.proj = folded(mixer.proj.weight, mixer.proj.bias, scale=scale)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map (B, H, W, C) to the same shape."""
        batch, height, width, _ = tokens.shape
        qkv = self.qkv(self.norm(tokens)).view(batch, height * width, 3, self.heads, self.head_dim)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (B, heads, N, D)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        return self.shortcut.joined(self.proj, y.reshape(batch, height, width, -1), tokens)
