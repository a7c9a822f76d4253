"""Patch embedding, downsampling and position embedding."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import Proxy

from metaformer.errors import GridError
from metaformer.layers.act import ACTS
from metaformer.layers.norm import NORMS


class Stem(nn.Module):
    """Patch embedding: a strided convolution, or two with half the channels between them, then norm."""

    def __init__(
        self,
        in_chans: int,
        dim: int,
        kernel: int,
        stride: int,
        padding: int,
        *,
        order: str = "conv",
        norm: str = "none",
        eps: float = 1e-5,
        act: str = "gelu",
    ) -> None:
        super().__init__()
        between = order.split("_")[1:-1]  # of two convolutions: `norm` and `act` of conv_norm_act_conv
        middle = max(1, dim // 2) if between else dim
        self.conv = nn.Conv2d(in_chans, middle, kernel, stride, padding)
        self.conv2: nn.Conv2d | None = None
        if between:
            self.mid_norm = NORMS.build(norm if "norm" in between else "none", middle, eps=eps)
            self.act = ACTS.build(act)
            self.conv2 = nn.Conv2d(middle, dim, kernel, stride, padding)
        self.norm = NORMS.build(norm, dim, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_chans, H, W) to (B, dim, H/stride, W/stride), with two convolutions by stride²."""
        x = self.conv(x)
        if self.conv2 is not None:
            x = self.conv2(self.act(self.mid_norm(x)))
        return self.norm(x)


class Downsample(nn.Module):
    """Downsampling between two stages: norm and strided convolution, in either order."""

    def __init__(
        self,
        dim: int,
        out: int,
        kernel: int,
        stride: int,
        padding: int,
        *,
        order: str = "norm_conv",
        norm: str = "none",
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        self.norm_first = order == "norm_conv"
        self.norm = NORMS.build(norm, dim if self.norm_first else out, eps=eps)
        self.conv = nn.Conv2d(dim, out, kernel, stride, padding)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, dim, H, W) to (B, out, H/stride, W/stride)."""
        return self.conv(self.norm(x)) if self.norm_first else self.norm(self.conv(x))


class PositionEmbedding(nn.Module):
    """Learned vector per position, added; it starts at zero (PoolFormer's hybrids with attention)."""

    def __init__(self, dim: int, grid: tuple[int, int], grid_mode: str = "strict") -> None:
        super().__init__()
        self.grid = grid
        self.grid_mode = grid_mode
        self.weight = nn.Parameter(torch.zeros(1, dim, *grid))

    def forward(self, x: Tensor) -> Tensor:
        """Add to (B, C, H, W).

        Raises:
            GridError: x is not of the grid's size, and `grid_mode` is strict.
        """
        size = (x.shape[-2], x.shape[-1])
        if isinstance(x, Proxy) or size == self.grid:  # a symbolic size cannot be compared
            return x + self.weight
        if self.grid_mode == "strict":
            raise GridError("position embedding", self.grid, size)
        return x + F.interpolate(self.weight, size, mode="bicubic", align_corners=False)
