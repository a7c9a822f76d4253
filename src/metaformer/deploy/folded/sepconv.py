"""The separable convolution with its norm, scale and shortcut."""

from typing import Any

from torch import Tensor, nn

from metaformer.deploy.folded.conv import folded_conv
from metaformer.deploy.folded.norm import kernel_options, take_apart
from metaformer.deploy.folded.product import folded
from metaformer.deploy.folded.shortcut import Shortcut
from metaformer.layers.act import StarReLU
from metaformer.mixers.sepconv import SepConv
from metaformer.ops.backend import triton_usable
from metaformer.ops.pointwise_act import pointwise_act
from metaformer.ops.pointwise_residual import pointwise_residual


class FoldedSepConv(nn.Module):
    """Two products around the convolution of each channel, which StarReLU happens in.

    Its bias cannot move on into the second product: the convolution pads with zeros after it.
    """

    def __init__(self, mixer: SepConv, norm: nn.Module, scale: Tensor | None, shortcut: Shortcut) -> None:
        super().__init__()
        self.norm, gain, shift = take_apart(norm)
        self.shortcut = shortcut
        self.pwconv1 = folded(mixer.pwconv1.weight, mixer.pwconv1.bias, gain=gain, shift=shift)
        self.act1 = act = mixer.act1
        self.star = (float(act.scale), float(act.bias)) if isinstance(act, StarReLU) else None
        self.dwconv = folded_conv(mixer.dwconv)
        self.pwconv2 = folded(mixer.pwconv2.weight, mixer.pwconv2.bias, scale=scale)

    def width(self, tokens: Tensor) -> int:
        """Channels of the widest map."""
        return self.pwconv2.weight.shape[1]

    def forward(self, tokens: Tensor) -> Tensor:
        """Map (B, H, W, C) to the same shape."""
        options = kernel_options(self.norm)
        act = self.act1
        if options is not None and isinstance(act, StarReLU) and triton_usable(tokens):
            return self._by_kernels(tokens.permute(0, 3, 1, 2), options, act).permute(0, 2, 3, 1)
        h = self.pwconv1.after(self.norm, tokens)
        h = h if self.star else act(h)
        h = self.dwconv(h.permute(0, 3, 1, 2), self.star).permute(0, 2, 3, 1)
        return self.shortcut.joined(self.pwconv2, h, tokens)

    def _by_kernels(self, x: Tensor, options: dict[str, Any], act: StarReLU) -> Tensor:
        first, second = self.pwconv1, self.pwconv2
        star: dict[str, Any] = {"act_scale": act.scale, "act_bias": act.bias}
        h = pointwise_act(x, first.weight, first.bias, **options, act="star_relu", **star)
        factor = self.shortcut.factor
        return pointwise_residual(self.dwconv(h), second.weight, second.bias, x, shortcut=factor)
