"""A convolution whose weight lies as oneDNN wants it."""

from functools import partial
from typing import TypeGuard

import torch.nn.functional as F
from torch import Tensor, nn

from metaformer.deploy.folded.prepared import Prepared
from metaformer.ops import onednn


class FoldedConv(Prepared):
    """A convolution that lays its weight out for maps of one shape, when that comes twice in a row."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.weight, self.bias = conv.weight, conv.bias
        padding = [int(side) for side in conv.padding]
        self.geometry: onednn.Geometry = list(conv.stride), padding, list(conv.dilation), conv.groups

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in, H, W) to (B, out, h, w)."""
        packed = None
        if onednn.usable(x):
            make = partial(onednn.pack_convolution, self.weight, x.shape, self.geometry)
            packed = self.kept_for(x.shape, make)
        if packed is not None:
            return onednn.convolution(x, packed, self.bias, self.geometry)
        stride, padding, dilation, groups = self.geometry
        return F.conv2d(x, self.weight, self.bias, stride, padding, dilation, groups)


def packable(module: nn.Module) -> TypeGuard[nn.Conv2d]:
    """Say whether a module is a convolution that `FoldedConv` can stand for."""
    return (
        isinstance(module, nn.Conv2d)
        and module.padding_mode == "zeros"
        and module.padding not in ("same", "valid")
    )
