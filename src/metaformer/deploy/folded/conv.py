"""A convolution whose weight lies as oneDNN wants it."""

from functools import partial
from typing import TypeGuard

import torch.nn.functional as F
from torch import Tensor, nn

from metaformer.deploy.folded.linear import Prepared
from metaformer.ops import onednn
from metaformer.ops.depthwise import Star, depthwise, pack, star_relu, supported


class FoldedConv(Prepared):
    """A convolution that lays its weight out for maps of one shape, when that comes twice in a row."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.weight, self.bias = conv.weight, conv.bias
        padding = [int(side) for side in conv.padding]
        self.geometry: onednn.Geometry = list(conv.stride), padding, list(conv.dilation), conv.groups

    def forward(self, x: Tensor, star: Star | None = None) -> Tensor:
        """Map (B, in, H, W) to (B, out, h, w), through a StarReLU first where there is one."""
        x = x if star is None else star_relu(x, star)
        packed = None
        if onednn.usable(x):
            make = partial(onednn.pack_convolution, self.weight, x.shape, self.geometry)
            packed = self.kept_for(x.shape, make)
        if packed is not None:
            return onednn.convolution(x, packed, self.bias, self.geometry)
        stride, padding, dilation, groups = self.geometry
        return F.conv2d(x, self.weight, self.bias, stride, padding, dilation, groups)


class FoldedDepthwise(Prepared):
    """A wide convolution of each channel by itself."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.weight, self.bias = conv.weight, conv.bias

    def forward(self, x: Tensor, star: Star | None = None) -> Tensor:
        """Map (B, C, H, W) to the same shape, through a StarReLU first where there is one."""
        packed = self.kept("weight", lambda: pack(self.weight))
        tokens = x.permute(0, 2, 3, 1)
        return depthwise(tokens, self.weight, self.bias, star, packed).permute(0, 3, 1, 2)


def folded_conv(conv: nn.Conv2d) -> FoldedConv | FoldedDepthwise:
    """The form of a `packable` convolution."""
    side = conv.kernel_size[0]
    same = conv.stride == (1, 1) and conv.dilation == (1, 1) and conv.padding == (side // 2, side // 2)
    whole = conv.groups == conv.in_channels == conv.out_channels
    return (FoldedDepthwise if same and whole and supported(conv.weight) else FoldedConv)(conv)


def packable(module: nn.Module) -> TypeGuard[nn.Conv2d]:
    """Say whether a module is a convolution that `FoldedConv` can stand for."""
    return (
        isinstance(module, nn.Conv2d)
        and module.padding_mode == "zeros"
        and module.padding not in ("same", "valid")
    )
