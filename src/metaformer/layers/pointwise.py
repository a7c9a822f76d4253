"""The 1×1 product over channels that most of a MetaFormer's work consists of."""

from torch import nn


class Pointwise(nn.Conv2d):
    """A linear map of each position's channels, (B, C, H, W) to (B, out, H, W).

    A 1×1 convolution rather than `nn.Linear`: on channels-last maps it needs no permutation, and oneDNN
    runs it faster than the plain product at most shapes.
    """

    def __init__(self, dim: int, out: int, bias: bool = True) -> None:
        super().__init__(dim, out, 1, bias=bias)
        nn.init.trunc_normal_(self.weight, std=0.02)
        if self.bias is not None:
            nn.init.zeros_(self.bias)
