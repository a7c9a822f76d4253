"""Linear layer over channels: most of a MetaFormer's FLOPs."""

from typing import Any

import torch
from torch import Tensor, nn

from metaformer.layers.init import init_normal


class Pointwise(nn.Conv2d):
    """Linear layer over each position's channels, (B, C, H, W) to (B, out, H, W).

    A 1×1 convolution rather than `nn.Linear`: on channels-last memory it needs no permutation, and oneDNN
    runs it faster than a matrix product at most shapes.
    """

    def __init__(self, dim: int, out: int, bias: bool = True) -> None:
        super().__init__(dim, out, 1, bias=bias)
        init_normal(self)

    def matrix(self) -> Tensor:
        """The weight as (out, in), whose gradient lies in memory as the weight does: DDP copies others."""
        return _Matrix.apply(self.weight)


class _Matrix(torch.autograd.Function):
    """(out, in, 1, 1) to (out, in) and back."""

    @staticmethod
    def forward(weight: Tensor) -> Tensor:
        return weight.flatten(1)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.shape, ctx.stride = inputs[0].shape, inputs[0].stride()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        grad = grads[0].contiguous()
        # where a side is 1 its stride can be anything, and DDP compares it all the same
        return (
            grad.as_strided(ctx.shape, ctx.stride)
            if ctx.stride[:2] == grad.stride()
            else grad.view(ctx.shape)
        )
