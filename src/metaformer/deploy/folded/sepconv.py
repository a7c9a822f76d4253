"""The separable convolution with its norm, scale and shortcut."""

import torch
from torch import Tensor, nn

from metaformer.deploy.folded.mlp import EPILOGUES
from metaformer.deploy.folded.norm import take_apart
from metaformer.deploy.folded.product import folded
from metaformer.deploy.folded.shortcut import Shortcut
from metaformer.layers.act import StarReLU
from metaformer.mixers.sepconv import SepConv


class FoldedSepConv(nn.Module):
    """Two products around the convolution of each channel; StarReLU starts in the first one's epilogue.

    Its bias cannot move on: the convolution pads with zeros after it.
    """

    def __init__(self, mixer: SepConv, norm: nn.Module, scale: Tensor | None, shortcut: Shortcut) -> None:
        super().__init__()
        self.norm, gain, shift = take_apart(norm)
        self.shortcut = shortcut
        self.pwconv1 = folded(mixer.pwconv1.weight, mixer.pwconv1.bias, gain=gain, shift=shift)
        self.act1 = mixer.act1
        self.dwconv = mixer.dwconv
        self.pwconv2 = folded(mixer.pwconv2.weight, mixer.pwconv2.bias, scale=scale)

    @property
    def width(self) -> int:
        """Channels of the widest map."""
        return self.pwconv2.weight.shape[1]

    def forward(self, tokens: Tensor) -> Tensor:
        """Map (B, H, W, C) to the same shape."""
        h = self.norm(tokens)
        if type(self.act1) is StarReLU:
            h = self.pwconv1(h, EPILOGUES[StarReLU])
            h = torch.addcmul(self.act1.bias, h * self.act1.scale, h)
        else:
            h = self.act1(self.pwconv1(h))
        h = self.dwconv(h.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return self.pwconv2(h, plus=self.shortcut(tokens))
