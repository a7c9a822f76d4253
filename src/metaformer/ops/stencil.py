"""The average of a token's neighbors less the token, which keeps nothing for its gradient."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from metaformer.ops.native import library

SIZE = 3
"""The kernel's window; others take plain PyTorch."""


def pool_minus_self(x: Tensor, size: int) -> Tensor:
    """Give pool(x) − x of (B, C, H, W); only positions inside the map are averaged.

    The gradient of this stencil is a stencil too and asks for no map, where PyTorch's pooling keeps its own.

    Args:
        x: the map; channels-last is fastest.
        size: odd width and height of the window.
    """
    return _Stencil.apply(x, size, False)


class _Stencil(torch.autograd.Function):
    """The stencil, or its transpose."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, size: int, transposed: bool) -> Tensor:
        tokens = x.permute(0, 2, 3, 1)
        if size == SIZE and library.usable(tokens):
            out = torch.empty_like(tokens)
            library.call("stencil", x.dtype, tokens, out, *tokens.shape, int(transposed))
            return out.permute(0, 3, 1, 2)
        if not transposed:
            return F.avg_pool2d(x, size, 1, size // 2, count_include_pad=False).sub_(x)
        window, padding = [size, size], [size // 2, size // 2]
        # of the second argument only the shape is read
        spread = torch.ops.aten.avg_pool2d_backward(x, x, window, [1, 1], padding, False, False, None)
        return spread.sub_(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, int, bool], output: Tensor) -> None:
        _, *ctx.how = inputs

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        size, transposed = ctx.how
        return _Stencil.apply(grads[0], size, not transposed), None, None
