"""What the machine can do at best: products and copies as large as it likes them."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SIDE = {"cpu": 2048, "cuda": 8192}
"""Height and width of the product's matrices."""
POSITIONS = {"cpu": (8, 28, 28), "cuda": (64, 56, 56)}
"""Batch, height and width of the 1×1 convolution's map."""
CHANNELS = (512, 2048)
COPIED = {"cpu": 1 << 28, "cuda": 1 << 30}
"""Bytes that are copied: far more than caches hold."""


class Ceiling(nn.Module):
    """Something to time beside the networks; what it is given to run is ignored."""

    work = 0.0
    """Floating-point operations of a run, or bytes that it reads and writes."""


class MatrixProduct(Ceiling):
    """The product of two square matrices."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__()
        side = SIDE[device.type]
        self.a = torch.randn(side, side, device=device, dtype=dtype)
        self.out = torch.empty_like(self.a)
        self.work = 2.0 * side**3

    def forward(self, images: Tensor) -> None:
        """Multiply."""
        torch.mm(self.a, self.a, out=self.out)


class Convolution(Ceiling):
    """A wide 1×1 convolution of a channels-last map."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__()
        (batch, height, width), (dim, out) = POSITIONS[device.type], CHANNELS
        x = torch.randn(batch, dim, height, width, device=device, dtype=dtype)
        self.x = x.contiguous(memory_format=torch.channels_last)
        self.weight = torch.randn(out, dim, 1, 1, device=device, dtype=dtype)
        self.work = 2.0 * batch * height * width * dim * out

    def forward(self, images: Tensor) -> None:
        """Convolve."""
        F.conv2d(self.x, self.weight)


class Copy(Ceiling):
    """A copy from one place in memory to another: bytes read and bytes written."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__()
        elements = COPIED[device.type] // dtype.itemsize
        self.a = torch.zeros(elements, device=device, dtype=dtype)
        self.b = torch.zeros_like(self.a)
        self.work = 2.0 * elements * dtype.itemsize

    def forward(self, images: Tensor) -> None:
        """Copy."""
        self.b.copy_(self.a)


CEILINGS: dict[str, type[Ceiling]] = {
    "ceiling product": MatrixProduct,
    "ceiling convolution": Convolution,
    "ceiling copy": Copy,
}
PRODUCTS = ("ceiling product", "ceiling convolution")
COPY = "ceiling copy"
