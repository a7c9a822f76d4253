"""Self-attention with its norm, scale and shortcut."""

from torch import Tensor, nn

from metaformer.deploy.folded.norm import take_apart
from metaformer.deploy.folded.product import folded
from metaformer.deploy.folded.shortcut import Shortcut
from metaformer.mixers.attention import Attention
from metaformer.ops.attention import attention


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
        qkv = self.qkv.after(self.norm, tokens).view(batch, height * width, 3, self.heads, self.head_dim)
        return self.shortcut.joined(self.proj, attention(qkv).view(batch, height, width, -1), tokens)
