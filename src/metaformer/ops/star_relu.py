"""StarReLU where a product wrote its map: for inference, https://arxiv.org/abs/2210.13452."""

from torch import Tensor

from metaformer.ops.native import library


def star_relu_(x: Tensor, scale: float = 1.0, bias: float = 0.0) -> Tensor:
    """Replace x by scale · max(x, 0)² + bias, and return it."""
    if library.usable(x):
        library.call("star_relu", x.dtype, x, x.numel(), scale, bias)
        return x
    return reference(x, scale, bias)


def reference(x: Tensor, scale: float = 1.0, bias: float = 0.0) -> Tensor:
    """The same in plain PyTorch, elsewhere in memory."""
    y = x.relu().square()
    y = y if scale == 1.0 else y * scale
    return y if bias == 0.0 else y + bias
